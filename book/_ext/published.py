"""What depends on where the book is published: buttons, addresses, previews, a map, the first page, how to cite it.

While the repository's address in `_config.yml` has no owner, the book shows no link to it.
"""

from __future__ import annotations

import html
import re
import shutil
from pathlib import Path

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
BUTTONS = ("use_repository_button", "use_issues_button", "launch_buttons")


def address_or_none(app: Sphinx, config) -> None:
    """Before the theme reads its options: no address, no buttons; with one, every page names its canonical address."""
    owner, name = config.html_theme_options["repository_url"].removeprefix("https://github.com/").split("/")
    if owner == "OWNER":
        config.html_theme_options |= dict.fromkeys(BUTTONS, False) | {"launch_buttons": {}}
    else:
        config.html_baseurl = f"https://{owner.lower()}.github.io/{name}/"


def preview(title: str, text: str, page: str, base: str) -> str:
    """What search engines and the previews of links show; address and picture only where the book has an address."""
    tags = {"og:type": "article", "og:site_name": "DCP-NAS by derivation", "og:title": title, "og:description": text}
    if base:
        tags |= {"og:url": f"{base}{page}.html", "og:image": f"{base}_static/card.png", "og:image:alt": "DCP-NAS by derivation"}
    lines = [f'<meta name="description" content="{html.escape(text)}" />'] * bool(text)
    lines += [f'<meta property="{name}" content="{html.escape(content)}" />' for name, content in tags.items() if content]
    return "\n".join(lines) + "\n"


def describe(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: nodes.document | None) -> None:
    """The page in a sentence or two: its first paragraph of some length outside lists and tables."""
    paragraphs = doctree.findall(nodes.paragraph) if doctree else ()
    texts = (" ".join(p.astext().split()) for p in paragraphs if isinstance(p.parent, nodes.section))
    text = next((t for t in texts if len(t) > 80), "")
    if len(text) > 200:
        text = text[:200].rpartition(" ")[0] + " …"
    if doctree:
        title = html.unescape(re.sub("<[^>]*>", "", context["title"]))
        context["metatags"] = context.get("metatags", "") + preview(title, text, pagename, app.config.html_baseurl)


def sitemap(base: str, pages: list[str]) -> str:
    urls = "".join(f"<url><loc>{html.escape(f'{base}{page}.html')}</loc></url>\n" for page in sorted(pages))
    head = '<?xml version="1.0" encoding="utf-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n'
    return f"{head}{urls}</urlset>\n"


def first_page(app: Sphinx, exception: Exception | None) -> None:
    """index.html is the first page itself, not a page that leads to it; and a map of the site, where that has an address."""
    if exception is None and app.builder.format == "html":
        if app.config.html_baseurl:
            (Path(app.outdir) / "sitemap.xml").write_text(sitemap(app.config.html_baseurl, app.env.found_docs), encoding="utf8")
        shutil.copyfile(Path(app.outdir) / f"{app.config.root_doc}.html", Path(app.outdir) / "index.html")


def bibtex(citation: dict) -> str:
    """The entry of this book, from CITATION.cff; without an address while that has no owner."""
    url = citation["repository-code"]
    fields = {
        "title": f"{{{citation['title']}}}",
        "author": f"{{{' and '.join(author['name'] for author in citation['authors'])}}}",
        "version": citation["version"],
        "year": re.search(r"\d{4}", str(citation["date-released"]))[0],
    } | ({} if "/OWNER/" in url else {"url": url})
    lines = "".join(f"  {name:7} = {{{value}}},\n" for name, value in fields.items())
    return f"@misc{{dcpnas_by_derivation,\n{lines}}}"


class Citation(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        path = ROOT / "CITATION.cff"
        self.env.note_dependency(str(path))
        text = bibtex(yaml.safe_load(path.read_text(encoding="utf8")))
        return [nodes.literal_block(text, text, language="bibtex")]


def on_paper(base: str) -> nodes.paragraph:
    """Where the book is one PDF: beside the pages that are published, or made by a command."""
    if base:
        pdf: nodes.Node = nodes.reference("", "one PDF", refuri=f"{base}book.pdf")
        return nodes.paragraph("", "", nodes.Text("On paper: the book is "), pdf, nodes.Text("."))
    command = nodes.literal("", "make pdf")
    return nodes.paragraph("", "", nodes.Text("On paper: "), command, nodes.Text(" prints the book as one PDF."))


class OnPaper(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        return [on_paper(self.config.html_baseurl)]


def setup(app: Sphinx) -> dict[str, object]:
    app.add_directive("citation", Citation)
    app.add_directive("on-paper", OnPaper)
    app.connect("config-inited", address_or_none, priority=100)
    app.connect("html-page-context", describe)
    app.connect("build-finished", first_page, priority=100)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
