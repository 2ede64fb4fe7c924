"""The notebooks: their form, and one execution each that must give the committed outputs.

Strict nbval runs against the wheel, in an empty folder, with every cell twice in a row, so that a single execution
shows that the outputs are true, that a reader who has nothing but the published package gets them, and that a cell run
again gives them again. A cell that takes seconds, tagged ``long``, runs once and must not change what it reads. ``pytest
--nbval book/`` does the first with the working copy.
"""

from __future__ import annotations

import copy
import dis
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import CodeType

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import notebooks as tool  # noqa: E402

from dcpnas_lite.checks import lab  # noqa: E402

PATHS = tool.notebooks()
IDS = [path.stem for path in PATHS]
NOBODY = "https://github.com/OWNER/dcpnas-lite"  # a repository without an address
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


HOMES = tool.homes()


def test_colab_link_first_cell_and_links_to_equations_are_as_setup_writes_them(path, notebook, tmp_path):
    url = tool.repository_url()
    shutil.copy(path, tmp_path / path.name)
    tool.set_up(tmp_path / path.name, url, HOMES)
    assert (tmp_path / path.name).read_text() == path.read_text(), "run: python tools/notebooks.py setup"
    assert notebook.cells[0].source.startswith(tool.title_start(path.stem))
    first = code_cells(notebook)[0]
    assert first.source == tool.first_cell(url) and first.outputs == [] and first.metadata.tags == [tool.FOLDED]
    assert tool.published(url) or "colab.research" not in path.read_text()


def test_links_to_equations_lead_to_a_notebook_that_has_them(path, notebook):
    """Also those in what cells print: in a raw notebook a link leads to its own page or to a file beside it."""
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    for cell in code_cells(notebook):
        texts += [output.data["text/markdown"] for output in cell.outputs if "text/markdown" in output.get("data", {})]
    for target, name in re.findall(r"\]\(([^()\s#]*)#(eq-[\w-]+)\)", "\n".join(map("".join, texts))):
        page = target.removeprefix(tool.published(tool.repository_url())).removesuffix(".html").removesuffix(".ipynb")
        assert (page or path.stem) == HOMES[name], f"{target}#{name}"


CHAPTERS = [path for path in PATHS if path.stem[:2].isdigit()]
WHAT_TO_SEE = re.compile(r"^\*What to see\.\*", re.MULTILINE)
NO_STUB = re.compile(r"^\s*(return )?(\.\.\.|pass|raise NotImplementedError.*)$", re.MULTILINE)
HEADING = re.compile(r"^### Exercise (\d+): .+ \((?:easy|medium|hard|open), \d+ minutes\)$")


@pytest.fixture(params=CHAPTERS, ids=[path.stem for path in CHAPTERS])
def chapter(request):
    return tool.read(request.param)


