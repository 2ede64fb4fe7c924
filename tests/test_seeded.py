"""Initial weights from a generator of one's own: the numbers of torch.manual_seed, and no word between threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn

from dcpnas_lite.network.discrete import DiscreteNetwork
from dcpnas_lite.network.genotype import PUBLISHED
from dcpnas_lite.network.seeded import initialised_by
from dcpnas_lite.network.supernet import MICRO, PAPER, Supernet

MADE = {
    "micro parent": lambda: Supernet(MICRO, channels=4, binary=False),
    "micro child": lambda: Supernet(MICRO, channels=4, binary=True),
    "paper parent": lambda: Supernet(PAPER, channels=4, binary=False),
    "paper child": lambda: Supernet(PAPER, channels=4, binary=True),
    "discrete": lambda: DiscreteNetwork(PUBLISHED, channels=4, binary=False),
    "discrete, 1-bit": lambda: DiscreteNetwork(PUBLISHED, channels=4, binary=True),
    "layers of torch": lambda: nn.Sequential(nn.Linear(3, 4), nn.Embedding(4, 3), nn.LSTM(3, 4), nn.MultiheadAttention(8, 2)),
}


def numbers(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def seeded(make, seed: int) -> torch.Tensor:
    with initialised_by(torch.Generator().manual_seed(seed)):
        return numbers(make())


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_the_numbers_are_those_of_manual_seed_and_the_global_state_stays(make):
    torch.manual_seed(7)
    expected = numbers(make())
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(seeded(make, 7), expected)
    assert not torch.equal(seeded(make, 8), expected)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_",
                                  "kaiming_normal_", "orthogonal_"])  # fmt: skip
def test_every_initialisation_of_torch(name):
    initialise = getattr(nn.init, name)
    torch.manual_seed(3)
    expected = initialise(torch.empty(6, 5))
    torch.manual_seed(99)
    with initialised_by(torch.Generator().manual_seed(3)):
        assert torch.equal(initialise(torch.empty(6, 5)), expected)


def test_the_generator_goes_on_from_module_to_module_and_a_generator_that_is_named_comes_first():
    with initialised_by(torch.Generator().manual_seed(0)):
        first, second = torch.randn(3), torch.randn(3)
        own = torch.randn(3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first, own) and not torch.equal(first, second)


def test_threads_do_not_disturb_each_other():
    alone = [seeded(MADE["micro child"], seed) for seed in range(4)]
    together = Barrier(4)

    def run(seed: int) -> list[torch.Tensor]:
        together.wait()
        return [seeded(MADE["micro child"], seed) for _ in range(3)]

    with ThreadPoolExecutor(4) as pool:
        for expected, got in zip(alone, pool.map(run, range(4)), strict=True):
            assert all(torch.equal(part, expected) for part in got)


def test_it_ends_with_its_block():
    with pytest.raises(RuntimeError, match="stop"), initialised_by(torch.Generator().manual_seed(0)):
        raise RuntimeError("stop")
    torch.manual_seed(1)
    expected = torch.randn(3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.randn(3), expected)
