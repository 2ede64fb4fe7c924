"""Every tensor of the derivation against an independent oracle: loops, autograd, central differences."""

from __future__ import annotations

import dataclasses
import itertools
import warnings

import pytest
import torch

from dcpnas_lite.derivation import trace
from dcpnas_lite.derivation.responses import Explicit, Implicit, Unrolled, independence_defect
from dcpnas_lite.derivation.toys import Bilinear, LinearMixture

SIZES = [(3, 4), (14, 8), (2, 5), (1, 6)]
TOYS = {
    "mixture": LinearMixture.random,
    "softmax": lambda E, M, seed: LinearMixture.random(E, M, seed, softmax=True),
    "per edge": lambda E, M, seed: LinearMixture.random(E, M, seed, per_edge=True),
    "bilinear": Bilinear.random,
}
RESPONSES = {
    "explicit": lambda toy: Explicit(toy.phi),
    "unrolled": lambda toy: Unrolled(toy.loss, 0.1),
    "implicit": lambda toy: Implicit(toy.regularized),
}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a * b).sum() / (a.norm() * b.norm())).item()


def central_difference(function, x: torch.Tensor, step: float = 1e-5) -> torch.Tensor:
    """d function / dx with the axes of x last."""
    columns = []
    for index in itertools.product(*map(range, x.shape)):
        forward, backward = x.clone(), x.clone()
        forward[index] += step
        backward[index] -= step
        columns.append((function(forward) - function(backward)) / (2 * step))
    return torch.stack(columns, -1).reshape(*columns[0].shape, *x.shape)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-9) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance)


# ---- trace: against plain loops ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("E, M", SIZES)
def test_every_tensor_equals_its_loops(E, M, dtype):
    alpha, delta, dw = (normal(E, M, seed=s, dtype=dtype) for s in range(3))
    dL_dw, jacobian = normal(M, seed=3, dtype=dtype), normal(M, E, M, seed=4, dtype=dtype)
    es, ms = range(E), range(M)
    L = trace.loss_factor(delta)

    def same(result, loops):
        tolerance = 1e-4 if dtype == torch.float32 else 1e-12
        return result.dtype == dtype and close(result, torch.tensor(loops, dtype=dtype), tolerance)

    assert same(L, [[delta[e, m].item() for e in es] for m in ms])
    C = [[sum(dL_dw[k].item() * jacobian[k, e, m].item() for k in ms) for m in ms] for e in es]
    assert same(trace.coupling(dL_dw, jacobian), C)
    slices = [[[dw[e, m].item() if k == m else 0.0 for k in ms] for e in es] for m in ms]
    assert same(trace.response_slices(dw), slices)
    inner = [[sum(alpha[e, m].item() * L[m, f].item() for m in ms) for f in es] for e in es]
    assert same(trace.alpha_factor(alpha, L), inner)
    tensor = [[[sum(inner[e][f] * slices[m][f][k] for f in es) for m in ms] for k in ms] for e in es]
    assert same(trace.trace_tensor(alpha, L, dw), tensor)
    bracket = [sum(L[j, f].item() * dw[f, m].item() for m in ms for f in es) for j in ms]
    assert same(trace.trace_components(alpha, L, dw), [sum(alpha[e, j].item() * bracket[j] for j in ms) for e in es])
    assert same(trace.psi_as_printed(L, dw), [[-b for b in bracket] for _ in es])
    one = normal(1, E, seed=5, dtype=dtype)
    number = sum(one[0, f].item() * dw[f, m].item() for m in ms for f in es)
    assert same(trace.psi_as_printed(one, dw), [[-number] for _ in es])
    quotient = [[-delta[e, m].item() / alpha[e, m].item() for m in ms] for e in es]
    assert same(trace.psi_as_derived(alpha, delta), quotient)
    for psi in (normal(E, M), normal(E, 1), normal(1, M), torch.tensor(0.7)):
        psi = psi.to(dtype)
        full = psi.expand(E, M)
        stepped = [[delta[e, m].item() + 0.3 * full[e, m].item() * alpha[e, m].item() for m in ms] for e in es]
        assert same(trace.update(delta, alpha, psi, 0.3), stepped)


