"""Command line: python -m dcpnas_lite search | train | show | equations | microbench."""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import io
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import files

if TYPE_CHECKING:
    from .data import Data

RESULTS = ("config.json", "genotype.json", "history.npz", "summary.json", "cell.png")
SETTINGS, SUMMARY = "the settings of a search", "the summary of a search"  # what config.json and summary.json are
MOST_SEEDS = 10_000


def parser() -> argparse.ArgumentParser:
    from .engine.config import METHODS, SPACES, SearchConfig
    from .evaluation import command

    top = argparse.ArgumentParser(prog="python -m dcpnas_lite", description="Search, train and look at 1-bit cells.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    what = "Search a cell with Algorithm 10 and write it to a folder. An unfinished search there is resumed."
    p = commands.add_parser("search", help="search a cell", description=what)
    p.add_argument("--space", default="micro", choices=tuple(SPACES), help="search space (default: micro, 512 cells)")
    add_data(p)
    p.add_argument("--method", default="dcp-nas", choices=tuple(METHODS), help="search method (default: dcp-nas)")
    seeds = p.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, default=0, help="seed of weights, α and data order (default: 0)")
    seeds.add_argument("--seeds", metavar="LIST", help="several searches, as 0-9 or 0,3,5: DIR/seed-K and DIR/searches.csv")
    p.add_argument("--workers", type=int, default=2, help="with --seeds: processes, one search each (default: 2)")
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
    command.add_arguments(p)
    return top


def add_data(p: argparse.ArgumentParser, default: str | None = "digits") -> None:
    """--data and --root."""
    what = default or "that of the search, else digits"
    p.add_argument("--data", default=default, choices=("digits", "fashion_mnist", "cifar10"), help=f"data set (default: {what})")
    p.add_argument("--root", metavar="DIR", help="folder of the data files (the digits need none)")


def add_device(p: argparse.ArgumentParser) -> None:
    """--device, --precision and --threads."""
    from .network.precision import PRECISIONS

    p.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    p.add_argument("--precision", default="float32", choices=PRECISIONS, help="of the forward passes (default: float32)")
    p.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1; small networks do not gain by more)")
    p.add_argument("--quiet", action="store_true", help="no progress bar")


def draw(figures: dict, folder: Path) -> list[str]:
    """Write figures (name → function that makes one) as PNG; returns the names. One that fails is a warning: results stay."""
    written = []
    for name, figure in figures.items():
        buffer = io.BytesIO()
        try:
            figure().savefig(buffer, format="png", dpi=150)
        except Exception as error:  # whatever the matplotlib of this machine is set to
            print(f"dcpnas_lite: {folder / name} is not drawn: {one_line(error)}", file=sys.stderr)
        else:
            files.write(folder / name, buffer.getvalue())
            written.append(name)
    return written


def read_run(folder: Path) -> dict:
    """The config.json of a search folder."""
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder}: expected the folder of a search, but it holds no config.json")
    settings = files.unseal(folder / "config.json", SETTINGS)
    if not isinstance(settings.get("search"), dict) or not isinstance(settings.get("data"), str):
        raise ValueError(f"{folder / 'config.json'}: expected {SETTINGS}, got something else")
    return settings


def read_genotype(path: Path):
    """A genotype in our JSON or in the text form of DARTS."""
    from .network.genotype import Genotype

    try:
        text = files.read(path, "a genotype", 1 << 20).decode()
        return Genotype.from_darts(text) if text.lstrip().startswith("Genotype(") else Genotype.from_json(text)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file (is the search finished?)") from None
    except ValueError as error:
        raise error if str(error).startswith(str(path)) else ValueError(f"{path}: {error}") from None


def settings(args: argparse.Namespace, images: str):
    """(SearchConfig, content of config.json) of a search command; `images` is the data's fingerprint."""
    from .engine.config import SearchConfig

    config = SearchConfig.defaults(args.space, args.data, args.method, **{"seed": args.seed} | parse_changes(args.changes))
    every = {"data": args.data, "root": args.root, "images": images, "precision": args.precision}
    return config, every | {"search": dataclasses.asdict(config)}


def finished(out: Path, made_by: dict) -> bool:
    """Whether `out` holds the finished search with the settings `made_by`; ValueError where it is another one or damaged."""
    if not (out / "config.json").exists():
        return False
    there, here = ({k: v for k, v in run.items() if k != "root"} for run in (read_run(out), made_by))
    if there != here:
        raise ValueError(f"{out}: holds a search with other settings; choose another --out or delete it")
    if not (out / "genotype.json").exists():
        return False
    if read_summary(out)["cell"] != cell_text(read_genotype(out / "genotype.json")):
        raise ValueError(f"{out / 'genotype.json'}: damaged or changed, summary.json tells of another cell: "
                         "delete it, and the same command makes it again from its checkpoint")  # fmt: skip
    return True


