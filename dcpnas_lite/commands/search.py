"""python -m dcpnas_lite search: one search, written to a folder and resumed there; with --seeds several, see `seeds`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .. import data, files
from ..engine.config import AS_PRINTED, METHODS, SPACES, SearchConfig
from ..engine.distributed import Group
from ..engine.interrupts import interrupts
from ..engine.resume import fingerprint
from ..engine.search import SearchResult, SearchStopped, search
from ..evaluation.worth import Worth, worth
from .folder import RESULTS, SETTINGS, SUMMARY, cell_text, draw, finished, read_genotype, read_run
from .shared import add_data, add_device, add_scheduler, set_threads, torch_device


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The arguments of `python -m dcpnas_lite search`."""
    p.description = "Search a cell with Algorithm 10 and write it to a folder. An unfinished search there is resumed."
    p.add_argument("--space", default="micro", choices=tuple(SPACES), help="search space (default: micro, 512 cells)")
    add_data(p)
    p.add_argument("--method", default="dcp-nas", choices=tuple(METHODS), help="search method (default: dcp-nas)")
    printed = "the source's own reading: every line as printed, the cell by the strength of α"
    p.add_argument("--as-printed", action="store_true", help=printed)
    seeds = p.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, default=0, help="seed of weights, α and data order (default: 0)")
    seeds.add_argument("--seeds", metavar="LIST", help="several searches, as 0-9 or 0,3,5: DIR/seed-K and DIR/searches.csv")
    p.add_argument("--workers", type=int, default=2, help="with --seeds: processes, one search each (default: 2)")
    add_scheduler(p)
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    fields = ", ".join(f.name for f in dataclasses.fields(SearchConfig) if f.name not in ("space", "seed"))
    p.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changes", help=f"change a setting: {fields}")
    add_device(p)


def main(args: argparse.Namespace) -> int:
    """Run `python -m dcpnas_lite search` with parsed arguments, in this process or, started by torchrun, in several."""
    processes = int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun
    if args.scheduler is not None and args.seeds is None:
        raise ValueError("--scheduler: expected with --seeds; a single search is one job")
    if args.seeds is not None:
        from .seeds import run_seeds

        if processes > 1:
            raise ValueError(f"--seeds: expected a single process, got {processes} of torchrun, which share one search")
        return run_seeds(args)
    set_threads(args.threads)
    if processes == 1:
        return report(*run_one(args, torch_device(args.device)))
    device = torch_device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        return report(*run_one(args, device, first=dist.get_rank() == 0))
    finally:
        dist.destroy_process_group()


def report(status: int, text: str) -> int:
    """Print what there is to say; the status."""
    if text:
        print(text, flush=True)
    return status


def settings(args: argparse.Namespace, images: str) -> tuple[SearchConfig, dict]:
    """(SearchConfig, content of config.json) of a search command; `images` is the data's fingerprint."""
    printed = AS_PRINTED | METHODS[args.method] if args.as_printed else {}
    changes = {"seed": args.seed} | printed | parse_changes(args.changes)
    config = SearchConfig.defaults(args.space, args.data, args.method, **changes)
    every = {"data": args.data, "root": args.root, "images": images, "precision": args.precision}
    return config, every | {"search": dataclasses.asdict(config)}


def parse_changes(pairs: list[str]) -> dict:
    """NAME=VALUE pairs as typed values of SearchConfig's fields."""
    kinds: dict[str, Any] = {f.name: type(f.default) for f in dataclasses.fields(SearchConfig)}
    changes = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or name not in kinds:
            raise ValueError(f"--set: expected NAME=VALUE with a setting of the search, got {pair!r}")
        if name in ("space", "seed"):
            raise ValueError(f"--set: expected --{name} {value} for this setting, got {pair!r}")
        try:
            changes[name] = {"True": True, "False": False}[value] if kinds[name] is bool else kinds[name](value)
        except (KeyError, ValueError):
            raise ValueError(f"--set {name}: expected a value of type {kinds[name].__name__}, got {value!r}") from None
    return changes