@pytest.mark.parametrize("E, M", SIZES)
def test_identities_of_4_48_and_4_49(E, M):
    alpha, delta, dw = (normal(E, M, seed=s) for s in range(3))
    factor = trace.loss_factor(delta)
    tensor = trace.trace_tensor(alpha, factor, dw)
    for m in range(M):
        assert close(tensor[:, :, m], alpha @ factor @ trace.response_slices(dw)[m])
    assert close(torch.einsum("emm->e", tensor), trace.trace_components(alpha, factor, dw))
    # the printed trace is the row sum of the printed Hadamard correction: the same numbers, added up
    assert close((-trace.psi_as_printed(factor, dw) * alpha).sum(1), trace.trace_components(alpha, factor, dw))
    # the slices are the Jacobian of an independent response, whose coupling is the column-wise product
    dL_dw = normal(M, seed=3)
    assert close(trace.coupling(dL_dw, trace.response_slices(dw)), dL_dw * dw)


@pytest.mark.parametrize("E, M", SIZES)
@pytest.mark.parametrize("shape", ["scalar", "operation", "edge", "full"])
def test_captured_is_a_least_squares_fit(E, M, shape):
    C, alpha = normal(E, M, seed=1), normal(E, M, seed=2)
    size = {"scalar": (1, 1), "operation": (1, M), "edge": (E, 1), "full": (E, M)}[shape]
    basis = []  # one column per entry of ψ: what moving it by one adds to −ψ ⊛ α
    for index in itertools.product(*map(range, size)):
        psi = torch.zeros(size, dtype=torch.float64)
        psi[index] = 1
        basis.append((-psi * alpha).flatten())
    basis = torch.stack(basis, 1)
    fit = basis @ torch.linalg.lstsq(basis, C.flatten()).solution
    assert trace.captured(C, alpha, shape) == pytest.approx(1 - ((C.flatten() - fit).norm() / C.norm()).item() ** 2)


def test_captured_where_alpha_or_coupling_vanish():
    alpha, C = torch.tensor([[1.0, 0.0], [2.0, 1.0]]), torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert trace.captured(C, alpha, "full") == pytest.approx(9 / 25)
    assert trace.captured(C, torch.zeros(2, 2), "edge") == 0
    assert torch.isnan(torch.tensor(trace.captured(torch.zeros(2, 2), alpha, "full")))
    with pytest.raises(ValueError, match="shape: expected one of scalar, operation, edge, full, got 'row'"):
        trace.captured(C, alpha, "row")


