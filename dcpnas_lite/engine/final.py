"""The final: the cell that a supernet names and its nearest neighbours, trained from scratch and judged by validation images.

The reading of the supernet is the favourite: another finalist takes its place only where its validation loss is smaller by more
than the images alone explain. The trainings are the last steps of a search. Owns no equation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ..data import Data, Split
from ..network.genotype import Genotype
from .config import SearchConfig
from .training import TrainConfig, fit, statistics

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

STANDARD_ERRORS = 3.0  # by which a finalist has to be better than the favourite
IMAGES = 3000  # of either split, that a final looks at


def validation_losses(
    cell: Genotype, data: Data, config: SearchConfig, device: str | torch.device = "cpu", precision: str = "float32"
) -> Float[Tensor, " N"]:
    """−log p of the right class of the first validation images, by the 1-bit network of `cell` after `final_epochs`.

    The network is as large as the supernet; its seed is none that a table of cells was trained with.
    """
    sizes, seed = (config.channels, config.layers, config.final_epochs, 2 * config.batch), config.seed + 1_000_000
    recipe = TrainConfig(*sizes, seed=seed, block=config.block, statistics=statistics(config.block))
    train, validation = (Split(*split[slice(IMAGES)]) for split in (data.train, data.validation))
    network, _ = fit(cell, dataclasses.replace(data, train=train), 1, recipe, device=device, precision=precision)
    with torch.no_grad():
        logits = torch.cat([network(x.to(device)).cpu() for x in validation.x.split(256)])
    return F.cross_entropy(logits, validation.y, reduction="none")


def winner(losses: Sequence[Float[Tensor, " N"]]) -> int:
    """Whose mean loss is smallest, among those that beat the first by more than STANDARD_ERRORS; the first where none does.

    The standard error is that of the mean difference over the images, which all finalists share. Ties go to the lower index.
    """
    best = 0
    for k, mine in enumerate(losses[1:], 1):
        ahead = losses[0].double() - mine.double()
        surely = ahead.mean() > STANDARD_ERRORS * ahead.std() / len(ahead) ** 0.5
        if surely and mine.double().mean() < losses[best].double().mean():
            best = k
    return best
