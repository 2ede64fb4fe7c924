"""Readers, splits, normalisation and batch order. Fixtures are written here in the formats of the real files."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import http.server
import io
import re
import struct
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcpnas_lite import data, readers
from dcpnas_lite.data import Data, Split

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def raw(split: Split, of: Data) -> torch.Tensor:
    """The intensities 0 … 1 that a normalised split was made of."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (of.mean, of.std))
    return split.x * std + mean


def same(a: Data, b: Data) -> bool:
    pairs = zip((a.train, a.validation, a.test), (b.train, b.validation, b.test), strict=True)
    return all(torch.equal(s.x, t.x) and torch.equal(s.y, t.y) for s, t in pairs) and (a.mean, a.std) == (b.mean, b.std)


# --- digits -----------------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_digits_each_in_one_split():
    from sklearn.datasets import load_digits

    d = data.digits(size=8)
    found = [(*img.flatten().mul(16).round().int().tolist(), label)
             for s in (d.train, d.validation, d.test)
             for img, label in zip(raw(s, d), s.y.tolist(), strict=True)]  # fmt: skip
    embedded = load_digits()
    there = [(*img.ravel().astype(int), label) for img, label in zip(embedded.images, embedded.target, strict=True)]
    assert sorted(found) == sorted(tuple(map(int, t)) for t in there)
    assert [len(s) for s in (d.train, d.validation, d.test)] == [1077, 360, 360]
    assert (d.name, d.channels, d.size, d.classes) == ("digits", 1, 8, tuple("0123456789"))


def test_digits_tensors_and_normalisation():
    d = data.digits()
    for split in (d.train, d.validation, d.test):
        assert split.x.shape == (len(split), 1, 16, 16) and d.size == 16
        assert split.x.dtype == torch.float32 and split.y.dtype == torch.int64
    x = d.train.x.double()
    assert abs(x.mean()) < 1e-6 and abs(x.std(correction=0) - 1) < 1e-6
    assert abs(d.test.x.double().mean()) > 1e-6  # with the training split's moments, not its own


def test_digits_upsampling_is_bilinear():
    small, large = data.digits(size=8), data.digits(size=16)
    image = np.pad(raw(small.test, small).numpy()[:, 0], ((0, 0), (1, 1), (1, 1)), mode="edge")

    def double(a, axis):  # pixel centres of the output lie a quarter pixel from those of the input
        a = np.moveaxis(a, axis, -1)
        even, odd = 0.75 * a[..., 1:-1] + 0.25 * a[..., :-2], 0.75 * a[..., 1:-1] + 0.25 * a[..., 2:]
        return np.moveaxis(np.stack([even, odd], -1).reshape(*a.shape[:-1], -1), -1, axis)

    expected = double(double(image, 1), 2)
    np.testing.assert_allclose(raw(large.test, large)[:, 0].numpy(), expected, atol=1e-6)


def test_digits_are_stratified_and_depend_on_the_seed_alone():
    state = torch.get_rng_state()
    first = data.digits(seed=3)
    torch.manual_seed(99)
    assert same(first, data.digits(seed=3)) and not same(first, data.digits(seed=4))
    torch.set_rng_state(state)
    data.digits(seed=3)
    assert torch.equal(state, torch.get_rng_state())
    whole = sum(torch.bincount(s.y) for s in (first.train, first.validation, first.test))
    for split in (first.train, first.validation, first.test):
        assert (torch.bincount(split.y) - whole * len(split) / 1797).abs().max() < 1.5


def test_digits_bad_input(monkeypatch):
    with pytest.raises(ValueError, match="^size: expected an integer of at least 8, got 4$"):
        data.digits(size=4)
    with pytest.raises(ValueError, match="from 0 to"):
        data.digits(seed=-1)
    for name in ("sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, name, None)  # as on a machine without it
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        data.digits()


def test_digits_are_the_same_where_their_file_lies_elsewhere(monkeypatch):
    there = data.digits()
    from sklearn import datasets

    asked, load = [], datasets.load_digits
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(datasets, "load_digits", lambda **how: asked.append(how) or load(**how))
    for split in ("train", "validation", "test"):
        ours, theirs = getattr(data.digits(), split), getattr(there, split)
        assert torch.equal(ours.x, theirs.x) and torch.equal(ours.y, theirs.y)
    assert len(asked) == 3


def test_digits_do_not_import_scikit_learn():
    """To import it takes longer than a small search."""
    code = "import sys, dcpnas_lite.data as d; d.digits(); print('sklearn' in sys.modules)"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "False", done.stderr


# --- splits and batches -----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(y=st.lists(st.integers(0, 4), min_size=3, max_size=80), cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
       seed=st.integers(0, 2**32 - 1))  # fmt: skip
