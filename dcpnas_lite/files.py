"""Files that survive: written atomically, locked against a second writer, read within bounds. Owns no equation.

Everything the package writes goes through `write`: whoever reads sees the old file or the new one, whole, whatever is killed.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import json
import os
import secrets
import socket
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

LIMIT = 1 << 30  # bytes that reading one file may take
HEADER = "dcpnas_lite"  # the entry of a safetensors file that is ours


def write(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a file atomically: text as UTF-8. OSError names the file; nothing is left of a write that failed."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")  # no other writer has this name
    try:
        with open(part, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        what = error.strerror or str(error)
        raise OSError(error.errno, f"{what}; not written (an earlier file stays as it was)", str(path)) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def read(path: str | os.PathLike, what: str, limit: int = LIMIT) -> bytes:
    """The bytes of a file. FileNotFoundError where there is none, ValueError for what is no file or larger than `limit`."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: expected {what}, got {'a folder' if path.is_dir() else 'something that is no file'}")
    with open(path, "rb") as file:
        content = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    if len(content) > limit:
        raise ValueError(f"{path}: expected {what} of at most {limit:,} bytes, got a larger file")
    return content


def gunzip(content: bytes, limit: int, path: str | os.PathLike) -> bytes:
    """Decompress gzip, at most `limit` bytes. ValueError for damaged content or for more."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            out = file.read(limit + 1)
        if not content:
            raise EOFError("it is empty")
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file ({error})") from None
    if len(out) > limit:
        raise ValueError(f"{path}: expected at most {limit:,} bytes of content, got a gzip file that holds more")
    return out


# -- JSON and arrays with a checksum ----------------------------------------------------------------------------------


def read_json(path: str | os.PathLike, what: str) -> dict:
    """The JSON object in a file. FileNotFoundError where there is none, ValueError for anything but an object."""
    content = read(path, what)
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ValueError(f"{path}: expected {what}, got a file that is no JSON: damaged, or not made by this package") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected {what}, a JSON object, got {type(value).__name__}")
    return value


def seal(values: Mapping, what: str) -> str:
    """JSON text of an object, its last entry the SHA-256 of the others, so that a changed byte is noticed."""
    return json.dumps({**values, "sha256": _digest(values, what)}, indent=1, ensure_ascii=False) + "\n"


def unseal(path: str | os.PathLike, what: str) -> dict:
    """Read a file of `seal`. ValueError where it is damaged or something else."""
    values = read_json(path, what)
    if values.pop("sha256", None) != _digest(values, what):
        raise ValueError(f"{path}: expected {what}, got a damaged one (its checksum is wrong): delete it and run again")
    return values


def _digest(values: Mapping, what: str) -> str:
    return hashlib.sha256(json.dumps([what, dict(values)], sort_keys=True).encode()).hexdigest()


def arrays_to_bytes(arrays: Mapping[str, np.ndarray], compress: bool = False) -> bytes:
    """A NumPy .npz archive; its comment, the last 64 bytes, is the SHA-256 of all before it."""
    buffer = io.BytesIO()
    save: Callable = np.savez_compressed if compress else np.savez
    save(buffer, **arrays)
    with zipfile.ZipFile(buffer, "a") as file:
        file.comment = b"0" * 64
    content = buffer.getvalue()[:-64]
    return content + hashlib.sha256(content).hexdigest().encode()


def arrays_from_bytes(content: bytes, path: str | os.PathLike, what: str, sealed: bool = True) -> dict[str, np.ndarray]:
    """Read `arrays_to_bytes`, without any pickle. ValueError in one line for a damaged or foreign file.

    sealed: an archive without that comment is refused; otherwise zip's own checksums have to do.
    """
    def refuse(got: str):
        return ValueError(f"{path}: expected {what}, got {got}: delete it and run again")

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            comment, size = file.comment, sum(entry.file_size for entry in file.infolist())
        if comment or sealed:
            if content[:4] != b"PK\3\4" or hashlib.sha256(content[:-64]).hexdigest().encode() != comment:
                raise refuse("a damaged or foreign one (its checksum is wrong)")
        if size > LIMIT:
            raise refuse(f"one of {size:,} bytes, more than {LIMIT:,}")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return dict(file)
    except ValueError as error:
        raise error if str(error).startswith(str(path)) else refuse(f"an unreadable file ({error})") from None
    except Exception as error:  # zipfile, zlib and NumPy have a dozen kinds for a damaged file
        raise refuse(f"an unreadable file ({type(error).__name__})") from None


def tensors_to_bytes(tensors: Mapping[str, np.ndarray], what: str, version: int, header: Mapping) -> bytes:
    """A safetensors file of arrays; its header holds `what` it is, the version, `header`, and the SHA-256 of all this."""
    from safetensors.numpy import save

    entries = {**header, "what": what, "version": version}
    text = json.dumps(entries | {"sha256": _tensor_digest(tensors, entries)}, ensure_ascii=False)
    return save(dict(tensors), {HEADER: text})


def tensors_from_bytes(content: bytes, path: str | os.PathLike, what: str, version: int) -> tuple[dict[str, np.ndarray], dict]:
    """(arrays, header) of `tensors_to_bytes`. ValueError in one line for a damaged or foreign file, or one of a newer version."""
    from safetensors.numpy import load

    def refuse(got: str):
        return ValueError(f"{path}: expected {what}, got {got}")

    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        entries = json.loads(header.get("__metadata__", {}).get(HEADER, "null"))
    except Exception as error:  # SafetensorError, and what a damaged header makes of json and NumPy
        raise refuse(f"an unreadable file, damaged or of another kind ({type(error).__name__})") from None
    if not isinstance(entries, dict) or "what" not in entries:
        raise refuse("a safetensors file that this package did not make")
    if entries.pop("sha256", None) != _tensor_digest(tensors, entries):
        raise refuse("a damaged one (its checksum is wrong)")
    if (kind := entries.pop("what")) != what:
        raise refuse(f"{kind}")
    if (made := entries.pop("version")) > version:
        raise refuse(f"one of version {made}, newer than {version}, which is all this package knows: update it")
    return tensors, entries


def _tensor_digest(tensors: Mapping[str, np.ndarray], entries: Mapping) -> str:
    digest = hashlib.sha256(json.dumps(entries, sort_keys=True).encode())
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return digest.hexdigest()


# -- one writer -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def lock(path: str | os.PathLike) -> Iterator[None]:
    """Hold `path`, a file or a folder, for this process alone; the operating system lets go when the process ends.

    BlockingIOError, which names the holder, where another one has it. Left-overs of killed writers are removed.
    """
    path = Path(path)
    name, folder = ("", path) if path.is_dir() else (path.name, path.parent)
    guard = folder / f".{name or 'folder'}.lock"
    while True:
        file = open(guard, "a+", encoding="utf8")  # open as long as it is held
        if not _locked(file):
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            file.close()
            raise BlockingIOError(f"{path}: in use by {holder}; wait for it, stop it, or choose another place")
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), guard.stat()):
                break
        file.close()  # the last holder removed it between our two calls
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        for part in folder.glob(f".{name}*.part"):  # unlocked until now, so their writers are gone
            part.unlink(missing_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no open file; one that is left says nothing
            guard.unlink()
        file.close()


def _locked(file) -> bool:
    """Lock an open file; False where another open file has the lock. A file system without locks has to do without."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(1 << 30)  # a byte far behind the holder's name, which stays readable
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            raise
    return True
