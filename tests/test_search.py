"""Algorithm 10: against the same algorithm written out plainly, its variants, determinism, resuming and errors."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call

from dcpnas_lite.data import Data, Split, batches, digits
from dcpnas_lite.engine import checkpoint, resume
from dcpnas_lite.engine import search as loop
from dcpnas_lite.engine.config import METHODS, SPACES, SearchConfig
from dcpnas_lite.engine.search import SearchStopped, search
from dcpnas_lite.method.backtracking import SHAPES, Learned, no_backtracking
from dcpnas_lite.network import operations
from dcpnas_lite.network.binarize import BinaryConv2d
from dcpnas_lite.network.genotype import discretize
from dcpnas_lite.network.supernet import MICRO, Space, Supernet

# Two small spaces keep these tests fast: one with a single cell type, one with normal and reduction cells.
SMALL = Space("small", 1, 2, ("normal",), ("none", "skip_connect", "max_pool_3x3", "dil_conv_3x3", "sep_conv_3x3"))
PAIR = Space("pair", 2, 1, ("normal", "reduce"), ("none", "skip_connect", "sep_conv_3x3"))


@pytest.fixture(autouse=True)
def small_spaces(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setitem(SPACES, "small", SMALL)
    monkeypatch.setitem(SPACES, "pair", PAIR)


@pytest.fixture(scope="session")
def data() -> Data:
    whole = digits(size=8)
    splits = [Split(s.x[:n], s.y[:n]) for s, n in ((whole.train, 28), (whole.validation, 20), (whole.test, 16))]
    return dataclasses.replace(whole, name="tiny", train=splits[0], validation=splits[1], test=splits[2])


def tiny(**changes) -> SearchConfig:
    base = dict(space="small", channels=4, layers=1, rounds=2, steps=2, warmup=0, batch=8, tau=3)
    return SearchConfig(**(base | changes))


def same(first, second) -> bool:
    """Bit by bit the same result, the seconds aside."""
    assert first.history.keys() == second.history.keys()
    return (
        first.genotype == second.genotype
        and all(torch.equal(first.alphas[t], second.alphas[t]) for t in first.alphas)
        and all(np.array_equal(first.history[k], second.history[k], equal_nan=True) for k in first.history)
    )


# -- the algorithm ----------------------------------------------------------------------------------------------------


def plain_algorithm_10(data: Data, config: SearchConfig) -> tuple[list[dict], dict]:
    """Algorithm 10 written out: one loop, plain autograd (D is differentiated as it stands), no state but local names."""
    space = SPACES[config.space]
    torch.manual_seed(config.seed)
    parent = Supernet(space, config.channels, config.layers, 10, 1, binary=False)
    child = Supernet(space, config.channels, config.layers, 10, 1, binary=True)
    child.inherit(parent)
    optimizers, psi, last = {}, {}, {}
    for net, share in ((parent, config.parent_share), (child, 1.0)):
        optimizers[net] = (
            torch.optim.Adam(net.weights(), lr=config.weight_lr),
            torch.optim.Adam(net.alphas(), lr=share * config.alpha_lr, betas=(0.5, 0.999), weight_decay=config.alpha_decay),
        )
        psi[net], last[net] = [torch.full_like(a, 0.01) for a in net.alphas()], None

    def batch(split, n, salt):
        k = len(split) // config.batch
        return split[batches(split, config.batch, 2 * config.seed + salt, n // k, drop_last=True)[n % k]]

    def gain(logits, soft):
        p, log_p = soft.softmax(1), soft.log_softmax(1)
        return (p * (logits.log_softmax(1) - log_p)).sum(1).mean()

    def likelihood(logits, y):
        return logits.log_softmax(1)[range(len(y)), y].mean()

    def weight_loss(net, call, x, y, soft):
        if net is parent:
            return -likelihood(call(x), y)
        error = sum(
            (m.weight - m.weight.abs().mean((1, 2, 3), keepdim=True) * m.binary_weight()).square().sum()
            for m in net.modules()
            if isinstance(m, BinaryConv2d)
        )
        return -gain(call(x), soft) + config.mu * error

    def alpha_loss(net, call, x, y, soft):
        return -likelihood(call(x), y) if net is parent else -gain(call(x), soft)

    def coupling(net, train, validation):
        """dL(w − ξ ∇L_w, α)/∂α through the step, minus ∂L/∂α, in one graph."""
        names = [name for name, _ in net.named_parameters() if not name.startswith("alpha.")]
        slopes = torch.autograd.grad(weight_loss(net, net, *train), net.weights(), create_graph=True)
        moved = {n: w - config.weight_lr * g for n, w, g in zip(names, net.weights(), slopes, strict=True)}
        total = torch.autograd.grad(alpha_loss(net, lambda x: functional_call(net, moved, x), *validation), net.alphas())
        fixed = {n: w.detach() for n, w in moved.items()}
        direct = torch.autograd.grad(alpha_loss(net, lambda x: functional_call(net, fixed, x), *validation), net.alphas())
        return [t - d for t, d in zip(total, direct, strict=True)]

    records = []
    for round_ in range(config.rounds):
        for net in (parent, child):
            last[net] = None  # α is inherited: the gradient says nothing about ψ̃
            first = round_ * config.steps
            directions = []
            for n in range(first, first + config.steps):
                x, y = batch(data.validation, n, 1)
                directions.append(torch.autograd.grad(likelihood(parent(x), y), parent.alphas()))
            tangent = [torch.stack(parts).mean(0) for parts in zip(*directions, strict=True)]
            steps = range(first, first + config.steps)  # no more than the Parent is asked for at once
            images = [batch(split, n, salt)[0] for n in steps for split, salt in ((data.train, 0), (data.validation, 1))]
            soft = parent(torch.cat(images)).detach().split(config.batch)
            for k, n in enumerate(steps):
                train, validation = (*batch(data.train, n, 0), soft[2 * k]), (*batch(data.validation, n, 1), soft[2 * k + 1])
                by_weights, by_alphas = optimizers[net]
                by_weights.param_groups[0]["lr"] = (
                    config.weight_lr * (1 + math.cos(math.pi * n / (config.rounds * config.steps))) / 2
                )
                net.zero_grad()
                loss = weight_loss(net, net, *train)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(net.weights(), 5.0)
                by_weights.step()
                record = {"network": float(net is child), "weight_loss": loss.item(), "distance": math.nan}
                net.zero_grad()
                objective = alpha_loss(net, net, *validation)
                record["alpha_loss"] = objective.item()
                if net is child and config.lam > 0:
                    slope = torch.autograd.grad(-objective, net.alphas(), create_graph=True)
                    distance = sum((s - t).square().sum() for s, t in zip(slope, tangent, strict=True))
                    record["distance"] = distance.item()
                    objective = objective + config.lam * distance
                gradient = torch.autograd.grad(objective, net.alphas())
                before = [a.detach().clone() for a in net.alphas()]
                if config.backtracking == "refreshed":
                    correction = [-c for c in coupling(net, train, validation)]
                elif config.backtracking == "learned":
                    if last[net] is not None:
                        psi[net] = [
                            (p - 1.0 * config.eta * g * a).abs() for p, g, a in zip(psi[net], gradient, last[net], strict=True)
                        ]
                    chosen = torch.tensor(["conv" in name for name in space.operations])
                    last[net] = [a * chosen for a in before]
                    correction = [p * a for p, a in zip(psi[net], last[net], strict=True)]
                else:
                    correction = [torch.zeros_like(a) for a in before]
                for a, g in zip(net.alphas(), gradient, strict=True):
                    a.grad = g
                by_alphas.step()
                with torch.no_grad():
                    for a, c in zip(net.alphas(), correction, strict=True):
                        a += config.eta * c
                for t, a in net.alpha.items():
                    record[f"alpha/{t}"] = a.detach().clone()
                records.append(record)
            (child if net is parent else parent).inherit(net)
    return records, {t: a.detach() for t, a in child.alpha.items()}


@pytest.mark.parametrize("changes", [
    dict(backtracking="none", lam=5.0, mu=0.01),
    dict(backtracking="learned", lam=0.0, mu=0.0, eta=0.7, seed=1),
    dict(backtracking="refreshed", refresh=1, lam=1.0, eta=5.0, rounds=1, space="pair", layers=2),
])  # fmt: skip
def test_search_against_the_algorithm_written_out(data, changes):
    config = tiny(curvature="hessian", **changes)
    result = search(data, config)
    records, alphas = plain_algorithm_10(data, config)
    assert len(records) == 4 * config.rounds
    for name in records[0]:
        expected = np.stack([np.asarray(r[name]) for r in records])
        np.testing.assert_allclose(result.history[name], expected, rtol=2e-3, atol=2e-5, err_msg=name)
    for t, alpha in alphas.items():
        torch.testing.assert_close(result.alphas[t], alpha, rtol=2e-3, atol=2e-5)
        moved = [np.abs(np.diff(result.history[f"alpha/{t}"], axis=0)).max(axis=(1, 2))]
        assert (np.stack(moved) > 1e-3).all()


def test_alpha_is_inherited_both_ways(data):
    """A rule that only watches sees each network start where the other stopped, and count its own steps."""
    seen = []

    def watch(step):
        assert step.alpha.shape == step.alpha_next.shape == step.gradient.shape == (3, 5) and step.norms.shape == (5,)
        assert not torch.equal(step.alpha, step.alpha_next)
        seen.append((step.network, step.index, step.alpha, step.alpha_next + 0.01))
        return step.alpha_next + 0.01

    result = search(data, tiny(), backtracking=watch)
    assert [s[:2] for s in seen] == [(n, 2 * r + k) for r in range(2) for n in ("parent", "child") for k in range(2)]
    for (_, _, _, reached), (_, _, start, _) in zip(seen, seen[1:], strict=False):
        assert torch.equal(reached, start)
    assert torch.equal(result.alphas["normal"], seen[-1][3])
    assert np.array_equal(result.history["alpha/normal"], np.stack([s[3] for s in seen]))
    assert result.genotype == discretize(SMALL, result.alphas)


def test_same_seed_same_result_whatever_else_draws_random_numbers(data):
    config = SearchConfig(channels=4, layers=1, rounds=1, steps=2, warmup=0, batch=8)  # MICRO, with all defaults
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = search(data, config)
    assert torch.equal(torch.get_rng_state(), state)  # and the global generator is left alone
    torch.manual_seed(2)
    second = search(data, config, progress=True)
    assert same(first, second)
    assert first.alphas["normal"].shape == (len(MICRO.edges), 8)
    other = search(data, dataclasses.replace(config, seed=1))
    assert not torch.equal(first.alphas["normal"], other.alphas["normal"])


# -- methods, history -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(data, method):
    config = SearchConfig.method(method, space="small", channels=4, layers=1, rounds=3, steps=2, warmup=1, batch=8, tau=3)
    history = (result := search(data, config)).history
    networks = {"bnas": [1.0] * 4, "darts": [0.0] * 4}.get(method, [0.0, 0.0, 1.0, 1.0] * 2)
    assert history["network"].tolist() == networks
    expected = {"network", "weight_loss", "alpha_loss", "distance", "alpha/normal"}
    assert set(history) == (expected | {"psi/normal"} if method == "dcp-nas" else expected)
    for name, values in history.items():
        assert values.shape == ((len(networks), 3, 5) if "/" in name else (len(networks),)), name
        if name != "distance":
            assert np.isfinite(values).all(), name
    with_distance = [method == "dcp-nas" and n == 1.0 for n in networks]
    assert np.isfinite(history["distance"]).tolist() == with_distance
    assert np.array_equal(history["alpha/normal"][-1], result.alphas["normal"].numpy())
    assert result.seconds > 0 and result.genotype == discretize(SMALL, result.alphas)


def test_methods_are_what_their_names_say():
    assert SearchConfig.method("dcp-nas") == SearchConfig()
    cp, bnas, darts = (SearchConfig.method(n) for n in ("cp-nas", "bnas", "darts"))
    assert (cp.networks, cp.lam, cp.backtracking) == ("both", 0.0, "none") and cp.mu == SearchConfig().mu
    assert (bnas.networks, bnas.lam, bnas.backtracking) == ("child", 0.0, "none")
    assert (darts.networks, darts.lam, darts.mu, darts.backtracking) == ("parent", 0.0, 0.0, "none")
    with pytest.raises(ValueError, match="method: expected one of dcp-nas, cp-nas, bnas, darts, got 'enas'"):
        SearchConfig.method("enas")


def test_tangent_propagation_moves_the_child_alone(data):
    with_d, without = (search(data, tiny(lam=lam, rounds=1, backtracking="none")).history for lam in (50.0, 0.0))
    assert np.array_equal(with_d["alpha/normal"][:2], without["alpha/normal"][:2])
    assert (with_d["alpha/normal"][2:] != without["alpha/normal"][2:]).any(axis=(1, 2)).all()
    assert with_d["alpha_loss"][2] == without["alpha_loss"][2]  # −G, without λ D


def test_the_parent_takes_its_share_of_a_step(data):
    def moved(**changes):
        runs = [search(data, tiny(rounds=1, steps=1, alpha_decay=0.0, backtracking="none", alpha_lr=lr, **changes)).history
                for lr in (0.02, 0.0)]  # fmt: skip
        return np.subtract(*(run["alpha/normal"] for run in runs))

    whole, half = moved(parent_share=1.0), moved(parent_share=0.5)
    np.testing.assert_allclose(half[0], whole[0] / 2, atol=1e-7)
    np.testing.assert_allclose(abs(half[1] - half[0]).max(), 0.02, atol=1e-6)  # the Child's step is whole: Adam's first is ±lr
    alone = dict(networks="parent", lam=0.0)
    assert np.array_equal(moved(parent_share=0.5, **alone), moved(parent_share=1.0, **alone))


def test_alpha_waits_for_the_end_of_the_warmup(data):
    result = search(data, tiny(rounds=1, warmup=1))
    torch.manual_seed(0)
    assert torch.equal(result.alphas["normal"], Supernet(SMALL, 4, 1).alpha["normal"])
    assert result.history == {}


def test_two_cell_types_have_entries_of_their_own(data):
    result = search(data, tiny(space="pair", layers=2, tau=2, rounds=1, steps=1, measure_every=1))
    assert set(result.alphas) == {"normal", "reduce"}
    for kind in ("alpha", "psi", "coupling"):
        for cell_type in ("normal", "reduce"):
            assert result.history[f"{kind}/{cell_type}"].shape == (2, 2, 3)
    assert result.genotype.reduce is not None
    norms = {}
    config = tiny(space="pair", layers=2, rounds=1, steps=1, networks="parent")
    search(data, config, backtracking=lambda s: norms.update({s.cell_type: s.norms}) or s.alpha_next)
    assert set(norms) == {"normal", "reduce"} and not torch.equal(norms["normal"], norms["reduce"])


def test_measurements(data):
    config = tiny(backtracking="refreshed", refresh=1, eta=5.0, measure_every=2)
    history = search(data, config).history
    assert history["measured"].tolist() == [0.0, 2.0, 4.0, 6.0]  # every second α step of each network
    assert history["network"][history["measured"].astype(int)].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert history["coupling/normal"].shape == (4, 3, 5) and np.abs(history["coupling/normal"]).max(axis=(1, 2)).all()
    # this rule's correction is −η C itself
    np.testing.assert_allclose(history["coupling_cosine/normal"], 1.0, atol=1e-3)
    captured = history["captured/normal"]
    assert captured.shape == (4, len(SHAPES)) and (captured[:, 0] <= captured[:, 1:3].min(1) + 1e-6).all()
    np.testing.assert_allclose(captured[:, 3], 1.0, atol=1e-4)
    assert (history["gradient_ratio"] > 0).all()
    assert np.isnan(history["trust"]).tolist() == [True, False, True, False]
    assert (np.abs(history["trust"][1::2]) <= 1 + 1e-6).all()


def test_measuring_does_not_change_the_search(data):
    plain, measured = search(data, tiny(rounds=1)), search(data, tiny(rounds=1, measure_every=1))
    assert torch.equal(plain.alphas["normal"], measured.alphas["normal"])
    assert all(np.array_equal(v, measured.history[k], equal_nan=True) for k, v in plain.history.items())


@pytest.mark.parametrize("distance, curvature", [("L1", "sampled"), ("cosine", "gauss_newton"), ("F", "rank_one")])
def test_distances_and_curvatures_run(data, distance, curvature):
    history = search(data, tiny(rounds=1, steps=1, distance=distance, curvature=curvature)).history
    assert np.isfinite(history["distance"][1]) and np.isfinite(history["alpha/normal"]).all()


def test_a_split_smaller_than_the_batch_is_one_batch(data):
    history = search(data, tiny(batch=1000, rounds=1, steps=1)).history
    assert np.isfinite(history["weight_loss"]).all()


def test_sampled_classes_are_drawn_anew_at_every_step(data, monkeypatch):
    seeds, original = [], torch.multinomial

    def watch(*arguments, generator, **options):
        seeds.append(generator.initial_seed())
        return original(*arguments, generator=generator, **options)

    monkeypatch.setattr(torch, "multinomial", watch)
    for seed, rounds in ((0, 2), (1, 1)):
        search(data, tiny(seed=seed, rounds=rounds))
    assert len(seeds) == len(set(seeds)) == 4 + 2  # another one for every step and every seed


# -- rules of one's own -----------------------------------------------------------------------------------------------


def test_any_callable_takes_the_place_of_the_rule(data):
    config = tiny(rounds=1)
    assert same(
        search(data, config, backtracking=no_backtracking), search(data, dataclasses.replace(config, backtracking="none"))
    )
    assert same(search(data, config, backtracking=Learned(tau=3)), search(data, config))
    frozen = search(data, config, backtracking=lambda step: step.alpha)
    assert (frozen.history["alpha/normal"] == frozen.history["alpha/normal"][0]).all()


@pytest.mark.parametrize("rule, error, message", [
    (lambda s: s.alpha.T, ValueError, r"backtracking: expected a tensor of shape \(3, 5\), got \(5, 3\)"),
    (lambda s: s.alpha[0], ValueError, r"backtracking: expected a tensor of shape \(3, 5\), got \(5,\)"),
    (lambda s: s.alpha.sum(), ValueError, r"backtracking: expected a tensor of shape \(3, 5\), got \(\)"),
    (lambda s: None, ValueError, r"backtracking: expected a tensor of shape \(3, 5\), got NoneType"),
    (lambda s: s.alpha.numpy(), ValueError, r"backtracking: expected a tensor of shape \(3, 5\), got ndarray"),
    (lambda s: s.alpha / 0, FloatingPointError, "step 0: the parent's α is not finite"),
])  # fmt: skip
def test_a_rule_that_returns_something_else_is_refused(data, rule, error, message):
    with pytest.raises(error, match=message):
        search(data, tiny(), backtracking=rule)


# -- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes, message", [
    (dict(space="huge"), "space: expected one of micro, paper.*, got 'huge'"),
    (dict(networks="teacher"), "networks: expected one of both, parent, child, got 'teacher'"),
    (dict(distance="L2"), "distance: expected one of F, L1, cosine, got 'L2'"),
    (dict(curvature="newton"), "curvature: expected one of hessian, .*got 'newton'"),
    (dict(backtracking=None), "backtracking: expected one of learned, refreshed, none, got None"),
    (dict(psi_shape=("full",)), r"psi_shape: expected one of scalar, .*got \('full',\)"),
    (dict(seed=-1), "seed: expected an integer from 0 to 2147483647, got -1"),
    (dict(channels=0), "channels: expected an integer of at least 1, got 0"),
    (dict(layers=2.0), r"layers: expected an integer of at least 1, got 2\.0"),
    (dict(rounds=True), "rounds: expected an integer of at least 1, got True"),
    (dict(steps="12"), "steps: expected an integer of at least 1, got '12'"),
    (dict(batch=None), "batch: expected an integer of at least 1, got None"),
    (dict(weight_lr=-0.1), "weight_lr: expected a finite number of at least 0, got -0.1"),
    (dict(alpha_lr=math.nan), "alpha_lr: expected a finite number of at least 0, got nan"),
    (dict(eta=math.inf), "eta: expected a finite number of at least 0, got inf"),
    (dict(lam="1"), "lam: expected a finite number of at least 0, got '1'"),
    (dict(mu=True), "mu: expected a finite number of at least 0, got True"),
    (dict(absolute=1), "absolute: expected True or False, got 1"),
    (dict(space="paper", layers=1), "layers: expected at least 2 .*got 1"),
])  # fmt: skip
def test_a_wrong_value_names_the_field_what_was_expected_and_what_came(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        SearchConfig(**changes)


def test_config_json_round_trip():
    config = SearchConfig.method("cp-nas", space="paper", seed=7, weight_lr=1, absolute=False)
    assert SearchConfig.from_json(config.to_json()) == config
    for text, message in (
        ('{"sed": 1}', "config: expected fields of SearchConfig, got sed"),
        ('{"seed": "1"}', "seed: expected an integer"),
        ("[1]", "config: expected a JSON object, got list"),
        ("7", "config: expected a JSON object, got int"),
        ("{", "Expecting"),
    ):
        with pytest.raises(ValueError, match=message):
            SearchConfig.from_json(text)


# -- stopping and resuming --------------------------------------------------------------------------------------------

RESUMED = dict(
    learned=dict(curvature="sampled"),
    refreshed=dict(backtracking="refreshed", refresh=3, curvature="hessian"),
)


@pytest.fixture(scope="session")
def uninterrupted(data) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SPACES, "small", SMALL)
        return {name: search(data, tiny(**changes)) for name, changes in RESUMED.items()}


@pytest.mark.parametrize("rule, stop", [("learned", 1), ("learned", 3), ("learned", 6), ("refreshed", 7)])
def test_stopped_and_resumed_is_bit_identical(data, uninterrupted, tmp_path, rule, stop):
    """Stops in the middle of a Parent phase (1), of a Child phase (3, 7) and between rounds but one (6)."""
    path, config, steps = tmp_path / "search.npz", tiny(**RESUMED[rule]), []

    def callback(progress):
        steps.append((progress.step, progress.total, progress.network))
        assert progress.alphas["normal"].shape == (3, 5) and math.isfinite(progress.loss)
        return progress.step == stop

    with pytest.raises(SearchStopped, match=f"stopped after step {stop} of 8"):
        search(data, config, callback=callback, checkpoint=path)
    assert len(steps) == stop
    resumed = search(data, config, callback=callback, checkpoint=path)
    names = ["parent", "parent", "child", "child"] * 2
    assert steps == [(k + 1, 8, names[k]) for k in range(8)]
    assert same(resumed, uninterrupted[rule])
    assert same(search(data, config, checkpoint=path), resumed)  # of a finished search nothing is left to do


def test_an_exception_leaves_the_last_regular_checkpoint(data, uninterrupted, tmp_path):
    def fail(progress):
        if progress.step == 6:
            raise KeyboardInterrupt

    path = tmp_path / "search.npz"
    with pytest.raises(KeyboardInterrupt):
        search(data, tiny(), callback=fail, checkpoint=path, save_every=3)
    assert checkpoint.load(path)["done"] == 3
    assert same(search(data, tiny(), checkpoint=path), uninterrupted["learned"])


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from dcpnas_lite.engine import checkpoint, search as loop
from dcpnas_lite.engine.config import SPACES, SearchConfig
from dcpnas_lite.data import Data, Split
from dcpnas_lite.network.supernet import Space

torch.set_num_threads(1)
at, writing = int(sys.argv[1]), sys.argv[2] == "writing"
state = torch.load("data.pt", weights_only=True)
data = Data("tiny", *(Split(*state[name]) for name in ("train", "validation", "test")), tuple("0123456789"), (0.0,), (1.0,))
SPACES["small"] = Space("small", 1, 2, ("normal",), tuple(state["operations"]))
# the space has to be known by name before the configuration is read
config = SearchConfig.from_json(Path("config.json").read_text())
saves, replace = [], os.replace

def replace_or_die(part, path):
    saves.append(0)
    if writing and len(saves) == at:
        with open(part, "r+b") as file:
            file.truncate(os.path.getsize(part) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    replace(part, path)

def callback(progress):
    if not writing and progress.step == at:
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = replace_or_die
loop.search(data, config, callback=callback, checkpoint="search.npz", save_every=1)
"""


