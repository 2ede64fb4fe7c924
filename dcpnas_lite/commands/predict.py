"""python -m dcpnas_lite predict: what a packed network sees."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ..packed.network import load
from .shared import one_line


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The arguments of `python -m dcpnas_lite predict`."""
    p.description = "Classify the test images of a data set, or an image of one's own, by a packed network."
    p.add_argument("model", type=Path, help="model.safetensors of `export`")
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", choices=("digits", "fashion_mnist", "cifar10"), help="its test images: accuracy")
    what.add_argument("--image", type=Path, metavar="FILE", help="a PNG, light on dark as the digits are: its class")
    p.add_argument("--invert", action="store_true", help="with --image: the file is dark on light")
    p.add_argument("--root", metavar="DIR", help="folder of the data files (the digits need none)")
    p.add_argument("--threads", type=int, default=1, help="CPU threads, with numba (default: 1)")


def main(args: argparse.Namespace) -> None:
    """Run `python -m dcpnas_lite predict` with parsed arguments."""
    if args.threads < 1:
        raise ValueError(f"--threads: expected at least 1, got {args.threads}")
    network = load(args.model, threads=args.threads)
    about = network.about.get("data")
    if about is None:
        raise ValueError(f"{args.model}: does not say what it was trained on: export it with its data")
    if args.image:
        logits = network(read_image(args.image, about, args.invert))[0].astype(np.float64)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        for k in np.argsort(-shares, kind="stable")[:3]:
            print(f"{about['classes'][k]}  {shares[k]:.3f}")
        return
    from .. import data

    source = data.load(args.data, args.root)
    if list(source.test.x.shape[1:]) != about["shape"]:
        got = tuple(source.test.x.shape[1:])
        raise ValueError(f"--data: expected images {tuple(about['shape'])} as of {about['name']}, got {got}")
    right = int((network.predict(source.test.x.numpy()) == source.test.y.numpy()).sum())
    print(f"{args.data}: {right} of {len(source.test)} test images right, accuracy {right / len(source.test):.4f}")


def read_image(path: Path, about: dict, invert: bool) -> np.ndarray:
    """A PNG as the network was taught to see images: averaged to its size, grey where it has one channel, normalised."""
    from matplotlib.image import imread

    channels, height, width = about["shape"]
    try:
        pixels = imread(path, format="png")
    except FileNotFoundError:
        raise
    except Exception as error:  # what the reader of PNG files has to say
        raise ValueError(f"{path}: expected a PNG image, got a file that is none ({one_line(error)[:80]})") from None
    pixels, background = np.atleast_3d(pixels).astype(np.float64), float(invert)  # intensities 0 … 1
    if pixels.shape[2] in (2, 4):
        opaque = pixels[..., -1:]
        pixels = pixels[..., :-1] * opaque + background * (1 - opaque)
    if pixels.shape[2] != channels:
        pixels = np.repeat(pixels.mean(2, keepdims=True), channels, 2)
    pixels = 1 - pixels if invert else pixels
    pixels = averaging(height, pixels.shape[0]) @ pixels.transpose(2, 0, 1) @ averaging(width, pixels.shape[1]).T
    mean, std = (np.reshape(about[name], (-1, 1, 1)) for name in ("mean", "std"))
    return ((pixels - mean) / std)[None].astype(np.float32)


def averaging(size: int, old: int) -> np.ndarray:
    """(size, old): row k is the mean over the k-th of `size` equal parts of `old` pixels, parts of pixels counted as parts."""
    edges = np.linspace(0, old, size + 1)
    pixel = np.arange(old)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return np.maximum(overlap, 0) * size / old
