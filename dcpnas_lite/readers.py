"""The files of the data sets: where they are looked for, their download, their checksums, their formats. Owns no equation.

They are looked for in the folder that is passed as `root`; without one in $DCPNAS_DATA/NAME (default
~/.cache/dcpnas_lite/NAME), then in Debian's /usr/share/datasets/NAME, where NAME is fashion-mnist or cifar-10. A file is used
only after its checksum was verified.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import tarfile
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
from tqdm import tqdm

from . import files

if TYPE_CHECKING:
    from jaxtyping import UInt8

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

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
# As listed by TensorFlow Datasets; the authors' page gives md5 c32a1d4ab5d03f1284b67883e8d87530 for the same archive.
CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR10_FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
CIFAR10_RECORDS = 10_000  # in each file
CIFAR10_RECORD = 1 + 3 * 32 * 32  # bytes: the class, then the planes R, G, B


def fashion_mnist_files(root, base_url: str, sha256: Mapping[str, str]) -> tuple[UInt8[np.ndarray, " ..."], ...]:
    """Images (N, 28, 28) and classes (N,) for training, then for testing; downloaded where they are missing.

    Raises as `data.fashion_mnist`.
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
    return tuple(
        _read_idx(path, name, digest, axes)
        for path, (name, digest), axes in zip(paths, sha256.items(), (3, 1, 3, 1), strict=True)
    )


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


def cifar10_files(root, sha256: str) -> tuple[UInt8[np.ndarray, " ..."], ...]:
    """Images (N, 3, 32, 32) and classes (N,) for training, then for testing. Raises as `data.cifar10`."""
    try:
        contents = _cifar10_contents(root, sha256)
    except ValueError as error:
        raise ValueError(f"{error}; delete it and get {CIFAR10_URL}") from None
    records = [np.frombuffer(contents[name], np.uint8).reshape(-1, CIFAR10_RECORD) for name in CIFAR10_FILES]
    x, y = [r[:, 1:].reshape(-1, 3, 32, 32) for r in records], [r[:, 0] for r in records]
    return np.concatenate(x[:-1]), np.concatenate(y[:-1]), x[-1].copy(), y[-1]


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


def _cifar10_contents(root, sha256: str) -> dict[str, bytes]:
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
