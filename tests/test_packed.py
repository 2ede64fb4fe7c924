"""Packed words against torch's integers: products, thresholds, the folded network, its file, and what runs without torch."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dcpnas_lite as dcp
from dcpnas_lite import files
from dcpnas_lite.evaluation.build import count_operations
from dcpnas_lite.network.binarize import BinaryConv2d, PReLU
from dcpnas_lite.network.discrete import DiscreteNetwork
from dcpnas_lite.network.operations import convolution
from dcpnas_lite.packed import fast, fold, network, pack
from dcpnas_lite.packed.network import PackedNetwork, load

FAST = [False, pytest.param(True, marks=pytest.mark.skipif(not fast.available, reason="numba is not installed"))]
ways = pytest.mark.parametrize("quick", FAST, ids=["NumPy", "numba"])


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


# -- words ------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(n=st.integers(1, 200), rows=st.integers(1, 3), seed=st.integers(0, 99))
def test_words_hold_the_bits_in_order_and_zeros_behind_them(n, rows, seed):
    bits = np.random.default_rng(seed).random((rows, n)) < 0.5
    words = pack.pack(bits)
    assert words.shape == (rows, -(-n // 64)) and words.dtype == np.uint64
    for row, of_row in zip(bits, words, strict=True):
        number = sum(int(word) << 64 * k for k, word in enumerate(of_row))
        assert number == sum(1 << k for k, bit in enumerate(row) if bit)
    assert np.array_equal(pack.unpack(words, n), bits)


@st.composite
def layers(draw, depthwise: bool):
    """A 1-bit convolution and an image for it: ragged channels, odd and different sides, zeros of both signs in the image."""
    groups = draw(st.integers(1, 130)) if depthwise else draw(st.sampled_from([1, 1, 1, 2, 3]))
    per_group = 1 if depthwise else draw(st.sampled_from([1, 3, 16, 63, 64, 65, 130]))
    filters = groups if depthwise else groups * draw(st.sampled_from([1, 2, 5, 9]))
    kernel, stride, dilation = draw(st.sampled_from([1, 2, 3, 5])), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    padding, least = draw(st.integers(0, 4)), dilation * (kernel - 1) + 1
    height, width = (max(draw(st.integers(1, 9)), least - 2 * padding) for _ in range(2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    conv = BinaryConv2d(groups * per_group, filters, kernel, stride, padding, dilation, groups, draw(st.sampled_from([-1, 1])))
    x = torch.randn(draw(st.integers(1, 3)), groups * per_group, height, width, generator=generator)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator))
        for values in (x, conv.weight):
            values[torch.rand(values.shape, generator=generator) < 0.1] = 0.0
            values[torch.rand(values.shape, generator=generator) < 0.1] = -0.0
    return conv, x


def integers(conv: BinaryConv2d, x: torch.Tensor) -> np.ndarray:
    """sign(a) ⊙ sign(w) by torch's integers, channels last."""
    signs, weight = (torch.where(v >= 0, 1, -1) for v in (x, conv.weight))
    signs = F.pad(signs, (conv.padding,) * 4, value=int(conv.pad_value))
    return F.conv2d(signs, weight, None, conv.stride, 0, conv.dilation, conv.groups).permute(0, 2, 3, 1).int().numpy()


