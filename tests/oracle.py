#!/usr/bin/env python3
"""Recomputes a job's result with numpy, from its inputs alone, and compares it with what the job wrote.

oracle.py digits RESULT.h5 [VARIANTS]: also prints the accuracy; exits with 1 below 98 % or on any difference.
"""
import sys

import h5py
import numpy

COS = [4096, 4080, 4034, 3956, 3849]  # cos and sin of 0, 5, .. 20 degrees, times 4096
SIN = [0, 357, 711, 1060, 1401]


def enlarge(images, variants):
    """What examples/kernels/enlarge.c does: variant t of an image is shifted and turned, in integers."""
    out = numpy.zeros((len(images), variants, 8, 8), "u1")
    y, x = numpy.mgrid[0:8, 0:8] * 2 - 7
    for t in range(variants):
        shift_y, shift_x, turn = t % 9 - 4, t // 9 % 9 - 4, (t // 81 + 1) // 2
        cos, sin = COS[turn], SIN[turn] * (-1 if t // 81 % 2 else 1)
        # In units of 1/8192 pixel, from the image's corner.
        from_y = cos * y + sin * x + 7 * 4096 + shift_y * 2048
        from_x = cos * x - sin * y + 7 * 4096 + shift_x * 2048
        row, column = from_y >> 13, from_x >> 13
        wy, wx = from_y & 8191, from_x & 8191
        total = numpy.zeros((len(images), 8, 8), "i8")
        for dy, fy in ((0, 8192 - wy), (1, wy)):
            for dx, fx in ((0, 8192 - wx), (1, wx)):
                inside = (row + dy >= 0) & (row + dy < 8) & (column + dx >= 0) & (column + dx < 8)
                pixel = images[:, numpy.clip(row + dy, 0, 7), numpy.clip(column + dx, 0, 7)].astype("i8")
                total += numpy.where(inside, pixel * fy * fx, 0)
        out[:, t] = (total + (1 << 25)) >> 26
    return out


def nearest(test, train, labels, k):
    """k nearest neighbours with the tie rules of examples/kernels/knn.c."""
    test = test.reshape(len(test), -1).astype("i4")
    predicted = []
    squares = (train.astype("i4") ** 2).sum(1)
    for image in test:
        distance = squares - 2 * (train @ image.astype("f4")).astype("i4")
        order = numpy.argsort(distance, kind="stable")[:k] if len(train) < 10000 else stable_least(distance, k)
        whose = labels[order]
        votes = numpy.bincount(whose, minlength=256)
        winner = whose[0]
        for label in whose:
            if votes[label] > votes[winner]:
                winner = label
        predicted.append(winner)
    return numpy.array(predicted, "u1")


def stable_least(distance, k):
    bound = numpy.partition(distance, k - 1)[k - 1]
    candidates = numpy.flatnonzero(distance <= bound)
    return candidates[numpy.argsort(distance[candidates], kind="stable")][:k]


def digits(result, variants):
    with h5py.File("data/digits.h5") as file:
        test, train = file["test/images"][...], file["train/images"][...]
        train_labels, test_labels = file["train/labels"][...], file["test/labels"][...]
    if variants > 1:
        train = enlarge(train[:, 0], variants)
    labels = numpy.repeat(train_labels, train.shape[1])
    # Products of u8 pixels below 17, 64 of them, are exact in f4.
    expected = nearest(test, train.reshape(-1, 64).astype("f4"), labels, 3)
    with h5py.File(result) as file:
        predicted = file["predicted"][...]
    differing = int((predicted != expected).sum()) if predicted.shape == expected.shape else -1
    accuracy = float((predicted == test_labels).mean())
    print(f"accuracy {100 * accuracy:.2f} % on {len(test_labels)} images, {differing} differ from numpy")
    return differing == 0 and accuracy >= 0.98


if __name__ == "__main__":
    kind, result = sys.argv[1], sys.argv[2]
    assert kind == "digits", f"no oracle for {kind}"
    sys.exit(0 if digits(result, int(sys.argv[3]) if len(sys.argv) > 3 else 1) else 1)
