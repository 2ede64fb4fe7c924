"""The fast network against the plain one, of the same parameters: outputs and derivatives of every kind, in double precision.

Sizes are chosen so that no map shrinks to 2 × 2 pixels or fewer in front of a sign: values that BatchNorm makes of so few numbers
are often 0 but for rounding, and then the two may take different sides.
"""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dcpnas_lite.engine.convolutions import Depthwise, GridBinaryConv2d, GridConv2d
from dcpnas_lite.engine.fast import Chain, FastSupernet, Sign, accelerate, scaled_prelu
from dcpnas_lite.method.coupling import one_step_coupling
from dcpnas_lite.method.objectives import nas_loss
from dcpnas_lite.method.selection import perturbation
from dcpnas_lite.method.tangent import fisher_product, hessian_product
from dcpnas_lite.network import binarize
from dcpnas_lite.network.binarize import BinaryConv2d, PReLU
from dcpnas_lite.network.discrete import DiscreteNetwork
from dcpnas_lite.network.genotype import PUBLISHED, Genotype
from dcpnas_lite.network.operations import OPERATIONS, REGISTRY, convolution, register
from dcpnas_lite.network.supernet import MICRO, PAPER, Space, Supernet, constant

# (space, layers, image size, binary): odd sizes too; with 2 or more layers PAPER has normal and reduction cells
NETWORKS = [
    *((MICRO, 3, size, binary) for size in ((16, 16), (13, 17)) for binary in (False, True)),
    *((PAPER, 2, (9, 7), binary) for binary in (False, True)),
    (MICRO, 3, (13, 17), "shortcut"), (PAPER, 2, (9, 7), "shortcut"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def registry():
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(space: Space, layers: int = 2, binary: bool = True, channels: int = 4) -> tuple[Supernet, Supernet]:
    """A plain supernet with an α far from 0 and slopes of both signs, and its fast copy."""
    torch.manual_seed(0)
    plain = Supernet(space, channels, layers, 3, 2, binary=binary).double()
    for k, alpha in enumerate(plain.alphas()):
        alpha.data = normal(*alpha.shape, seed=10 + k)
    for k, prelu in enumerate(m for m in plain.modules() if isinstance(m, PReLU)):
        prelu.weight.data = 0.5 * normal(*prelu.weight.shape, seed=100 + k)
    return plain, accelerate(copy.deepcopy(plain))


def images(size: tuple[int, int], n: int = 3, seed: int = 0) -> torch.Tensor:
    return normal(n, 2, *size, seed=seed)


def equal(got, want, tolerance: float = 1e-12) -> None:
    """Each tensor to `tolerance` of its largest entry, and not all of them zero."""
    got, want = list(got), list(want)
    assert any(w.any() for w in want)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=0, atol=tolerance * max(1, w.abs().max().item()))


# -- supernets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space, layers, size, binary", [*NETWORKS, (PAPER, 3, (13, 16), True)])
def test_outputs_and_gradients(space, layers, size, binary):
    plain, fast = pair(space, layers, binary)
    results = []
    for net in (plain, fast):
        x = images(size).requires_grad_()
        out = net(x)
        results.append([out, *torch.autograd.grad(out, [x, *net.weights(), *net.alphas()], normal(*out.shape, seed=1))])
    equal(results[1], results[0])


@pytest.mark.parametrize("space, layers, size, binary", NETWORKS)
def test_one_copy_of_alpha_per_image(space, layers, size, binary):
    results = []
    for net in pair(space, layers, binary):
        copies = [a.detach() + 0.3 * normal(3, *a.shape, seed=k) for k, a in enumerate(net.alphas())]
        copies = [c.requires_grad_() for c in copies]
        out = net(images(size), copies)
        results.append([out, *torch.autograd.grad(out, copies, normal(*out.shape, seed=1))])
    equal(results[1], results[0])


@pytest.mark.parametrize("space, layers, size, binary", NETWORKS)
def test_forward_mode(space, layers, size, binary):
    """∂out along a direction of all weights and α at once, and the Fisher product, which goes there and back."""
    results = []
    for net in pair(space, layers, binary):
        names = [name for name, _ in net.named_parameters()]
        with forward_ad.dual_level():
            duals = {n: forward_ad.make_dual(p.detach(), normal(*p.shape, seed=k))
                     for k, (n, p) in enumerate(zip(names, net.parameters(), strict=True))}  # fmt: skip
            tangent = forward_ad.unpack_dual(torch.func.functional_call(net, duals, images(size))).tangent
        v = [normal(*a.shape, seed=7 + k) for k, a in enumerate(net.alphas())]
        results.append([tangent, *fisher_product(lambda alphas, net=net: net(images(size), alphas), net.alphas(), v)])
    equal(results[1], results[0])


@pytest.mark.parametrize("space, layers, size, binary", NETWORKS)
def test_second_derivatives(space, layers, size, binary):
    """In α (the Hessian of the exact tangent step), and mixed with the weights (the exact coupling)."""
    y, results = torch.tensor([0, 2, 1]), []
    for net in pair(space, layers, binary):
        v = [normal(*a.shape, seed=7 + k) for k, a in enumerate(net.alphas())]
        hessian = hessian_product(nas_loss(net(images(size)), y), net.alphas(), v)
        coupling = one_step_coupling(
            net, lambda f: nas_loss(f(images(size)), y), lambda f: nas_loss(f(images(size, seed=1)), y),
            net.weights(), net.alphas(), 1e-3,
        )  # fmt: skip
        results.append([*hessian, *coupling])
    equal(results[1], results[0], 1e-10)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("binary", [False, True, "shortcut"])
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "none"])
def test_every_operation_on_its_own(name, binary, stride):
    """In a cell whose edges all have it and `none`; of stride 2 in a reduction cell, at 4 and at 8 input channels."""
    types = ("normal",) if stride == 1 else ("normal", "reduce")
    space, results = Space("one", 1, 2, types, ("none", name)), []
    # Plateaus that a max pooling leaves, averaged, are equal up to rounding: in the next cell rounding would choose the largest.
    layers = 1 if name == "max_pool_3x3" and stride == 1 else 2
    for net in pair(space, layers, binary):
        out = net(images((11, 14)))
        results.append([out, *torch.autograd.grad(out, net.parameters(), normal(*out.shape, seed=1), allow_unused=True)])
        results[-1] = [torch.zeros(1) if t is None else t for t in results[-1]]
    equal(results[1], results[0])


