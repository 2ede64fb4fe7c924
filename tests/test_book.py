"""The built book: `make book` makes it, these tests read it, first as files, then in a browser."""

from __future__ import annotations

import functools
import http.server
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urldefrag, urlsplit

import nbformat
import pytest
import torch
import yaml
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from docutils import nodes
from scipy.stats import spearmanr

from dcpnas_lite import MicroBench
from dcpnas_lite.derivation import trace
from dcpnas_lite.evaluation.microbench import CELLS, operations

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "book" / "_ext"), str(ROOT / "tools")]
import pdf  # noqa: E402
import published  # noqa: E402
from equation_tags import HOME, TAG, anchor  # noqa: E402

HTML = pdf.HTML
if not (HTML / "index.html").exists():
    pytest.fail("the book is not built: run make book", pytrace=False)

CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf8"))
SOURCES = {path.stem: path for path in sorted((ROOT / "book").glob("*.*")) if path.suffix in {".md", ".ipynb"}}
PAGES = sorted(SOURCES)


@functools.cache
def soup(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf8"), "html.parser")


@functools.cache
def ids(page: Path) -> Counter:
    return Counter(node["id"] for node in soup(page).select("[id]"))


def html(name: str) -> Path:
    return HTML / f"{name}.html"


def markdown(path: Path) -> str:
    if path.suffix == ".md":
        return path.read_text(encoding="utf8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


@functools.cache
def tags(name: str) -> tuple[str, ...]:
    return tuple(TAG.findall(markdown(SOURCES[name])))


def test_every_page_is_in_the_table_of_contents():
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    chapters = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    chapters += [section for chapter in chapters for section in chapter.get("sections", [])]
    listed = [toc["root"]] + [chapter["file"] for chapter in chapters]
    assert sorted(listed) == PAGES


def test_intro_links_every_chapter():
    links = {link.get("href") for link in soup(html("intro")).select("article a")}
    chapters = {f"{name}.html" for name in PAGES if name[0].isdigit()}
    assert not chapters - links, "add the chapter to the table in intro.md"


# Equations


def test_home_covers_every_number_once():
    numbers = sorted(number for line in HOME.values() for number in line.split())
    assert numbers == [f"4.{n}" for n in range(20, 54)]


def test_no_number_is_tagged_twice():
    assert [tag for tag, times in Counter(tag for name in PAGES for tag in tags(name)).items() if times > 1] == []


@pytest.mark.parametrize("name", PAGES)
def test_tags_are_at_home_and_have_anchors(name):
    printed = [tag for tag in tags(name) if re.fullmatch(r"4\.\d+", tag)]
    assert sorted(printed) == sorted(HOME.get(name[:2], "").split()), "tagged here, and belonging here"
    there = ids(html(name))
    for tag in tags(name):
        assert there[anchor(tag)] == 1, f"({tag}) has {there[anchor(tag)]} anchors"
    assert [i for i, times in there.items() if times > 1 and i.startswith("eq-")] == []


@pytest.mark.parametrize("name", PAGES)
def test_tags_stand_in_display_blocks(name):
    text = markdown(SOURCES[name])
    blocks = re.findall(r"\$\$(.*?)\$\$", text, flags=re.DOTALL)
    assert sum(len(TAG.findall(block)) for block in blocks) == len(TAG.findall(text)), r"a \tag outside $$ … $$"


def test_notation_links_the_equations_that_the_book_has():
    text = markdown(SOURCES["notation"])
    there = {tag for name in PAGES for tag in tags(name)}
    unlinked = [tag for tag in re.findall(r"(?<!\[)\((4\.\d+)\)", text) if tag in there]
    assert not unlinked, "in notation.md, write them as [(4.22)](#eq-4-22)"


def test_notation_names_what_the_package_has():
    rows = [row.split("|")[2] for row in markdown(SOURCES["notation"]).splitlines() if row.startswith("| ")]
    names = {name for row in rows for code in re.findall(r"`([^`]+)`", row) for name in re.findall(r"[A-Za-z_]\w+", code)}
    words = set(re.findall(r"\w+", "".join(path.read_text() for path in (ROOT / "dcpnas_lite").rglob("*.py"))))
    assert len(names) > 30 and not names - words


# Links


@pytest.mark.parametrize("page", [html(name) for name in PAGES], ids=PAGES)
def test_links_lead_somewhere_and_nothing_is_remote(page):
    for node in soup(page).select("[src], [href]"):
        target = node.get("src") or node["href"]
        if target.startswith("data:"):
            continue
        if urlsplit(target).scheme or target.startswith("//"):
            assert node.name == "a", f"<{node.name}> loads {target}"
            continue
        path, fragment = urldefrag(target)
        file = (page.parent / unquote(path.partition("?")[0])).resolve() if path else page
        assert file.is_file(), f"{target}: there is no such file"
        if fragment and file.suffix == ".html":
            assert unquote(fragment) in ids(file), f"{target}: there is no such anchor"


def test_stylesheets_load_nothing_remote():
    for sheet in HTML.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text(encoding="utf8")), sheet


# Where it is published


@pytest.mark.parametrize("name", PAGES)
def test_every_page_has_title_language_and_description(name):
    page = soup(html(name))
    heading = page.find("h1").get_text().rstrip("#")
    assert page.find("html")["lang"] == "en" and page.find("title").text.startswith(heading)
    description = page.find("meta", attrs={"name": "description"})
    assert description and 80 <= len(description["content"]) <= 203


def test_the_book_says_how_to_cite_it():
    assert "@misc{dcpnas_by_derivation,\n" in soup(html("references")).find("article").text
    entry = published.bibtex(CITATION)
    assert ("url" in entry) == ("OWNER" not in CITATION["repository-code"])
    elsewhere = published.bibtex(CITATION | {"repository-code": "https://github.com/me/dcpnas-lite"})
    assert re.search(r"^  url +=.{10,}me/dcpnas-lite},$", elsewhere, re.MULTILINE)
    assert f"{{{CITATION['version']}}}" in elsewhere and elsewhere.count("{") == elsewhere.count("}")


def test_without_an_address_the_built_book_names_no_repository():
    if "OWNER" not in CITATION["repository-code"]:
        pytest.skip("the repository has an address")
    texts = {path: path.read_text(encoding="utf8") for path in HTML.rglob("*") if path.suffix in {".html", ".ipynb", ".md"}}
    assert len(texts) > 30
    named = re.compile(r"/OWNER/|colab\.research\.google|mybinder\.org")
    assert [path.name for path, text in texts.items() if named.search(text)] == []


def with_address(owner: str) -> SimpleNamespace:
    config = SimpleNamespace(html_theme_options={"repository_url": f"https://github.com/{owner}/dcpnas-lite"}, html_baseurl="")
    config.html_theme_options |= dict.fromkeys(published.BUTTONS, True)
    published.address_or_none(None, config)
    return config


def test_without_an_address_there_is_no_button_and_with_one_a_canonical_address():
    assert not any(with_address("OWNER").html_theme_options[button] for button in published.BUTTONS)
    assert with_address("OWNER").html_baseurl == ""
    assert all(with_address("Me").html_theme_options[button] for button in published.BUTTONS)
    assert with_address("Me").html_baseurl == "https://me.github.io/dcpnas-lite/"


def test_previews_pdf_and_the_map_of_the_site_name_an_address_only_where_there_is_one():
    alone = published.preview("A & B", "Text.", "intro", "")
    assert '"og:title" content="A &amp; B"' in alone and "og:image" not in alone and "http" not in alone
    somewhere = published.preview("A", "Text.", "intro", "https://me.github.io/b/")
    assert "https://me.github.io/b/intro.html" in somewhere and "https://me.github.io/b/_static/card.png" in somewhere
    assert (HTML / "_static" / "card.png").read_bytes()[16:24] == (1200).to_bytes(4, "big") + (630).to_bytes(4, "big")
    assert "make pdf" in published.on_paper("").astext()
    (link,) = published.on_paper("https://me.github.io/b/").findall(nodes.reference)
    assert link["refuri"] == "https://me.github.io/b/book.pdf"
    assert "<loc>https://me.github.io/b/a.html</loc>" in published.sitemap("https://me.github.io/b/", ["a"])
    assert (HTML / "sitemap.xml").exists() == ("OWNER" not in CITATION["repository-code"])


# The addresses of the book's first order

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf8"))["sphinx"]["config"]
MOVED = CONFIG["redirects"]
FIRST_ORDER = {  # which numbers the old pages had
    "01-one-bit": "4.22 4.23 4.34 4.35",
    "03-coupled-objective": "4.20 4.21 4.24 4.25 4.26 4.27 4.28 4.32 4.42",
    "04-missing-derivative": "4.43",
    "05-dividing-by-a-matrix": "4.44 4.45",
    "06-trace": "4.46 4.47 4.48",
    "07-from-trace-to-update": "4.49 4.50",
    "08-learning-psi": "4.51 4.52 4.53",
}


def test_an_old_address_leads_to_the_page_that_has_what_it_named():
    given_away = re.search(r"objectives = \[(.*)\]", (ROOT / "book" / CONFIG["redirect_html_template_file"]).read_text())[1]
    assert len(MOVED) == 11 and not set(MOVED) & set(PAGES) and set(FIRST_ORDER) <= set(MOVED)
    for old, new in MOVED.items():
        assert soup(html(old)).find("a")["href"] == new and (HTML / new).is_file()
        for name in map(anchor, FIRST_ORDER.get(old, "").split()):
            page = "08-objectives.html" if f'"{name}"' in given_away else new
            assert soup(HTML / page).find(id=name), f"{old}.html#{name} leads to {page}"


# The extension, on small books of its own


def build(folder: Path, index: str, home: str = "") -> subprocess.CompletedProcess:
    shutil.copytree(ROOT / "book" / "_ext", folder / "_ext", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "conf.py").write_text(
        "import sys; sys.path.insert(0, '_ext')\n"
        "extensions = ['myst_parser', 'sphinx.ext.mathjax', 'equation_tags']\nmyst_enable_extensions = ['dollarmath']\n"
    )
    (folder / "index.md").write_text("# Index\n\n" + index + ("\n\n```{toctree}\n04-home\n```\n" if home else ""))
    if home:
        (folder / "04-home.md").write_text("# Home\n\n" + home)
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "--keep-going", "-q", "-b", "html", ".", "out"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_equations_link_across_pages(tmp_path):
    published = "https://me.github.io/the-book/04-home.html#eq-4-44"  # as in a raw notebook
    index = f"[(4.44)](#eq-4-44), [](#eq-4-45-prime), [](04-home.md#eq-4-44), [4.44]({published})"
    done = build(tmp_path, index, "$$\na &= b \\tag{4.44} \\\\\nc &= d \\tag{4.45′}\n$$\n\n[here](#eq-4-44)")
    assert done.returncode == 0, done.stderr
    links = soup(tmp_path / "out" / "index.html").select("a[href*='home.html#eq']")
    links = [(link["href"].partition("#")[2], link.text) for link in links]
    assert links == [("eq-4-44", "(4.44)"), ("eq-4-45-prime", "(4.45′)"), ("eq-4-44", "(4.44)"), ("eq-4-44", "4.44")]
    page = soup(tmp_path / "out" / "04-home.html")
    assert page.find(id="eq-4-44") and page.find(id="eq-4-45-prime")
    (math,) = page.select("div.math")
    assert math.text.strip().startswith(r"\[") and "split" not in math.text


@pytest.mark.parametrize(
    "index, home",
    [
        (r"$$ a \tag{4.44} $$", r"$$ b \tag{4.44} $$"),
        ("", r"$$ b \tag{4.44} \\ c \tag{4.44} $$"),
        ("", "$$ a \\tag{4.44} $$\n\n$$ b \\tag{4.44} $$"),
    ],
    ids=["two pages", "one block", "one page"],
)
def test_a_number_tagged_twice_fails_the_build(tmp_path, index, home):
    done = build(tmp_path, index, home)
    assert done.returncode != 0 and "equation 4.44 is tagged twice" in done.stderr


@pytest.mark.parametrize("target", ["eq-4-44", "eq-4-45-prime", "eq-5-1"])
def test_a_link_to_a_missing_equation_fails_the_build(tmp_path, target):
    done = build(tmp_path, f"[here](#{target})", "Nothing.")
    assert done.returncode != 0 and f"'{target}'" in done.stderr


def test_a_link_into_a_chapter_that_is_not_there_yet_is_text(tmp_path):
    done = build(tmp_path, "by [(4.44)](#eq-4-44) and [(4.45′)](#eq-4-45-prime).")
    assert done.returncode == 0, done.stderr
    assert "by (4.44) and (4.45′)." in soup(tmp_path / "out" / "index.html").text


# In a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --disable-background-networking --disable-component-update".split()
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"  # who asks for something foreign is seen and gets no answer


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def end_headers(self):
        self.send_header("Cache-Control", "max-age=3600")
        super().end_headers()


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        missing = "no Chromium here (Debian, Ubuntu: apt-get install chromium): pages not tried in a browser"
        pytest.fail(missing, pytrace=False) if os.environ.get("REQUIRE_BROWSER") else pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, OFFLINE])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=HTML))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def contexts(browser):
    """Light or dark → a reader who keeps what every page loads."""
    return {scheme: browser.new_context(color_scheme=scheme) for scheme in ("light", "dark")}


