"""Tangent propagation: D and the gradient of D against finite differences, and what stands in for the Hessian."""

from __future__ import annotations

import itertools
import math
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from dcpnas_lite.data import digits
from dcpnas_lite.engine.config import SearchConfig
from dcpnas_lite.engine.search import search
from dcpnas_lite.method import tangent
from dcpnas_lite.method.objectives import kl_gain
from dcpnas_lite.method.tangent import (
    curvature_product,
    distance,
    distance_slope,
    fisher_product,
    hessian_product,
    rank_one_product,
    scores_product,
    tangent_direction,
    tangent_gradient,
)
from dcpnas_lite.network.supernet import MICRO, Supernet

KINDS = ("F", "L1", "cosine")
SHAPES = [(3, 4), (2, 5)]  # (E, M) of two cell types
N, CLASSES = 6, 3


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Toy:
    """A smooth Child without weights: logits of N images as a nonlinear function of two α, an own copy per image allowed."""

    def __init__(self, seed: int = 0, images: int = N):
        self.first = [normal(images, *shape, 4, seed=seed + 10 * k) for k, shape in enumerate(SHAPES)]
        self.second = normal(4, CLASSES, seed=seed + 100)

    def __call__(self, alphas) -> torch.Tensor:
        mixes = [a.softmax(-1) for a in alphas]
        hidden = sum(
            torch.einsum("nem,nemh->nh" if mix.dim() == 3 else "em,nemh->nh", mix, first)
            for mix, first in zip(mixes, self.first, strict=True)
        )
        return (hidden.tanh() + 0.3 * hidden**2) @ self.second


def alphas_at(seed: int = 0) -> list[torch.Tensor]:
    return [normal(*shape, seed=seed + 20 + k).requires_grad_() for k, shape in enumerate(SHAPES)]


def setting(seed: int = 0):
    """(Child, α̂, the Parent's logits, the Parent's tangent)."""
    child, alphas = Toy(seed), alphas_at(seed)
    return child, alphas, 1.5 * normal(N, CLASSES, seed=seed + 40), [0.3 * normal(*s, seed=seed + 50) for s in SHAPES]


def gain_gradient(child, alphas, soft) -> list[torch.Tensor]:
    return list(torch.autograd.grad(kl_gain(child(alphas), soft), alphas))


def flat(tensors) -> torch.Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def difference(function, alphas, step: float = 1e-5) -> list[torch.Tensor]:
    """Central differences of a function of α, per entry."""
    result = []
    for k, alpha in enumerate(alphas):
        slope = torch.zeros_like(alpha)
        for index in itertools.product(*map(range, alpha.shape)):
            values = []
            for sign in (1, -1):
                moved = [a.detach().clone() for a in alphas]
                moved[k][index] += sign * step
                values.append(function([a.requires_grad_() for a in moved]))
            slope[index] = (values[0] - values[1]) / (2 * step)
        result.append(slope.detach())
    return result


# -- the tangent direction and D --------------------------------------------------------------------------------------


def test_tangent_direction_is_the_ascent_of_the_likelihood():
    parent, alphas, target = Toy(1), alphas_at(1), torch.tensor([0, 1, 2, 2, 1, 0])
    got = tangent_direction(parent(alphas), target, alphas)
    expected = difference(lambda a: parent(a).log_softmax(1)[range(N), target].mean(), alphas)
    torch.testing.assert_close(flat(got), flat(expected), rtol=0, atol=1e-8)
    # Σ_n (p_n(X)/p_n) ∂p_n/∂α (4.29 as derived); as printed, Σ_n ∂p_n/∂α, it would be zero
    p = parent(alphas).softmax(1)
    derived = torch.autograd.grad((p[range(N), target] / p[range(N), target].detach()).mean(), alphas, retain_graph=True)
    torch.testing.assert_close(flat(got), flat(derived), rtol=0, atol=1e-12)
    assert flat(torch.autograd.grad(p.sum(), alphas)).abs().max() < 1e-12 < flat(got).norm()