def test_stratified_properties(y, cut, seed):
    y = torch.tensor(y)
    a = 1 + int(cut[0] * (len(y) - 2))
    b = 1 + int(cut[1] * (len(y) - a - 1))
    first, second = data._stratified(y, (a, b), data._generator(seed))
    assert (len(first), len(second)) == (a, b)
    assert len(set(first.tolist()) | set(second.tolist())) == a + b  # disjoint, nothing twice
    count = torch.bincount(y)
    share = torch.bincount(y[first], minlength=len(count))
    assert ((share - count * a / len(y)).abs() < 1).all()
    rest = count - share
    assert ((torch.bincount(y[second], minlength=len(count)) - rest * b / (len(y) - a)).abs() < 1).all()
    again, _ = data._stratified(y, (a, 1), data._generator(seed))
    assert torch.equal(first, again)  # whatever is drawn after it


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 70), size=st.integers(1, 80), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 1000))
def test_batches_cover_each_image_once(n, size, seed, epoch):
    split = Split(torch.zeros(n, 1, 2, 2), torch.arange(n))
    parts = data.batches(split, size, seed, epoch)
    assert [len(p) for p in parts[:-1]] == [size] * (len(parts) - 1) and 1 <= len(parts[-1]) <= size
    assert sorted(torch.cat(parts).tolist()) == list(range(n))
    full = data.batches(split, size, seed, epoch, drop_last=True)
    assert [p.tolist() for p in full] == [p.tolist() for p in parts if len(p) == size]


def test_batch_order_depends_on_seed_and_epoch_alone():
    split = Split(torch.arange(50.0)[:, None, None, None], torch.arange(50))
    state = torch.get_rng_state()

    def order(seed, epoch):
        return tuple(torch.cat(data.batches(split, 8, seed, epoch)).tolist())

    keys = [(s, e) for s in (0, 1, 2, 2**31, 2**32 - 1) for e in range(4)]
    orders = {key: order(*key) for key in keys}
    assert len(set(orders.values())) == len(keys)
    assert all(order(*key) == orders[key] for key in reversed(keys))
    assert torch.equal(state, torch.get_rng_state())
    x, y = split[data.batches(split, 8, 0, 0)[1]]
    assert y.tolist() == list(orders[0, 0][8:16]) and x.flatten().tolist() == y.tolist()


def test_batches_bad_input():
    split = Split(torch.zeros(3, 1, 2, 2), torch.zeros(3).long())
    with pytest.raises(ValueError, match="^size: expected an integer of at least 1, got 0$"):
        data.batches(split, 0, 0, 0)
    with pytest.raises(ValueError, match="^epoch: expected an integer from 0 to 4294967295, got -1$"):
        data.batches(split, 2, 0, -1)
    with pytest.raises(ValueError, match="^seed: expected an integer from 0 to 4294967295, got 4294967296$"):
        data.batches(split, 2, 2**32, 0)
    with pytest.raises(ValueError, match=r"^seed: expected an integer .*, got 1\.5$"):
        data.batches(split, 2, 1.5, 0)


def test_load(tmp_path):
    assert same(data.load("digits", seed=2, size=8), data.digits(seed=2, size=8))
    with pytest.raises(FileNotFoundError, match="CIFAR-10"):
        data.load("cifar10", root=tmp_path)
    with pytest.raises(ValueError, match="expected digits, fashion_mnist or cifar10, got 'mnist'"):
        data.load("mnist")


# --- data of one's own ------------------------------------------------------------------------------------------------


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labelled(*shape: int, more: int = 0) -> Split:
    """Twelve images with the labels 0, 1, 2, or `more` more."""
    return Split(images(12, *shape), torch.arange(12) % 3 + more)


def own(*shape: int, **changes) -> Data:
    splits = {name: labelled(*shape) for name in ("train", "validation", "test")}
    moments = dict(mean=(0.0,) * shape[0], std=(1.0,) * shape[0])
    return Data(**dict(name="own", classes=("a", "b", "c")) | splits | moments | changes)


