"""Print the built book as one PDF with Chromium: python tools/pdf.py [_build/book.pdf]. Links between pages stay links."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import sys
import threading
from pathlib import Path

import yaml
from bs4 import BeautifulSoup, SoupStrainer
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
HTML = Path(os.environ.get("BOOK_HTML", ROOT / "_build" / "html"))  # another build, while a chapter is written
FOOTER = '<div style="width: 100%; font-size: 8px; text-align: center"><span class="pageNumber"></span></div>'


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def pages() -> list[str]:
    """The pages in the order of the table of contents, without the package's reference, which is no use on paper."""

    def files(entries: list[dict]) -> list[str]:
        return [name for entry in entries for name in (entry["file"], *files(entry.get("sections", [])))]

    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf8"))
    return [toc["root"], *(name for part in toc["parts"] for name in files(part["chapters"]) if not name.startswith("api"))]


def whole_book(html: Path = HTML) -> BeautifulSoup:
    """One page with the articles of all; an id carries its page's name, and links are led to these."""
    names = pages()
    front = BeautifulSoup((html / f"{names[0]}.html").read_text(encoding="utf8"), "html.parser")
    body = front.new_tag("main", attrs={"class": "whole-book"})
    for name in names:
        page = (html / f"{name}.html").read_text(encoding="utf8")
        article = BeautifulSoup(page, "html.parser", parse_only=SoupStrainer("article")).find("article")
        for node in article.find_all(id=True):
            node["id"] = f"{name}--{node['id']}"
        for node in article.find_all(href=True):
            page, _, fragment = node["href"].partition("#")
            if page == "" or page.removesuffix(".html") in names:
                node["href"] = f"#{page.removesuffix('.html') or name}" + (f"--{fragment}" if fragment else "")
            elif not page.startswith("http"):
                node.unwrap()
        for node in article.select("script, .headerlink"):
            node.decompose()
        for node in article.select("details:not(.fold)"):
            node["open"] = ""
        if name == names[0]:
            note = front.new_tag("p")
            note.string = "Printed without the code that the pages fold away; the notebooks have all of it."
            article.h1.insert_after(note)
        article["id"] = name
        body.append(article)
    front.body.clear()
    front.body.append(body)
    for name in ("index-bench", "comfort", "pydata", "bootstrap"):
        for node in front.select(f"script[src*='{name}']"):
            node.decompose()
    front.html["data-theme"] = "light"
    return front


def main(target: str = "_build/book.pdf") -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        raise SystemExit("no Chromium here (Debian, Ubuntu: apt-get install chromium)")
    path = HTML / "whole-book.html"
    path.write_text(str(whole_book()), encoding="utf8")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=HTML))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page()
            page.set_default_timeout(300_000)
            page.goto(f"http://127.0.0.1:{server.server_port}/{path.name}")
            page.evaluate("MathJax.startup.promise")
            margin = {"top": "18mm", "bottom": "18mm", "left": "16mm", "right": "16mm"}
            footer = {"display_header_footer": True, "header_template": "<span></span>", "footer_template": FOOTER}
            page.pdf(path=target, format="A4", margin=margin, print_background=True, tagged=True, outline=True, **footer)
            browser.close()
    finally:
        server.shutdown()
        path.unlink()
    count = len(re.findall(rb"/Type\s*/Page\b", Path(target).read_bytes()))
    print(f"{target}: {count} pages")


if __name__ == "__main__":
    main(*sys.argv[1:])