def test_distances_by_hand():
    child = [torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0], [2.0]])]
    parent = [torch.tensor([[0.0, 4.0]]), torch.tensor([[0.0], [-1.0]])]
    assert distance(child, parent).item() == distance(child, parent, "F").item() == 1 + 4 + 0 + 9
    assert distance(child, parent, "L1").item() == 1 + 2 + 0 + 3
    assert distance(child, parent, "cosine").item() == pytest.approx(1 - (8 - 2) / (3 * math.sqrt(17)), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_distance_is_zero_at_equality_and_takes_the_parent_as_constant(kind):
    child, parent = [normal(*s, seed=1) for s in SHAPES], [normal(*s, seed=2).requires_grad_() for s in SHAPES]
    assert distance(child, child, kind).item() == pytest.approx(0, abs=1e-12)
    assert distance(child, parent, kind).item() > 0
    assert not distance(child, parent, kind).requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_distance_slope_against_differences(kind):
    child, parent = [normal(*s, seed=1) for s in SHAPES], [normal(*s, seed=2) for s in SHAPES]
    expected = difference(lambda c: distance(c, parent, kind), child)
    torch.testing.assert_close(flat(distance_slope(child, parent, kind)), flat(expected), rtol=0, atol=1e-8)
    if kind == "F":
        torch.testing.assert_close(flat(distance_slope(child, parent)), 2 * (flat(child) - flat(parent)))


def test_bad_names_and_shapes():
    child, alphas, soft, parent = setting()
    with pytest.raises(ValueError, match="distance: expected 'F', 'L1' or 'cosine', got 'l2'"):
        distance(parent, parent, "l2")
    with pytest.raises(ValueError, match="parent: expected 22 entries as in child, got 12"):
        distance(parent, parent[:1])
    for kind, curvature, name in (("l2", "sampled", "distance"), ("F", "newton", "curvature")):
        with pytest.raises(ValueError, match=f"{name}: expected .*got '{kind if name == 'distance' else curvature}'"):
            tangent_gradient(child, lambda out: kl_gain(out, soft), alphas, parent, curvature, kind, N)
    with pytest.raises(ValueError, match="draw: expected a function that draws a class for each image for 'sampled', got None"):
        curvature_product("sampled", child, lambda out: kl_gain(out, soft), alphas, N)


# -- the gradient of D ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_exact_gradient_of_d_against_differences(kind, seed):
    child, alphas, soft, parent = setting(seed)
    d, gradient, product = tangent_gradient(child, lambda out: kl_gain(out, soft), alphas, parent, "hessian", kind)
    expected = difference(lambda a: distance(gain_gradient(child, a, soft), parent, kind), alphas)
    assert flat(expected).norm() > 0.01
    torch.testing.assert_close(flat(product), flat(expected), rtol=0, atol=1e-7)
    torch.testing.assert_close(flat(gradient), flat(gain_gradient(child, alphas, soft)))
    assert d.item() == distance(gradient, parent, kind).item()


def test_hessian_product_against_differences_of_the_gradient():
    child, alphas, soft, v = setting()
    got = hessian_product(kl_gain(child(alphas), soft), alphas, v)
    step = 1e-5
    ends = [
        gain_gradient(child, [(a + sign * step * t).detach().requires_grad_() for a, t in zip(alphas, v, strict=True)], soft)
        for sign in (1, -1)
    ]
    torch.testing.assert_close(flat(got), (flat(ends[0]) - flat(ends[1])) / (2 * step), rtol=0, atol=1e-8)


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton", "sampled", "rank_one"])
def test_every_curvature_returns_the_same_d_and_gradient(curvature):
    child, alphas, soft, parent = setting()
    generator = torch.Generator().manual_seed(0)
    d, gradient, product = tangent_gradient(child, lambda out: kl_gain(out, soft), alphas, parent, curvature, "F", N, generator)
    exact = gain_gradient(child, alphas, soft)
    torch.testing.assert_close(flat(gradient), flat(exact), rtol=0, atol=1e-12)
    torch.testing.assert_close(d, distance(exact, parent), rtol=0, atol=1e-12)
    assert [t.shape for t in product] == [a.shape for a in alphas]


def fisher_matrix(child, alphas) -> torch.Tensor:
    """E over the images and over the Child's own classes of the outer product of the score, term by term (4.36)."""
    log_p = child(alphas).log_softmax(1)
    fisher = torch.zeros(22, 22, dtype=torch.float64)
    for image, n in itertools.product(range(N), range(CLASSES)):
        score = flat(torch.autograd.grad(log_p[image, n], alphas, retain_graph=True))
        fisher += log_p[image, n].exp().item() * torch.outer(score, score) / N
    return fisher


def test_fisher_product_against_the_sum_over_images_and_classes():
    child, alphas, _, v = setting()
    expected = fisher_matrix(child, alphas) @ flat(v)
    torch.testing.assert_close(flat(fisher_product(child, alphas, v)), expected, rtol=0, atol=1e-12)


def test_gauss_newton_is_exact_where_the_childs_output_is_the_parents():
    """There H_G = −F (4.37, 4.41 first equality): the sign is a minus, and away from equality the two differ."""
    child, alphas, soft, parent = setting()
    same = child(alphas).detach()
    exact = tangent_gradient(child, lambda out: kl_gain(out, same), alphas, parent, "hessian")[2]
    substitute = tangent_gradient(child, lambda out: kl_gain(out, same), alphas, parent, "gauss_newton")[2]
    assert flat(exact).norm() > 0.1
    torch.testing.assert_close(flat(substitute), flat(exact), rtol=0, atol=1e-12)
    elsewhere = [
        tangent_gradient(child, lambda out: kl_gain(out, soft), alphas, parent, c)[2] for c in ("hessian", "gauss_newton")
    ]
    assert not torch.allclose(flat(elsewhere[0]), flat(elsewhere[1]), rtol=0.1)


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton", "sampled", "rank_one"])
def test_a_step_against_the_gradient_reduces_d(curvature):
    """Where Child and Parent agree, −F d is the true direction; the sentence after 4.41, taken literally (+F), climbs."""
    child, alphas, _, parent = setting()
    soft = child(alphas).detach() + 1e-3 * normal(N, CLASSES, seed=9)
    generator = torch.Generator().manual_seed(0)
    before, _, product = tangent_gradient(child, lambda out: kl_gain(out, soft), alphas, parent, curvature, "F", N, generator)
    after = {}
    for sign in (1, -1):
        size = 1e-3 / flat(product).norm()
        moved = [(a - sign * size * t).detach().requires_grad_() for a, t in zip(alphas, product, strict=True)]
        after[sign] = distance(gain_gradient(child, moved, soft), parent)
    assert after[1] < before < after[-1]


def test_rank_one_product_by_hand():
    g, v = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])], [torch.tensor([[1.0, 1.0]]), torch.tensor([[-2.0]])]
    assert [t.tolist() for t in rank_one_product(g, v)] == [[[-3.0, -6.0]], [[-9.0]]]  # gᵀv = 1 + 2 − 6
    product = flat(rank_one_product([normal(*s) for s in SHAPES], [normal(*s, seed=1) for s in SHAPES]))
    g, v = (torch.cat([normal(*s, seed=k).flatten() for s in SHAPES]) for k in (0, 1))
    torch.testing.assert_close(product, torch.outer(g, g) @ v)