def in_words(conv: BinaryConv2d, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The bits of the image, group by group, and of the filters."""
    n = conv.weight.shape[1]
    bits = x.permute(0, 2, 3, 1).numpy() >= 0
    words = pack.pack(bits.reshape(*bits.shape[:3], conv.groups, n))
    return (
        pack.border(words, conv.padding, int(conv.pad_value), n),
        pack.pack(conv.weight.detach().permute(0, 2, 3, 1).numpy() >= 0),
    )


@ways
@settings(deadline=None, max_examples=60)
@given(layer=layers(depthwise=False))
def test_products_are_torchs_integers(quick, layer):
    conv, x = layer
    words, weights = in_words(conv, x)
    n = conv.weight.shape[1]
    if quick:
        count, channels = integers(conv, x), len(weights)
        draw = np.random.default_rng(channels)
        low, high = (draw.integers(-n, n + 1, channels).astype(np.int32) for _ in range(2))
        flip, beta, slope = draw.random(channels) < 0.5, *draw.standard_normal((2, channels)).astype(np.float32)
        for threads in (1, 3):
            product = fast.Product(weights, n, conv.groups, conv.stride, conv.dilation, threads)
            assert np.array_equal(product(words), count)
            assert np.array_equal(product.scaled(words, beta, slope), pack.scaled(count, beta, slope))
            assert np.array_equal(product.inside(words, low, high, flip), pack.pack(((low <= count) & (count <= high)) ^ flip))
    else:
        assert np.array_equal(pack.product(words, weights, n, conv.stride, conv.dilation), integers(conv, x))
    assert torch.equal(conv(x), torch.from_numpy(integers(conv, x)).permute(0, 3, 1, 2) * conv.beta().view(1, -1, 1, 1))


@settings(deadline=None, max_examples=60)
@given(layer=layers(depthwise=True), seed=st.integers(0, 99))
def test_depthwise_products_are_torchs_integers(layer, seed):
    conv, x = layer
    channels, _, kernel, _ = conv.weight.shape
    words = pack.border(pack.pack(x.permute(0, 2, 3, 1).numpy() >= 0), conv.padding, int(conv.pad_value), channels)
    weights = pack.pack(conv.weight.detach()[:, 0].permute(1, 2, 0).numpy() >= 0)
    expected = integers(conv, x)
    assert np.array_equal(pack.depthwise(words, weights, channels, conv.stride, conv.dilation), expected)
    if fast.available:
        draw = np.random.default_rng(seed)
        n = kernel**2
        low, high = (draw.integers(-n, n + 1, channels).astype(np.int32) for _ in range(2))
        low[0], high[0] = n + 1, -n - 1  # nothing
        flip = draw.random(channels) < 0.5
        bounds = fast.planes(n, low, high, flip)
        got = fast.depthwise(words, weights, conv.stride, conv.dilation, bounds)
        assert np.array_equal(got, pack.pack(((low <= expected) & (expected <= high)) ^ flip))


@pytest.mark.skipif(not fast.available, reason="numba is not installed")
@settings(deadline=None, max_examples=60)
@given(channels=st.integers(1, 200), seed=st.integers(0, 99), stride=st.integers(1, 2), kernel=st.integers(1, 3))
def test_numba_does_what_numpy_does(channels, seed, stride, kernel):
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((2, 5, 4, channels)).astype(np.float32)
    a, b = (draw.standard_normal(channels).astype(np.float32) for _ in range(2))
    flip = draw.random(channels) < 0.5
    for threads in (1, 2):
        assert np.array_equal(fast.binarize(x, a, flip, threads), pack.pack((x >= a) ^ flip))
        assert np.array_equal(fast.affine(x, a, b, threads), pack.affine(x, a, b))
        weight = draw.standard_normal((kernel, kernel, channels, 3))
        images, filters = torch.from_numpy(x).double().permute(0, 3, 1, 2), torch.from_numpy(weight).permute(3, 2, 0, 1)
        expected, got = F.conv2d(images, filters, None, stride), fast.convolution(x, weight, stride, threads)
        np.testing.assert_allclose(got, expected.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-5)


def test_rows_are_shared_out_once_each(monkeypatch):
    monkeypatch.setattr(fast, "THREADED", 0)
    seen = []
    fast.by_rows(lambda first, last, name: seen.extend((name, row) for row in range(first, last)), 3, 1, 8, "a")
    assert sorted(seen) == [("a", row) for row in range(8)]


# -- thresholds -------------------------------------------------------------------------------------------------------

FLOATS = st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-149, 3e38, -3e38])


@settings(deadline=None, max_examples=200)
@given(scale=FLOATS, shift=FLOATS, x=FLOATS)
def test_a_threshold_is_exact_to_the_last_bit(scale, shift, x):
    scale, shift = np.float32(scale), np.float32(shift)
    (t,), (flip,) = pack.threshold(scale[None], shift[None])
    with np.errstate(over="ignore"):
        around = [t, np.nextafter(t, np.float32(np.inf)), np.nextafter(t, np.float32(-np.inf)), np.float32(x)]
    for value in filter(np.isfinite, around):
        exact = Fraction(float(scale)) * Fraction(float(value)) + Fraction(float(shift)) >= 0
        assert bool((value >= t) != flip) == exact, (value, t, flip)


def batch_norm(channels: int, seed: int) -> nn.BatchNorm2d:
    """Scales of both signs and one 0; statistics that are not those of a fresh one."""
    generator, norm = torch.Generator().manual_seed(seed), nn.BatchNorm2d(channels).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.randn(channels, generator=generator))
        norm.bias.copy_(torch.randn(channels, generator=generator))
        norm.weight[0] = 0
    norm.running_mean.copy_(torch.randn(channels, generator=generator))
    norm.running_var.copy_(torch.rand(channels, generator=generator) * 3 + 0.1)
    return norm


def folded(*modules: nn.Module, channels: int) -> PackedNetwork:
    """The steps of some layers, as a network that returns its last value."""
    folder = fold._Folder()
    folder.module(nn.Sequential(*modules), "layers", 0)
    return PackedNetwork({"in_channels": channels}, folder.steps, folder.arrays, fast=False)


@pytest.mark.parametrize("seed", range(5))
def test_batch_norm_in_front_of_a_sign_is_a_threshold(seed):
    norm, x = batch_norm(37, seed), 3 * torch.randn(4, 37, 6, 5, generator=torch.Generator().manual_seed(seed))
    packed = folded(norm, BinaryConv2d(37, 2, 1), channels=37)
    words = packed.values(x.numpy())[1]
    with torch.no_grad():
        normal = norm(x).permute(0, 2, 3, 1)
    differ = pack.unpack(words, 37) != (normal >= 0).numpy()
    assert not differ[normal.abs().numpy() > 1e-6].any() and differ.mean() < 1e-3
    assert len(packed.steps) == 3 and not any(step["op"] == "affine" for step in packed.steps)


@pytest.mark.parametrize("seed", range(5))
def test_batch_norm_behind_a_product_is_an_interval_of_integers(seed):
    """On every count that a product of 25 signs can be, with slopes of both signs."""
    generator, channels = torch.Generator().manual_seed(seed), 60
    conv, prelu, norm = BinaryConv2d(channels, channels, 5, groups=channels), PReLU(channels), batch_norm(channels, seed + 100)
    with torch.no_grad():
        prelu.weight.copy_(torch.randn(channels, generator=generator))
    count = torch.arange(-25, 26, 2)
    with torch.no_grad():
        after = norm(prelu(conv.beta().view(1, -1, 1, 1) * count.view(-1, 1, 1, 1))).flatten(1)
    arrays = folded(conv, prelu, norm, BinaryConv2d(channels, 2, 1), channels=channels).of_step(2)
    inside = (arrays["low"] <= count[:, None].numpy()) & (count[:, None].numpy() <= arrays["high"])
    flip = np.unpackbits(arrays["flip"], count=channels, bitorder="little").view(bool)
    assert np.array_equal((inside ^ flip)[after.abs().numpy() > 1e-6], (after >= 0).numpy()[after.abs().numpy() > 1e-6])
    sides = (after >= 0).int().diff(dim=0).abs().sum(0)
    assert {0, 1, 2} <= set(sides.tolist()) and flip.any()  # constant, one threshold, a V


# -- networks ---------------------------------------------------------------------------------------------------------

OPERATIONS = [name for name in dcp.MICRO.operations if name != "none"]
CELLS = {
    "separable": dcp.Genotype.from_operations(dcp.MICRO, ["sep_conv_3x3", "avg_pool_3x3", "dil_conv_5x5"]),
    "pooled": dcp.Genotype.from_operations(dcp.MICRO, ["max_pool_3x3", "skip_connect", "sep_conv_5x5"]),
    "dilated": dcp.Genotype.from_operations(dcp.MICRO, ["none", "none", "dil_conv_3x3"]),
    "nothing": dcp.Genotype.from_operations(dcp.MICRO, ["none", "none", "none"]),
    "published": dcp.PUBLISHED,
    "halving": dcp.Genotype(2, ((("skip_connect", 0), ("none", 1)),) * 2, ((("skip_connect", 0), ("skip_connect", 1)),) * 2),
}


def trained(cell, channels=8, layers=3, in_channels=1, seed=0, size=9, binary=True) -> tuple[DiscreteNetwork, torch.Tensor]:
    """A 1-bit network after a few steps, and images it did not see. It need not know anything, but its numbers have moved."""
    torch.manual_seed(seed)
    net = DiscreteNetwork(cell, channels, layers, 10, in_channels, binary)
    x = torch.randn(40, in_channels, size, size + 2)
    optimizer = torch.optim.Adam(net.parameters(), 0.03)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(net(x), torch.arange(40) % 10).backward()
        optimizer.step()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, PReLU):
                module.weight[::3].neg_()
            if isinstance(module, nn.BatchNorm2d):
                module.weight[::4].neg_()
    return net.eval(), torch.randn(30, in_channels, size, size + 2)


def watched(net: DiscreteNetwork, x: torch.Tensor) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The integers of every 1-bit layer by its name, and the logits."""
    seen, hooks = {}, []
    for name, module in net.named_modules():
        if isinstance(module, BinaryConv2d):
            def hook(conv, inputs, _, name=name):
                seen[name] = integers(conv, inputs[0])
            hooks.append(module.register_forward_hook(hook))
    with torch.no_grad():
        logits = net(x).numpy()
    for hook in hooks:
        hook.remove()
    return seen, logits


def certain(packed: PackedNetwork, x: torch.Tensor) -> np.ndarray:
    """Images on which no number is so close to its threshold that the rounding of a sum decides: there nothing may differ."""
    values, sure = packed.values(x.numpy()), np.ones(len(x), bool)
    for k, step in enumerate(packed.steps):
        if step["op"] == "sign":
            value = values[step["inputs"][0]]
            distance = np.abs(value - packed.of_step(k)["threshold"])
            sure &= (distance >= 3e-7 * np.abs(value).max((0, 1, 2))).reshape(len(x), -1).all(1)
    return sure


@ways
@pytest.mark.parametrize("name, options", [
    *((name, {}) for name in CELLS),
    ("separable", dict(channels=70, layers=1, in_channels=3)),
    ("separable", dict(channels=3, layers=2, size=8)),
    ("published", dict(channels=4, layers=4, size=11)),
    ("halving", dict(channels=3, size=10)),
    ("separable", dict(binary="shortcut")),
    ("published", dict(channels=4, layers=4, size=11, binary="shortcut")),
    ("published", dict(channels=10, layers=5, size=16, in_channels=2)),
])  # fmt: skip
def test_integers_labels_and_logits_of_a_network(quick, name, options):
    net, x = trained(CELLS[name], **options)
    before = copy.deepcopy(net.state_dict())
    packed = fold.export(net, fast=quick)
    expected, logits = watched(net, x)
    reference = PackedNetwork(packed.about, packed.steps, packed.arrays, fast=False)
    values = reference.values(x.numpy())
    got = {step["name"]: values[k + 1] for k, step in enumerate(packed.steps) if "n" in step}
    sure = certain(reference, x)
    assert sure.mean() > 0.8 and got.keys() <= expected.keys()
    for layer, count in got.items():
        assert np.array_equal(count[sure], expected[layer][sure]), layer
    out = packed(x.numpy())
    assert out.dtype == np.float32 and out.shape == (30, 10) and np.array_equal(out, values[-1])
    assert np.abs(out - logits)[sure].max() < 1e-4
    assert np.array_equal(out.argmax(1)[sure], logits.argmax(1)[sure])
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()) and not net.training


