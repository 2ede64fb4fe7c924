"""The notebooks: their form, and one execution each that must give the committed outputs.

Strict nbval runs against the wheel, in an empty folder, with every cell twice in a row, so that a single execution
shows that the outputs are true, that a reader who has nothing but the published package gets them, and that a cell run
again gives them again. ``pytest --nbval book/`` does the first with the working copy.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import notebooks as tool  # noqa: E402

PATHS = tool.notebooks()
IDS = [path.stem for path in PATHS]
SHOWN_RAW = {
    "directive": re.compile(r"^\s*(```+|~~~+|:::+)\s*\{", re.MULTILINE),
    "colon fence": re.compile(r"^\s*:::", re.MULTILINE),
    "role": re.compile(r"\{[a-z][\w:-]*\}`"),
    "target": re.compile(r"^\([\w-]+\)=\s*$", re.MULTILINE),
    "equation label": re.compile(r"\$\$\s*\([\w-]+\)\s*$", re.MULTILINE),
    "HTML anchor": re.compile(r"<a\s+(id|name)="),
}


@pytest.fixture(params=PATHS, ids=IDS)
def path(request) -> Path:
    return request.param


@pytest.fixture
def notebook(path):
    return tool.read(path)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_executed_in_order_with_outputs(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells), "no cell has an output"


def test_no_error_and_nothing_on_stderr(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", cell.source


def test_cells_are_short(notebook):
    for cell in code_cells(notebook):
        assert cell.source.strip(), "an empty code cell"
        assert len(cell.source.splitlines()) <= 20, f"more than 20 lines:\n{cell.source}"


def test_no_cell_ends_in_a_semicolon(notebook):
    """nbval shows the value that a closing semicolon hides: assign it instead."""
    for cell in code_cells(notebook):
        assert not cell.source.rstrip().endswith(";"), cell.source


def test_markdown_is_readable_where_nothing_builds_the_book(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for kind, pattern in SHOWN_RAW.items():
                assert not pattern.search(cell.source), f"a MyST {kind} shows raw in Jupyter and Colab:\n{cell.source}"


def test_colab_link_and_first_cell_agree_with_the_configuration(path, notebook):
    url = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    assert notebook.cells[0].source.startswith(tool.title_start(path.stem))
    assert tool.colab_link(path.name, url) in notebook.cells[0].source.splitlines()
    first = code_cells(notebook)[0]
    assert first.source == tool.first_cell(url), "run: python tools/notebooks.py setup"
    assert first.outputs == []


def test_metadata_is_normalised(path, notebook, tmp_path):
    copy = tmp_path / path.name
    shutil.copy(path, copy)
    tool.write(copy, notebook)
    assert copy.read_text() == path.read_text(), "run: make notebooks"


def twice(notebook):
    """Every code cell twice in a row, each with the committed outputs."""
    double = copy.deepcopy(notebook)
    double.cells = [copy.deepcopy(cell) for cell in code_cells(notebook) for _ in range(2)]
    for number, cell in enumerate(double.cells):
        cell.id = f"cell-{number}"
    return double


def run_as_stranger(python: Path, notebook, folder: Path) -> subprocess.CompletedProcess:
    """Strict nbval of every cell twice, where the environment asks matplotlib for no figures in the page."""
    nbformat.write(twice(notebook), folder / "twice.ipynb")
    options = "--nbval --nbval-current-env --nbval-cell-timeout=120 --tb=short -p no:cacheprovider -p no:xdist".split()
    command = [python, "-m", "pytest", *options, "twice.ipynb"]
    return subprocess.run(command, cwd=folder, env=os.environ | {"MPLBACKEND": "agg"}, capture_output=True, text=True)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", PATHS, ids=IDS)
def test_a_stranger_gets_the_committed_outputs_and_again(path, stranger, tmp_path):
    notebook = tool.read(path)
    run = run_as_stranger(stranger, notebook, tmp_path)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert f"{2 * len(code_cells(notebook))} passed" in run.stdout, run.stdout[-2000:]


@pytest.mark.parametrize("source, right", [("value = 3", True), ("value += 1", False)])
def test_a_cell_that_changes_when_run_again_is_found(source, right, stranger, tmp_path):
    path = make_book(tmp_path / "repository", "https://github.com/OWNER/dcpnas-lite", "value = 2", f"{source}; print(value)")
    tool.execute(path)
    assert (run_as_stranger(stranger, tool.read(path), tmp_path).returncode == 0) == right


# The tool itself, on a book of its own


def make_book(root: Path, url: str, *sources: str) -> Path:
    (root / "book").mkdir(parents=True)
    (root / "_config.yml").write_text(f"repository:\n  url: {url}\n")
    for name in ("CITATION.cff", "pyproject.toml", "README.md", "CONTRIBUTING.md", "book/intro.md"):
        (root / name).write_text(f"see {url} and https://colab.research.google.com/github/{url[19:]}/blob/main\n")
    cells = [nbformat.v4.new_markdown_cell("# 1. Title\n\nText."), *map(nbformat.v4.new_code_cell, sources)]
    path = root / "book" / "01-a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_setup_is_idempotent_and_url_reaches_every_file(tmp_path):
    path = make_book(tmp_path, "https://github.com/OWNER/dcpnas-lite", "1 + 1")
    tool.set_up(path, tool.repository_url(tmp_path))
    once = path.read_text()
    assert "print(" in tool.read(path).cells[1].source and tool.read(path).cells[2].source == "1 + 1"
    tool.set_up(path, tool.repository_url(tmp_path))
    assert path.read_text() == once
    tool.change_url("https://github.com/someone/dcpnas-lite", tmp_path)
    for file in tmp_path.rglob("*.*"):
        if file.is_file():
            assert "OWNER" not in file.read_text() and "someone/dcpnas-lite" in file.read_text(), file
    assert "%pip install --quiet --no-deps git+https://github.com/someone/" in tool.read(path).cells[1].source
    tool.change_url("https://github.com/OWNER/dcpnas-lite", tmp_path)
    assert path.read_text() == once
    with pytest.raises(SystemExit, match="expected an address"):
        tool.change_url("ftp://example.org", tmp_path)


def test_execute_stores_outputs_in_an_empty_folder(tmp_path):
    path = make_book(tmp_path, "https://github.com/OWNER/dcpnas-lite", "import os; print(os.listdir())", "6 * 7")
    tool.execute(path)
    first, second = code_cells(tool.read(path))
    assert first.outputs[0].text == "[]\n" and second.outputs[0].data["text/plain"] == "42"
    once = path.read_text()
    tool.execute(path)
    assert path.read_text() == once


@pytest.mark.parametrize("source", ["1 / 0", "import sys; print('x', file=sys.stderr)"])
def test_execute_refuses_errors_and_stderr(tmp_path, source):
    path = make_book(tmp_path, "https://github.com/OWNER/dcpnas-lite", source)
    before = path.read_text()
    with pytest.raises(SystemExit, match="a cell failed|wrote to stderr"):
        tool.execute(path)
    assert path.read_text() == before