def run_one(
    args: argparse.Namespace, device: torch.device, first: bool = True, stopping: Callable[[], bool] | None = None
) -> tuple[int, str]:
    """One search: (exit status, what there is to say).

    first: False in all but one of the processes that share it; they write nothing and have nothing to say. stopping: asked after
    every step; where it is true, the search is saved and left. Without it, Ctrl-C does that.
    """
    source, out = data.load(args.data, args.root), args.out
    if not first:
        return search_into(args, device, source, first, stopping)
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with files.lock(out):
            return search_into(args, device, source, first, stopping)
    finally:
        if new:
            with contextlib.suppress(OSError):  # not empty: something came of it
                out.rmdir()


def search_into(
    args: argparse.Namespace, device: torch.device, source: data.Data, first: bool, stopping: Callable[[], bool] | None
) -> tuple[int, str]:
    """`run_one` in its folder, which no other search writes to."""
    from ..report import plots

    out: Path = args.out
    config, made_by = settings(args, fingerprint(source))
    if Group.current(device).any(first and finished(out, made_by)):
        return 0, f"{out}: this search is finished already\n{result_text(out)}" if first else ""
    with interrupts() as interrupted:

        def after_a_step(_) -> bool:
            remember()
            return bool(interrupted) or (stopping is not None and stopping())

        def remember() -> None:
            if first and not (out / "config.json").exists():  # not before a step was possible
                files.write(out / "config.json", files.seal(made_by, SETTINGS))

        options = dict(checkpoint=out / "checkpoint.npz", device=device, precision=args.precision, progress=not args.quiet)
        try:
            result = search(source, config, callback=after_a_step, **options)
        except SearchStopped as stopped:
            return 130, f"{stopped}; the same command goes on from here" if first else ""
        if not first:
            return 0, ""
        remember()
        last = {f"final/{t}": a.numpy() for t, a in result.alphas.items()}
        files.write(out / "history.npz", files.arrays_to_bytes(result.history | last, compress=True))
        files.write(out / "summary.json", files.seal(summary(config, result, args.data), SUMMARY))
        files.write(out / "genotype.json", result.genotype.to_json() + "\n")  # last: the search is finished
        draw({"cell.png": partial(plots.cell, result.genotype)}, out)
    written = ", ".join(name for name in RESULTS if (out / name).exists())
    return 0, f"{result_text(out)}\nsearched in {result.seconds:.0f} s; written to {out}: {written}"


def summary(config: SearchConfig, result: SearchResult, data_name: str) -> dict:
    """A search in one row: its cell, the last losses and the last distance D, and its `Worth`; null where there is none."""
    row = {"seed": config.seed, "cell": cell_text(result.genotype)}
    for code, name in enumerate(("parent", "child")):
        for quantity in ("weight_loss", "alpha_loss"):
            values = result.history[quantity][result.history["network"] == code] if result.history else []
            row[f"{name}_{quantity}"] = float(values[-1]) if len(values) else None
    distances = [d for d in result.history.get("distance", ()) if not math.isnan(d)]
    row |= {"distance": float(distances[-1]) if distances else None, "seconds": round(result.seconds, 1)}
    value = worth(result.genotype, config.space, data_name, config.block)
    return row | (dataclasses.asdict(value) if value else dict.fromkeys(f.name for f in dataclasses.fields(Worth)))


def result_text(folder: Path) -> str:
    """Where the search of a folder ended."""
    run = read_run(folder)
    config = run["search"]
    where = f"space {config['space']}, data {run['data']}, seed {config['seed']}"
    cell = read_genotype(folder / "genotype.json")
    value = worth(cell, config["space"], run["data"], config.get("block", "plain"))
    return f"{where}\n{cell}" + (f"\n{value}" if value else "")
