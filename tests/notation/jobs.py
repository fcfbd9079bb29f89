"""Writes random jobs, their inputs and what is expected of them: `jobs.py FOLDER FIRST COUNT`, each from a seed of its own.

A job is one to three stages of `kernel.c`, whose inputs are new datasets, constants or what an earlier stage has made.
"""
import math
import os
import random
import sys

import h5py
import numpy as np

import interpreter

INTEGERS = ["i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64"]
FLOATS = ["f32", "f64"]
LETTERS = "abcdefghijkl"


class Job:
    def __init__(self, seed):
        self.random = random.Random(seed)
        r = self.random
        self.volume = 2 ** r.choice([4, 8, 10, 12, 14, 16, 17])
        self.tensors, self.shapes, self.data = {}, {}, {}
        self.stages = []
        self.text = ""
        iterated = r.random() < 0.12
        for _ in range(r.choice([1, 1, 2, 3]) if not iterated else r.choice([1, 1, 2])):
            self.stage()
        tail = self.iterate() if iterated else ""
        lines = [f"[tensors.{name}]\n" + "".join(f"{k} = {v}\n" for k, v in keys.items()) for name, keys in self.tensors.items()]
        for stage in self.stages:
            lines.append("[[stages]]\n" + "".join(f"{k} = {v}\n" for k, v in stage.items() if not k.startswith("_")))
        self.text = "\n".join(lines) + tail

    def extent(self, room):
        r = self.random
        wanted = r.choice([1, 2, 2, 3, 4, 5, 7, 8, 11, 13, 16, 31, 64, 97, 257, 1009, 4096, 20011, 65537])
        if r.random() < 0.02:
            return 0
        return max(1, min(wanted, room))

    def storage(self, shape):
        r = self.random
        if not shape or r.random() < 0.5 or 0 in shape:
            return {}
        chunk = [r.choice([1, 2, 3, 5, 8, 16, 64, max(1, n), max(1, n // 2)]) for n in shape]
        # Not too many chunks.
        while math.prod(-(-n // c) for n, c in zip(shape, chunk)) > 3000:
            at = max(range(len(shape)), key=lambda d: shape[d] / chunk[d])
            chunk[at] *= 4
        return {"chunk": chunk, **({"deflate": r.randint(1, 9)} if r.random() < 0.5 else {})}

    def new_input(self, shape):
        r = self.random
        name = f"t{len(self.tensors)}"
        dtype = r.choice(INTEGERS + FLOATS + ["f16"])
        low, high = (-8, 8) if "f" in dtype else (np.iinfo(interpreter.NUMPY[dtype]).min, np.iinfo(interpreter.NUMPY[dtype]).max)
        if len(shape) == 1 and 0 < shape[0] <= 12 and r.random() < 0.5:
            values = [min(r.randint(low, high), 2**63 - 1) for _ in range(shape[0])]
            self.tensors[name] = {"values": values, "dtype": f'"{dtype}"'}
        else:
            random_bits = np.random.default_rng(r.getrandbits(32))
            values = random_bits.integers(low, high, shape, endpoint=True, dtype=np.int64 if low < 0 else np.uint64)
            layout = self.storage(shape)
            layout = {"chunk": tuple(min(c, n) for c, n in zip(layout["chunk"], shape)), **({"deflate": layout["deflate"]} if "deflate" in layout else {})} if layout else {}
            self.data[name] = (np.asarray(values).astype(interpreter.NUMPY[dtype]), layout)
            self.tensors[name] = {"file": '"in.h5"', "dataset": f'"{name}"'}
        self.shapes[name] = shape
        return name

    def scalar(self, value):
        name = f"t{len(self.tensors)}"
        self.tensors[name] = {"value": value, "dtype": '"u64"'}
        return name

    def stage(self):
        r = self.random
        extents, room = {}, self.volume
        ins, halos = [], False
        most = r.choice([1, 2, 3, 3, 4, 5, 6, 10])
        for _ in range(r.choice([0, 1, 1, 2, 2, 3])):
            known = [n for n, shape in self.shapes.items() if r.random() < 0.6]
            dims = []
            if known and r.random() < 0.6:
                name = r.choice(known)
                dims = self.dims_of(self.shapes[name], extents, room, most)
            if not dims:
                shape = []
                for _ in range(r.choice([0, 1, 1, 2, 2, 3, 4, 8])):
                    free = [i for i in extents if i not in [d[0] for d in dims]]
                    if free and (r.random() < 0.5 or len(extents) >= most):
                        i = r.choice(free)
                    elif len(extents) < most:
                        i = LETTERS[len(extents)]
                        extents[i] = self.extent(room)
                        room //= max(1, extents[i])
                    else:
                        continue
                    scale = r.choice([1] * 8 + [2, 3])
                    dims.append((i, scale, 0))
                    shape.append(extents[i] * scale)
                name = self.new_input(shape)
            else:
                for i, scale, _ in dims:
                    if i not in extents:
                        extents[i] = self.shapes[name][[d[0] for d in dims].index(i)] // scale
                        room //= max(1, extents[i])
            shape = self.shapes[name]
            if r.random() < 0.4:
                # The last two bits of a description are its sign.
                dims = [(i, s, min(n, r.choice([0, 0, 1, 2 if d < 7 else 1]))) for d, ((i, s, _), n) in enumerate(zip(dims, shape))]
                # A kernel visits all neighbours at every point.
                while math.prod(s + 2 * h for _, s, h in dims) > 30 and any(h for _, _, h in dims):
                    at = r.choice([d for d, (_, _, h) in enumerate(dims) if h])
                    dims[at] = (*dims[at][:2], 0)
                halos |= any(h for _, _, h in dims)
            ins.append((name, dims))
        sizes = {}
        if r.random() < 0.25 or not extents:
            for _ in range(r.choice([1, 1, 2])):
                if len(extents) < 11:
                    i = LETTERS[len(extents)]
                    extents[i] = sizes[i] = self.extent(room)
                    room //= max(1, extents[i])
        indices = list(extents)
        of_inputs = [i for i in indices if i not in sizes]
        mine = r.sample(indices, r.randint(0, min(len(indices), 8)))
        # What no input has is of use in an output only.
        mine += [i for i in sizes if i not in mine]
        mine = mine[:8] if all(i in mine[:8] for i in sizes) else list(sizes)
        free = [i for i in of_inputs if i not in mine]
        whole = [i for i in indices if r.random() < 0.2] if r.random() < 0.4 else []
        candidates = [i for i in free if i not in whole]
        combine = r.choice(["sum", "sum", "prod", "min", "max", "argmin", "argmax", "chain", "add"]) if candidates and r.random() < 0.6 else None
        reduce = None
        if combine and r.random() < (0.7 if len(candidates) > 1 else 0.3):
            reduce = r.sample(candidates, r.randint(1, len(candidates)))
        pair = combine in ("argmin", "argmax", "chain")
        scales = lambda: [(i, r.choice([1] * 8 + [2, 3]) if room >= 8 else 1, 0) for i in r.sample(mine, len(mine))]
        outs = [scales()]
        if pair:
            outs.append(outs[0])
        elif r.random() < 0.3:
            subset = r.sample(mine, r.randint(0, len(mine)))
            outs.append([(i, 1, 0) for i in subset])
            if any(i not in subset for i in sizes):
                outs[1] = scales()
        in_all = [i for i in mine if all(i in [d[0] for d in dims] for dims in outs)]
        op = {None: r.randint(0, 3), "sum": 0, "add": 0, "prod": 1, "min": 2, "max": 3, "argmin": 2, "argmax": 3, "chain": 0}[combine]
        kind = {"argmin": 1, "argmax": 1, "chain": 2}.get(combine, 0)
        names = []
        first = r.choice(INTEGERS + ([] if combine == "chain" else FLOATS) + (["f16", "bf16"] if combine is None else []))
        for number, dims in enumerate(outs):
            dtype = first if number == 0 or combine == "chain" else r.choice(INTEGERS + FLOATS)
            if kind == 1 and number == 1:
                dtype = r.choice(["u32", "i32", "i64", "u64"])
            names.append(self.output(dtype, [extents[i] * s for i, s, _ in dims]))
        # As the reference says; the interpreter finds out for itself.
        cut = reduce if reduce is not None else candidates if combine and len(candidates) == 1 else []
        order = list(dict.fromkeys([d[0] for _, dims in ins for d in dims] + [d[0] for dims in outs for d in dims]))
        is_whole = [i for i in order if i not in cut and (i not in in_all or i in whole)]
        linear = combine in (None, "sum", "add")
        rows = [i for i in is_whole if i in mine and linear and r.random() < 0.7]
        mask = lambda some: sum(1 << order.index(i) for i in some)
        boundary = r.choice(["clamp", "periodic", "zero", "none"])
        word = len(ins) | len(outs) << 3 | op << 6 | r.randint(0, 3) << 8 | kind << 10 | (boundary == "none") << 12
        word |= mask(cut) << 16 | mask(is_whole) << 28 | mask(rows) << 40
        describe = lambda dims: sum((order.index(i) | s - 1 << 4 | h << 6) << 8 * d for d, (i, s, h) in enumerate(dims))
        scalars = [self.scalar(word)] + [self.scalar(describe(dims)) for _, dims in ins] + [self.scalar(describe(dims)) for dims in outs]
        write = lambda name, dims: f"{name}[" + ",".join((f"{s}*" if s > 1 else "") + i + (f"~{h}" if h else "") for i, s, h in dims) + "]"
        sides = [f"{name}[]" for name in scalars] + [write(*one) for one in ins], [write(*one) for one in zip(names, outs)]
        stage = {"kernel": '"kernel.wasm"', "export": '"stage"', "compute": '"' + " -> ".join(", ".join(side) for side in sides) + '"'}
        if sizes:
            stage["sizes"] = "{ " + ", ".join(f"{i} = {n}" for i, n in sizes.items()) + " }"
        if combine:
            stage["combine"] = f'{{ export = "{combine}" }}' if combine in ("chain", "add") else f'"{combine}"'
        if reduce:
            stage["reduce"] = str(reduce).replace("'", '"')
        if whole:
            stage["whole"] = str(whole).replace("'", '"')
        # Machines that do much else are slow.
        stage["limits"] = '{ time = "10m" }'
        if halos:
            stage["boundary"] = f'"{boundary}"'
        stage["_outputs"], stage["_inputs"] = names, [name for name, _ in ins]
        self.stages.append(stage)

    def dims_of(self, shape, extents, room, most):
        """Indices for a tensor that is there already; none if there is no room for them."""
        r = self.random
        dims, mine = [], dict(extents)
        for n in shape:
            scale = r.choice([s for s in [1, 1, 1, 2, 3] if n % s == 0])
            fitting = [i for i, e in mine.items() if e * scale == n and i not in [d[0] for d in dims]]
            if fitting and r.random() < 0.8:
                i = r.choice(fitting)
            else:
                i = LETTERS[len(mine)]
                mine[i] = n // scale
                room //= max(1, mine[i])
                if len(mine) > 10 or room == 0:
                    return []
            dims.append((i, scale, 0))
        return dims

    def output(self, dtype, shape):
        r = self.random
        name = f"t{len(self.tensors)}"
        self.tensors[name] = {"dtype": f'"{dtype}"'}
        if r.random() < 0.75:
            storage = {k: v for k, v in self.storage(shape).items()}
            self.tensors[name].update({"create": '"out.h5"', "dataset": f'"{name}"', **storage})
        self.shapes[name] = shape
        return name

    def iterate(self):
        """Some iterations; what the last stage makes is fed back where that is possible."""
        pairs, made = [], [name for stage in self.stages for name in stage["_outputs"]]
        for name in made:
            dtype = self.tensors[name]["dtype"]
            same = [t for t in self.data if self.shapes[t] == self.shapes[name] and t not in str(pairs)]
            # The dtype of a new input is of no importance.
            if same and "bf16" not in dtype and self.random.random() < 0.8:
                data, layout = self.data[same[0]]
                self.data[same[0]] = (data.astype(interpreter.NUMPY[dtype.strip('"')]), layout)
                if "f" in dtype:
                    self.data[same[0]] = ((np.nan_to_num(data.astype("f8")) % 8).astype("i8").astype(interpreter.NUMPY[dtype.strip('"')]), layout)
                pairs.append([same[0], name])
        return f"\n[iterate]\ncount = {self.random.randint(1, 4)}\nexchange = {str(pairs).replace(chr(39), chr(34))}\n"

    def write(self, folder):
        os.makedirs(folder)
        for stage in self.stages:
            for name in stage["_outputs"]:
                # What nobody reads is created.
                if "create" not in self.tensors[name] and not any(name in other["_inputs"] for other in self.stages):
                    self.text = self.text.replace(f"[tensors.{name}]\n", f'[tensors.{name}]\ncreate = "out.h5"\ndataset = "{name}"\n')
        with open(f"{folder}/job.toml", "w") as file:
            file.write(self.text)
        with h5py.File(f"{folder}/in.h5", "w") as file:
            for name, (values, layout) in self.data.items():
                keys = {"chunks": layout["chunk"]} if layout else {}
                if "deflate" in layout:
                    keys.update(compression="gzip", compression_opts=layout["deflate"])
                file.create_dataset(name, data=values, **keys)
        interpreter.run(folder)


if __name__ == "__main__":
    folder, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    np.seterr(all="ignore")
    for seed in range(first, first + count):
        Job(seed).write(f"{folder}/{seed}")
