"""The exact one-step coupling against finite differences of the whole derivative and against the derivation's own form."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from dcpnas_lite.derivation import trace
from dcpnas_lite.derivation.responses import Unrolled
from dcpnas_lite.method.coupling import CLIP, adam_moves, cosine, one_step_coupling
from dcpnas_lite.method.objectives import nas_loss

XI = 0.3


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Small(nn.Module):
    """A smooth supernet without α of its own kind: two α of different shapes, weights per operation, tanh throughout."""

    def __init__(self):
        super().__init__()
        self.alphas = nn.ParameterList([nn.Parameter(normal(3, 4)), nn.Parameter(normal(2, 5, seed=1))])
        self.first = nn.Parameter(0.5 * normal(4, 6, 5, seed=2))
        self.second = nn.Parameter(0.5 * normal(5, 5, seed=3))
        self.head = nn.Linear(5, 3).double()
        with torch.no_grad():
            self.head.weight.copy_(normal(3, 5, seed=4))
            self.head.bias.zero_()

    def forward(self, x):
        for mix in self.alphas[0].softmax(1):
            x_next = torch.einsum("m,mih,ni->nh", mix, self.first, x).tanh()
            x = torch.cat([x_next, x[:, :1]], 1)
        hidden = x[:, :5]
        for mix in self.alphas[1].softmax(1):
            hidden = (hidden + mix * (hidden @ self.second)).tanh()
        return self.head(hidden)


BATCHES = {"train": (normal(7, 6, seed=5), torch.arange(7) % 3), "validation": (normal(8, 6, seed=6), (torch.arange(8) // 2) % 3)}


def weight_loss(net):
    x, y = BATCHES["train"]
    return nas_loss(net(x), y)


def alpha_loss(net):
    x, y = BATCHES["validation"]
    return nas_loss(net(x), y)


def small() -> tuple[Small, list, list]:
    net = Small()
    alphas = list(net.alphas)
    return net, [p for p in net.parameters() if all(p is not a for a in alphas)], alphas


def after_one_step(alphas: list[torch.Tensor]) -> float:
    """L(w − ξ ∇_w L_w(w, α), α) for other values of α, by moving the weights in place."""
    net, weights, own = small()
    with torch.no_grad():
        for a, value in zip(own, alphas, strict=True):
            a.copy_(value)
    gradient = torch.autograd.grad(weight_loss(net), weights)
    with torch.no_grad():
        for w, g in zip(weights, gradient, strict=True):
            w -= XI * g
    return alpha_loss(net).item()


def test_coupling_against_differences_of_the_whole_derivative():
    """C = dL(w'(α), α)/dα − ∂L(w', α)/∂α."""
    net, weights, alphas = small()
    coupling = one_step_coupling(net, weight_loss, alpha_loss, weights, alphas, XI)
    gradient = torch.autograd.grad(weight_loss(net), weights)
    with torch.no_grad():
        for w, g in zip(weights, gradient, strict=True):
            w -= XI * g
    direct = torch.autograd.grad(alpha_loss(net), alphas)
    values, step = [a.detach().clone() for a in alphas], 1e-5
    for k, (c, d) in enumerate(zip(coupling, direct, strict=True)):
        total = torch.zeros_like(c)
        for index in itertools.product(*map(range, c.shape)):
            ends = []
            for sign in (1, -1):
                moved = [v.clone() for v in values]
                moved[k][index] += sign * step
                ends.append(after_one_step(moved))
            total[index] = (ends[0] - ends[1]) / (2 * step)
        assert c.norm() > 1e-3 and d.norm() > 1e-3
        torch.testing.assert_close(c, total - d, rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_coupling_of_adams_step_against_differences_of_the_whole_derivative(scale):
    """As above with the step that torch's own Adam does, of a gradient that is clipped (the large one) or not."""
    net, weights, alphas = small()
    loud = lambda net: scale * weight_loss(net)  # noqa: E731
    optimizer = torch.optim.Adam(weights, lr=0.05)

    def step():
        optimizer.zero_grad()
        for w, g in zip(weights, torch.autograd.grad(loud(net), weights), strict=True):
            w.grad = g
        norm = torch.nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        return norm

    for _ in range(3):
        step()
    before, state = [w.detach().clone() for w in weights], copy.deepcopy(optimizer.state_dict())
    values = [a.detach().clone() for a in alphas]

    def set_back(moved):
        with torch.no_grad():
            for p, value in zip([*weights, *alphas], [*before, *moved], strict=True):
                p.copy_(value)
        optimizer.load_state_dict(copy.deepcopy(state))

    coupling = one_step_coupling(net, loud, alpha_loss, weights, alphas, adam_moves(optimizer))
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))
    assert str(optimizer.state_dict()) == str(state)
    assert (step() > CLIP) == (scale > 1)
    direct = torch.autograd.grad(alpha_loss(net), alphas)
    for k, (c, d) in enumerate(zip(coupling, direct, strict=True)):
        total, eps = torch.zeros_like(c), 1e-5
        for index in itertools.product(*map(range, c.shape)):
            ends = []
            for sign in (1, -1):
                moved = [v.clone() for v in values]
                moved[k][index] += sign * eps
                set_back(moved)
                step()
                ends.append(alpha_loss(net).item())
            total[index] = (ends[0] - ends[1]) / (2 * eps)
        assert c.norm() > 1e-3 and d.norm() > 1e-3
        torch.testing.assert_close(c, total - d, rtol=0, atol=1e-8)


