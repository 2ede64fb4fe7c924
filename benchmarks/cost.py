"""What an iteration of the method costs: beside DARTS, part by part, by curvature, and as the supernet grows. One thread.

    python benchmarks/cost.py [--out FOLDER] [--repeats 7]

Everything within a table is timed in turn in one run, so that a ratio of medians does not depend on what else the machine
does. An iteration is one weight step and one architecture step of each network, taken by the search itself; what happens
once a phase counts with its share of a step.

method-cost.csv: group, name, seconds (median), ratio. In the group "iteration" the ratio is to first-order DARTS on the same
supernet and batch, and in "iteration 3x32x32" with noise of that size in place of the digits; in "part" it is the share of the
DCP-NAS iteration; in "curvature" it is the gradient of −G + λ D over that of −G alone.
scaling.csv: what (channels, layers, batch or edges), its value, the seconds of an iteration of DARTS and of DCP-NAS, what the
Child's weight step keeps for its backward pass in MiB, and for each of these the exponent fitted on a log-log scale.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.func import functional_call

import dcpnas_lite
from dcpnas_lite import files
from dcpnas_lite.data import Data, digits
from dcpnas_lite.engine.config import DEFAULTS, SearchConfig
from dcpnas_lite.engine.run import SearchRun
from dcpnas_lite.method import backtracking
from dcpnas_lite.method.algorithm10 import TEACHER_STEPS
from dcpnas_lite.method.objectives import kl_gain, nas_loss, network_reconstruction
from dcpnas_lite.method.tangent import tangent_gradient
from dcpnas_lite.network.binarize import BinaryConv2d
from dcpnas_lite.network.supernet import MICRO, PAPER, Space, Supernet, constant

GROWTH = {"channels": (4, 8, 16, 32), "layers": (3, 6, 9, 12), "batch": (16, 32, 64, 128), "edges": (1, 3, 6, 10)}


def timed(tasks: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median seconds of each task, taken in turn; the first round does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def unrolled_gradient(net: Supernet, train: tuple, validation: tuple, step: float) -> list[torch.Tensor]:
    """dL(w − ξ ∇_w L, α)/∂α exactly: second-order DARTS without its finite difference."""
    names = [name for name, _ in net.named_parameters() if not name.startswith("alpha.")]
    slopes = torch.autograd.grad(nas_loss(net(train[0]), train[1]), net.weights(), create_graph=True)
    moved = {name: w - step * g for name, w, g in zip(names, net.weights(), slopes, strict=True)}
    return list(torch.autograd.grad(nas_loss(functional_call(net, moved, validation[0]), validation[1]), net.alphas()))


class Iteration:
    """A search of the given configuration, held at one step of its Child phase."""

    def __init__(self, data: Data | None = None, space: Space = MICRO, **changes):
        config = SearchConfig(warmup=0, **changes)
        self.run = SearchRun(data or digits(), config, space=space)
        self.train, self.validation = self.run.batch("train", 0, 0), self.run.batch("validation", 0, 1)
        self.parent, self.child = self.run.networks["parent"], self.run.networks["child"]
        self.teach()
        self.phase()

    def teach(self) -> None:
        """The soft targets of TEACHER_STEPS steps."""
        self.run.soft = {}
        self.soft = {"parent": (None, None), "child": self.run.soft_targets(0, ("train", "validation"))}

    def phase(self) -> None:
        """What else happens once in a Child phase."""
        self.run.tangent = self.run.parent_tangent(0)

    def weights(self, name: str) -> None:
        self.run.weight_step(name, self.train, self.soft[name][0], 0)

    def alphas(self, name: str, step: int = 0) -> None:
        """The architecture step; the Child's has the tangent in step 0 and then every `tangent_every` steps."""
        self.run.alpha_step(name, self.train, self.validation, self.soft[name], step)

    def darts(self) -> None:
        """The architecture step of DARTS: the Parent's, without backtracking."""
        rule, self.run.rule = self.run.rule, backtracking.no_backtracking
        self.alphas("parent")
        self.run.rule = rule

    def steps(self) -> dict[str, Callable]:
        return {
            "Parent w": lambda: self.weights("parent"),
            "Parent α": lambda: self.alphas("parent"),
            "DARTS α": self.darts,
            "Child w": lambda: self.weights("child"),
            "Child α": lambda: self.alphas("child"),
            "Child α between": lambda: self.alphas("child", self.run.config.tangent_every - 1),
            "phase": self.phase,
            "soft targets": self.teach,
        }

    def shares(self, seconds: dict[str, float]) -> tuple[float, float]:
        """Seconds of the soft targets and of the Parent's tangent direction, for each of the steps they serve."""
        return seconds["soft targets"] / TEACHER_STEPS, seconds["phase"] / self.run.config.steps

    def child_alpha(self, seconds: dict[str, float]) -> float:
        """Mean seconds of the Child's architecture steps."""
        every = self.run.config.tangent_every
        return (seconds["Child α"] + (every - 1) * seconds["Child α between"]) / every

    def total(self, seconds: dict[str, float]) -> float:
        """Seconds of an iteration."""
        alone = sum(seconds[name] for name in ("Parent w", "Parent α", "Child w"))
        return alone + self.child_alpha(seconds) + sum(self.shares(seconds))

    def iterations(self, seconds: dict[str, float], second_order: dict[str, float]) -> dict[str, float]:
        """Seconds of an iteration of each method."""
        total = self.total(seconds)
        return {
            "DARTS, first order": seconds["Parent w"] + seconds["DARTS α"],
            **second_order,
            "DCP-NAS": total,
            "DCP-NAS, tangent in every step": total - self.child_alpha(seconds) + seconds["Child α"],
        }

    def backtrack(self) -> None:
        for cell_type, alpha in self.child.alpha.items():
            a, norms = alpha.detach(), backtracking.weight_norms(self.child, cell_type)
            self.run.rule(backtracking.ArchitectureStep("child", cell_type, 0, a, a, a, norms, lambda a=a: a))

    def tangent(self, curvature: str) -> None:
        """The gradient of −G + λ D, or with curvature "none" that of −G alone."""
        x, soft, generator = self.validation[0], self.soft["child"][1], torch.Generator().manual_seed(0)
        with constant(self.child.weights()):
            if curvature == "none":
                torch.autograd.grad(-kl_gain(self.child(x), soft), self.child.alphas())
            else:
                tangent_gradient(
                    lambda alphas: self.child(x, alphas), lambda out: kl_gain(out, soft), self.child.alphas(), self.run.tangent,
                    curvature, "F", len(x), generator,
                )  # fmt: skip


