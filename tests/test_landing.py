"""The first page and the README say what the package's tables say, and the glossary's terms can be linked to."""

from __future__ import annotations

import csv
import gzip
import json
import re
import statistics
import sys
from pathlib import Path

import pytest

pytest.importorskip("sphinx")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book" / "_ext"))
import findings  # noqa: E402

from dcpnas_lite.checks import equations  # noqa: E402

TABLES = ROOT / "dcpnas_lite" / "tables"
README = (ROOT / "README.md").read_text(encoding="utf8")
INTRO = (ROOT / "book" / "intro.md").read_text(encoding="utf8")
GLOSSARY = (ROOT / "book" / "glossary.md").read_text(encoding="utf8")
BUILT = ROOT / "_build" / "html"


def accuracies() -> dict[int, float]:
    """Mean 1-bit test accuracy of every cell, from the file itself."""
    lines = gzip.open(TABLES / "microbench-digits.csv.gz", "rt", encoding="utf8").read().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("cell,"))
    runs: dict[int, list[float]] = {}
    for row in csv.DictReader(lines[start:]):
        if row["bits"] == "1":
            runs.setdefault(int(row["cell"]), []).append(float(row["test_accuracy"]))
    return {cell: statistics.fmean(values) for cell, values in runs.items()}


def searches(name: str, method: str, reading: str) -> dict[int, int]:
    """Seed → cell, from the file itself."""
    found = {}
    with open(TABLES / f"{name}.csv", encoding="utf8", newline="") as file:
        for row in csv.DictReader(file):
            if row["method"] == method and json.loads(row["changes"]).get("selection", "strength") == reading:
                found[int(row["seed"])] = int(row["cell"])
    return found


def percentile(cell: int, table: dict[int, float]) -> float:
    others = [value for other, value in table.items() if other != cell]
    return 100 * sum((v < table[cell]) + 0.5 * (v == table[cell]) for v in others) / len(others)


def test_lines_that_cannot_stand():
    heart = [equations.get(f"4.{n}").verdict for n in range(42, 51)]
    every = [e.verdict for e in equations.TABLE]
    assert findings.corrected() == (heart.count("corrected"), 9, every.count("corrected"), 34)
    assert equations.get("4.49").verdict == equations.get("4.50").verdict == "corrected"


def test_what_a_parent_adds():
    table = accuracies()
    both, alone = (searches("default-digits", method, "perturbation") for method in ("dcp-nas", "bnas"))
    assert both.keys() == alone.keys() and len(both) == 20
    points = [100 * (table[both[seed]] - table[alone[seed]]) for seed in both]
    (mean, low, high), pairs = findings.parent_adds()
    error = statistics.stdev(points) / len(points) ** 0.5
    assert pairs == 20 and mean == pytest.approx(statistics.fmean(points)) and low < 0 < high
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.15)  # the bootstrap's width is that of the normal interval


def test_what_reading_alpha_costs():
    table = accuracies()
    cells = [searches("default-digits", "dcp-nas", reading) for reading in ("strength", "perturbation")]
    assert cells[0].keys() == cells[1].keys()  # the same supernets
    medians = [statistics.median(percentile(c, table) for c in found.values()) for found in cells]
    assert findings.readings() == (pytest.approx(medians[0]), pytest.approx(medians[1]), len(cells[0]))


def plain(markdown: str) -> str:
    return " ".join(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown).replace("*", "").split())


def numbers(text: str) -> list[str]:
    return re.findall(r"[+−]?\d+(?:\.\d+)?", text.replace("–", " "))


def test_the_readme_has_the_same_figures():
    bullets = [plain(item) for item in re.findall(r"^- (.*(?:\n  .*)*)", README.split("## Two commands")[0], re.MULTILINE)]
    made = findings.findings()
    assert len(bullets) == len(made) == 3
    for bullet, (figure, text) in zip(bullets, made, strict=True):
        assert bullet.startswith(figure) and numbers(bullet) == numbers(plain(f"{figure} {text}"))


