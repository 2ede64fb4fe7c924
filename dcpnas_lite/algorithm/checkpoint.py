"""Save and resume: plain tensors, numbers and strings in one file, written atomically."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import torch

VERSION = 2


def save(path: str | os.PathLike, state: dict) -> None:
    """Write `state` (dicts and lists of tensors, numbers, strings) to `path`; a kill leaves the old file or the new one."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        torch.save({"dcpnas_lite": VERSION, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def load(path: str | os.PathLike) -> dict:
    """Read what `save` wrote. ValueError in one line for a damaged or foreign file or one of another version."""
    return parse(read(path), path)


def read(path: str | os.PathLike) -> bytes:
    """The bytes of a checkpoint file. FileNotFoundError where there is none, ValueError for what is no file."""
    try:
        return Path(path).read_bytes()
    except IsADirectoryError:
        raise ValueError(f"{path}: expected a checkpoint of dcpnas_lite, got a folder") from None


def parse(content: bytes, path: str | os.PathLike) -> dict:
    """`load` of the bytes that `path` holds, or held on another machine."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:  # torch.save writes a CRC-32 for every tensor, torch.load ignores it
            damaged = file.testzip()
        state = None if damaged else torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:  # torch.load raises whatever its zip and unpickling layers come upon
        what = f"an unreadable file ({type(error).__name__})"
        raise ValueError(f"{path}: expected a checkpoint of dcpnas_lite, got {what}") from None
    if damaged:
        raise ValueError(f"{path}: expected a checkpoint of dcpnas_lite, got a damaged one (wrong checksum of {damaged})")
    if not isinstance(state, dict) or "dcpnas_lite" not in state:
        raise ValueError(f"{path}: expected a checkpoint of dcpnas_lite, got a file of something else")
    if state["dcpnas_lite"] != VERSION:
        raise ValueError(f"{path}: expected checkpoint version {VERSION}, got {state['dcpnas_lite']!r}")
    return state
