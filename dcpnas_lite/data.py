"""Image data: splits, normalisation and the order of mini-batches.

Owns no equation. `digits()` needs no file and no network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True, eq=False)
class Split:
    """Normalised images and their classes; `split[index]` gives the pair (x, y)."""

    x: Float[Tensor, "N C H W"]  # float32
    y: Int[Tensor, " N"]  # int64, 0 … number of classes − 1

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


@dataclass(frozen=True, eq=False)
class Data:
    """Three disjoint stratified splits. `mean` and `std` are those of the training split, one per channel,
    in units of the full intensity range (0 = black, 1 = white): x = (intensity − mean) / std in every split."""

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        return self.train.x.shape[1]

    @property
    def size(self) -> int:
        """Height and width of the images in pixels."""
        return self.train.x.shape[2]


def digits(seed: int = 0, size: int = 16) -> Data:
    """The 1797 handwritten digits that scikit-learn carries: one channel, 8×8, upsampled to `size`×`size`.

    Stratified by `seed` into 1077 / 360 / 360 images for training / validation / test (60 / 20 / 20 %).
    Raises ImportError without scikit-learn, ValueError if `size` < 8 or `seed` < 0.
    """
    if size < 8:
        raise ValueError(f"size: the digits have 8×8 pixels and are only enlarged, expected size ≥ 8, got {size}")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits() needs scikit-learn: pip install scikit-learn") from error
    embedded = load_digits()
    x = torch.from_numpy(embedded.images).float()[:, None] / 16  # (1797, 1, 8, 8), intensities 0 … 1
    x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    y = torch.from_numpy(embedded.target).long()
    test, validation, train = _stratified(y, (360, 360, 1077), _generator(seed))
    return _normalised("digits", (x[train], y[train]), (x[validation], y[validation]), (x[test], y[test]),
                       classes=tuple("0123456789"))


def batches(split: Split, size: int, seed: int, epoch: int, drop_last: bool = False) -> list[Int[Tensor, " B"]]:
    """The mini-batches of one epoch, as index tensors: `x, y = split[index]`.

    The order is a function of (seed, epoch) alone: a resumed run sees the batches that the uninterrupted run
    would have seen. `drop_last` leaves out a last batch of fewer than `size` images.
    Raises ValueError if `size` < 1, or `seed` or `epoch` < 0.
    """
    if size < 1:
        raise ValueError(f"size: expected a batch size of at least 1, got {size}")
    n = len(split)
    order = torch.randperm(n, generator=_generator(seed, epoch))
    return list((order[: n - n % size] if drop_last else order).split(size))


def _generator(*key: int) -> torch.Generator:
    if min(key) < 0:
        raise ValueError(f"seed, epoch: expected non-negative integers, got {key}")
    # torch's CPU generator keeps only 32 bits of its seed: mix the whole key into them.
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def _stratified(y: Tensor, sizes: tuple[int, ...], generator: torch.Generator) -> list[Tensor]:
    """Disjoint random index sets of exactly `sizes` images; in each, every class has its share to within one image.

    Drawn one after the other, so that an earlier set does not depend on the size of a later one.
    """
    if min(sizes) < 1 or sum(sizes) > len(y):
        raise ValueError(f"splits: expected sizes of at least 1 and {len(y)} in all, got {sizes}")
    rest, chosen = torch.randperm(len(y), generator=generator), []
    for size in sizes:
        one_hot = F.one_hot(y[rest])
        share = one_hot.sum(0) * size
        quota = share // len(rest)
        quota[(share % len(rest)).argsort(descending=True, stable=True)[: size - quota.sum()]] += 1
        rank = one_hot.cumsum(0).gather(1, y[rest, None])[:, 0]  # 1, 2, … within the image's own class
        take = rank <= quota[y[rest]]
        chosen.append(rest[take])
        rest = rest[~take]
    return chosen


def _normalised(name: str, train, validation, test, classes: tuple[str, ...]) -> Data:
    """Data from three pairs (intensities 0 … 1, classes); the intensities are overwritten."""
    chunks = train[0].split(4096)  # float64 sums without a float64 copy of the whole set
    pixels = train[0].numel() // train[0].shape[1]
    mean = sum(c.double().sum((0, 2, 3)) for c in chunks) / pixels
    std = (sum((c.double() - mean[:, None, None]).square().sum((0, 2, 3)) for c in chunks) / pixels).sqrt()
    splits = [Split(x.sub_(mean[:, None, None]).div_(std[:, None, None]), y) for x, y in (train, validation, test)]
    return Data(name, *splits, classes, tuple(mean.tolist()), tuple(std.tolist()))
