#!/usr/bin/python3
"""oracle_stages.py NAME INPUT_DIR OUTPUT_FILE: recomputes the result of jobs/NAME.toml with numpy, from the inputs that
scripts/make-inputs wrote alone, prints the largest error, and exits with 1 when it is outside the tolerance."""
import sys
from pathlib import Path

import h5py
import numpy

DIGITS = Path(__file__).resolve().parent.parent / "data/digits.h5"


def equal(what, got, want):
    """Integers, copies, and f64 or f32 arithmetic in the one order that the kernel's text gives."""
    return report(what, got, want, 1, 0)


def close(what, got, want, scale, tolerance):
    """Sums, whose order is the host's: |got - want| <= tolerance * scale."""
    return report(what, got, want, scale, tolerance)


def report(what, got, want, scale, tolerance):
    want = numpy.asarray(want)
    if got.shape != want.shape or got.dtype != want.dtype:
        print(f"{what}: {got.dtype} {got.shape} instead of {want.dtype} {want.shape}")
        return False
    error = float(numpy.max(numpy.abs(got.astype("f8") - want.astype("f8")) / scale))
    good = error <= tolerance  # false for a NaN
    print(f"{what}: largest error {error:.3g}, {'at most' if good else 'but at most'} {tolerance:.3g} is right")
    return good


def laplacian(u, mode):
    """What the neighbours of each point have more than it, added up in the order of heat.c: axis by axis."""
    padded, around = numpy.pad(u, 1, mode=mode), 0
    inner = [slice(1, -1)] * u.ndim
    for axis in range(u.ndim):
        for side in (slice(0, -2), slice(2, None)):
            around = around + padded[tuple(inner[:axis] + [side] + inner[axis + 1 :])]
    return around - u.dtype.type(2 * u.ndim) * u


def heat2d(given, result):
    # No operation depends on the tile, and a maximum is exact in any order: no tolerance.
    u = given["temperature"]
    for iteration in range(1, 1001):
        v = u + 0.2 * laplacian(u, "edge")
        residual = numpy.max(numpy.abs(v - u))
        u = v
        if residual < 0.1:
            break
    print(f"{iteration} iterations")
    return equal("temperature", result["temperature"], u) and equal("residual", result["residual"], residual)


def heat3d(given, result):
    u = given["temperature"]
    for _ in range(60):
        u = u + numpy.float32(0.125) * laplacian(u, "wrap")
    return equal("temperature", result["temperature"], u)


def matmul(given, result):
    a, b = given["a"].astype("f8"), given["b"].astype("f8")
    # Whatever the order, rounding k products and sums to f32 adds up to at most k * 2^-24 = 2.3e-5 of the sum of their
    # sizes, and since errors cancel, to a small part of it. One product left out would show as about 1 / k = 2.6e-3.
    return close("c", result["c"], (a @ b).astype("f4"), abs(a) @ abs(b), 1e-5)


def kmeans(given, result):
    x, centres, old = given["x"].astype("f8"), given["centres"], given["label"]
    for iteration in range(1, 101):
        distance = numpy.stack([((x - centre) ** 2).sum(1) for centre in centres.astype("f8")], 1)
        label = distance.argmin(1).astype("u4")
        size = numpy.bincount(label, minlength=12).astype("u4")
        total = numpy.stack([x[label == k].sum(0) for k in range(12)])
        mean = total / numpy.maximum(size, 1)[:, None]
        centres = numpy.where(size[:, None] > 0, mean, centres).astype("f4")
        changed = numpy.sum(old != label, dtype="u8")
        old = label
        if changed <= 0:
            break
    print(f"{iteration} iterations, {int((size == 0).sum())} cluster(s) without points")
    # The points are multiples of 1/256: their sums are exact, so only a label could differ. The kernel's distances are
    # f32, these f64: wrong by less than 1e-6 of them, while the nearest two differ by 6e-6 or more in this input.
    wanted = {"label": label, "size": size, "centres": centres, "changed": changed}
    return all([equal(name, result[name], want) for name, want in wanted.items()])


def pca(given, result):
    x, v = given["x"], given["start"]
    centred = x - x.mean(0)
    for iteration in range(1, 201):
        w = centred.T @ (centred @ v)
        u = w / numpy.sqrt(w @ w)
        change = numpy.max(numpy.abs(u - v))
        v = u
        if change < 1e-8:
            break
    print(f"{iteration} iterations")
    # f64 sums of 3001 products, and errors of earlier iterations fade: far below 1e-10 of a vector of length 1. The
    # change shows whether the job stopped an iteration early or late: each halves it, and its relative error is some
    # 1e-15 / 1e-8. And the component must be what a decomposition of the matrix finds, to a few times the job's 1e-8.
    first = numpy.linalg.svd(centred, full_matrices=False)[2][0]
    first *= numpy.sign(first @ v)
    got = result["component"]
    return all([
        close("component", got, v, 1, 1e-10),
        close("change", result["change"], change, change, 1e-4),
        close("component by SVD", got, first, 1, 1e-7),
    ])


def transpose(given, result):
    return equal("b", result["b"], given["a"].T)