def test_scores_product_against_outer_products():
    scores, v = [normal(N, *s, seed=k) for k, s in enumerate(SHAPES)], [normal(*s, seed=5) for s in SHAPES]
    rows = torch.cat([s.flatten(1) for s in scores], 1)
    torch.testing.assert_close(flat(scores_product(scores, v)), sum(torch.outer(h, h) for h in rows) @ flat(v) / N)


def test_sampled_curvature_converges_to_gauss_newton():
    """The mean over draws approaches −F v, at the rate of a Monte Carlo estimate."""
    child, alphas, soft, parent = setting()
    exact = flat(tangent_gradient(child, lambda out: kl_gain(out, soft), alphas, parent, "gauss_newton")[2])
    generator, draws = torch.Generator().manual_seed(0), []
    for _ in range(800):
        draws.append(
            flat(tangent_gradient(child, lambda out: kl_gain(out, soft), alphas, parent, "sampled", "F", N, generator)[2])
        )
    draws = torch.stack(draws)
    error = draws.mean(0) - exact
    standard = draws.std(0) / len(draws) ** 0.5
    assert (error.abs() < 4.5 * standard + 1e-9).all()
    assert error.norm() < 0.15 * exact.norm() < 0.5 * draws.std(0).norm()  # 1: converged; 2: a single draw is far off


