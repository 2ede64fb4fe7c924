"""The folder of a search: the files that a search leaves there, how they are read again, and whether it is finished."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from .. import files
from ..engine.config import SearchConfig
from ..network.genotype import Genotype
from .shared import one_line

RESULTS = ("config.json", "genotype.json", "history.npz", "summary.json", "cell.png")
SETTINGS, SUMMARY = "the settings of a search", "the summary of a search"  # what config.json and summary.json are


def read_run(folder: Path) -> dict:
    """The config.json of a search folder."""
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder}: expected the folder of a search, but it holds no config.json")
    settings = files.unseal(folder / "config.json", SETTINGS)
    if not isinstance(settings.get("search"), dict) or not isinstance(settings.get("data"), str):
        raise ValueError(f"{folder / 'config.json'}: expected {SETTINGS}, got something else")
    return settings


def read_genotype(path: Path) -> Genotype:
    """A genotype in our JSON or in the text form of DARTS."""
    try:
        text = files.read(path, "a genotype", 1 << 20).decode()
        return Genotype.from_darts(text) if text.lstrip().startswith("Genotype(") else Genotype.from_json(text)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file (is the search finished?)") from None
    except ValueError as error:
        raise error if str(error).startswith(str(path)) else ValueError(f"{path}: {error}") from None


def read_summary(folder: Path) -> dict:
    """The summary.json of a finished search."""
    try:
        return files.unseal(folder / "summary.json", SUMMARY)
    except FileNotFoundError:
        raise ValueError(f"{folder}: expected {SUMMARY}, but it holds no summary.json: "
                         "delete its genotype.json, and the same command makes both again") from None  # fmt: skip


def cell_text(genotype: Genotype) -> str:
    """A genotype in one line."""
    return str(genotype).replace("\n", "; ")


def finished(out: Path, made_by: dict) -> bool:
    """Whether `out` holds the finished search with the settings `made_by`; ValueError where it is another one or damaged."""
    if not (out / "config.json").exists():
        return False
    there, here = ({k: v for k, v in run.items() if k != "root"} for run in (read_run(out), made_by))
    with contextlib.suppress(TypeError, ValueError):  # an earlier search lacks the fields that had no choice then
        there["search"] = dataclasses.asdict(SearchConfig(**there["search"]))
    if there != here:
        raise ValueError(f"{out}: holds a search with other settings; choose another --out or delete it")
    if not (out / "genotype.json").exists():
        return False
    if read_summary(out)["cell"] != cell_text(read_genotype(out / "genotype.json")):
        raise ValueError(f"{out / 'genotype.json'}: damaged or changed, summary.json tells of another cell: "
                         "delete it, and the same command makes it again from its checkpoint")  # fmt: skip
    return True


def draw(figures: Mapping[str, Callable], folder: Path) -> list[str]:
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
