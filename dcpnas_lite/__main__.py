"""Command line: python -m dcpnas_lite search | train | show | equations | microbench."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import signal
import sys
from pathlib import Path

RESULTS = ("config.json", "genotype.json", "history.npz", "cell.png")


def parser() -> argparse.ArgumentParser:
    from .algorithm.loop import METHODS, SPACES, SearchConfig
    from .evaluation import microbench

    top = argparse.ArgumentParser(prog="python -m dcpnas_lite", description="Search, train and look at 1-bit cells.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    what = "Search a cell with Algorithm 10 and write it to a folder. An unfinished search there is resumed."
    p = commands.add_parser("search", help="search a cell", description=what)
    p.add_argument("--space", default="micro", choices=tuple(SPACES), help="search space (default: micro, 512 cells)")
    add_data(p)
    p.add_argument("--method", default="dcp-nas", choices=tuple(METHODS), help="search method (default: dcp-nas)")
    p.add_argument("--seed", type=int, default=0, help="seed of weights, α and data order (default: 0)")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    fields = ", ".join(f.name for f in dataclasses.fields(SearchConfig) if f.name not in ("space", "seed"))
    p.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changes", help=f"change a setting: {fields}")
    add_device(p)

    p = commands.add_parser("train", help="train a found cell", description="Train the discrete network of a cell and test it.")
    p.add_argument("cell", help="folder of a search, a genotype.json, or 'published' for the authors' cell")
    add_data(p, None)
    p.add_argument("--bits", type=int, default=1, choices=(1, 32), help="1-bit or real-valued network (default: 1)")
    p.add_argument("--seeds", type=int, default=1, metavar="N", help="train with seeds 0 … N-1 (default: 1)")
    for name, kind in (("channels", int), ("layers", int), ("epochs", int), ("batch", int), ("lr", float)):
        p.add_argument(f"--{name}", type=kind, help=f"{name} of the training recipe")
    add_device(p)

    p = commands.add_parser("show", help="look at a search", description="Print the result of a search and draw its course.")
    p.add_argument("run", type=Path, help="folder of a search")

    commands.add_parser("equations", help="check every equation", description="Check Eqs. 4.20-4.53 and print the table.")

    p = commands.add_parser("microbench", help="the table of all 512 micro cells")
    microbench.add_arguments(p)
    return top


def add_data(p: argparse.ArgumentParser, default: str | None = "digits") -> None:
    """--data and --root."""
    what = default or "that of the search, else digits"
    p.add_argument("--data", default=default, choices=("digits", "fashion_mnist", "cifar10"), help=f"data set (default: {what})")
    p.add_argument("--root", metavar="DIR", help="folder of the data files (the digits need none)")


def add_device(p: argparse.ArgumentParser) -> None:
    """--device and --threads."""
    p.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    p.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1; small networks do not gain by more)")
    p.add_argument("--quiet", action="store_true", help="no progress bar")


def write(path: Path, text: str | bytes) -> None:
    """Write a file atomically."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(text if isinstance(text, bytes) else text.encode())
    os.replace(part, path)


def draw(figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write(path, buffer.getvalue())


def read_run(folder: Path) -> dict:
    """The config.json of a search folder."""
    try:
        return json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder}: expected the folder of a search, but it holds no config.json") from None
    except json.JSONDecodeError:
        raise ValueError(f"{folder / 'config.json'}: expected JSON, got something else") from None


def read_genotype(path: Path):
    from .network.genotype import Genotype

    try:
        return Genotype.from_json(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file (is the search finished?)") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def run_search(args: argparse.Namespace) -> None:
    import numpy as np
    import torch

    from . import data, plots
    from .algorithm.loop import SPACE_DEFAULTS, SearchConfig, SearchStopped, search

    torch.set_num_threads(args.threads)
    changes = SPACE_DEFAULTS[args.space] | {"space": args.space, "seed": args.seed} | parse_changes(args.changes)
    config = SearchConfig.method(args.method, **changes)
    settings = json.dumps({"data": args.data, "root": args.root, "search": dataclasses.asdict(config)}, indent=1)
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    if (out / "config.json").exists() and read_run(out) != json.loads(settings):
        raise ValueError(f"{out}: holds a search with other settings; choose another --out or delete it")
    if (out / "genotype.json").exists():
        print(f"{out}: this search is finished already")
        return print_result(out)
    source = data.load(args.data, args.root)
    write(out / "config.json", settings)
    stop = []
    old = signal.signal(signal.SIGINT, lambda *_: stop.append(True))  # finish the step, save, then leave
    try:
        options = dict(progress=not args.quiet, checkpoint=out / "checkpoint.pt", device=args.device)
        result = search(source, config, callback=lambda _: bool(stop), **options)
    except SearchStopped as stopped:
        print(f"{stopped}; the same command goes on from here")
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, old)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **result.history, **{f"final/{t}": a.numpy() for t, a in result.alphas.items()})
    write(out / "history.npz", buffer.getvalue())
    draw(plots.cell(result.genotype), out / "cell.png")
    write(out / "genotype.json", result.genotype.to_json() + "\n")
    print_result(out)
    print(f"searched in {result.seconds:.0f} s; written to {out}: {', '.join(RESULTS)}")


