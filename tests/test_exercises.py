"""The exercises of the book: what a stub computes must fail its check, what the solution computes must pass it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
import torch

import dcpnas_lite as dcp
from dcpnas_lite.checks import lab

PATHS = sorted((Path(__file__).parents[1] / "book").glob("[01][0-9]-*.ipynb"))
CALL = re.compile(r'lab\.check\("([^"]+)", (\w+)\)')
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
GENERAL = set(lab._general(lab.EXERCISES["4.49"]))
TINY = dcp.SearchConfig(channels=2, layers=1, batch=8, rounds=1, steps=1, warmup=0)


class Exercise(NamedTuple):
    """A check that a chapter asks for, the cell with the stub, and all solutions that follow."""

    equation: str
    function: str
    tags: list[str]
    stub: str
    solutions: list[str]
    imports: str


def solutions(cells) -> list[str]:
    """The Python in the <details> of some cells."""
    folded = (part for cell in cells if cell.cell_type == "markdown" for part in cell.source.split("<details>")[1:])
    return [block for part in folded for block in BLOCK.findall(part.partition("</details>")[0])]


def page(path: Path) -> str:
    """All cells of a notebook, one after the other."""
    return "\n\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)


def defines(source: str, function: str) -> bool:
    return re.search(rf"^def {function}\(", source, re.MULTILINE) is not None


def code(cells) -> list[str]:
    """The code cells as Python: the first one, which `tools/notebooks.py setup` writes, has lines that are none."""
    return [cell.source for cell in cells if cell.cell_type == "code" and "%matplotlib inline" not in cell.source]


def imported(cells) -> str:
    """What a chapter imports, wherever: all that a stub may count on."""
    nodes = (node for source in code(cells) for node in ast.parse(source).body)
    return "\n".join(ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))


def exercises(path: Path) -> list[Exercise]:
    cells = nbformat.read(path, as_version=4).cells
    found, imports = [], imported(cells)
    for i, cell in enumerate(cells):
        for equation, function in CALL.findall(cell.source) if cell.cell_type == "code" else ():
            stub = next(c for c in reversed(cells[: i + 1]) if c.cell_type == "code" and defines(c.source, function))
            found.append(Exercise(equation, function, stub.metadata.get("tags", []), stub.source, solutions(cells[i:]), imports))
    return found


ALL = {f"{path.stem[:2]}: {e.equation} {e.function}": e for path in PATHS for e in exercises(path)}


def function(exercise: Exercise, source: str):
    """What a stub or a solution defines; what it does with the chapter's variables besides is not run."""
    kinds = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef
    names: dict = {}
    exec(exercise.imports, names)
    exec("\n\n".join(ast.unparse(node) for node in ast.parse(source).body if isinstance(node, kinds)), names)
    return names[exercise.function]


@pytest.mark.parametrize("exercise", ALL.values(), ids=ALL)
def test_stub_fails_and_its_slip_is_named(exercise):
    with pytest.raises(lab.CheckFailed) as failure:
        lab.check(exercise.equation, function(exercise, exercise.stub))
    assert failure.value.slip


@pytest.mark.parametrize("exercise", ALL.values(), ids=ALL)
def test_solution_passes(exercise):
    solution = next((s for s in exercise.solutions if defines(s, exercise.function)), None)
    assert solution, f"no solution defines {exercise.function}"
    lab.check(exercise.equation, function(exercise, solution))


@pytest.mark.parametrize("exercise", ALL.values(), ids=ALL)
def test_tag_names_the_check(exercise):
    """With the heading, the stub and the check in this order: see test_exercises_have_one_form of the notebooks."""
    assert [tag.removeprefix("exercise:") for tag in exercise.tags if tag.startswith("exercise:")] == [exercise.equation]


@pytest.mark.parametrize("exercise", ALL.values(), ids=ALL)
def test_three_slips_besides_the_stubs_are_named(exercise):
    """Wrong answers of its own, not only those that every exercise has; each is refused by its name."""
    own = [name for name in lab.mutants(exercise.equation) if name not in GENERAL]
    named = 0
    for name in own:
        with pytest.raises(lab.CheckFailed) as failure:
            lab.check(exercise.equation, lab.mutants(exercise.equation)[name])
        named += failure.value.slip == name
    assert named >= 3, f"{exercise.equation}: {named} of {own} are called by name"


@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_every_exercise_has_a_solution_and_every_check_a_hint(path):
    parts = re.split(r"^### (?=Exercise )", page(path), flags=re.MULTILINE)[1:]
    for part in parts:
        title = part.partition("\n")[0]
        assert "<details><summary>Solution</summary>" in part, title
        assert "lab.check(" not in part or "<details><summary>Hint</summary>" in part, f"{title}: no hint"


@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_three_to_five_solutions_that_know_their_names(path, tmp_path):
    cells = nbformat.read(path, as_version=4).cells
    assert 3 <= sum(cell.source.count("<summary>Solution") for cell in cells if cell.cell_type == "markdown") <= 5
    file = tmp_path / "chapter.py"
    file.write_text("\n\n".join(code(cells) + solutions(cells)))
    ruff = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select=E9,F821", file], capture_output=True, text=True
    )
    assert ruff.returncode == 0, ruff.stdout + ruff.stderr


def rules() -> dict[str, tuple[str, str, str]]:
    """The readers' rules that the book shows, in cells and solutions: functions of a step."""
    found = {}
    for path in PATHS:
        cells = nbformat.read(path, as_version=4).cells
        imports = imported(cells)
        for source in code(cells) + solutions(cells):
            for node in ast.parse(source).body:
                if isinstance(node, ast.FunctionDef) and [a.arg for a in node.args.args] == ["step"]:
                    text = ast.get_source_segment(source, node)
                    found[f"{path.stem[:2]}: {node.name} {len(found)}"] = (imports, text, node.name)
    return found


RULES = rules()


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_of_the_readers_runs_in_the_search(rule):
    imports, text, name = rule
    names: dict = {}
    exec(imports, names)
    exec(text, names)
    result = dcp.search(dcp.digits(size=8), TINY, backtracking=names[name])
    assert result.history["alpha/normal"].shape == (2, 3, 8)
    assert torch.isfinite(result.alphas["normal"]).all()


def test_chapter_6_shows_a_rule():
    assert any(name.startswith("06: my_rule") for name in RULES)
