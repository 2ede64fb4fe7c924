"""The eight operations and the registry: shapes, gradients, what the 1-bit ones multiply, and one of the reader's own."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dcpnas_lite.data import digits
from dcpnas_lite.evaluation.training import TrainConfig, train
from dcpnas_lite.method.backtracking import weight_norms
from dcpnas_lite.network.binarize import BinaryConv2d
from dcpnas_lite.network.genotype import Genotype
from dcpnas_lite.network.operations import (
    CONVOLUTIONS,
    OPERATIONS,
    REGISTRY,
    EverySecond,
    FactorizedReduce,
    convolution,
    operation,
    register,
)
from dcpnas_lite.network.supernet import MICRO, PAPER, Space, Supernet
from dcpnas_lite.report import plots

EVERY = list(itertools.product(OPERATIONS, (1, 2), (False, True, "shortcut")))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_source_has_eight_operations_four_of_them_with_weights():
    assert len(OPERATIONS) == len(set(OPERATIONS)) == 8
    assert CONVOLUTIONS == ("dil_conv_3x3", "dil_conv_5x5", "sep_conv_3x3", "sep_conv_5x5")


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("name, stride, binary", EVERY)
def test_shape_and_gradients(name, stride, binary, affine):
    op = operation(name, 4, stride, binary, affine).double()
    x = images(3, 4, 8, 6).requires_grad_()
    out = op(x)
    assert out.shape == (3, 4, 8 // stride, 6 // stride)
    parameters = dict(op.named_parameters())
    assert bool([p for p in parameters.values() if p.dim() == 4]) == (
        name in CONVOLUTIONS or (name == "skip_connect" and stride == 2)
    )
    target = images(*out.shape, seed=1)  # BatchNorm makes the plain sum of the output constant
    gradients = torch.autograd.grad((out * target).sum(), [x, *parameters.values()])
    for which, gradient in zip(("the input", *parameters), gradients, strict=True):
        assert torch.isfinite(gradient).all(), which
        assert gradient.any() or name == "none", f"no gradient reaches {which}"
        if gradient.dim() == 4 and which != "the input":
            assert gradient.flatten(1).any(1).all(), f"an output channel of {which} has no gradient"


@pytest.mark.parametrize("binary", [False, True])
def test_none_is_zero_and_skip_is_the_identity(binary):
    x = images(2, 4, 6, 6)
    for stride in (1, 2):
        assert not operation("none", 4, stride, binary)(x).any()
    assert torch.equal(operation("skip_connect", 4, 1, binary)(x), x)
    assert not list(operation("skip_connect", 4, 1, binary).parameters())  # no hidden shortcut either


@pytest.mark.parametrize("stride", [1, 2])
def test_pooling_against_loops(stride):
    x = images(2, 3, 6, 4)
    for name, reduce in (("max_pool_3x3", torch.amax), ("avg_pool_3x3", torch.mean)):
        raw = torch.empty(2, 3, 6 // stride, 4 // stride, dtype=x.dtype)
        for i, j in itertools.product(range(raw.shape[2]), range(raw.shape[3])):
            top, left = stride * i - 1, stride * j - 1
            window = x[:, :, max(top, 0) : top + 3, max(left, 0) : left + 3]  # the border counts for nothing
            raw[:, :, i, j] = reduce(window, (2, 3))
        expected = F.batch_norm(raw, None, None, training=True)
        torch.testing.assert_close(operation(name, 3, stride, True, affine=False)(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_real_convolutions_against_the_layers_of_darts(name, stride):
    """ReLU → depthwise → pointwise → BatchNorm; the separable ones twice, the second time with stride 1."""
    op = operation(name, 4, stride, False, affine=False).double()
    weights = [m.weight for m in op.modules() if isinstance(m, nn.Conv2d)]
    kernel, dilation = int(name[-1]), 2 if name.startswith("dil") else 1
    assert len(weights) == (2 if dilation == 2 else 4)
    x = images(2, 4, 8, 8)
    expected = x
    for repeat, (depthwise, pointwise) in enumerate(zip(weights[::2], weights[1::2], strict=True)):
        assert depthwise.shape == (4, 1, kernel, kernel) and pointwise.shape == (4, 4, 1, 1)
        steps = (1 if repeat else stride, dilation * (kernel // 2), dilation, 4)
        expected = F.conv2d(F.conv2d(expected.relu(), depthwise, None, *steps), pointwise)
        expected = F.batch_norm(expected, None, None, training=True)
    torch.testing.assert_close(op(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_binary_convolutions_against_the_layers_of_the_docstring(name, stride):
    """BatchNorm → sign → border of −1 → ±1 convolution → β → PReLU, for the depthwise and for the pointwise one."""
    op = operation(name, 4, stride, True, affine=False).double()
    weights = [m.weight.detach() for m in op.modules() if isinstance(m, BinaryConv2d)]
    dilation = 2 if name.startswith("dil") else 1
    assert len(weights) == (2 if dilation == 2 else 4)
    x = images(2, 4, 8, 8)
    expected = x
    for k, w in enumerate(weights):
        b = torch.where(F.batch_norm(expected, None, None, training=True) >= 0, 1.0, -1.0).to(x.dtype)
        rate, groups = (1, 1) if k % 2 else (dilation, 4)
        b = F.pad(b, (rate * (w.shape[-1] // 2),) * 4, value=-1.0)
        b = F.conv2d(b, torch.where(w >= 0, 1.0, -1.0).to(x.dtype), None, 1 if k else stride, 0, rate, groups)
        expected = F.leaky_relu(b * w.abs().mean((1, 2, 3)).view(1, -1, 1, 1), 0.25)  # PReLU's starting slope
    torch.testing.assert_close(op(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("c_in, c_out, stride", [(6, 6, 1), (6, 6, 2), (6, 2, 1), (8, 4, 2), (2, 6, 1), (2, 4, 2)])
def test_a_shortcut_adds_the_input(c_in, c_out, stride):
    """x + BatchNorm(PReLU(1-bit convolution(BatchNorm(x)))); x averaged over pixels and groups of channels, or repeated."""
    block, = convolution(c_in, c_out, 1, "shortcut", False, stride)
    block.double()
    x = images(3, c_in, 7, 5)
    layers = convolution(c_in, c_out, 1, True, False, stride)
    nn.Sequential(*layers).double().load_state_dict({k: v for k, v in block.state_dict().items()})
    shortcut = torch.stack([
        torch.stack([x[:, c::c_out].mean(1) if c_in >= c_out else x[:, c % c_in] for c in range(c_out)], 1)[
            :, :, stride * i : stride * i + stride, stride * j : stride * j + stride].mean((2, 3))
        for i in range(-(-7 // stride)) for j in range(-(-5 // stride))], 2).unflatten(2, (-(-7 // stride), -1))  # fmt: skip
    want = shortcut + F.batch_norm(nn.Sequential(*layers)(x), None, None, training=True)
    torch.testing.assert_close(block(x), want, rtol=0, atol=1e-12)
    assert (shortcut != 0).all()


def test_without_a_multiple_there_is_no_shortcut():
    assert len(convolution(6, 4, 1, "shortcut", False)) == 3 == len(convolution(6, 4, 1, "plain", False))


@pytest.mark.parametrize("name, stride", [(name, s) for name, s, binary in EVERY if binary is True])
def test_binary_operations_multiply_only_plus_and_minus_one(name, stride, monkeypatch):
    factors, original = [], F.conv2d

    def spy(x, w, *rest, **options):
        factors.append((x, w))
        return original(x, w, *rest, **options)

    monkeypatch.setattr(F, "conv2d", spy)
    x = images(2, 4, 7, 7) if name.startswith("dil") else images(2, 4, 8, 8)
    x[:, :, 1:5] = 0.0
    op = operation(name, 4, stride, True).double()
    op(x)
    assert not [m for m in op.modules() if isinstance(m, nn.Conv2d)]
    assert len(factors) == sum(isinstance(m, BinaryConv2d) for m in op.modules())
    for tensor in itertools.chain(*factors):
        assert (tensor.abs() == 1).all()


def test_factorized_reduce_sees_every_second_pixel_of_two_grids():
    reduce = FactorizedReduce(3, 4, False, affine=False).double()
    x = images(2, 3, 6, 6)
    even, odd = (m.weight for m in reduce.modules() if isinstance(m, nn.Conv2d))
    halves = [F.conv2d(x.relu()[:, :, k::2, k::2], w) for k, w in enumerate((even, odd))]
    expected = torch.cat([F.batch_norm(half, None, None, training=True) for half in halves], 1)
    torch.testing.assert_close(reduce(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [(5, 7), (6, 5), (3, 8), (1, 1), (1, 4)])
@pytest.mark.parametrize("binary", [False, True])
def test_factorized_reduce_takes_the_last_row_and_column_of_odd_sizes_twice(size, binary):
    reduce = FactorizedReduce(3, 4, binary, affine=False).double()
    x = images(2, 3, *size)
    whole = F.pad(x, (0, size[1] % 2, 0, size[0] % 2), mode="replicate")
    out = reduce(x)
    assert out.shape == (2, 4, (size[0] + 1) // 2, (size[1] + 1) // 2)
    torch.testing.assert_close(out, reduce(whole), rtol=0, atol=1e-12)
    assert size == (1, 1) or not torch.allclose(reduce(F.pad(x, (0, size[1] % 2, 0, size[0] % 2))), out)


def test_derivatives_of_factorized_reduce_at_odd_sizes():
    reduce = FactorizedReduce(2, 4, False, affine=False).double()
    reduce.even[0] = reduce.odd[0] = nn.Softplus()  # finite differences cannot step over the kink of a ReLU
    x = images(2, 2, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(reduce, x, check_forward_ad=True) and torch.autograd.gradgradcheck(reduce, x)


@pytest.mark.parametrize("size", [(5, 7), (4, 3), (1, 1), (2, 1), (17, 9)])
@pytest.mark.parametrize("name, stride, binary", EVERY)
def test_sizes_are_halved_up_to_the_next_integer(name, stride, binary, size):
    for affine in (False, True):
        out = operation(name, 4, stride, binary, affine)(images(3, 4, *size).float())
        assert out.shape == (3, 4, -(-size[0] // stride), -(-size[1] // stride)) and out.isfinite().all()


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_pointwise_convolutions_of_stride_2_are_left_to_torch_from_8_channels_on(binary, affine):
    """With fewer input channels, channels last, torch's own corrupts its memory."""
    for channels, stride in ((6, 1), (8, 2)):
        modules = list(operation("skip_connect", channels, 2, binary, affine).modules())
        convolutions = [m for m in modules if isinstance(m, nn.Conv2d | BinaryConv2d)]
        assert len(convolutions) == 2 and all(m.stride in (stride, (stride, stride)) for m in convolutions)
        assert sum(isinstance(m, EverySecond) for m in modules) == (2 if stride == 1 else 0)