@pytest.fixture
def visit(contexts, site, request):
    """Opens a page; afterwards, fails if it logged an error or asked for anything foreign."""
    page = contexts[getattr(request, "param", "light")].new_page()
    page.set_viewport_size({"width": 1280, "height": 900})
    page.set_default_timeout(120_000)
    wrong = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("response", lambda answer: wrong.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)
    page.on("request", lambda asked: wrong.append(f"foreign: {asked.url}") if not asked.url.startswith((site, "data:")) else None)

    def visit(address: str):
        page.goto(f"{site}/{address}")
        return page

    yield visit
    page.evaluate("localStorage.clear()")
    page.close()
    assert wrong == []


@pytest.mark.parametrize(
    "old, new",
    [
        ("07-from-trace-to-update.html#eq-4-49", "06-from-trace-to-update.html#eq-4-49"),
        ("03-coupled-objective.html#eq-4-42", "02-coupled-objective.html#eq-4-42"),
        ("03-coupled-objective.html#eq-4-26", "08-objectives.html#eq-4-26"),
        ("11-does-it-work.html", "12-does-it-work.html"),
    ],
)
def test_an_old_address_keeps_its_fragment(visit, old, new):
    page = visit(old)
    page.wait_for_url(f"**/{new}")
    page.wait_for_selector("article h1")


