"""The M = 8 candidate operations of an edge (Eq. 4.27), real-valued or 1-bit, by name.

From the source: the eight operations, and that in the Child the convolutions take binarized weights and activations.
From DARTS, whose search space the source uses: convolutions are depthwise separable (the separable ones applied twice,
the dilated ones once, dilation 2), ReLU-Conv-BatchNorm in the real-valued form, BatchNorm after pooling, average
pooling that does not count the padding.
Ours, because the source is silent: in the 1-bit form both the depthwise and the pointwise convolution are binary
(the authors' retraining code binarizes only the weights of the depthwise one), each one BatchNorm → sign → 1-bit
convolution → PReLU. BatchNorm stands before the sign, since it decides which half of the values becomes −1; PReLU is
the real-valued activation after it, since a ReLU would leave the next sign nothing but +1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .binarize import BinaryConv2d, Sign, SignedLayer

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
#: operations whose output depends on trained weights
CONVOLUTIONS = tuple(name for name in OPERATIONS if "conv_" in name)


class Operation(nn.Module):
    """A candidate: body(enter(x)). In a supernet `enter` has no parameters, so operations that leave the same node and
    agree in `key` enter alike, and the supernet computes that part once per node instead of once per edge."""

    def __init__(self, enter: nn.Module, *body: nn.Module):
        super().__init__()
        self.enter, self.body = enter, nn.Sequential(*body)
        self.key = repr(enter)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.enter(x))


class Zero(nn.Module):
    """`none`: zeros of the shape the edge would have; (N, C, H, W) → (N, C, ⌈H/stride⌉, ⌈W/stride⌉)."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride] * 0.0


class Dilated(nn.Module):
    """Convolution of dilation 2: `conv`, undilated and of stride 1, on each of the four interleaved grids of pixels.

    The same numbers as dilation 2 with twice the padding of `conv`, and several times faster on a CPU. With stride 2 only
    one of the four grids is seen. Odd sizes are filled up with the border value of `conv`, and cropped again.
    A 1 × 1 convolution of stride 2 with fewer than 8 input channels is computed like this, too: channels last, torch's own
    (2.13, on a CPU) writes beyond its memory there.
    """

    def __init__(self, conv: nn.Module, stride: int):
        super().__init__()
        self.conv, self.stride = conv, stride

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            return self.conv(x[:, :, ::2, ::2])
        n, c, h, w = x.shape
        if h % 2 or w % 2:
            border = self.conv.pad_value if type(self.conv) is BinaryConv2d else 0.0
            x = nn.functional.pad(x, (0, w % 2, 0, h % 2), value=border)
        rows, columns = (h + 1) // 2, (w + 1) // 2
        grids = x.reshape(n, c, rows, 2, columns, 2).permute(3, 5, 0, 2, 4, 1).reshape(4 * n, rows, columns, c)
        out = self.conv(grids.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(2, 2, n, rows, columns, -1)
        out = out.permute(2, 3, 0, 4, 1, 5).reshape(n, 2 * rows, 2 * columns, -1).permute(0, 3, 1, 2)
        return out[:, :, :h, :w]


def norm(channels: int, affine: bool) -> nn.BatchNorm2d:
    """BatchNorm: with affine parameters and running statistics in a discrete network; in a supernet with neither.

    Without running statistics a supernet always normalises by its current batch, so that architecture steps and weight
    steps cannot leak statistics into each other.
    """
    return nn.BatchNorm2d(channels, affine=affine, track_running_stats=affine)


def convolution(
    c_in: int, c_out: int, kernel: int, binary: bool, affine: bool, stride: int = 1, dilated: bool = False, groups: int = 1
) -> list[nn.Module]:
    """One convolution layer that keeps the resolution up to `stride`.

    Real-valued: ReLU → convolution → BatchNorm. 1-bit: BatchNorm → sign → convolution → PReLU. In a supernet the sign comes
    with the BatchNorm, so that operations that leave a node share it, and the PReLU with the convolution.
    """
    dilated = dilated or (kernel == 1 and stride == 2 and c_in < 8)  # see `Dilated`
    geometry = dict(stride=1 if dilated else stride, padding=kernel // 2, groups=groups)
    if not binary:
        conv = nn.Conv2d(c_in, c_out, kernel, bias=False, **geometry)
    else:
        conv = (BinaryConv2d if affine else SignedLayer)(c_in, c_out, kernel, **geometry)
    shift = getattr(conv, "shift", 0.0)
    if dilated:
        conv = Dilated(conv, stride)
    if not binary:
        return [nn.ReLU(), conv, norm(c_out, affine)]
    before = norm(c_in, affine)
    return [before, conv, nn.PReLU(c_out)] if affine else [nn.Sequential(before, Sign(shift)), conv]


def separable(channels: int, kernel: int, stride: int, dilated: bool, binary: bool, affine: bool) -> list[nn.Module]:
    """Depthwise k × k convolution, then pointwise 1 × 1; real-valued, nothing stands between the two (as in DARTS)."""
    depthwise = convolution(channels, channels, kernel, binary, affine, stride, dilated, groups=channels)
    pointwise = convolution(channels, channels, 1, binary, affine)
    return depthwise + pointwise if binary else depthwise[:2] + pointwise[1:]


class FactorizedReduce(nn.Module):
    """Halves the resolution, as in DARTS: two 1 × 1 convolutions on grids one pixel apart, concatenated.

    Odd sizes, which DARTS does not have, are made even by the last row and column once more: (N, C, ⌈H/2⌉, ⌈W/2⌉), as all
    other operations of stride 2, and without a number that the image does not have.
    """

    def __init__(self, c_in: int, c_out: int, binary: bool, affine: bool):
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


def operation(name: str, channels: int, stride: int, binary: bool, affine: bool = True) -> nn.Module:
    """The operation `name` on an edge: (N, C, H, W) → (N, C, ⌈H/stride⌉, ⌈W/stride⌉), stride 1 or 2.

    `affine=False` is the form inside a supernet (see `norm`). Raises ValueError for an unknown name or stride.
    """
    if stride not in (1, 2):
        raise ValueError(f"stride: expected 1 or 2, got {stride!r}")
    if name == "none":
        return Zero(stride)
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, binary, affine)
    if name == "max_pool_3x3":
        return Operation(nn.Sequential(nn.MaxPool2d(3, stride, padding=1), norm(channels, affine)))
    if name == "avg_pool_3x3":
        pool = nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
        return Operation(nn.Sequential(pool, norm(channels, affine)))
    if name in CONVOLUTIONS:
        kernel = int(name[-1])
        if name.startswith("dil"):
            return Operation(*separable(channels, kernel, stride, True, binary, affine))
        first = separable(channels, kernel, stride, False, binary, affine)
        return Operation(*first, *separable(channels, kernel, 1, False, binary, affine))
    raise ValueError(f"operation: expected one of {', '.join(OPERATIONS)}, got {name!r}")
