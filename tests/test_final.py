"""The final of a search: who wins, what is trained, and that it resumes after every training."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import ttest_rel

from dcpnas_lite.data import Split, digits
from dcpnas_lite.engine import checkpoint, final
from dcpnas_lite.engine.config import SearchConfig
from dcpnas_lite.engine.search import SearchStopped, search
from dcpnas_lite.evaluation.training import TrainConfig, train
from dcpnas_lite.method.selection import neighbours
from dcpnas_lite.network.genotype import random_cell
from dcpnas_lite.network.supernet import MICRO, Space

CONFIG = SearchConfig(
    channels=2, layers=1, rounds=1, steps=2, warmup=0, batch=16, selection="perturbation", finalists=3, final_epochs=1
)


@pytest.fixture(scope="module")
def data():
    torch.set_num_threads(1)
    whole = digits(size=8)
    return dataclasses.replace(whole, **{s: Split(*getattr(whole, s)[slice(120)]) for s in ("train", "validation")})


@pytest.fixture(scope="module")
def whole(data):
    """A search in one go, and what its callback saw."""
    seen = []
    return search(data, CONFIG, callback=seen.append), seen


def test_only_who_is_surely_better_beats_the_favourite():
    """Against the paired t statistic of scipy, at many noisy losses; the better of two that are surely better wins."""
    generator, outcomes = torch.Generator().manual_seed(0), set()
    for ahead in torch.linspace(-0.5, 1.5, 41).tolist():
        losses = [torch.randn(50, generator=generator).exp() + shift for shift in (1.0, 1.0 - ahead, 1.2 - ahead, 1.4)]
        t = [ttest_rel(losses[0].double(), other.double()).statistic for other in losses[1:]]
        sure = [k for k, value in enumerate(t, 1) if value > final.STANDARD_ERRORS]
        assert final.winner(losses) == min(sure, key=lambda k: losses[k].mean(), default=0)
        outcomes.add((len(sure), final.winner(losses)))
    assert {n for n, _ in outcomes} == {0, 1, 2} and len({k for _, k in outcomes}) == 3
    same = torch.rand(9)
    assert final.winner([same]) == final.winner([same, same]) == 0 and final.winner([same + 1, same + torch.rand(9), same]) == 2
    assert final.winner([same + 1.0 + torch.rand(9) / 9, same, same.clone()]) == 1  # a tie


def test_a_finalist_is_trained_as_any_cell_is(data):
    cell = random_cell(MICRO, 0)
    losses = final.validation_losses(cell, data, CONFIG)
    network = train(cell, data, 1, TrainConfig(2, 1, 1, 32, seed=CONFIG.seed + 1_000_000)).network
    with torch.no_grad():
        expected = F.cross_entropy(network(data.validation.x), data.validation.y, reduction="none")
    torch.testing.assert_close(losses, expected)
    assert len(losses) == len(data.validation)


def test_a_final_looks_at_the_first_images(data, monkeypatch):
    monkeypatch.setattr(final, "IMAGES", 40)
    shorter = dataclasses.replace(data, **{s: Split(*getattr(data, s)[slice(40)]) for s in ("train", "validation")})
    few = final.validation_losses(random_cell(MICRO, 0), data, CONFIG)
    monkeypatch.setattr(final, "IMAGES", 3000)
    assert torch.equal(few, final.validation_losses(random_cell(MICRO, 0), shorter, CONFIG)) and len(few) == 40


def test_the_readings_of_a_search(data, whole):
    result, seen = whole
    assert [p.network for p in seen] == ["parent"] * 2 + ["child"] * 2 + ["final"] * 3
    assert [p.step for p in seen] == list(range(1, 8)) and {p.total for p in seen} == {7}
    assert list(result.readings) == ["strength", "perturbation", "final"] and result.genotype == result.readings["final"]
    plain = search(data, dataclasses.replace(CONFIG, finalists=0))
    assert plain.readings == {k: c for k, c in result.readings.items() if k != "final"}
    assert plain.genotype == plain.readings["perturbation"]
    assert all(torch.equal(a, plain.alphas[t]) for t, a in result.alphas.items())  # a final changes nothing before it
    strength = search(data, dataclasses.replace(CONFIG, finalists=0, selection="strength"))
    assert list(strength.readings) == ["strength"] and strength.genotype == result.readings["strength"]


def test_the_winner_is_the_cell(data, monkeypatch):
    monkeypatch.setattr(final, "winner", lambda losses: len(losses) - 1)
    result = search(data, CONFIG)
    assert result.genotype in neighbours(MICRO, result.readings["perturbation"])


@pytest.mark.parametrize("step", range(3, 8))
def test_it_resumes_after_every_step(data, whole, tmp_path, step):
    """Stopped there; one training is made for each that was left, and the result is the same in every loss."""
    path, after = tmp_path / "c.npz", []
    with pytest.raises(SearchStopped, match=f"after step {step} of 7"):
        search(data, CONFIG, callback=lambda p: p.step == step, checkpoint=path)
    again = search(data, CONFIG, callback=after.append, checkpoint=path)
    assert again.readings == whole[0].readings
    assert [(p.step, p.loss) for p in after] == [(p.step, p.loss) for p in whole[1]][step:]


def test_a_damaged_final_is_refused_and_an_earlier_checkpoint_is_not(data, tmp_path):
    path = tmp_path / "c.npz"
    with pytest.raises(SearchStopped):
        search(data, CONFIG, callback=lambda p: p.step == 6, checkpoint=path)
    good = checkpoint.load(path)
    for what in (
        {"cells": good["final"]["cells"][:2]},
        {"cells": ["{}", *good["final"]["cells"][1:]]},
        {"losses": good["final"]["losses"][:1]},
        {"losses": [torch.full((120,), torch.nan), good["final"]["losses"][1]]},
        {"losses": [x[:9] for x in good["final"]["losses"]]},
    ):
        checkpoint.save(path, good | {"final": good["final"] | what})
        with pytest.raises(ValueError, match="expected the state of a search"):
            search(data, CONFIG, checkpoint=path)
    config = dataclasses.replace(CONFIG, finalists=0, final_epochs=8)  # the defaults of the fields
    (tmp_path / "old").mkdir()
    with pytest.raises(SearchStopped):
        search(data, config, callback=lambda p: p.step == 3, checkpoint=tmp_path / "old" / "c.npz")
    state = checkpoint.load(tmp_path / "old" / "c.npz")  # as it was before there was a final
    fields = json.loads(state["identity"]["configuration"])
    del state["final"], fields["finalists"], fields["final_epochs"]
    state["identity"]["configuration"] = json.dumps(fields, indent=1)
    checkpoint.save(tmp_path / "old" / "c.npz", state)
    assert search(data, config, checkpoint=tmp_path / "old" / "c.npz").readings == search(data, config).readings


def test_a_space_with_few_cells_has_few_finalists(data):
    space = Space("two", 1, 1, ("normal",), ("none", "skip_connect", "max_pool_3x3"))
    seen = []
    result = search(data, dataclasses.replace(CONFIG, finalists=9), callback=seen.append, space=space)
    assert [p.network for p in seen].count("final") == 2 and "final" in result.readings
    alone = Space("one", 1, 1, ("normal",), ("skip_connect",))
    assert "final" not in search(data, dataclasses.replace(CONFIG, finalists=9), space=alone).readings