@pytest.fixture(scope="module")
def digits():
    torch.set_num_threads(1)
    data = dcp.digits(size=8)
    cell = dcp.Genotype.from_operations(dcp.MICRO, ["sep_conv_3x3", "max_pool_3x3", "dil_conv_3x3"])
    return dcp.train(cell, data, 1, dcp.TrainConfig(channels=8, layers=2, epochs=3)), data


@ways
def test_a_training_of_the_digits(digits, quick):
    """As `train` returns it: its convolutions of dilation 2 are on grids."""
    result, data = digits
    packed = fold.export(result.network, data, fast=quick)
    with torch.no_grad():
        logits = result.network(data.test.x).numpy()
    out = packed(data.test.x.numpy())
    sure = certain(PackedNetwork(packed.about, packed.steps, packed.arrays, fast=False), data.test.x)
    assert sure.mean() > 0.9 and np.abs(out - logits)[sure].max() < 1e-4
    assert np.array_equal(out.argmax(1)[sure], logits.argmax(1)[sure])
    assert (packed.predict(data.test.x.numpy()) == data.test.y.numpy()).mean() == pytest.approx(result.test_accuracy, abs=0.004)
    assert packed.about["data"]["mean"] == list(data.mean) and packed.about["data"]["shape"] == [1, 8, 8]


