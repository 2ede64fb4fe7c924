"""What the commands share: their common arguments, and the guard that turns an error into one line and a status."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def add_data(p: argparse.ArgumentParser, default: str | None = "digits") -> None:
    """--data and --root."""
    what = default or "that of the search, else digits"
    p.add_argument("--data", default=default, choices=("digits", "fashion_mnist", "cifar10"), help=f"data set (default: {what})")
    p.add_argument("--root", metavar="DIR", help="folder of the data files (the digits need none)")


def add_device(p: argparse.ArgumentParser) -> None:
    """--device, --precision, --threads and --quiet."""
    from ..network.precision import PRECISIONS

    p.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    p.add_argument("--precision", default="float32", choices=PRECISIONS, help="of the forward passes (default: float32)")
    p.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1; small networks do not gain by more)")
    p.add_argument("--quiet", action="store_true", help="no progress bar")


def add_scheduler(p: argparse.ArgumentParser) -> None:
    """--scheduler."""
    p.add_argument("--scheduler", metavar="tcp://HOST:8786", help="Dask scheduler whose workers take the place of processes; "
                   "they see the same folders (pip install 'dcpnas-lite[cluster]')")  # fmt: skip


def torch_device(name: str) -> torch.device:
    """The torch device of that name; ValueError where this machine or this torch has none."""
    import torch

    try:
        return torch.empty(0, device=name).device
    except Exception as error:  # RuntimeError, AssertionError, NotImplementedError: it depends on how torch was built
        raise ValueError(f"--device: expected one that torch has here, got {name!r} ({one_line(error)[:120]})") from None


def set_threads(threads: int) -> None:
    """Let torch compute with that many threads."""
    import torch

    if not 1 <= threads <= (most := os.cpu_count() or 1):
        raise ValueError(f"--threads: expected 1 to {most}, the processors of this machine, got {threads}")
    torch.set_num_threads(threads)


def guarded(command: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
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
    except (KeyError, AssertionError, TypeError, ValueError, OSError, ImportError, ArithmeticError, RuntimeError,
            MemoryError) as error:  # fmt: skip
        line, status = what_is_wrong(error), 2
    print(f"dcpnas_lite: {line}", file=sys.stderr)
    return status


def what_is_wrong(error: Exception) -> str:
    """One line for a person: what an error says, with its kind where that alone says little."""
    if isinstance(error, MemoryError):
        return f"not enough memory {one_line(error)}".strip()
    if isinstance(error, ValueError | OSError | ImportError | ArithmeticError | RuntimeError):
        return one_line(error)
    return f"{type(error).__name__}: {one_line(error)}"  # torch's too, "Torch not compiled with CUDA enabled"


def one_line(error: BaseException) -> str:
    """What an error says."""
    return " ".join(str(error).split())
