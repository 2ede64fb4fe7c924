"""A 1-bit network as it is used: a list of steps over bits, integers and a few floats. NumPy runs it; torch is not needed.

A step makes one value of the values of earlier steps (value 0 is the image): float32 numbers (N, H, W, C), integers of that
shape, or bits in words. Only `OPERATIONS` knows what a step does: it is all that another language would have to write again.
Many terms are summed in float64, few in a fixed order, so that every processor finds the same numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import NamedTuple

import numpy as np

from .. import files
from . import fast as compiled
from . import pack
from .pack import affine, border, taps

WHAT, VERSION = "a packed 1-bit network", 1
BATCH = 64  # images that are in memory at once


class How(NamedTuple):
    """How to run: with numba or in NumPy alone; in how many threads."""

    fast: bool
    threads: int


# -- what a step does: settings, arrays and how to run → a function of its inputs ---------------------------------------


def _convolution(step: dict, arrays: dict, how: How) -> Callable:
    weight = np.ascontiguousarray(arrays["weight"].transpose(2, 3, 1, 0), np.float64)  # (k, k, C, O)
    stride, padding = step["stride"], step["padding"]

    def run(x):
        x = _framed(x, [(padding, padding)] * 2, 0.0)
        if how.fast:
            return compiled.convolution(x, weight, stride, how.threads)
        return sum(pixels @ weight[i, j] for i, j, pixels in taps(x, len(weight), stride, 1)).astype(np.float32)

    return run


def _affine(step: dict, arrays: dict, how: How) -> Callable:
    scale, shift = arrays["scale"], arrays["shift"]
    if how.fast:
        return lambda x: compiled.affine(x, scale, shift, how.threads)
    return lambda x: affine(x, scale, shift)


def _sign(step: dict, arrays: dict, how: How) -> Callable:
    threshold, flip = arrays["threshold"], _bits(arrays["flip"], len(arrays["threshold"]))
    if how.fast and step["groups"] == 1:
        return lambda x: compiled.binarize(x, threshold, flip, how.threads)
    return lambda x: _words((x >= threshold) ^ flip, step["groups"])


def _interval(step: dict, arrays: dict, how: How) -> Callable:
    low, high, flip = _bounds(arrays)
    return lambda count: _words(((low <= count) & (count <= high)) ^ flip, step["groups"])


def _prelu(step: dict, arrays: dict, how: How) -> Callable:
    return lambda count: pack.scaled(count, arrays["beta"], arrays["slope"])


def _product(step: dict, arrays: dict, how: How, then: tuple[str, dict] | None = None) -> Callable:
    """Integers; or, with the step that stands behind it and its arrays, what becomes of them."""
    n, filters, kernel, groups = (step[name] for name in ("n", "filters", "kernel", "groups"))
    stride, dilation, padding, value = (step[name] for name in ("stride", "dilation", "padding", "border"))
    weights = pack.pack(_bits(arrays["weight"], filters * kernel**2 * n).reshape(filters, kernel, kernel, n))
    run: Callable
    if not how.fast:
        run = partial(pack.product, weights=weights, n=n, stride=stride, dilation=dilation)
    else:
        run = product = compiled.Product(weights, n, groups, stride, dilation, how.threads)
        if then and then[0] == "prelu":
            run = partial(product.scaled, beta=then[1]["beta"], slope=then[1]["slope"])
        elif then:
            run = partial(product.inside, **dict(zip(("low", "high", "flip"), _bounds(then[1]), strict=True)))
    return lambda words: run(border(words.reshape(*words.shape[:3], groups, -1), padding, value, n))


def _depthwise(step: dict, arrays: dict, how: How, then: tuple[str, dict] | None = None) -> Callable:
    """As `_product`, where each channel has one filter of its own; what stands behind it is an interval."""
    channels, kernel = step["filters"], step["kernel"]
    stride, dilation, padding, value = (step[name] for name in ("stride", "dilation", "padding", "border"))
    weights = pack.pack(_bits(arrays["weight"], kernel**2 * channels).reshape(kernel, kernel, channels))
    run = partial(pack.depthwise, weights=weights, channels=channels, stride=stride, dilation=dilation)
    if then:
        bounds = compiled.planes(kernel**2, *_bounds(then[1]))
        run = partial(compiled.depthwise, weights=weights, stride=stride, dilation=dilation, bounds=bounds, threads=how.threads)
    return lambda words: run(border(words, padding, value, channels))


def _pool(step: dict, arrays: dict, how: How) -> Callable:
    """The maximum or the mean of what of a window lies inside the image."""
    kernel, stride, padding, mean = (step[name] for name in ("kernel", "stride", "padding", "mean"))

    def run(x):
        more = [(kernel - size - 2 * padding) % stride if step["ceil"] else 0 for size in x.shape[1:3]]
        if how.fast:
            size = ((s + 2 * padding + m - kernel) // stride + 1 for s, m in zip(x.shape[1:3], more, strict=True))
            return compiled.pool(x, kernel, stride, padding, mean, tuple(size), how.threads)
        sides = [(padding, padding + m) for m in more]
        if not mean:
            return _folded(np.maximum, _framed(x, sides, -np.inf), kernel, stride)
        inside = np.ones((1, *x.shape[1:3], 1), np.float32)
        total, count = (_folded(np.add, _framed(a, sides, 0.0), kernel, stride) for a in (x, inside))
        return total / count

    return run


def _resize(step: dict, arrays: dict, how: How) -> Callable:
    """k times fewer channels: the mean over groups of k; k times more: each channel k times."""
    channels = step["channels"]

    def run(x):
        if x.shape[3] < channels:
            return np.tile(x, (1, 1, 1, channels // x.shape[3]))
        groups = x.reshape(*x.shape[:3], -1, channels)
        return reduce(np.add, np.moveaxis(groups, 3, 0)) / np.float32(groups.shape[3])

    return run


def _linear(step: dict, arrays: dict, how: How) -> Callable:
    weight, bias = (arrays[name].astype(np.float64) for name in ("weight", "bias"))
    return lambda x: (x @ weight.T + bias).astype(np.float32)


OPERATIONS: dict[str, Callable] = {
    "convolution": _convolution,
    "affine": _affine,
    "sign": _sign,
    "product": _product,
    "depthwise": _depthwise,
    "interval": _interval,
    "prelu": _prelu,
    "pool": _pool,
    "resize": _resize,
    "linear": _linear,
    "add": lambda step, arrays, how: np.add,
    "concatenate": lambda step, arrays, how: lambda *x: np.concatenate(x, 3),
    "zeros": lambda step, arrays, how: lambda x: np.zeros_like(x[:, :: step["stride"], :: step["stride"]]),
    "crop": lambda step, arrays, how: lambda x: x[:, 1:, 1:],
    "even": lambda step, arrays, how: lambda x: np.pad(x, [(0, 0), *((0, size % 2) for size in x.shape[1:3]), (0, 0)], "edge"),
    "mean": lambda step, arrays, how: lambda x: x.mean((1, 2), np.float64),
}


def _bits(octets: np.ndarray, n: int) -> np.ndarray:
    return np.unpackbits(octets, count=n, bitorder="little").view(bool)


def _bounds(arrays: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    low, high = (arrays[name].astype(np.int32) for name in ("low", "high"))
    return low, high, _bits(arrays["flip"], len(low))


def _words(bits: np.ndarray, groups: int) -> np.ndarray:
    """Bits (N, H, W, C) → words (N, H, W, V), with groups (N, H, W, G, V)."""
    return pack.pack(bits if groups == 1 else bits.reshape(*bits.shape[:3], groups, -1))


def _framed(x: np.ndarray, sides: list[tuple[int, int]], value: float) -> np.ndarray:
    """x (N, H, W, C) inside a border of `value`; sides: (before, after) of rows and of columns."""
    (top, bottom), (left, right) = sides
    count, height, width, channels = x.shape
    out = np.full((count, top + height + bottom, left + width + right, channels), value, np.float32)
    out[:, top : top + height, left : left + width] = x
    return out


def _folded(operation: Callable, x: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    return reduce(operation, (pixels for _, _, pixels in taps(x, kernel, stride, 1)))


# -- the network ------------------------------------------------------------------------------------------------------


class PackedNetwork:
    """Images (N, C, H, W) → logits (N, classes). `about`: what the file says of the network; `steps`, `arrays`: what it does.

    fast: with numba (default: where it is installed) or in NumPy alone; both find the same integers and bits. threads: of numba.
    Raises ValueError for a step this package does not know, and for images of another shape.
    """

    def __init__(
        self, about: Mapping, steps: list[dict], arrays: Mapping[str, np.ndarray], fast: bool | None = None, threads: int = 1
    ):
        if unknown := [step["op"] for step in steps if step["op"] not in OPERATIONS]:
            raise ValueError(f"steps: expected {', '.join(OPERATIONS)}, got {unknown[0]!r}")
        if fast and not compiled.available:
            raise ImportError("fast=True needs numba: pip install numba")
        self.about, self.steps, self.arrays = dict(about), list(steps), dict(arrays)
        self.how = How(compiled.available if fast is None else fast, threads)
        self.plan = self._planned()

    def of_step(self, index: int) -> dict[str, np.ndarray]:
        """The arrays of a step by their short names."""
        return {name.partition(".")[2]: array for name, array in self.arrays.items() if name.partition(".")[0] == str(index)}

    def _planned(self) -> list[tuple[Callable, list[int]]]:
        plan: list[tuple[Callable, list[int]]] = []
        for k, step in enumerate(self.steps):
            make = OPERATIONS[step["op"]]
            if self._is_fused(k):
                make = partial(make, then=(self.steps[k + 1]["op"], self.of_step(k + 1)))
            run = (lambda done: done) if self._is_fused(k - 1) else make(step, self.of_step(k), self.how)
            plan.append((run, step["inputs"]))
        return plan

    def _is_fused(self, k: int) -> bool:
        """Whether step k is computed together with the next one."""
        if not self.how.fast or not 0 <= k < len(self.steps) - 1:
            return False
        this, following = self.steps[k : k + 2]
        to_words = following["op"] == "interval" and following["groups"] == 1
        if this["op"] == "depthwise":
            return to_words and this["kernel"] ** 2 < 2**compiled.PLANES - 1
        return this["op"] == "product" and (to_words or following["op"] == "prelu")

    def values(self, images: np.ndarray) -> list[np.ndarray]:
        """The value of every step, the images (channels last) first."""
        shape = images.shape
        if images.ndim != 4 or 0 in shape or shape[1] != self.about["in_channels"]:
            raise ValueError(f"images: expected shape (N, {self.about['in_channels']}, H, W), at least one, got {shape}")
        values = [np.ascontiguousarray(images.transpose(0, 2, 3, 1), np.float32)]
        for run, inputs in self.plan:
            values.append(run(*(values[k] for k in inputs)))
        return values

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Logits (N, classes) of normalised images (N, C, H, W)."""
        return np.concatenate([self.values(images[k : k + BATCH])[-1] for k in range(0, max(len(images), 1), BATCH)])

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The class of each image; of equal logits the first."""
        return self(images).argmax(1)

    def size(self) -> dict[str, int]:
        """Bits of the weights that are one bit, and bits of everything else that is stored."""
        one_bit = sum(step["filters"] * step["kernel"] ** 2 * step["n"] for step in self.steps if "n" in step)
        weights = {f"{k}.weight" for k, step in enumerate(self.steps) if "n" in step}
        return {"one_bit": one_bit, "rest": sum(8 * a.nbytes for name, a in self.arrays.items() if name not in weights)}

    def operations(self, height: int, width: int) -> dict[str, float]:
        """Multiply-accumulates for one image: binary, real-valued, and their sum in the field's convention, binary/64 + real."""
        values = self.values(np.zeros((1, self.about["in_channels"], height, width), np.float32))
        counts = {"binary": 0, "real": 0}
        for k, step in enumerate(self.steps):
            shape = values[k + 1].shape
            if "n" in step:
                counts["binary"] += shape[1] * shape[2] * step["filters"] * step["kernel"] ** 2 * step["n"]
            elif step["op"] in ("convolution", "linear"):
                counts["real"] += int(np.prod(shape[1:-1])) * self.arrays[f"{k}.weight"].size
        return counts | {"total": counts["binary"] / 64 + counts["real"]}

    def layers(self) -> list[dict]:
        """Each 1-bit layer: its name in the network, the K = k² n signs of a product, its filters, and the way it is computed."""
        ways = {True: "bit planes, numba", False: "words, NumPy"}
        return [
            {
                "layer": step["name"],
                "K": step["kernel"] ** 2 * step["n"],
                "filters": step["filters"],
                "way": "words, numba" if self.how.fast and step["op"] == "product" else ways[self._is_fused(k)],
            }
            for k, step in enumerate(self.steps)
            if "n" in step
        ]

    def to_bytes(self) -> bytes:
        """The file: safetensors with a checksum."""
        return files.tensors_to_bytes(self.arrays, WHAT, VERSION, self.about | {"steps": self.steps})

    def save(self, path: str | os.PathLike) -> None:
        """Write the file, atomically."""
        files.write(path, self.to_bytes())


def load(path: str | os.PathLike, fast: bool | None = None, threads: int = 1) -> PackedNetwork:
    """Read the file of `PackedNetwork.save`. ValueError in one line where it is damaged, foreign or of a newer version."""
    arrays, about = files.tensors_from_bytes(files.read(path, WHAT), path, WHAT, VERSION)
    return PackedNetwork(about, about.pop("steps"), arrays, fast, threads)
