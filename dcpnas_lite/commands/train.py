"""python -m dcpnas_lite train: the discrete network of a cell, trained and tested."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import get_args

import torch

from .. import data, files
from ..engine.training import statistics
from ..evaluation.training import TrainConfig, save, train
from ..network.genotype import PUBLISHED
from ..network.operations import Block
from .folder import read_genotype, read_run
from .shared import add_data, add_device, set_threads, torch_device


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The arguments of `python -m dcpnas_lite train`."""
    p.description = "Train the discrete network of a cell and test it."
    p.add_argument("cell", help="folder of a search, a genotype.json, or 'published' for the authors' cell")
    add_data(p, None)
    p.add_argument("--bits", type=int, default=1, choices=(1, 32), help="1-bit or real-valued network (default: 1)")
    p.add_argument("--block", choices=get_args(Block), help="the 1-bit convolutions (default: those of the search, else plain)")
    p.add_argument("--seeds", type=int, default=1, metavar="N", help="train with seeds 0 … N-1 (default: 1)")
    for name, kind in (("channels", int), ("layers", int), ("epochs", int), ("batch", int), ("lr", float)):
        p.add_argument(f"--{name}", type=kind, help=f"{name} of the training recipe")
    add_device(p)


def main(args: argparse.Namespace) -> None:
    """Run `python -m dcpnas_lite train` with parsed arguments."""
    set_threads(args.threads)
    device, path, settings = torch_device(args.device), Path(args.cell), {}
    if args.cell == "published":
        genotype = PUBLISHED
    elif path.is_dir():
        settings, genotype = read_run(path), read_genotype(path / "genotype.json")
    else:
        genotype = read_genotype(path)
    name = args.data or settings.get("data", "digits")
    source = data.load(name, args.root or settings.get("root"))
    given = {k: getattr(args, k) for k in ("channels", "layers", "epochs", "batch", "lr") if getattr(args, k) is not None}
    if args.block and args.bits == 32:
        raise ValueError(f"--block: expected with --bits 1 alone, got {args.block} with --bits 32")
    if args.bits == 1:
        block = args.block or settings.get("search", {}).get("block", "plain")
        given |= {"block": block, "statistics": statistics(block)}
    if args.seeds < 1:
        raise ValueError(f"--seeds: expected at least 1, got {args.seeds}")
    print(genotype)
    accuracies = []
    for seed in range(args.seeds):
        options = dict(progress=not args.quiet, device=device, precision=args.precision)
        result = train(genotype, source, args.bits, TrainConfig(seed=seed, **given), **options)
        accuracies.append(result.test_accuracy)
        row = {
            "data": name, "bits": args.bits, "block": given.get("block"), "precision": args.precision, "seed": seed,
            "test_accuracy": result.test_accuracy, "validation_accuracy": result.validation_accuracy,
            "one_bit_parameters": result.one_bit, "real_parameters": result.real, "size_in_bits": result.bits,
            "seconds": round(result.seconds, 1),
        }  # fmt: skip
        print(
            f"seed {seed}: {args.bits}-bit test accuracy {result.test_accuracy:.4f}, "
            f"validation {result.validation_accuracy:.4f}, {result.bits:,} bits, {result.seconds:.0f} s",
            flush=True,
        )
        if path.is_dir():
            target = path / f"train-{args.bits}bit-seed{seed}.json"
            save(target.with_suffix(".safetensors"), result.network, source)
            files.write(target, json.dumps(row, indent=1) + "\n")
    if args.seeds > 1:
        mean = torch.tensor(accuracies).mean().item()
        print(f"mean of {args.seeds} seeds: {mean:.4f}")
