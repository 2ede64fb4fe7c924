"""The fast supernet beside the plain one: time of a weight step and of an α step, peak memory, one thread.

    python benchmarks/supernet.py [--out FOLDER] [--repeats 7]

Both are timed in turn within one run, so that a ratio of medians does not depend on what else the machine does. The fast one
takes what a step does not train as constant, as the search does; the plain one has a graph for α and the weights alike.

supernet.csv: network, figure, plain, fast (medians in seconds, peak memory of a weight step in MiB), ratio (plain / fast).
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
from pathlib import Path

import torch
from cost import table, timed  # beside this script

import dcpnas_lite
from dcpnas_lite.engine.fast import accelerate
from dcpnas_lite.method.objectives import nas_loss
from dcpnas_lite.network.supernet import PAPER, Supernet, constant


def steps(binary: bool, fast: bool) -> dict:
    """The gradient of a weight step and of an α step of one supernet, by name."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = Supernet(PAPER, channels=8, layers=4, in_channels=3, binary=binary)
    x, y = torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))
    net = accelerate(net) if fast else net

    def step(trained: list, others: list) -> None:
        with constant(others if fast else ()):
            torch.autograd.grad(nas_loss(net(x), y), trained)

    weights, alphas = net.weights(), net.alphas()
    return {"weight step": lambda: step(weights, alphas), "α step": lambda: step(alphas, weights)}


def peak(binary: bool, fast: bool) -> float:
    """Peak memory of one weight step over that of the process before it, in MiB."""
    step = steps(binary, fast)["weight step"]
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    step()
    return status("VmHWM") - before


def status(field: str) -> float:
    """A memory figure of this process in MiB (Linux)."""
    return int(re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(dcpnas_lite.__file__).parent / "tables", help="folder of the table")
    parser.add_argument("--repeats", type=int, default=7)
    options, rows = parser.parse_args(), []
    for name, binary in (("Parent", False), ("Child", True)):
        plain, fast = steps(binary, False), steps(binary, True)
        for figure in plain:
            seconds = timed({"plain": plain[figure], "fast": fast[figure]}, options.repeats)
            rows.append([name, figure, *seconds.values(), seconds["plain"] / seconds["fast"]])
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # a process of its own for each
            memory = [pool.apply(peak, (binary, is_fast)) for is_fast in (False, True)]
        rows.append([name, "peak memory", *memory, memory[0] / memory[1]])
    table(options.out / "supernet.csv", "network figure plain fast ratio", rows)


if __name__ == "__main__":
    main()