def test_size_and_operations_are_those_of_the_float_network(digits):
    result, data = digits
    packed = fold.export(result.network, data)
    binary, real = count_operations(result.network, data.test.x[0])
    assert packed.operations(8, 8) == {"binary": binary, "real": real, "total": binary / 64 + real}
    size = packed.size()
    assert size["one_bit"] == result.one_bit
    stored = sum(array.nbytes for array in packed.arrays.values())
    assert 8 * stored == size["rest"] + sum(8 * -(-k // 8) for k in bits_of_layers(packed))
    assert size["one_bit"] / 8 + size["rest"] / 8 <= len(packed.to_bytes())


def bits_of_layers(packed: PackedNetwork) -> list[int]:
    return [step["filters"] * step["kernel"] ** 2 * step["n"] for step in packed.steps if "n" in step]


def test_layers_say_how_they_are_computed(digits):
    packed = fold.export(digits[0].network, fast=False)
    rows = packed.layers()
    assert len(rows) == sum(isinstance(m, BinaryConv2d) for m in digits[0].network.modules())
    assert {row["way"] for row in rows} == {"words, NumPy"}
    assert rows[0] == {"layer": "preprocess.0.0.1", "K": 8, "filters": 8, "way": "words, NumPy"}
    if fast.available:
        ways = {r["layer"]: r["way"] for r in fold.export(digits[0].network, fast=True).layers()}
        assert ways["preprocess.0.0.1"] == "words, numba" and ways["cells.0.operations.0.1"] == "bit planes, numba"


def test_a_wide_kernel_has_no_planes():
    net = folded(BinaryConv2d(4, 4, 7, groups=4, padding=3), nn.BatchNorm2d(4).eval(), BinaryConv2d(4, 2, 1), channels=4)
    if fast.available:
        quick = PackedNetwork(net.about, net.steps, net.arrays, fast=True)
        assert quick.layers()[0]["way"] == "words, NumPy"
        x = np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)
        assert np.array_equal(quick.values(x)[-1], net.values(x)[-1])


def test_a_registered_operation_and_learned_scales():
    from dcpnas_lite.network.operations import REGISTRY, register

    register("packed_conv", lambda c, stride, binary, affine: nn.Sequential(*convolution(c, c, 3, binary, affine, stride)))
    try:
        cell = dcp.Genotype.from_operations(dcp.MICRO, ["packed_conv", "skip_connect", "packed_conv"])
        net, x = trained(cell, channels=6)
    finally:
        del REGISTRY["packed_conv"]
    conv = net.preprocess[0][0][1]
    conv.learned_beta, conv.pad_value = nn.Parameter(-torch.rand(6)), 1.0
    packed = fold.export(net, fast=False)
    with torch.no_grad():
        logits = net(x).numpy()
    sure = certain(packed, x)
    assert np.abs(packed(x.numpy()) - logits)[sure].max() < 1e-4


# -- refusals ---------------------------------------------------------------------------------------------------------


class Unknown(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize("put, message", [
    (Unknown(), "cells.0.operations.0: expected a module that has a packed form (.*), got Unknown"),
    (nn.Sequential(nn.ReLU()), "cells.0.operations.0.0: expected a module that has a packed form (.*), got ReLU"),
    (nn.Sequential(nn.PReLU()), "cells.0.operations.0.0: expected PReLU right behind a 1-bit convolution"),
    (nn.AvgPool2d(3, 1, 1), "cells.0.operations.0: expected pooling that leaves the border out, got AvgPool2d"),
    (nn.MaxPool2d((3, 2), 1), "cells.0.operations.0: expected the same whole number for rows and columns, got"),
    (nn.Conv2d(8, 8, 3, padding=1), "cells.0.operations.0: expected a plain convolution without bias, got Conv2d"),
    (nn.BatchNorm2d(8, affine=False), "cells.0.operations.0: expected a BatchNorm with weights and running statistics, got"),
])  # fmt: skip
def test_what_has_no_packed_form_is_refused_by_its_name(put, message):
    net = DiscreteNetwork(CELLS["separable"], channels=8, layers=1)
    net.cells[0].operations[0] = put
    with pytest.raises(ValueError, match="^" + message.replace("(.*)", r"\(.*\)")):
        fold.export(net)


def test_other_networks_and_images_are_refused(digits):
    with pytest.raises(ValueError, match="^network: expected a 1-bit DiscreteNetwork, got a real-valued one$"):
        fold.export(DiscreteNetwork(CELLS["separable"], binary=False))
    with pytest.raises(ValueError, match="^network: expected a 1-bit DiscreteNetwork, got Linear$"):
        fold.export(nn.Linear(2, 2))
    packed = fold.export(digits[0].network)
    for shape in [(8, 8), (1, 3, 8, 8), (0, 1, 8, 8)]:
        with pytest.raises(ValueError, match="^" + re.escape(f"images: expected shape (N, 1, H, W), at least one, got {shape}")):
            packed(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="^steps: expected convolution, .*, got 'attention'$"):
        PackedNetwork(packed.about, [{"op": "attention", "inputs": [0]}], {})


# -- the file ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(digits, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "model.safetensors"
    fold.export(digits[0].network, digits[1]).save(path)
    return path


def test_a_file_is_the_network(digits, file):
    packed, x = load(file), digits[1].test.x.numpy()
    assert np.array_equal(packed(x), fold.export(digits[0].network)(x))
    assert dcp.Genotype.from_json(json.dumps(packed.about["genotype"])) == digits[0].network.genotype
    assert packed.to_bytes() == file.read_bytes() == fold.export(digits[0].network, digits[1]).to_bytes()
    kinds = {name.partition(".")[2]: array.dtype for name, array in packed.arrays.items()}
    assert kinds["beta"] == kinds["threshold"] == np.float32 and kinds["flip"] == np.uint8 and kinds["low"] == np.int16
    assert b"pickle" not in file.read_bytes()


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_damaged_file_is_one_line(file, tmp_path_factory, data):
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        position = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 200))
        content[position] ^= data.draw(st.integers(1, 255))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: expected a packed 1-bit network, got ") and "\n" not in str(error.value)