def overflow(page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


CLIPPED = """[...document.querySelectorAll("article pre")].filter(p => p.checkVisibility() && p.scrollWidth > p.clientWidth + 1)
    .map(p => p.textContent.trim().slice(0, 80))"""
OPEN_ALL = """() => [...document.querySelectorAll("article details > summary")].filter(summary => {
    summary.scrollIntoView({block: "center", behavior: "instant"});
    const {left, top, width, height} = summary.getBoundingClientRect();
    const hit = summary.contains(document.elementFromPoint(left + width / 2, top + height / 2));
    if (!summary.parentNode.open) summary.click();
    return !hit;
}).map(summary => summary.textContent)"""
KINDS = ("intro", "05-trace", "notation", "equation-index", "index-bench")  # one page of every kind: dark, and by axe, too
SCHEMES = [(name, "light") for name in PAGES] + [(name, "dark") for name in (*KINDS, "10-learning-psi")]
NOT_ASKED = {  # rules of axe-core
    "region": "the title in the theme's side bar stands in no landmark",
    "empty-table-header": "the corner above the names of rows, in tables of pandas",
}


def violations(page) -> list:
    """What axe-core finds, with all its rules but those that the theme itself breaks, and the pictures of formulas."""
    page.evaluate("dispatchEvent(new Event('resize'))")
    options = {"resultTypes": ["violations"], "preload": False, "rules": {rule: {"enabled": False} for rule in NOT_ASKED}}
    found = Axe().run(page, {"exclude": ["mjx-container", ".highlight"]}, options).response["violations"]
    return [(rule["id"], node["target"], node["failureSummary"]) for rule in found for node in rule["nodes"]]


@pytest.mark.parametrize("name, visit", SCHEMES, indirect=["visit"], ids=map("-".join, SCHEMES))
def test_page_in_a_browser(visit, name, request):
    page = visit(f"{name}.html")
    assert page.evaluate("document.documentElement.dataset.theme") == request.node.callspec.params["visit"]
    formulas = page.evaluate("document.querySelectorAll('div.math, span.math').length")
    written = "$" in re.sub(r"```.*?```|`[^`]*`", "", markdown(SOURCES[name]), flags=re.DOTALL)
    assert bool(formulas) == written
    if formulas:
        page.evaluate("MathJax.startup.promise")
        assert page.evaluate("document.querySelectorAll('[data-mjx-error]').length") == 0
        assert page.evaluate("document.querySelectorAll('mjx-container').length") == formulas
    if summary := page.query_selector("article details > summary"):
        summary.click()  # as a reader does, which takes a tenth of a second; then all others at once
    assert page.evaluate(OPEN_ALL) == [], "something lies above what a reader would click"
    assert page.evaluate("[...document.querySelectorAll('article details:not([open])')].map(d => d.innerText)") == []
    assert overflow(page) <= 0, "the page is wider than a window of 1280 px"
    if name in KINDS:
        assert violations(page) == []
    for width, height in ((1400, 900), (820, 1180), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        assert overflow(page) <= 0, f"the page is wider than a window of {width} px"
        assert width != 1400 or page.evaluate(CLIPPED) == [], "code or outputs are cut off"


def test_figures_have_two_pixels_for_one_of_the_page_and_keep_their_shape(visit):
    page = visit("12-does-it-work.html")
    sizes = "all => all.map(i => [i.naturalWidth, i.naturalHeight, i.clientWidth, i.clientHeight])"
    for width in (390, 1400):
        page.set_viewport_size({"width": width, "height": 900})
        figures = page.eval_on_selector_all("article .cell_output img", sizes)
        assert len(figures) >= 5
        for wide, high, shown_wide, shown_high in figures:
            assert wide >= 2 * shown_wide and shown_high == pytest.approx(shown_wide * high / wide, abs=1.5)


def test_wide_equations_start_at_their_left_edge_on_a_phone(visit):
    page = visit("09-tangent.html")
    page.set_viewport_size({"width": 390, "height": 844})
    page.evaluate("MathJax.startup.promise")
    where = """all => all.filter(d => d.scrollWidth > d.clientWidth + 1).map(d =>
        d.querySelector("mjx-container").getBoundingClientRect().left - d.getBoundingClientRect().left)"""
    wide = page.eval_on_selector_all("div.math", where)
    assert len(wide) >= 3 and all(-1 <= left <= 40 for left in wide)


@pytest.mark.parametrize("name", PAGES)
def test_every_figure_says_what_to_see(name):
    for image in soup(html(name)).select("article img"):
        assert len(image["alt"]) > 30 and image["alt"] != image["src"] and not re.search(r"[\\{}$]|\.png", image["alt"])


def test_a_link_to_an_equation_shows_it_on_hover_and_focus(visit):
    page = visit("06-from-trace-to-update.html")
    page.evaluate("MathJax.startup.promise")
    elsewhere = page.locator("article a[href*='.html#eq-4-4']").first
    elsewhere.hover()
    page.wait_for_selector(".equation-preview mjx-container")
    assert page.locator(".equation-preview [data-mjx-error]").count() == 0
    page.mouse.move(0, 0)
    page.wait_for_selector(".equation-preview", state="detached")
    here = page.locator("article a[href='#eq-4-49']").first
    here.focus()
    page.wait_for_selector(".equation-preview mjx-container")
    assert page.locator("#eq-4-49").count() == 1 and overflow(page) <= 0
    page.keyboard.press("Escape")
    assert page.locator(".equation-preview").count() == 0


def test_what_scrolls_can_be_reached_by_keyboard(visit):
    page = visit("09-tangent.html")
    page.set_viewport_size({"width": 390, "height": 844})
    page.evaluate("MathJax.startup.promise")
    page.wait_for_selector("div.math.scrolls")
    areas = """[...document.querySelectorAll("article :is(div.math, pre, table)")]"""
    page.wait_for_function(f"{areas}.every(n => n.scrollWidth <= n.clientWidth + 1 || n.tabIndex >= 0)")


def test_folded_code_opens_by_keyboard_and_says_what_it_is(visit):
    page = visit("06-from-trace-to-update.html")
    folds = page.locator("article details.fold")
    assert folds.count() >= 1 and page.locator("article details.fold[open]").count() == 0
    first = folds.first.locator("summary")
    assert first.inner_text() == "Show the setup"
    first.focus()
    page.keyboard.press("Enter")
    assert first.inner_text() == "Hide the setup" and folds.first.locator("pre").is_visible()


def test_a_figure_opens_in_full_size_by_keyboard_and_closes(visit):
    page = visit("05-trace.html")
    link = page.locator("a.figure-link").first
    alternative = link.locator("img").get_attribute("alt")
    link.focus()
    page.keyboard.press("Enter")
    full = page.locator("dialog.figure-full")
    assert full.is_visible() and full.locator("img").get_attribute("alt") == alternative
    page.keyboard.press("Escape")
    assert not full.is_visible() and page.evaluate("document.activeElement.className") == "figure-link"
    link.click()
    full.locator("button").click()
    assert not full.is_visible()


def test_the_search_finds_an_equation_and_shows_no_tex(visit):
    page = visit("search.html?q=4.49")
    found = page.locator("#search-results li a[href*='06-from-trace-to-update.html#eq-4-49']")
    found.first.wait_for()
    page = visit("search.html?q=trace+coupling")
    page.wait_for_selector("#search-results li p.context")
    page.wait_for_function("document.querySelector('#search-results > p, .search-summary')?.textContent.match(/\\d/)")
    excerpts = page.locator("#search-results li p.context").all_inner_texts()
    excerpts += page.evaluate("Object.keys(Search._index.alltitles)")
    assert len(excerpts) >= 100 and not re.search(r"\\[a-zA-Z(\[]", " ".join(excerpts))


def test_the_equation_index_has_a_filter(visit):
    page = visit("equation-index.html")
    assert page.locator(".table-filter [role=status]").inner_text() == "34 of 34 rows"
    page.get_by_label("Show only rows with").fill("4.49")
    rows = page.locator("article tbody tr:visible")
    assert rows.count() == 1 and "as printed ≥ 0.10; as derived < 1e-9" in rows.inner_text()
    page.get_by_label("Show only rows with").fill("corrected ψ")
    assert 1 <= rows.count() <= 4 and all("corrected" in text for text in rows.all_inner_texts())


@pytest.mark.parametrize("name", ["notation", "equation-index"])
def test_a_row_fits_a_phone(visit, name):
    page = visit(f"{name}.html")
    page.set_viewport_size({"width": 390, "height": 844})
    page.evaluate("MathJax.startup.promise")
    assert page.eval_on_selector_all(f"#{name} table", "all => all.every(t => t.scrollWidth <= t.clientWidth + 1)")
    broken = "all => all.filter(c => c.checkVisibility() && c.getClientRects().length > 1).map(c => c.textContent)"
    assert page.eval_on_selector_all("#notation td code", broken) == []


def test_a_page_on_paper(visit):
    page = visit("06-from-trace-to-update.html")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 680, "height": 1000})  # A4 without its margins
    hidden = ".bd-sidebar-primary, .bd-sidebar-secondary, .bd-header-article, .prev-next-area, .headerlink"
    assert page.eval_on_selector_all(hidden, "all => all.filter(n => n.checkVisibility()).length") == 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("article details:not([open], .setup)").count() == 0
    assert page.eval_on_selector_all("article details.setup", "all => all.every(d => !d.checkVisibility())")
    assert page.eval_on_selector_all(".highlight pre", "all => all.every(p => p.scrollWidth <= p.clientWidth + 1)")
    assert overflow(page) <= 0


