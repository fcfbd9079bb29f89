"""What a job of index notation means, for stages of `kernel.c`: everything at once, in numpy, without planner or ranks.

An element of an output is OP over the reduced indices of OP2 over the other indices that the output lacks of a term; the term
is made of the inputs and their neighbours at a point of all indices, and of the point itself. Values are 64-bit integers.
"""
import itertools
import re
import tomllib

import h5py
import numpy as np

PRIMES = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37]
NUMPY = {"f16": "<f2", "bf16": "<u2", "f32": "<f4", "f64": "<f8", **{k + b: f"<{k}{int(b) // 8}" for k in "iu" for b in ("8", "16", "32", "64")}}
OPS = ["sum", "prod", "min", "max"]
FOLDS = [np.add.reduce, np.multiply.reduce, np.minimum.reduce, np.maximum.reduce]
PAD = {"clamp": "edge", "periodic": "wrap", "zero": "constant", "none": "constant"}


def operands(text):
    """[(tensor, [(index, multiple, halo)])] of each side of the notation."""
    dim = lambda d: (re.search("[a-z][a-z0-9_]*", d)[0], int((re.match(r"(\d+)\*", d) or [0, 1])[1]), int((re.search(r"~(\d+)", d) or [0, 0])[1]))
    side = lambda s: [(name, [dim(d.strip()) for d in dims.split(",") if d.strip()]) for name, dims in re.findall(r"(\w+)\[([^]]*)\]", s)]
    return [side(s) for s in text.split("->")]


def reduced(stage):
    """The indices that a stage may cut and combine, as the reference says."""
    ins, outs = operands(stage["compute"])
    names = lambda side: [i for _, dims in side for i, _, _ in dims]
    free = [i for i in dict.fromkeys(names(ins)) if i not in names(outs) and i not in stage.get("whole", [])]
    return [] if "combine" not in stage else stage.get("reduce", free if len(free) == 1 else [])


def cast(dtype, op, x):
    if "f" in dtype:
        return np.where(x & 1, -1, 1) if op == 1 else x & 7
    return x & (2**63 - 1) if dtype == "u64" else x.astype(NUMPY[dtype]).astype(np.int64)


def fold(op, x, axes):
    empty = any(x.shape[a] == 0 for a in axes)
    if empty and op > 1:
        return np.zeros([n for a, n in enumerate(x.shape) if a not in axes], np.int64)
    return FOLDS[op](x, axis=tuple(axes))