def run_search(args: argparse.Namespace) -> int:
    import torch
    import torch.distributed as dist

    processes = int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun
    if args.seeds is not None:
        if processes > 1:
            raise ValueError(f"--seeds: expected a single process, got {processes} of torchrun, which share one search")
        return run_seeds(args)
    set_threads(args.threads)
    if processes == 1:
        return run_one(args, torch_device(args.device), first=True)
    device = torch_device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        return run_one(args, device, first=dist.get_rank() == 0)
    finally:
        dist.destroy_process_group()


def run_one(args: argparse.Namespace, device, first: bool) -> int:
    """One search, perhaps shared with other processes; only the `first` of them writes and prints."""
    from . import data

    source, out = data.load(args.data, args.root), args.out
    if not first:
        return search_into(args, device, source, first)
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with files.lock(out):
            return search_into(args, device, source, first)
    finally:
        if new:
            with contextlib.suppress(OSError):  # not empty: something came of it
                out.rmdir()


def search_into(args: argparse.Namespace, device, source: Data, first: bool) -> int:
    """`run_one` in its folder, which no other search writes to."""
    from .engine.distributed import Group
    from .engine.resume import fingerprint
    from .engine.search import SearchStopped, search
    from .report import plots

    out: Path = args.out
    config, made_by = settings(args, fingerprint(source))
    if Group.current(device).any(first and finished(out, made_by)):
        if first:
            print(f"{out}: this search is finished already")
            print_result(out)
        return 0
    stop = []

    def remember(_=None) -> bool:
        if first and not (out / "config.json").exists():  # not before a step was possible
            files.write(out / "config.json", files.seal(made_by, SETTINGS))
        return bool(stop)

    with sigint(lambda *_: stop.append(True)):  # finish the step, save, then leave
        block_sigint(False)  # blocked where run_seeds started this process
        options = dict(checkpoint=out / "checkpoint.npz", device=device, precision=args.precision, progress=not args.quiet)
        try:
            result = search(source, config, callback=remember, **options)
        except SearchStopped as stopped:
            if first:
                print(f"{stopped}; the same command goes on from here", flush=True)
            return 130
        if first:
            remember()
            last = {f"final/{t}": a.numpy() for t, a in result.alphas.items()}
            files.write(out / "history.npz", files.arrays_to_bytes(result.history | last, compress=True))
            files.write(out / "summary.json", files.seal(summary(config.seed, result), SUMMARY))
            files.write(out / "genotype.json", result.genotype.to_json() + "\n")  # last: the search is finished
            draw({"cell.png": partial(plots.cell, result.genotype)}, out)
            print_result(out)
            print(f"searched in {result.seconds:.0f} s; written to {out}: {', '.join(n for n in RESULTS if (out / n).exists())}")
    return 0


def summary(seed: int, result) -> dict:
    """A search in one row: its cell, and the last losses and the last distance D; null where there is none."""
    row = {"seed": seed, "cell": cell_text(result.genotype)}
    for code, name in enumerate(("parent", "child")):
        for quantity in ("weight_loss", "alpha_loss"):
            values = result.history[quantity][result.history["network"] == code] if result.history else ()
            row[f"{name}_{quantity}"] = float(values[-1]) if len(values) else None
    distances = [d for d in result.history.get("distance", ()) if not math.isnan(d)]
    return row | {"distance": float(distances[-1]) if distances else None, "seconds": round(result.seconds, 1)}


def cell_text(genotype) -> str:
    """A genotype in one line."""
    return str(genotype).replace("\n", "; ")


def run_seeds(args: argparse.Namespace) -> int:
    """One search per seed, each in a process of its own; SIGINT and SIGKILL end them all, and the same command goes on."""
    from . import data
    from .engine.resume import fingerprint

    if args.workers < 1:
        raise ValueError(f"--workers: expected at least 1, got {args.workers}")
    set_threads(args.threads)
    wanted, waiting, done = parse_seeds(args.seeds), [], []
    images = fingerprint(data.load(args.data, args.root))  # where data are missing, one line says so, not one for each seed
    for seed in sorted(seed_folders(args.out).keys() | set(wanted)):  # those in the table all have the same settings
        job = argparse.Namespace(**vars(args) | {"seed": seed, "seeds": None, "quiet": True, "out": args.out / f"seed-{seed}"})
        if not finished(job.out, settings(job, images)[1]):
            waiting += [job] if seed in wanted else []
        elif seed in wanted:
            done.append(job)
    args.out.mkdir(parents=True, exist_ok=True)
    with files.lock(args.out):
        for job in done:
            print_seed(job.out)
        write_table(args.out)
        return run_jobs(args, waiting)