def test_the_whole_book_is_one_page_whose_links_lead_somewhere():
    whole = pdf.whole_book()
    assert [article["id"] for article in whole.select("article")] == pdf.pages()
    assert sorted(pdf.pages()) == [name for name in PAGES if not name.startswith("api")]
    ids = Counter(node["id"] for node in whole.select("[id]"))
    assert ids.most_common(1)[0][1] == 1
    inside = {link["href"][1:] for link in whole.select("a[href^='#']")}
    assert len(inside) > 50 and not inside - set(ids)
    assert "06-from-trace-to-update--eq-4-49" in inside
    assert [link["href"] for link in whole.select("article a[href]") if not link["href"].startswith(("#", "http"))] == []
    folded = whole.select("article details")
    assert len(folded) > 90 and all(details.has_attr("open") == ("fold" not in details.get("class", [])) for details in folded)


def test_the_front_page_is_the_first_page_and_search_works_offline(visit):
    page = visit("index.html")
    assert page.url.endswith("/index.html") and page.inner_text("h1").startswith("DCP-NAS by derivation")
    page = visit("search.html?q=tangent")
    page.wait_for_selector("#search-results li a")


# The index bench and the micro table


def heat_maps(page, within: str) -> list[torch.Tensor]:
    rows = "tables => tables.map(t => [...t.rows].map(r => [...r.cells].map(c => Number(c.dataset.value))))"
    return [torch.tensor(table, dtype=torch.float64) for table in page.eval_on_selector_all(f"{within} table.heat", rows)]