def section(notebook, heading: str) -> str:
    """The Markdown under a heading of the second level, without it."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return re.split(
        r"^## ", re.split(rf"^## {heading}$", text, maxsplit=1, flags=re.MULTILINE)[1], maxsplit=1, flags=re.MULTILINE
    )[0]


def test_a_chapter_opens_like_every_chapter(chapter):
    """Title, a lead that motivates, what one can do afterwards, its equations, what one needs, the time it takes."""
    _, *blocks = chapter.cells[0].source.split("\n\n")
    lead, *blocks = (block for block in blocks if not block.startswith("[Open this page in Colab]"))
    assert len(lead.split()) >= 30 and lead[0] not in "*|#-[", "a lead paragraph of some sentences"
    blocks = blocks[1:] if not blocks[0].startswith("**") else blocks  # or two of them
    starts = [
        r"\*\*After this chapter you can\*\*",
        "- ",
        r"\*\*Equations?\*\*: ",
        r"\| you need \| where \| how much \|\n",
        r"\*\*Time\*\*: \d",
    ]
    found = [next((i for i, block in enumerate(blocks) if re.match(start, block)), None) for start in starts]
    assert found == [0, 1, 2, 3, 4] and len(blocks) == 5, f"outcomes, equations, table and time, in this order: {found}"
    assert 2 <= len(re.findall("^- ", blocks[1], re.MULTILINE)) <= 6
    assert "; the code " in blocks[4], "the line on time ends in '; the code runs in …'"


def test_a_chapter_ends_like_every_chapter(chapter):
    text = "\n\n".join(cell.source for cell in chapter.cells if cell.cell_type == "markdown")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE)[-3:] == ["Summary", "Exercises", "References"]
    assert 3 <= len(re.findall(r"^(?:- |\d\. )", section(chapter, "Summary"), re.MULTILINE)) <= 5, "three to five points"
    assert section(chapter, "References").strip()


def test_every_figure_is_followed_by_what_to_see(notebook):
    for cell, below in zip(notebook.cells, [*notebook.cells[1:], None], strict=True):
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
            assert below and below.cell_type == "markdown" and WHAT_TO_SEE.search(below.source), (
                f"no *What to see.* below:\n{cell.source}"
            )


def test_lines_of_code_fit_the_page(notebook):
    for cell in code_cells(notebook)[1:]:
        assert [line for line in cell.source.splitlines() if len(line) > 90] == []


def test_exercises_have_one_form(chapter):
    """Heading; a stub that runs and holds a slip; a commented check; a folded hint and a folded solution."""
    exercises = section(chapter, "Exercises")
    headings = re.findall(r"^### .*$", exercises, re.MULTILINE)
    assert [int(HEADING.match(heading)[1]) if HEADING.match(heading) else heading for heading in headings] == [
        *range(1, len(headings) + 1)
    ]
    assert 3 <= len(headings) <= 5
    assert exercises.count("<details><summary>Solution</summary>") == len(headings), "one solution an exercise"
    stubs = [
        i for i, cell in enumerate(chapter.cells) if any(tag.startswith("exercise:") for tag in cell.metadata.get("tags", []))
    ]
    for i in stubs:
        stub, check = chapter.cells[i], chapter.cells[i + 1]
        (name,) = (tag.removeprefix("exercise:") for tag in stub.metadata.tags if tag.startswith("exercise:"))
        assert name in lab.EXERCISES
        functions = re.findall(r"^def (\w+)", stub.source, re.MULTILINE)
        assert check.source.strip() in [f'# lab.check("{name}", {f})  # uncomment when ready' for f in functions], check.source
        assert not NO_STUB.search(stub.source), "a stub runs, with one slip"
    checks = [cell.source for cell in code_cells(chapter) if re.match(r"# lab\.check\(", cell.source)]
    assert len(checks) == len(stubs), "a check whose stub has no tag exercise:NAME"


def test_metadata_is_normalised(path, notebook, tmp_path):
    copy = tmp_path / path.name
    shutil.copy(path, copy)
    tool.write(copy, notebook)
    assert copy.read_text() == path.read_text(), "run: make notebooks"


LONG = "long"  # the tag of a cell that runs once


def is_long(cell) -> bool:
    return LONG in cell.metadata.get("tags", [])


def twice(notebook):
    """Every code cell twice in a row, a long one once, each with the committed outputs."""
    double = copy.deepcopy(notebook)
    double.cells = [copy.deepcopy(cell) for cell in code_cells(notebook) for _ in range(1 if is_long(cell) else 2)]
    for number, cell in enumerate(double.cells):
        cell.id = f"cell-{number}"
    return double


def changed(source: str) -> set[str]:
    """The names that a cell reads before it binds them anew: run again, it would read something else."""
    read, bound, found = set(), set(), set()

    def follow(code: CodeType, whole: bool) -> None:
        for step in dis.get_instructions(code):
            if isinstance(step.argval, CodeType):
                follow(step.argval, False)
            elif step.opname in ("LOAD_NAME", "LOAD_GLOBAL"):
                read.update({step.argval} - bound)
            elif step.opname == "STORE_NAME" and whole:
                found.update({step.argval} & read)
                bound.add(step.argval)

    follow(compile(source, "cell", "exec"), True)
    return found


def test_a_long_cell_reads_nothing_that_it_binds_anew(notebook):
    assert {name for cell in code_cells(notebook) if is_long(cell) for name in changed(cell.source)} == set()


@pytest.mark.parametrize(
    "source, names",
    [("a = b; a = a + 1", ""), ("a += 1", "a"), ("a = 1\na += 1", ""), ("a = f(a)", "a"), ("b = a\na = 2", "a"),
     ("a = [a for a in b]", ""), ("for a in a: pass", "a"), ("def a(b): c = b", ""), ("b = {k: a for k in c}; a = 1", "a")],
)  # fmt: skip
def test_what_a_cell_reads_and_binds_anew(source, names):
    assert changed(source) == set(names)


def run_as_stranger(python: Path, notebook, folder: Path) -> subprocess.CompletedProcess:
    """Strict nbval of `twice` the notebook, where the environment asks matplotlib for no figures in the page."""
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
    assert f"{len(twice(notebook).cells)} passed" in run.stdout, run.stdout[-2000:]


@pytest.mark.parametrize("source, right", [("value = 3", True), ("value += 1", False)])
def test_a_cell_that_changes_when_run_again_is_found(source, right, stranger, tmp_path):
    path = make_book(tmp_path / "repository", NOBODY, "value = 2", f"{source}; print(value)")
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
    path = make_book(tmp_path, NOBODY, "1 + 1")
    tool.set_up(path, NOBODY, {})
    once = path.read_text()
    assert "raise missing" in tool.read(path).cells[1].source and tool.read(path).cells[2].source == "1 + 1"
    assert "OWNER" not in once and "colab" not in once
    tool.set_up(path, NOBODY, {})
    assert path.read_text() == once
    tool.change_url("https://github.com/someone/dcpnas-lite", tmp_path)
    for file in tmp_path.rglob("*.*"):
        if file.is_file():
            assert "OWNER" not in file.read_text() and "someone/dcpnas-lite" in file.read_text(), file
    first, cell, _ = tool.read(path).cells
    assert first.source.startswith("# 1. Title\n\n[Open this page in Colab](https://colab.research.google.com/github/someone/")
    assert "%pip install --quiet --no-deps git+https://github.com/someone/" in cell.source
    tool.change_url(NOBODY, tmp_path)
    assert path.read_text() == once
    with pytest.raises(SystemExit, match="expected an address"):
        tool.change_url("ftp://example.org", tmp_path)


def test_the_line_on_time_counts_text_equations_figures_visible_code_and_exercises(tmp_path):
    path = make_book(tmp_path, NOBODY, "\n".join(["x = 1"] * 100), "\n".join(["y = 1"] * 1000))
    notebook = tool.read(path)
    notebook.cells[0].source += "\n\n**Time**: a while; the code runs in a moment.\n\n" + "word " * 1290 + "\n\n$$ a = b $$" * 10
    notebook.cells[2].metadata["tags"] = [tool.FOLDED]
    exercises = "## Exercises\n\n### Exercise 1: the sum (easy, 5 minutes)\n\n" + "word " * 2000
    last = "### Exercise 2: the rest (open, 20 minutes)\n\n" + "word " * 2000 + "\n\n## References\n\nNone."
    notebook.cells += map(nbformat.v4.new_markdown_cell, (exercises, last))
    tool.write(path, notebook)
    for _ in range(2):  # 10 minutes of words, 5 of equations, 5 of code
        tool.set_up(path, NOBODY, {})
        line = tool.TIME.search(tool.read(path).cells[0].source)[0]
        assert line == "**Time**: 20 minutes to read, 45 with the exercises; the code runs in a moment."


def test_links_to_equations_follow_the_address(tmp_path):
    """By name while there is no address, to the published book where there is one, and back."""
    path = make_book(tmp_path, NOBODY, "1 + 1")
    other = path.with_name("02-b.ipynb")
    text = "# 2. Other\n\n$$ a \\tag{4.44} $$\n\n[here](#eq-4-44), [there](#eq-4-45-prime), [what](#eq-9-9), [x](01-a.ipynb)"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)]), other)
    notebook = tool.read(path)
    notebook.cells[0].source += "\n\n$$ b \\tag{4.45′} $$ [(4.44)](#eq-4-44)"
    tool.write(path, notebook)

    def links() -> list[str]:
        return [re.findall(r"\]\(([^)]*)\)", tool.read(p).cells[0].source) for p in (path, other)]

    tool.change_url(NOBODY, tmp_path)
    by_name = links()
    assert by_name == [["02-b.ipynb#eq-4-44"], ["#eq-4-44", "01-a.ipynb#eq-4-45-prime", "#eq-9-9", "01-a.ipynb"]]
    tool.change_url("https://github.com/Me/book", tmp_path)
    book = "https://me.github.io/book/"
    assert links()[0][1:] == [f"{book}02-b.html#eq-4-44"]
    assert links()[1][1:3] == [f"{book}02-b.html#eq-4-44", f"{book}01-a.html#eq-4-45-prime"] and links()[1][-1] == "01-a.ipynb"
    tool.change_url(NOBODY, tmp_path)
    assert links() == by_name


# The first cell, in the four situations of a reader


RUN = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read("page.ipynb", 4)
NotebookClient(notebook, kernel_name="python3", allow_errors=True, timeout=300).execute()
nbformat.write(notebook, "page.ipynb")
"""


