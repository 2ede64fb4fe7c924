"""Chapter 14: signs as bits, counted in words. It owns no equation, and its exercises go by names."""

from __future__ import annotations

import torch
from torch import Tensor

from .table import Chapter

chapter = Chapter("14-running-in-one-bit")


def _bits(arguments: dict) -> dict:
    """Tensors of either sign as bits 0 and 1; n is two less than the bits of a row."""
    bits = {name: (value > 0).double() for name, value in arguments.items() if isinstance(value, Tensor)}
    return bits | {"n": bits["image"].shape[1] - 2}


def _differ(image: Tensor, filters: Tensor) -> Tensor:
    return (image[:, None] != filters[None]).double()


def _signs(bits: Tensor) -> Tensor:
    return 2 * bits - 1


chapter.exercise(
    "bits left over",
    "image (N, entries), filters (C_out, entries), n -> (N, C_out)",
    "products of the first n signs, from bits of which those behind n are anything",
    lambda image, filters, n: n - 2 * _differ(image, filters)[..., :n].sum(2),
    {
        "the bits left over are counted": lambda image, filters, n: n - 2 * _differ(image, filters).sum(2),
        "all bits of the row": lambda image, filters, n: _signs(image) @ _signs(filters).T,
        "bits multiplied, not signs": lambda image, filters, n: image[:, :n] @ filters[:, :n].T,
        "agreements, not their surplus": lambda image, filters, n: n - _differ(image, filters)[..., :n].sum(2),
        "n as the number of the last bit": lambda image, filters, n: n + 1 - 2 * _differ(image, filters)[..., : n + 1].sum(2),
    },
    _bits,
)


def _whole_numbers(arguments: dict) -> dict:
    """Integers, so that a sum meets its threshold: one of each sign of the scale does, no scale is 0."""
    x, scale, shift = ((3 * value).round() for value in arguments.values())
    scale[scale == 0] = 1
    scale[0], scale[1] = 2, -3
    shift[0], shift[1] = -2, 3
    x[0, :2], x[1, :2], x[2, :2] = 1, 2, 0
    return {"x": x, "scale": scale, "shift": shift}


def _folded(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    t = -shift / scale
    return torch.where(scale > 0, x >= t, x <= t).double()


chapter.exercise(
    "threshold",
    "x (N, M), scale (M), shift (M) -> (N, M)",
    "the bit of scale · x + shift ≥ 0 by one comparison of x",
    _folded,
    {
        "the comparison is not turned round": lambda x, scale, shift: (x >= -shift / scale).double(),
        "x = t on the wrong side where it is turned round": lambda x, scale, shift: (
            (x >= -shift / scale) != (scale < 0)
        ).double(),
        "x = t on the wrong side": lambda x, scale, shift: torch.where(
            scale > 0, x > -shift / scale, x < -shift / scale
        ).double(),
        "the sign of t": lambda x, scale, shift: torch.where(scale > 0, x >= shift / scale, x <= shift / scale).double(),
        "signs in place of bits": lambda x, scale, shift: _signs(_folded(x, scale, shift)),
        "the sign of x alone": lambda x, scale, shift: (x >= 0).double(),
        "the bit turned round": lambda x, scale, shift: 1 - _folded(x, scale, shift),
    },
    _whole_numbers,
)


def _planes(arguments: dict) -> dict:
    """Bits, and an odd bound below half of the largest sum."""
    planes = (arguments["planes"] > 0).double()
    half = 2 ** (len(planes) - 1)
    return {"planes": planes, "bound": half - 1 - 2 * int(arguments["bound"] * half / 4)}


def _sums(planes: Tensor) -> Tensor:
    return (planes * 2.0 ** torch.arange(len(planes), dtype=planes.dtype)[:, None]).sum(0)


def _at_least(planes: Tensor, bound: int) -> Tensor:
    larger = torch.ones_like(planes[0])
    for k, plane in enumerate(planes):
        larger = plane * larger if bound >> k & 1 else torch.maximum(plane, larger)
    return larger


chapter.exercise(
    "upright sums",
    "planes (N, entries), bound -> (entries)",
    "the bit of each upright sum: 1 where it is at least the bound",
    _at_least,
    {
        "the highest plane alone": lambda planes, bound: (
            planes[-1] if bound >> (len(planes) - 1) & 1 else torch.ones_like(planes[0])
        ),
        "larger, not at least": lambda planes, bound: (_sums(planes) > bound).double(),
        "the planes from the top": lambda planes, bound: (_sums(planes.flip(0)) >= bound).double(),
        "the bits counted, not their places": lambda planes, bound: (planes.sum(0) >= bound).double(),
        "the sums themselves": lambda planes, bound: _sums(planes),
        "the bit turned round": lambda planes, bound: 1 - _at_least(planes, bound),
    },
    _planes,
)
