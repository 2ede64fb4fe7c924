"""Code that a reader may skip: a cell with the tag ``hide-input`` is a closed fold whose one label says what is in it."""

from __future__ import annotations

from html import escape

from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode
from sphinx.application import Sphinx
from sphinx.writers.html import HTMLTranslator

SETUP = "# Installs dcpnas_lite"  # how the first cell of a notebook starts


def visit(self: HTMLTranslator, node: HideCodeCellNode) -> None:
    setup = node.astext().startswith(SETUP)
    kind, what = ("fold setup", "the setup") if setup else ("fold", "code")
    shown = "".join(
        f'<span class="{state}">{escape(f"{verb} {what}")}</span>' for state, verb in (("closed", "Show"), ("opened", "Hide"))
    )
    self.body.append(f'<details class="{kind}"><summary>{shown}</summary>\n')


def depart(self: HTMLTranslator, node: nodes.Element) -> None:
    self.body.append("</details>\n")


def setup(app: Sphinx) -> dict[str, object]:
    app.setup_extension("myst_nb")
    app.add_node(HideCodeCellNode, override=True, html=(visit, depart))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
