"""Train and evaluate the discrete network of a genotype, real-valued or 1-bit."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from torch import nn
from tqdm import tqdm

from ..data import Data, Split, batches
from ..engine.fast import accelerate
from ..method.objectives import nas_loss
from ..network.discrete import DiscreteNetwork
from ..network.genotype import Genotype
from ..network.seeded import initialised_by
from ..validate import Whole, integer, validate

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class TrainConfig:
    """The training recipe: Adam, cosine schedule from `lr` to 0. A wrong value raises ValueError.

    There is no augmentation, cutout or drop-path, on purpose: these networks are small and trained briefly, and each would be
    one more strength to choose.

    channels, layers: of the network. epochs, batch: passes and images a step. seed: of the initial weights and the order,
    below 2**32.
    """

    channels: Whole = 16
    layers: Whole = 3
    epochs: Whole = 30
    batch: Whole = 32
    lr: float = 0.01
    seed: Annotated[int, 0, 2**32 - 1] = 0

    def __post_init__(self):
        validate(self)
        if self.lr == 0:
            raise ValueError("lr: expected a positive finite number, got 0")


@dataclass(frozen=True)
class TrainResult:
    """What training returns. Accuracies are shares between 0 and 1; `bits` is the size of the network in bits."""

    test_accuracy: float
    validation_accuracy: float
    one_bit: int  # parameters stored as one bit
    real: int  # parameters stored as 32-bit floats
    bits: int
    losses: tuple[float, ...]  # mean training loss of each epoch
    seconds: float
    network: DiscreteNetwork


def train(
    genotype: Genotype,
    data: Data,
    bits: int = 1,
    config: TrainConfig | None = None,
    progress: bool = False,
    device: str = "cpu",
    precision: str = "float32",
) -> TrainResult:
    """Build the network of `genotype` (bits 1: 1-bit, 32: real-valued), train it on data.train, evaluate it.

    The same arguments on the same machine give the identical result. `precision` is "float32", or "bfloat16" for the forward
    passes, the evaluation's included (see `network.precision`). Raises ValueError for other `bits` or another precision,
    FloatingPointError where the loss is no longer finite.
    """
    if bits not in (1, 32):
        raise ValueError(f"bits: expected 1 or 32, got {bits!r}")
    config = config or TrainConfig()
    started = time.perf_counter()
    with initialised_by(torch.Generator().manual_seed(config.seed)):
        network = DiscreteNetwork(
            genotype, config.channels, config.layers, len(data.classes), data.channels, binary=bits == 1
        ).to(device)
    accelerate(network).set_precision(precision)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    size = min(config.batch, len(data.train))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs * (len(data.train) // size))
    losses = []
    epochs = tqdm(range(config.epochs), disable=not progress, unit="epoch")
    for epoch in epochs:
        network.train()
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
    network.eval()
    sizes = network.size()
    return TrainResult(
        accuracy(network, data.test),
        accuracy(network, data.validation),
        sizes["one_bit"],
        sizes["real"],
        sizes["bits"],
        tuple(losses),
        time.perf_counter() - started,
        network,
    )


def predict(network: nn.Module, split: Split, batch: int = 256) -> Int[torch.Tensor, " N"]:
    """The predicted class of every image, in evaluation mode; the network is left in the mode it was in.

    Raises ValueError where the network does not return logits (N, classes), FloatingPointError where they are not finite.
    """
    return _logits(network, split, batch).argmax(1)


def accuracy(network: nn.Module, split: Split) -> float:
    """Share of images whose predicted class is right. Raises as `predict`, and ValueError for labels beyond its classes."""
    logits = _logits(network, split, 256)
    if split.y.max() >= logits.shape[1]:
        raise ValueError(f"split: expected labels 0 … {logits.shape[1] - 1}, the classes of the network, got {split.y.max()}")
    return (logits.argmax(1) == split.y).double().mean().item()


def _logits(network: nn.Module, split: Split, batch: int) -> Float[torch.Tensor, "N classes"]:
    batch, device, training = integer("batch", batch, 1), next(network.parameters()).device, network.training
    network.eval()
    try:
        with torch.no_grad():
            logits = torch.cat([network(x.to(device)).cpu() for x in split.x.split(batch)])
    finally:
        network.train(training)
    if logits.dim() != 2 or len(logits) != len(split):
        raise ValueError(f"network: expected logits of shape ({len(split)}, classes), got {tuple(logits.shape)}")
    if not logits.isfinite().all():
        raise FloatingPointError("the logits of the network are not finite")
    return logits
