"""Folding a trained 1-bit network into the steps of `network.PackedNetwork`. This is the one file of `packed` that needs torch.

BatchNorm in front of a sign becomes a threshold of each channel; BatchNorm after a 1-bit product and its PReLU, in front of the
next sign, becomes an interval of integers. Both are exact. The rest stays float32: the stem, the scales β and slopes of products
whose numbers are added up, BatchNorm after poolings, the classifier.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from .. import files
from ..data import Data
from ..engine.convolutions import GridBinaryConv2d
from ..evaluation.training import describe
from ..network.binarize import BinaryConv2d, PReLU
from ..network.discrete import DiscreteCell, DiscreteNetwork
from ..network.operations import EverySecond, FactorizedReduce, Shortcut
from . import pack
from .network import PackedNetwork


def export(
    network: DiscreteNetwork, data: Data | dict | None = None, fast: bool | None = None, threads: int = 1
) -> PackedNetwork:
    """The packed form of a trained 1-bit network, in evaluation mode; the network is left as it is.

    data: what it was trained on, or what `training.describe` says of it; then the file tells how an image has to look.
    Raises ValueError where the network is no 1-bit DiscreteNetwork, or for the first module without a packed form, by its name.
    """
    if not isinstance(network, DiscreteNetwork) or not network.binary:
        got = "a real-valued one" if isinstance(network, DiscreteNetwork) else type(network).__name__
        raise ValueError(f"network: expected a 1-bit DiscreteNetwork, got {got}")
    folder = _Folder()
    folder.network(network)
    about = {"genotype": json.loads(network.genotype.to_json()), "in_channels": network.in_channels}
    if data is not None:
        about["data"] = data if isinstance(data, dict) else describe(data)
    return PackedNetwork(about, folder.steps, folder.arrays, fast, threads)


def to_onnx(network: DiscreteNetwork, shape: list[int], path: str | os.PathLike) -> None:
    """Write a network, 1-bit or real-valued, as ONNX for images (N, *shape) → logits. ONNX has no 1-bit type: all is float32.

    By torch's older exporter: it needs onnx alone and takes seconds; the newer one (dynamo=True) gives the same labels.
    """
    buffer = io.BytesIO()
    names = dict(input_names=["images"], output_names=["logits"], dynamic_axes={"images": {0: "N"}, "logits": {0: "N"}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # the checks of an image's shape
        try:
            torch.onnx.export(network.eval(), (torch.zeros(2, *shape),), buffer, dynamo=False, **names)
        except (ImportError, torch.onnx.errors.OnnxExporterError) as error:
            raise ImportError(f"--format onnx needs onnx: pip install onnx ({error})") from None
    files.write(path, buffer.getvalue())


class _Folder:
    """Writes steps. A value is the number of the step that makes it; 0 is the image."""

    def __init__(self):
        self.steps: list[dict] = []
        self.arrays: dict[str, np.ndarray] = {}

    def step(self, op: str, *inputs: int, arrays: dict[str, np.ndarray] | None = None, **settings) -> int:
        for name, array in (arrays or {}).items():
            self.arrays[f"{len(self.steps)}.{name}"] = array
        self.steps.append({"op": op, "inputs": list(inputs), **settings})
        return len(self.steps)

    def network(self, network: DiscreteNetwork) -> int:
        """The steps of `Skeleton.run`."""
        states = [self.module(network.stem, "stem", 0)] * network.inputs
        for layer, (preprocess, cell) in enumerate(zip(network.preprocess, network.cells, strict=True)):
            name = f"preprocess.{layer}"
            inputs = [self.module(m, f"{name}.{k}", x) for k, (m, x) in enumerate(zip(preprocess, states, strict=True))]
            nodes = self.cell(cell, f"cells.{layer}", inputs)
            states = (states + [self.step("concatenate", *nodes)])[-network.inputs :]
        linear, mean = network.classifier, self.step("mean", states[-1])
        return self.step("linear", mean, arrays={"weight": _array(linear.weight), "bias": _array(linear.bias)})

    def cell(self, cell: DiscreteCell, name: str, inputs: list[int]) -> list[int]:
        """The steps of `DiscreteCell.forward`."""
        if type(cell) is not DiscreteCell:
            raise _refused(name, cell)
        nodes, numbers = list(inputs), iter(range(len(cell.operations)))
        for edges in cell.nodes:
            edges = [(operation, next(numbers), nodes[source]) for operation, source in edges]
            terms = [self.module(cell.operations[k], f"{name}.operations.{k}", x) for kind, k, x in edges if kind != "none"]
            total = terms[0] if terms else self.step("zeros", inputs[0], stride=cell.stride)
            for term in terms[1:]:
                total = self.step("add", total, term)
            nodes.append(total)
        return nodes[len(inputs) :]

    def module(self, module: nn.Module, name: str, x: int) -> int:
        """The steps of one module, those of its layers that stand in front of a sign folded into it."""
        if type(module) is FactorizedReduce:
            whole = self.step("even", x)
            even = self.module(module.even, f"{name}.even", whole)
            odd = self.module(module.odd, f"{name}.odd", self.step("crop", whole))
            return self.step("concatenate", even, odd)
        if type(module) is Shortcut:
            return self.shortcut(module, name, x)
        return self.layers(_flat(module, name), name, x)

    def layers(self, layers: Iterable[tuple[str, nn.Module]], name: str, x: int) -> int:
        """The steps of layers one after the other."""
        chain = _Chain(self, x)
        for path, layer in layers:
            if type(layer) in _LAYERS:
                _LAYERS[type(layer)](chain, path, layer)
            elif type(layer) in (FactorizedReduce, Shortcut):
                chain.x = self.module(layer, path, chain.floats(path))
            else:
                raise _refused(path, layer)
        return chain.floats(name)

    def shortcut(self, module: Shortcut, name: str, x: int) -> int:
        """The steps of `Shortcut`: layers(x) + x, x brought to the shape of the other."""
        out = self.layers([(f"{name}.{key}", layer) for key, layer in module.named_children()], name, x)
        convolutions = [m for m in module.modules() if isinstance(m, BinaryConv2d)]
        if len(convolutions) != 1:
            raise ValueError(f"{name}: expected one 1-bit convolution with a shortcut around it, got {len(convolutions)}")
        (conv,) = convolutions
        if _geometry(conv)[0] * 2 ** sum(type(m) is EverySecond for m in module) == 2:
            x = self.step("pool", x, kernel=2, stride=2, padding=0, ceil=True, mean=True)
        c_out, c_in = conv.weight.shape[0], conv.weight.shape[1] * conv.groups
        if c_in != c_out:
            x = self.step("resize", x, channels=c_out)
        return self.step("add", out, x)


class _Chain:
    """Layers one after the other. What stands behind a product is not written before it is known whether a sign follows."""

    def __init__(self, folder: _Folder, x: int):
        self.folder, self.x = folder, x
        self.count: dict | None = None  # x is a product: its n, β and slope
        self.norm: tuple[np.ndarray, np.ndarray] | None = None  # scale and shift of a BatchNorm
        self.every = 1

    def floats(self, name: str) -> int:
        """The value as float32 numbers."""
        if self.every != 1:
            raise ValueError(f"{name}: expected a 1-bit convolution behind EverySecond, got none")
        if self.count:
            self.x = self.folder.step("prelu", self.x, arrays={k: self.count[k] for k in ("beta", "slope")})
        if self.norm:
            self.x = self.folder.step("affine", self.x, arrays=dict(zip(("scale", "shift"), self.norm, strict=True)))
        self.count = self.norm = None
        return self.x

    def batch_norm(self, name: str, norm: nn.BatchNorm2d) -> None:
        if norm.weight is None or norm.running_mean is None:
            raise ValueError(f"{name}: expected a BatchNorm with weights and running statistics, got {norm}")
        if self.norm:
            self.floats(name)
        weight, bias, mean, variance = map(_array, (norm.weight, norm.bias, norm.running_mean, norm.running_var))
        scale = weight * (1 / np.sqrt(variance + np.float32(norm.eps)))  # in float32, as torch does
        self.norm = scale, (bias.astype(np.float64) - mean.astype(np.float64) * scale).astype(np.float32)

    def every_second(self, name: str, layer: EverySecond) -> None:
        self.every *= 2

    def prelu(self, name: str, layer: nn.PReLU) -> None:
        if not self.count or self.norm or (self.count["slope"] != 1).any():
            raise ValueError(f"{name}: expected PReLU right behind a 1-bit convolution")
        self.count["slope"] = np.broadcast_to(_array(layer.weight), self.count["beta"].shape).copy()

    def binary_convolution(self, name: str, conv: BinaryConv2d) -> None:
        filters, n, kernel, _ = conv.weight.shape
        stride, dilation, padding = _geometry(conv)
        if self.every != 1 and (kernel != 1 or padding):
            raise ValueError(f"{name}: expected a 1 × 1 convolution behind EverySecond, got {conv}")
        depthwise = n == 1 and conv.groups == filters
        weight = conv.weight.detach().cpu().numpy() >= 0  # (O, C/G, k, k)
        weight = weight[:, 0].transpose(1, 2, 0) if depthwise else weight.transpose(0, 2, 3, 1)
        bits = self.bits(n * conv.groups, 1 if depthwise else conv.groups)
        self.x = self.folder.step(
            "depthwise" if depthwise else "product", bits, arrays={"weight": _octets(weight)}, name=name, n=n, filters=filters,
            kernel=kernel, groups=conv.groups, stride=stride * self.every, dilation=dilation, padding=padding,
            border=int(conv.pad_value),
        )  # fmt: skip
        self.count = {"n": n * kernel**2, "beta": _array(conv.beta()), "slope": np.ones(filters, np.float32)}
        self.every = 1

    def bits(self, channels: int, groups: int) -> int:
        """The value as bits."""
        scale, shift = self.norm or (np.ones(channels, np.float32), np.zeros(channels, np.float32))
        if self.count:
            bounds = pack.interval(**self.count, scale=scale, shift=shift)
            arrays = {"low": bounds[0].astype(np.int16), "high": bounds[1].astype(np.int16), "flip": _octets(bounds[2])}
        else:
            threshold, flip = pack.threshold(scale, shift)
            arrays = {"threshold": threshold, "flip": _octets(flip)}
        value = self.folder.step("interval" if self.count else "sign", self.x, arrays=arrays, groups=groups)
        self.count = self.norm = None
        return value

    def pool(self, name: str, layer: nn.MaxPool2d | nn.AvgPool2d) -> None:
        kernel, stride, padding = (_one(name, getattr(layer, field)) for field in ("kernel_size", "stride", "padding"))
        mean, ceil = type(layer) is nn.AvgPool2d, layer.ceil_mode
        counts_border = mean and padding and layer.count_include_pad or getattr(layer, "divisor_override", None)
        if counts_border or getattr(layer, "dilation", 1) != 1 or (ceil and (padding or stride > kernel)):
            raise ValueError(f"{name}: expected pooling that leaves the border out, got {layer}")
        self.x = self.folder.step(
            "pool", self.floats(name), kernel=kernel, stride=stride, padding=padding, ceil=ceil, mean=mean
        )  # fmt: skip

    def convolution(self, name: str, layer: nn.Conv2d) -> None:
        kernel, stride, padding = (_one(name, getattr(layer, field)) for field in ("kernel_size", "stride", "padding"))
        if layer.bias is not None or layer.groups != 1 or _one(name, layer.dilation) != 1:
            raise ValueError(f"{name}: expected a plain convolution without bias, got {layer}")
        weight = {"weight": _array(layer.weight)}
        self.x = self.folder.step("convolution", self.floats(name), arrays=weight, stride=stride, padding=padding)


_LAYERS = {
    nn.Identity: lambda chain, name, layer: None,
    nn.BatchNorm2d: _Chain.batch_norm,
    nn.Conv2d: _Chain.convolution,
    nn.MaxPool2d: _Chain.pool,
    nn.AvgPool2d: _Chain.pool,
    EverySecond: _Chain.every_second,
    BinaryConv2d: _Chain.binary_convolution,
    GridBinaryConv2d: _Chain.binary_convolution,
    PReLU: _Chain.prelu,
    nn.PReLU: _Chain.prelu,
}


def _geometry(conv: BinaryConv2d) -> tuple[int, int, int]:
    """Stride, dilation and padding, those of before `accelerate`."""
    if type(conv) is GridBinaryConv2d:
        return conv.every, 2, conv.weight.shape[2] - 1
    return conv.stride, conv.dilation, conv.padding


def _flat(module: nn.Module, name: str):
    """(name, layer) of what is in nested Sequentials."""
    if type(module) is not nn.Sequential:
        yield name, module
        return
    for key, child in module.named_children():
        yield from _flat(child, f"{name}.{key}")


def _refused(name: str, module: nn.Module) -> ValueError:
    known = ", ".join(kind.__name__ for kind in [*_LAYERS, FactorizedReduce, Shortcut])
    return ValueError(f"{name}: expected a module that has a packed form ({known}), got {type(module).__name__}")


def _one(name: str, value) -> int:
    """What k or (k, k) says."""
    values = {*value} if isinstance(value, tuple) else {value}
    if len(values) > 1 or not all(isinstance(v, int) for v in values):
        raise ValueError(f"{name}: expected the same whole number for rows and columns, got {value}")
    return values.pop()


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype(np.float32)


def _octets(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits, bitorder="little")
