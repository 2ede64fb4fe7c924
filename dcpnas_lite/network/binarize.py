"""Binarization (Eqs. 4.22-4.25, 4.34-4.35): sign, straight-through window, channel scale, 1-bit convolution.

    a_out = β ∘ (sign(a_in) ⊙ sign(w))                                    (4.22)
    L_R(w, β) = ‖w − β ∘ sign(w)‖²                                        (4.23)
    ∂sign(w)/∂w := 1_{|w| ≤ 1}                                            (4.35)

Every number that enters the product ⊙ is −1 or +1, the padding included: zeros of the input are binarized to +1 like
any other value, and the border is filled *after* the sign with an explicit −1 or +1. A zero border would be a third
symbol, which XNOR and bit count cannot represent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float


def _sign(x: Tensor, shift: float = 0.0) -> Tensor:
    """sign(x) + shift with sign(0) = +1; NaN stays NaN.

    The straight-through estimator is torch's own derivative of hardtanh, in reverse and forward mode and as often as need be:
    only the values are replaced, of which the derivative makes no use. It is 0 at the ends, so they are the first numbers
    beyond ±1.
    """
    end = 1 + torch.finfo(x.dtype).eps
    out = F.hardtanh(x, -end, end)
    low = out.data.clamp_(-1, 0).floor_()  # −1 or 0
    torch.add(torch.full((), 1 + shift, dtype=x.dtype, device=x.device), low, alpha=2, out=low)
    return out


def sign(x: Float[Tensor, " ..."]) -> Float[Tensor, " ..."]:
    """b = sign(x) in {−1, +1}, with sign(0) = +1; its derivative is the window 1_{|x| ≤ 1} (Eqs. 4.22, 4.35).

    NaN stays NaN.
    """
    return _sign(x)


class _ScaledPReLU(torch.autograd.Function):
    """See `scaled_prelu`. Written out because torch's own derivative of PReLU takes several times longer on a CPU."""

    @staticmethod
    def forward(ctx, count: Tensor, beta: Tensor, slope: Tensor, missing: Tensor | None) -> Tensor:
        ctx.save_for_backward(count, beta, slope, missing)
        ctx.save_for_forward(count, beta, slope)
        return F.prelu(count, slope).mul_(beta.view(1, -1, 1, 1))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        count, beta, slope, missing = ctx.saved_tensors
        if missing is not None and torch.is_grad_enabled():  # for a second derivative; its value is 0
            count = count + missing.view(1, -1, 1, 1)
        positive, below = _positive(grad, count), (beta * slope).view(1, -1, 1, 1)
        d_count = torch.addcmul(grad * below, positive, beta.view(1, -1, 1, 1) - below)
        if not any(ctx.needs_input_grad[1:]):
            return d_count, None, None, None
        above = (positive * count).sum((0, 2, 3))
        below = (grad * count).sum((0, 2, 3)) - above
        d_missing = d_count.sum((0, 2, 3)) if ctx.needs_input_grad[3] else None
        return d_count, above + slope * below, beta * below, d_missing

    @staticmethod
    def jvp(ctx, d_count: Tensor, d_beta: Tensor | None, d_slope: Tensor | None, d_missing: Tensor | None) -> Tensor:
        count, beta, slope = (t.view(1, -1, 1, 1) if t.dim() == 1 else t for t in ctx.saved_tensors)
        if d_missing is not None:
            d_count = d_count + d_missing.view(1, -1, 1, 1)
        above = _positive(d_count, count)
        tangent = beta * (above + slope * (d_count - above))
        above = _positive(count, count)
        if d_beta is not None:
            tangent = tangent + d_beta.view(1, -1, 1, 1) * (above + slope * (count - above))
        if d_slope is not None:
            tangent = tangent + d_slope.view(1, -1, 1, 1) * beta * (count - above)
        return tangent.to(count.dtype)  # in mixed precision β and the slope have more digits than the counts


def _positive(grad: Tensor, x: Tensor) -> Tensor:
    """grad · 1_{x > 0}."""
    return torch.ops.aten.threshold_backward.default(grad, x, 0)


def scaled_prelu(
    count: Float[Tensor, "N C H W"],
    beta: Float[Tensor, " C"],
    slope: Float[Tensor, " C"],
    bias: Float[Tensor, " C"] | None = None,
) -> Float[Tensor, "N C H W"]:
    """PReLU(β ∘ count) = β ∘ PReLU(count) for scales β ≥ 0; the derivative at count = 0 is that from below, β · slope.

    `bias` is a summand of `count` that was added as a constant, and gets its derivative here: one sum over what is there anyway,
    which on small images takes less time than in a convolution on a CPU.
    """
    return _ScaledPReLU.apply(count, beta, slope, None if bias is None else bias - bias.detach())


def scale(weight: Float[Tensor, "C_out ..."]) -> Float[Tensor, " C_out"]:
    """β_c = mean |w_c| per output channel: the closed-form minimiser of L_R over β (Eq. 4.23)."""
    return weight.abs().flatten(1).mean(1)


