"""Backtracking against Eqs. 4.50-4.53 by hand, and the hypergradient of psi against autograd."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from torch import nn

from dcpnas_lite.method.backtracking import (
    ArchitectureStep,
    Learned,
    Refreshed,
    apply,
    backtrack,
    no_backtracking,
    psi_gradient,
    ranking,
    recorded_psi,
    weight_norms,
)
from dcpnas_lite.network.binarize import BinaryConv2d
from dcpnas_lite.network.operations import CONVOLUTIONS, OPERATIONS
from dcpnas_lite.network.supernet import MICRO, PAPER, Supernet

E, M = 3, 8
SHAPES = {"scalar": (1, 1), "operation": (1, M), "edge": (E, 1), "full": (E, M)}
NORMS = torch.tensor([0.0, 1.0, 7.0, 9.0, 0.01, 0.01, 8.0, 6.0])  # ranks 1 4 6 8 2 3 7 5: the convolutions lead
CHOSEN = torch.tensor([False, False, True, True, False, False, True, True])  # rank > 4


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step_at(alpha, alpha_next, gradient, network="parent", cell_type="normal", index=0, norms=NORMS, coupling=None):
    return ArchitectureStep(network, cell_type, index, alpha, alpha_next, gradient, norms, coupling or no_coupling)


def no_coupling():
    raise AssertionError("the coupling is expensive and was not asked for")


# -- 4.50, 4.52, 4.53 by hand -----------------------------------------------------------------------------------------


def test_update_by_hand():
    """4.50: 1 + 0.5 · 2 · 3 = 4 and so on, in the chosen column; 4.52, second branch: α^{t+1} elsewhere."""
    alpha = torch.tensor([[3.0, 1.0], [-2.0, 4.0]])
    alpha_next = torch.tensor([[1.0, 7.0], [5.0, 9.0]])
    psi = torch.tensor([[2.0, 100.0], [-1.0, 100.0]])
    chosen = torch.tensor([True, False])
    assert backtrack(alpha_next, alpha, psi, 0.5, chosen).tolist() == [[4.0, 7.0], [6.0, 9.0]]
    assert backtrack(alpha_next, alpha, torch.tensor(2.0), 0.5, ~chosen).tolist() == [[1.0, 8.0], [5.0, 13.0]]
    assert backtrack(alpha_next, alpha, torch.tensor([[2.0], [0.0]]), 0.5, chosen | True).tolist() == [[4.0, 8.0], [5.0, 9.0]]


def test_ranking_by_hand():
    assert ranking(torch.tensor([0.3, 0.1, 0.2])).tolist() == [3, 1, 2]
    assert ranking(torch.tensor([5.0, 5.0, 1.0])).tolist() == [2, 3, 1]
    assert ranking(NORMS).tolist() == [1, 4, 6, 8, 2, 3, 7, 5]


def test_no_backtracking_is_the_optimizers_step():
    alpha_next = normal(E, M)
    assert no_backtracking(step_at(normal(E, M, seed=1), alpha_next, normal(E, M, seed=2))) is alpha_next


# -- 4.51 -------------------------------------------------------------------------------------------------------------


def loss_of(alpha: torch.Tensor) -> torch.Tensor:
    """A smooth stand-in for L(α) that mixes the entries."""
    return (torch.arange(E * M).view(E, M) * alpha).sin().sum() + alpha.softmax(1)[:, ::2].square().sum() + alpha.sum() ** 2


@pytest.mark.parametrize("name", SHAPES)
def test_hypergradient_against_autograd(name):
    """∂L(α̃^{t+1})/∂ψ̃ through α̃^{t+1} = α^{t+1} + η ψ̃ ⊛ α^t, for every shape of ψ̃, with the ranking rule."""
    alpha, alpha_next = normal(E, M), normal(E, M, seed=1)
    psi = normal(*SHAPES[name], seed=2).requires_grad_()
    whole = torch.where(CHOSEN, alpha_next + 0.1 * psi.expand(E, M) * alpha, alpha_next)
    (expected,) = torch.autograd.grad(loss_of(whole), psi)
    reached = whole.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(reached), reached)
    got = psi_gradient(gradient, alpha * CHOSEN, 0.1, SHAPES[name])
    assert got.shape == SHAPES[name] and expected.any()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_learned_rule_over_three_steps(name, absolute):
    """The rule as the search calls it, against 4.50-4.52 written out with autograd for ∂L/∂ψ̃."""
    rule = Learned(name, absolute, eta=0.1, eta_psi=2.0, psi=0.3, tau=4)
    alpha, psi = normal(E, M), torch.full(SHAPES[name], 0.3, dtype=torch.float64)
    previous, signs = None, set()
    for t in range(3):
        leaf = alpha.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(leaf), leaf)
        alpha_next = alpha - 0.05 * gradient
        if previous is not None:
            psi = psi.clone().requires_grad_()
            through = previous[1] + 0.1 * torch.where(CHOSEN, psi.expand(E, M) * previous[0], 0.0)
            # same value of ψ̃ as the one α̃ was made with: this is 4.51's own derivative
            (slope,) = torch.autograd.grad(loss_of(through), psi)
            psi = (psi - 2.0 * slope).detach()
            signs |= set(psi.sign().flatten().tolist())
            psi = psi.abs() if absolute else psi
        expected = torch.where(CHOSEN, alpha_next + 0.1 * psi * alpha, alpha_next)
        got = rule(step_at(alpha, alpha_next, gradient, index=t))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(rule.psi["parent/normal"], psi, rtol=0, atol=1e-12)
        assert rule.psi["parent/normal"].shape == SHAPES[name]
        assert torch.equal(got[:, ~CHOSEN], alpha_next[:, ~CHOSEN])
        previous, alpha = (alpha, alpha_next), got
    if name == "full":
        assert -1.0 in signs  # so that the absolute value has something to do
        assert (rule.psi["parent/normal"] < 0).any() == (not absolute)


def test_columns_that_were_not_chosen_teach_psi_nothing():
    rule = Learned("full", eta_psi=1.0, psi=0.3)
    alpha, first = normal(E, M), normal(E, M, seed=1)
    reached = rule(step_at(alpha, first, normal(E, M, seed=2)))
    flipped = NORMS.flip(0)
    rule(step_at(reached, normal(E, M, seed=3), normal(E, M, seed=4), index=1, norms=flipped))
    moved = rule.psi["parent/normal"] != 0.3
    assert moved.any(0).tolist() == CHOSEN.tolist()  # those of the first step, whatever is chosen now


def test_inherited_alpha_leaves_psi_alone():
    """The gradient at an α that came from the other network is not taken at the rule's own α̃^{t+1}."""
    rule = Learned("full", psi=0.3)
    rule(step_at(normal(E, M), normal(E, M, seed=1), normal(E, M, seed=2)))
    inherited = normal(E, M, seed=3)
    reached = rule(step_at(inherited, normal(E, M, seed=4), normal(E, M, seed=5), index=1))
    assert torch.equal(rule.psi["parent/normal"], torch.full((E, M), 0.3, dtype=torch.float64))
    expected = torch.where(CHOSEN, normal(E, M, seed=4) + 0.1 * 0.3 * inherited, normal(E, M, seed=4))
    torch.testing.assert_close(reached, expected, rtol=0, atol=1e-15)
    rule(step_at(reached, normal(E, M, seed=6), normal(E, M, seed=7), index=2))
    gradient = psi_gradient(normal(E, M, seed=7), inherited * CHOSEN, 0.1, (E, M))
    torch.testing.assert_close(rule.psi["parent/normal"], (0.3 - gradient).abs(), rtol=0, atol=1e-15)