def noise() -> Data:
    """Images of the size of CIFAR-10's, as many as there are digits."""
    data = digits()
    splits = {name: getattr(data, name) for name in ("train", "validation", "test")}
    splits = {name: dataclasses.replace(split, x=torch.randn(len(split), 3, 32, 32)) for name, split in splits.items()}
    return dataclasses.replace(data, **splits, mean=(0.0,) * 3, std=(1.0,) * 3)


def cost(repeats: int) -> list[list]:
    """The rows of method-cost.csv, on the space of the source with the default search on the digits."""
    paper = {"space": PAPER} | DEFAULTS["paper"]
    it = Iteration(**paper)
    binary = [m.weight for m in it.child.modules() if isinstance(m, BinaryConv2d)]
    step = it.run.config.weight_lr
    seconds = timed(
        it.steps()
        | {
            "second order": lambda: unrolled_gradient(it.parent, it.train, it.validation, step),
            "L_R": lambda: torch.autograd.grad(network_reconstruction(it.child), binary),
            "backtracking": it.backtrack,
        }
        | {c: lambda c=c: it.tangent(c) for c in ("none", "rank_one", "sampled", "gauss_newton", "hessian")},
        repeats,
    )
    iterations = it.iterations(seconds, {"DARTS, second order": seconds["Parent w"] + seconds["second order"]})
    total, every = it.total(seconds), it.run.config.tangent_every
    tangent = (seconds["sampled"] - seconds["none"]) / every
    soft_targets, direction = it.shares(seconds)
    parts = {
        "Parent w": seconds["Parent w"],
        "Parent α": seconds["Parent α"] - seconds["backtracking"],
        "soft targets": soft_targets,
        "Child w": seconds["Child w"] - seconds["L_R"],
        "L_R": seconds["L_R"],
        "Child α": it.child_alpha(seconds) - tangent - seconds["backtracking"],
        "tangent": tangent + direction,
        "backtracking": 2 * seconds["backtracking"],
    }
    curvatures = {c: seconds[c] for c in ("none", "rank_one", "sampled", "gauss_newton", "hessian")}
    large = Iteration(noise(), **paper)
    on_large = large.iterations(timed(large.steps(), repeats), {})
    first = "DARTS, first order"
    groups = (
        ("iteration", iterations, iterations[first]),
        ("iteration 3x32x32", on_large, on_large[first]),
        ("part", parts, total),
        ("curvature", curvatures, seconds["none"]),
    )
    return [[group, name, value, value / unit] for group, values, unit in groups for name, value in values.items()]


def kept(net: Supernet, loss: Callable) -> float:
    """MiB that a weight step keeps for its backward pass."""
    sizes: dict[int, int] = {}

    def keep(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), constant(net.alphas()):
        loss(net)
        return sum(sizes.values()) / 2**20


def growth(repeats: int) -> list[list]:
    """The rows of scaling.csv, around MICRO cells in three layers of 8 channels."""
    rows = []
    for what, values in GROWTH.items():
        found = []
        for value in values:
            grown = {"space": dataclasses.replace(MICRO, nodes=values.index(value) + 1)} if what == "edges" else {what: value}
            it = Iteration(**({"layers": 3} | grown))
            seconds = timed(it.steps(), repeats)
            memory = kept(it.child, it.run.weight_loss("child", it.train, it.soft["child"][0]))
            found.append([seconds["Parent w"] + seconds["DARTS α"], it.total(seconds), memory])
        slopes = [np.polyfit(np.log(values), np.log(column), 1)[0] for column in zip(*found, strict=True)]
        rows += [[what, value, *figures, *slopes] for value, figures in zip(values, found, strict=True)]
    return rows


def table(path: Path, header: str, rows: list[list]) -> None:
    """Write the rows to a CSV file at once, and print them."""
    text = [[f"{v:.4g}" if isinstance(v, float) else str(v).replace(",", "") for v in row] for row in rows]
    files.write(path, "\n".join(",".join(row) for row in [header.split(), *text]) + "\n")
    for row in [header.split(), *text]:
        print("".join(f"{cell:20}" for cell in row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(dcpnas_lite.__file__).parent / "tables", help="folder of the tables")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table(options.out / "method-cost.csv", "group name seconds ratio", cost(options.repeats))
    header = "what value darts_seconds dcp_seconds kept_mib darts_exponent dcp_exponent kept_exponent"
    table(options.out / "scaling.csv", header, growth(max(options.repeats // 2, 1)))


if __name__ == "__main__":
    main()