@pytest.mark.parametrize("binary", [False, True])
def test_mixed_precision(binary):
    """In bfloat16 too they are one network: as near to each other as rounding to 8 bits allows, in the loss and its gradient."""
    gradients = []
    for net in pair(MICRO, 2, binary):
        net.float().set_precision("bfloat16")
        out = net(images((16, 16), n=16).float())
        assert out.dtype == torch.float32
        gradients.append([out.flatten(), torch.cat([g.flatten() for g in torch.autograd.grad(out[:, 0].sum(), net.alphas())])])
    for got, want in zip(*reversed(gradients), strict=True):
        assert F.cosine_similarity(got, want, dim=0) > (0.9 if binary else 0.99)


def test_mixes_that_are_no_softmax_and_the_cell_by_perturbation():
    plain, fast = pair(MICRO)
    mixes = {"normal": normal(3, 8)}
    equal([fast.mixed(images((9, 9)), mixes)], [plain.mixed(images((9, 9)), mixes)])
    y = torch.tensor([0, 1, 2, 1, 0, 2])
    assert perturbation(fast, images((9, 9), 6), y) == perturbation(plain, images((9, 9), 6), y)


# -- what stays as it is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("space", [MICRO, PAPER])
def test_parameters_stay_the_same_objects_under_the_same_names(space, binary):
    net = Supernet(space, channels=4, layers=3, binary=binary)
    named, weights, keys = dict(net.named_parameters()), net.weights(), list(net.state_dict())
    values = [p.detach().clone() for p in net.parameters()]
    assert accelerate(net) is net and isinstance(net, Supernet)
    assert {n: id(p) for n, p in net.named_parameters()} == {n: id(p) for n, p in named.items()}
    assert list(map(id, net.weights())) == list(map(id, weights)) and list(net.state_dict()) == keys
    assert all(torch.equal(p, v) for p, v in zip(net.parameters(), values, strict=True))


def test_a_copy_and_a_pickle_have_parameters_of_their_own():
    _, fast = pair(MICRO)
    x = images((9, 9))
    before = fast(x)
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(twin(x), before)
        with torch.no_grad():
            for p in twin.weights():
                p.mul_(-2)
        assert torch.equal(fast(x), before) and not torch.allclose(twin(x), before)


def test_only_a_plain_network_is_accelerated():
    net = accelerate(Supernet(MICRO, 2, 1))
    for other, name in ((net, "FastSupernet"), (nn.Linear(1, 1), "Linear")):
        with pytest.raises(ValueError, match=f"^net: expected a plain Supernet or DiscreteNetwork, got {name}$"):
            accelerate(other)