def test_networks_and_cell_types_have_psi_of_their_own():
    rule, keys = Learned(), [(n, t) for n in ("parent", "child") for t in ("normal", "reduce")]
    reached = {key: rule(step_at(normal(E, M), normal(E, M, seed=1), normal(E, M, seed=2), *key)) for key in keys}
    rule(step_at(reached["child", "reduce"], normal(E, M, seed=3), 100 * normal(E, M, seed=4), "child", "reduce", 1))
    moved = {key: (psi != 0.01).any().item() for key, psi in rule.psi.items()}
    assert moved == {"parent/normal": False, "parent/reduce": False, "child/normal": False, "child/reduce": True}


def test_a_rule_leaves_its_arguments_alone():
    for rule in (Learned(), Refreshed(1), no_backtracking):
        step = step_at(normal(E, M), normal(E, M, seed=1), normal(E, M, seed=2), coupling=lambda *by: normal(E, M, seed=3))
        copies = {f.name: v.clone() for f in dataclasses.fields(step) if isinstance(v := getattr(step, f.name), torch.Tensor)}
        rule(step)
        assert all(torch.equal(getattr(step, name), copy) for name, copy in copies.items())


# -- what a rule is given and what is taken from it -------------------------------------------------------------------


def some_step(**changes) -> ArchitectureStep:
    tensors = normal(E, M), normal(E, M, seed=1), normal(E, M, seed=2)
    measured = normal(E, M, seed=3)
    return dataclasses.replace(step_at(*tensors, coupling=lambda *by: measured), **changes)


