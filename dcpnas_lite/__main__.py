"""Command line: python -m dcpnas_lite COMMAND, one of `COMMANDS`."""

from __future__ import annotations

import argparse
import io
import sys
from importlib import import_module

from . import __version__
from .commands.shared import guarded

#: Command → the module with its `add_arguments(parser)` and `main(args)`, and its line of help.
COMMANDS = {
    "search": ("commands.search", "search a cell"),
    "train": ("commands.train", "train a found cell"),
    "export": ("commands.export", "write a trained network for use, in packed words or as ONNX"),
    "predict": ("commands.predict", "classify images by a packed network"),
    "show": ("commands.show", "look at a search"),
    "equations": ("commands.equations", "check every equation"),
    "microbench": ("commands.microbench", "the table of all 512 micro cells"),
}


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments of a command; `args.main` runs it. No other command's module is imported: --help is quick."""
    top = argparse.ArgumentParser(prog="python -m dcpnas_lite", description="Search, train and look at 1-bit cells.")
    top.add_argument("--version", action="version", version=f"dcpnas_lite {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, what) in COMMANDS.items():
        p = commands.add_parser(name, help=what)
        if argv[:1] == [name]:
            command = import_module(f".{module}", __package__)
            command.add_arguments(p)
            p.set_defaults(main=command.main)
    return top.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run a command; 2 and one line on standard error where the input is wrong."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show α shows a question mark
    args = parse(sys.argv[1:] if argv is None else argv)
    return guarded(args.main, args)


if __name__ == "__main__":
    sys.exit(main())
