"""Checkpoints: round trip, atomic writing, and one clear line for every other file."""

from __future__ import annotations

import os
import pickle

import pytest
import torch

from dcpnas_lite.algorithm import checkpoint


def test_round_trip(tmp_path):
    generator = torch.Generator().manual_seed(0)
    state = {
        "tensors": {"double": torch.randn(2, 3, dtype=torch.float64, generator=generator), "int": torch.arange(4)},
        "list": [torch.tensor(float("nan")), 1, 2.5, None, True, "α"],
        "strides": torch.randn(2, 3, 4, 4, generator=generator).contiguous(memory_format=torch.channels_last),
    }
    checkpoint.save(tmp_path / "a.pt", state)
    again = checkpoint.load(tmp_path / "a.pt")
    assert again.keys() == state.keys() | {"dcpnas_lite"}
    for name, tensor in state["tensors"].items():
        assert torch.equal(again["tensors"][name], tensor) and again["tensors"][name].dtype == tensor.dtype
    assert torch.isnan(again["list"][0]) and again["list"][1:] == state["list"][1:]
    assert again["strides"].stride() == state["strides"].stride()
    assert os.listdir(tmp_path) == ["a.pt"]


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    checkpoint.save(str(path), {"done": 1})

    def full(state, file):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(path, {"done": 2})
    assert checkpoint.load(path)["done"] == 1


def test_a_wrong_bit_anywhere_is_noticed_or_without_effect(tmp_path):
    """Every bit of a small file in turn: the state that was saved, or one clear line."""
    path, generator = tmp_path / "a.pt", torch.Generator().manual_seed(0)
    checkpoint.save(path, {"weights": torch.randn(50, generator=generator), "done": 7})
    whole, noticed = checkpoint.load(path), 0
    content = path.read_bytes()
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        try:
            state = checkpoint.parse(bytes(flipped), path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: expected ") and "\n" not in str(error)
            noticed += 1
        else:
            assert state["done"] == 7 and torch.equal(state["weights"], whole["weights"]), position
    assert noticed > 200  # at least every byte of the tensor


def test_a_wrong_bit_in_a_tensor_is_named(tmp_path):
    path, weights = tmp_path / "a.pt", torch.arange(1000.0)
    checkpoint.save(path, {"weights": weights})
    content = path.read_bytes()
    start = content.index(weights.numpy().tobytes())
    path.write_bytes(content[: start + 1234] + bytes([content[start + 1234] ^ 4]) + content[start + 1235 :])
    assert torch.load(path, weights_only=True)["weights"][308] != 308  # torch itself does not look
    with pytest.raises(ValueError, match=r"a\.pt: expected a checkpoint of dcpnas_lite, got a damaged one \(wrong checksum of"):
        checkpoint.load(path)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


def write(path, kind: str) -> None:
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"dcpnas_lite": 1, "trap": Trap()}))
    elif kind == "pickle in torch's form":
        torch.save({"dcpnas_lite": 1, "trap": Trap()}, path)
    elif kind in ("tensor", "dict", "list"):
        torch.save({"tensor": torch.ones(2), "dict": {"state": 1}, "list": ["dcpnas_lite"]}[kind], path)
    elif kind in ("older", "newer"):
        torch.save({"dcpnas_lite": {"older": 0, "newer": 3}[kind]}, path)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("epoch,loss\n1,2\n" * 100)
    elif kind == "folder":
        path.mkdir()
    else:
        checkpoint.save(path, {"weights": torch.arange(1000.0)})
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * float(kind))])


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind, expected", [
    ("empty", "got an unreadable file"),
    ("text", "got an unreadable file"),
    ("folder", "got a folder"),
    ("0.02", "got an unreadable file"),
    ("0.5", "got an unreadable file"),
    ("0.999", "got an unreadable file"),
    ("pickle", "got an unreadable file"),
    ("pickle in torch's form", "got an unreadable file"),
    ("tensor", "got a file of something else"),
    ("dict", "got a file of something else"),
    ("list", "got a file of something else"),
    ("older", "expected checkpoint version 2, got 0"),
    ("newer", "expected checkpoint version 2, got 3"),
])  # fmt: skip
def test_any_other_file_is_one_line(tmp_path, monkeypatch, kind, expected):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pt"
    write(path, kind)
    with pytest.raises(ValueError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: expected ") and expected in message and "\n" not in message
    assert os.listdir(tmp_path) == ["a.pt"], "loading ran foreign code"


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "a.pt")
