"""One letter, one meaning: the shapes in the code and in the exercises are those of the page of notation."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from dcpnas_lite.checks import lab

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "book" / "notation.md").read_text(encoding="utf8")
SOURCES = sorted((ROOT / "dcpnas_lite").rglob("*.py"))


def table(heading: str) -> list[list[str]]:
    """The rows of the table under a heading of the page, without its head."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line.startswith("|")]
    return rows[2:]


def annotated(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """(name, axes) of every argument and field with a jaxtyping shape; the name is "" for what a function returns."""
    found = []

    def shapes(name: str, annotation: ast.expr | None) -> None:
        for node in ast.walk(annotation) if annotation else ():
            if isinstance(node, ast.Subscript) and getattr(node.value, "id", "") in ("Float", "Int", "Bool"):
                found.append((name, tuple(node.slice.elts[1].value.split())))

    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.FunctionDef):
            shapes("", node.returns)
        elif isinstance(node, ast.arg):
            shapes(node.arg, node.annotation)
        elif isinstance(node, ast.AnnAssign):
            shapes(getattr(node.target, "id", ""), node.annotation)
    return found


def exercised() -> list[tuple[str, tuple[str, ...]]]:
    """(name, axes) of every argument and result of an exercise."""
    found = []
    for exercise in lab.EXERCISES.values():
        arguments, _, result = exercise.signature.partition(" -> ")
        named = [*re.findall(r"(\w+) \(([^)]*)\)", arguments), ("", result.strip("()"))]
        found += [(name, tuple(axes.split(", ")) if axes else ()) for name, axes in named]
    return found


SHAPES = {str(path.relative_to(ROOT)): annotated(path) for path in SOURCES} | {"the exercises": exercised()}


def test_every_axis_is_on_the_page_and_every_size_of_the_page_is_used():
    sizes = {size for row in table("Sizes") for size in row[0].split(", ")}
    assert len(sizes) == sum(len(row[0].split(", ")) for row in table("Sizes"))  # none twice
    used = {}
    for where, shapes in SHAPES.items():
        for _, axes in shapes:
            used |= {axis.lstrip("*"): where for axis in axes if axis not in ("...", "*shape") and not axis.isdigit()}
    assert {axis: where for axis, where in used.items() if axis not in sizes} == {}
    assert sizes - set(used) == set()


SYMBOLS = {
    row[1].strip("`"): {tuple(axes.replace(" ", "").strip(",").split(",")) for axes in re.findall(r"\(([^)]*)\)", row[2])}
    for heading in ("Networks", "Objectives", "Decoupled optimization")
    for row in table(heading)
    if re.fullmatch(r"`\w+`", row[1]) and "(" in row[2]
}


@pytest.mark.parametrize("name", SYMBOLS)
def test_a_symbol_has_the_shape_of_the_page_wherever_it_is_an_argument(name):
    rooms = ("dcpnas_lite/derivation", "dcpnas_lite/method", "the exercises")
    shapes = {axes: where for where, found in SHAPES.items() if where.startswith(rooms) for n, axes in found if n == name}
    free = {axes for axes in shapes if "..." in axes or axes == ("*shape",)}
    assert {axes: where for axes, where in shapes.items() if axes not in SYMBOLS[name] | free} == {}


def test_there_is_something_to_compare():
    named = {name for shapes in SHAPES.values() for name, _ in shapes}
    assert len(named & set(SYMBOLS)) >= 8 and sum(map(len, SHAPES.values())) > 200
    assert SYMBOLS["factor"] >= {("M", "E")} and SYMBOLS["dL_dw"] == {("M",), ("K",)}
