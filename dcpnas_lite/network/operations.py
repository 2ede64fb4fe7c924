"""The candidate operations of an edge (Eq. 4.27), real-valued or 1-bit, by name. A new one is one call of `register`.

From the source: the M = 8 operations, and that in the Child the convolutions take binarized weights and activations.
From the search network of DARTS, whose space the source uses: convolutions are depthwise separable (the separable ones applied
twice, the dilated ones once, dilation 2), ReLU-Conv-BatchNorm in the real-valued form, BatchNorm after pooling, average pooling
that does not count the padding.
Ours, because the source is silent: in the 1-bit form both the depthwise and the pointwise convolution are binary
(the authors' retraining code binarizes only the weights of the depthwise one), each one BatchNorm → sign → 1-bit
convolution → PReLU. BatchNorm stands before the sign, since it decides which half of the values becomes −1; PReLU is
the real-valued activation after it, since a ReLU would leave the next sign nothing but +1.

Where this package departs from DARTS' code (quark0/darts, folder cnn), all in one place:

- its *evaluation* network has no BatchNorm after pooling, and an auxiliary head and drop path; ours is the search network's
  cell, with BatchNorm after pooling, and has neither;
- the stem has C channels, not 3 C, and in a supernet its BatchNorm has no scale and shift;
- BatchNorm of a supernet keeps no running statistics (`norm`);
- the resolution is never halved at layer 0; in DARTS it is, with two layers, as ⌊2/3⌋ = 0;
- odd sizes are allowed (`FactorizedReduce`);
- `none` is left out of the sum in a search (`engine.fast`); x · 0 hands on NaN and infinity;
- ties between operations go to the first in our order of them, which is the source's and not that of DARTS' PRIMITIVES;
- a space without reduction cells halves by average pooling before an ordinary cell (`network.supernet`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..validate import number
from .binarize import BinaryConv2d, PReLU
from .seeded import initialised_by

if TYPE_CHECKING:
    from jaxtyping import Float

#: The eight of the source, in the order of the columns of α. What is registered later does not change them.
OPERATIONS = (
    "none",
    "skip_connect",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "max_pool_3x3",
    "avg_pool_3x3",
    "sep_conv_3x3",
    "sep_conv_5x5",
)


Block = Literal["plain", "shortcut"]  # the 1-bit form: that of the text; with a real-valued shortcut around every convolution
Binary = bool | Block  # False: the real-valued form; True: "plain"

# -- layers -----------------------------------------------------------------------------------------------------------


def norm(channels: int, affine: bool) -> nn.BatchNorm2d:
    """BatchNorm; `affine`: with a scale and shift of its own and running statistics, as in a discrete network.

    Without, as in a supernet, it always normalises by the current batch, so that architecture steps and weight steps cannot
    leak statistics into each other.
    """
    return nn.BatchNorm2d(channels, affine=affine, track_running_stats=affine)


class Shortcut(nn.Sequential):
    """Layers with a real-valued shortcut around them, layers(x) + x, as in Bi-Real Net (Z. Liu et al., ECCV 2018).

    Where the layers halve the resolution, x is averaged over 2 × 2 pixels; where they have k times fewer channels, over groups
    of k, and where they have k times more, it is repeated k times.
    """

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C2 H2 W2"]:
        return self.join(super().forward(x), x)

    @staticmethod
    def join(out: Float[Tensor, "N C2 H2 W2"], x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C2 H2 W2"]:
        """out + x, x brought to the shape of out."""
        if out.shape[2:] != x.shape[2:]:
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        c_in, c_out = x.shape[1], out.shape[1]
        if c_in > c_out:
            x = x.unflatten(1, (c_in // c_out, c_out)).mean(1)
        elif c_in < c_out:
            x = x.repeat(1, c_out // c_in, 1, 1)
        return out + x


def convolution(
    c_in: int, c_out: int, kernel: int, binary: Binary, affine: bool, stride: int = 1, dilation: int = 1, groups: int = 1
) -> list[nn.Module]:
    """One convolution layer that keeps the resolution up to `stride`.

    Real-valued: ReLU → convolution → BatchNorm. 1-bit: BatchNorm → sign and 1-bit convolution → PReLU. As "shortcut":
    x + those three and one more BatchNorm, without which the numbers grow from shortcut to shortcut; none where neither number
    of channels is a multiple of the other.
    """
    seen = []
    if kernel == 1 and stride == 2 and c_in < 8:  # channels last, torch's own (2.13, on a CPU) writes beyond its memory there
        seen, stride = [EverySecond()], 1
    geometry: Any = dict(stride=stride, padding=dilation * (kernel // 2), dilation=dilation, groups=groups)
    if binary:
        layers = [norm(c_in, affine), *seen, BinaryConv2d(c_in, c_out, kernel, **geometry), PReLU(c_out)]
        fits = max(c_in, c_out) % min(c_in, c_out) == 0
        return [Shortcut(*layers, norm(c_out, affine))] if binary == "shortcut" and fits else layers
    return [nn.ReLU(), *seen, nn.Conv2d(c_in, c_out, kernel, bias=False, **geometry), norm(c_out, affine)]


def separable(channels: int, kernel: int, stride: int, dilation: int, binary: Binary, affine: bool) -> list[nn.Module]:
    """Depthwise k × k convolution, then pointwise 1 × 1; real-valued, nothing stands between the two (as in DARTS)."""
    depthwise = convolution(channels, channels, kernel, binary, affine, stride, dilation, groups=channels)
    pointwise = convolution(channels, channels, 1, binary, affine)
    return depthwise + pointwise if binary else depthwise[:2] + pointwise[1:]


class EverySecond(nn.Module):
    """Every second row and column: (N, C, H, W) → (N, C, ⌈H/2⌉, ⌈W/2⌉), all that a 1 × 1 convolution of stride 2 sees."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, ::2, ::2]