def reconstruction_error(weight: Float[Tensor, "C_out ..."], beta: Float[Tensor, " C_out"]) -> Float[Tensor, ""]:
    """L_R(w, β) = ‖w − β ∘ sign(w)‖² (Eq. 4.23); differentiable in w and β.

    Raises ValueError where β does not hold one scale per output channel.
    """
    if beta.shape != weight.shape[:1]:
        raise ValueError(f"beta: expected shape ({weight.shape[0]},), one scale per output channel, got {tuple(beta.shape)}")
    return (weight - beta.view(-1, *[1] * (weight.dim() - 1)) * sign(weight)).square().sum()


class Sign(nn.Module):
    """sign(x) + shift as a module."""

    def __init__(self, shift: float = 0.0):
        super().__init__()
        self.shift = float(shift)

    def forward(self, x: Float[Tensor, " ..."]) -> Float[Tensor, " ..."]:
        return _sign(x, self.shift)

    def extra_repr(self) -> str:
        return f"{self.shift:+.0f}"


class BinaryConv2d(nn.Module):
    """1-bit convolution a_out = β ∘ (sign(a_in) ⊙ sign(w)) (Eq. 4.22): (N, C_in, H, W) → (N, C_out, H', W').

    The real-valued `weight` is what the optimizer trains; only its sign and β enter the output. β is mean |w| per
    output channel, and the gradient flows through it as well (the product rule):

        ∂L/∂w_i = (Σ_j g_j sign(w_j)) sign(w_i) / n + β g_i 1_{|w_i| ≤ 1},     g = ∂L/∂(β sign(w)),

    where n is the number of weights of a channel, and the first term is 0 at w_i = 0, the kink of |w_i|.
    With `learned_scale` β is a parameter of its own, kept non-negative by its absolute value and started at mean |w|.
    Output channels get no bias: BatchNorm follows or precedes everywhere in this package.
    `pad_value` (−1 or +1) is what the border of the binarized input is filled with; anything else raises ValueError.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        pad_value: float = -1.0,
        learned_scale: bool = False,
    ):
        super().__init__()
        if pad_value not in (-1, 1):
            raise ValueError(f"pad_value: expected -1 or +1 (the border is binary too), got {pad_value!r}")
        reference = nn.Conv2d(c_in, c_out, kernel, groups=groups, bias=False)  # for its checks and initialisation
        self.weight = reference.weight
        self.learned_beta = nn.Parameter(scale(self.weight.detach())) if learned_scale else None
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.pad_value = float(pad_value)

    def beta(self) -> Float[Tensor, " C_out"]:
        """The channel-wise scale β ≥ 0."""
        return scale(self.weight) if self.learned_beta is None else self.learned_beta.abs()

    def binary_weight(self) -> Float[Tensor, "C_out C_in_per_group K K"]:
        """b_w = sign(w)."""
        return sign(self.weight)

    def forward(self, x: Float[Tensor, "N C_in H W"]) -> Float[Tensor, "N C_out H2 W2"]:
        x = sign(x)
        if self.padding:
            x = F.pad(x, (self.padding,) * 4, value=self.pad_value)
        out = F.conv2d(x, self.binary_weight(), None, self.stride, 0, self.dilation, self.groups)
        return out * self.beta().view(1, -1, 1, 1)

    def extra_repr(self) -> str:
        c_out, c_in, kernel, _ = self.weight.shape
        return (
            f"{c_in * self.groups}, {c_out}, kernel={kernel}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, groups={self.groups}, pad_value={self.pad_value:+.0f}"
        )


class SignedLayer(BinaryConv2d):
    """What a supernet has in place of BinaryConv2d and nn.PReLU: the same function of an input that `Sign` has binarized.

    With a border p the input is expected shifted by −p, so that the border is 0, which a convolution fills in by itself and
    without a copy of its input; what is missing is the same number everywhere, Σ w b = Σ w (b − p) + p Σ w.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, **geometry):
        super().__init__(c_in, c_out, kernel, **geometry)
        self.slope = nn.Parameter(torch.full((c_out,), 0.25))  # as nn.PReLU starts
        self.prepared: list[Tensor] | None = None  # see `_prepared`; from `prepare`

    @property
    def shift(self) -> float:
        """What the input is shifted by."""
        return -self.pad_value if self.padding else 0.0

    def forward(self, x: Float[Tensor, "N C_in H W"]) -> Float[Tensor, "N C_out H2 W2"]:
        binary_weight, total, beta = self.prepared or _prepared(self.weight, self.beta())
        bias = self.pad_value * total if self.padding else None
        constant = None if bias is None else bias.detach()
        count = F.conv2d(x, binary_weight, constant, self.stride, self.padding, self.dilation, self.groups)
        return scaled_prelu(count, beta, self.slope, bias)


def _prepared(weight: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    binary_weight = sign(weight)
    return binary_weight, binary_weight.flatten(1).sum(1), beta


@contextmanager
def prepare(layers: Sequence[SignedLayer]) -> Iterator[None]:
    """sign(w), its sum and β of all these layers, computed once for each shape instead of once for each layer."""
    shapes: dict[torch.Size, list[SignedLayer]] = {}
    for layer in layers:
        shapes.setdefault(layer.weight.shape, []).append(layer)
    for shape, group in shapes.items():
        weights = torch.cat([layer.weight for layer in group])
        parts = (part.split(shape[0]) for part in _prepared(weights, scale(weights)))
        for layer, *prepared in zip(group, *parts, strict=True):
            layer.prepared = prepared
    try:
        yield
    finally:
        for layer in layers:
            layer.prepared = None
