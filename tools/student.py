"""Write the edition for students: every notebook without the solutions, with its outputs, and the package beside it.

python tools/student.py FOLDER [--wheel FILE]

Hints and code stay as they are: the first cell installs the wheel that lies beside the notebooks, which `make student` builds.
Links to pages of the book that are no notebooks become their text.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
SOLUTION = re.compile(r"\n*<details>\s*<summary>Solution[^<]*</summary>.*?</details>", re.DOTALL)
PAGE = re.compile(r"\[([^\]]*)\]\([\w-]+\.md[^)]*\)")


def without_solutions(text: str) -> str:
    """Markdown without its folded solutions; what stands around them keeps one empty line."""
    if len(re.findall("<details", text)) != len(re.findall("</details>", text)):
        raise SystemExit(f"a <details> is not closed:\n{text}")
    return PAGE.sub(r"\1", SOLUTION.sub("", text)).strip("\n")


def student(path: Path, folder: Path) -> int:
    """Write a notebook's edition into a folder; returns how many solutions it is without."""
    notebook, taken = nbformat.read(path, as_version=4), 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            taken += len(SOLUTION.findall(cell.source))
            cell.source = without_solutions(cell.source)
    notebook.cells = [cell for cell in notebook.cells if cell.source]
    nbformat.validate(notebook)
    nbformat.write(notebook, folder / path.name)
    return taken


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wheel", type=Path, help="the package, put beside the notebooks")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    paths = sorted((ROOT / "book").glob("*.ipynb"))
    taken = sum(student(path, options.folder) for path in paths)
    if options.wheel:
        shutil.copy(options.wheel, options.folder)
    print(f"{len(paths)} notebooks in {options.folder}, without {taken} solutions")


if __name__ == "__main__":
    sys.exit(main())
