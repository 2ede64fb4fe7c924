"""The built book: `make book` makes it, these tests read it, first as files, then in a browser."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
if not (HTML / "index.html").exists():
    pytest.fail("the book is not built: run make book", pytrace=False)
sys.path.insert(0, str(ROOT / "book" / "_ext"))
from equation_tags import HOME, TAG, anchor  # noqa: E402

SOURCES = {path.stem: path for path in sorted((ROOT / "book").glob("*.*")) if path.suffix in {".md", ".ipynb"}}
PAGES = sorted(SOURCES)


@functools.cache
def soup(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf8"), "html.parser")


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
    listed = [toc["root"]] + [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
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
    ids = Counter(node["id"] for node in soup(html(name)).select("[id]"))
    for tag in tags(name):
        assert ids[anchor(tag)] == 1, f"({tag}) has {ids[anchor(tag)]} anchors"
    assert [i for i, times in ids.items() if times > 1 and i.startswith("eq-")] == []


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
            assert soup(file).find(id=unquote(fragment)), f"{target}: there is no such anchor"


def test_stylesheets_load_nothing_remote():
    for sheet in HTML.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text(encoding="utf8")), sheet


# The extension, on small books of its own


def build(folder: Path, index: str, home: str = "") -> subprocess.CompletedProcess:
    shutil.copytree(ROOT / "book" / "_ext", folder / "_ext", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "conf.py").write_text(
        "import sys; sys.path.insert(0, '_ext')\n"
        "extensions = ['myst_parser', 'sphinx.ext.mathjax', 'equation_tags']\nmyst_enable_extensions = ['dollarmath']\n"
    )
    (folder / "index.md").write_text("# Index\n\n" + index + ("\n\n```{toctree}\n05-home\n```\n" if home else ""))
    if home:
        (folder / "05-home.md").write_text("# Home\n\n" + home)
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "--keep-going", "-q", "-b", "html", ".", "out"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_equations_link_across_pages(tmp_path):
    index = "[(4.44)](#eq-4-44), [](#eq-4-45-prime), [](05-home.md#eq-4-44)"
    done = build(tmp_path, index, "$$\na &= b \\tag{4.44} \\\\\nc &= d \\tag{4.45′}\n$$\n\n[here](#eq-4-44)")
    assert done.returncode == 0, done.stderr
    links = soup(tmp_path / "out" / "index.html").select("a[href*='home.html#eq']")
    links = [(link["href"].partition("#")[2], link.text) for link in links]
    assert links == [("eq-4-44", "(4.44)"), ("eq-4-45-prime", "(4.45′)"), ("eq-4-44", "(4.44)")]
    page = soup(tmp_path / "out" / "05-home.html")
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


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        missing = "no Chromium here (Debian, Ubuntu: apt-get install chromium): pages not tried in a browser"
        pytest.fail(missing, pytrace=False) if os.environ.get("REQUIRE_BROWSER") else pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=HTML))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def visit(browser, site, request):
    """Opens a page in a fresh context; afterwards, fails if it logged an error or asked for anything foreign."""
    scheme = getattr(request, "param", "light")
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    wrong = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("response", lambda answer: wrong.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)

    def guard(route):
        if route.request.url.startswith(site):
            route.continue_()
        else:
            wrong.append(f"foreign request: {route.request.url}")
            route.abort()

    context.route("**/*", guard)

    def visit(address: str):
        page.goto(f"{site}/{address}")
        return page

    yield visit
    context.close()
    assert wrong == []


def overflow(page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.mark.parametrize("visit", ["light", "dark"], indirect=True)
@pytest.mark.parametrize("name", PAGES)
def test_page_in_a_browser(visit, name, request):
    page = visit(f"{name}.html")
    assert page.evaluate("document.documentElement.dataset.theme") == request.node.callspec.params["visit"]
    formulas = page.evaluate("document.querySelectorAll('div.math, span.math').length")
    assert bool(formulas) == ("$" in re.sub(r"```.*?```|`[^`]*`", "", markdown(SOURCES[name]), flags=re.DOTALL))
    if formulas:
        page.evaluate("MathJax.startup.promise")
        assert page.evaluate("document.querySelectorAll('[data-mjx-error]').length") == 0
        assert page.evaluate("document.querySelectorAll('mjx-container').length") == formulas
    for summary in page.query_selector_all("article details > summary"):
        summary.click()
    assert page.evaluate("[...document.querySelectorAll('article details:not([open])')].map(d => d.innerText)") == []
    assert overflow(page) <= 0, "the page is wider than a window of 1280 px"
    page.set_viewport_size({"width": 390, "height": 844})
    assert overflow(page) <= 0, "the page is wider than a phone"


def test_the_front_page_leads_in_and_search_works_offline(visit):
    page = visit("index.html")
    page.wait_for_url("**/intro.html")
    page = visit("search.html?q=tangent")
    page.wait_for_selector("#search-results li a")