def neighbourhoods(x, dims, boundary):
    """The weighted sum around each point of an input's indices."""
    x = np.pad(x, [(h, h) for _, _, h in dims], PAD[boundary]) if any(h for _, _, h in dims) else x
    points = [(n - 2 * h) // s for n, (_, s, h) in zip(x.shape, dims)]
    sum = np.zeros(points, np.int64)
    for offs in itertools.product(*[range(s + 2 * h) for _, s, h in dims]):
        at = tuple(slice(o, o + s * (p - 1) + 1, s) if p else slice(0) for o, p, (_, s, _) in zip(offs, points, dims))
        sum += x[at] * np.prod([o + 1 for o in offs], dtype=np.int64)
    return sum


def run_stage(stage, dtypes, values):
    ins, outs = operands(stage["compute"])
    word = int(values[ins[0][0]])
    op, op2, kind = word >> 6 & 3, word >> 8 & 3, word >> 10 & 3
    ins = ins[1 + (word & 7) + len(outs):]
    indices = list(dict.fromkeys(i for _, dims in ins + outs for i, _, _ in dims))
    extents = dict(stage.get("sizes", {}))
    for name, dims in ins:
        extents.update({i: n // s for n, (i, s, _) in zip(values[name].shape, dims)})
    along = lambda i: np.arange(extents[i]).reshape([-1 if j == i else 1 for j in indices])
    total, product = np.zeros([extents[i] for i in indices], np.int64), np.int64(1)
    for t, (name, dims) in enumerate(ins):
        value = neighbourhoods(values[name], dims, stage.get("boundary", "none"))
        order = sorted(range(len(dims)), key=lambda d: indices.index(dims[d][0]))
        has = [i for i, _, _ in dims]
        value = value.transpose(order).reshape([extents[i] if i in has else 1 for i in indices])
        total = total + (2 * t + 3) * value
        product = product * value
    total = total + product
    for i, prime in zip(indices, PRIMES):
        total = total + prime * along(i)
    made = []
    for name, dims in outs:
        made.append(np.zeros([extents[i] * s for i, s, _ in dims], np.int64))
        mine = [i for i, _, _ in dims]
        outer = [i for i in indices if i in reduced(stage) and i not in mine]
        rest = [i for i in indices if i not in outer and i not in mine]
        dtype = dtypes[outs[0][0]] if kind == 1 else dtypes[name]
        # The outputs' indices in their order, then the reduced, then the rest.
        ordered = total.transpose([indices.index(i) for i in mine + outer + rest])
        for r in itertools.product(*[range(s) for _, s, _ in dims]):
            x = cast(dtype, op2, ordered * (1 + sum(n * (2 * d + 1) for d, n in enumerate(r))))
            x = cast(dtype, op, fold(op2, x, range(len(mine + outer), x.ndim)))
            if kind == 0:
                x = fold(op, x, range(len(mine), x.ndim))
            else:
                x = x.reshape([extents[i] for i in mine] + [np.prod([extents[i] for i in outer], dtype=int)])
                x = (place if kind == 1 else affine)(x, op, len(made) == 2, len(outer) == 1)
            made[-1][tuple(slice(n, None, s) for n, (_, s, _) in zip(r, dims))] = x
    for (name, dims), x in zip(outs, made):
        rows = tuple(d for d, (i, _, _) in enumerate(dims) if word >> 40 >> indices.index(i) & 1)
        first = stored(dtypes[name], x)
        values[name] = stored(dtypes[name], first + 3 * first.sum(axis=rows, keepdims=True)) if rows else first


def place(x, op, second, _):
    if x.shape[-1] == 0:
        return np.zeros(x.shape[:-1], np.int64)
    at = x.argmin(-1) if op == 2 else x.argmax(-1)
    return at if second else np.take_along_axis(x, at[..., None], -1)[..., 0]


def affine(x, _, second, ordered):
    m, a = np.ones(x.shape[:-1], np.int64), np.zeros(x.shape[:-1], np.int64)
    for n in range(x.shape[-1]):
        factor = x[..., n] | 1 if ordered else 1
        m, a = m * factor, a * factor + x[..., n]
    return a if second else m


def stored(dtype, x):
    """What is left of numbers once they are stored."""
    if "f" in dtype:
        return x & 7 if dtype in ("f16", "bf16") else x
    return x.astype(NUMPY[dtype]).astype(np.int64)


def run(folder):
    """Interprets `job.toml`, and writes the datasets that it creates to `expected.h5`."""
    job = tomllib.loads(open(f"{folder}/job.toml").read())
    dtypes, values = {}, {}
    for name, tensor in job["tensors"].items():
        if "file" in tensor:
            data = h5py.File(f"{folder}/{tensor['file']}")[tensor["dataset"]][()]
            dtypes[name] = data.dtype.kind + str(8 * data.dtype.itemsize)
            values[name] = np.asarray(data).astype(np.int64)
            continue
        dtypes[name] = tensor["dtype"]
        if "value" in tensor or "values" in tensor:
            values[name] = np.array(tensor.get("value", tensor.get("values")), np.int64)
    iterate = job.get("iterate", {"count": 1})
    for iteration in range(iterate["count"]):
        if iteration > 0:
            for read, written in iterate.get("exchange", []):
                values[read], values[written] = values[written], values[read]
        for stage in job["stages"]:
            run_stage(stage, dtypes, values)
    with h5py.File(f"{folder}/expected.h5", "w") as expected:
        for name, tensor in job["tensors"].items():
            if "create" not in tensor:
                continue
            x = values[name]
            if dtypes[name] == "bf16":
                x = (x.astype("<f4").view("<u4") >> 16)
            expected[tensor["dataset"]] = x.astype(NUMPY[dtypes[name]])