def figure(page, name: str) -> float:
    return float(page.get_attribute(f"#bench-{name}", "data-value"))


def set_sizes(page, E: int, M: int) -> None:
    for name, value in (("E", E), ("M", M)):
        page.fill(f"#bench-{name}", str(value))


def coupling_by_autograd(alpha, factor, dw):
    """dL/dα less ∂L/∂α at fixed w, for L = Σ L̃[m, e] α[e, m] w_m and w_m = Σ_e dw[e, m] α[e, m] + 0.7: what the page says."""

    def loss(alpha, w):
        return (factor.T * alpha * w).sum()

    alpha = alpha.clone().requires_grad_()
    w = (dw * alpha).sum(0) + 0.7
    (total,) = torch.autograd.grad(loss(alpha, w), alpha, retain_graph=True)
    (direct,) = torch.autograd.grad(loss(alpha, w.detach()), alpha)
    return total - direct


def test_the_index_bench_computes_what_the_package_computes(visit):
    page, draw = visit("index-bench.html"), random.Random(0)
    signs, compared = set(), Counter()
    for number in range(20):
        edges, ops = draw.sample("efgabc", 2), draw.sample("imkxyz", 2)
        names = [draw.choice(edges), draw.choice(ops), draw.choice(ops), draw.choice(edges), draw.choice(edges), draw.choice(ops)]
        used = sorted(set(names))
        output = "".join(draw.sample(used, draw.randint(0, 2)))
        string = "{}{},{}{},{}{}->".format(*names) + output
        E, M = draw.randint(1, 14), draw.randint(1, 8)
        set_sizes(page, E, M)
        page.select_option("#bench-signs", index=number % 2)
        page.click("text=other numbers")
        page.fill("#bench-string", string)
        alpha, factor, dw = heat_maps(page, "#index-bench details")
        assert (alpha.shape, factor.shape, dw.shape) == ((E, M), (M, E), (E, M))
        signs.add((number % 2, (alpha < 0).any().item()))
        want, maps = torch.einsum(string, alpha, factor, dw), heat_maps(page, "#index-bench > .heat-row")
        kinds = ["E" if letter in edges else "M" for letter in output]
        sizes = ", ".join(str(E if kind == "E" else M) for kind in kinds)
        assert page.inner_text("#bench-shape") == f"({', '.join(kinds)}) = ({sizes})"
        assert torch.allclose(maps[0].flatten(), want.flatten(), rtol=1e-12, atol=1e-12), string
        if len(set(kinds)) < len(kinds):  # two edges or two operations: no counterpart
            assert len(maps) == 1 and not page.query_selector("#bench-error")
            compared["none"] += 1
            continue
        C = coupling_by_autograd(alpha, factor, dw)
        assert torch.allclose(C, trace.coupling(torch.diag(factor @ alpha), trace.response_slices(dw)))
        exact = {"EM": C, "ME": C.T, "E": C.sum(1), "M": C.sum(0), "": C.sum()}["".join(kinds)]
        assert torch.allclose(maps[1].flatten(), exact.flatten(), rtol=1e-12, atol=1e-12), string
        norms = want.norm() * exact.norm()
        assert figure(page, "error") == pytest.approx(((want - exact).norm() / exact.norm()).item(), rel=1e-9, abs=1e-12)
        assert figure(page, "cosine") == pytest.approx(((want * exact).sum() / norms).item(), rel=1e-9, abs=1e-12)
        compared["".join(kinds)] += 1
    assert {(0, False), (1, True)} <= signs and min(compared[k] for k in ("EM", "ME", "E", "M", "", "none")) >= 1, compared


