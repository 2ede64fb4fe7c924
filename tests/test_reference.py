"""The reference made from docstrings, links to it from the text, the list of exercises: extensions, on books of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup

import dcpnas_lite as dcp

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book" / "_ext"))
import api_pages  # noqa: E402
import exercise_list  # noqa: E402

PAGES = {path.stem: path.read_text(encoding="utf8") for path in (ROOT / "book").glob("api*.md")}
CHAPTERS = sorted((ROOT / "book").glob("[01][0-9]-*.ipynb"))


def test_every_module_is_on_one_page():
    shown = [module for text in PAGES.values() for room in api_pages.ROOM.findall(text) for module in api_pages.modules(*room)]
    assert len(shown) == len(set(shown))
    package = ROOT / "dcpnas_lite"
    present = {".".join(("dcpnas_lite", *path.relative_to(package).with_suffix("").parts)) for path in package.rglob("*.py")}
    hidden = {module for module in present if module.endswith(("__init__", "__main__")) or ".commands." in module}
    assert present - hidden - set(shown) == {"dcpnas_lite.files", "dcpnas_lite.validate"}  # nothing for a reader
    assert all(f"({name}.md)" in PAGES["api"] for name in PAGES if name != "api")


def test_every_public_name_is_explained():
    assert set(re.findall(r"`dcp\.(\w+)`", PAGES["api"])) == set(dcp.__all__)


@pytest.mark.parametrize(
    "plain, text",
    [
        ("See `read_cell`s, |·| of w_m and *η*.", r"See \ ``read_cell``\ s, \|·\| of w\_m and \*η\*."),
        ("as 4.50–4.53, not 14.50", r"as \ :ref:`4.50 <eq-4-50>`\ –\ :ref:`4.53 <eq-4-53>`\ , not 14.50"),
        ("a\n\n    x = 1\n\n- one\n  two", "a\n\n::\n\n        x = 1\n\n- one\n  two"),
    ],
)
def test_docstrings_are_plain_text(plain, text):
    assert "\n".join(api_pages.as_text(plain.split("\n"))).strip() == text


BOOK = {
    "conf.py": "import sys; sys.path.insert(0, '_ext')\n"
    "extensions = ['myst_parser', 'equation_tags', 'api_pages', 'exercise_list']\nmyst_enable_extensions = ['dollarmath']\n",
    "index.md": "# Index\n\n```{exercise-list}\n```\n\n`trace.update`, `derivation/trace.py`, `derivation.trace.update(a, b)`, "
    "`update`, `Explicit.name`\n\n```{toctree}\napi-derivation\n02-some\nhome\n```\n",
    "api-derivation.md": PAGES["api-derivation"],
    "02-some.md": "# Some\n\n## Exercises\n\n### Exercise 1: with $w$ at last (easy, 5 minutes)\n\n`trace_components`\n\n"
    '```python\n# lab.check("4.49 derived", f)\n```\n\n### Exercise 2: a question (open, 20 minutes)\n\nWhy?\n',
    "home.md": "# Home\n\n" + "\n\n".join(rf"$$ a \tag{{4.{n}}} $$" for n in range(20, 54)),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A book of one room, a chapter with two exercises, and the equations; built strictly."""
    folder = tmp_path_factory.mktemp("book")
    shutil.copytree(ROOT / "book" / "_ext", folder / "_ext", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in BOOK.items():
        (folder / name).write_text(text, encoding="utf8")
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "--keep-going", "-q", "-b", "html", ".", "out"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return lambda page: BeautifulSoup((folder / "out" / f"{page}.html").read_text(encoding="utf8"), "html.parser")


def test_an_entry_has_shapes_equations_and_source(built):
    page = built("api-derivation")
    entry = page.find(id="dcpnas_lite.derivation.trace.update")
    assert "Float[Tensor, 'E M']" in entry.text and "' M'" not in page.text
    assert entry.find("a", href=re.compile(r"^_modules/dcpnas_lite/derivation/trace\.html#"))
    assert {link["href"] for link in entry.parent.select("dd a")} >= {"home.html#eq-4-50", "home.html#eq-4-43"}
    assert "Alias for field" not in page.text
    assert page.select("dt.sig .parameter") and not page.select("dt.sig dl"), "no list of definitions without terms"


def test_code_words_lead_to_their_entries_once_a_section(built):
    links = [(link.text, link["href"].rpartition("#")[2]) for link in built("index").select("section > p a:has(> code)")]
    inside = "dcpnas_lite.derivation."
    assert links == [
        ("trace.update", f"{inside}trace.update"),
        ("derivation/trace.py", f"module-{inside}trace"),
        ("Explicit.name", f"{inside}responses.Explicit"),
    ]
    assert not built("02-some").select("section section section a code"), "in an exercise a bare name is the reader's"


def test_exercises_are_listed_with_level_time_and_check(built):
    page = built("index")
    rows = [[cell.text.strip() for cell in row.select("td")] for row in page.select("table.exercise-list tbody tr")]
    assert rows == [["2", r"with \(w\) at last", "easy, 5 min", "4.49 derived"], ["2", "a question", "open, 20 min", "–"]]
    assert "2 exercises, about 0 hours in all; 1 of them have a check." in page.text
    target = page.select_one("table.exercise-list a[href*='02-some.html#']")["href"].rpartition("#")[2]
    assert built("02-some").find(id=target).find("h3").text.startswith("Exercise 1: with")


@pytest.mark.parametrize("path", CHAPTERS, ids=[path.stem for path in CHAPTERS])
def test_every_exercise_has_a_heading_that_the_list_reads(path):
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    headings = re.findall(r"^#+ (Exercise \d+.*)$", text, re.MULTILINE)
    assert 3 <= len(headings) <= 5 and all(exercise_list.HEADING.fullmatch(heading) for heading in headings)


BUILT = Path(os.environ.get("BOOK_HTML", ROOT / "_build" / "html"))


@pytest.mark.skipif(not (BUILT / "api-checks.html").exists(), reason="the book is not built: make book")
def test_in_the_built_book_every_function_of_the_equation_index_leads_to_its_entry():
    index = BeautifulSoup((BUILT / "equation-index.html").read_text(encoding="utf8"), "html.parser")
    shown = {code.text for code in index.select("table td code")}
    linked = {code.text: code.find_parent("a")["href"] for code in index.select("table td a > code")}
    assert len(shown) > 30 and shown == set(linked)
    for target in linked.values():
        page, _, anchor = target.partition("#")
        assert f'id="{anchor}"' in (BUILT / page).read_text(encoding="utf8"), target


@pytest.mark.skipif(not (BUILT / "api-checks.html").exists(), reason="the book is not built: make book")
def test_in_the_built_book_the_list_has_every_exercise_and_no_page_is_heavy():
    rows = BeautifulSoup((BUILT / "exercises.html").read_text(encoding="utf8"), "html.parser").select(
        "table.exercise-list tbody tr"
    )
    text = "\n".join(cell.source for path in CHAPTERS for cell in nbformat.read(path, as_version=4).cells)
    assert len(rows) == len(re.findall(r"^### Exercise \d", text, re.MULTILINE))
    assert sum(row.select_one("td:last-child code") is not None for row in rows) >= 2 * len(CHAPTERS)
    assert max(path.stat().st_size for path in BUILT.glob("api*.html")) < 400_000
