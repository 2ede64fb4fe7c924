"""Chapter 7: the 1-bit convolution, its scale, its reconstruction error and its gradient (4.22, 4.23, 4.34, 4.35)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..method import objectives
from ..network import binarize
from .problems import Case, deviation
from .table import Chapter

chapter = Chapter("07-one-bit")


def _with_zero(arguments: dict) -> dict:
    """A 0 in the input and in the weights, where sign is +1, and scales that are not negative."""
    for name in ("x", "weight"):
        if name in arguments:
            arguments[name][0, 0] = 0
    arguments["beta"] = arguments["beta"].abs()
    return arguments


def _at_the_ends(arguments: dict) -> dict:
    arguments["x"][:5] = torch.tensor([-1.0, 1.0, 0.0, -1.5, 1.5])
    return arguments


def _window(x: Tensor) -> Tensor:
    return torch.autograd.functional.vjp(binarize.sign, x, torch.ones_like(x))[1]


def _through_the_scale(w: Tensor, g: Tensor) -> Tensor:
    """∂L/∂w of one filter through β b, both of which depend on w, by autograd."""
    return torch.autograd.functional.vjp(lambda w: binarize.scale(w[None])[0] * binarize.sign(w), w, g)[1]


def _inside(w: Tensor) -> Tensor:
    """β times the window of 4.35."""
    return w.abs().mean() * (w.abs() <= 1)


@chapter.row(
    "4.22",
    "One-bit convolution",
    "definition",
    "written out",
    "holds",
    r"\hat a_{\mathrm{out}} = \beta \circ (b^{\hat a_{\mathrm{in}}} \odot b^{\hat w})",
    functions=(binarize.BinaryConv2d,),
)
def check_4_22(case: Case):
    """The convolution equals XNOR and bit count on packed signs, scaled channel by channel."""
    conv, x = binarize.BinaryConv2d(case.M, case.E, 3, stride=2, padding=1), case.normal(2, case.M, 7, 7)
    conv.weight.data = case.normal(*conv.weight.shape)
    x[0, 0, 3, 3] = 0
    with torch.no_grad():
        out = conv(x)
        bits_x = F.unfold(F.pad((x >= 0).double(), (1,) * 4), 3, stride=2) > 0.5  # border: −1, the bit 0
        xnor = bits_x.unsqueeze(1) == (conv.weight >= 0).flatten(1)[None, :, :, None]
        beta = torch.stack([w.abs().sum() / w.numel() for w in conv.weight])
        return deviation(out, beta.view(1, -1, 1, 1) * (2 * xnor.sum(2) - 9 * case.M).view(out.shape))


chapter.exercise(
    "4.22",
    "x (N, entries), weight (C_out, entries), beta (C_out) -> (N, C_out)",
    "1-bit product β ∘ (sign(x) ⊙ sign(w)), sign(0) = +1",
    lambda x, w, b: b * (binarize.sign(x) @ binarize.sign(w).T),
    {
        "scale missing": lambda x, w, b: binarize.sign(x) @ binarize.sign(w).T,
        "sign(0) = 0": lambda x, w, b: b * (x.sign() @ w.sign().T),
        "sign(0) = -1": lambda x, w, b: b * ((2.0 * (x > 0) - 1) @ (2.0 * (w > 0).T - 1)),
        "input not binarized": lambda x, w, b: b * (x @ binarize.sign(w).T),
        "weight not binarized": lambda x, w, b: b * (binarize.sign(x) @ w.T),
        "mean instead of sum": lambda x, w, b: b * (binarize.sign(x) @ binarize.sign(w).T) / x.shape[1],
        "bits counted, not signs": lambda x, w, b: b * ((x >= 0).double() @ (w >= 0).double().T),
    },
    _with_zero,
)


@chapter.row(
    "4.23",
    "Reconstruction error",
    "definition",
    "written out",
    "holds",
    r"L_R(\hat w, \beta) = \lVert \hat w - \beta \circ b^{\hat w} \rVert^2",
    functions=(binarize.reconstruction_error, binarize.scale),
)
def check_4_23(case: Case):
    """The error equals its expanded square for any β, and β = mean |w| is the minimum of that parabola."""
    channels, size = range(case.E), 9 * case.M
    w, beta = case.normal(case.E, case.M, 3, 3), case.normal(case.E).abs()
    parabola = sum((w[c] ** 2).sum() - 2 * beta[c] * w[c].abs().sum() + size * beta[c] ** 2 for c in channels)
    vertex = torch.stack([w[c].abs().sum() / size for c in channels])
    return max(deviation(binarize.reconstruction_error(w, beta), parabola), deviation(binarize.scale(w), vertex))


chapter.exercise(
    "4.23",
    "weight (C_out, entries), beta (C_out) -> ()",
    "reconstruction error ‖w − β ∘ sign(w)‖²",
    lambda *a: binarize.reconstruction_error(*a),
    {
        "square missing": lambda w, b: binarize.reconstruction_error(w, b).sqrt(),
        "scale missing": lambda w, b: binarize.reconstruction_error(w, torch.ones_like(b)),
        "one scale for all channels": lambda w, b: binarize.reconstruction_error(w, b.mean().expand_as(b)),
        "mean instead of sum": lambda w, b: binarize.reconstruction_error(w, b) / w.numel(),
        "sign missing": lambda w, b: (w - b[:, None]).square().sum(),
    },
    _with_zero,
)


@chapter.row(
    "4.34",
    "Gradient of the loss with respect to ŵ",
    "identity",
    "autograd",
    "corrected",
    r"\nabla_{\hat w} L_{\mathrm{DCP\text{-}NAS}} = -\frac{\partial G}{\partial b^{\hat w}} "
    r"\frac{\partial b^{\hat w}}{\partial \hat w}",
    derived=r"\nabla_{\hat w} (-G + \mu L_R) = -\frac{\partial G}{\partial b^{\hat w}} \frac{\partial b^{\hat "
    r"w}}{\partial \hat w} "
    r"- \frac{\partial G}{\partial \beta} \frac{\partial \beta}{\partial \hat w} + \mu \frac{\partial L_R}{\partial \hat w}",
    reason="4.32 contains μ L_R(ŵ, β), which depends on ŵ; its gradient is missing. With β = mean |ŵ| a second path is missing "
    "too (none if β is learned). The tangent term λ D acts on α̂ only, in the source and here.",
    functions=(binarize.BinaryConv2d, objectives.reconstruction_loss),
)
def check_4_34(case: Case):
    """Autograd through the 1-bit convolution equals the derived closed form; the printed term alone does not."""
    conv, x, mu = binarize.BinaryConv2d(2, 3, 2), case.normal(4, 2, 2, 2), 0.2
    parent, conv.weight.data = case.normal(4, 3), case.normal(3, 2, 2, 2)
    w, beta = conv.weight.detach(), conv.weight.detach().abs().mean((1, 2, 3)).view(3, 1, 1, 1)
    b, window = 2.0 * (w >= 0) - 1, (w.abs() <= 1).double()
    gain = objectives.kl_gain(conv(x).flatten(1), parent)
    loss = objectives.dcp_nas_loss(gain, torch.zeros(()), objectives.reconstruction_loss([(conv.weight, conv.beta())]), 0, mu)
    product = (beta * b).requires_grad_()
    logits = F.conv2d(2.0 * (x >= 0).double() - 1, product).flatten(1)
    (g,) = torch.autograd.grad(-objectives.kl_gain(logits, parent), product)
    printed = beta * g * window
    through_beta = (g * b).sum((1, 2, 3), keepdim=True) * w.sign() / 8
    derived = printed + through_beta + mu * 2 * (w - beta * b) * (1 - beta * window)
    (gradient,) = torch.autograd.grad(loss, conv.weight)
    return deviation(gradient, derived), deviation(printed, derived)


chapter.exercise(
    "4.34 scale",
    "filter (entries), g (entries) -> (entries)",
    "gradient of one filter through β b with β = mean |w|, given g = ∂L/∂(β b)",
    _through_the_scale,
    {
        "the sum over the filter missing, only its own term": lambda w, g: g / len(w) + g * _inside(w),
        "β taken for a constant": lambda w, g: g * _inside(w),
        "the path through β alone": lambda w, g: binarize.sign(w) * (g * binarize.sign(w)).mean(),
        "window missing": lambda w, g: binarize.sign(w) * (g * binarize.sign(w)).mean() + g * w.abs().mean(),
        "sum instead of mean": lambda w, g: binarize.sign(w) * (g @ binarize.sign(w)) + g * _inside(w),
        "g summed without the signs": lambda w, g: binarize.sign(w) * g.mean() + g * _inside(w),
        "sign of the weight missing": lambda w, g: (g * binarize.sign(w)).mean() + g * _inside(w),
    },
)


@chapter.row(
    "4.35",
    "Straight-through window",
    "surrogate",
    "written out",
    "holds",
    r"\frac{\partial b^{\hat w}}{\partial \hat w} = \mathbf{1}_{\lvert \hat w \rvert \le 1}",
    functions=(binarize.sign,),
)
def check_4_35(case: Case):
    """Values and derivative of sign at, inside and outside the ends of the window."""
    w = torch.cat([torch.tensor([-1.5, -1.0, -0.3, 0.0, 0.7, 1.0, 1.1], dtype=torch.float64), 2 * case.normal(20)])
    b, up = binarize.sign(w.requires_grad_()), case.normal(27)
    (slope,) = torch.autograd.grad(b, w, up)
    signs = torch.tensor([1.0 if x >= 0 else -1.0 for x in w], dtype=torch.float64)
    window = torch.tensor([1.0 if -1 <= x <= 1 else 0.0 for x in w], dtype=torch.float64)
    return max(deviation(b.detach(), signs), deviation(slope, up * window))


chapter.exercise(
    "4.35",
    "x (entries) -> (entries)",
    "straight-through window 1_{|x| ≤ 1}, ends included",
    _window,
    {
        "ends left out": lambda x: (x.abs() < 1).double(),
        "no window": lambda x: torch.ones_like(x),
        "upper end only": lambda x: (x <= 1).double(),
        "0 left out": lambda x: ((x.abs() <= 1) & (x != 0)).double(),
        "a window of ½": lambda x: (x.abs() <= 0.5).double(),
        "true and false": lambda x: x.abs() <= 1,
        "triangle": lambda x: (2 - 2 * x.abs()).clamp(min=0),
    },
    _at_the_ends,
)
