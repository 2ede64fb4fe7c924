"""bfloat16 forward passes: where they are in effect, what stays float32, and that float32 is left alone."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from dcpnas_lite.data import Data, Split, digits
from dcpnas_lite.engine.config import SearchConfig
from dcpnas_lite.engine.search import SearchStopped, search
from dcpnas_lite.evaluation.training import TrainConfig, train
from dcpnas_lite.method.objectives import nas_loss
from dcpnas_lite.network.discrete import DiscreteNetwork
from dcpnas_lite.network.genotype import Genotype
from dcpnas_lite.network.supernet import MICRO, Supernet

CELL = Genotype.from_operations(MICRO, ["sep_conv_3x3", "none", "dil_conv_5x5"])


@pytest.fixture(scope="module")
def data() -> Data:
    torch.set_num_threads(1)
    whole = digits(size=8)
    splits = [Split(s.x[:n], s.y[:n]) for s, n in ((whole.train, 64), (whole.validation, 16), (whole.test, 16))]
    return dataclasses.replace(whole, train=splits[0], validation=splits[1], test=splits[2])


def network(binary: bool, discrete: bool):
    torch.manual_seed(0)
    return DiscreteNetwork(CELL, 4, 1, binary=binary) if discrete else Supernet(MICRO, 4, 1, binary=binary)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
def test_convolutions_in_bfloat16_parameters_logits_and_gradients_in_float32(
    data, binary, discrete, monkeypatch
):
    net, kinds, conv2d = network(binary, discrete), set(), torch.nn.functional.conv2d

    def watch(*arguments, **options):
        out = conv2d(*arguments, **options)
        kinds.add(out.dtype)
        return out

    x, y = data.train[:16]
    exact = net(x)
    net.set_precision("bfloat16")
    monkeypatch.setattr(torch.nn.functional, "conv2d", watch)
    copied = copy.deepcopy(net)  # carries the setting, and its own parameters
    with torch.no_grad():
        copied.classifier.bias += 1
    out = net(x)
    assert kinds == {torch.bfloat16} and out.dtype == torch.float32
    torch.testing.assert_close(copied(x), out + 1, rtol=0, atol=0.05)
    assert not torch.equal(out, exact) and torch.nn.functional.cosine_similarity(out, exact).min() > (0.9 if binary else 0.99)
    parameters = list(net.parameters())
    gradients = torch.autograd.grad(nas_loss(out, y), parameters, allow_unused=True)
    assert {t.dtype for t in (*parameters, *gradients) if t is not None} == {torch.float32}
    net.set_precision("float32")
    assert torch.equal(net(x), exact)


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton", "sampled", "rank_one"])
def test_search_in_bfloat16(data, curvature):
    config = SearchConfig(channels=4, layers=1, rounds=1, steps=1, warmup=0, batch=16, curvature=curvature)
    mixed, exact = (search(data, config, precision=p) for p in ("bfloat16", "float32"))
    assert mixed.history["alpha/normal"].dtype == np.float32
    assert mixed.history["weight_loss"][0] != exact.history["weight_loss"][0]
    np.testing.assert_allclose(mixed.history["weight_loss"], exact.history["weight_loss"], rtol=0.05)
    np.testing.assert_allclose(mixed.history["distance"], exact.history["distance"], rtol=0.5)


def test_a_checkpoint_of_another_precision_is_refused(data, tmp_path):
    config, path = SearchConfig(channels=4, layers=1, rounds=1, steps=1, batch=16), tmp_path / "search.pt"
    with pytest.raises(SearchStopped):
        search(data, config, precision="bfloat16", callback=lambda _: True, checkpoint=path)
    line = r"search.pt: expected a checkpoint of this precision, got one of another \(float32 here, bfloat16 there\)"
    with pytest.raises(ValueError, match=line):
        search(data, config, checkpoint=path)
    assert search(data, config, precision="bfloat16", checkpoint=path).genotype


def test_training_in_bfloat16(data):
    config = TrainConfig(channels=4, layers=1, epochs=2, batch=16)
    mixed, exact = (train(CELL, data, 1, config, precision=p) for p in ("bfloat16", "float32"))
    assert mixed.losses != exact.losses and mixed.losses == pytest.approx(exact.losses, rel=0.05)
    assert mixed.network.precision == "bfloat16"


def test_other_precisions_are_refused(data):
    message = "precision: expected one of float32, bfloat16, got 'float16'"
    with pytest.raises(ValueError, match=message):
        search(data, SearchConfig(), precision="float16")
    with pytest.raises(ValueError, match=message):
        train(CELL, data, precision="float16")
