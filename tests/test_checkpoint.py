"""Checkpoints: round trip, atomic writing, and one clear line for every other file."""

from __future__ import annotations

import errno
import os
import pickle

import numpy as np
import pytest
import torch

from dcpnas_lite import files
from dcpnas_lite.engine import checkpoint


def test_round_trip(tmp_path):
    generator = torch.Generator().manual_seed(0)
    state = {
        "tensors": {"double": torch.randn(2, 3, dtype=torch.float64, generator=generator), "int": torch.arange(4)},
        "list": [torch.tensor(float("nan")), 1, 2.5, None, True, "α"],
        "keys": {0: (1, [torch.zeros(0, 3)]), (1, "x"): torch.tensor([True, False])},
        "strides": torch.randn(2, 3, 4, 4, generator=generator).contiguous(memory_format=torch.channels_last),
        "one by one": torch.randn(4, 3, 1, 1, generator=generator).contiguous(memory_format=torch.channels_last),
        "slice": torch.randn(5, 6, generator=generator)[:, ::2],
        "expanded": torch.ones(3, 1).expand(3, 4),
    }
    checkpoint.save(tmp_path / "a.npz", state)
    again = checkpoint.load(tmp_path / "a.npz")
    assert again.keys() == state.keys()
    tensors = ["strides", "one by one", "slice", "expanded"]
    pairs = [(again[n], state[n]) for n in tensors] + [(again["tensors"][n], t) for n, t in state["tensors"].items()]
    for mine, theirs in [*pairs, (again["keys"][1, "x"], state["keys"][1, "x"])]:
        assert torch.equal(mine, theirs) and mine.dtype == theirs.dtype
    assert torch.isnan(again["list"][0]) and again["list"][1:] == state["list"][1:]
    assert again["keys"][0][0] == 1 and again["keys"][0][1][0].shape == (0, 3)
    for name in ("strides", "one by one"):
        assert again[name].stride() == state[name].stride()
    assert os.listdir(tmp_path) == ["a.npz"]
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:  # nothing but arrays
        assert set(file) == {"state", "float32", "float64", "int64", "bool"}


def test_what_is_no_plain_value_is_named(tmp_path):
    for value, kind in ((object(), "object"), (torch.zeros(2, dtype=torch.bfloat16), "torch.bfloat16"), ({1}, "set")):
        with pytest.raises(ValueError, match=rf"state\['a'\]\[1\]: expected .*, got {kind}"):
            checkpoint.save(tmp_path / "a.npz", {"a": [0, value]})
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    checkpoint.save(str(path), {"done": 1})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device; not written") as caught:
        checkpoint.save(path, {"done": 2})
    assert caught.value.filename == str(path) and "\n" not in str(caught.value)
    assert checkpoint.load(path)["done"] == 1 and os.listdir(tmp_path) == ["a.npz"]


def test_a_wrong_bit_anywhere_is_noticed(tmp_path):
    """Every byte of a small file in turn, and every length."""
    path, generator = tmp_path / "a.npz", torch.Generator().manual_seed(0)
    checkpoint.save(path, {"weights": torch.randn(50, generator=generator), "done": 7})
    content = path.read_bytes()
    flipped = [content[:i] + bytes([content[i] ^ 1 << i % 8]) + content[i + 1 :] for i in range(len(content))]
    for damaged in [*flipped, *(content[:n] for n in range(0, len(content), 5)), content + b"0"]:
        with pytest.raises(ValueError) as caught:
            checkpoint.parse(damaged, path)
        assert str(caught.value).startswith(f"{path}: expected ") and "\n" not in str(caught.value)


def crafted(path, text: str, **arrays) -> None:
    """A file with right checksums and whatever contents."""
    files.write(path, files.arrays_to_bytes({"state": np.frombuffer(text.encode(), np.uint8), **arrays}))


@pytest.mark.parametrize("tensor", [
    '["float32", 0, [6], [1]]',  # more than there are
    '["float32", -1, [2], [1]]',
    '["float32", 0, [2, 2], [1, 1]]',  # the same number twice
    '["float32", 0, [2], [3]]',
    '["float32", 0, [2], [1, 1]]',
    '["float64", 0, [2], [1]]',
    '["float32", 0, [1000000000000, 1000000000000], [1000000000000, 1]]',
    '["float32", 0, ["2"], [1]]',
    '["float32", 0]',
    "3",
])  # fmt: skip
def test_tensors_that_are_not_in_the_file(tmp_path, tensor):
    numbers = np.arange(4, dtype=np.float32)
    text = '{"dcpnas_lite": 3, "state": {"dict": [["a", {"tensor": %s}]]}}'
    crafted(tmp_path / "a.npz", text % '["float32", 1, [2], [1]]', float32=numbers)
    assert checkpoint.load(tmp_path / "a.npz")["a"].tolist() == [1, 2]
    crafted(tmp_path / "a.npz", text % tensor, float32=numbers)
    with pytest.raises(ValueError, match="got an archive of something else"):
        checkpoint.load(tmp_path / "a.npz")


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


def write(path, kind: str) -> None:
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"dcpnas_lite": 1, "trap": Trap()}))
    elif kind == "pickle in torch's form":
        torch.save({"dcpnas_lite": 1, "trap": Trap()}, path)
    elif kind == "pickle in NumPy's form":
        files.write(path, files.arrays_to_bytes({"state": np.array([Trap()], dtype=object)}))
    elif kind == "torch's older form with a zip behind it":
        torch.save({"trap": Trap()}, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes() + files.arrays_to_bytes({"state": np.zeros(3)}))
    elif kind == "a zip without the checksum":
        np.savez(path, state=np.frombuffer(b'{"dcpnas_lite": 3, "state": {"dict": []}}', np.uint8))
    elif kind in ("[]", "3", "{}", '{"dcpnas_lite": 3, "state": 1}', '{"dcpnas_lite": 3}', "[" * 100_000, "no JSON"):
        crafted(path, kind)
    elif kind in ("2", "4"):
        crafted(path, f'{{"dcpnas_lite": {kind}, "state": null}}')
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("epoch,loss\n1,2\n" * 100)
    elif kind == "folder":
        path.mkdir()


@pytest.mark.parametrize("kind, expected", [
    ("empty", "got an unreadable file"),
    ("text", "got an unreadable file"),
    ("folder", "got a folder"),
    ("pickle", "got an unreadable file"),
    ("pickle in torch's form", "got a damaged or foreign one"),
    ("pickle in NumPy's form", "got an unreadable file"),
    ("torch's older form with a zip behind it", "got a damaged or foreign one"),
    ("a zip without the checksum", "got a damaged or foreign one"),
    ("[]", "got an archive of something else"),
    ("3", "got an archive of something else"),
    ("{}", "got an archive of something else"),
    ("no JSON", "got an archive of something else"),
    ("[" * 100_000, "got an archive of something else"),
    ('{"dcpnas_lite": 3}', "got an archive of something else"),
    ('{"dcpnas_lite": 3, "state": 1}', "got an archive of something else"),
    ("2", "expected checkpoint version 3, got 2"),
    ("4", "expected checkpoint version 3, got 4"),
], ids=lambda text: text[:30])  # fmt: skip
def test_any_other_file_is_one_line(tmp_path, monkeypatch, kind, expected):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.npz"
    write(path, kind)
    with pytest.raises(ValueError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: expected ") and expected in message and "\n" not in message
    assert os.listdir(tmp_path) == ["a.npz"], "loading ran foreign code"


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "a.npz")