@pytest.mark.parametrize("moment", ["between steps", "writing"])
def test_a_killed_search_goes_on_where_it_was(data, uninterrupted, tmp_path, moment):
    at = random.Random(os.urandom(4)).randint(2, 8)
    splits = {name: (getattr(data, name).x, getattr(data, name).y) for name in ("train", "validation", "test")}
    torch.save(splits | {"operations": list(SMALL.operations)}, tmp_path / "data.pt")
    (tmp_path / "config.json").write_text(tiny().to_json())
    environment = os.environ | {"PYTHONPATH": str(Path(loop.__file__).parents[2])}
    command = [sys.executable, "-c", KILLED, str(at), moment.split()[0]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert checkpoint.load(tmp_path / "search.npz")["done"] == at - 1
    resumed = search(data, tiny(), checkpoint=tmp_path / "search.npz")
    assert same(resumed, uninterrupted["learned"]), f"killed at step {at}, {moment}"
    assert sorted(os.listdir(tmp_path)) == ["config.json", "data.pt", "search.npz"]  # no left-over of the killed writer


def test_a_checkpoint_of_another_configuration_is_refused(data, tmp_path):
    path = tmp_path / "search.npz"
    search(data, tiny(rounds=1, steps=1), checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="search.npz: expected a checkpoint of this configuration, got one of another"):
        search(data, tiny(rounds=1, steps=1, seed=1), checkpoint=path)
    assert path.read_bytes() == before


def test_a_checkpoint_of_other_images_is_refused(data, tmp_path):
    path = tmp_path / "search.npz"
    search(data, tiny(rounds=1, steps=1), checkpoint=path)
    other = dataclasses.replace(data, train=Split(data.train.x.flip(0), data.train.y))
    with pytest.raises(ValueError, match="expected a checkpoint of this data"):
        search(other, tiny(rounds=1, steps=1), checkpoint=path)


def every_value(state, where=()):
    """The place of every value in nested dicts and lists, but for the tensors beyond the first three of a dict."""
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    for n, (key, value) in enumerate(items):
        if n < 3 or not (isinstance(value, torch.Tensor) or key in range(1, 10_000)):
            yield (*where, key)
            yield from every_value(value, (*where, key))


def other_values(value):
    """What might stand in place of a value."""
    yield from (None, "x", [], {}, -1, 2.5, math.nan, torch.zeros(1), torch.full((3, 8), math.nan))
    if isinstance(value, torch.Tensor):
        yield from (value.double(), value[None], value * math.nan if value.is_floating_point() else value.float())
    elif isinstance(value, int | float):
        yield from (value + 1, str(value), [value])
    elif isinstance(value, dict | list):
        yield value.__class__(list(value.items())[1:] if isinstance(value, dict) else value[1:])
        yield value | {"more": 1} if isinstance(value, dict) else [*value, *value[:1]]


def test_a_right_checksum_with_wrong_contents_is_refused(data, tmp_path):
    """Every value of a state in turn: taken away, of another type, shape or kind. Only what may be otherwise is accepted."""
    config, tried = tiny(measure_every=2), 0
    search(data, config, checkpoint=tmp_path / "a.npz")
    state = checkpoint.load(tmp_path / "a.npz")
    run = loop.SearchRun(data, config)
    free = {"seconds", "weight_loss", "alpha_loss", "distance", "gradient_ratio", "trust", "coupling_cosine/normal"}
    for place in list(every_value(state)):
        holder = state
        for key in place[:-1]:
            holder = holder[key]
        kept = holder[place[-1]]
        for other in (*other_values(kept), KeyError):
            if isinstance(kept, list) and kept == other:  # no finalists
                continue
            if type(other) is type(kept) and (place[-1] in free or (isinstance(kept, torch.Tensor) and other is not kept
                                              and other.shape == kept.shape and not other.isnan().any())):  # fmt: skip
                continue
            if other is KeyError:
                if str(place[-1]).startswith("psi/") or place == ("final",):  # which an earlier checkpoint has not
                    continue
                holder.pop(place[-1])
            else:
                holder[place[-1]] = other
            try:
                resume.restore(run, state, "a.npz")
            except ValueError as error:
                assert str(error).startswith("a.npz: ") and "\n" not in str(error), (place, other, error)
            else:
                raise AssertionError(f"{place}: {other!r} accepted")
            assert run.done == 0 and run.history == []  # nothing is taken over
            tried += 1
            if other is KeyError and isinstance(holder, list):
                holder.insert(place[-1], kept)
            else:
                holder[place[-1]] = kept
    assert tried > 500
    checkpoint.save(tmp_path / "a.npz", state)
    assert same(search(data, config, checkpoint=tmp_path / "a.npz"), search(data, config))


def test_a_checkpoint_knows_its_rule(data, tmp_path):
    path, config, eta = tmp_path / "search.npz", tiny(), 0.1

    def rule(step):
        return step.alpha_next + eta * step.alpha

    first = search(data, config, rule, checkpoint=path)
    assert same(search(data, config, rule, checkpoint=path), first)
    eta = 0.2  # the same function, another result
    for other in (rule, None, lambda step: step.alpha_next):
        with pytest.raises(ValueError, match="search.npz: expected a checkpoint of this rule, got one of another"):
            search(data, config, other, checkpoint=path)


def test_a_checkpoint_knows_its_space_and_the_operations_that_are_not_the_sources(data, tmp_path, monkeypatch):
    path, names = tmp_path / "search.npz", ("none", "skip_connect", "conv")
    monkeypatch.setitem(operations.REGISTRY, "conv", None)  # taken out again afterwards

    def run(kernel, nodes=2):
        build = lambda c, stride, *form: torch.nn.Sequential(*operations.convolution(c, c, kernel, *form, stride))  # noqa: E731
        operations.register("conv", build)
        return search(data, tiny(rounds=1), checkpoint=path, space=Space("mine", 1, nodes, ("normal",), names))

    first = run(3)
    assert same(run(3), first)
    for other in ((5,), (3, 1)):
        with pytest.raises(ValueError, match="search.npz: expected a checkpoint of this space, got one of another"):
            run(*other)


def test_a_rule_with_state_is_copied_and_goes_on(data, uninterrupted, tmp_path):
    rule, path = Learned(tau=3), tmp_path / "search.npz"
    with pytest.raises(SearchStopped):
        search(data, tiny(), rule, checkpoint=path, callback=lambda progress: progress.step == 5)
    assert rule.psi == {}
    assert same(search(data, tiny(), rule, checkpoint=path), uninterrupted["learned"])
    warm = Learned(tau=3)
    warm.psi["parent/normal"] = torch.ones(3, 5)
    with pytest.raises(ValueError, match="expected a checkpoint of this rule"):
        search(data, tiny(), warm, checkpoint=path)


def test_two_searches_cannot_share_a_checkpoint(data, tmp_path):
    path, errors = tmp_path / "search.npz", []

    def second(progress):
        if progress.step == 2:
            with pytest.raises(BlockingIOError, match=f"search.npz: in use by process {os.getpid()} on ") as caught:
                search(data, tiny(), checkpoint=path)
            errors.append(caught)

    search(data, tiny(), checkpoint=path, callback=second)
    assert len(errors) == 1 and os.listdir(tmp_path) == ["search.npz"]


def test_an_interrupted_search_returns_what_there_is_or_saves(data, uninterrupted, tmp_path):
    def interrupt(progress):
        if progress.step == 5:
            signal.raise_signal(signal.SIGINT)

    with pytest.warns(UserWarning, match="search stopped after step 5 of 8: this is the result so far"):
        part = search(data, tiny(), callback=interrupt)
    whole = uninterrupted["learned"]
    assert not part.finished and whole.finished and len(part.history["network"]) == 5
    assert np.array_equal(part.history["alpha/normal"], whole.history["alpha/normal"][:5])
    with pytest.raises(KeyboardInterrupt, match="stopped after step 5 of 8; the same call goes on from"):
        search(data, tiny(), callback=interrupt, checkpoint=tmp_path / "search.npz", save_every=100)
    assert same(search(data, tiny(), checkpoint=tmp_path / "search.npz"), whole)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def at_once(progress):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # a second one does not wait for the step

    with pytest.raises(KeyboardInterrupt):
        search(data, tiny(), callback=at_once)


def test_a_full_disk_ends_a_search_with_one_line(data, uninterrupted, tmp_path, monkeypatch):
    path, sync = tmp_path / "search.npz", os.fsync

    def full(file):
        sync(file)
        if path.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    line = r"No space left on device; not written \(an earlier file stays as it was\)"
    with monkeypatch.context() as patch, pytest.raises(OSError, match=line):
        patch.setattr(os, "fsync", full)
        search(data, tiny(), checkpoint=path, save_every=3)
    assert checkpoint.load(path)["done"] == 3 and os.listdir(tmp_path) == ["search.npz"]
    assert same(search(data, tiny(), checkpoint=path), uninterrupted["learned"])


def test_a_search_has_its_own_result_whatever_runs_beside_it(data):
    configs = [tiny(seed=seed, rounds=1, steps=2, measure_every=1) for seed in range(4)]
    before = torch.get_rng_state()
    alone = [search(data, config) for config in configs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda config: search(data, config), configs))
    assert all(map(same, alone, together)) and torch.equal(torch.get_rng_state(), before)