def parse_changes(pairs: list[str]) -> dict:
    """NAME=VALUE pairs as typed values of SearchConfig's fields."""
    from .algorithm.loop import SearchConfig

    kinds, changes = {f.name: type(f.default) for f in dataclasses.fields(SearchConfig)}, {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or name not in kinds:
            raise ValueError(f"--set: expected NAME=VALUE with a setting of the search, got {pair!r}")
        try:
            changes[name] = {"True": True, "False": False}[value] if kinds[name] is bool else kinds[name](value)
        except (KeyError, ValueError):
            raise ValueError(f"--set {name}: expected a value of type {kinds[name].__name__}, got {value!r}") from None
    return changes


def print_result(folder: Path) -> None:
    settings = read_run(folder)
    search = settings["search"]
    print(f"space {search['space']}, data {settings['data']}, seed {search['seed']}")
    print(read_genotype(folder / "genotype.json"))


def run_train(args: argparse.Namespace) -> None:
    import torch

    from . import data
    from .evaluation.training import TrainConfig, train
    from .network.genotype import PUBLISHED

    torch.set_num_threads(args.threads)
    path, settings = Path(args.cell), {}
    if args.cell == "published":
        genotype = PUBLISHED
    elif path.is_dir():
        settings, genotype = read_run(path), read_genotype(path / "genotype.json")
    else:
        genotype = read_genotype(path)
    name = args.data or settings.get("data", "digits")
    source = data.load(name, args.root or settings.get("root"))
    given = {k: getattr(args, k) for k in ("channels", "layers", "epochs", "batch", "lr") if getattr(args, k) is not None}
    if args.seeds < 1:
        raise ValueError(f"--seeds: expected at least 1, got {args.seeds}")
    print(genotype)
    accuracies = []
    for seed in range(args.seeds):
        result = train(genotype, source, args.bits, TrainConfig(seed=seed, **given), progress=not args.quiet, device=args.device)
        accuracies.append(result.test_accuracy)
        row = {
            "data": name, "bits": args.bits, "seed": seed, "test_accuracy": result.test_accuracy,
            "validation_accuracy": result.validation_accuracy, "one_bit_parameters": result.one_bit,
            "real_parameters": result.real, "size_in_bits": result.bits, "seconds": round(result.seconds, 1),
        }  # fmt: skip
        print(
            f"seed {seed}: {args.bits}-bit test accuracy {result.test_accuracy:.4f}, "
            f"validation {result.validation_accuracy:.4f}, {result.bits:,} bits, {result.seconds:.0f} s",
            flush=True,
        )
        if path.is_dir():
            target = path / f"train-{args.bits}bit-seed{seed}.json"
            write(target, json.dumps(row, indent=1) + "\n")
    if args.seeds > 1:
        mean = torch.tensor(accuracies).mean().item()
        print(f"mean of {args.seeds} seeds: {mean:.4f}")


def run_show(args: argparse.Namespace) -> None:
    from . import plots
    from .course import Course

    course = Course.load(args.run)
    history, space, genotype = course.history, course.space, course.genotype
    text = course.report()
    print(text, end="")
    write(args.run / "report.txt", text)
    figures = {"cell.png": plots.cell(genotype)}
    figures["mix.png"] = plots.mix({t: history[f"final/{t}"] for t in space.cell_types}, space, genotype)
    if course.steps:
        figures |= {"losses.png": plots.losses(history), "collapse.png": plots.collapse(history, space)}
        for t in space.cell_types:
            figures[f"trajectories-{t}.png"] = plots.trajectories(history, space, t)
            for network in map(str.lower, course.networks if f"psi/{t}" in history else ()):
                figures[f"psi-{network}-{t}.png"] = plots.psi(history, space, t, network)
    for name, figure in figures.items():
        draw(figure, args.run / name)
    print(f"written to {args.run}: report.txt, {', '.join(figures)}")


def run_equations(args: argparse.Namespace) -> None:
    from . import equations

    print(equations.report())


def run_microbench(args: argparse.Namespace) -> int:
    from .evaluation import microbench

    return microbench.main(args)


def main(argv: list[str] | None = None) -> int:
    """Run a command; 2 and one line on standard error where the input is wrong."""
    args = parser().parse_args(argv)
    try:
        return COMMANDS[args.command](args) or 0
    except (ValueError, OSError, ImportError, FloatingPointError, RuntimeError) as error:
        print(f"dcpnas_lite: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


COMMANDS = {"search": run_search, "train": run_train, "show": run_show, "equations": run_equations, "microbench": run_microbench}

if __name__ == "__main__":
    sys.exit(main())