def test_the_buttons_of_the_bench_are_the_functions_of_the_package(visit):
    """The lines by name, on chapter 6's toy and its figures, by keyboard alone; and on another size."""
    page = visit("index-bench.html")
    functions = {
        "4.49": lambda a, L, d: trace.trace_components(a, L, d),
        "slip 1 mended": lambda a, L, d: torch.trace(a @ L) * d.sum(1),
        "slip 2 mended": lambda a, L, d: (a * (L @ d).diagonal()).sum(1),
        "4.49′": lambda a, L, d: trace.coupling(torch.diag(L @ a), trace.response_slices(d)),
        "4.50": lambda a, L, d: -trace.psi_as_printed(L, d) * a,
    }
    functions["4.50′"] = lambda a, L, d: -trace.psi_as_derived(a, functions["4.49′"](a, L, d)) * a
    assert page.eval_on_selector_all(".bench-buttons button", "all => all.map(b => b.textContent)") == list(functions)
    errors = {}
    for sizes in ((3, 4), (5, 2)):
        set_sizes(page, *sizes)
        page.focus("#bench-string")
        for name, function in functions.items():
            page.keyboard.press("Tab")
            page.keyboard.press("Enter")
            tensors = heat_maps(page, "#index-bench details")
            maps, want = heat_maps(page, "#index-bench > .heat-row"), function(*tensors)
            assert torch.allclose(maps[0].flatten(), want.flatten(), rtol=1e-12, atol=1e-12), name
            if want.ndim == 2:
                assert torch.allclose(maps[2], -want / tensors[0], rtol=1e-12, atol=1e-12)
            assert name.split()[0] in page.inner_text(".bench-line") or "slip" in name
            assert page.get_attribute(".bench-line a", "href").startswith("06-from-trace-to-update.html#")
            errors[sizes, name] = page.inner_text("#bench-error")
    assert [errors[(3, 4), name] for name in ("4.49", "slip 1 mended")] == ["1.53", "2.73"]  # as chapter 6 prints them
    assert errors[(3, 4), "4.49′"] == errors[(3, 4), "4.50′"] == errors[(5, 2), "4.49′"] == "0"
    assert all(error != "0" for (_, name), error in errors.items() if "′" not in name)
    set_sizes(page, 1, 4)
    page.click("text=slip 2 mended")
    assert page.inner_text("#bench-error") == "0"


