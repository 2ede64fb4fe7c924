"""What a step keeps and shares: constants, memory over layers and steps, the Parent's logits, the benchmark's gradient."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from dcpnas_lite.data import digits
from dcpnas_lite.engine.config import SearchConfig
from dcpnas_lite.engine.run import SearchRun
from dcpnas_lite.engine.search import search
from dcpnas_lite.method import objectives, tangent
from dcpnas_lite.method.algorithm10 import TEACHER_STEPS
from dcpnas_lite.method.coupling import one_step_coupling
from dcpnas_lite.method.objectives import nas_loss
from dcpnas_lite.network.supernet import MICRO, Supernet, constant


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def kept_bytes(forward: Callable) -> int:
    """Bytes that a forward pass keeps for its backward pass, every storage once."""
    sizes: dict[int, int] = {}

    def keep(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = forward()
    assert out.requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("group", ["weights", "alphas"])
def test_constants_change_no_gradient_and_keep_less(binary, group):
    net = Supernet(MICRO, channels=2, layers=2, classes=3, binary=binary).double()
    x, upstream = torch.randn(3, 1, 8, 8).double(), torch.randn(3, 3).double()
    wanted, others = (net.weights(), net.alphas()) if group == "weights" else (net.alphas(), net.weights())
    expected = torch.autograd.grad(net(x), wanted, upstream)
    everything = kept_bytes(lambda: net(x))
    with constant(others):
        assert kept_bytes(lambda: net(x)) < 0.95 * everything
        got = torch.autograd.grad(net(x), wanted, upstream)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    with pytest.raises(RuntimeError, match="stop"), constant(net.weights()):
        raise RuntimeError("stop")
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("binary", [False, True])
def test_memory_grows_linearly_in_layers(binary):
    """Every further cell of the same size keeps the same number of bytes."""
    one = dataclasses.replace(MICRO, nodes=1)
    kept = []
    for layers in range(1, 5):
        net = Supernet(one, channels=2, layers=1, binary=binary)
        net.cells, net.cell_types = nn.ModuleList([net.cells[0]] * layers), net.cell_types * layers
        net.preprocess = nn.ModuleList([net.preprocess[0]] * layers)
        kept.append(kept_bytes(lambda net=net: net(torch.randn(4, 1, 8, 8))))
    assert kept[1] - kept[0] == kept[2] - kept[1] == kept[3] - kept[2] > 10_000


def test_memory_does_not_grow_with_the_steps():
    """Between two steps a search holds the same large tensors, however many steps it has made and recorded."""
    held = []

    def count(progress):
        gc.collect()
        tensors = [t for t in gc.get_objects() if type(t) in (torch.Tensor, nn.Parameter) and t.numel() >= 1000]
        held.append((progress.network, sum(t.nbytes for t in tensors)))

    gc.freeze()  # what other tests left is not looked through each time
    try:
        search(digits(size=8), SearchConfig(channels=2, layers=1, rounds=1, steps=6, warmup=0, batch=8), callback=count)
    finally:
        gc.unfreeze()
    for name in ("parent", "child"):
        sizes = [size for network, size in held if network == name][1:]  # Adam's moments come with the first step
        assert len(sizes) == 5 and sizes[0] > 0 and len(set(sizes)) == 1


def test_soft_targets_of_several_steps_are_computed_at_once_by_the_fixed_parent(monkeypatch):
    """A Child phase of 6 steps asks the Parent twice, for four steps and for two; in a warmup round for training images alone."""
    config = SearchConfig(channels=2, layers=1, rounds=2, steps=6, warmup=1, batch=8)
    run = SearchRun(digits(size=8), config)
    asked, answers, used = [], [], []
    parent, gain = run.networks["parent"], objectives.kl_gain
    forward = parent.forward

    def spied(x):
        out = forward(x)
        if not torch.is_grad_enabled():
            asked.append(x)
            answers.extend(out.split(8))
        return out

    monkeypatch.setattr(parent, "forward", spied)
    monkeypatch.setattr(objectives, "kl_gain", lambda child, teacher: used.append(teacher) or gain(child, teacher))
    while run.done < run.total:
        run.step()
    images = [
        torch.cat([run.batch(split, n, salt)[0] for n in steps for salt, split in enumerate(splits)])
        for splits, *blocks in ((("train",), range(4), (4, 5)), (("train", "validation"), range(6, 10), (10, 11)))
        for steps in blocks
    ]
    assert len(asked) == 4 and all(torch.equal(got, want) for got, want in zip(asked, images, strict=True))
    assert TEACHER_STEPS == 4 and len(used) == 6 + 2 * 6 and not any(t.requires_grad for t in used)
    assert all(torch.equal(got, want) for got, want in zip(used, answers, strict=True))


def test_lazy_tangent_enters_every_so_many_steps_with_as_many_times_lambda(monkeypatch):
    """Gradients of −G + λ D in the first and third step and of −G alone between them, for λ = 0.5 taken every 2 steps."""
    config = SearchConfig(channels=2, layers=1, rounds=1, steps=4, warmup=0, batch=8, lam=0.5, tangent_every=2)
    run = SearchRun(digits(size=8), config)
    terms, gradients = [], []
    original, step = tangent.loss_gradient, run.alpha_optimizers["child"].step

    def recorded(of_gain, of_distance, lam):
        terms.append((run.done, lam, of_gain, of_distance))
        return original(of_gain, of_distance, lam)

    def spied():
        gradients.append(run.networks["child"].alphas()[0].grad.clone())
        step()

    monkeypatch.setattr(tangent, "loss_gradient", recorded)
    monkeypatch.setattr(run.alpha_optimizers["child"], "step", spied)
    while run.done < run.total:
        run.step()
    assert [done for done, *_ in terms] == [4, 6]
    for gradient, (_, lam, of_gain, of_distance) in zip(gradients[::2], terms, strict=True):
        torch.testing.assert_close(gradient, 2 * 0.5 * of_distance[0] - of_gain[0], rtol=0, atol=0)
        assert of_distance[0].any() and lam == 1.0
    assert [bool(torch.isnan(torch.tensor(r["distance"]))) for r in run.history[4:]] == [False, True, False, True]


def test_second_order_darts_is_the_direct_gradient_and_the_coupling(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    cost = importlib.import_module("cost")
    sys.modules.pop("cost")
    net = Supernet(MICRO, channels=2, layers=1).double()
    train, validation = (
        (torch.randn(4, 1, 8, 8, dtype=torch.float64), torch.tensor(labels)) for labels in ([0, 1, 2, 3], [3, 2, 5, 0])
    )
    got = cost.unrolled_gradient(net, train, validation, 0.1)

    def loss(batch):
        return lambda network: nas_loss(network(batch[0]), batch[1])

    coupling = one_step_coupling(net, loss(train), loss(validation), net.weights(), net.alphas(), 0.1)
    slopes = torch.autograd.grad(loss(train)(net), net.weights())
    with torch.no_grad():
        for w, g in zip(net.weights(), slopes, strict=True):
            w -= 0.1 * g
    direct = torch.autograd.grad(loss(validation)(net), net.alphas())
    for mine, c, d in zip(got, coupling, direct, strict=True):
        assert c.any()
        torch.testing.assert_close(mine, c + d, rtol=0, atol=1e-12)
