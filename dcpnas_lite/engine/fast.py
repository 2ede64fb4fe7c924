"""What makes a plain network fast: the same function of the same parameters, computed another way.

`accelerate(net)` changes how a network is computed and nothing else: its parameters, their names and its derivatives of every
order stay (float64: to about 1e-12; only where rounding meets a tie of sign, as on maps of very few pixels, can they part).

- The convolutions on the edges that leave a node begin alike, as do equal poolings: computed once a node (`Chain`, `FastCell`).
- sign(x) comes shifted so that the border of a 1-bit convolution is 0, which needs no copy of x; scale and PReLU are one
  function with a derivative of its own (`Signed`); sign(w) and β are computed for all weights of one shape at once (`prepared`).
- Convolutions that the libraries compute slowly are computed another way (`engine.convolutions`).
- Images and derivatives run through channels last, which convolutions and BatchNorm on a CPU like best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..network import binarize
from ..network.binarize import BinaryConv2d, PReLU, sign
from ..network.discrete import DiscreteNetwork
from ..network.operations import Shortcut
from ..network.supernet import MixedCell, Skeleton, Supernet
from .convolutions import GridBinaryConv2d, another_way, by_grids, conv2d

if TYPE_CHECKING:
    from jaxtyping import Float


N = TypeVar("N", bound=Skeleton)


def accelerate(net: N) -> N:
    """`net` itself, a plain `Supernet` or `DiscreteNetwork`, fast from now on; ValueError for anything else.

    The forward hooks of layers that are computed together no longer run.
    """
    if type(net) not in (Supernet, DiscreteNetwork):
        raise ValueError(f"net: expected a plain Supernet or DiscreteNetwork, got {type(net).__name__}")
    for module in net.modules():
        another_way(module)
    for module in net.modules():
        if type(module) is nn.Sequential:
            module.__class__ = Chain
            module.plan()
        elif type(module) is MixedCell:
            module.__class__ = FastCell
    if type(net) is Supernet:
        net.__class__ = FastSupernet
        net.found = [p for name, p in net.named_parameters() if not name.startswith("alpha.")]
        net.signed = [step for m in net.modules() if type(m) is Chain for step in m.steps if type(step) is Signed]
    net.stem.register_forward_pre_hook(_channels_last)
    for cell in net.cells:
        cell.register_forward_hook(_derivatives_channels_last)
    return net.to(memory_format=torch.channels_last)


def _channels_last(module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return inputs[0].contiguous(memory_format=torch.channels_last)


def _derivatives_channels_last(module: nn.Module, inputs: tuple, nodes: list[Tensor]) -> None:
    """The concatenation behind a cell hands back slices, by which BatchNorm takes several times longer."""
    for node in nodes:
        if node.requires_grad:
            node.register_hook(lambda grad: grad.contiguous(memory_format=torch.channels_last))


# -- the 1-bit layer --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sign:
    """sign(x) + shift."""

    shift: float

    def __call__(self, x: Tensor) -> Tensor:
        return ShiftedSign.apply(x, self.shift) if binarize.sign is sign else binarize.sign(x).add_(self.shift)


class ShiftedSign(torch.autograd.Function):
    """sign(x) + shift, written out: half the passes over memory of `binarize.sign`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, shift: float) -> Tensor:
        return x.clamp(-1, 0).floor_().mul_(2).add_(1 + shift)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _window(grad, *ctx.saved_tensors), None

    @staticmethod
    def jvp(ctx, tangent: Tensor, shift: None) -> Tensor:
        return _window(tangent, *ctx.saved_tensors)


def _window(grad: Tensor, x: Tensor) -> Tensor:
    """grad · 1_{|x| ≤ 1}."""
    end = 1 + torch.finfo(x.dtype).eps
    return torch.ops.aten.hardtanh_backward.default(grad, x, -end, end)


