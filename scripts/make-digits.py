#!/usr/bin/env python3
"""Writes data/digits.h5 from the copy of the UCI digits that scikit-learn carries (needs scikit-learn, numpy, h5py)."""
import sys

import h5py
import numpy
from sklearn.datasets import load_digits

digits = load_digits()
images = digits.images.astype("u1").reshape(-1, 1, 8, 8)
labels = digits.target.astype("u1")
# Three of every ten images, spread over the writers, form the test set.
test = numpy.arange(len(labels)) % 10 < 3
with h5py.File(sys.argv[1] if len(sys.argv) > 1 else "data/digits.h5", "w") as file:
    file.attrs["source"] = "UCI Machine Learning Repository, Optical Recognition of Handwritten Digits (test set)"
    file.attrs["authors"] = "E. Alpaydin, C. Kaynak, 1998"
    file.attrs["licence"] = "CC BY 4.0"
    for part, chosen in (("train", ~test), ("test", test)):
        pixels = images[chosen] if part == "train" else images[chosen][:, 0]
        chunk = (32,) + pixels.shape[1:]
        file.create_dataset(f"{part}/images", data=pixels, chunks=chunk, compression="gzip", compression_opts=9)
        file.create_dataset(f"{part}/labels", data=labels[chosen])