def seed_folders(out: Path) -> dict[int, Path]:
    """Seed → folder; a copy under another name is none of them."""
    names = {int(path.name[5:]): path for path in out.glob("seed-*") if path.name[5:].isdecimal() and path.is_dir()}
    return {seed: path for seed, path in names.items() if path.name == f"seed-{seed}"}


def run_jobs(args: argparse.Namespace, waiting: list[argparse.Namespace]) -> int:
    """The searches that are left, `args.workers` at a time."""
    from .__main__ import search_in_worker  # by the name under which a new process finds it

    running, stop, left, failed = {}, [], [], []
    context = multiprocessing.get_context("spawn")
    with sigint(lambda *_: stop.append(True)):
        while running or (waiting and not stop):
            while waiting and len(running) < args.workers and not stop:
                process = context.Process(target=search_in_worker, args=(waiting[0],))
                block_sigint(True)  # the worker inherits it: see run_one
                process.start()
                block_sigint(False)
                running[process] = waiting.pop(0)
            multiprocessing.connection.wait([process.sentinel for process in running], timeout=0.2)
            for process, job in list(running.items()):
                if process.exitcode is None:
                    if stop:
                        os.kill(process.pid, signal.SIGINT)
                    continue
                del running[process]
                if process.exitcode == 0:
                    write_table(args.out)
                    print_seed(job.out)
                else:
                    (left if process.exitcode in (130, -signal.SIGINT) else failed).append(job.seed)
    if failed:
        raise RuntimeError(f"failed: seeds {', '.join(map(str, failed))}; the same command tries them again")
    if left or waiting:
        print("stopped; the same command goes on from here")
        return 130
    print(f"written to {args.out}: searches.csv, and for every seed a folder seed-K")
    return 0


def search_in_worker(args: argparse.Namespace) -> None:
    """What a worker process of run_seeds does."""

    def leave_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)  # it was killed; as after any kill, the checkpoint stays

    threading.Thread(target=leave_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, lambda *_: None)  # run_one's own handler stands while there is something to save
    with contextlib.redirect_stdout(io.StringIO()):
        status = guarded(run_search, args, f"dcpnas_lite: seed {args.seed}")
    sys.exit(status)


@contextlib.contextmanager
def sigint(handler):
    """Handle Ctrl-C by `handler` in this block."""
    old = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)