X, Y = images(6, 1, 4, 4), torch.arange(6) % 3


@pytest.mark.parametrize("x, y, message", [
    (X.numpy(), Y, r"x: expected a tensor, images \(N, C, H, W\), got ndarray"),
    (X, Y.tolist(), "y: expected a tensor, one label for each image.*, got list"),
    (X[:, 0], Y, r"x: expected images \(N, C, H, W\).*got shape \(6, 4, 4\)"),
    (X[:0], Y[:0], r"x: expected .*, at least one, got shape \(0, 1, 4, 4\)"),
    (X[:, :, :0], Y, r"x: expected .*, got shape \(6, 1, 0, 4\)"),
    (X, Y[:, None], r"y: expected one label for each image, \(N,\).*got shape \(6, 1\)"),
    (X, Y[:1], "y: expected one label for each of the 6 images, got 1"),
    (X, torch.tensor(0), r"y: expected one label.*, got shape \(\)"),
    (X, torch.nn.functional.one_hot(Y), r"y: expected .*, got shape \(6, 3\)"),
    (X[:5], Y, "y: expected one label for each of the 5 images, got 6"),
    ((X * 50 + 128).to(torch.uint8), Y, "x: expected images as floating-point numbers, normalised, got torch.uint8"),
    (X.to(torch.complex64), Y, "x: expected .*, got torch.complex64"),
    (X, Y.float(), "y: expected integers, .*, got torch.float32"),
    (X, Y > 1, "y: expected integers, .*, got torch.bool"),
    (X, Y - 1, "y: expected labels 0 … number of classes − 1, got -1"),
    (X, Y * 0 - 100, "y: expected labels 0 … .*, got -100"),
    (X / 0, Y, "x: expected finite numbers .* got images from -inf to inf"),
    (X.where(X < 2, torch.nan), Y, "x: expected finite numbers .* from nan to nan"),
    (X * 1e30, Y, r"x: expected finite numbers of at most 1e\+15, got images from -"),
    (X.double() * 1e300, Y, "x: expected finite numbers .* from -inf to inf"),
    (X.clone().requires_grad_(), Y, "x: expected an ordinary tensor on the CPU that requires no gradient, got .*gradient"),
    (X.to_sparse(), Y, "x: expected an ordinary tensor.*, got torch.sparse_coo on cpu"),
    (X.to("meta"), Y, "x: expected an ordinary tensor on the CPU.*, got torch.strided on meta"),
])  # fmt: skip
def test_a_split_that_is_none_is_refused(x, y, message):
    with pytest.raises(ValueError, match=f"^{message}[^\n]*$"):
        Split(x, y)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_other_integers_are_labels_and_other_floats_images(dtype):
    split = Split(X.double(), Y.to(dtype))
    assert split.y.dtype == torch.int64 and torch.equal(split.y, Y)
    assert split.x.dtype == torch.float32 and torch.equal(split.x, X)
    assert Split(X.half(), Y).x.dtype == torch.float32
    assert Split(X, Y).x is X  # what needs no change is not copied


def test_images_in_any_order_of_memory():
    x = images(4, 4, 1, 6).permute(3, 2, 0, 1)
    assert torch.equal(Split(x, Y).x, x) and not x.is_contiguous()


@pytest.mark.parametrize("changes, message", [
    (dict(name=None), "name: expected a string, got None"),
    (dict(train=(X, Y)), "train: expected a Split, got tuple"),
    (dict(validation=labelled(1, 5, 7)), r"validation: .*\(2, 5, 7\) as in train, got \(1, 5, 7\)"),
    (dict(test=labelled(2, 7, 5)), r"test: expected .*, got \(2, 7, 5\)"),
    (dict(test=labelled(2, 5, 7, more=1)), "test: expected labels 0 … 2, one for each class, got 3"),
    (dict(validation=labelled(2, 5, 7, more=7)), "validation: expected labels 0 … 2, one for each class, got 9"),
    (dict(classes=("a", "b")), "train: expected labels 0 … 1, one for each class, got 2"),
    (dict(classes=3), "classes: expected the names of the classes, got 3"),
    (dict(classes="abc"), "classes: expected the names of the classes, got 'abc'"),
    (dict(classes=(0, 1, 2)), r"classes: expected the names of the classes, got \(0, 1, 2\)"),
    (dict(classes=("a",)), "classes: expected 2 names or more, got 1"),
    (dict(mean=(0.0,)), r"mean: expected 2 finite numbers, one for each channel, got \(0.0,\)"),
    (dict(mean=0.0), "mean: expected 2 finite numbers, .*, got 0.0"),
    (dict(mean=(0.0, float("nan"))), "mean: expected 2 finite numbers"),
    (dict(std=(1.0, 0.0)), r"std: expected 2 finite numbers above 0, one for each channel, got \(1.0, 0.0\)"),
    (dict(std=(1.0, -1.0)), "std: expected 2 finite numbers above 0"),
    (dict(std=(1.0, float("inf"))), "std: expected 2 finite numbers above 0"),
    (dict(std=("a", "b")), "std: expected 2 finite numbers above 0"),
])  # fmt: skip
def test_data_that_is_none_is_refused(changes, message):
    own(2, 5, 7)
    with pytest.raises(ValueError, match=f"^{message}[^\n]*$"):
        own(2, 5, 7, **changes)


