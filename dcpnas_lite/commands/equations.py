"""python -m dcpnas_lite equations: every equation of the table, checked."""

from __future__ import annotations

import argparse

from ..checks import equations


def add_arguments(p: argparse.ArgumentParser) -> None:
    """It takes none."""
    p.description = "Check Eqs. 4.20-4.53 and print the table."


def main(args: argparse.Namespace) -> None:
    """Run `python -m dcpnas_lite equations`."""
    print(equations.report())
