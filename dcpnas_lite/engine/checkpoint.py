"""Save and resume: plain tensors, numbers and strings in one .npz file, written atomically and read without any unpickler.

The tensors of one dtype lie behind each other in one array; `state` is JSON text that says where each of them is.
"""

from __future__ import annotations

import json
import os

import numpy as np
import torch
from torch import Tensor

from .. import files

VERSION = 3
WHAT = "a checkpoint of dcpnas_lite"


def save(path: str | os.PathLike, state: dict) -> None:
    """Write `state` (dicts, lists and tuples of tensors, numbers, strings, None) to `path`; a kill leaves the old or the new.

    ValueError names a value of another kind, OSError the file where it cannot be written.
    """
    files.write(path, to_bytes(state))


def load(path: str | os.PathLike) -> dict:
    """Read what `save` wrote. ValueError in one line for a damaged or foreign file or one of another version."""
    return parse(read(path), path)


def read(path: str | os.PathLike) -> bytes:
    """The bytes of a checkpoint file. FileNotFoundError where there is none, ValueError for what is no file."""
    return files.read(path, WHAT)


def to_bytes(state: dict) -> bytes:
    """What `save` writes."""
    buffers = _Buffers()
    text = json.dumps({"dcpnas_lite": VERSION, "state": buffers.plain(state, "state")})
    arrays = {kind: np.concatenate(parts) for kind, parts in buffers.parts.items()}
    return files.arrays_to_bytes({"state": np.frombuffer(text.encode(), np.uint8), **arrays})


def parse(content: bytes, path: str | os.PathLike) -> dict:
    """`load` of the bytes that `path` holds, or held on another machine."""
    arrays = files.arrays_from_bytes(content, path, WHAT)
    foreign = ValueError(f"{path}: expected {WHAT}, got an archive of something else")
    try:
        value = json.loads(arrays.pop("state").tobytes().decode())
        version = value["dcpnas_lite"]
        state = _state(value["state"], arrays) if version == VERSION else {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise foreign from None
    if version != VERSION:
        raise ValueError(f"{path}: expected checkpoint version {VERSION}, got {version!r}")
    if not isinstance(state, dict):
        raise foreign
    return state


class _Buffers:
    """The numbers of all tensors of one dtype, in the order that they have in memory."""

    def __init__(self):
        self.parts: dict[str, list[np.ndarray]] = {}
        self.length: dict[str, int] = {}

    def plain(self, value, where: str):
        """`value` as JSON, its tensors put into the buffers."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor):
            return {"tensor": self.put(value.detach().cpu(), where)}
        if isinstance(value, dict):
            return {"dict": [[self.plain(k, where), self.plain(v, f"{where}[{k!r}]")] for k, v in value.items()]}
        if isinstance(value, list | tuple):
            items = [self.plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
            return {"list" if isinstance(value, list) else "tuple": items}
        raise ValueError(f"{where}: expected tensors, numbers, strings, None, dicts, lists or tuples, got {type(value).__name__}")

    def put(self, t: Tensor, where: str) -> list:
        if not t.permute(_order(t.stride())).is_contiguous():  # a slice, or expanded
            t = t.contiguous()
        try:
            flat = t.permute(_order(t.stride())).flatten().numpy()
        except TypeError:
            raise ValueError(f"{where}: expected a dtype that NumPy has, too, got {t.dtype}") from None
        kind = str(flat.dtype)
        start = self.length.setdefault(kind, 0)
        self.length[kind] += len(flat)
        self.parts.setdefault(kind, []).append(flat)
        return [kind, start, list(t.shape), list(t.stride())]


def _state(value, arrays: dict[str, np.ndarray]):
    """What `_Buffers.plain` was given."""
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise ValueError("a list without its kind")
        return value
    ((kind, content),) = value.items()
    if kind == "dict":
        return {_state(k, arrays): _state(v, arrays) for k, v in content}
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(_state(v, arrays) for v in content)
    if kind != "tensor":
        raise ValueError(f"unknown kind {kind!r}")
    name, start, shape, stride = content
    if len(shape) != len(stride):
        raise ValueError("a tensor of two kinds of axes")
    expected = 1
    for d in reversed(_order(stride)):
        if type(shape[d]) is not int or shape[d] < 0 or (shape[d] > 1 and stride[d] != expected):
            raise ValueError("a tensor with holes")
        expected *= shape[d]
    if type(start) is not int or not 0 <= start <= start + expected <= len(arrays[name]):
        raise ValueError("a tensor that is not in the file")
    flat = torch.from_numpy(arrays[name][start : start + expected].copy())
    return flat.as_strided(shape, stride)


def _order(stride) -> list[int]:
    """The axes of a tensor, the one whose neighbours are farthest apart in memory first."""
    return sorted(range(len(stride)), key=lambda d: -stride[d])