def test_names_and_moments_as_other_sequences():
    d = own(2, 5, 7)
    for names in (["a", "b", "c"], np.array(["a", "b", "c"])):
        assert dataclasses.replace(d, classes=names).classes == ("a", "b", "c")
    assert dataclasses.replace(d, mean=torch.tensor([0.5, 0.25]), std=np.array([2, 3])).mean == (0.5, 0.25)
    assert dataclasses.replace(d, std=np.array([2, 3])).std == (2.0, 3.0)


def test_the_size_of_images_that_are_not_square():
    assert own(1, 6, 6).size == 6
    with pytest.raises(ValueError, match="size: expected square images, got 5×7"):
        own(2, 5, 7).size  # noqa: B018
    assert own(2, 5, 7).channels == 2


# --- Fashion-MNIST ----------------------------------------------------------------------------------------------------

NAMES = tuple(readers.FASHION_MNIST_SHA256)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    """Sixty training and thirty test images; the first pixel of an image is its number, the second its class."""
    rng = np.random.default_rng(0)
    made = []
    for n in (60, 30):
        y = rng.permutation(np.arange(n) % 10)
        x = rng.integers(0, 256, (n, 28, 28))
        x[:, 0, 0], x[:, 0, 1] = np.arange(n), y
        made += [idx(x), idx(y)]
    return dict(zip(NAMES, made, strict=True))


@pytest.fixture(scope="module")
def sha256(contents):
    return digests(contents)


