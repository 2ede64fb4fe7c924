"""The objectives against numbers computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dcpnas_lite.method.objectives import (
    binary_pairs,
    cp_nas_loss,
    dcp_nas_loss,
    kl_gain,
    nas_loss,
    network_reconstruction,
    reconstruction_loss,
)
from dcpnas_lite.network.binarize import BinaryConv2d
from dcpnas_lite.network.supernet import MICRO, Supernet

LOGITS = arrays(np.float64, (3, 4), elements=st.floats(-8, 8))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def log_of(rows: list[list[float]]) -> torch.Tensor:
    """Logits whose softmax is these rows; a different constant is added to each, which must not matter."""
    return torch.tensor(rows, dtype=torch.float64).log() + torch.arange(1.0, len(rows) + 1, dtype=torch.float64)[:, None]


def test_nas_loss_by_hand():
    logits = log_of([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
    labels = -(math.log(0.25) + math.log(0.7)) / 2
    assert nas_loss(logits, torch.tensor([1, 2])).item() == pytest.approx(labels, rel=1e-12)
    p = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], dtype=torch.float64)
    first = 0.2 * math.log(0.5) + 0.3 * math.log(0.25) + 0.5 * math.log(0.25)
    assert nas_loss(logits, p).item() == pytest.approx(-(first + math.log(0.1)) / 2, rel=1e-12)


def test_kl_gain_by_hand():
    child, parent = log_of([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]), log_of([[0.25, 0.5, 0.25], [0.3, 0.3, 0.4]])
    first = 0.25 * math.log(2) + 0.5 * math.log(0.5)
    second = 0.3 * math.log(1 / 3) + 0.3 * math.log(2 / 3) + 0.4 * math.log(7 / 4)
    assert kl_gain(child, parent).item() == pytest.approx((first + second) / 2, rel=1e-12)
    # the Parent's distribution is the weight: exchanged, the number is another
    third = 0.5 * math.log(0.5) + 0.25 * math.log(2)
    fourth = 0.1 * math.log(3) + 0.2 * math.log(1.5) + 0.7 * math.log(4 / 7)
    assert kl_gain(parent, child).item() == pytest.approx((third + fourth) / 2, rel=1e-12)
    assert abs(first + second - third - fourth) > 0.01


@settings(deadline=None)
@given(LOGITS, LOGITS)
def test_gain_is_zero_at_equality_and_negative_elsewhere(child, parent):
    child, parent = torch.from_numpy(child), torch.from_numpy(parent)
    gap = (child.softmax(1) - parent.softmax(1)).abs().sum(1)
    assert kl_gain(parent, parent).item() == 0.0
    assert abs(kl_gain(parent + 3.0, parent).item()) < 1e-12
    # Pinsker: KL ≥ ½ ‖p − p̂‖₁²
    assert kl_gain(child, parent).item() <= -0.5 * gap.square().mean().item() + 1e-9


def test_gain_pulls_the_child_alone_towards_the_parent():
    child, parent = log_of([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]), log_of([[0.2, 0.3, 0.5], [0.3, 0.3, 0.4]])
    child.requires_grad_(), parent.requires_grad_()
    slope, none = torch.autograd.grad(kl_gain(child, parent), (child, parent), allow_unused=True)
    assert none is None
    expected = (parent.softmax(1) - child.softmax(1)).detach() / 2  # ∂G/∂(Child's logits) = (p − p̂)/N
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-12)
    assert kl_gain(child + 0.1 * slope, parent) > kl_gain(child, parent)


def test_minus_gain_is_the_cross_entropy_up_to_the_parents_entropy():
    child, parent = log_of([[0.5, 0.3, 0.2]]), log_of([[0.2, 0.3, 0.5]])
    p = parent.softmax(1)
    entropy = -(p * p.log()).sum(1).mean()
    torch.testing.assert_close(-kl_gain(child, parent), nas_loss(child, p) - entropy)


def test_reconstruction_loss_sums_over_layers():
    pairs = [
        (torch.tensor([[1.0, -3.0]]), torch.tensor([2.0])),  # (1 − 2)² + (−3 + 2)² = 2
        (torch.tensor([[0.0], [0.5]]), torch.tensor([1.0, 2.0])),  # (0 − 1)² + (0.5 − 2)² = 3.25
    ]
    assert reconstruction_loss(pairs).item() == 5.25
    assert reconstruction_loss(iter(pairs)).item() == 5.25


def test_reconstruction_of_a_network_is_that_of_its_pairs():
    child = Supernet(MICRO, channels=2, layers=2, binary=True).double()
    weights = [m.weight for m in child.modules() if isinstance(m, BinaryConv2d)]
    for w in weights:
        w.data.mul_(3)  # some of them beyond the window
    results = [network_reconstruction(child), reconstruction_loss(binary_pairs(child))]
    torch.testing.assert_close(*results, rtol=1e-12, atol=0)
    for got, want in zip(*(torch.autograd.grad(result, weights) for result in results), strict=True):
        assert want.any()
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_binary_pairs_are_all_the_one_bit_convolutions():
    torch.manual_seed(0)
    child, parent = Supernet(MICRO, channels=2, layers=2, binary=True), Supernet(MICRO, channels=2, layers=2)
    pairs = binary_pairs(child)
    # 2 cells × (3 edges × (2 dilated × 2 + 2 separable × 4 convolutions) + 1 preprocessing convolution)
    assert len(pairs) == 2 * (3 * 12 + 1)
    convolutions = [m for m in child.modules() if isinstance(m, BinaryConv2d)]
    assert all(w is m.weight and torch.equal(beta, m.beta()) for (w, beta), m in zip(pairs, convolutions, strict=True))
    assert binary_pairs(parent) == []


def test_weighted_objectives_by_hand():
    gain, distance, reconstruction = torch.tensor(-0.5), torch.tensor(3.0), torch.tensor(20.0)
    assert cp_nas_loss(gain, reconstruction, mu=0.2).item() == pytest.approx(0.5 + 4.0)
    assert dcp_nas_loss(gain, distance, reconstruction, lam=0.1, mu=0.2).item() == pytest.approx(0.5 + 0.3 + 4.0)
    assert dcp_nas_loss(gain, distance, reconstruction, 0.0, 0.2) == cp_nas_loss(gain, reconstruction, 0.2)
