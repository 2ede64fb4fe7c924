"""The micro tables on a GPU: hundreds of cells trained as one wide network.

The networks of the micro space are so small that launching a kernel takes longer than running it. So all cells of one seed that
begin with the same few operations stand side by side as groups of channels: wherever an edge has operation m in some of them, one
wide operation serves them all. Nothing passes between the members, and each has the weights, batches and learning rates that
`dcpnas_lite.train` gives it; only sums are taken in another order.

    python benchmarks/tables_gpu.py digits --seeds 0 1 2 --bits 1 32 --out runs/microbench-digits.csv
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import math
import time
import types
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dcpnas_lite import files
from dcpnas_lite.data import batches
from dcpnas_lite.evaluation import build, table
from dcpnas_lite.evaluation.cells import genotype
from dcpnas_lite.evaluation.training import TrainResult
from dcpnas_lite.network.binarize import BinaryConv2d, sign
from dcpnas_lite.network.discrete import DiscreteNetwork
from dcpnas_lite.network.supernet import MICRO

M = len(MICRO.operations)


def _pointwise(conv, x: Tensor) -> Tensor:
    """A 1 × 1 convolution of K groups as a batched matrix product."""
    n, _, h, w = x.shape
    weight = conv.weight.view(conv.groups, -1, conv.weight.shape[1])
    if isinstance(conv, BinaryConv2d):
        x, weight = sign(x), sign(weight)
    out = torch.matmul(weight, x.reshape(n, conv.groups, -1, h * w)).view(n, -1, h, w)
    return out * conv.beta().view(1, -1, 1, 1) if isinstance(conv, BinaryConv2d) else out


def widen(parts: list[nn.Module], shared_input: bool = False) -> nn.Module:
    """K modules of one kind side by side: (N, K · C, H, W) → (N, K · C', H', W'), or from (N, C, H, W) that all share."""
    wide = copy.deepcopy(parts[0])
    for mine, *theirs in zip(wide.modules(), *(p.modules() for p in parts), strict=True):
        if isinstance(mine, nn.Conv2d | BinaryConv2d):
            pointwise = mine.weight.shape[2] == 1
            mine.groups *= 1 if shared_input else len(parts)
            if pointwise:
                mine.forward = types.MethodType(_pointwise, mine)
        if isinstance(mine, nn.Conv2d | BinaryConv2d | nn.BatchNorm2d | nn.PReLU):
            for name, _ in list(mine.named_parameters(recurse=False)):
                setattr(mine, name, nn.Parameter(torch.cat([getattr(t, name).detach() for t in theirs])))
        if isinstance(mine, nn.BatchNorm2d) and mine.running_mean is not None:
            for name in ("running_mean", "running_var"):
                setattr(mine, name, torch.cat([getattr(t, name) for t in theirs]))
    return wide.to(memory_format=torch.contiguous_format)


class Wide(nn.Module):
    """The cells (a, ·, ·) for the given first operations a: images (N, C, H, W) → logits (members, N, classes)."""

    def __init__(self, networks: list[DiscreteNetwork], first: list[int]):
        super().__init__()
        self.shape = (len(first), M, M)
        self.stem = widen([n.stem for n in networks], shared_input=True)
        members = list(itertools.product(*map(range, self.shape)))
        self.preprocess, self.edges = nn.ModuleList(), nn.ModuleList()
        for layer in range(len(networks[0].cells)):
            self.preprocess.append(widen([n.preprocess[layer][0] for n in networks]))
            for e, size in enumerate(self.shape):
                self.edges.append(
                    nn.ModuleList(
                        widen([n.cells[layer].operations[e] for n, k in zip(networks, members, strict=True) if k[e] == m])
                        for m in range(size)
                    )
                )
        self.names = [[MICRO.operations[m] for m in first], MICRO.operations, MICRO.operations]
        self.weight = nn.Parameter(torch.stack([n.classifier.weight.detach() for n in networks]))
        self.bias = nn.Parameter(torch.stack([n.classifier.bias.detach() for n in networks]))

    def edge(self, layer: int, e: int, x: Tensor) -> Tensor:
        """x and result: (N, A, M, M, C, H, W)."""
        out = []
        for m, (name, op) in enumerate(zip(self.names[e], self.edges[3 * layer + e], strict=True)):
            part = x.select(1 + e, m)
            out.append(torch.zeros_like(part) if name == "none" else op(part.flatten(1, 3)).view_as(part))
        return torch.stack(out, 1 + e)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer, prepare in enumerate(self.preprocess):
            x = prepare(x).unflatten(1, (*self.shape, -1))
            first = self.edge(layer, 0, x)
            second = self.edge(layer, 1, x) + self.edge(layer, 2, first)
            x = torch.cat([first, second], 4).flatten(1, 4)
        features = x.mean((2, 3)).unflatten(1, (len(self.bias), -1)).transpose(0, 1)
        return torch.baddbmm(self.bias[:, None], features, self.weight.transpose(1, 2))


def train(data, bits: int, seed: int, first: list[int], config, device: str) -> list[tuple[float, float, DiscreteNetwork]]:
    """(test accuracy, validation accuracy, network as it began) of every member, in the order of the cells."""
    networks = []
    with torch.random.fork_rng(devices=[]):
        for cell in itertools.product(first, range(M), range(M)):
            torch.manual_seed(seed)
            cell_genotype = genotype([MICRO.operations[m] for m in cell])
            networks.append(
                DiscreteNetwork(cell_genotype, config.channels, config.layers, len(data.classes), data.channels, binary=bits == 1)
            )
    wide = Wide(networks, first).to(device)
    x, y = data.train.x.to(device), data.train.y.to(device)
    size = min(config.batch, len(data.train))
    order = [i for e in range(config.epochs) for i in batches(data.train, size, seed, e, drop_last=True)]
    optimizer = torch.optim.Adam(wide.parameters(), lr=config.lr, fused=device != "cpu")
    for t, index in enumerate(tqdm(order, mininterval=10, desc=f"{bits} bits, seed {seed}, cells {first}")):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (1 + math.cos(math.pi * t / len(order))) / 2
        index = index.to(device)
        logits = wide(x[index])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), y[index].repeat(len(logits)), reduction="sum") / size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if not torch.isfinite(loss):
        raise FloatingPointError("a training loss is not finite")
    wide.eval()
    with torch.no_grad():
        test, validation = (
            torch.cat([wide(part.to(device)).argmax(2) for part in split.x.split(250)], 1)
            .eq(split.y.to(device)).double().mean(1).tolist()
            for split in (data.test, data.validation)
        )  # fmt: skip
    return list(zip(test, validation, networks, strict=True))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", choices=tuple(table.RECIPES))
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--bits", type=int, nargs="+", default=[1, 32])
    p.add_argument("--first", type=int, nargs="+", default=list(range(M)), help="first operations of the cells")
    p.add_argument("--together", type=int, default=4, help="first operations trained at once: 64 cells each")
    p.add_argument("--out")
    p.add_argument("--root")
    p.add_argument("--device", default="cuda")
    args = p.parse_args()
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    recipe, path = table.RECIPES[args.data], Path(args.out or f"runs/microbench-{args.data}.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.lock(path):
        train_all(args, recipe, path)


def train_all(args: argparse.Namespace, recipe: table.Recipe, path: Path) -> None:
    """Train the cells that the table at `path` lacks."""
    done, data = table.opened(path, recipe), recipe.load(args.root)
    for seed, bits, k in itertools.product(args.seeds, args.bits, range(0, len(args.first), args.together)):
        first = args.first[k : k + args.together]
        cells = [M * M * a + i for a in first for i in range(M * M)]
        if done.issuperset((cell, bits, seed) for cell in cells):
            continue
        started = time.perf_counter()
        results = train(data, bits, seed, first, dataclasses.replace(recipe.config, seed=seed), args.device)
        seconds = (time.perf_counter() - started) / len(cells)
        rows = []
        for cell, (test, validation, network) in zip(cells, results, strict=True):
            if (cell, bits, seed) not in done:
                s = network.size()
                result = TrainResult(test, validation, s["one_bit"], s["real"], s["bits"], (), seconds, network)
                rows.append(build.row(cell, bits, seed, result, data.test.x[0]))
        table.append(path, "".join(rows))


if __name__ == "__main__":
    main()