def test_foreign_newer_and_missing_files(file, tmp_path):
    from safetensors.numpy import save_file

    packed, path = load(file), tmp_path / "other.safetensors"
    save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(ValueError, match="got a safetensors file that this package did not make$"):
        load(path)
    path.write_bytes(files.tensors_to_bytes({"a": np.zeros(2)}, "a trained network", 1, {}))
    with pytest.raises(ValueError, match="expected a packed 1-bit network, got a trained network$"):
        load(path)
    path.write_bytes(files.tensors_to_bytes(packed.arrays, network.WHAT, 2, packed.about | {"steps": packed.steps}))
    with pytest.raises(ValueError, match="got one of version 2, newer than 1, which is all this package knows: update it$"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing.safetensors")
    with pytest.raises(ValueError, match="expected a packed 1-bit network, got a folder"):
        load(tmp_path)


@ways
def test_it_runs_without_torch(quick, digits, file, tmp_path):
    np.save(tmp_path / "x.npy", digits[1].test.x[:20].numpy())
    code = f"""
import sys
sys.modules["torch"] = None
if not {quick}:
    sys.modules["numba"] = None
import numpy as np
from dcpnas_lite.packed.network import load
network = load({str(file)!r})
assert network.how.fast is {quick} and not {{"sklearn", "matplotlib"}} & set(sys.modules)
np.save("logits.npy", network(np.load("x.npy")))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "logits.npy"), load(file)(digits[1].test.x[:20].numpy()))


def test_numba_that_is_asked_for_and_missing(file, monkeypatch):
    monkeypatch.setattr(fast, "available", False)
    assert load(file).how.fast is False
    with pytest.raises(ImportError, match="^fast=True needs numba: pip install numba$"):
        load(file, fast=True)


def test_threads_change_nothing(digits, monkeypatch, file):
    monkeypatch.setattr(fast, "THREADED", 0)
    x = digits[1].test.x[:9].numpy()
    assert np.array_equal(load(file, threads=2)(x), load(file, threads=1)(x))