class Signed:
    """1-bit convolution and PReLU as one function of an input that `Sign` has binarized.

    With a border p the input comes shifted by −p, so that the border is 0, which a convolution fills in by itself and without a
    copy of its input; what is missing is the same number everywhere, Σ w b = Σ w (b − p) + p Σ w.
    """

    def __init__(self, conv: BinaryConv2d, prelu: PReLU):
        self.conv, self.prelu = conv, prelu
        self.prepared: tuple[Tensor, Tensor, Tensor] | None = None  # sign(w), its sum a channel, and β: see `prepared`

    def __call__(self, x: Tensor) -> Tensor:
        return by_grids(self.undilated, x, self.conv.every, 0.0) if type(self.conv) is GridBinaryConv2d else self.undilated(x)

    def undilated(self, x: Tensor) -> Tensor:
        conv = self.conv
        weight, total, beta = self.prepared or _prepare(conv.weight, conv.beta())
        bias = conv.pad_value * total if conv.padding else None
        constant = None if bias is None else bias.detach()
        count = conv2d(x, weight, constant, conv.stride, conv.padding, conv.dilation, conv.groups)
        return scaled_prelu(count, beta, self.prelu.weight, bias)


def _prepare(weight: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    b = binarize.sign(weight)
    return b, b.flatten(1).sum(1), beta


@contextmanager
def prepared(layers: Sequence[Signed]) -> Iterator[None]:
    """sign(w), its sum and β of all these layers, computed once for each shape instead of once for each layer."""
    shapes: dict[torch.Size, list[Signed]] = {}
    for layer in layers:
        if layer.conv.learned_beta is None:
            shapes.setdefault(layer.conv.weight.shape, []).append(layer)
    for shape, group in shapes.items():
        weights = torch.cat([layer.conv.weight for layer in group])
        parts = (part.split(shape[0]) for part in _prepare(weights, binarize.scale(weights)))
        for layer, *of_layer in zip(group, *parts, strict=True):
            layer.prepared = tuple(of_layer)
    try:
        yield
    finally:
        for layer in layers:
            layer.prepared = None


class ScaledPReLU(torch.autograd.Function):
    """See `scaled_prelu`. Written out because torch's own derivative of PReLU takes several times longer on a CPU."""

    generate_vmap_rule = True

    @staticmethod
    def forward(count: Tensor, beta: Tensor, slope: Tensor, missing: Tensor | None) -> Tensor:
        return F.prelu(count, slope).mul_(beta.view(1, -1, 1, 1))

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs[:3])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        count, beta, slope, missing = ctx.saved_tensors
        if missing is not None and torch.is_grad_enabled():  # for a second derivative; its value is 0
            count = count + missing.view(1, -1, 1, 1)
        positive, below = _positive(grad, count), (beta * slope).view(1, -1, 1, 1)
        d_count = (grad * below).addcmul_(positive, beta.view(1, -1, 1, 1) - below)
        if not any(ctx.needs_input_grad[1:]):
            return d_count, None, None, None
        above = (positive * count).sum((0, 2, 3))
        below = (grad * count).sum((0, 2, 3)) - above
        d_missing = d_count.sum((0, 2, 3)) if ctx.needs_input_grad[3] else None
        return d_count, above + slope * below, beta * below, d_missing

    @staticmethod
    def jvp(ctx, d_count: Tensor, d_beta: Tensor | None, d_slope: Tensor | None, d_missing: Tensor | None) -> Tensor:
        count, beta, slope = (t.view(1, -1, 1, 1) if t.dim() == 1 else t for t in ctx.saved_tensors[:3])
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
    return ScaledPReLU.apply(count, beta, slope, None if bias is None else bias - bias.detach())


# -- shared entries ---------------------------------------------------------------------------------------------------


class Begin:
    """Here begins a `Shortcut`."""


