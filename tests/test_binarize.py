"""sign, window, scale and 1-bit convolution against closed forms, integer arithmetic and other derivative modes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from dcpnas_lite.network.binarize import BinaryConv2d, reconstruction_error, scale, sign

DTYPES = (torch.float32, torch.float64)
FINITE = {
    dtype: arrays(
        name, array_shapes(max_dims=3, max_side=4), elements=st.floats(allow_nan=False, allow_infinity=False, width=width)
    )
    for dtype, name, width in ((torch.float32, np.float32, 32), (torch.float64, np.float64, 64))
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    """Two of them beyond the window, one 0, one at each of its ends."""
    w = normal(*shape, seed=seed)
    w.view(-1)[:5] = torch.tensor([0.0, 1.0, -1.0, 1.5, -1.5])
    return w


def binary_conv(c_in: int, c_out: int, kernel: int, seed: int = 0, **options) -> BinaryConv2d:
    conv = BinaryConv2d(c_in, c_out, kernel, **options).double()
    with torch.no_grad():
        conv.weight.copy_(weights(*conv.weight.shape, seed=seed))
    return conv


# -- sign and window --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_sign_of_zero_is_plus_one(dtype):
    assert torch.equal(sign(torch.tensor([0.0, -0.0], dtype=dtype)), torch.ones(2, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sign_of_extreme_values(dtype):
    info = torch.finfo(dtype)
    smallest = torch.nextafter(torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype)).item()
    x = torch.tensor([smallest, info.tiny, info.max, torch.inf], dtype=dtype)
    assert torch.equal(sign(x), torch.ones_like(x))
    assert torch.equal(sign(-x), -torch.ones_like(x))


def test_sign_leaves_its_argument_alone():
    x = torch.tensor([-2.0, 0.0, 3.0])
    sign(x)
    assert x.tolist() == [-2.0, 0.0, 3.0]


def test_sign_does_not_hide_nan():
    assert torch.isnan(sign(torch.tensor([torch.nan, 1.0]))).tolist() == [True, False]


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None)
@given(data=st.data())
def test_sign_and_window_of_all_finite_values(dtype, data):
    x = torch.from_numpy(data.draw(FINITE[dtype])).requires_grad_()
    b = sign(x)
    assert b.dtype == dtype and b.shape == x.shape
    assert torch.equal(b, torch.where(x >= 0, 1.0, -1.0).to(dtype))
    upstream = torch.arange(1, x.numel() + 1, dtype=dtype).view_as(x)
    (gradient,) = torch.autograd.grad(b, x, upstream)
    assert torch.equal(gradient, torch.where((x >= -1) & (x <= 1), upstream, 0.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_window_is_closed_at_both_ends(dtype):
    one, infinity = torch.ones((), dtype=dtype), torch.tensor(torch.inf, dtype=dtype)
    inside, outside = torch.nextafter(one, -infinity), torch.nextafter(one, infinity)
    x = torch.stack([-infinity, -outside, -one, -inside, -0 * one, 0 * one, inside, one, outside, infinity])
    expected = [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    x.requires_grad_()
    assert torch.autograd.grad(sign(x).sum(), x)[0].tolist() == expected
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(sign(forward_ad.make_dual(x, torch.ones_like(x)))).tangent
    assert tangent.tolist() == expected


class _Signs(torch.nn.Module):
    def forward(self, x):
        return sign(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["traced", "traced with a gradient", "exported", "compiled", "eager backend", "vmap"])
def test_sign_recorded_is_the_sign(how):
    """Recorded on one input, called on another: values and, where it has one, the derivative are those of eager mode."""
    first, x = normal(7), torch.tensor([-2.0, -1.0, -0.5, -0.0, 0.5, 1.0, 1.5], dtype=torch.float64)
    torch._dynamo.reset()
    recorded = {
        "traced": lambda: torch.jit.trace(sign, (first,)),
        "traced with a gradient": lambda: torch.jit.trace(sign, (first.clone().requires_grad_(),)),
        "exported": lambda: torch.export.export(_Signs(), (first,)).module(),
        "compiled": lambda: torch.compile(sign, backend="aot_eager"),
        "eager backend": lambda: torch.compile(sign, backend="eager"),
        "vmap": lambda: torch.func.vmap(sign),
    }[how]()
    assert recorded(x).tolist() == [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0]
    leaf = x.clone().requires_grad_()
    assert torch.autograd.grad(recorded(leaf).sum(), leaf)[0].tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]


def test_sign_under_torch_func():
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5], dtype=torch.float64)
    window = (x.abs() <= 1).double()
    assert torch.equal(torch.func.grad(lambda t: sign(t).sum())(x), window)
    assert torch.equal(torch.func.jvp(sign, (x,), (3 * window,))[1], 3 * window)
    assert torch.equal(torch.func.vmap(torch.func.grad(sign))(x), window)
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        assert torch.equal(jacobian(sign)(x), window.diag())
    for outer, inner in itertools.product((torch.func.jacrev, torch.func.jacfwd), repeat=2):
        assert torch.equal(outer(inner(lambda t: sign(t).square().sum()))(x), 2 * window.diag())


# -- scale and reconstruction error -----------------------------------------------------------------------------------


def test_reconstruction_error_by_hand():
    w = torch.tensor([[1.0, -3.0], [0.0, 2.0]])  # scales 2 and 1
    assert scale(w).tolist() == [2.0, 1.0]
    # channel 0: (1 − 2)² + (−3 + 2)²; channel 1: (0 − 1)² + (2 − 1)², with sign(0) = +1
    assert reconstruction_error(w, scale(w)).item() == 4.0
    assert reconstruction_error(w, torch.tensor([1.0, 0.5])).item() == 4.0 + 0.25 + 2.25


@settings(deadline=None)
@given(
    arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)), elements=st.floats(-5, 5)),
    st.integers(0, 2**32 - 1),
)
def test_mean_absolute_weight_minimises_reconstruction_error(w, seed):
    w = torch.from_numpy(w)
    beta = scale(w).requires_grad_()
    error = reconstruction_error(w, beta)
    (slope,) = torch.autograd.grad(error, beta)
    assert slope.abs().max() <= 1e-12 * (1 + w.abs().sum())
    step = normal(len(beta), seed=seed)
    worse = reconstruction_error(w, beta + step) - error
    assert worse.item() == pytest.approx(w[0].numel() * step.square().sum().item(), rel=1e-8, abs=1e-10)  # > 0


def test_reconstruction_error_refuses_a_beta_of_another_shape():
    with pytest.raises(ValueError, match=r"beta: expected shape \(3,\).*got \(1,\)"):
        reconstruction_error(torch.ones(3, 2), torch.ones(1))  # would broadcast without a word


def test_reconstruction_error_gradient_against_the_closed_form():
    """∂L_R/∂w = 2 (w − β sign w)(1 − β 1_{|w| ≤ 1}), and −2 Σ (w − β sign w) sign w for β."""
    w = weights(3, 2, 3, 3).requires_grad_()
    beta = torch.tensor([0.3, 1.7, 0.9], dtype=torch.float64, requires_grad=True)
    dw, dbeta = torch.autograd.grad(reconstruction_error(w, beta), (w, beta))
    b, scaled = sign(w.detach()), beta.detach().view(-1, 1, 1, 1)
    rest = w.detach() - scaled * b
    torch.testing.assert_close(dw, 2 * rest * (1 - scaled * (w.detach().abs() <= 1)), rtol=0, atol=1e-12)
    torch.testing.assert_close(dbeta, -2 * (rest * b).flatten(1).sum(1), rtol=0, atol=1e-12)


# -- the 1-bit convolution --------------------------------------------------------------------------------------------


def integer_convolution(x, w, stride, padding, dilation, groups, pad_value) -> np.ndarray:
    """Σ of b_x b_w as XNOR and bit count compute it: 2 · (number of equal bits) − (number of bits), in plain loops."""
    x, w = x.detach().numpy() >= 0, w.detach().numpy() >= 0  # bits
    n, c_in, height, width = x.shape
    c_out, per_group, kernel, _ = w.shape
    padded = np.full((n, c_in, height + 2 * padding, width + 2 * padding), pad_value > 0)
    padded[:, :, padding : padding + height, padding : padding + width] = x
    reach = dilation * (kernel - 1) + 1
    rows, columns = ((size + 2 * padding - reach) // stride + 1 for size in (height, width))
    out = np.zeros((n, c_out, rows, columns), dtype=np.int64)
    for image, o, i, j in itertools.product(range(n), range(c_out), range(rows), range(columns)):
        first = o // (c_out // groups) * per_group
        window = padded[image, first : first + per_group, i * stride :: dilation, j * stride :: dilation][:, :kernel, :kernel]
        out[image, o, i, j] = 2 * np.count_nonzero(window == w[o]) - w[o].size
    return out


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.sampled_from((1, 2, 3)),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from((1, 2, 4)),
    pad_value=st.sampled_from((-1.0, 1.0)),
    learned=st.booleans(),
    size=st.tuples(st.integers(5, 7), st.integers(5, 7)),
    seed=st.integers(0, 99),
)
def test_convolution_equals_xnor_and_bit_count(kernel, stride, padding, dilation, groups, pad_value, learned, size, seed):
    geometry = dict(stride=stride, padding=padding, dilation=dilation, groups=groups, pad_value=pad_value)
    conv = binary_conv(4, 8, kernel, seed, learned_scale=learned, **geometry)
    if learned:
        with torch.no_grad():
            conv.learned_beta.copy_(normal(8, seed=seed))
    x = normal(2, 4, *size, seed=seed + 100)
    x[0, :, 0, 0] = 0.0
    count = torch.from_numpy(integer_convolution(x, conv.weight, **geometry))
    torch.testing.assert_close(conv(x), count * conv.beta().view(1, -1, 1, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pad_value", [0, 0.0, 2, -0.5, None])
def test_a_third_symbol_at_the_border_is_refused(pad_value):
    with pytest.raises(ValueError, match="pad_value: expected -1 or \\+1"):
        BinaryConv2d(1, 1, 3, padding=1, pad_value=pad_value)


def test_border_is_minus_one_unless_told_otherwise():
    x = torch.zeros(1, 1, 1, 1)  # binarized to +1; with a 3 × 3 window there are 8 border pixels
    for options, expected in (({}, 1 - 8), ({"pad_value": 1.0}, 9)):
        conv = BinaryConv2d(1, 1, 3, padding=1, **options)
        torch.nn.init.constant_(conv.weight, 1.0)
        assert conv(x).item() == expected


def test_convolution_sees_nothing_but_plus_and_minus_one(monkeypatch):
    seen = []
    original = torch.nn.functional.conv2d

    def spy(x, w, *rest):
        seen.extend((x, w))
        return original(x, w, *rest)

    monkeypatch.setattr(torch.nn.functional, "conv2d", spy)
    binary_conv(3, 5, 3, padding=1)(torch.relu(normal(2, 3, 6, 6)))  # many exact zeros
    assert len(seen) == 2
    for tensor in seen:
        assert set(tensor.unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("groups", [1, 2])
def test_weight_gradient_equals_the_closed_form(groups):
    """∂L/∂w_i = (Σ_j g_j sign w_j) ∂|w_i|/∂w_i / n + β g_i 1_{|w_i| ≤ 1}, with g = ∂L/∂(β sign w) summed by hand."""
    conv = binary_conv(4, 6, 3, padding=1, stride=2, groups=groups)
    x, upstream = normal(2, 4, 6, 6, seed=1), normal(2, 6, 3, 3, seed=2)
    (gradient,) = torch.autograd.grad(conv(x), conv.weight, upstream)

    padded = torch.full((2, 4, 8, 8), -1.0, dtype=torch.float64)
    padded[:, :, 1:7, 1:7] = torch.where(x >= 0, 1.0, -1.0)
    g = torch.zeros_like(conv.weight)
    for o, c, i, j in itertools.product(range(6), range(4 // groups), range(3), range(3)):
        channel = o // (6 // groups) * (4 // groups) + c
        g[o, c, i, j] = (upstream[:, o] * padded[:, channel, i : i + 5 : 2, j : j + 5 : 2]).sum()
    w = conv.weight.detach()
    b, n = torch.where(w >= 0, 1.0, -1.0), w[0].numel()
    beta = w.abs().flatten(1).sum(1).view(-1, 1, 1, 1) / n
    expected = (g * b).flatten(1).sum(1).view(-1, 1, 1, 1) * w.sign() / n + beta * g * (w.abs() <= 1)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_input_gradient_is_the_window_of_the_real_convolution():
    conv = binary_conv(3, 5, 3, padding=1)
    x = (2 * normal(2, 3, 5, 5, seed=1)).requires_grad_()
    upstream = normal(2, 5, 5, 5, seed=2)
    (gradient,) = torch.autograd.grad(conv(x), x, upstream)
    effective = (conv.beta().view(-1, 1, 1, 1) * conv.binary_weight()).detach()
    full = torch.nn.grad.conv2d_input(x.shape, effective, upstream, padding=1)
    torch.testing.assert_close(gradient, full * (x.detach().abs() <= 1), rtol=0, atol=1e-12)
    assert (gradient == 0).any() and (gradient != 0).any()


def test_learned_scale_is_a_parameter_of_its_own():
    conv = binary_conv(3, 4, 3, learned_scale=True)
    x, upstream = normal(2, 3, 5, 5, seed=1), normal(2, 4, 3, 3, seed=2)
    fresh = BinaryConv2d(3, 4, 3, learned_scale=True)
    torch.testing.assert_close(fresh.beta(), scale(fresh.weight))
    with torch.no_grad():
        conv.learned_beta.copy_(torch.tensor([0.5, -2.0, 1.0, -0.25]))
    assert conv.beta().tolist() == [0.5, 2.0, 1.0, 0.25]  # never negative
    count = torch.nn.functional.conv2d(sign(x), sign(conv.weight.detach()))
    gradient, slope = torch.autograd.grad(conv(x), (conv.weight, conv.learned_beta), upstream)
    torch.testing.assert_close(slope, (upstream * count).sum((0, 2, 3)) * conv.learned_beta.detach().sign())
    g = torch.nn.grad.conv2d_weight(sign(x), conv.weight.shape, upstream)
    window = (conv.weight.detach().abs() <= 1) * conv.beta().detach().view(-1, 1, 1, 1)
    torch.testing.assert_close(gradient, g * window)  # nothing flows through mean |w| any more


def test_default_scale_follows_the_weights():
    conv = binary_conv(2, 3, 3)
    assert [name for name, _ in conv.named_parameters()] == ["weight"]
    x = normal(1, 2, 4, 4)
    before = conv(x)
    with torch.no_grad():
        conv.weight.mul_(3)
    torch.testing.assert_close(conv(x), 3 * before)


# -- other derivative modes -------------------------------------------------------------------------------------------


def test_forward_mode_agrees_with_reverse_mode():
    conv = binary_conv(3, 4, 3, padding=1)
    x, w = (1.5 * normal(2, 3, 4, 4, seed=1)).requires_grad_(), conv.weight
    tx, tw, upstream = normal(*x.shape, seed=2), normal(*w.shape, seed=3), normal(2, 4, 4, 4, seed=4)
    gx, gw = torch.autograd.grad(conv(x), (x, w), upstream)
    with forward_ad.dual_level():
        dual = {"weight": forward_ad.make_dual(w, tw)}
        out = torch.func.functional_call(conv, dual, forward_ad.make_dual(x, tx))
        tangent = forward_ad.unpack_dual(out).tangent
    forward, reverse = (tangent * upstream).sum(), (gx * tx).sum() + (gw * tw).sum()
    assert abs(reverse) > 1
    torch.testing.assert_close(forward, reverse, rtol=1e-12, atol=1e-12)


def test_double_backward_through_sign():
    """d/dx (s · window(x) · sign(x))² with the window as derivative of sign: 2 s² window² at second order, by hand."""
    x = torch.tensor([-1.5, -1.0, -0.3, 0.0, 0.8, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    s = normal(7)
    (first,) = torch.autograd.grad((s * sign(x)).square().sum(), x, create_graph=True)  # 2 s² sign(x) window(x)
    window = (x.detach().abs() <= 1).double()
    torch.testing.assert_close(first.detach(), 2 * s**2 * sign(x.detach()) * window)
    v = normal(7, seed=1)
    (second,) = torch.autograd.grad(first, x, v)
    torch.testing.assert_close(second, 2 * s**2 * window * v)


def test_double_backward_of_the_convolution_agrees_with_forward_over_reverse():
    conv = binary_conv(2, 3, 3, padding=1)
    x, w = normal(2, 2, 4, 4, seed=1), conv.weight
    v = normal(*w.shape, seed=2)

    def gradient(weight):
        loss = torch.func.functional_call(conv, {"weight": weight}, x).pow(3).sum()
        return torch.autograd.grad(loss, weight, create_graph=True)[0]

    (reverse,) = torch.autograd.grad(gradient(w), w, v)
    with forward_ad.dual_level():
        forward = forward_ad.unpack_dual(gradient(forward_ad.make_dual(w, v))).tangent
    assert reverse.abs().max() > 1
    torch.testing.assert_close(forward, reverse, rtol=1e-10, atol=1e-10)
