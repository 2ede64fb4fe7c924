"""Binarization (Eqs. 4.22-4.25, 4.34-4.35): sign, straight-through window, channel scale, 1-bit convolution.

    a_out = β ∘ (sign(a_in) ⊙ sign(w))                                    (4.22)
    L_R(w, β) = ‖w − β ∘ sign(w)‖²                                        (4.23)
    ∂sign(w)/∂w := 1_{|w| ≤ 1}                                            (4.35)

Every number that enters the product ⊙ is −1 or +1, the padding included: zeros of the input are binarized to +1 like
any other value, and the border is filled *after* the sign with an explicit −1 or +1. A zero border would be a third
symbol, which XNOR and bit count cannot represent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float


def sign(x: Float[Tensor, " ..."]) -> Float[Tensor, " ..."]:
    """b = sign(x) in {−1, +1}, with sign(0) = +1; its derivative is the window 1_{|x| ≤ 1} (Eqs. 4.22, 4.35).

    NaN stays NaN. The window is torch's own derivative of hardtanh, in reverse and forward mode and as often as need be.
    """
    value = x.detach().clamp(-1, 0).floor_().mul_(2).add_(1)  # −1 or +1
    end = 1 + torch.finfo(x.dtype).eps  # hardtanh has derivative 0 at its ends: the first numbers beyond ±1
    window = F.hardtanh(x, -end, end)
    return window.sub_(window.detach()).add_(value)  # 0 + value, with the derivative of the window


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


class PReLU(nn.PReLU):
    """x where x > 0, else slope · x. A 1-bit convolution counts 0 often, and there torch's own PReLU has the derivative from
    below in reverse mode, from above in forward mode and at second order; here it is always the one from below."""

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        return torch.where(x > 0, x, self.weight.to(x.dtype).view(1, -1, 1, 1) * x)


class BinaryConv2d(nn.Module):
    """1-bit convolution a_out = β ∘ (sign(a_in) ⊙ sign(w)) (Eq. 4.22): (N, C_in, H, W) → (N, C_out, H', W').

    The real-valued `weight` is what the optimizer trains; only its sign and β enter the output. β is mean |w| per
    output channel, and the gradient flows through it as well (the product rule):

        ∂L/∂w_i = (Σ_j g_j sign(w_j)) sign(w_i) / d + β g_i 1_{|w_i| ≤ 1},     g = ∂L/∂(β sign(w)),

    where d is the number of weights of a channel, and the first term is 0 at w_i = 0, the kink of |w_i|.
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

    def binary_weight(self) -> Float[Tensor, "C_out C_in_per_group kernel kernel"]:
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
