"""Image data: the three data sets, their splits, normalisation and the order of mini-batches.

Owns no equation. `digits()` needs no file and no network; where those of the others are looked for, `readers` says.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .readers import CIFAR10_SHA256, FASHION_MNIST_SHA256, FASHION_MNIST_URL, cifar10_files, fashion_mnist_files
from .validate import integer

if TYPE_CHECKING:
    from jaxtyping import Float, Int

FASHION_MNIST_CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


LARGEST = 1e15  # of a number in an image: sums of squares stay finite in float32


@dataclass(frozen=True, eq=False)
class Split:
    """Normalised images and their classes; `split[index]` gives the pair (x, y).

    Images of another floating type become torch's default one (float32), labels of another integer type int64.
    ValueError for anything but at least one image without NaN and infinity and as many labels, none below 0.
    """

    x: Float[Tensor, "N C H W"]  # float32
    y: Int[Tensor, " N"]  # int64, 0 … number of classes − 1

    def __post_init__(self):
        for name, value, axes in (("x", self.x, 4), ("y", self.y, 1)):
            expected = "images (N, C, H, W)" if name == "x" else "one label for each image, (N,)"
            if not isinstance(value, Tensor):
                raise ValueError(f"{name}: expected a tensor, {expected}, got {type(value).__name__}")
            if value.dim() != axes or 0 in value.shape:
                raise ValueError(f"{name}: expected {expected}, at least one, got shape {tuple(value.shape)}")
            if value.layout != torch.strided or value.device.type != "cpu" or value.requires_grad:
                got = f"{value.layout} on {value.device}" + ", which requires a gradient" * value.requires_grad
                raise ValueError(f"{name}: expected an ordinary tensor on the CPU that requires no gradient, got {got}")
        if len(self.x) != len(self.y):
            raise ValueError(f"y: expected one label for each of the {len(self.x)} images, got {len(self.y)}")
        if not self.x.is_floating_point():
            raise ValueError(f"x: expected images as floating-point numbers, normalised, got {self.x.dtype}")
        if self.y.is_floating_point() or self.y.is_complex() or self.y.dtype == torch.bool:
            raise ValueError(f"y: expected integers, 0 … number of classes − 1, got {self.y.dtype}")
        object.__setattr__(self, "x", self.x.to(torch.get_default_dtype()))
        object.__setattr__(self, "y", self.y.long())
        low, high = (v.item() for v in self.x.aminmax())  # NaN where there is one
        if not -LARGEST <= low <= high <= LARGEST:
            raise ValueError(f"x: expected finite numbers of at most {LARGEST:g}, got images from {low:g} to {high:g}")
        if self.y.min() < 0:
            raise ValueError(f"y: expected labels 0 … number of classes − 1, got {self.y.min()}")

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


@dataclass(frozen=True, eq=False)
class Data:
    """Three disjoint stratified splits. `mean` and `std` are those of the training split, one per channel,
    in units of the full intensity range (0 = black, 1 = white): x = (intensity − mean) / std in every split.

    A data set of one's own is made like this, too. ValueError where images differ in channels or size between the splits, a
    label has no name in `classes` (2 or more), or `mean` and `std` are not one finite number, std > 0, for each channel.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        if not isinstance(self.name, str):
            raise ValueError(f"name: expected a string, got {self.name!r}")
        splits = {name: getattr(self, name) for name in ("train", "validation", "test")}
        for name, split in splits.items():
            if not isinstance(split, Split):
                raise ValueError(f"{name}: expected a Split, got {type(split).__name__}")
            shape, expected = tuple(split.x.shape[1:]), tuple(self.train.x.shape[1:])
            if shape != expected:
                raise ValueError(f"{name}: expected images (C, H, W) = {expected} as in train, got {shape}")
        if not isinstance(self.classes, list | tuple | np.ndarray) or not all(isinstance(c, str) for c in self.classes):
            raise ValueError(f"classes: expected the names of the classes, got {self.classes!r}")
        if len(self.classes) < 2:
            raise ValueError(f"classes: expected 2 names or more, got {len(self.classes)}")
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))
        for name, split in splits.items():
            if split.y.max() >= len(self.classes):
                raise ValueError(f"{name}: expected labels 0 … {len(self.classes) - 1}, one for each class, got {split.y.max()}")
        for name in ("mean", "std"):
            try:
                numbers = tuple(map(float, getattr(self, name)))
            except (TypeError, ValueError):
                numbers = ()
            if len(numbers) != self.channels or not all(math.isfinite(v) and (v > 0 or name == "mean") for v in numbers):
                expected = f"{self.channels} finite numbers{' above 0' * (name == 'std')}, one for each channel"
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")
            object.__setattr__(self, name, numbers)

    @property
    def channels(self) -> int:
        return self.train.x.shape[1]

    @property
    def size(self) -> int:
        """Height and width of the images in pixels; ValueError where they are not the same."""
        height, width = self.train.x.shape[2:]
        if height != width:
            raise ValueError(f"size: expected square images, got {height}×{width}")
        return height


