"""The edition for students: the notebooks without their solutions, else as they are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import student as tool  # noqa: E402

PATHS = sorted((ROOT / "book").glob("*.ipynb"))


def markdown(path: Path) -> str:
    return "\n\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")


def code(path: Path) -> list[tuple]:
    cells = nbformat.read(path, as_version=4).cells
    return [(c.source, c.outputs, c.execution_count, c.metadata) for c in cells if c.cell_type == "code"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, wheel) -> Path:
    folder = tmp_path_factory.mktemp("student")
    command = [sys.executable, ROOT / "tools" / "student.py", folder, "--wheel", wheel]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.match(rf"{len(PATHS)} notebooks in .*, without \d+ solutions\n$", said) and (folder / wheel.name).exists()
    return folder


@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_solutions_are_gone_and_nothing_else(path, folder):
    before, after = markdown(path), markdown(folder / path.name)
    assert "<summary>Solution" not in after
    assert after.count("<summary>Hint") == before.count("<summary>Hint")
    assert after.count("<details") == after.count("</details>") == before.count("<details") - before.count("<summary>Solution")
    headings = [re.findall("^#+ .*$", text, re.MULTILINE) for text in (before, after)]
    assert headings[0] == headings[1]
    assert code(folder / path.name) == code(path)  # so it runs, as the original does
    for target in re.findall(r"\]\(([\w-]+\.\w+)", after):
        assert (folder / target).exists(), target


def test_what_stands_around_a_solution_stays():
    hint = "<details><summary>Hint</summary>\n\nh\n\n</details>"
    text = f"Before.\n\n{hint}\n\n{hint.replace('Hint', 'Solution')}\n\nAfter."
    assert tool.without_solutions(text) == f"Before.\n\n{hint}\n\nAfter."
    assert tool.without_solutions("see [it](a.md#b) and [c](c.ipynb)") == "see it and [c](c.ipynb)"
    with pytest.raises(SystemExit, match="not closed"):
        tool.without_solutions("<details><summary>Solution</summary>")
