"""Training the discrete network of a cell from scratch: what a final and an evaluation have in common. Owns no equation."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from ..data import Data, batches
from ..method.objectives import nas_loss
from ..network.discrete import DiscreteNetwork
from ..network.genotype import Genotype
from ..network.operations import Block
from ..network.seeded import initialised_by
from ..validate import Whole, validate
from .fast import accelerate

STATISTICS_IMAGES = 256  # at most, in each of the equal batches over which exact statistics are averaged


@dataclass(frozen=True)
class TrainConfig:
    """The training recipe: Adam, cosine schedule from `lr` to 0. A wrong value raises ValueError.

    There is no augmentation, cutout or drop-path, on purpose: these networks are small and trained briefly, and each would be
    one more strength to choose.

    channels, layers: of the network. epochs, batch: passes and images a step. seed: of the initial weights and the order,
    below 2**32. block: the 1-bit convolutions, "plain" or with a real-valued "shortcut". statistics: those by which BatchNorm
    normalises in the end, "running" means of the last steps or "exact" ones of the trained weights over all training images.
    """

    channels: Whole = 16
    layers: Whole = 3
    epochs: Whole = 30
    batch: Whole = 32
    lr: float = 0.01
    seed: Annotated[int, 0, 2**32 - 1] = 0
    block: Block = "plain"
    statistics: Literal["running", "exact"] = "running"

    def __post_init__(self):
        validate(self)
        if self.lr == 0:
            raise ValueError("lr: expected a positive finite number, got 0")


def statistics(block: Block) -> Literal["running", "exact"]:
    """What BatchNorm needs beside such convolutions: with shortcuts the running statistics can lag far behind the weights."""
    return "exact" if block == "shortcut" else "running"


def fit(
    genotype: Genotype,
    data: Data,
    bits: int,
    config: TrainConfig,
    progress: bool = False,
    device: str = "cpu",
    precision: str = "float32",
) -> tuple[DiscreteNetwork, tuple[float, ...]]:
    """The plain network of `genotype`, trained on data.train and in evaluation mode, and its mean training loss of each epoch.

    Raises as `evaluation.training.train`.
    """
    if bits not in (1, 32):
        raise ValueError(f"bits: expected 1 or 32, got {bits!r}")
    with initialised_by(torch.Generator().manual_seed(config.seed)):
        plain = DiscreteNetwork(
            genotype, config.channels, config.layers, len(data.classes), data.channels, binary=bits == 1 and config.block
        ).to(device)
    plain.set_precision(precision)
    network = accelerate(copy.deepcopy(plain))
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    size = min(config.batch, len(data.train))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs * (len(data.train) // size))
    losses = []
    epochs = tqdm(range(config.epochs), disable=not progress, unit="epoch")
    network.train()
    for epoch in epochs:
        total, count = 0.0, 0
        for index in batches(data.train, size, config.seed, epoch, drop_last=True):
            x, y = data.train[index]
            loss = nas_loss(network(x.to(device)), y.to(device))
            if not torch.isfinite(loss):
                raise FloatingPointError(f"epoch {epoch}: the training loss is not finite")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total, count = total + loss.item(), count + 1
        losses.append(total / count)
        epochs.set_postfix_str(f"loss {losses[-1]:.3f}")
    if config.statistics == "exact":
        parts = -(-len(data.train) // STATISTICS_IMAGES)
        update_bn((x.to(device) for x in data.train.x.chunk(parts)), network)
    plain.load_state_dict(network.state_dict())
    return plain.eval(), tuple(losses)