def histogram(given, result):
    return equal("counts", result["counts"], numpy.bincount(given["values"], minlength=256).astype("u8"))


def softmax_regression(given, result):
    with h5py.File(DIGITS) as file:
        train, labels = file["train/images"][...].reshape(-1, 64) / 16, file["train/labels"][...]
        test, truth = file["test/images"][...].reshape(-1, 64) / 16, file["test/labels"][...]
    weights = given["weights"].reshape(10, 64).astype("f8")
    for _ in range(100):
        score = train @ weights.T
        power = numpy.exp(score - score.max(1, keepdims=True))
        error = power / power.sum(1, keepdims=True) - numpy.eye(10)[labels]
        weights = weights - 2 * (error.T @ train) / len(train)
    # f32 against f64. The loss is convex, so that descent does not make errors grow, and what 100 steps add is below
    # 1e-6 of the largest weight. Where the best two scores are nearer than that can decide, either is right.
    score = test @ weights.T
    best = numpy.sort(score, 1)
    clear = best[:, -1] - best[:, -2] > 1e-3
    predicted = result["predicted"]
    accuracy = float((predicted == truth).mean())
    print(f"accuracy {100 * accuracy:.2f} % on {len(truth)} images, {int((~clear).sum())} of them undecided")
    return accuracy > 0.90 and all([
        close("weights", result["weights"], weights.reshape(10, 8, 8).astype("f4"), numpy.max(abs(weights)), 1e-5),
        equal("predicted", predicted[clear], score.argmax(1).astype("u1")[clear]),
    ])


def unbalanced(given, result):
    c = given["re"][None, :] + 1j * given["im"][:, None]
    re, im = c.real.ravel(), c.imag.ravel()
    steps, left = numpy.zeros(c.size, "u4"), numpy.arange(c.size)
    a, b = numpy.zeros(c.size), numpy.zeros(c.size)
    for _ in range(1000):
        inside = a * a + b * b <= 4
        left, a, b, re, im = left[inside], a[inside], b[inside], re[inside], im[inside]
        steps[left] += 1
        # In the kernel's order, and not as complex numbers: chaos makes any other rounding another number of steps.
        a, b = a * a - b * b + re, 2 * a * b + im
    steps = steps.reshape(c.shape)
    rows = steps.mean(1)
    print(f"rows take {rows.min():.1f} to {rows.max():.1f} steps a point")
    return equal("steps", result["steps"], steps)


def variance(given, result):
    x = given["x"]
    # Two passes in higher precision. The mean's error is that of some sums of 1e6; a variance has that of its
    # distances, a few times 1e-16 * 2e6 of a distance of about 1, which sums make smaller. With sums of squares it
    # would be 1e-4 and more.
    mean = x.mean(0, dtype="g")
    variance = ((x - mean) ** 2).sum(0) / (len(x) - 1)
    return all([
        equal("count", result["count"], numpy.asarray(len(x), "u8")),
        close("mean", result["mean"], mean.astype("f8"), mean.astype("f8"), 1e-14),
        close("variance", result["variance"], variance.astype("f8"), variance.astype("f8"), 1e-10),
    ])


def multigrid(given, result):
    def residual(u, f):
        p = numpy.pad(u, 1)
        return f - (4 * u - (p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:]))

    def interpolated(e):
        p, fine = numpy.pad(e, 1), numpy.empty((2 * e.shape[0], 2 * e.shape[1]))
        for i, across in enumerate((slice(0, -2), slice(2, None))):
            for j, along in enumerate((slice(0, -2), slice(2, None))):
                near = 0.1875 * (p[across, 1:-1] + p[1:-1, along])
                fine[i::2, j::2] = 0.5625 * e + near + 0.0625 * p[across, along]
        return fine

    u, f = given["u"], given["f"]
    for iteration in range(1, 41):
        u = u + 0.2 * residual(u, f)
        r = residual(u, f)
        left = r[::2, ::2] + r[::2, 1::2] + r[1::2, ::2] + r[1::2, 1::2]
        e = 0.2 * left
        for _ in range(2):
            e = e + 0.2 * residual(e, left)
        u = u + interpolated(e)
        u = u + 0.2 * residual(u, f)
        worst = numpy.max(numpy.abs(residual(u, f)))
        if worst < 0.01:
            break
    # No operation depends on the tile, and all come in the kernels' order: no tolerance.
    print(f"{iteration} iterations")
    return equal("u", result["u"], u) and equal("worst", result["worst"], worst)


def read(path):
    with h5py.File(path) as file:
        return {name: file[name][...] if file[name].ndim else numpy.asarray(file[name][()]) for name in file}


if __name__ == "__main__":
    jobs = (heat2d, heat3d, matmul, kmeans, pca, transpose, histogram, softmax_regression)
    jobs += (unbalanced, variance, multigrid)
    oracles = {job.__name__.replace("_", "-"): job for job in jobs}
    if len(sys.argv) != 4 or sys.argv[1] not in oracles:
        sys.exit(f"{__doc__}\nNAME is one of {', '.join(oracles)}.")
    name, directory, output = sys.argv[1:]
    sys.exit(0 if oracles[name](read(Path(directory) / f"{name}.h5"), read(output)) else 1)