def test_wrong_images_are_named_by_both():
    for net in pair(MICRO):
        with pytest.raises(ValueError, match=r"^images: expected shape \(N, 2, H, W\), at least one, got \(3, 5\)$"):
            net(torch.zeros(3, 5))


def test_nothing_is_kept_after_an_error():
    _, fast = pair(MICRO)
    with pytest.raises(ValueError):
        fast(torch.zeros(3, 5))
    assert fast.signed and all(layer.prepared is None for layer in fast.signed)


@pytest.mark.parametrize("layers, size", [(2, (9, 9)), (3, (16, 13))])
@pytest.mark.parametrize("binary", [False, True, "shortcut"])
@pytest.mark.parametrize("cell", [PUBLISHED, Genotype.from_operations(MICRO, ["dil_conv_3x3", "dil_conv_5x5", "sep_conv_3x3"])])
def test_a_discrete_network(cell, binary, layers, size):
    torch.manual_seed(0)
    plain = DiscreteNetwork(cell, 4, layers, 3, 2, binary).double()
    fast, results = accelerate(copy.deepcopy(plain)), []
    for net in (plain, fast):
        out = net(images(size))
        gradients = torch.autograd.grad(out, net.parameters(), normal(*out.shape, seed=1))
        results.append([out, *gradients, *net.buffers(), net.eval()(images(size, 1))])
    equal(results[1], results[0])
    assert list(fast.state_dict()) == list(plain.state_dict()) and fast.size() == plain.size()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("make", [lambda: pair(MICRO, 2)[0], lambda: DiscreteNetwork(PUBLISHED, 4, 2, 3, 2).double().eval()])
def test_a_trace_computes_what_it_was_made_from(make, fast):
    net = accelerate(make()) if fast else make()
    traced = torch.jit.trace(net, images((9, 9)), check_trace=False)
    x = images((9, 9), seed=1)
    assert torch.equal(traced(x), net(x)) and not torch.allclose(net(x), net(images((9, 9))))


# -- a change of the plain network is seen, one of the reader's own is taken as it is ---------------------------------


def test_another_1_bit_convolution_changes_the_fast_network(monkeypatch):
    monkeypatch.setattr(BinaryConv2d, "forward", lambda self, x: 0 * F.conv2d(
        x, self.weight, None, self.stride, self.padding, self.dilation, self.groups))  # fmt: skip
    plain, fast = pair(MICRO)
    equal([fast(images((9, 9)))], [plain(images((9, 9)))])
    assert (fast(images((9, 9))) == fast.classifier.bias).all()  # nothing else carries an image


@pytest.mark.parametrize("name, changed", [
    ("scale", lambda weight: weight.square().flatten(1).mean(1).sqrt()),
    ("sign", lambda x: torch.where(x > 0.5, 1.0, -1.0).to(x.dtype) + (x - x.detach())),
])  # fmt: skip
def test_another_scale_or_sign_changes_the_fast_network(name, changed, monkeypatch):
    plain, fast = pair(MICRO)
    before = fast(images((9, 9)))
    monkeypatch.setattr(binarize, name, changed)
    after = fast(images((9, 9)))
    equal([after], [plain(images((9, 9)))])
    assert not torch.allclose(after, before)