def test_a_rule_may_change_what_it_is_given_and_what_it_returned():
    step, fresh, given, returned = some_step(), some_step(), [], []

    def rule(s):
        given.extend([s.alpha, s.gradient, s.norms, s.coupling(), s.coupling()])
        assert all(torch.equal(*pair) for pair in zip(given, (s.alpha, s.gradient, s.norms, *[s.coupling()] * 2), strict=True))
        for tensor in given:
            tensor.zero_()
        returned.append(s.alpha_next.mul_(2))
        return returned[-1]

    out = apply(rule, step)
    returned[0].zero_()
    assert torch.equal(out, 2 * fresh.alpha_next)
    for field in dataclasses.fields(step):
        if isinstance(value := getattr(step, field.name), torch.Tensor):
            assert torch.equal(value, getattr(fresh, field.name)), field.name
    assert torch.equal(step.coupling(), fresh.coupling())
    assert not apply(lambda s: s.alpha.requires_grad_() * 2, step).requires_grad


def test_a_rule_around_learned_may_work_in_place():
    def run(around):
        rule, alpha = Learned(tau=0), normal(E, M)
        for t in range(3):
            alpha = around(rule(step_at(alpha, alpha - 0.05 * normal(E, M, seed=t), normal(E, M, seed=9 + t), index=t)))
        return alpha, rule.psi["parent/normal"]

    for got, expected in zip(run(lambda a: a.mul_(0.9)), run(lambda a: a * 0.9), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "rule, message",
    [
        (lambda s: s.alpha_next.T, r"a tensor of shape \(3, 8\), got \(8, 3\)"),
        (lambda s: s.alpha_next[0], r"a tensor of shape \(3, 8\), got \(8,\)"),
        (lambda s: s.alpha_next.tolist(), r"a tensor of shape \(3, 8\), got list"),
        (lambda s: s.alpha_next.numpy(), r"a tensor of shape \(3, 8\), got ndarray"),
        (lambda s: s.alpha_next.long(), r"a tensor like α \(torch.float64, cpu.*\), got torch.int64, cpu"),
        (lambda s: s.alpha_next.float(), r"a tensor like α \(torch.float64, cpu.*\), got torch.float32, cpu"),
        (lambda s: s.alpha_next > 0, "a tensor like α .*, got torch.bool"),
        (lambda s: s.alpha_next * 1j, "a tensor like α .*, got torch.complex128"),
        (lambda s: s.alpha_next.to("meta"), "a tensor like α .*, got torch.float64, meta"),
        (lambda s: s.alpha_next.to_sparse(), "a tensor like α .*, got .*torch.sparse_coo"),
    ],
)
def test_what_is_no_alpha_is_refused(rule, message):
    with pytest.raises(ValueError, match=f"^backtracking: expected {message}.* from the rule <lambda>$"):
        apply(rule, some_step())


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_numbers_that_are_not_finite_are_refused_by_the_name_of_the_rule(value):
    class Broken:
        def __call__(self, s):
            return s.alpha_next.index_fill(1, torch.tensor(2), float(value))

    with pytest.raises(FloatingPointError, match=f"^the parent's α is not finite: {value} from the rule Broken$"):
        apply(Broken(), some_step())