@pytest.fixture
def bare(tmp_path) -> Path:
    """Python of an environment that has everything but the package."""
    folder = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (site / "test-environment.pth").write_text(sysconfig.get_path("purelib") + "\n")  # what is listed there is not read
    return folder / "bin" / "python"


def run_page(python: Path, folder: Path, url: str = NOBODY) -> list:
    """Outputs of the first cell and of one that imports the package, in a folder."""
    sources = [tool.first_cell(url), "import dcpnas_lite\nprint(dcpnas_lite.__file__)"]
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources]), folder / "page.ipynb")
    environment = os.environ | {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_CONFIG_FILE": os.devnull}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([python, "-c", RUN], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [cell.outputs for cell in nbformat.read(folder / "page.ipynb", 4).cells]


def imported_from(outputs: list) -> str:
    _, (imported,) = outputs
    return imported.text.strip()


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "reader" / "book"
    path.mkdir(parents=True)
    return path


def test_first_cell_takes_the_wheel_beside_the_notebook(bare, folder, wheel):
    shutil.copy(wheel, folder)
    shutil.copytree(ROOT / "dcpnas_lite", folder.parent / "dcpnas_lite")  # the wheel goes before the repository
    assert str(bare.parent.parent / "lib") in imported_from(run_page(bare, folder))


def test_first_cell_takes_the_repository_around_the_notebook(bare, folder):
    shutil.copytree(ROOT / "dcpnas_lite", folder.parent / "dcpnas_lite", ignore=shutil.ignore_patterns("__pycache__"))
    first, (imported,) = run_page(bare, folder)
    assert first == [] and imported.text == f"{folder.parent / 'dcpnas_lite' / '__init__.py'}\n"


def test_first_cell_takes_the_repositorys_address(bare, folder, tmp_path):
    repository = tmp_path / "repository"
    shutil.copytree(ROOT / "dcpnas_lite", repository / "dcpnas_lite", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, repository)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "x"]):
        subprocess.run([*git, *command], cwd=repository, check=True)
    assert str(bare.parent.parent / "lib") in imported_from(run_page(bare, folder, f"file://{repository}"))