def digits(seed: int = 0, size: int = 16) -> Data:
    """The 1797 handwritten digits that scikit-learn carries: one channel, 8×8, upsampled to `size`×`size`.

    Stratified by `seed` into 1077 / 360 / 360 images for training / validation / test (60 / 20 / 20 %).
    Raises ImportError without scikit-learn, ValueError if `size` < 8: they are only enlarged.
    """
    size = integer("size", size, 8)
    table = torch.from_numpy(_embedded_digits())
    x = table[:, :-1].float().view(-1, 1, 8, 8) / 16  # intensities 0 … 1
    x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    y = table[:, -1].long()
    test, validation, train = _stratified(y, (360, 360, 1077), _generator(seed))
    pairs = [(x[index], y[index]) for index in (train, validation, test)]
    return _normalised("digits", pairs, tuple("0123456789"))


def _embedded_digits() -> np.ndarray:
    """The digits of scikit-learn, (1797, 65): 64 intensities 0 … 16 and the class.

    Their file is read where it lies: to import scikit-learn takes longer than many a search of theirs.
    """
    found = importlib.util.find_spec("sklearn")
    if found and found.origin and (file := Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz").is_file():
        return np.loadtxt(file, delimiter=",")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits() needs scikit-learn: pip install scikit-learn") from error
    return np.column_stack(load_digits(return_X_y=True))


def fashion_mnist(
    root: str | os.PathLike | None = None,
    train: int | None = None,
    validation: int = 10_000,
    seed: int = 0,
    base_url: str = FASHION_MNIST_URL,
    sha256: Mapping[str, str] = FASHION_MNIST_SHA256,
) -> Data:
    """Fashion-MNIST: one channel, 28×28, 60,000 training images and 10,000 test images (Xiao et al., 2017).

    `train` (default: all that remain) and `validation` images are a stratified choice by `seed` from the training
    images; the test split is always whole. The four IDX files may be plain or gzipped; where they are missing they
    are downloaded (`download_fashion_mnist`). `sha256` maps the file names, in this order, to digests of the
    decompressed content.
    Raises FileNotFoundError if the files are neither there nor to be had, ValueError for a damaged or foreign file
    or for splits larger than the data.
    """
    x, y, test_x, test_y = fashion_mnist_files(root, base_url, sha256)
    return _from_bytes("fashion_mnist", x[:, None], y, test_x[:, None], test_y, train, validation, seed,
                       FASHION_MNIST_CLASSES)  # fmt: skip


def cifar10(
    root: str | os.PathLike | None = None,
    train: int | None = None,
    validation: int = 10_000,
    seed: int = 0,
    sha256: str = CIFAR10_SHA256,
) -> Data:
    """CIFAR-10: three channels, 32×32, 50,000 training images and 10,000 test images (Krizhevsky, 2009).

    Reads the binary version only: the archive cifar-10-binary.tar.gz (its digest is `sha256`; nothing is extracted) or a
    folder with its six .bin files, for which no digest is published: their format is checked.
    `root` is the archive or its folder. Splits as in `fashion_mnist`.
    Raises FileNotFoundError if there is neither, ValueError for anything else than the six files in their format.
    """
    x, y, test_x, test_y = cifar10_files(root, sha256)
    return _from_bytes("cifar10", x, y, test_x, test_y, train, validation, seed, CIFAR10_CLASSES)


def load(name: str, root: str | os.PathLike | None = None, seed: int = 0, **options) -> Data:
    """The data set called `name`: digits, fashion_mnist or cifar10; `options` are those of its reader.

    `root` says where the files are; the digits have none. Raises ValueError for any other name.
    """
    if name == "digits":
        return digits(seed=seed, **options)
    if name == "fashion_mnist":
        return fashion_mnist(root, seed=seed, **options)
    if name == "cifar10":
        return cifar10(root, seed=seed, **options)
    raise ValueError(f"data: expected digits, fashion_mnist or cifar10, got {name!r}")


def batches(split: Split, size: int, seed: int, epoch: int, drop_last: bool = False) -> list[Int[Tensor, " N"]]:
    """The mini-batches of one epoch, as index tensors: `x, y = split[index]`.

    The order is a function of (seed, epoch) alone: a resumed run sees the batches that the uninterrupted run
    would have seen. `drop_last` leaves out a last batch of fewer than `size` images.
    Raises ValueError if `size` < 1, or a seed or an epoch is no integer from 0 to 2**32 − 1.
    """
    size = integer("size", size, 1)
    parts = torch.randperm(len(split), generator=_generator(seed, integer("epoch", epoch, 0, 2**32 - 1))).split(size)
    return [p for p in parts if len(p) == size or not drop_last]


def _generator(seed: int, *key: int) -> torch.Generator:
    # torch's CPU generator keeps only 32 bits of its seed: mix the key, one 32-bit word each, into them.
    key = (integer("seed", seed, 0, 2**32 - 1), *key)
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


def _normalised(name: str, pairs: Sequence[tuple[Tensor, Tensor]], classes: tuple[str, ...]) -> Data:
    """Data from three pairs (intensities 0 … 1, classes), the first for training; the intensities are overwritten."""
    images = pairs[0][0]
    chunks = images.split(256)  # float64 sums without a float64 copy of the whole set
    pixels = images.numel() // images.shape[1]
    mean = sum(c.double().sum((0, 2, 3)) for c in chunks) / pixels
    std = (sum((c.double() - mean[:, None, None]).square().sum((0, 2, 3)) for c in chunks) / pixels).sqrt()
    shift, scale = (v.float()[:, None, None] for v in (mean, std))
    train, validation, test = (Split(x.sub_(shift).div_(scale), y) for x, y in pairs)
    return Data(name, train, validation, test, classes, tuple(mean.tolist()), tuple(std.tolist()))


def _from_bytes(name, x, y, test_x, test_y, train, validation, seed, classes) -> Data:
    """Data from arrays of bytes, x (N, C, H, W) and y (N,); training and validation split are drawn from x, y."""
    for images, labels in ((x, y), (test_x, test_y)):
        if len(images) != len(labels) or labels.max(initial=0) >= len(classes):
            raise ValueError(f"{name}: expected as many labels as images, 0 … {len(classes) - 1}, "
                             f"got {len(images)} images and {len(labels)} labels up to {labels.max(initial=0)}")  # fmt: skip
    y, test_y = (torch.from_numpy(labels.astype(np.int64)) for labels in (y, test_y))
    validation = integer("validation", validation, 1)
    train = len(y) - validation if train is None else integer("train", train, 1)
    for_validation, for_training = _stratified(y, (validation, train), _generator(seed))

    def intensities(images: np.ndarray) -> Tensor:
        return torch.from_numpy(images).float().div_(255)

    pairs = [
        (intensities(x[for_training.numpy()]), y[for_training]),
        (intensities(x[for_validation.numpy()]), y[for_validation]),
        (intensities(test_x), test_y),
    ]
    return _normalised(name, pairs, classes)