@pytest.mark.parametrize("E, M", [(3, 4), (1, 6), (2, 5), (4, 3)])
def test_right_division(E, M):
    alpha, g = normal(E, M), normal(1, E, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        factor = trace.right_division((g @ alpha).squeeze(0), alpha)
    assert close(factor @ alpha, g @ alpha)
    assert close(factor, g) == (E <= M)  # g itself comes back only where α has full row rank
    assert factor.norm() <= g.norm() + 1e-12
    with pytest.warns(UserWarning, match="not exact"):
        trace.right_division(normal(M, seed=2), normal(1, M, seed=3))


def through_a_matrix(toy, alpha, W):
    """L(α, W) = ℓ(α W), the mixture with its weights as a matrix, and ∂L/∂W by autograd."""
    W = W.clone().requires_grad_()
    return torch.autograd.grad(toy.ell(alpha @ W), W)[0]


@pytest.mark.parametrize("E, M", [*SIZES, (4, 4), (5, 3)])
def test_matrix_reading_divides_exactly_in_every_size(E, M):
    toy = LinearMixture.random(E, M, 1)
    alpha = toy.alpha * torch.sign(normal(E, M, seed=2))
    dL_dW, delta = through_a_matrix(toy, alpha, torch.diag(toy.w)), toy.delta(alpha, toy.w)
    factor = trace.matrix_factor(dL_dW, alpha)
    assert factor.shape == (M, E)
    assert close(factor @ alpha, dL_dW.T) and close(delta.T @ alpha, dL_dW.T)  # all M² entries, off the diagonal, too
    assert close(torch.diag(factor @ alpha), toy.dL_dw(alpha, toy.w))
    assert close(factor, delta.T, 1e-6) == (E <= M)
    assert factor.norm() <= delta.norm() * (1 + 1e-9)
    single = trace.matrix_factor(dL_dW.float(), alpha.float())
    assert single.dtype == torch.float32 and close(single @ alpha.float(), dL_dW.T.float(), 1e-3)
    assert close(trace.matrix_factor(0 * dL_dW, alpha), 0 * factor)


def test_matrix_factor_refuses_what_has_no_factor():
    alpha, dL_dW = normal(3, 4), normal(4, 4, seed=1)
    message = r"^dL_dW: expected \(∂L/∂W\)\^T = L̃ α for some L̃, got one that misses every one by 0\.\d+$"
    with pytest.raises(ValueError, match=message):
        trace.matrix_factor(dL_dW, alpha)
    with pytest.raises(ValueError, match="^dL_dW: .*by nan$"):
        trace.matrix_factor(dL_dW * float("nan"), alpha)
    with pytest.raises(ValueError, match=r"^dL_dW: expected shape \(M, M\) = \(4, 4\), got \(4,\)$"):
        trace.matrix_factor(dL_dW[0], alpha)
    assert trace.matrix_factor(normal(2, 2), normal(5, 2)).shape == (2, 5)  # the rows of α span everything: any matrix divides


def test_what_is_returned_may_be_changed_in_place():
    """No result shares its memory with an argument, nor with itself; L̃, the transpose of δ, is a view of it."""
    E, M = 3, 4
    toy = LinearMixture.random(E, M, 0)
    alpha, delta, dw, square = (normal(E, M, seed=s) for s in range(4))
    factor = normal(M, E, seed=4)
    calls = [
        (trace.coupling, dw.sum(0), trace.response_slices(dw)), (trace.response_slices, dw),
        (trace.alpha_factor, alpha, factor), (trace.trace_tensor, alpha, factor, dw), (trace.trace_components, alpha, factor, dw),
        (trace.matrix_factor, alpha.T @ delta, alpha),
        (trace.psi_as_printed, factor, dw), (trace.psi_as_printed, factor[:1], dw), (trace.psi_as_derived, alpha, delta),
        (trace.update, alpha, delta, square, 0.1), (toy.mixing, alpha), (toy.products, alpha, toy.w), (toy.factor, alpha, toy.w),
    ]  # fmt: skip
    for function, *arguments in calls:
        before = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
        expected, result = function(*arguments).clone(), function(*arguments)
        assert (result.add_(1) == expected + 1).all(), function
        assert all(a is b or torch.equal(a, b) for a, b in zip(arguments, before, strict=True)), function


def test_wrong_shapes_say_what_was_expected():
    E, M = 3, 4
    a, L, v = normal(E, M), normal(M, E), normal(M)
    wrong = [
        (lambda: trace.coupling(v, normal(E, M)), r"jacobian: expected shape \(K, E, M\) = \(4, E, M\), got \(3, 4\)"),
        (lambda: trace.coupling(v, normal(E, E, M)), r"jacobian: .* = \(4, E, M\), got \(3, 3, 4\)"),
        (lambda: trace.loss_factor(v), r"delta: expected shape \(E, M\) = \(E, M\), got \(4,\)"),
        (lambda: trace.right_division(normal(E), a), r"dL_dw: expected shape \(M\) = \(4\), got \(3,\)"),
        (lambda: trace.response_slices(normal(M, E, M)), r"dw: .* got \(4, 3, 4\)"),
        (lambda: trace.alpha_factor(a, L.T), r"factor: expected shape \(M, E\) = \(4, 3\), got \(3, 4\)"),
        (lambda: trace.trace_tensor(a, normal(1, E), a), r"factor: .* = \(4, 3\), got \(1, 3\)"),
        (lambda: trace.trace_components(a, L, L), r"dw: .* = \(3, 4\), got \(4, 3\)"),
        (lambda: trace.psi_as_printed(normal(2, E), a), r"factor: expected shape \(4, 3\) or \(1, 3\), got \(2, 3\)"),
        (lambda: trace.psi_as_printed(L.T, a), r"factor: .* = \(F, 3\), got \(3, 4\)"),
        (lambda: trace.psi_as_derived(a, L), r"coupling: .* = \(3, 4\), got \(4, 3\)"),
        (lambda: trace.update(a, a, v, 0.1), r"psi: .*\(\), got \(4,\)"),
        (lambda: trace.update(a, a, normal(1, 1), 0.1), r"psi: .* got \(1, 1\)"),
        (lambda: trace.update(a[:1], a, a, 0.1), r"alpha_next: .* = \(3, 4\), got \(1, 4\)"),
        (lambda: trace.captured(a, L, "full"), r"coupling: .* = \(4, 3\), got \(3, 4\)"),
        (lambda: independence_defect(normal(M, M, E)), r"jacobian: expected shape .* got \(4, 4, 3\)"),
        (lambda: independence_defect(normal(E + 1, M, E, M)), r"jacobian: expected shape .* got \(4, 4, 3, 4\)"),
    ]
    for call, message in wrong:
        with pytest.raises(ValueError, match=message):
            call()


def test_psi_as_derived_refuses_a_zero_in_alpha():
    alpha = normal(3, 4)
    alpha[2, 1] = 0
    with pytest.raises(ValueError, match=r"alpha\[2, 1\] = 0"):
        trace.psi_as_derived(alpha, normal(3, 4))


# ---- toys: closed forms against autograd ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("E, M", SIZES)
def test_closed_forms_equal_autograd(name, E, M):
    toy = TOYS[name](E, M, seed=1)
    alpha, w = toy.alpha.clone().requires_grad_(), toy.w.clone().requires_grad_()
    dL_dalpha, dL_dw = torch.autograd.grad(toy.loss(alpha, w), (alpha, w))
    assert close(toy.dL_dalpha(toy.alpha, toy.w), dL_dalpha)
    assert close(toy.dL_dw(toy.alpha, toy.w), dL_dw)
    z = toy.products(toy.alpha, toy.w).requires_grad_()
    assert close(toy.delta(toy.alpha, toy.w), torch.autograd.grad(toy.ell(z), z)[0])
    factor = toy.factor(toy.alpha, toy.w)
    if name == "bilinear":
        assert factor.shape == (1, E) and close((factor @ toy.alpha).squeeze(0), dL_dw)
    elif name != "per edge":
        assert factor.shape == (M, E) and close(torch.diag(factor @ toy.mixing(toy.alpha)), dL_dw)


def test_toys_are_reproducible_generic_and_convex():
    for random in TOYS.values():
        one, again, other = random(3, 4, 5), random(3, 4, 5), random(3, 4, 6)
        assert torch.equal(one.alpha, again.alpha) and torch.equal(one.quadratic, again.quadratic)
        assert not torch.equal(one.alpha, other.alpha)
        assert one.loss(one.alpha, one.w).dtype == torch.float64
        assert (one.alpha > 0).all() and (one.slope > 0).all()
        H = torch.autograd.functional.hessian(lambda w: one.regularized(one.alpha, w), one.w)  # noqa: B023
        H = H.reshape(one.w.numel(), -1)
        assert torch.linalg.eigvalsh(H)[0] > 0.99


@pytest.mark.parametrize("E, M", SIZES)
def test_what_dividing_by_alpha_can_mean(E, M):
    """4.44–4.45 in both readings; the printed α L̃ cannot equal (∂L/∂w)^T, in no layout."""
    A, B = LinearMixture.random(E, M, 2), Bilinear.random(E, M, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        factor = trace.right_division(B.dL_dw(B.alpha, B.w), B.alpha)
    assert close((factor @ B.alpha).squeeze(0), B.dL_dw(B.alpha, B.w))
    L, dL_dw = A.factor(A.alpha, A.w), A.dL_dw(A.alpha, A.w)
    inner = trace.alpha_factor(A.alpha, L)
    assert inner.shape == (E, E) and inner.T.shape == (E, E) and dL_dw.shape == (M,)
    # cyclic permutation does not lead from L̃ α to α L̃
    W = Explicit(A.phi)(A.alpha, A.w).jacobian
    for m in range(M):
        exact = torch.trace(L @ A.alpha @ torch.diag(W[:, 0, m]))
        assert close(exact, trace.coupling(dL_dw, W)[0, m])


# ---- responses: against autograd through them and central differences ----------------------------------------------


@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("E, M", [(3, 4), (1, 6)])
def test_jacobians(E, M, name, response):
    toy = TOYS[name](E, M, seed=3)
    respond = RESPONSES[response](toy)
    w, jacobian = respond(toy.alpha, toy.w)
    assert jacobian.shape == (*toy.w.shape, E, M) and jacobian.dtype == w.dtype == torch.float64
    assert not jacobian.requires_grad and not w.requires_grad
    assert close(jacobian, torch.autograd.functional.jacobian(lambda a: respond.weights(a, toy.w), toy.alpha))
    assert close(jacobian, central_difference(lambda a: respond.weights(a, toy.w), toy.alpha), 1e-7)
    total = central_difference(lambda a: toy.loss(a, respond.weights(a, toy.w)), toy.alpha)
    assert close(toy.total(toy.alpha, toy.w, respond), total, 1e-7)


def test_jacobians_of_the_large_problem():
    for random in (LinearMixture.random, Bilinear.random):
        toy = random(14, 8, 3)
        for make in RESPONSES.values():
            respond = make(toy)
            jacobian = respond(toy.alpha, toy.w).jacobian
            through = torch.autograd.functional.jacobian(lambda a, r=respond, w=toy.w: r.weights(a, w), toy.alpha)
            assert close(jacobian, through)


@pytest.mark.parametrize("per_edge", [False, True])
@pytest.mark.parametrize("E, M", [(3, 4), (1, 6), (4, 2)])
def test_softmax_leaves_no_independent_response(E, M, per_edge):
    """A response that sees α through softmax has rows that sum to 0, so 4.46 would make it vanish; its defect is ≥ 1/M."""
    toy = LinearMixture.random(E, M, 5, softmax=True, per_edge=per_edge)
    for make in RESPONSES.values():
        jacobian = make(toy)(toy.alpha, toy.w).jacobian
        assert jacobian.sum(-1).abs().max() < 1e-9 * jacobian.abs().max()
        assert independence_defect(jacobian) >= 1 / M - 1e-12
    uniform = torch.autograd.functional.jacobian(lambda a: a.softmax(1).sum(0), torch.zeros(E, M).double())
    assert independence_defect(uniform) == pytest.approx(1 / M)  # the bound is reached
    plain = LinearMixture.random(E, M, 5)
    assert Explicit(plain.phi)(plain.alpha).jacobian.sum(-1).abs().min() > 0  # without softmax there is no such law


def test_unrolled_is_darts_second_order_term():
    """Coupling through one step is −ξ ∂²L/∂α∂w · ∂L/∂w(w'), here by the central difference that DARTS uses."""
    toy, xi = LinearMixture.random(3, 4, 0), 0.05
    w, jacobian = Unrolled(toy.loss, xi)(toy.alpha, toy.w)
    v = toy.dL_dw(toy.alpha, w)
    eps = 1e-4 / v.norm()
    product = (toy.dL_dalpha(toy.alpha, toy.w + eps * v) - toy.dL_dalpha(toy.alpha, toy.w - eps * v)) / (2 * eps)
    assert close(trace.coupling(v, jacobian), -xi * product, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_implicit_is_stationary_from_any_start(dtype):
    toy = LinearMixture.random(14, 8, 4)
    starts = [torch.zeros(8), 10 * normal(8, seed=1), toy.w]
    found = [Implicit(toy.regularized)(toy.alpha, start.to(dtype)).w for start in starts]
    for w in found:
        gradient = central_difference(lambda w: toy.regularized(toy.alpha, w), w)
        assert w.dtype == torch.float64 and gradient.norm() < 1e-6 and close(w, found[0], 1e-8)


def test_implicit_refuses_what_has_no_minimum():
    alpha, w = normal(2, 3), normal(3, seed=1)
    with pytest.raises(RuntimeError, match="no strict minimum"):
        Implicit(lambda a, w: a.sum() * w[0] * w[1] + w[2] ** 2)(alpha, 0 * w)
    with pytest.raises(RuntimeError, match="after 50 Newton steps, not stationary"):
        Implicit(lambda a, w: (a @ w).sum() - w.square().sum())(alpha, w)


def test_implicit_coupling_vanishes_when_one_loss_trains_both():
    """At w* of the very loss that trains α, ∂L/∂w = 0 and with it the coupling: w must minimise another loss."""
    toy = LinearMixture.random(3, 4, 0)
    w, jacobian = Implicit(toy.regularized)(toy.alpha, toy.w)
    same = toy.dL_dw(toy.alpha, w) + w
    assert trace.coupling(same, jacobian).abs().max() < 1e-9
    assert trace.coupling(toy.dL_dw(toy.alpha, w), jacobian).norm() > 1e-2


def test_independence_defect():
    E, M = 3, 4
    assert independence_defect(trace.response_slices(normal(E, M))) == 0
    J = normal(M, E, M)
    inside = sum(J[k, e, k].item() ** 2 for k in range(M) for e in range(E))
    assert independence_defect(J) == pytest.approx(1 - inside / J.square().sum().item())
    per_edge = normal(E, M, E, M)
    inside = sum(per_edge[f, k, e, k].item() ** 2 for f in range(E) for k in range(M) for e in range(E))
    assert independence_defect(per_edge) == pytest.approx(1 - inside / per_edge.square().sum().item())
    # true by construction for the explicit response, false under softmax: 1/M at equal α, and for every other response
    for E, M in [(3, 4), (14, 8)]:
        toy = LinearMixture.random(E, M, 0)
        assert independence_defect(Explicit(toy.phi)(toy.alpha).jacobian) == 0
        soft = LinearMixture.random(E, M, 0, softmax=True)
        assert independence_defect(Explicit(soft.phi)(torch.zeros(E, M)).jacobian) == pytest.approx(1 / M)
        assert independence_defect(Unrolled(toy.loss, 0.1)(toy.alpha, toy.w).jacobian) > 0.01


# ---- the audit's figures, on fifty problems ------------------------------------------------------------------------


def problem(random, E, M, seed, both_signs=False):
    """Toy, coupling C, L̃ and dw of one random problem with the explicit response."""
    toy = random(E, M, seed)
    if both_signs:
        toy = dataclasses.replace(toy, alpha=normal(E, M, seed=1000 + seed), slope=normal(E, M, seed=2000 + seed))
    w, jacobian = Explicit(toy.phi)(toy.alpha, toy.w)
    C = trace.coupling(toy.dL_dw(toy.alpha, w), jacobian)
    return toy, C, toy.factor(toy.alpha, w), torch.einsum("mem->em", jacobian)


def median(values) -> float:
    return torch.tensor(list(values)).median().item()


@pytest.mark.parametrize("random", [LinearMixture.random, Bilinear.random])
@pytest.mark.parametrize("E, M", [(3, 4), (14, 8)])
def test_printed_correction_is_related_to_the_exact_coupling_but_never_equal(E, M, random):
    def cosines(both_signs):
        for seed in range(50):
            toy, C, factor, dw = problem(random, E, M, seed, both_signs)
            yield cosine(-trace.psi_as_printed(factor, dw) * toy.alpha, C)

    one_sign, both_signs = list(cosines(False)), list(cosines(True))
    assert 0.6 < median(one_sign) < 0.85 and max(one_sign) < 0.99
    assert abs(median(both_signs)) < 0.1  # the relation is one of signs: it goes when α and ∂w/∂α take either
    for seed in range(50):  # ψ = −C / α, the derived line, is exact
        toy, C, _, _ = problem(random, E, M, seed)
        step = trace.update(torch.zeros(E, M, dtype=torch.float64), toy.alpha, trace.psi_as_derived(toy.alpha, C), 1.0)
        assert close(step, -C, 1e-12)


@pytest.mark.parametrize("random", [LinearMixture.random, Bilinear.random])
@pytest.mark.parametrize("E, M", [(3, 4), (14, 8)])
def test_captured_shares(E, M, random):
    problems = [problem(random, E, M, seed) for seed in range(50)]
    shapes = ("scalar", "edge", "operation", "full")
    share = {shape: median(trace.captured(C, toy.alpha, shape) for toy, C, _, _ in problems) for shape in shapes}
    assert share["full"] == pytest.approx(1)
    assert 0.15 < share["scalar"] < share["edge"] < 0.7 and share["scalar"] < share["operation"] < 0.7


@pytest.mark.parametrize("M", [4, 6])
@pytest.mark.parametrize("random", [LinearMixture.random, Bilinear.random])
def test_one_edge_read_elementwise_is_exact(M, random):
    """E = 1 and no sum over m in the bracket: print and truth meet. With the printed sum over m they do not."""
    toy, C, factor, dw = problem(random, 1, M, seed=7)
    elementwise = torch.einsum("me,em->m", factor.expand(M, 1), dw)
    assert close(elementwise * toy.alpha, C, 1e-12)
    assert not close(-trace.psi_as_printed(factor, dw) * toy.alpha, C, 1e-3)


def test_in_the_bilinear_reading_the_printed_correction_only_rescales_alpha():
    toy, _, factor, dw = problem(Bilinear.random, 3, 4, seed=0)
    psi = trace.psi_as_printed(factor, dw)
    assert psi.shape == (3, 1) and close(psi, psi[:1].expand(3, 1))
    assert abs(cosine(psi * toy.alpha, toy.alpha)) == pytest.approx(1)


@pytest.mark.parametrize("E, M", SIZES)
@pytest.mark.parametrize("random", [LinearMixture.random, Bilinear.random])
def test_what_the_bracket_read_elementwise_keeps(E, M, random):
    """Without the sum over m, the printed correction has e and e' exchanged against the coupling. So the two agree once e is
    contracted with g̃: per operation they have the same component along the direct gradient ∂L/∂α_{:,m} ∝ g̃, and no other."""
    toy, C, factor, dw = problem(random, E, M, seed=7)
    factor = factor.expand(M, E)
    elementwise = torch.einsum("me,em->m", factor, dw) * toy.alpha
    assert close(torch.einsum("me,em->m", factor, elementwise), torch.einsum("me,em->m", factor, C))
    direct = toy.dL_dalpha(toy.alpha, toy.phi(toy.alpha))
    assert close((direct * elementwise).sum(), (direct * C).sum())
    assert close(elementwise, C) == (E == 1)