def test_the_bench_links_to_what_the_book_has():
    script = (ROOT / "book" / "_static" / "index-bench.js").read_text(encoding="utf8")
    assert len(script.splitlines()) < 400
    links = re.findall(r'(?:page: "([\w.-]+)", )?link: "#([\w-]+)"', script)
    assert len(links) == 9
    for page, fragment in links:
        assert soup(HTML / (page or "06-from-trace-to-update.html")).find(id=fragment), fragment


LINES = {
    "xa,ab,by->x": "4.49 as printed",  # other letters, the same line
    " Em, mF ,Fm → E ": "4.49 with one operation m",
    "fm,mf,em->e": "4.49′ added up over the operations",
    "em,mf,fm->em": "4.50 with its bracket read element by element",
    "ei,if,fm->em": "4.48",
    "fm,mf,em->me": "The factors of “4.49′” with other letters free",
    "em,me,em->em": "No line of the book",
}
MISTAKES = {
    "": "Write one arrow",
    "ei,if,fm": "Write one arrow",
    "ei,if->e": "Three factors are needed, separated by commas: α, L̃, ∂w/∂α. There are 2.",
    "ei,if,fm->e,m": "no comma after the arrow",
    "ei,if,f1->e": "“1” is no index",
    "eim,if,fm->e": "α has two axes (edge, operation); the string gives it 3 letters.",
    "ei,ie,fe->e": "“e” counts edges in α and operations in ∂w/∂α: one letter, one meaning.",
    "ee,if,fm->e": "“e” counts edges in α and operations in α",
    "ei,if,fm->k": "“k” stays free, but no factor carries it.",
    "ei,if,fm->ee": "“e” stands twice after the arrow.",
}