class _Doubled(BinaryConv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class _Times(nn.Module):
    """Without parameters, and yet not the same for all of a kind."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


OWN = {
    "conv_3x3": lambda c, stride, *form: nn.Sequential(*convolution(c, c, 3, *form, stride)),
    "learned_scale": lambda c, stride, *form: nn.Sequential(
        nn.BatchNorm2d(c), BinaryConv2d(c, c, 3, stride, 1, learned_scale=True), PReLU(c)),
    "plus_border": lambda c, stride, *form: nn.Sequential(BinaryConv2d(c, c, 5, stride, 4, 2, pad_value=1.0), PReLU(c)),
    "one_slope": lambda c, stride, *form: nn.Sequential(BinaryConv2d(c, c, 3, stride, 1), PReLU()),
    "no_slope": lambda c, stride, *form: nn.Sequential(BinaryConv2d(c, c, 3, stride, 1)),
    "subclass": lambda c, stride, *form: nn.Sequential(_Doubled(c, c, 3, stride, 1), PReLU(c)),
    "kernel_2": lambda c, stride, *form: nn.Sequential(nn.ReLU(), nn.Conv2d(c, c, 2, stride, 1, 2)),
    "dilated": lambda c, stride, *form: nn.Sequential(nn.ReLU(), nn.Conv2d(c, c, 3, stride, 2, 2, padding_mode="reflect")),
    "mean_1": lambda c, stride, *form: nn.Sequential(nn.AvgPool2d(3, stride, 1), nn.ReLU()),
    "mean_2": lambda c, stride, *form: nn.Sequential(nn.AvgPool2d(3, stride, 1, count_include_pad=False), nn.ReLU()),
    "times_2": lambda c, stride, *form: nn.Sequential(_Times(2), nn.AvgPool2d(stride, ceil_mode=True)),
    "times_3": lambda c, stride, *form: nn.Sequential(_Times(3), nn.AvgPool2d(stride, ceil_mode=True)),
    "affine": lambda c, stride, *form: nn.Sequential(nn.BatchNorm2d(c), nn.AvgPool2d(stride, ceil_mode=True)),
    "bare": lambda c, stride, *form: nn.MaxPool2d(3, stride, 1),
}  # fmt: skip


@pytest.mark.parametrize("binary", [False, True])
def test_operations_of_the_readers_own(registry, binary):
    """Whatever cannot be told to be alike is computed on its own, by its own module."""
    for name, build in OWN.items():
        register(name, build)
    plain, fast = pair(Space("own", 1, 2, ("normal", "reduce"), tuple(OWN)), 2, binary)
    with torch.no_grad():
        for k, p in enumerate(p for name, p in plain.named_parameters() if p.dim() == 1 and "alpha" not in name):
            p.copy_(0.5 + 0.2 * normal(*p.shape, seed=k))  # affine parameters and scales, no two edges alike
        fast.load_state_dict(plain.state_dict())
    results = []
    for net in (plain, fast):
        out = net(images((11, 14)))
        results.append([out, *torch.autograd.grad(out, net.parameters(), normal(*out.shape, seed=1)), *net.buffers()])
    equal(results[1], results[0])


def test_what_operations_have_in_common_is_computed_once_a_node():
    _, fast = pair(MICRO, 1)
    calls = []
    for module in fast.cells[0].modules():
        if isinstance(module, nn.MaxPool2d):
            module.register_forward_hook(lambda *_: calls.append("max"))
    fast(images((9, 9)))
    assert len(fast.space.edges) == 3 and calls == ["max"] * 2  # from two nodes
    keys = [[op.key for op in edge.values() if type(op) is Chain] for edge in fast.cells[0].edges]
    assert keys[0] == keys[1] == keys[2] and len(keys[0]) == 6 and len(set(keys[0])) == 3


# -- its parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (6, 5), (5, 8), (3, 1)])
@pytest.mark.parametrize("kernel, stride, groups", [(3, 1, 1), (3, 2, 4), (5, 1, 4), (5, 2, 1)])
@pytest.mark.parametrize("pad_value", [None, -1.0, 1.0])  # None: a real-valued convolution
def test_dilation_by_grids(size, kernel, stride, groups, pad_value):
    geometry = dict(stride=stride, padding=kernel - 1, dilation=2, groups=groups)
    make = nn.Conv2d if pad_value is None else functools.partial(BinaryConv2d, pad_value=pad_value)
    direct = make(4, 4, kernel, **geometry).double()
    net = DiscreteNetwork(Genotype.from_operations(MICRO, ["none"] * 3), 4, 1, 3, 4).double()
    net.preprocess[0][0] = copy.deepcopy(direct)
    grids = accelerate(net).preprocess[0][0]
    assert type(grids) is (GridConv2d if pad_value is None else GridBinaryConv2d)
    results = []
    for conv in (direct, grids):
        x = normal(2, 4, *size).requires_grad_()
        out = conv(x)
        results.append([out, *torch.autograd.grad(out, (x, *conv.parameters()), normal(*out.shape, seed=1))])
    equal(results[1], results[0])


def scaled(count, beta, slope, bias=None):
    """What `scaled_prelu` stands for, of a count that `bias` was added to as a constant."""
    count = count if bias is None else count + (bias - bias.detach()).view(1, -1, 1, 1)
    count = count * beta.view(1, -1, 1, 1)
    return torch.where(count > 0, count, slope.view(1, -1, 1, 1) * count)


def test_shifted_sign_in_every_mode():
    """At 0 of either sign, at and beyond the ends of the window, at nan; by torch.autograd and by torch.func."""
    x = torch.cat([torch.tensor([0.0, -0.0, 1.0, -1.0, 1.1, -1.1, torch.nan], dtype=torch.float64), 2 * normal(20)])
    tangent, upstream, results = normal(27, seed=1), normal(27, seed=2), []
    for function in (lambda t: binarize.sign(t) + 1.0, Sign(1.0)):
        def loss(t, function=function):
            return ((function(t) * t) * upstream).pow(3).sum()
        leaf = x.clone().requires_grad_()
        first, = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
        second, = torch.autograd.grad(first @ tangent, leaf)
        value, forward = torch.func.jvp(function, (x,), (tangent,))
        _, forward_over_reverse = torch.func.jvp(torch.func.grad(loss), (x,), (tangent,))
        assert torch.equal(torch.func.vmap(function)(x).nan_to_num(), value.nan_to_num())
        results.append([value, forward, first, second, forward_over_reverse])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12, equal_nan=True)
    assert results[0][0][-21].isnan() and results[1][0][-21].isnan()


@pytest.mark.parametrize("with_bias", [False, True])
def test_scaled_prelu_in_every_mode(with_bias):
    """Counts with ties at 0, slopes below 0 and above 1; by torch.autograd and by torch.func."""
    count = normal(2, 4, 3, 3).mul(2).round()
    assert (count == 0).any()
    arguments = [count, normal(4, seed=1).abs(), torch.tensor([0.25, -0.5, 1.5, 0.0], dtype=torch.float64)]
    arguments += [normal(4, seed=2)] if with_bias else []
    inputs = tuple(range(len(arguments)))
    tangents = tuple(normal(*t.shape, seed=5 + k) for k, t in enumerate(arguments))
    upstream, results = normal(*count.shape, seed=4), []
    for function in (scaled, scaled_prelu):
        def loss(*t, function=function):
            return (function(*t) * upstream).pow(3).sum()
        def gradient(*t, loss=loss):
            return torch.func.grad(loss, inputs)(*t)
        leaves = [t.clone().requires_grad_() for t in arguments]
        first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        reverse = torch.autograd.grad(sum((g * t).sum() for g, t in zip(first, tangents, strict=True)), leaves)
        value, forward = torch.func.jvp(function, tuple(arguments), tangents)
        _, forward_over_reverse = torch.func.jvp(gradient, tuple(arguments), tangents)
        alone = torch.func.jvp(lambda c, function=function: function(c, *arguments[1:]), (count,), tangents[:1])[1]
        mapped = torch.func.vmap(lambda c, function=function: function(c[None], *arguments[1:])[0])(count)
        assert torch.equal(mapped, value)
        results.append([value, forward, alone, *first, *gradient(*arguments), *reverse, *forward_over_reverse])
    equal(results[1], results[0])


@pytest.mark.parametrize("kernel, size", [(3, (2, 2)), (3, (1, 2)), (5, (4, 4)), (5, (3, 2)), (7, (2, 5))])
@pytest.mark.parametrize("bias", [None, normal(4, seed=3)], ids=["no bias", "bias"])
def test_a_kernel_larger_than_the_map_in_every_mode(kernel, size, bias):
    """By torch.autograd and by torch.func, also by one of the two arguments alone."""
    arguments = normal(3, 4, *size), normal(4, 1, kernel, kernel, seed=1)
    tangents = tuple(normal(*t.shape, seed=5 + k) for k, t in enumerate(arguments))
    upstream, results, how = normal(3, 4, *size, seed=4), [], (1, kernel // 2, 1, 4)
    for convolve in (lambda x, w: F.conv2d(x, w, bias, *how), lambda x, w: Depthwise.apply(x, w, bias)):
        def loss(x, w, convolve=convolve):
            return (convolve(x, w) * upstream).pow(3).sum()
        def gradient(x, w, loss=loss):
            return torch.func.grad(loss, (0, 1))(x, w)
        leaves = [t.clone().requires_grad_() for t in arguments]
        first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        second = torch.autograd.grad(sum((g * t).sum() for g, t in zip(first, tangents, strict=True)), leaves)
        value, forward = torch.func.jvp(convolve, arguments, tangents)
        _, forward_over_reverse = torch.func.jvp(gradient, arguments, tangents)
        alone = [torch.func.jvp(lambda x, c=convolve: c(x, arguments[1]), arguments[:1], tangents[:1])[1],
                 torch.func.jvp(lambda w, c=convolve: c(arguments[0], w), arguments[1:], tangents[1:])[1]]
        alone += torch.autograd.grad(loss(leaves[0], arguments[1]), leaves[:1])
        alone += torch.autograd.grad(loss(arguments[0], leaves[1]), leaves[1:])
        results.append([value, forward, *first, *second, *forward_over_reverse, *alone])
    equal(results[1], results[0])


@pytest.mark.parametrize("binary", [False, True])
def test_small_maps_have_derivatives_of_their_own(binary, monkeypatch):
    """Steps of the weights on maps of 16, 8 and 4 pixels a side go through `Depthwise`, kernel by kernel; those of α do not."""
    seen, apply = [], Depthwise.apply
    monkeypatch.setattr(Depthwise, "apply", lambda x, w, b: seen.append((w.shape[2], *x.shape[2:])) or apply(x, w, b))
    net = accelerate(Supernet(MICRO, 2, 3, binary=binary))
    x = normal(4, 1, 16, 16).float()
    net(x)
    edges = len(MICRO.edges)  # each has a dil_conv on four grids, in the second layer and the third, and two layers of sep_conv
    assert {shape: seen.count(shape) for shape in seen} == {(3, 2, 2): edges, (5, 2, 2): edges, (5, 4, 4): 3 * edges}
    seen.clear()
    with constant(net.weights()):
        net(x)
    assert not seen


class BatchNorms(TorchDispatchMode):
    """Whether the images, and in the backward pass the derivatives, that reach each BatchNorm are stored channels last."""

    def __init__(self):
        super().__init__()
        self.last: list[bool] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "batch_norm" in str(function):
            stored = [t for t in args if isinstance(t, torch.Tensor) and t.dim() == 4]
            self.last += [t.is_contiguous(memory_format=torch.channels_last) for t in stored]
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("binary", [False, True, "shortcut"])
@pytest.mark.parametrize("discrete", [False, True])
def test_images_and_derivatives_stay_channels_last(discrete, binary):
    """Of another layout than its images, derivatives take a BatchNorm several times longer."""
    cell = Genotype.from_operations(MICRO, ["dil_conv_3x3", "avg_pool_3x3", "dil_conv_5x5"])
    net = accelerate((DiscreteNetwork(cell, 4, 3, 3, 2, binary) if discrete else Supernet(MICRO, 4, 3, 3, 2, binary)).double())
    with BatchNorms() as seen:
        net(images((13, 17))).square().sum().backward()
    assert len(seen.last) > sum(type(m) is nn.BatchNorm2d for m in net.modules()) and all(seen.last)


def test_fast_is_what_a_search_runs():
    from dcpnas_lite.data import digits
    from dcpnas_lite.engine.config import SearchConfig
    from dcpnas_lite.engine.run import SearchRun

    nets = SearchRun(digits(size=8), SearchConfig(channels=2, layers=1)).networks
    assert {type(net) for net in nets.values()} == {FastSupernet}


@pytest.mark.parametrize(("space", "layers", "size", "binary"), NETWORKS)
def test_shares_of_zero(space, layers, size, binary):
    """An operation that is not computed adds nothing: one an edge, edges without any, nodes without an edge."""
    plain, fast = pair(space, layers, binary)
    x, (edges, operations) = normal(5, 2, *size), next(iter(plain.alphas())).shape
    draw = torch.Generator().manual_seed(3)
    for kept in (1.0, 0.6, 0.0):  # the share of edges that keep their operation
        mixes = {t: torch.zeros(edges, operations, dtype=torch.float64) for t in space.cell_types}
        for mix in mixes.values():
            chosen = torch.randint(operations, (edges,), generator=draw)
            shares = 0.02 + torch.rand(edges, generator=draw, dtype=torch.float64)
            mix[range(edges), chosen] = shares * (torch.rand(edges, generator=draw) < kept)
        with torch.no_grad():
            torch.testing.assert_close(fast.mixed(x, mixes), plain.mixed(x, mixes), rtol=1e-9, atol=1e-10)
        if kept == 1.0 and not binary:  # a share of 0 still has a derivative
            leaves = [mix.requires_grad_() for mix in mixes.values()]
            slopes = [torch.autograd.grad(net.mixed(x, mixes).square().sum(), leaves) for net in (fast, plain)]
            torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-9)
            assert any(slope[mix == 0].abs().max() > 1e-3 for slope, mix in zip(slopes[0], leaves, strict=True))
