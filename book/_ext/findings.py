"""What the first page says in figures: three findings from the package's tables, and the hours from the chapters' own lines.

They are made when the book is built, so that they cannot be older than what they report.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import numpy as np
import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from dcpnas_lite.checks import equations
from dcpnas_lite.evaluation import microbench as mb

BOOK = Path(__file__).resolve().parents[1]
HEART = "II. The derivation"  # the part that is the short route
TIME = re.compile(r"^\*\*Time\*\*: (\d+) minutes to read(?:, (\d+) with the exercises)?", re.MULTILINE)


def corrected() -> tuple[int, int, int, int]:
    """Lines of 4.42–4.50 that cannot stand as printed, all of these lines; the same of all equations."""
    heart = [equations.get(number) for number in equations.MOVED]
    wrong = [sum(e.verdict == "corrected" for e in lines) for lines in (heart, equations.TABLE)]
    return wrong[0], len(heart), wrong[1], len(equations.TABLE)


def found(table: str) -> dict[tuple[str, str], dict[int, int]]:
    """(method, reading) → seed → cell."""
    searches = mb.searches_found(table).fillna({"selection": "strength"})
    groups = searches.groupby(["method", "selection"])
    return {key: dict(zip(group["seed"], group["cell"], strict=True)) for key, group in groups}


def parent_adds() -> tuple[tuple[float, float, float], int]:
    """Accuracy points of Parent and Child above the Child alone on the same seed: mean and 95 % interval, number of pairs."""
    bench, cells = mb.MicroBench.load("digits"), found("default-digits")
    both, alone = (cells[method, "perturbation"] for method in ("dcp-nas", "bnas"))
    points = [100 * (bench.accuracy(both[seed]) - bench.accuracy(alone[seed])) for seed in both]
    return mb.interval(points, np.mean), len(points)


def readings() -> tuple[float, float, int]:
    """Median percentile of the found cell by strength and by perturbation, from the same supernets; their number."""
    bench, cells = mb.MicroBench.load("digits"), found("default-digits")
    by = [[bench.percentile(c) for c in cells["dcp-nas", r].values()] for r in ("strength", "perturbation")]
    assert cells["dcp-nas", "strength"].keys() == cells["dcp-nas", "perturbation"].keys()
    return float(np.median(by[0])), float(np.median(by[1])), len(by[0])


def signed(value: float) -> str:
    return f"{value:+z.1f}".replace("+0.0", "0.0").replace("-", "−")


def findings() -> list[tuple[str, str]]:
    """(figure, what it is) of each, as Markdown."""
    wrong, heart, wrong_of_all, every = corrected()
    (mean, low, high), pairs = parent_adds()
    strength, perturbation, searches = readings()
    return [
        (
            f"{wrong} of {heart} lines",
            "from the coupled objective [(4.42)](#eq-4-42) to the update [(4.50)](#eq-4-50) cannot stand as printed; of all "
            f"{every} equations, {wrong_of_all}. [What replaces them](at-a-glance.ipynb)",
        ),
        (
            f"{signed(mean)} points",
            f"of accuracy is what the [Parent](glossary.md#parent) adds to the [Child](glossary.md#child) alone, read by "
            f"perturbation (95 % interval {signed(low)} to {signed(high)}, {pairs} pairs of searches on digits). "
            "[Does it work?](12-does-it-work.ipynb)",
        ),
        (
            f"{strength:.0f} → {perturbation:.0f}",
            f"is the median [percentile](glossary.md#percentile) of the found cell once the same {searches} supernets are "
            "asked, not read by [the strength of α](glossary.md#strength-of-alpha). [How to ask](13-reading-a-cell.ipynb)",
        ),
    ]


def minutes() -> dict[str, tuple[int, int]]:
    """Page → minutes to read, and with the exercises, of every chapter, as its own line on time says."""
    times = {}
    for path in sorted(BOOK.glob("[0-9][0-9]-*.ipynb")):
        line = TIME.search(nbformat.read(path, as_version=4).cells[0].source)
        if line:
            times[path.stem] = int(line[1]), int(line[2] or line[1])
    return times


def hours(total: float) -> str:
    """To the half hour, "2½"."""
    whole, half = divmod(round(total / 30), 2)
    return f"{whole or ''}{'½' * half}"


def heart() -> list[str]:
    parts = yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf8"))["parts"]
    (files,) = ([chapter["file"] for chapter in part["chapters"]] for part in parts if part["caption"] == HEART)
    return files


def time_needed() -> str:
    times, short = minutes(), heart()
    route = sum(read for page, (read, _) in times.items() if page in short)
    read, all_of_it = (sum(column) for column in zip(*times.values(), strict=True))
    return (
        f"**Short route**: part II alone, about {hours(route)} hours. All chapters take about {hours(read)} hours to read, "
        f"{hours(all_of_it)} with their exercises; the code of each runs in a minute or two, without a GPU."
    )


class Findings(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        for path in mb.TABLES.glob("*"):
            self.env.note_dependency(str(path))
        frame = nodes.container(classes=["findings"])
        for figure, text in findings():
            frame += nodes.container("", *self.parse_text_to_nodes(f"**{figure}**\n\n{text}"), classes=["finding"])
        return [frame]


class TimeNeeded(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        for path in BOOK.glob("[0-9][0-9]-*.ipynb"):
            self.env.note_dependency(str(path))
        return self.parse_text_to_nodes(time_needed())


def setup(app: Sphinx) -> dict[str, object]:
    app.add_directive("findings", Findings)
    app.add_directive("time-needed", TimeNeeded)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