def test_supernet_form_has_no_batchnorm_state_and_discrete_form_has():
    for affine in (False, True):
        norms = [m for m in operation("sep_conv_3x3", 4, 1, True, affine).modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(norms) == 4
        assert all(m.affine == affine and m.track_running_stats == affine for m in norms)


@pytest.mark.parametrize("arguments, message", [
    (("skip_connect", 4, 1, "bireal"), r"^binary: expected False, True, plain or shortcut, got 'bireal'$"),
    (("conv_7x7", 4, 1, False), "operation: expected one of none, .*got 'conv_7x7'"),
    (("none", 4, 3, False), "stride: expected 1 or 2, got 3"),
    (("skip_connect", 3, 2, True), "channels: expected an even number.*got 3"),
])  # fmt: skip
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        operation(*arguments)


# -- the registry -----------------------------------------------------------------------------------------------------


def conv_3x3(channels, stride, binary, affine):
    return nn.Sequential(*convolution(channels, channels, 3, binary, affine, stride))


@pytest.fixture
def registry():
    """What a test registers is forgotten after it."""
    before = dict(REGISTRY)
    yield REGISTRY
    REGISTRY.clear()
    REGISTRY.update(before)


def test_the_spaces_of_the_source_keep_their_eight(registry):
    register("conv_3x3", conv_3x3)
    assert "conv_3x3" in REGISTRY and len(REGISTRY) == 9
    assert MICRO.operations == PAPER.operations == Space("new", 1, 2, ("normal",)).operations == OPERATIONS
    assert OPERATIONS == tuple(REGISTRY)[:8]


@pytest.mark.parametrize("binary", [False, True])
def test_one_registration_is_enough(registry, binary):
    """For the supernet, R(w_m), a cell and its JSON, training and plots."""
    register("conv_3x3", conv_3x3, colour="#123456")
    register("mean", lambda channels, stride, *_: nn.AvgPool2d(stride, ceil_mode=True), size=0.25)
    space = Space("mine", 1, 2, ("normal", "reduce"), ("mean", "none", "conv_3x3"))
    net = Supernet(space, channels=4, layers=2, binary=binary)
    assert net(images(2, 1, 7, 8).float()).isfinite().all()
    norms = weight_norms(net, "reduce")
    weights = [edge["conv_3x3"].get_parameter("1.weight").detach() for edge in net.cells[1].edges]
    if binary:
        weights = [w.abs().mean((1, 2, 3), keepdim=True).expand_as(w) for w in weights]
    torch.testing.assert_close(norms, torch.tensor([0.25, 0.0, sum(w.square().sum().item() for w in weights) / 3]))
    cell = Genotype.from_operations(MICRO, ["conv_3x3", "skip_connect", "mean"])
    assert Genotype.from_json(cell.to_json()) == cell
    trained = train(cell, digits(size=8), 1 if binary else 32, TrainConfig(channels=2, layers=1, epochs=1, batch=512))
    assert [m for m in trained.network.modules() if isinstance(m, nn.Conv2d | BinaryConv2d) and m.weight.shape[1:] == (2, 3, 3)]
    arrows = plots.cell(cell).axes[0].patches
    assert {plots.matplotlib.colors.to_hex(a.get_edgecolor()) for a in arrows} >= {"#123456", "#000000", "#666666"}


def test_the_same_name_once_more_replaces_the_first(registry):
    register("mine", conv_3x3)
    register("mine", lambda channels, stride, *_: nn.MaxPool2d(3, stride, 1), size=0.5)
    assert isinstance(operation("mine", 4, 2, False), nn.MaxPool2d) and REGISTRY["mine"].size == 0.5


def test_registering_draws_no_random_numbers(registry):
    state = torch.get_rng_state()
    register("conv_3x3", conv_3x3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("arguments, message", [
    (("skip_connect", conv_3x3), "^name: expected one that is not of the source's 8 operations, got 'skip_connect'$"),
    (("conv 3x3", conv_3x3), "^name: expected an identifier like conv_3x3 that is no attribute of a module, got 'conv 3x3'$"),
    (("forward", conv_3x3), "^name: expected an identifier like conv_3x3 that is no attribute of a module, got 'forward'$"),
    ((3, conv_3x3), "^name: expected an identifier like conv_3x3 that is no attribute of a module, got 3$"),
    (("mine", lambda *_: nn.Identity()), r"^mine: expected \(2, 4, 5, 5\) → \(2, 4, 3, 3\) with stride 2, got \(2, 4, 5, 5\)$"),
    (("mine", lambda c, *_: nn.Conv2d(c, 1, 1)), r"^mine: expected \(2, 4, 5, 5\) → \(2, 4, 5, 5\) with stride 1, got \(2, 1, "),
    (("mine", conv_3x3, -1.0), "^size: expected a finite number of at least 0, got -1.0$"),
])  # fmt: skip
def test_a_bad_registration_is_named_and_leaves_nothing(registry, arguments, message):
    with pytest.raises(ValueError, match=message):
        register(*arguments)
    assert len(REGISTRY) == 8


def test_names_that_are_not_registered_are_refused():
    with pytest.raises(ValueError, match="^operations: expected distinct names of .*'conv_3x3'"):
        Space("mine", 1, 2, ("normal",), ("none", "conv_3x3"))
    with pytest.raises(ValueError, match="^normal, node 1: expected an operation of none, .*, got 'conv_3x3'$"):
        Genotype(1, ((("conv_3x3", 0),),))