def block_sigint(block: bool) -> None:
    """Hold Ctrl-C back, or let it through again; Windows cannot."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK if block else signal.SIG_UNBLOCK, {signal.SIGINT})


def set_threads(threads: int) -> None:
    """Let torch compute with that many threads."""
    import torch

    if not 1 <= threads <= (most := os.cpu_count() or 1):
        raise ValueError(f"--threads: expected 1 to {most}, the processors of this machine, got {threads}")
    torch.set_num_threads(threads)


def torch_device(name: str):
    """The torch device of that name; ValueError where this machine or this torch has none."""
    import torch

    try:
        return torch.empty(0, device=name).device
    except Exception as error:  # RuntimeError, AssertionError, NotImplementedError: it depends on how torch was built
        raise ValueError(f"--device: expected one that torch has here, got {name!r} ({one_line(error)[:120]})") from None


def parse_seeds(text: str) -> list[int]:
    """0-2,7 as [0, 1, 2, 7]."""
    seeds = set()
    for part in text.split(","):
        low, dash, high = part.partition("-")
        if not (low.isdecimal() and (high.isdecimal() if dash else True)) or (dash and int(low) > int(high)):
            raise ValueError(f"--seeds: expected numbers and ranges as in 0-9 or 0,3,5, got {text!r}")
        if int(high or low) - int(low) + len(seeds) >= MOST_SEEDS:
            raise ValueError(f"--seeds: expected at most {MOST_SEEDS:,} seeds, got {text!r}")
        seeds |= set(range(int(low), int(high or low) + 1))
    return sorted(seeds)


def read_summary(folder: Path) -> dict:
    """The summary.json of a finished search."""
    try:
        return files.unseal(folder / "summary.json", SUMMARY)
    except FileNotFoundError:
        raise ValueError(f"{folder}: expected {SUMMARY}, but it holds no summary.json: "
                         "delete its genotype.json, and the same command makes both again") from None  # fmt: skip


def print_seed(folder: Path) -> None:
    row = read_summary(folder)
    print(f"seed {row['seed']}: {row['cell']} ({row['seconds']:.0f} s)", flush=True)


def write_table(out: Path) -> None:
    """searches.csv: the summaries of all finished searches in the folder, by seed."""
    rows = [read_summary(path) for _, path in sorted(seed_folders(out).items()) if (path / "genotype.json").exists()]
    buffer = io.StringIO()
    if rows:
        table = csv.DictWriter(buffer, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    files.write(out / "searches.csv", buffer.getvalue())


def parse_changes(pairs: list[str]) -> dict:
    """NAME=VALUE pairs as typed values of SearchConfig's fields."""
    from .engine.config import SearchConfig

    kinds, changes = {f.name: type(f.default) for f in dataclasses.fields(SearchConfig)}, {}
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
    if args.seeds < 1:
        raise ValueError(f"--seeds: expected at least 1, got {args.seeds}")
    print(genotype)
    accuracies = []
    for seed in range(args.seeds):
        options = dict(progress=not args.quiet, device=device, precision=args.precision)
        result = train(genotype, source, args.bits, TrainConfig(seed=seed, **given), **options)
        accuracies.append(result.test_accuracy)
        row = {
            "data": name, "bits": args.bits, "precision": args.precision, "seed": seed, "test_accuracy": result.test_accuracy,
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
            files.write(target, json.dumps(row, indent=1) + "\n")
    if args.seeds > 1:
        mean = torch.tensor(accuracies).mean().item()
        print(f"mean of {args.seeds} seeds: {mean:.4f}")


def run_show(args: argparse.Namespace) -> None:
    from .report import plots
    from .report.history import FinishedSearch

    course = FinishedSearch.load(args.run)
    history, space, genotype = course.history, course.space, course.genotype
    text = course.report()
    print(text, end="")
    files.write(args.run / "report.txt", text)
    last = {t: history[f"final/{t}"] for t in space.cell_types}
    figures = {"cell.png": partial(plots.cell, genotype), "mix.png": partial(plots.mix, last, space, genotype)}
    if course.steps:
        figures |= {"losses.png": partial(plots.losses, history), "collapse.png": partial(plots.collapse, history, space)}
        for t in space.cell_types:
            figures[f"trajectories-{t}.png"] = partial(plots.trajectories, history, space, t)
            for network in map(str.lower, course.networks if f"psi/{t}" in history else ()):
                figures[f"psi-{network}-{t}.png"] = partial(plots.psi, history, space, t, network)
    print(f"written to {args.run}: {', '.join(['report.txt', *draw(figures, args.run)])}")


def run_equations(args: argparse.Namespace) -> None:
    from .checks import equations

    print(equations.report())


def run_microbench(args: argparse.Namespace) -> int:
    from .evaluation import command

    torch_device(args.device)
    return command.main(args)


def main(argv: list[str] | None = None) -> int:
    """Run a command; 2 and one line on standard error where the input is wrong."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show α shows a question mark
    args = parser().parse_args(argv)
    return guarded(COMMANDS[args.command], args)


def guarded(command, args: argparse.Namespace, name: str = "dcpnas_lite") -> int:
    """The exit status of a command; 2 and one line on standard error where something is wrong, 130 where it was interrupted."""
    try:
        status = command(args) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 0
    except KeyboardInterrupt as interrupt:
        line, status = f"interrupted; {one_line(interrupt) or 'what is written stays, the same command goes on from there'}", 130
    except MemoryError as error:
        line, status = f"not enough memory {one_line(error)}".strip(), 2
    except (KeyError, AssertionError, TypeError) as error:  # torch's too, "Torch not compiled with CUDA enabled"
        line, status = f"{type(error).__name__}: {one_line(error)}", 2
    except (ValueError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
        line, status = one_line(error), 2
    print(f"{name}: {line}", file=sys.stderr)
    return status


def one_line(error: BaseException) -> str:
    """What an error says."""
    return " ".join(str(error).split())


COMMANDS = {"search": run_search, "train": run_train, "show": run_show, "equations": run_equations, "microbench": run_microbench}

if __name__ == "__main__":
    sys.exit(main())