def test_only_the_psi_of_a_learned_rule_is_recorded():
    class Mine:
        psi = torch.ones(E, M)

        def __call__(self, s):
            return s.alpha_next

    assert recorded_psi(Mine(), "parent", "normal") is None and recorded_psi(no_backtracking, "parent", "normal") is None
    rule = Learned("edge", psi=0.2)
    assert recorded_psi(rule, "parent", "normal") is None
    apply(rule, some_step())
    assert recorded_psi(rule, "parent", "normal").tolist() == [[0.2]] * E
    assert recorded_psi(rule, "child", "normal") is None


@pytest.mark.parametrize("rule", [Learned(), Refreshed()])
def test_states_are_copies(rule):
    apply(rule, some_step())
    state, before = rule.state_dict(), rule.state_dict()
    other = type(rule)()
    other.load_state_dict(state)
    for tensor in tensors(state):
        tensor.zero_()
    for held in (rule.state_dict(), other.state_dict()):
        pairs = list(zip(tensors(held), tensors(before), strict=True))
        assert pairs and all(torch.equal(mine, was) and was.any() for mine, was in pairs)


def tensors(state) -> list:
    return [state] if isinstance(state, torch.Tensor) else [t for part in state.values() for t in tensors(part)]


@pytest.mark.parametrize("tau, columns", [(0, 8), (4, 4), (7, 1), (8, 0)])
def test_tau_is_how_many_operations_are_left_out(tau, columns):
    alpha_next = normal(E, M, seed=1)
    got = Learned(tau=tau)(step_at(normal(E, M), alpha_next, normal(E, M, seed=2)))
    assert (got != alpha_next).any(0).sum() == columns


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Learned("row"), "shape: expected one of scalar, operation, edge, full, got 'row'"),
        (lambda: Learned(absolute=1), "absolute: expected True or False, got 1"),
        (lambda: Learned(eta=float("nan")), "eta: expected a finite number of at least 0, got nan"),
        (lambda: Learned(eta="0.1"), "eta: expected a finite number of at least 0, got '0.1'"),
        (lambda: Learned(eta_psi=float("inf")), "eta_psi: expected a finite number of at least 0, got inf"),
        (lambda: Learned(eta=-1), "eta: expected a finite number of at least 0, got -1"),
        (lambda: Learned(eta_psi=-0.1), "eta_psi: expected a finite number of at least 0, got -0.1"),
        (lambda: Refreshed(5, -1), "eta: expected a finite number of at least 0, got -1"),
        (lambda: Learned(psi=True), "psi: expected a finite number, got True"),
        (lambda: Learned(tau=-1), "tau: expected an integer of at least 0, got -1"),
        (lambda: Learned(tau=4.0), "tau: expected an integer of at least 0, got 4.0"),
        (lambda: Refreshed(by="adam"), "by: expected one of gradient, optimizer, got 'adam'"),
        (lambda: Refreshed(networks=()), "networks: expected parent, child or both, got \\(\\)"),
        (lambda: Refreshed(networks=["teacher"]), "networks: expected parent, child or both, got \\['teacher'\\]"),
        (lambda: Refreshed(0), "every: expected an integer of at least 1, got 0"),
        (lambda: Refreshed(2.5), "every: expected an integer of at least 1, got 2.5"),
        (lambda: Refreshed(eta=None), "eta: expected a finite number of at least 0, got None"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()


def test_numbers_of_numpy_are_taken():
    assert vars(Learned(eta=np.float32(0.5), tau=np.int64(3))) == vars(Learned(eta=0.5, tau=3))
    assert vars(Refreshed(np.int32(2), np.float64(0.5))) == vars(Refreshed(2, 0.5))


# -- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Learned, lambda: Learned("edge", absolute=False), lambda: Refreshed(3)])
def test_state_dict_round_trip_in_the_middle(make):
    def run(rule, alpha, steps):
        for t in steps:
            arguments = alpha - 0.05 * normal(E, M, seed=t), normal(E, M, seed=100 + t)
            alpha = rule(step_at(alpha, *arguments, index=t, coupling=lambda *by, t=t: normal(E, M, seed=200 + t)))
        return alpha

    whole, first, second = make(), make(), make()
    expected = run(whole, normal(E, M), range(5))
    half = run(first, normal(E, M), range(2))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(run(second, half, range(2, 5)), expected)


@pytest.mark.parametrize("by", ["gradient", "optimizer"])
def test_refreshed_measures_every_k_steps_and_applies_minus_the_coupling(by):
    asked, rule = [], Refreshed(3, 0.5, by)

    def coupling(t, by):
        asked.append((t, by))
        return normal(E, M, seed=t)

    for t in range(7):
        alpha_next = normal(E, M, seed=50 + t)
        got = rule(step_at(normal(E, M), alpha_next, normal(E, M), index=t, coupling=lambda by, t=t: coupling(t, by)))
        torch.testing.assert_close(got, alpha_next - 0.5 * normal(E, M, seed=t // 3 * 3), rtol=0, atol=1e-15)
    assert asked == [(0, by), (3, by), (6, by)]


def test_refreshed_keeps_a_correction_for_each_network_and_cell_type():
    rule, keys = Refreshed(every=2, eta=1.0), [(n, t) for n in ("parent", "child") for t in ("normal", "reduce")]
    for index in (0, 1):
        for k, key in enumerate(keys):
            coupling = (lambda by, k=k: torch.full((E, M), float(k))) if index == 0 else no_coupling
            got = rule(step_at(normal(E, M), torch.zeros(E, M), normal(E, M), *key, index=index, coupling=coupling))
            assert (got == -k).all()


def test_a_coupling_by_another_step_is_refused():
    step = step_at(normal(E, M), normal(E, M), normal(E, M), coupling=lambda by: normal(E, M))
    assert torch.equal(apply(lambda step: step.coupling("optimizer"), step), normal(E, M))
    with pytest.raises(ValueError, match="^coupling: expected one of gradient, optimizer, got 'adam'$"):
        apply(lambda step: step.coupling("adam"), step)


def test_refreshed_in_one_network_leaves_the_other_alone():
    rule, alpha_next = Refreshed(1, 1.0, networks=["child"]), normal(E, M)
    got = rule(step_at(normal(E, M, seed=1), alpha_next, normal(E, M), "parent", coupling=no_coupling))
    assert torch.equal(got, alpha_next)
    C = normal(E, M, seed=2)
    got = rule(step_at(normal(E, M, seed=1), alpha_next, normal(E, M), "child", coupling=lambda by: C))
    torch.testing.assert_close(got, alpha_next - C, rtol=0, atol=1e-15)


# -- R(w_m) on a supernet ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("space, cell_type", [(MICRO, "normal"), (PAPER, "normal"), (PAPER, "reduce")])
def test_weight_norms_by_hand(space, cell_type, binary):
    """‖w_m‖² summed over an operation's convolutions, β ∘ sign(w) where binarized, mean over edges and cells (4.53)."""
    torch.manual_seed(0)
    net = Supernet(space, channels=2, layers=3, binary=binary)
    cells = [cell for cell, kind in zip(net.cells, net.cell_types, strict=True) if kind == cell_type]
    assert cells
    expected = {"none": 0.0, "skip_connect": 1.0, "max_pool_3x3": 1 / 81, "avg_pool_3x3": 1 / 81}
    for name in CONVOLUTIONS:
        total = 0.0
        for cell in cells:
            for edge in cell.edges:
                for module in edge[name].modules():
                    if isinstance(module, BinaryConv2d):
                        w = module.weight
                        total += (w.abs().mean((1, 2, 3), keepdim=True) * torch.where(w >= 0, 1.0, -1.0)).pow(2).sum().item()
                    elif isinstance(module, nn.Conv2d):
                        total += module.weight.pow(2).sum().item()
        expected[name] = total / len(cells) / len(space.edges)
    got = weight_norms(net, cell_type)
    torch.testing.assert_close(got, torch.tensor([expected[name] for name in OPERATIONS]), rtol=1e-5, atol=1e-6)
    assert not got.requires_grad


def test_default_tau_leaves_out_the_operations_without_weights():
    torch.manual_seed(0)
    for binary in (False, True):
        ranks = ranking(weight_norms(Supernet(MICRO, binary=binary), "normal"))
        assert {name for name, rank in zip(OPERATIONS, ranks, strict=True) if rank > 4} == set(CONVOLUTIONS)