def test_checkpoint_arguments_are_checked_before_the_first_step(data, tmp_path):
    with pytest.raises(ValueError, match="save_every: expected at least 1"):
        search(data, tiny(), save_every=0)
    with pytest.raises(FileNotFoundError, match="existing folder"):
        search(data, tiny(), checkpoint=tmp_path / "nowhere" / "search.npz")


# -- numbers that are none --------------------------------------------------------------------------------------------


def spoiled(data: Data, split: str, value: float) -> Data:
    good = getattr(data, split)
    bad = Split(good.x.clone(), good.y)
    bad.x[:, 0, 0, 0] = value  # afterwards: a Split is not made of such numbers
    return _unchecked(data, split, bad)


def _unchecked(data: Data, split: str, bad: Split) -> Data:
    """The data with one split exchanged that `Data` would refuse."""
    other = dataclasses.replace(data)
    object.__setattr__(other, split, bad)
    return other


@pytest.mark.parametrize("split, networks, quantity", [
    ("train", "both", "the parent's weight loss"),
    ("validation", "both", "the parent's architecture loss"),
    ("train", "child", "the child's weight loss"),
    ("validation", "child", "the child's architecture loss"),
])  # fmt: skip
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_stops_the_search_with_step_and_quantity(data, split, networks, quantity, value):
    config = tiny(networks=networks, lam=0.0, backtracking="none")
    with pytest.raises(FloatingPointError, match=f"^step 0: {quantity} is not finite; there is no checkpoint$"):
        search(spoiled(data, split, value), config)


def test_nan_later_names_its_step_and_the_checkpoint(data, tmp_path):
    path, images = tmp_path / "search.npz", Split(data.train.x.clone(), data.train.y)

    def spoil(progress):
        if progress.step == 3:
            images.x.fill_(math.nan)

    with pytest.raises(FloatingPointError, match=rf"^step 3: the child's weight loss .*the last good state is in {path}$"):
        search(dataclasses.replace(data, train=images), tiny(), callback=spoil, checkpoint=path, save_every=2)
    assert checkpoint.load(path)["done"] == 2


def test_progress_bar_names_network_loss_and_cell(data, capsys):
    result = search(data, tiny(rounds=1, steps=1), progress=True)
    error = capsys.readouterr().err
    name = result.genotype.normal[0][0][0]
    assert "2/2" in error and "child" in error and name.replace("_conv", "").replace("_connect", "") in error
    search(data, tiny(rounds=1, steps=1, networks="parent", lam=0.0))
    assert capsys.readouterr() == ("", "")