@pytest.mark.parametrize("url", [NOBODY, "file:///there/is/nothing"])
def test_first_cell_stops_with_one_line_that_says_what_to_do(bare, folder, url):
    first, second = run_page(bare, folder, url)
    (stop,) = [output for output in first if output.output_type == "error"]
    assert len(stop.traceback) == 1 and len(stop.traceback[0].splitlines()) == 1
    assert stop.traceback[0].startswith("dcpnas_lite is missing: ") and "make wheel" in stop.traceback[0]
    assert second[0].output_type == "error" and second[0].ename == "ModuleNotFoundError"  # nothing was half-installed


def test_execute_stores_outputs_in_an_empty_folder(tmp_path):
    path = make_book(tmp_path, NOBODY, "import os; print(os.listdir())", "6 * 7")
    tool.execute(path)
    first, second = code_cells(tool.read(path))
    assert first.outputs[0].text == "[]\n" and second.outputs[0].data["text/plain"] == "42"
    once = path.read_text()
    tool.execute(path)
    assert path.read_text() == once


@pytest.mark.parametrize("source", ["1 / 0", "import sys; print('x', file=sys.stderr)"])
def test_execute_refuses_errors_and_stderr(tmp_path, source):
    path = make_book(tmp_path, NOBODY, source)
    before = path.read_text()
    with pytest.raises(SystemExit, match="a cell failed|wrote to stderr"):
        tool.execute(path)
    assert path.read_text() == before