@pytest.mark.parametrize("options, steps", [({}, 0), ({"weight_decay": 0.1}, 1), ({"amsgrad": True}, 1)])
def test_another_optimizer_than_plain_adam_after_a_step_is_refused(options, steps):
    net, weights, _ = small()
    optimizer = torch.optim.Adam(weights, **options)
    for _ in range(steps):
        weight_loss(net).backward()
        optimizer.step()
    with pytest.raises(ValueError, match="^optimizer: expected Adam after a step, without weight decay and AMSGrad$"):
        adam_moves(optimizer)
    assert len(optimizer.state) == steps * len(weights)


def test_a_weight_without_gradient_has_no_coupling_by_adams_step_either():
    class Idle(Small):
        def __init__(self):
            super().__init__()
            self.idle = nn.Parameter(normal(2, 3))

        def forward(self, x):
            return super().forward(x) + 0.0 * self.idle.sum() * self.alphas[0].sum()

    found = []
    for net in (Small(), Idle()):
        alphas = list(net.alphas)
        weights = [p for p in net.parameters() if all(p is not a for a in alphas)]
        optimizer = torch.optim.Adam(weights, lr=0.05)
        weight_loss(net).backward()
        optimizer.step()
        found.append(one_step_coupling(net, weight_loss, alpha_loss, weights, alphas, adam_moves(optimizer)))
    for without, with_idle in zip(*found, strict=True):
        torch.testing.assert_close(with_idle, without, rtol=0, atol=1e-12)


def test_coupling_changes_nothing():
    net, weights, alphas = small()
    before = [p.detach().clone() for p in net.parameters()]
    coupling = one_step_coupling(net, weight_loss, alpha_loss, weights, alphas, XI)
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))
    assert all(p.grad is None for p in net.parameters())
    assert [c.shape for c in coupling] == [a.shape for a in alphas] and not any(c.requires_grad for c in coupling)
    assert all(not c.any() for c in one_step_coupling(net, weight_loss, alpha_loss, weights, alphas, 0.0))


class Mixture(nn.Module):
    """A toy of the derivation as a network: its parameters are α (E, M) and w (M,), its 'logits' the products α ⊛ w."""

    def __init__(self):
        super().__init__()
        self.alpha, self.w = nn.Parameter(normal(3, 4)), nn.Parameter(normal(4, seed=1))

    def forward(self, scale):
        return scale * self.alpha * self.w


def loss_of(z: torch.Tensor) -> torch.Tensor:
    return z.sin().sum() + 0.5 * (z.sum(1) ** 2).sum() + z.prod(0).sum()


@pytest.mark.parametrize("step", [0.1, 0.7])
def test_coupling_equals_the_derivations_unrolled_response(step):
    net = Mixture()
    got = one_step_coupling(net, lambda f: loss_of(f(1.0)), lambda f: loss_of(f(1.5)), [net.w], [net.alpha], step)
    alpha, w = net.alpha.detach(), net.w.detach()
    response = Unrolled(lambda a, v: loss_of(a * v), step)(alpha, w)
    moved = response.w.clone().requires_grad_()
    (dL_dw,) = torch.autograd.grad(loss_of(1.5 * alpha * moved), moved)
    torch.testing.assert_close(got[0], trace.coupling(dL_dw, response.jacobian), rtol=0, atol=1e-12)


def test_cosine_by_hand():
    a, b = [torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0]])], [torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0]])]
    assert cosine(a, b) == pytest.approx(1 / 3)
    assert cosine(a, [-t for t in b]) == pytest.approx(-1 / 3)
    assert cosine(a, [0 * t for t in a]) == 0.0
