"""Image data: readers, splits, normalisation and the order of mini-batches.

Owns no equation. `digits()` needs no file and no network. The files of the other two are looked for in the folder that
is passed as `root`; without one in $DCPNAS_DATA/NAME (default ~/.cache/dcpnas_lite/NAME), then in Debian's
/usr/share/datasets/NAME, where NAME is fashion-mnist or cifar-10. A file is used only after its checksum was verified.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from . import files
from .validate import integer

if TYPE_CHECKING:
    from jaxtyping import Float, Int, UInt8

FASHION_MNIST_URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
FASHION_MNIST_SHA256 = {  # of the decompressed content: the gzip wrappers differ between distributors
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
FASHION_MNIST_BYTES = dict(  # of the decompressed content; no more is read, or downloaded
    zip(FASHION_MNIST_SHA256, (16 + 60_000 * 784, 8 + 60_000, 16 + 10_000 * 784, 8 + 10_000), strict=True)
)
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
# As listed by TensorFlow Datasets; the authors' page gives md5 c32a1d4ab5d03f1284b67883e8d87530 for the same archive.
CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR10_FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
CIFAR10_RECORDS = 10_000  # in each file
CIFAR10_RECORD = 1 + 3 * 32 * 32  # bytes: the class, then the planes R, G, B
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
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits() needs scikit-learn: pip install scikit-learn") from error
    embedded = load_digits()
    x = torch.from_numpy(embedded.images).float()[:, None] / 16  # (1797, 1, 8, 8), intensities 0 … 1
    x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    y = torch.from_numpy(embedded.target).long()
    test, validation, train = _stratified(y, (360, 360, 1077), _generator(seed))
    pairs = [(x[index], y[index]) for index in (train, validation, test)]
    return _normalised("digits", pairs, tuple("0123456789"))


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
    folders = _folders("fashion-mnist", root)
    folder = next((f for f in folders if all(_idx_path(f, name) for name in sha256)), None)
    if folder is None:
        try:
            folder = download_fashion_mnist(root, base_url, sha256)
        except ConnectionError as error:
            looked = " or ".join(map(str, folders))
            raise FileNotFoundError(f"Fashion-MNIST: no folder with {', '.join(sha256)} (or .gz) at {looked}, "
                                    f"and the download failed: {error}") from error  # fmt: skip
    paths = [path for name in sha256 if (path := _idx_path(folder, name))]
    x, y, test_x, test_y = (
        _read_idx(path, name, digest, axes)
        for path, (name, digest), axes in zip(paths, sha256.items(), (3, 1, 3, 1), strict=True)
    )
    return _from_bytes("fashion_mnist", x[:, None], y, test_x[:, None], test_y, train, validation, seed,
                       FASHION_MNIST_CLASSES)  # fmt: skip


def download_fashion_mnist(
    root: str | os.PathLike | None = None,
    base_url: str = FASHION_MNIST_URL,
    sha256: Mapping[str, str] = FASHION_MNIST_SHA256,
) -> Path:
    """Download what is missing of the four files (30 MB) into `root` (default: see the top of this module).

    Returns the folder. An interrupted download is resumed by the next call; a file gets its name only once its
    checksum is right. Raises ConnectionError if a file cannot be fetched, ValueError if it is not the expected one,
    BlockingIOError while another process downloads it into the same folder.
    """
    folder = _folders("fashion-mnist", root)[0]
    folder.mkdir(parents=True, exist_ok=True)
    for name, digest in sha256.items():
        path = folder / f"{name}.gz"
        try:
            _verified_content(path, name, digest)
        except (FileNotFoundError, ValueError):
            with files.lock(path):
                _download(f"{base_url.rstrip('/')}/{path.name}", path, name, digest)
    return folder


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
    try:
        contents = _cifar10_files(root, sha256)
    except ValueError as error:
        raise ValueError(f"{error}; delete it and get {CIFAR10_URL}") from None
    records = [np.frombuffer(contents[name], np.uint8).reshape(-1, CIFAR10_RECORD) for name in CIFAR10_FILES]
    x, y = [r[:, 1:].reshape(-1, 3, 32, 32) for r in records], [r[:, 0] for r in records]
    return _from_bytes("cifar10", np.concatenate(x[:-1]), np.concatenate(y[:-1]), x[-1].copy(), y[-1], train,
                       validation, seed, CIFAR10_CLASSES)  # fmt: skip


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


def _folders(dataset: str, root) -> list[Path]:
    if root is not None:
        return [Path(root).expanduser()]
    home = Path(os.environ.get("DCPNAS_DATA") or "~/.cache/dcpnas_lite").expanduser()
    return [home / dataset, Path("/usr/share/datasets") / dataset]


def _idx_path(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)


def _verified_content(path: Path, name: str, digest: str) -> bytes:
    """The content of the IDX file called `name`, decompressed; ValueError where it is not the one with this digest."""
    limit = FASHION_MNIST_BYTES.get(name, max(FASHION_MNIST_BYTES.values()))
    content = files.read(path, f"the file {name}", _packed(limit))
    if content[:2] == b"\x1f\x8b":
        content = files.gunzip(content, limit, path)
    given = hashlib.sha256(content).hexdigest()
    if given != digest:
        raise ValueError(f"{path}: expected content with sha256 {digest}, got {given}")
    return content


def _packed(limit: int) -> int:
    """Bytes that gzip makes of `limit` bytes at most, with room for a long name in its header."""
    return limit + limit // 1000 + 1000


def _read_idx(path: Path, name: str, digest: str, axes: int) -> UInt8[np.ndarray, " ..."]:
    """An IDX file: bytes 0, 0, 8 (unsigned byte), the number of axes, their lengths (big-endian, 4 bytes), the data."""
    try:
        content, start = _verified_content(path, name, digest), 4 + 4 * axes
    except ValueError as error:
        raise ValueError(f"{error}; delete it and run again, which downloads it") from None
    if content[:4] != bytes((0, 0, 8, axes)) or len(content) < start:
        raise ValueError(f"{path}: expected an IDX file of unsigned bytes and {axes} axes (00 00 08 0{axes} …), "
                         f"got {content[:4].hex(' ')} …")  # fmt: skip
    shape = np.frombuffer(content[4:start], ">u4").tolist()
    if len(content) != start + math.prod(shape):
        raise ValueError(f"{path}: expected {math.prod(shape)} data bytes for shape {shape}, got {len(content) - start}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _download(url: str, path: Path, name: str, digest: str) -> None:
    """Fetch `url` into `path`, going on where a .part file ends; no more than the file can have."""
    part = path.with_name(path.name + ".part")
    start = part.stat().st_size if part.exists() else 0
    limit = _packed(FASHION_MNIST_BYTES.get(name, max(FASHION_MNIST_BYTES.values())))
    try:
        with urlopen(Request(url, headers={"Range": f"bytes={start}-"}), timeout=30) as response:
            if response.status != 206:  # the server ignores Range and sends the whole file
                start = 0
            length = response.headers["Content-Length"] or ""
            total = start + int(length) if length.isdecimal() else None
            with (
                part.open("ab" if start else "wb") as file,
                tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=path.name) as bar,
            ):
                while file.tell() <= limit and (block := response.read(1 << 16)):
                    file.write(block)
                    bar.update(len(block))
        size = part.stat().st_size
        if size <= limit and total and size < total:  # http.client does not report a connection closed too early
            raise ConnectionError(f"connection lost after {size} of {total} bytes")
    except (OSError, HTTPException) as error:
        if not (isinstance(error, HTTPError) and error.code == 416):  # 416: nothing is left to send
            raise ConnectionError(f"{url}: {error}; call again to go on") from error
    try:
        _verified_content(part, name, digest)
    except ValueError as error:
        part.unlink()
        raise ValueError(f"{url}: not the expected file, removed: {error}") from error
    os.replace(part, path)


def _cifar10_files(root, sha256: str) -> dict[str, bytes]:
    """The contents of the six files."""
    places = _folders("cifar-10", root)
    for place in places:
        archive = place if place.is_file() else place / "cifar-10-binary.tar.gz"
        if archive.is_file():
            return _cifar10_archive(archive, sha256)
        for folder in (place, place / "cifar-10-batches-bin"):
            paths = {name: folder / name for name in CIFAR10_FILES}
            if all(path.is_file() for path in paths.values()):
                for path in paths.values():
                    _check_cifar10_size(path, path.stat().st_size)
                return {name: path.read_bytes() for name, path in paths.items()}
    raise FileNotFoundError(
        f"CIFAR-10: no cifar-10-binary.tar.gz and no folder with {', '.join(CIFAR10_FILES)} at "
        f"{' or '.join(map(str, places))}; get {CIFAR10_URL} (the python version, made of pickles, is not read)"
    )


def _check_cifar10_size(file: str | Path, size: int) -> None:
    expected = CIFAR10_RECORDS * CIFAR10_RECORD
    if size != expected:
        raise ValueError(f"{file}: expected {CIFAR10_RECORDS} records of {CIFAR10_RECORD} bytes = {expected} bytes, got {size}")


def _cifar10_archive(archive: Path, sha256: str) -> dict[str, bytes]:
    limit, contents = 7 * CIFAR10_RECORDS * CIFAR10_RECORD, {}  # bytes: the six files, and a seventh for all else
    content = files.read(archive, "the binary version of CIFAR-10", _packed(limit))
    given = hashlib.sha256(content).hexdigest()
    if given != sha256:
        raise ValueError(f"{archive}: expected the binary version of CIFAR-10 with sha256 {sha256}, got {given}")
    try:
        with tarfile.open(fileobj=io.BytesIO(files.gunzip(content, limit, archive)), mode="r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                if name in CIFAR10_FILES and (file := tar.extractfile(member)):  # None for what is no file
                    _check_cifar10_size(f"{archive}: {name}", member.size)
                    contents[name] = file.read()
    except tarfile.TarError as error:
        raise ValueError(f"{archive}: damaged tar archive ({error})") from None
    if missing := [name for name in CIFAR10_FILES if name not in contents]:
        raise ValueError(f"{archive}: expected the binary version of CIFAR-10, {', '.join(missing)} missing")
    return contents


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
