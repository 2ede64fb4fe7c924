"""Training a discrete cell: determinism, both bit widths, sizes counted by hand, errors."""

from __future__ import annotations

import dataclasses
import math
import re
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch
from torch import nn

from dcpnas_lite.data import Data, Split, digits
from dcpnas_lite.engine import training
from dcpnas_lite.evaluation.training import TrainConfig, accuracy, predict, train
from dcpnas_lite.network.discrete import DiscreteNetwork
from dcpnas_lite.network.genotype import Genotype
from dcpnas_lite.network.operations import Shortcut
from dcpnas_lite.network.supernet import MICRO

CELL = Genotype.from_operations(MICRO, ["sep_conv_3x3", "none", "dil_conv_5x5"])
QUICK = TrainConfig(channels=4, layers=1, epochs=2, batch=16)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data() -> Data:
    whole = digits(size=8)
    splits = [Split(s.x[:n], s.y[:n]) for s, n in ((whole.train, 200), (whole.validation, 40), (whole.test, 60))]
    return dataclasses.replace(whole, train=splits[0], validation=splits[1], test=splits[2])


@pytest.mark.parametrize("bits", [1, 32])
def test_same_arguments_same_result(data, bits):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = train(CELL, data, bits, QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = train(CELL, data, bits, QUICK)
    other = train(CELL, data, bits, dataclasses.replace(QUICK, seed=1))
    for field in ("losses", "test_accuracy", "validation_accuracy", "bits", "one_bit", "real"):
        assert getattr(first, field) == getattr(second, field)
    for (name, a), b in zip(first.network.state_dict().items(), second.network.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert first.losses != other.losses
    assert len(first.losses) == 2 and first.losses[1] < first.losses[0] < math.log(10) + 0.5
    assert first.network.binary == (bits == 1 and "plain") and first.network.genotype == CELL


def test_trainings_in_four_threads_at_once_equal_those_alone(data):
    configs = [dataclasses.replace(QUICK, channels=2, epochs=1, seed=seed) for seed in range(4)]
    alone = [train(CELL, data, 1, config).losses for config in configs]
    assert len(set(alone)) == 4
    together = Barrier(4)

    def run(config: TrainConfig) -> list[tuple[float, ...]]:
        torch.set_num_threads(1)  # of this thread
        together.wait()
        return [train(CELL, data, 1, config).losses for _ in range(2)]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, configs)) == [[losses] * 2 for losses in alone]


@pytest.mark.parametrize("bits, epochs, least", [(1, 4, 0.3), (32, 2, 0.5)])
def test_it_learns_the_digits(bits, epochs, least):
    data = digits(size=8)
    result = train(CELL, data, bits, TrainConfig(channels=8, layers=1, epochs=epochs, lr=0.02))
    assert result.test_accuracy > least  # chance is 0.1
    assert result.test_accuracy == accuracy(result.network, data.test) and not result.network.training
    assert result.validation_accuracy == accuracy(result.network, data.validation)


def test_accuracy_is_the_share_of_right_predictions(data):
    torch.manual_seed(0)
    network = DiscreteNetwork(CELL, channels=4, layers=1)
    network(data.train.x)  # moves the running statistics
    predicted = predict(network, data.test, batch=7)
    assert network.training and torch.equal(predicted, predict(network, data.test, batch=1000))  # the mode stays
    network.eval()
    assert torch.equal(predicted, predict(network, data.test)) and not network.training
    with torch.no_grad():
        one_by_one = torch.stack([network(x[None]).argmax() for x in data.test.x])
    assert torch.equal(predicted, one_by_one)
    right = sum(int(p) == int(y) for p, y in zip(predicted, data.test.y, strict=True))
    assert accuracy(network, data.test) == right / len(data.test)


