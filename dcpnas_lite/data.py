"""Image data: readers, splits, normalisation and the order of mini-batches.

Owns no equation. `digits()` needs no file and no network. The files of the other two are looked for in the folder that
is passed as `root`; without one in $DCPNAS_DATA/NAME (default ~/.cache/dcpnas_lite/NAME), then in Debian's
/usr/share/datasets/NAME, where NAME is fashion-mnist or cifar-10. A file is used only after its checksum was verified.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Mapping
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

if TYPE_CHECKING:
    from jaxtyping import Float, Int, UInt8

FASHION_MNIST_URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
FASHION_MNIST_SHA256 = {  # of the decompressed content: the gzip wrappers differ between distributors
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
# As listed by TensorFlow Datasets; the authors' page gives md5 c32a1d4ab5d03f1284b67883e8d87530 for the same archive.
CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR10_FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
CIFAR10_RECORDS = 10_000  # in each file; a record is 1 byte for the class and 3 × 32 × 32 for the planes R, G, B
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


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
    Raises ImportError without scikit-learn, ValueError if `size` < 8.
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
    pairs = [(x[index], y[index]) for index in (train, validation, test)]
    return _normalised("digits", *pairs, classes=tuple("0123456789"))


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
    x, y, test_x, test_y = (_read_idx(_idx_path(folder, name), digest) for name, digest in sha256.items())
    return _from_bytes("fashion_mnist", x[:, None], y, test_x[:, None], test_y, train, validation, seed,
                       FASHION_MNIST_CLASSES)  # fmt: skip


def download_fashion_mnist(
    root: str | os.PathLike | None = None,
    base_url: str = FASHION_MNIST_URL,
    sha256: Mapping[str, str] = FASHION_MNIST_SHA256,
) -> Path:
    """Download what is missing of the four files (30 MB) into `root` (default: see the top of this module).

    Returns the folder. An interrupted download is resumed by the next call; a file gets its name only once its
    checksum is right. Raises ConnectionError if a file cannot be fetched, ValueError if it is not the expected one.
    """
    folder = _folders("fashion-mnist", root)[0]
    folder.mkdir(parents=True, exist_ok=True)
    for name, digest in sha256.items():
        path = folder / f"{name}.gz"
        try:
            _verified_content(path, digest)
        except (FileNotFoundError, ValueError):
            _download(f"{base_url.rstrip('/')}/{path.name}", path, digest)
    return folder


def cifar10(
    root: str | os.PathLike | None = None,
    train: int | None = None,
    validation: int = 10_000,
    seed: int = 0,
    sha256: str = CIFAR10_SHA256,
) -> Data:
    """CIFAR-10: three channels, 32×32, 50,000 training images and 10,000 test images (Krizhevsky, 2009).

    Reads the binary version only: the archive cifar-10-binary.tar.gz (its digest is `sha256`; streamed, nothing is
    extracted) or a folder with its six .bin files, for which no digest is published: their format is checked.
    `root` is the archive or its folder. Splits as in `fashion_mnist`.
    Raises FileNotFoundError if there is neither, ValueError for anything else than the six files in their format.
    """
    source, contents = _cifar10_files(root, sha256)
    x, y = [], []
    for name in CIFAR10_FILES:
        expected, given = CIFAR10_RECORDS * 3073, len(contents[name])
        if given != expected:
            raise ValueError(f"{source}: {name}: expected {CIFAR10_RECORDS} records of 3073 bytes = {expected} bytes, "
                             f"got {given}")  # fmt: skip
        records = np.frombuffer(contents[name], np.uint8).reshape(-1, 3073)
        x.append(records[:, 1:].reshape(-1, 3, 32, 32))
        y.append(records[:, 0])
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


def batches(split: Split, size: int, seed: int, epoch: int, drop_last: bool = False) -> list[Int[Tensor, " B"]]:
    """The mini-batches of one epoch, as index tensors: `x, y = split[index]`.

    The order is a function of (seed, epoch) alone: a resumed run sees the batches that the uninterrupted run
    would have seen. `drop_last` leaves out a last batch of fewer than `size` images.
    Raises ValueError if `size` < 1.
    """
    if size < 1:
        raise ValueError(f"size: expected a batch size of at least 1, got {size}")
    parts = torch.randperm(len(split), generator=_generator(seed, epoch)).split(size)
    return [p for p in parts if len(p) == size or not drop_last]


def _generator(*key: int) -> torch.Generator:
    # torch's CPU generator keeps only 32 bits of its seed: mix the key, one 32-bit word each, into them.
    if not all(0 <= k < 2**32 for k in key):
        raise ValueError(f"seed, epoch: expected integers from 0 to 2**32 - 1, got {', '.join(map(str, key))}")
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
    chunks = train[0].split(256)  # float64 sums without a float64 copy of the whole set
    pixels = train[0].numel() // train[0].shape[1]
    mean = sum(c.double().sum((0, 2, 3)) for c in chunks) / pixels
    std = (sum((c.double() - mean[:, None, None]).square().sum((0, 2, 3)) for c in chunks) / pixels).sqrt()
    shift, scale = (v.float()[:, None, None] for v in (mean, std))
    splits = [Split(x.sub_(shift).div_(scale), y) for x, y in (train, validation, test)]
    return Data(name, *splits, classes, tuple(mean.tolist()), tuple(std.tolist()))


def _folders(dataset: str, root) -> list[Path]:
    if root is not None:
        return [Path(root).expanduser()]
    home = Path(os.environ.get("DCPNAS_DATA") or "~/.cache/dcpnas_lite").expanduser()
    return [home / dataset, Path("/usr/share/datasets") / dataset]


def _idx_path(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)


def _verified_content(path: Path, digest: str) -> bytes:
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file ({error})") from error
    given = hashlib.sha256(content).hexdigest()
    if given != digest:
        raise ValueError(f"{path}: expected content with sha256 {digest}, got {given}")
    return content


def _read_idx(path: Path, digest: str) -> UInt8[np.ndarray, " ..."]:
    """An IDX file: bytes 0, 0, 8 (unsigned byte), the number of axes, their lengths (big-endian, 4 bytes), the data."""
    content = _verified_content(path, digest)
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise ValueError(f"{path}: expected an IDX file of unsigned bytes (00 00 08 …), got {content[:4].hex(' ')} …")
    start = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:start], ">u4").astype(int)
    if len(content) != start + shape.prod():
        raise ValueError(f"{path}: expected {shape.prod()} data bytes for shape {shape}, got {len(content) - start}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _download(url: str, path: Path, digest: str) -> None:
    """Fetch `url` into `path`, going on where a .part file ends."""
    part = path.with_name(path.name + ".part")
    start = part.stat().st_size if part.exists() else 0
    try:
        with urlopen(Request(url, headers={"Range": f"bytes={start}-"}), timeout=30) as response:
            if response.status != 206:  # the server ignores Range and sends the whole file
                start = 0
            length = response.headers["Content-Length"]
            total = start + int(length) if length else None
            with (
                part.open("ab" if start else "wb") as file,
                tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=path.name) as bar,
            ):
                while block := response.read(1 << 16):
                    file.write(block)
                    bar.update(len(block))
        if total and part.stat().st_size < total:  # http.client does not report a connection closed too early
            raise ConnectionError(f"connection lost after {part.stat().st_size} of {total} bytes")
    except (OSError, HTTPException) as error:
        if not (isinstance(error, HTTPError) and error.code == 416):  # 416: nothing is left to send
            raise ConnectionError(f"{url}: {error}; call again to go on") from error
    try:
        _verified_content(part, digest)
    except ValueError as error:
        part.unlink()
        raise ValueError(f"{url}: not the expected file, removed: {error}") from error
    os.replace(part, path)


def _cifar10_files(root, sha256: str) -> tuple[Path, dict[str, bytes]]:
    """Where the six files were found, and their contents."""
    places = _folders("cifar-10", root)
    for place in places:
        archive = place if place.is_file() else place / "cifar-10-binary.tar.gz"
        if archive.is_file():
            return archive, _cifar10_archive(archive, sha256)
        for folder in (place, place / "cifar-10-batches-bin"):
            if all((folder / name).is_file() for name in CIFAR10_FILES):
                return folder, {name: (folder / name).read_bytes() for name in CIFAR10_FILES}
    raise FileNotFoundError(
        f"CIFAR-10: no cifar-10-binary.tar.gz and no folder with {', '.join(CIFAR10_FILES)} at "
        f"{' or '.join(map(str, places))}; get {CIFAR10_URL} (the python version, made of pickles, is not read)"
    )


def _cifar10_archive(archive: Path, sha256: str) -> dict[str, bytes]:
    with archive.open("rb") as file:
        given = hashlib.file_digest(file, "sha256").hexdigest()
    if given != sha256:
        raise ValueError(f"{archive}: expected the binary version ({CIFAR10_URL}) with sha256 {sha256}, got {given}")
    contents = {}
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                if member.isfile() and name in CIFAR10_FILES:
                    contents[name] = tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{archive}: damaged tar.gz archive ({error})") from error
    if missing := [name for name in CIFAR10_FILES if name not in contents]:
        raise ValueError(f"{archive}: expected the binary version of CIFAR-10, {', '.join(missing)} missing")
    return contents


def _from_bytes(name, x, y, test_x, test_y, train, validation, seed, classes) -> Data:
    """Data from arrays of bytes, x (N, C, H, W) and y (N,); training and validation split are drawn from x, y."""
    for images, labels in ((x, y), (test_x, test_y)):
        if len(images) != len(labels) or labels.max() >= len(classes):
            raise ValueError(f"{name}: expected as many labels as images, 0 … {len(classes) - 1}, "
                             f"got {len(images)} images and {len(labels)} labels up to {labels.max()}")  # fmt: skip
    y, test_y = (torch.from_numpy(labels.astype(np.int64)) for labels in (y, test_y))
    train = len(y) - validation if train is None else train
    for_validation, for_training = _stratified(y, (validation, train), _generator(seed))

    def intensities(images: np.ndarray) -> Tensor:
        return torch.from_numpy(images).float().div_(255)

    return _normalised(
        name,
        (intensities(x[for_training.numpy()]), y[for_training]),
        (intensities(x[for_validation.numpy()]), y[for_validation]),
        (intensities(test_x), test_y),
        classes,
    )