class Zero(nn.Module):
    """`none`: zeros of the shape the edge would have; (N, C, H, W) → (N, C, ⌈H/stride⌉, ⌈W/stride⌉)."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride] * 0.0


class FactorizedReduce(nn.Module):
    """Halves the resolution, as in DARTS: two 1 × 1 convolutions on grids one pixel apart, concatenated.

    Odd sizes, which DARTS does not have, are made even by the last row and column once more: (N, C, ⌈H/2⌉, ⌈W/2⌉), as all
    other operations of stride 2, and without a number that the image does not have.
    """

    def __init__(self, c_in: int, c_out: int, binary: Binary, affine: bool):
        super().__init__()
        if c_out % 2:
            raise ValueError(f"channels: expected an even number where an edge halves the resolution, got {c_out}")
        self.even = nn.Sequential(*convolution(c_in, c_out // 2, 1, binary, affine, stride=2))
        self.odd = nn.Sequential(*convolution(c_in, c_out // 2, 1, binary, affine, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        for axis in (2, 3):
            if x.shape[axis] % 2:
                x = torch.cat([x, x.narrow(axis, -1, 1)], axis)
        return torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], dim=1)


# -- the registry -----------------------------------------------------------------------------------------------------

Builder = Callable[[int, int, Binary, bool], nn.Module]  # (channels, stride, binary, affine)


class Entry(NamedTuple):
    """What is known of an operation: how it is built, its R(w_m) where no weights of its own say it, its colour in plots."""

    build: Builder
    size: float | None
    colour: str


def _none(channels: int, stride: int, binary: Binary, affine: bool) -> nn.Module:
    return Zero(stride)


def _skip(channels: int, stride: int, binary: Binary, affine: bool) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, binary, affine)


def _max_pool(channels: int, stride: int, binary: Binary, affine: bool) -> nn.Module:
    return nn.Sequential(nn.MaxPool2d(3, stride, padding=1), norm(channels, affine))


def _avg_pool(channels: int, stride: int, binary: Binary, affine: bool) -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(3, stride, padding=1, count_include_pad=False), norm(channels, affine))


def _dilated(kernel: int) -> Builder:
    return lambda channels, stride, *form: nn.Sequential(*separable(channels, kernel, stride, 2, *form))


def _separable(kernel: int) -> Builder:
    return lambda channels, stride, *form: nn.Sequential(
        *separable(channels, kernel, stride, 1, *form), *separable(channels, kernel, 1, 1, *form)
    )


REGISTRY: dict[str, Entry] = {
    "none": Entry(_none, 0.0, "#999999"),
    "skip_connect": Entry(_skip, 1.0, "#000000"),
    "dil_conv_3x3": Entry(_dilated(3), None, "#E69F00"),
    "dil_conv_5x5": Entry(_dilated(5), None, "#D55E00"),
    "max_pool_3x3": Entry(_max_pool, (1 / 9) ** 2, "#56B4E9"),
    "avg_pool_3x3": Entry(_avg_pool, (1 / 9) ** 2, "#009E73"),
    "sep_conv_3x3": Entry(_separable(3), None, "#0072B2"),
    "sep_conv_5x5": Entry(_separable(5), None, "#CC79A7"),
}
#: operations of the source whose output depends on trained weights
CONVOLUTIONS = tuple(name for name in OPERATIONS if REGISTRY[name].size is None)


def register(name: str, build: Builder, size: float | None = None, colour: str = "#666666") -> None:
    """Make an operation of one's own known by `name`, for a `Space`, a `Genotype`, training and plots.

        register("conv_3x3", lambda channels, stride, binary, affine:
            nn.Sequential(*convolution(channels, channels, 3, binary, affine, stride)))

    build(channels, stride, binary, affine): a module (N, C, H, W) → (N, C, ⌈H/stride⌉, ⌈W/stride⌉), stride 1 or 2; with `binary`
    the 1-bit form, and `affine` as in `norm`. size: R(w_m) of 4.53 where it is not that of trained convolution weights; None
    where it is. colour: in plots. The same name once more replaces what it stood for. Other processes know what they register
    themselves. Raises ValueError for a name of the source's eight or that is no identifier, and for a module of other shapes.
    """
    if name in OPERATIONS:
        raise ValueError(f"name: expected one that is not of the source's {len(OPERATIONS)} operations, got {name!r}")
    if not isinstance(name, str) or not name.isidentifier() or hasattr(nn.ModuleDict, name):
        raise ValueError(f"name: expected an identifier like conv_3x3 that is no attribute of a module, got {name!r}")
    for stride, binary, affine in itertools.product((1, 2), (False, True), (False, True)):
        with initialised_by(torch.Generator()):
            got = tuple(build(4, stride, binary, affine)(torch.zeros(2, 4, 5, 5)).shape)
        if got != (expected := (2, 4, 5, 5) if stride == 1 else (2, 4, 3, 3)):
            raise ValueError(f"{name}: expected (2, 4, 5, 5) → {expected} with stride {stride}, got {got}")
    REGISTRY[name] = Entry(build, None if size is None else number("size", size, 0.0), colour)


def operation(name: str, channels: int, stride: int, binary: Binary, affine: bool = True) -> nn.Module:
    """The operation `name` on an edge: (N, C, H, W) → (N, C, ⌈H/stride⌉, ⌈W/stride⌉), stride 1 or 2.

    `affine=False` is the form inside a supernet (see `norm`). Raises ValueError for a name that is not registered, or another
    stride.
    """
    if stride not in (1, 2):
        raise ValueError(f"stride: expected 1 or 2, got {stride!r}")
    if binary not in (False, True, *get_args(Block)):
        raise ValueError(f"binary: expected False, True, {' or '.join(get_args(Block))}, got {binary!r}")
    if name not in REGISTRY:
        raise ValueError(f"operation: expected one of {', '.join(REGISTRY)}, got {name!r}")
    return REGISTRY[name].build(channels, stride, binary, affine)