def test_sampled_curvature_of_known_draws():
    """With one class drawn per image, −(1/N) Σ_s h_s h_sᵀ v with h_s the score of that image alone."""
    child, alphas, soft, parent = setting()
    drawn = torch.multinomial(child(alphas).softmax(1).detach(), 1, generator=torch.Generator().manual_seed(5)).squeeze(1)
    assert len(set(drawn.tolist())) > 1
    log_p = child(alphas).log_softmax(1)
    slope = flat(distance_slope(gain_gradient(child, alphas, soft), parent))
    expected = torch.zeros(22, dtype=torch.float64)
    for image, n in enumerate(drawn.tolist()):
        score = flat(torch.autograd.grad(log_p[image, n], alphas, retain_graph=True))
        expected -= score * (score @ slope) / N
    generator = torch.Generator().manual_seed(5)
    got = tangent_gradient(child, lambda out: kl_gain(out, soft), alphas, parent, "sampled", "F", N, generator)[2]
    torch.testing.assert_close(flat(got), expected, rtol=0, atol=1e-12)


def test_the_signs_of_the_tangents_agree_where_child_and_parent_are_one_network():
    """∂G/∂α̂ with the labels as the Parent's output is the Parent's own tangent: D compares like with like."""
    child, alphas, _, _ = setting()
    target = torch.tensor([0, 1, 2, 2, 1, 0])
    certain = 60.0 * torch.nn.functional.one_hot(target, CLASSES).double()
    gradient = gain_gradient(child, alphas, certain)
    direction = tangent_direction(child(alphas), target, alphas)
    torch.testing.assert_close(flat(gradient), flat(direction), rtol=0, atol=1e-10)


# -- threads ----------------------------------------------------------------------------------------------------------


def test_four_threads_at_once_give_each_its_own_fisher_product():
    def product(seed):
        child, alphas, _, v = setting(seed)

        def slow(duals):
            time.sleep(0.01)  # long enough for the others to come in between
            return child(duals)

        return fisher_product(slow, alphas, v)

    alone = [product(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for got, expected in zip(pool.map(product, range(4)), alone, strict=True):
                assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))


def test_searches_in_threads_with_forward_mode_give_each_its_own_result():
    data = digits(size=8)

    def run(seed):
        return search(data, SearchConfig(
            channels=2, layers=1, batch=8, rounds=1, steps=2, warmup=0, curvature="gauss_newton", measure_every=1, seed=seed
        )).history  # fmt: skip

    alone = [run(seed) for seed in range(2)]
    with ThreadPoolExecutor(4) as pool:
        for got, expected in zip(pool.map(run, [0, 1, 0, 1]), 2 * alone, strict=True):
            for name in expected:
                np.testing.assert_array_equal(got[name], expected[name], err_msg=name)


# -- `sampled` under BatchNorm ----------------------------------------------------------------------------------------


