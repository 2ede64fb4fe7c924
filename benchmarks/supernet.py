"""The supernet beside the plain loop it must equal: time of a weight step and of an α step, peak memory, one thread.

    python benchmarks/supernet.py [--out FOLDER] [--repeats 7]

Both are timed in turn within one run, so that a ratio of medians does not depend on what else the machine does.
The plain supernet computes every operation of every edge on its own, in torch's default memory format, with dilation left
to the convolution, torch's PReLU, and a graph for α and the weights alike; the fast one takes what a step does not train as
constant, as the search does.

supernet.csv: network, figure, plain, fast (medians in seconds, peak memory of a weight step in MiB), ratio (plain / fast).
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import re
from functools import partial
from pathlib import Path

import torch
from cost import table, timed  # beside this script
from torch import Tensor, nn

import dcpnas_lite
from dcpnas_lite.method.objectives import nas_loss
from dcpnas_lite.network.binarize import BinaryConv2d, Sign, SignedLayer
from dcpnas_lite.network.operations import Dilated
from dcpnas_lite.network.supernet import PAPER, MixedCell, Supernet, constant


class PlainCell(MixedCell):
    """Eqs. 4.27-4.28 as they stand: one sum over edges and operations."""

    def forward(self, inputs: list[Tensor], mix: Tensor) -> list[Tensor]:
        nodes: list = inputs + [0.0] * self.space.nodes
        for e, (i, j) in enumerate(self.space.edges):
            for m, operation in enumerate(self.edges[e].values()):
                nodes[j] = nodes[j] + mix[e, m] * operation(nodes[i])
        return nodes[self.space.inputs :]


class PlainLayer(SignedLayer):
    """1-bit convolution and PReLU, one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.prelu(BinaryConv2d.forward(self, x), self.slope)


def plain(net: Supernet) -> Supernet:
    """A copy of a supernet with the same weights, computed the plain way."""
    net = copy.deepcopy(net)
    net.memory_format = torch.contiguous_format
    for module in list(net.modules()):
        if isinstance(module, MixedCell):
            module.__class__ = PlainCell
        elif isinstance(module, SignedLayer):
            module.__class__ = PlainLayer
        for name, child in module.named_children():
            if isinstance(child, Dilated):
                setattr(module, name, dilated(child))
            elif isinstance(child, Sign):
                setattr(module, name, nn.Identity())
    return net.to(memory_format=torch.contiguous_format)


def dilated(module: Dilated) -> nn.Module:
    """The convolution of dilation 2 that `Dilated` stands for."""
    conv = copy.copy(module.conv)
    padding = 2 * (conv.weight.shape[2] // 2)
    if isinstance(conv, BinaryConv2d):
        conv.__class__ = PlainLayer
        conv.stride, conv.padding, conv.dilation = module.stride, padding, 2
    else:
        conv.stride, conv.padding, conv.dilation = (module.stride,) * 2, (padding,) * 2, (2, 2)
    return conv


def step(net: Supernet, trained: list, others: list, x: Tensor, y: Tensor) -> None:
    """The gradient of a step; the fast supernet takes the parameters of the other group as constant."""
    with constant(() if isinstance(net.cells[0], PlainCell) else others):
        torch.autograd.grad(nas_loss(net(x), y), trained)


def weight_step(net: Supernet, x: Tensor, y: Tensor) -> None:
    step(net, net.weights(), net.alphas(), x, y)


def alpha_step(net: Supernet, x: Tensor, y: Tensor) -> None:
    step(net, net.alphas(), net.weights(), x, y)


def problem(binary: bool, batch: int = 32) -> tuple[Supernet, Tensor, Tensor]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = Supernet(PAPER, channels=8, layers=4, in_channels=3, binary=binary)
    return net, torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))


def peak(binary: bool, is_plain: bool, queue) -> None:
    """Peak memory of one weight step over that of the process before it, in MiB."""
    net, x, y = problem(binary)
    net = plain(net) if is_plain else net
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    weight_step(net, x, y)
    queue.put(status("VmHWM") - before)


def status(field: str) -> float:
    """A memory figure of this process in MiB (Linux)."""
    return int(re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(dcpnas_lite.__file__).parent / "tables", help="folder of the table")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    rows = []
    for binary in (False, True):
        net, x, y = problem(binary)
        candidates, name = {"plain": plain(net), "fast": net}, "Child" if binary else "Parent"
        for label, run in (("weight step", weight_step), ("α step", alpha_step)):
            seconds = timed({k: partial(run, c, x, y) for k, c in candidates.items()}, options.repeats)
            rows.append([name, label, *seconds.values(), seconds["plain"] / seconds["fast"]])
        memory = []
        for is_plain in (True, False):
            queue = context.Queue()
            process = context.Process(target=peak, args=(binary, is_plain, queue))
            process.start()
            memory.append(queue.get())
            process.join()
        rows.append([name, "peak memory", *memory, memory[0] / memory[1]])
    table(options.out / "supernet.csv", "network figure plain fast ratio", rows)


if __name__ == "__main__":
    main()
