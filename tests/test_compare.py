"""`lab.compare`: the reader's rule beside the source's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from dcpnas_lite.checks import lab
from dcpnas_lite.data import digits
from dcpnas_lite.engine.config import SearchConfig
from dcpnas_lite.method.backtracking import Learned, Refreshed, no_backtracking

TINY = SearchConfig(channels=2, layers=1, batch=8, rounds=1, steps=2, warmup=0, measure_every=1)


@pytest.fixture(scope="module")
def data():
    torch.set_num_threads(1)
    return digits(size=8)


def test_refreshed_follows_the_coupling_and_differs(data):
    result = lab.compare(Refreshed(every=1), TINY, data)
    yours, reference = result.cosines()
    assert len(yours) == len(reference) == len(result.reference.history["measured"]) == 4
    assert (yours > 0.99).all() and (reference < 0.99).all()
    assert result.verdict == "differs from the source"
    text = str(result)
    assert text.startswith("your rule differs from the source") and "wrong" not in text
    assert text.count("Parent") == text.count("Child") == 2 and "0 → 1" in text
    axes = result.plot().axes
    assert len(axes) == 2 and all(axis.get_xlabel() and axis.get_ylabel() for axis in axes)
    np.testing.assert_allclose(axes[0].lines[1].get_ydata(), yours)
    yours *= 0  # a copy
    assert (result.cosines()[0] > 0.99).all()


def test_the_sources_rule_is_recognized_and_starts_afresh(data):
    rule = Learned()
    for _ in range(2):  # the second time, a rule that kept what it learned would differ
        result = lab.compare(rule, TINY, data)
        assert result.verdict == "same as the source"
        np.testing.assert_array_equal(*result.cosines())
    assert rule.psi == {}


def test_config_determines_the_reference(data):
    config = SearchConfig(**{**vars(TINY), "absolute": False, "tau": 0, "backtracking": "none", "eta_psi": 50.0})
    assert lab.compare(Learned(absolute=False, tau=0, eta_psi=50.0), config, data).verdict == "same as the source"
    assert lab.compare(Learned(absolute=False, tau=0, eta_psi=50.0), TINY, data).verdict == "differs from the source"


def careful(step):
    C = step.coupling()
    return step.alpha_next - 0.1 * torch.where(C * step.gradient < 0, C, 0.0)


def masked(step):
    C = step.coupling()
    C[C * step.gradient >= 0] = 0
    return step.alpha_next - 0.1 * C


def in_place(step):
    alpha, C = step.alpha_next, step.coupling()
    C *= C * step.gradient < 0
    alpha -= C.mul_(0.1)
    step.gradient.zero_()
    step.alpha.fill_(7)
    return alpha


class Keeping:
    """Keeps what it is given and what it returns, and changes both at the next step; has a `psi` that is not the source's."""

    def __init__(self):
        self.kept, self.psi = [], torch.ones(3, 8)

    def __call__(self, step):
        for tensor in self.kept:
            tensor.fill_(7)
        out = careful(step)
        self.kept = [out, step.alpha, step.alpha_next, step.gradient, step.norms, step.coupling()]
        return out


def test_in_place_or_not_the_same_numbers(data):
    """α, cosines and all else that is recorded; the cosine is ‖C where it contradicts‖ / ‖C‖."""
    gradients = []

    def watched(step):
        gradients.append(step.gradient)
        return careful(step)

    right = lab.compare(watched, TINY, data).yours
    for rule in (masked, in_place, Keeping()):
        got = lab.compare(rule, TINY, data).yours
        assert torch.equal(got.alphas["normal"], right.alphas["normal"]) and right.history.keys() == got.history.keys()
        for name, values in right.history.items():
            np.testing.assert_array_equal(got.history[name], values, err_msg=f"{name}, {rule}")
    measured = right.history["coupling/normal"], gradients, right.history["coupling_cosine/normal"]
    for C, gradient, cosine in zip(*measured, strict=True):
        assert 0.1 < cosine < 0.999  # neither nothing nor everything is corrected
        assert cosine == pytest.approx(np.linalg.norm(C[C * gradient.numpy() < 0]) / np.linalg.norm(C), abs=1e-4)


def test_no_correction_has_cosine_zero(data):
    yours, _ = lab.compare(no_backtracking, TINY, data).cosines()
    assert (yours == 0).all()


@pytest.mark.parametrize(
    "rule, got",
    [
        (lambda step: step.alpha_next.T, r"\(8, 3\)"),
        (lambda step: step.alpha_next[:1], r"\(1, 8\)"),
        (lambda step: None, "NoneType"),
        (lambda step: step.alpha_next.numpy(), "ndarray"),
    ],
)
def test_wrong_shape_is_named(rule, got, data):
    with pytest.raises(ValueError, match=rf"backtracking: expected a tensor of shape \(3, 8\), got {got}"):
        lab.compare(rule, TINY, data)


def test_other_bad_input(data):
    with pytest.raises(TypeError, match="rule: expected a function of an ArchitectureStep, got str"):
        lab.compare("learned", TINY, data)
    with pytest.raises(ValueError, match="measure_every: expected at least 1, got 0"):
        lab.compare(no_backtracking, SearchConfig(), data)
    with pytest.raises(ValueError, match="warmup: expected less than rounds = 1, got 1: no step of α would be made"):
        lab.compare(no_backtracking, dataclasses.replace(TINY, warmup=1), data)
    with pytest.raises(ValueError, match=r"backtracking: expected a tensor like α \(torch.float32.*got torch.int64"):
        lab.compare(lambda step: step.alpha_next.long(), TINY, data)
    with pytest.raises(FloatingPointError, match="α is not finite"):
        lab.compare(lambda step: step.alpha_next * float("nan"), TINY, data)