def test_the_bench_names_the_line(visit):
    page = visit("index-bench.html")
    for string, line in LINES.items():
        page.fill("#bench-string", string)
        assert line in page.inner_text(".bench-line"), string


def test_the_bench_says_in_a_line_what_is_wrong(visit):
    page = visit("index-bench.html")
    for string, message in MISTAKES.items():
        page.fill("#bench-string", string)
        assert message in page.inner_text("#bench-verdict"), string
        assert len(page.query_selector_all("#bench-verdict p")) == 1, string
        assert page.get_attribute("#bench-string", "aria-invalid") == "true", string
        page.fill("#bench-string", "ei,if,fm->e")
        assert page.get_attribute("#bench-string", "aria-invalid") is None and page.query_selector("#bench-error"), string


def shown_cell(page) -> list[dict]:
    return page.eval_on_selector_all("#micro-table tr[data-rank]", "rows => rows.map(r => ({...r.dataset}))")


def test_the_micro_table_shows_what_the_package_holds(visit):
    page, draw = visit("index-bench.html"), random.Random(0)
    for name in ("digits", "fashion_mnist"):
        bench = MicroBench.load(name)
        page.select_option("#micro-data", name)
        assert page.eval_on_selector_all("#micro-table figure", "all => all.filter(f => f.checkVisibility()).length") == 1
        page.click("text=best 1-bit cell")
        assert float(shown_cell(page)[0]["accuracy"]) == bench.accuracy(bench.top(1)[0]) and shown_cell(page)[0]["rank"] == "1"
        for cell in draw.sample(range(CELLS), 15):
            for place, operation in enumerate(operations(cell)):
                page.select_option(f"#micro-{place}", operation)
            for row, bits in zip(shown_cell(page), (1, 32), strict=True):
                mean = bench.mean[bits, "test"]
                assert float(row["accuracy"]) == bench.accuracy(cell, bits) and int(row["size"]) == bench.size(cell, bits)
                assert float(row["percentile"]) == pytest.approx(bench.percentile(cell, bits), abs=1e-9)
                assert int(row["rank"]) == 1 + (mean > mean[cell]).sum()


def test_what_the_page_says_about_the_cells():
    for name, digit in (("digits", 0.1), ("fashion_mnist", 0.5)):
        bench = MicroBench.load(name)
        assert round(spearmanr(bench.mean[1, "test"], bench.mean[32, "test"]).statistic, 1) == digit
        assert bench.top(1, 1) != bench.top(1, 32)
        assert (bench.mean[1, "test"] < bench.mean[32, "test"]).mean() > 0.97


def test_the_figures_work_by_touch_on_a_phone(browser, site):
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(f"{site}/index-bench.html")
    for button in page.query_selector_all(".bench button, .bench select, .bench label, #bench-string"):
        assert button.bounding_box()["height"] >= 44
    page.tap("text=slip 1 mended")
    assert page.inner_text("#bench-error") == "2.73"
    set_sizes(page, 14, 8)
    page.tap("text=4.49′ >> nth=-1")
    dot = page.locator('#micro-table figure:visible circle[data-cell="7"]')
    dot.scroll_into_view_if_needed()
    box = dot.bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.inner_text("#micro-table .bench-verdict p").startswith("Cell 7: none, none, sep_conv_5x5")
    assert overflow(page) <= 0
    context.close()


def test_without_scripts_there_is_a_picture(browser, site):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{site}/index-bench.html")
    assert page.locator("#index-bench table.heat").count() == 4
    assert page.locator("#index-bench td >> text=8.59").is_visible() and page.locator("#micro-table svg").count() == 2
    context.close()
