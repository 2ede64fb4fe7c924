"""Convolutions that the libraries compute slowly on a CPU, the same numbers another way: `engine.fast` puts them in a network.

- Where a depthwise kernel is larger than the map, its derivative is a product of matrices (`Depthwise`).
- Convolutions of dilation 2 are four undilated ones (`by_grids`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from ..network.binarize import BinaryConv2d

if TYPE_CHECKING:
    from jaxtyping import Float


def another_way(module: nn.Module) -> None:
    """Change how `module` is computed, if it is a convolution that takes less time another way; its parameters stay."""
    if type(module) in _ON_GRIDS and _is_dilated(module):
        module.__class__ = _ON_GRIDS[type(module)]
        module.padding = module.weight.shape[2] // 2  # of the undilated convolution; what it was is in `by_grids`
        module.every, module.stride, module.dilation = _one(module.stride), 1, 1
    elif type(module) is nn.Conv2d and module.padding_mode == "zeros":
        module.__class__ = Conv2d


# -- kernels larger than the map --------------------------------------------------------------------------------------


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, dilation, groups: int) -> Tensor:
    """`F.conv2d`, by `Depthwise` where that is faster."""
    k = weight.shape[2]
    depthwise = groups == x.shape[1] == len(weight) and weight.shape[2:] == (k, k)
    same = k % 2 == 1 and (_one(stride), _one(padding), _one(dilation)) == (1, k // 2, 1)
    if depthwise and same and max(x.shape[2:]) < k and x.is_cpu and not torch.is_autocast_enabled("cpu"):
        if weight.requires_grad and not (bias is not None and bias.requires_grad):
            return Depthwise.apply(x, weight, bias)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


class Depthwise(torch.autograd.Function):
    """A depthwise convolution of stride 1 that keeps the size of a map smaller than its kernel, (N, C, H, W) and (C, 1, k, k).

    Written out because torch's own derivative by the weights takes many times longer there on a CPU.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, 1, weight.shape[2] // 2, 1, len(weight))

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        c, _, k, _ = weight.shape
        d_x = conv2d_input(x.shape, weight, grad, 1, k // 2, 1, c) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return d_x, None, None
        pairs = torch.bmm(_by_channel(x).transpose(1, 2), _by_channel(grad))  # Σ_n x[n, p] grad[n, q], (C, H W, H W)
        taps = torch.from_numpy(_taps(*x.shape[2:], k)).to(pairs)
        return d_x, (pairs.flatten(1) @ taps.T).view_as(weight), None

    @staticmethod
    def jvp(ctx, d_x: Tensor | None, d_weight: Tensor | None, d_bias: None) -> Tensor:
        x, weight = ctx.saved_tensors
        how = None, 1, weight.shape[2] // 2, 1, len(weight)
        parts = [F.conv2d(d_x, weight, *how)] if d_x is not None else []
        return sum(parts + ([F.conv2d(x, d_weight, *how)] if d_weight is not None else []))


def _by_channel(x: Float[Tensor, "N C H W"]) -> Tensor:
    """(C, N, H·W), stored in that order."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(-1, c).t().contiguous().view(c, n, h * w)


@lru_cache
def _taps(h: int, w: int, k: int) -> np.ndarray:
    """(k k, H W H W): 1 where a k × k kernel's entry leads from an input pixel to an output pixel of an H × W map."""
    rows, columns = (np.arange(n)[:, None] - np.arange(n) + k // 2 == np.arange(k)[:, None, None] for n in (h, w))
    return np.einsum("aij,bkl->abikjl", rows, columns).reshape(k * k, -1).astype(np.float32)


class Conv2d(nn.Conv2d):
    """A convolution by `conv2d`."""

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


# -- dilation ---------------------------------------------------------------------------------------------------------


def by_grids(convolve: Callable[[Tensor], Tensor], x: Float[Tensor, "N C H W"], every: int, border: float) -> Tensor:
    """`convolve`, undilated and of stride 1, on each of the four interleaved grids of pixels: the numbers of dilation 2.

    With stride `every` = 2 only one of the four is seen. Odd sizes are filled up with the border value and cropped again.
    """
    if every == 2:
        return convolve(x[:, :, ::2, ::2])
    n, c, h, w = x.shape
    if h % 2 or w % 2:
        x = F.pad(x, (0, w % 2, 0, h % 2), value=border)
    rows, columns = (h + 1) // 2, (w + 1) // 2
    grids = x.permute(0, 2, 3, 1).reshape(n, rows, 2, columns, 2, c).permute(2, 4, 0, 1, 3, 5).reshape(4 * n, rows, columns, c)
    out = convolve(grids.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(2, 2, n, rows, columns, -1)
    out = out.permute(2, 3, 0, 4, 1, 5).reshape(n, 2 * rows, 2 * columns, -1).permute(0, 3, 1, 2)
    return F.pad(out, (0, w - 2 * columns, 0, h - 2 * rows)) if h % 2 or w % 2 else out


class GridConv2d(Conv2d):
    """A convolution of dilation 2, see `by_grids`."""

    def forward(self, x: Tensor) -> Tensor:
        return by_grids(super().forward, x, self.every, 0.0)


class GridBinaryConv2d(BinaryConv2d):
    """A 1-bit convolution of dilation 2, see `by_grids`."""

    def forward(self, x: Tensor) -> Tensor:
        return by_grids(super().forward, x, self.every, self.pad_value)


_ON_GRIDS = {nn.Conv2d: GridConv2d, BinaryConv2d: GridBinaryConv2d}


def _one(value) -> int | None:
    """What (k, k) or k says; None where the two differ, or for a word."""
    a, b = value if isinstance(value, tuple) else (value, value)
    return a if a == b and isinstance(a, int) else None


def _is_dilated(conv: nn.Conv2d | BinaryConv2d) -> bool:
    """Whether `by_grids` computes it: dilation 2, a square kernel of odd size, a border that keeps the size up to the stride."""
    rows, columns = conv.weight.shape[2:]
    same = rows == columns and rows % 2 == 1 and getattr(conv, "padding_mode", "zeros") == "zeros"
    return same and _one(conv.dilation) == 2 and _one(conv.padding) == rows - 1 and _one(conv.stride) in (1, 2)