class Chain(nn.Sequential):
    """Layers one after the other, `entry` of them alike for every chain of the same `key`: without weights and without state."""

    steps: list[Callable[..., Any]]

    def plan(self) -> None:
        layers, self.steps = list(self), []
        while layers:
            layer = layers.pop(0)
            if type(layer) is Shortcut:
                layers = [*layer, Shortcut.join, *layers]
                self.steps += [Begin] if self.steps else []  # the first one begins with the chain
                continue
            if _is_signed(layer) and layers and type(layers[0]) is PReLU:
                self.steps += [Sign(-layer.pad_value if layer.padding else 0.0), Signed(layer, layers.pop(0))]
            else:
                self.steps.append(layer)
        keys = [_key(step) for step in self.steps]
        self.entry = (keys + [None]).index(None)
        self.key = tuple(keys[: self.entry])

    def enter(self, x: Tensor) -> Tensor:
        for step in self.steps[: self.entry]:
            x = step(x)
        return x

    def leave(self, x: Tensor, begin: Tensor) -> Tensor:
        """The rest of the chain; `begin` is what entered it."""
        for step in self.steps[self.entry :]:
            if step is Begin:
                begin = x
            else:
                x = step(x, begin) if step is Shortcut.join else step(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.enter(x), x)


def _is_signed(layer: nn.Module) -> bool:
    """Whether it is the 1-bit convolution of the package; where somebody put a method in its place, that one is called."""
    methods = (BinaryConv2d.forward, BinaryConv2d.beta, BinaryConv2d.binary_weight)
    replaced = "forward" in vars(layer) or any(m.__module__ != BinaryConv2d.__module__ for m in methods)
    return type(layer) in (BinaryConv2d, GridBinaryConv2d) and not replaced


_ALIKE = (nn.Identity, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.BatchNorm2d)  # all they do is in their settings


def _key(step) -> object:
    """Equal for two steps that are the same function; None where that cannot be told."""
    if type(step) is Sign:
        return step
    if type(step) not in _ALIKE or any(True for _ in step.parameters()) or any(True for _ in step.buffers()):
        return None
    settings = {name: value for name, value in vars(step).items() if not name.startswith("_") and name != "training"}
    return type(step), repr(sorted(settings.items()))


class FastCell(MixedCell):
    """What operations that leave one node have in common is computed once a node instead of once an edge.

    Where no derivative is asked for, an operation whose share is 0 is not computed: reading a cell is full of those.
    """

    def forward(self, inputs: list[Tensor], mix: Float[Tensor, "*N E M"]) -> list[Tensor]:
        nodes: list = inputs + [0.0] * self.space.nodes
        entered: dict[tuple, Tensor] = {}
        absent = mix == 0 if mix.dim() == 2 and not torch.is_grad_enabled() else torch.zeros(mix.shape[-2:], dtype=torch.bool)
        for (i, j), edge, weights, out_of_mix in zip(
            self.space.edges, self.edges, mix.unbind(-2), absent.tolist(), strict=True
        ):
            for (name, op), weight, without in zip(edge.items(), weights.unbind(-1), out_of_mix, strict=True):
                if name == "none":  # adds nothing, whatever its weight
                    continue
                if without and (i < j - 1 or torch.is_tensor(nodes[j])):  # a node that nothing enters is still zeros of its shape
                    continue
                if type(op) is Chain:
                    if (i, op.key) not in entered:
                        entered[i, op.key] = op.enter(nodes[i])
                    out = op.leave(entered[i, op.key], nodes[i])
                else:
                    out = op(nodes[i])
                out = weight.view(-1, 1, 1, 1) * out
                nodes[j] = nodes[j].add_(out) if torch.is_tensor(nodes[j]) else out
        return nodes[self.space.inputs :]


class FastSupernet(Supernet):
    """A supernet after `accelerate`."""

    def weights(self) -> list[nn.Parameter]:
        return list(self.found)  # a walk through thousands of modules takes as long as many an operation

    def mixed(self, x: Tensor, mixes: dict[str, Tensor]) -> Tensor:
        with prepared(self.signed):
            return super().mixed(x, mixes)