def test_the_picture_says_which_images_teach_what():
    picture = (ROOT / "book" / "_static" / "method.svg").read_text(encoding="utf8")
    words = " ".join(re.sub(r"<[^>]*>", "", picture).split())
    assert "training images teach w, ŵ" in words and "validation images teach α, α̂" in words
    sizes = [float(size) for size in re.findall(r"font-size(?:: |=\")(\d+)", picture)]
    width = float(re.search(r'viewBox="0 0 (\d+) ', picture)[1])
    assert min(sizes) * 358 / width >= 12  # on a phone
    assert 'src="book/_static/method.svg"' in README and "file: _static/method.svg" in INTRO


def test_the_short_route_is_the_derivation_and_takes_about_two_hours():
    assert findings.heart() == ["at-a-glance", *sorted(page for page in findings.minutes() if "02" <= page[:2] <= "06")]
    assert f"**{findings.HEART}: the short route**" in INTRO
    route = sum(findings.minutes()[page][0] for page in findings.heart()[1:])
    assert 90 <= route <= 150 and findings.hours(route) in findings.time_needed()
    assert [findings.hours(m) for m in (30, 60, 100, 150)] == ["½", "1", "1½", "2½"]


def test_the_first_page_is_short():
    words = re.findall(r"\w\S*", plain(INTRO))
    assert len(words) <= 605


def test_the_table_of_chapters_has_their_titles():
    listed = dict(re.findall(r"^\| \[(\d+\. [^\]]+)\]\(([\w-]+)\.ipynb\)", INTRO, re.MULTILINE))
    chapters = sorted((ROOT / "book").glob("[0-9][0-9]-*.ipynb"))
    openings = {path.stem: "".join(json.loads(path.read_text(encoding="utf8"))["cells"][0]["source"]) for path in chapters}
    assert listed == {opening.splitlines()[0].removeprefix("# "): stem for stem, opening in openings.items()}


# The glossary


TERMS = re.findall(r"^### (.+)$", GLOSSARY, re.MULTILINE)
ANCHORS = [re.sub(r"[^\w-]", "", term.lower().replace(" ", "-")) for term in TERMS]


def test_terms_are_some_thirty_short_and_named_at_the_top():
    assert 25 <= len(TERMS) <= 50 and len(set(ANCHORS)) == len(TERMS)
    listed = GLOSSARY.partition("Anchors:")[2].partition("-->")[0].split()
    assert sorted(listed) == sorted(ANCHORS)
    for text in re.split(r"^##+ .*$", GLOSSARY.partition("## ")[2], flags=re.MULTILINE)[1:]:
        assert len(text.split()) <= 70, text


def test_links_into_the_glossary_name_a_term():
    pages = [path for path in sorted((ROOT / "book").glob("*.*")) if path.suffix in (".ipynb", ".md")]
    linked = {path.name: set(re.findall(r"glossary\.md#([\w-]+)", path.read_text(encoding="utf8"))) for path in pages}
    assert {name: anchors - {*ANCHORS} for name, anchors in linked.items() if anchors - {*ANCHORS}} == {}
    assert len(linked["01-whole-search.ipynb"]) >= 8 and len(linked["intro.md"]) >= 5


@pytest.mark.skipif(not (BUILT / "intro.html").exists(), reason="the book is not built")
def test_the_built_page_shows_the_findings_and_links_the_terms():
    from bs4 import BeautifulSoup

    page = BeautifulSoup((BUILT / "intro.html").read_text(encoding="utf8"), "html.parser")
    shown = [" ".join(card.get_text().split()) for card in page.select(".findings > .finding")]
    assert [numbers(card) for card in shown] == [numbers(plain(f"{figure} {text}")) for figure, text in findings.findings()]
    assert page.select_one('.finding a[href="glossary.html#parent"]')
    ways = [link["href"] for link in page.select(".ways a")]
    assert ways == ["at-a-glance.html", "first-hour.html", "06-from-trace-to-update.html#your-own-rule"]
    assert plain(findings.time_needed()) in " ".join(page.find("article").get_text().split())
    glossary = BeautifulSoup((BUILT / "glossary.html").read_text(encoding="utf8"), "html.parser")
    assert [anchor for anchor in ANCHORS if not glossary.find(id=anchor)] == []
