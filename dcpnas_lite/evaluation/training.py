"""Train and evaluate the discrete network of a genotype, real-valued or 1-bit."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from .. import files
from ..data import Data, Split
from ..engine.training import TrainConfig, fit
from ..network.discrete import DiscreteNetwork
from ..network.genotype import Genotype
from ..validate import integer

if TYPE_CHECKING:
    from jaxtyping import Float, Int

WHAT, VERSION = "a trained network", 1  # what the file of `save` is


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
    started = time.perf_counter()
    network, losses = fit(genotype, data, bits, config or TrainConfig(), progress, device, precision)
    sizes = network.size()
    return TrainResult(
        accuracy(network, data.test),
        accuracy(network, data.validation),
        sizes["one_bit"],
        sizes["real"],
        sizes["bits"],
        losses,
        time.perf_counter() - started,
        network,
    )


def describe(data: Data) -> dict:
    """What has to be known of a data set to use a network that was trained on it."""
    named = {name: list(getattr(data, name)) for name in ("classes", "mean", "std")}
    return {"name": data.name, **named, "shape": list(data.train.x.shape[1:])}


def save(path: str | os.PathLike, network: DiscreteNetwork, data: Data) -> None:
    """Write a network that was trained on `data`: safetensors, atomically, with a checksum."""
    size = {"channels": network.stem[0].out_channels, "layers": len(network.cells), "binary": network.binary}
    about = {"genotype": json.loads(network.genotype.to_json()), "data": describe(data), "network": size}
    arrays = {name: value.cpu().numpy() for name, value in network.state_dict().items()}
    files.write(path, files.tensors_to_bytes(arrays, WHAT, VERSION, about))


def load(path: str | os.PathLike) -> tuple[DiscreteNetwork, dict]:
    """(network in evaluation mode, what `describe` said of its data) from the file of `save`.

    Raises ValueError in one line for a file that is damaged, of another kind or of a newer version.
    """
    arrays, about = files.tensors_from_bytes(files.read(path, WHAT), path, WHAT, VERSION)
    data, genotype = about["data"], Genotype.from_json(json.dumps(about["genotype"]))
    network = DiscreteNetwork(genotype, classes=len(data["classes"]), in_channels=data["shape"][0], **about["network"])
    network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return network.eval(), data


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
