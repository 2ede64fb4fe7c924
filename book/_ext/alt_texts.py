"""Every figure's alternative text is the sentence of the chapter that says what to see in it, without a second copy."""

from __future__ import annotations

import re
import unicodedata

from docutils import nodes
from sphinx.application import Sphinx

SAYS = "What to see."
LONGEST = 400
SIGNS = {"circledast": "⊛", "odot": "⊙", "cdot": "·", "times": "×", "partial": "∂", "sum": "Σ", "to": "→", "le": "≤", "ge": "≥"}
SIGNS |= {"ne": "≠", "approx": "≈", "pm": "±", "infty": "∞", "dots": "…", "ldots": "…", "in": "∈"}


def letter(command: re.Match) -> str:
    """A command of TeX as a character: signs, Greek letters; nothing for what only says how something looks."""
    name = command[1]
    try:
        return SIGNS.get(name) or unicodedata.lookup(f"GREEK {'SMALL' if name[0].islower() else 'CAPITAL'} LETTER {name}")
    except KeyError:
        return ""


def spoken(paragraph: nodes.paragraph) -> str:
    """The paragraph as plain text: formulas without TeX's marks, at most some sentences."""
    text = " ".join(paragraph.astext().split()).removeprefix(SAYS).strip()
    text = re.sub(r"\\[^a-zA-Z]|[{}$]", "", re.sub(r"\\([a-zA-Z]+)", letter, text))
    return text if len(text) <= LONGEST else text[:LONGEST].rpartition(". ")[0] + "."


def describe(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    waiting: list[nodes.image] = []
    for node in doctree.findall(lambda n: isinstance(n, nodes.image | nodes.paragraph | nodes.title)):
        if isinstance(node, nodes.image) and not node.get("alt"):
            waiting.append(node)
        elif isinstance(node, nodes.paragraph) and node.astext().startswith(SAYS):
            for image in waiting:
                image["alt"] = spoken(node)
            waiting = []
        elif isinstance(node, nodes.title):
            for image in waiting:
                image["alt"] = f"Figure in the section before “{node.astext()}”"
            waiting = []


def setup(app: Sphinx) -> dict[str, object]:
    app.connect("doctree-resolved", describe)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