def digests(contents: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def write(folder: Path, contents: dict[str, bytes], packed: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    return folder


def fashion(root, sha256, **options) -> Data:
    return data.fashion_mnist(root, validation=20, sha256=sha256, base_url="http://127.0.0.1:9/", **options)


def test_fashion_mnist_images_and_labels(tmp_path, contents, sha256):
    d = fashion(write(tmp_path, contents, packed=True), sha256)
    assert [len(s) for s in (d.train, d.validation, d.test)] == [40, 20, 30]
    numbers = []
    for split in (d.train, d.validation, d.test):
        first, second = (raw(split, d)[:, 0, 0, :2] * 255).round().int().T
        assert torch.equal(second, split.y.int())
        numbers.append(first.tolist())
    assert sorted(numbers[0] + numbers[1]) == list(range(60)) and numbers[2] == list(range(30))
    bytes_of_test = np.frombuffer(contents[NAMES[2]][16:], np.uint8).reshape(30, 28, 28)
    np.testing.assert_array_equal((raw(d.test, d)[:, 0] * 255).round().numpy(), bytes_of_test)
    assert torch.bincount(d.validation.y).tolist() == [2] * 10
    assert (d.name, d.channels, d.size, d.classes[9]) == ("fashion_mnist", 1, 28, "ankle boot")
    assert abs(d.train.x.double().mean()) < 1e-6 and abs(d.train.x.double().std(correction=0) - 1) < 1e-6


def test_fashion_mnist_plain_files_seed_and_subset(tmp_path, contents, sha256):
    packed, plain = write(tmp_path / "a", contents, packed=True), write(tmp_path / "b", contents, packed=False)
    d = fashion(packed, sha256)
    assert same(d, fashion(plain, sha256)) and not same(d, fashion(packed, sha256, seed=1))
    small = fashion(packed, sha256, train=10)
    assert torch.bincount(small.train.y).tolist() == [1] * 10 and len(small.test) == 30
    torch.testing.assert_close(raw(small.validation, small), raw(d.validation, d))  # whatever the training size
    with pytest.raises(ValueError, match=r"60 in all, got \(20, 41\)"):
        fashion(packed, sha256, train=41)
    with pytest.raises(ValueError, match="at least 1"):
        fashion(packed, sha256, train=0)


def test_fashion_mnist_default_folder(tmp_path, contents, sha256, monkeypatch):
    monkeypatch.setenv("DCPNAS_DATA", str(tmp_path))
    write(tmp_path / "fashion-mnist", contents, packed=True)
    assert len(fashion(None, sha256).test) == 30


@pytest.mark.parametrize("damage", ["flip", "cut", "plain-flip", "plain-cut", "not-gzip"])
@pytest.mark.parametrize("which", [0, 3])
def test_fashion_mnist_damaged_file(tmp_path, contents, sha256, damage, which):
    write(tmp_path, contents, packed=not damage.startswith("plain"))
    path = readers._idx_path(tmp_path, NAMES[which])
    content = bytearray(path.read_bytes())
    if damage.endswith("flip"):
        content[len(content) // 2] ^= 1
    path.write_bytes(b"<html>" if damage == "not-gzip" else content[:-9] if damage.endswith("cut") else content)
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        fashion(tmp_path, sha256)
    assert "\n" not in str(error.value) and "; delete it and run again" in str(error.value)
    assert "damaged gzip" in str(error.value) or sha256[NAMES[which]] in str(error.value)


@pytest.mark.parametrize(
    ("which", "content", "message"),
    [
        (0, b"", "00 00 08 03 …"),
        (0, b"\0\0\x08", "00 00 08 03 …"),
        (0, struct.pack(">HBB", 0, 13, 1) + bytes(20), "00 00 08 03 ….*00 00 0d 01"),
        (2, struct.pack(">HBBIII", 0, 8, 3, 30, 28, 28) + bytes(100), "expected 23520 data bytes.*got 100"),
        (2, struct.pack(">HBB", 0, 8, 3) + bytes(5), "00 00 08"),
        (0, idx(np.arange(60) % 10), "3 axes.*got 00 00 08 01"),
        (1, idx(np.zeros((60, 28, 28))), "1 axes.*got 00 00 08 03"),
        (1, idx(np.arange(59) % 10), "60 images and 59 labels"),
        (3, idx(np.arange(30) % 11), "labels up to 10"),
    ],
    ids=["empty", "three bytes", "floats", "cut data", "cut header", "labels for images", "images for labels", "too few labels",
         "label 10"],  # fmt: skip
)
def test_fashion_mnist_foreign_content(tmp_path, contents, which, content, message):
    """Files in another format whose digests the caller vouches for."""
    foreign = contents | {NAMES[which]: content}
    with pytest.raises(ValueError, match=message):
        fashion(write(tmp_path, foreign, packed=False), digests(foreign))


def test_fashion_mnist_missing_and_no_network(tmp_path, contents, sha256):
    write(tmp_path, contents, packed=True)
    (tmp_path / f"{NAMES[1]}.gz").unlink()
    with pytest.raises(FileNotFoundError, match=f"{NAMES[1]}.*{tmp_path}.*download failed") as error:
        fashion(tmp_path, sha256)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs the Debian package dataset-fashion-mnist")
def test_real_fashion_mnist():
    d = data.fashion_mnist(DEBIAN, train=2000, validation=1000)
    assert [set(torch.bincount(s.y).tolist()) for s in (d.train, d.validation, d.test)] == [{200}, {100}, {1000}]
    assert d.test.x.shape == (10_000, 1, 28, 28) and len(d.classes) == 10
    assert abs(d.mean[0] - 0.2860) < 0.01 and abs(d.std[0] - 0.3530) < 0.01  # of all 60,000 images, as widely quoted


# --- download ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(contents):
    """A loopback server of the packed files. `.ranges` records (file, Range header, status, bytes sent)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name, asked = self.path.strip("/"), self.headers["Range"]
            content = self.server.files.get(name)
            if content is None:
                return self.send_error(404)
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if self.server.honours_range else 0
            status = 206 if self.server.honours_range else 200
            if start >= len(content):
                self.send_error(416)
                status, body = 416, b""
            else:
                body = content[start:]
                self.send_response(status)
                if not self.server.endless:
                    self.send_header("Content-Length", str(len(body)))
                if status == 206:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.end_headers()
                body = body[: self.server.cut_after]
                if self.server.wait:
                    self.wfile.flush()
                    self.server.wait.wait(20)
                try:
                    self.wfile.write(body)
                    while self.server.endless:
                        body += bytes(1 << 16)
                        self.wfile.write(bytes(1 << 16))
                except OSError:  # the reader has gone
                    pass
            self.server.ranges.append((name, asked, status, len(body)))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.files = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in contents.items()}
        made.honours_range, made.cut_after, made.ranges, made.endless, made.wait = True, None, [], False, None
        made.url = f"http://127.0.0.1:{made.server_address[1]}"
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


FIRST = f"{NAMES[0]}.gz"


@contextlib.contextmanager
def memory_of_at_most(size: float):
    """Of what Python allocates in this block, in bytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("which, limit", [(0, 16 + 60_000 * 784), (1, 8 + 60_000), (2, 16 + 10_000 * 784), (3, 8 + 10_000)])
def test_no_more_is_decompressed_than_the_file_can_have(tmp_path, contents, which, limit):
    path = write(tmp_path, contents, packed=True) / f"{NAMES[which]}.gz"
    path.write_bytes(gzip.compress(bytes(4 * limit), 1))
    message = f"^{path}: expected at most {limit:,} bytes .* delete it and run again"
    with memory_of_at_most(1.5e8), pytest.raises(ValueError, match=message):  # the first one holds 1.9e8
        fashion(tmp_path, digests(contents))


def test_no_more_is_downloaded_than_the_file_can_have(tmp_path, sha256, server):
    server.endless = True
    with pytest.raises(ValueError, match=f"{NAMES[3]}.*not the expected file, removed: .*at most 11,018 bytes"):
        readers.download_fashion_mnist(tmp_path, server.url, {NAMES[3]: sha256[NAMES[3]]})
    assert not list(tmp_path.glob("*.part"))
    deadline = time.monotonic() + 20
    while not server.ranges and time.monotonic() < deadline:  # the server notices a moment later
        time.sleep(0.01)
    assert 11_018 < server.ranges[0][3] < 1e7  # what the connection takes before it breaks


def test_two_downloads_at_once(tmp_path, sha256, server):
    """The second one is refused while the first is at work, and takes nothing from it."""
    server.wait = threading.Event()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(readers.download_fashion_mnist, tmp_path, server.url, sha256)
        while not (tmp_path / f"{FIRST}.part").exists():
            time.sleep(0.01)
        with pytest.raises(BlockingIOError, match=f"{FIRST}: in use by process"):
            readers.download_fashion_mnist(tmp_path, server.url, sha256)
        server.wait.set()
        first.result()
    assert [r[0] for r in server.ranges] == [f"{name}.gz" for name in NAMES]
    assert len(fashion(tmp_path, sha256).test) == 30


def test_download_then_nothing_left_to_do(tmp_path, contents, sha256, server):
    d = data.fashion_mnist(tmp_path / "new", validation=20, sha256=sha256, base_url=server.url)
    assert same(d, fashion(write(tmp_path / "b", contents, packed=False), sha256))
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(server.files)
    requests = len(server.ranges)
    assert readers.download_fashion_mnist(tmp_path / "new", server.url, sha256) == tmp_path / "new"
    assert len(server.ranges) == requests == 4


@pytest.mark.parametrize("honours_range", [True, False])
def test_download_resumes(tmp_path, sha256, server, honours_range):
    server.honours_range = honours_range
    whole = server.files[FIRST]
    (tmp_path / f"{FIRST}.part").write_bytes(whole[:1000])
    readers.download_fashion_mnist(tmp_path, server.url, sha256)
    sent = (206, len(whole) - 1000) if honours_range else (200, len(whole))
    assert server.ranges[0] == (FIRST, "bytes=1000-", *sent)
    assert (tmp_path / FIRST).read_bytes() == whole and not list(tmp_path.glob("*.part"))


def test_download_goes_on_after_a_lost_connection(tmp_path, sha256, server):
    server.cut_after = 700
    whole = len(server.files[FIRST])
    with pytest.raises(ConnectionError, match=f"{FIRST}.*connection lost after 700 of {whole} bytes"):
        readers.download_fashion_mnist(tmp_path, server.url, sha256)
    assert [p.name for p in tmp_path.iterdir()] == [f"{FIRST}.part"]
    with pytest.raises(FileNotFoundError, match="connection lost after 1400"):
        data.fashion_mnist(tmp_path, sha256=sha256, base_url=server.url)
    server.cut_after = None
    readers.download_fashion_mnist(tmp_path, server.url, sha256)
    assert [r[1] for r in server.ranges if r[0] == FIRST] == ["bytes=0-", "bytes=700-", "bytes=1400-"]
    assert (tmp_path / FIRST).read_bytes() == server.files[FIRST]


def test_download_complete_part_and_damaged_file(tmp_path, contents, sha256, server):
    write(tmp_path, contents, packed=True)
    (tmp_path / FIRST).rename(tmp_path / f"{FIRST}.part")  # stopped after the last byte
    last = tmp_path / f"{NAMES[3]}.gz"
    last.write_bytes(b"damaged")
    (tmp_path / f"{FIRST}.part").write_bytes(server.files[FIRST])
    readers.download_fashion_mnist(tmp_path, server.url, sha256)
    assert [(r[0], r[2]) for r in server.ranges] == [(FIRST, 416), (last.name, 206)]
    assert len(fashion(tmp_path, sha256).test) == 30


def test_download_of_a_wrong_file_leaves_nothing(tmp_path, sha256, server):
    server.files[FIRST] = gzip.compress(b"something else")
    with pytest.raises(ValueError, match=f"{FIRST}.*not the expected file.*{sha256[NAMES[0]]}"):
        readers.download_fashion_mnist(tmp_path, server.url, sha256)
    assert not list(tmp_path.iterdir())


def test_download_discards_a_foreign_part(tmp_path, sha256, server):
    (tmp_path / f"{FIRST}.part").write_bytes(b"x" * 10)
    with pytest.raises(ValueError, match="not the expected file, removed"):
        readers.download_fashion_mnist(tmp_path, server.url, sha256)
    readers.download_fashion_mnist(tmp_path, server.url, sha256)
    assert (tmp_path / FIRST).read_bytes() == server.files[FIRST]


def test_download_of_an_absent_file(tmp_path, sha256, server):
    del server.files[FIRST]
    with pytest.raises(ConnectionError, match=f"{FIRST}.*404"):
        readers.download_fashion_mnist(tmp_path, server.url, sha256)


# --- CIFAR-10 ---------------------------------------------------------------------------------------------------------

RECORDS = 20


@pytest.fixture
def bins(monkeypatch) -> dict[str, bytes]:
    """Six files of twenty records. Planes: R = number of the file, G = number of the record, B = row."""
    monkeypatch.setattr(readers, "CIFAR10_RECORDS", RECORDS)
    made = {}
    for i, name in enumerate(readers.CIFAR10_FILES):
        record = np.zeros((RECORDS, 3073), np.uint8)
        record[:, 0] = np.arange(RECORDS) % 10
        planes = record[:, 1:].reshape(RECORDS, 3, 32, 32)
        planes[:, 0] = i
        planes[:, 1] = np.arange(RECORDS)[:, None, None]
        planes[:, 2] = np.arange(32)[:, None]
        made[name] = record.tobytes()
    return made


def tar(path: Path, contents: dict[str, bytes], folder: str = "cifar-10-batches-bin") -> str:
    """Write the archive; its digest."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {"readme.html": b"<html>", **contents}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_cifar10_archive(tmp_path, bins):
    archive = tmp_path / "cifar-10-binary.tar.gz"
    digest = tar(archive, bins)
    d = data.cifar10(archive, validation=30, sha256=digest)
    assert (d.name, d.channels, d.size, d.classes[3], d.classes[9]) == ("cifar10", 3, 32, "cat", "truck")
    assert [len(s) for s in (d.train, d.validation, d.test)] == [70, 30, RECORDS]
    assert torch.bincount(d.train.y).tolist() == [7] * 10
    seen = []
    for split, files in ((d.train, range(5)), (d.validation, range(5)), (d.test, [5])):
        pixels = (raw(split, d) * 255).round().int()  # (N, 3, 32, 32)
        assert torch.equal(pixels[:, 2], torch.arange(32, dtype=torch.int32)[None, :, None].expand(len(split), 32, 32))
        assert torch.equal(pixels[:, 1, 0, 0] % 10, split.y.int()) and set(pixels[:, 0, 5, 7].tolist()) <= set(files)
        seen += [tuple(p) for p in pixels[:, :2, 0, 0].tolist()]
    assert sorted(seen) == [(i, j) for i in range(6) for j in range(RECORDS)]
    moments = d.train.x.double()
    assert moments.mean((0, 2, 3)).abs().max() < 1e-6 and (moments.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-6
    assert same(d, data.cifar10(tmp_path, validation=30, sha256=digest))
    assert [p.name for p in tmp_path.iterdir()] == [archive.name]  # nothing was extracted


def test_cifar10_folder(tmp_path, bins):
    digest = tar(tmp_path / "cifar-10-binary.tar.gz", bins)
    folder = tmp_path / "elsewhere" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, content in bins.items():
        (folder / name).write_bytes(content)
    d = data.cifar10(tmp_path, validation=30, sha256=digest, train=20)
    assert same(d, data.cifar10(folder, validation=30, train=20))
    assert same(d, data.cifar10(folder.parent, validation=30, train=20))
    assert not same(d, data.cifar10(folder, validation=30, train=20, seed=1))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda b: b[:-1], r"data_batch_2.bin: expected 20 records of 3073 bytes = 61460 bytes, got 61459"),
        (lambda b: b[:-3073], r"data_batch_2.bin: expected 20 records.*got 58387"),
        (lambda b: bytes([10]) + b[1:], "labels up to 10"),
    ],
    ids=["a byte missing", "a record missing", "label 10"],
)
def test_cifar10_bad_records(tmp_path, bins, packed, content, message):
    name = readers.CIFAR10_FILES[1]
    bins[name] = content(bins[name])
    digest = tar(tmp_path / "cifar-10-binary.tar.gz", bins) if packed else ""
    if not packed:
        for file, b in bins.items():
            (tmp_path / file).write_bytes(b)
    with pytest.raises(ValueError, match=message):
        data.cifar10(tmp_path, validation=30, sha256=digest)


def test_cifar10_foreign_archives(tmp_path, bins):
    python = tmp_path / "cifar-10-python.tar.gz"
    digest = tar(python, {"data_batch_1": b"pickle", "test_batch": b"pickle"}, "cifar-10-batches-py")
    with pytest.raises(ValueError, match=f"binary version.*{readers.CIFAR10_SHA256}, got {digest}; delete it and get http"):
        data.cifar10(python)
    with pytest.raises(ValueError, match="expected the binary version of CIFAR-10, data_batch_1.bin, .*missing"):
        data.cifar10(python, sha256=digest)
    with pytest.raises(FileNotFoundError, match="no cifar-10-binary.tar.gz and no folder.*pickle"):
        data.cifar10(tmp_path)
    cut = tmp_path / "cut.tar.gz"
    tar(cut, bins)
    cut.write_bytes(cut.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"cut.tar.gz: damaged gzip file \(.*\); delete it and get http"):
        data.cifar10(cut, sha256=hashlib.sha256(cut.read_bytes()).hexdigest())
    cut.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"cut.tar.gz: damaged gzip file \(.*\); delete it and get http"):
        data.cifar10(cut, sha256=hashlib.sha256(b"no archive").hexdigest())


def test_cifar10_sizes_are_checked_before_reading(tmp_path, bins, monkeypatch):
    for name, content in bins.items():
        (tmp_path / name).write_bytes(content)
    with (tmp_path / readers.CIFAR10_FILES[2]).open("ab") as file:
        file.truncate(1 << 40)  # a terabyte, none of it on the disk
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(ValueError, match=f"data_batch_3.bin: expected .* 61460 bytes, got {1 << 40}; delete it and get http"):
        data.cifar10(tmp_path)


@pytest.mark.parametrize("extra, message", [
    ({"data_batch_3.bin": bytes(70_000)}, "bin.tar.gz: data_batch_3.bin: expected .* 61460 bytes, got 70000"),
    ({"readme.txt": bytes(1 << 26)}, "bin.tar.gz: expected at most 430,220 bytes of content"),
])  # fmt: skip
def test_cifar10_archive_that_holds_too_much(tmp_path, bins, extra, message):
    archive = tmp_path / "bin.tar.gz"
    digest = tar(archive, bins | extra)
    with memory_of_at_most(4e6), pytest.raises(ValueError, match=f"{message}.*; delete it and get http"):
        data.cifar10(archive, sha256=digest)