class Answer(nn.Module):
    """A network that answers with what it is given."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.weight = answer, nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.answer(x) + self.weight


@pytest.mark.parametrize("answer, shape", [
    (lambda x: x[:, 0, 0, 0], "(60,)"),
    (lambda x: x[:, :, 0, 0][:, :, None], "(60, 1, 1)"),
    (lambda x: x[:, 0], "(60, 8, 8)"),
    (lambda x: x[:1, 0, 0], "(1, 8)"),
])  # fmt: skip
def test_an_answer_of_another_shape_is_refused_and_not_broadcast(data, answer, shape):
    network = Answer(answer).train()
    for ask in (predict, accuracy):
        with pytest.raises(ValueError, match=re.escape(f"network: expected logits of shape (60, classes), got {shape}")):
            ask(network, data.test)
        assert network.training


def test_accuracy_refuses_what_would_be_counted_wrong(data):
    ten = Answer(lambda x: x.flatten(1)[:, 20:30])
    assert 0 <= accuracy(ten, data.test) <= 1
    with pytest.raises(ValueError, match="^split: expected labels 0 … 9, the classes of the network, got 10$"):
        accuracy(ten, Split(data.test.x, data.test.y + 1))
    with pytest.raises(FloatingPointError, match="^the logits of the network are not finite$"):
        accuracy(Answer(lambda x: x.flatten(1) / 0), data.test)
    with pytest.raises(ValueError, match="^batch: expected an integer of at least 1, got 0$"):
        predict(ten, data.test, batch=0)


def own(labels: torch.Tensor, classes: int, shape: tuple[int, ...] = (1, 8, 8)) -> Data:
    """Images whose brightness says their label."""
    noise = torch.randn(len(labels), *shape, generator=torch.Generator().manual_seed(0))
    split = Split(noise + 3 * labels.view(-1, 1, 1, 1), labels)
    names = tuple(map(str, range(classes)))
    return Data("own", split, split, split, names, (0.0,) * shape[0], (1.0,) * shape[0])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_labels_of_any_integer_type_give_the_same_result(dtype):
    labels = torch.arange(64) % 4
    reference = train(CELL, own(labels, 4), 32, QUICK)
    assert train(CELL, own(labels.to(dtype), 4), 32, QUICK).losses == reference.losses


@pytest.mark.parametrize("classes, shape", [(2, (1, 8, 8)), (100, (1, 8, 8)), (3, (3, 8, 8)), (3, (2, 6, 9)), (3, (1, 1, 1))])
@pytest.mark.parametrize("bits", [1, 32])
def test_data_of_ones_own_are_trained_on(bits, classes, shape):
    config = dataclasses.replace(QUICK, epochs=16) if shape == (1, 1, 1) else QUICK  # a single pixel is learned slowly
    result = train(CELL, own(torch.arange(128) % min(classes, 3), classes, shape), bits, config)
    assert result.losses[-1] < result.losses[0] and result.network.classifier.out_features == classes
    assert 0 <= result.test_accuracy <= 1


def test_fewer_images_than_a_batch_and_constant_images():
    labels = torch.arange(5) % 3
    few = train(CELL, own(labels, 3), 1, QUICK)
    assert few.losses == train(CELL, own(labels, 3), 1, dataclasses.replace(QUICK, batch=5)).losses
    dull = own(torch.arange(32) % 2, 2)
    for split in (dull.train, dull.validation, dull.test):
        split.x.zero_()
    assert train(CELL, dull, 1, QUICK).test_accuracy == 0.5  # nothing to tell them apart by


def test_sizes_of_a_tiny_cell_by_hand():
    """C = 4 channels, one layer, ten classes; the cell is sep_conv_3x3, none, dil_conv_5x5.

    Stem: convolution 9 C, BatchNorm 2 C. Preprocessing: 1 × 1 convolution C². sep_conv_3x3: depthwise 9 C and pointwise C²,
    twice; dil_conv_5x5: depthwise 25 C and pointwise C². Classifier: 2 C inputs for 10 classes, and 10 biases.
    1-bit: each of the 7 convolutions in the cell has a BatchNorm (2 C), a PReLU (C) and a scale β per channel (C).
    Real-valued: a BatchNorm after each pointwise convolution and after the preprocessing one, 4 in all.
    """
    C = 4
    convolutions = C * C + 2 * (9 * C + C * C) + (25 * C + C * C)
    frame = 9 * C + 2 * C + (2 * C * 10 + 10)
    binary = DiscreteNetwork(CELL, channels=C, layers=1).size()
    assert binary == {"one_bit": convolutions, "real": frame + 7 * 4 * C, "bits": convolutions + 32 * (frame + 7 * 4 * C)}
    real = DiscreteNetwork(CELL, channels=C, layers=1, binary=False).size()
    total = convolutions + frame + 4 * 2 * C
    assert real == {"one_bit": 0, "real": total, "bits": 32 * total}


def test_result_reports_the_size_of_its_network(data):
    result = train(CELL, data, 1, dataclasses.replace(QUICK, epochs=1))
    assert {"one_bit": result.one_bit, "real": result.real, "bits": result.bits} == result.network.size()
    assert result.bits < sum(p.numel() for p in result.network.parameters()) * 32
    assert result.seconds > 0


def test_learning_rate_and_order_of_the_images(data, monkeypatch):
    """The rate falls to 0 by a cosine over all steps; the order is another one for every seed and epoch."""
    rates, step, orders, original = [], torch.optim.Adam.step, [], training.batches

    def watch(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    def remember(*arguments, **options):
        orders.append(torch.cat(original(*arguments, **options)))
        return original(*arguments, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", watch)
    monkeypatch.setattr(training, "batches", remember)
    train(CELL, data, 32, dataclasses.replace(QUICK, lr=0.02, batch=64))  # 200 // 64 = 3 steps an epoch
    expected = [0.01 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]
    assert rates == pytest.approx(expected)
    train(CELL, data, 32, dataclasses.replace(QUICK, batch=64, seed=1))
    assert len(orders) == len({tuple(order.tolist()) for order in orders}) == 4


@pytest.mark.parametrize("bits", [0, 2, 8, 16, None, "1"])
def test_other_bits_are_refused(data, bits):
    with pytest.raises(ValueError, match=f"bits: expected 1 or 32, got {bits!r}"):
        train(CELL, data, bits, QUICK)


@pytest.mark.parametrize("changes, message", [
    (dict(lr=0), "lr: expected a positive finite number, got 0"),
    (dict(lr=-0.1), "lr: expected a finite number of at least 0, got -0.1"),
    (dict(lr=math.nan), "lr: expected a finite number of at least 0, got nan"),
    (dict(lr="0.1"), "lr: expected a finite number of at least 0, got '0.1'"),
    (dict(epochs=0), "epochs: expected an integer of at least 1, got 0"),
    (dict(batch=2.0), "batch: expected an integer of at least 1, got 2.0"),
    (dict(channels=True), "channels: expected an integer of at least 1, got True"),
    (dict(layers=-1), "layers: expected an integer of at least 1, got -1"),
    (dict(channels="4"), "channels: expected an integer of at least 1, got '4'"),
    (dict(block="bireal"), "block: expected one of plain, shortcut, got 'bireal'"),
    (dict(statistics="none"), "statistics: expected one of running, exact, got 'none'"),
    (dict(seed=-1), "seed: expected an integer from 0 to 4294967295, got -1"),
    (dict(seed=2**32), "seed: expected an integer from 0 to 4294967295, got 4294967296"),
    (dict(seed=np.float64(3)), r"seed: expected an integer .*, got np.float64\(3.0\)"),
])  # fmt: skip
def test_a_wrong_value_names_the_field(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        TrainConfig(**changes)


@pytest.mark.parametrize("number", [np.int64(3), np.uint8(3), torch.tensor(3)], ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("field", ["channels", "layers", "epochs", "batch", "seed"])
def test_integers_of_any_type(field, number):
    config = TrainConfig(**{field: number})
    assert config == TrainConfig(**{field: 3}) and type(getattr(config, field)) is int


@pytest.mark.parametrize("block, shortcuts", [("plain", 0), ("shortcut", 7)])
def test_a_block_with_shortcuts_and_exact_statistics(block, shortcuts, data):
    """One around each 1-bit convolution. The statistics are what BatchNorm meets where it stands; training is the same."""
    config = dataclasses.replace(QUICK, block=block)
    running, exact = (train(CELL, data, 1, dataclasses.replace(config, statistics=s)) for s in ("running", "exact"))
    assert sum(type(m) is Shortcut for m in exact.network.modules()) == shortcuts
    assert running.losses == exact.losses
    assert not any(type(m) is Shortcut for m in train(CELL, data, 32, config).network.modules())
    seen = []
    stem = exact.network.stem
    stem[1].register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    exact.network.eval()(data.train.x)
    x = torch.cat(seen)
    torch.testing.assert_close(stem[1].running_mean, x.mean((0, 2, 3)), rtol=1e-3, atol=1e-5)
    assert not torch.allclose(running.network.stem[1].running_mean, stem[1].running_mean, rtol=1e-2)


def test_the_largest_seed(data):
    assert train(CELL, data, 32, dataclasses.replace(QUICK, epochs=1, seed=2**32 - 1)).losses


def test_a_loss_that_is_not_finite_stops_with_the_epoch(data):
    spoiled = dataclasses.replace(data, train=Split(data.train.x.clone(), data.train.y))
    spoiled.train.x.div_(0)
    for bits in (1, 32):
        with pytest.raises(FloatingPointError, match="epoch 0: the training loss is not finite"):
            train(CELL, spoiled, bits, QUICK)


def test_a_batch_larger_than_the_split_is_the_split(data):
    assert len(train(CELL, data, 32, dataclasses.replace(QUICK, batch=10_000)).losses) == 2