def batch_of_four(batchnorm: bool, binary: bool):
    """(logits of 4 images in 3 classes as a function of α or of copies of it, [α], v); a supernet where there is BatchNorm."""
    torch.manual_seed(3)
    if not batchnorm:
        toy = Toy(images=4)
        return toy, alphas_at(), [normal(*shape, seed=9) for shape in SHAPES]
    net, x = Supernet(MICRO, channels=2, layers=2, classes=3, binary=binary).double(), normal(4, 1, 6, 6)
    return lambda alphas: net(x, alphas), [normal(3, 8, seed=1).requires_grad_()], [normal(3, 8, seed=2)]


@pytest.mark.parametrize("batchnorm, binary", [(False, False), (True, False), (True, True)])
def test_expectation_of_sampled(batchnorm, binary):
    """All 3⁴ draws, each with its probability: −F v where no image sees another, and without it what the docstring says."""
    logits, alphas, v = batch_of_four(batchnorm, binary)
    of_batch = logits(alphas).log_softmax(1)
    p = of_batch.detach().exp()
    expected, one_draw = torch.zeros(2, sum(a.numel() for a in alphas), dtype=torch.float64)
    for classes in itertools.product(range(3), repeat=4):
        chance = p[range(4), classes].prod()
        draw = lambda _, classes=classes: torch.tensor(classes)  # noqa: E731
        product = curvature_product("sampled", logits, lambda out: kl_gain(out, out), alphas, 4, draw)[2]
        expected += chance * flat(product(v))
        score = flat(torch.autograd.grad(of_batch[range(4), classes].sum(), alphas, retain_graph=True))
        one_draw -= chance * score * (score @ flat(v)) / 4
    fisher = -flat(fisher_product(logits, alphas, v))
    torch.testing.assert_close(one_draw, fisher, rtol=0, atol=1e-12 * fisher.norm())  # scores of the batch as one draw

    copies = [a.detach().expand(4, *a.shape).clone().requires_grad_() for a in alphas]
    log_p, without_cross_terms = logits(copies).log_softmax(1), torch.zeros_like(expected)
    for t, n in itertools.product(range(4), range(3)):
        h = torch.cat([g.flatten(1) for g in torch.autograd.grad(log_p[t, n], copies, retain_graph=True)], 1)  # (4, entries)
        without_cross_terms -= p[t, n] * (h.T @ (h @ flat(v))) / 4
    torch.testing.assert_close(expected, without_cross_terms, rtol=0, atol=1e-12 * expected.norm())
    assert ((expected - fisher).norm() > 0.1 * fisher.norm()) == batchnorm
    assert (expected - fisher).norm() < 1e-12 * fisher.norm() or batchnorm


def test_trust_is_that_of_the_curvature_in_use(monkeypatch):
    """The products in the history are the ones that the search takes its step with; trust is their cosine with H_G v."""
    how = dict(channels=2, layers=1, batch=8, rounds=1, steps=2, warmup=0, measure_every=1)
    data = digits(size=8)
    for kind, line in [("hessian", "derived"), ("gauss_newton", "derived"), ("gauss_newton", "printed"), ("sampled", "derived")]:
        seen = []
        spied = lambda *a, seen=seen: seen.append(scores_product(*a)) or seen[-1]  # noqa: E731
        monkeypatch.setattr(tangent, "scores_product", spied)
        history = search(data, SearchConfig(**how, curvature=kind, eq_4_41=line)).history
        used, fisher, exact = (history[f"{what}/normal"][0] for what in ("curvature", "fisher", "hessian"))
        expected = (used * exact).sum() / np.linalg.norm(used) / np.linalg.norm(exact)
        assert np.isnan(history["trust"][:2]).all() and history["trust"][2] == pytest.approx(expected, abs=1e-5)
        assert np.array_equal(used, {"hessian": exact, "gauss_newton": fisher}.get(kind, used) * (1 if line == "derived" else -1))
        if kind == "sampled":
            assert len(seen) == 4 and torch.equal(seen[0][0], seen[1][0])  # the step's own draw, then the same to measure it
            np.testing.assert_array_equal(used, -seen[0][0].numpy())
