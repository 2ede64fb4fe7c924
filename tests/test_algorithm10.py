"""Algorithm 10 as it is read, against the search that is run: the same α for every variant and every choice of a line."""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest
import torch

from dcpnas_lite.data import Data, Split, digits
from dcpnas_lite.engine.config import SearchConfig
from dcpnas_lite.engine.search import search
from dcpnas_lite.method import algorithm10 as module
from dcpnas_lite.method.algorithm10 import algorithm10
from dcpnas_lite.method.backtracking import Refreshed
from dcpnas_lite.network.supernet import MICRO, Space

SMALL = Space("small", 1, 2, ("normal",), ("none", "skip_connect", "max_pool_3x3", "dil_conv_3x3", "sep_conv_3x3"))
PAIR = Space("pair", 2, 1, ("normal", "reduce"), ("none", "skip_connect", "sep_conv_3x3"))


@pytest.fixture(scope="module")
def data():
    """A few digits in float64: what differs then is not rounding."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    whole = digits(size=8)
    splits = {name: Split(getattr(whole, name).x[:n].double(), getattr(whole, name).y[:n])
              for name, n in (("train", 28), ("validation", 20), ("test", 16))}  # fmt: skip
    yield dataclasses.replace(whole, **splits)
    torch.set_default_dtype(before)


def tiny(**changes) -> SearchConfig:
    return SearchConfig(**dict(channels=4, layers=2, rounds=2, steps=2, warmup=0, batch=8, tau=1) | changes)


def same(data: Data, config: SearchConfig, space: Space, rule=None) -> None:
    """The plain algorithm and the search have the same genotype, α and records."""
    genotype, alphas, records = algorithm10(data, config, space, rule)
    result = search(data, config, rule, space=space)
    assert result.genotype == genotype and len(records) == len(result.history["network"]) > 0
    for name in records[0]:
        expected = np.stack([np.asarray(r[name]) for r in records])
        np.testing.assert_allclose(result.history[name], expected, rtol=1e-7, atol=1e-10, err_msg=name)
    for t, alpha in alphas.items():
        torch.testing.assert_close(result.alphas[t], alpha, rtol=1e-7, atol=1e-10)
        assert (torch.from_numpy(result.history[f"alpha/{t}"]).diff(dim=0).abs().amax((1, 2)) > 1e-4).any()


VARIANTS = [
    {},
    *(dict(curvature=kind, lam=3.0, seed=1) for kind in ("hessian", "gauss_newton", "rank_one")),
    *(dict(distance=kind, curvature="hessian") for kind in ("L1", "cosine")),
    *(dict(psi_shape=shape, eta=0.7) for shape in ("scalar", "operation", "edge")),
    dict(absolute=False, eta=0.7, eta_psi=5.0),
    dict(steps=3, tau=2),
    dict(backtracking="none", mu=0.0),
    dict(backtracking="refreshed", refresh=2, eta=2.0),
    *({line: "printed"} for line in ("eq_4_29", "eq_4_41", "eq_4_52")),
    dict(lam=0.0),
    dict(networks="child", lam=0.0),
    dict(networks="parent", lam=0.0, mu=0.0),
    dict(tangent_every=2, warmup=1, parent_share=0.3, steps=6),
    dict(selection="perturbation", seed=2),
]


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: ",".join(f"{k}={v}" for k, v in c.items()) or "default")
def test_the_search_is_the_algorithm(data, changes):
    same(data, tiny(**changes), SMALL)


@pytest.mark.parametrize("changes", [{}, dict(backtracking="refreshed", refresh=1, curvature="hessian")])
def test_the_search_is_the_algorithm_with_two_cell_types(data, changes):
    same(data, tiny(**changes), PAIR)


def test_a_rule_of_ones_own(data):
    def against(step):
        coupling = step.coupling()
        return step.alpha_next - 0.5 * torch.where(coupling * step.gradient < 0, coupling, 0.0)

    same(data, tiny(), SMALL, against)


@pytest.mark.parametrize("rule", [Refreshed(2, 2.0, "optimizer"), Refreshed(1, 2.0, networks=["child"])], ids=["by", "networks"])
def test_the_coupling_of_the_optimizers_step_and_of_one_network(data, rule):
    same(data, tiny(), SMALL, rule)


@pytest.mark.parametrize("line", ["eq_4_29", "eq_4_41", "eq_4_52"])
def test_a_printed_line_makes_a_difference(data, line):
    configs = (tiny(steps=3, tau=3, **{line: how}) for how in ("derived", "printed"))
    derived, printed = (search(data, config, space=SMALL).alphas["normal"] for config in configs)
    assert (derived - printed).abs().max() > 1e-4


def test_the_printed_tangent_is_zero(data):
    """4.29 as printed: D is then ‖∂G/∂α̂‖², since Σ_n ∂p_n/∂α vanishes."""
    history = search(data, tiny(eq_4_29="printed", lam=0.0, measure_every=0), space=SMALL).history
    assert np.isnan(history["distance"]).all()
    from dcpnas_lite.method.tangent import tangent_direction
    from dcpnas_lite.network.supernet import Supernet

    net = Supernet(SMALL, 4, 1)
    direction = tangent_direction(net(data.train.x[:8]), data.train.y[:8], net.alphas(), printed=True)
    assert direction[0].abs().max() < 1e-14
    assert tangent_direction(net(data.train.x[:8]), data.train.y[:8], net.alphas())[0].abs().max() > 1e-4


def test_the_same_cells_in_the_micro_space():
    data = digits(size=8)
    config = SearchConfig(channels=2, layers=1, rounds=2, steps=3, warmup=0, batch=8)
    for seed in range(10):
        one = dataclasses.replace(config, seed=seed)
        genotype, alphas, _ = algorithm10(data, one, MICRO)
        result = search(data, one)
        assert result.genotype == genotype, seed
        assert (result.alphas["normal"] - alphas["normal"]).abs().max() < 2e-2


def test_it_can_be_read_in_one_sitting():
    lines = inspect.getsource(module).splitlines()
    assert len(lines) <= 150
