r"""Equations by the source's own numbers, written so that Jupyter and Colab show the same as the book.

A block ``$$ … \tag{4.44} $$`` gets the anchor ``eq-4-44``, and ``[(4.44)](#eq-4-44)`` links to it from any page; so does a link
to that anchor on the published book, as raw notebooks have it. ``\tag{4.49′}`` gets ``eq-4-49-prime``. A tag that is used twice
in the book is a warning. A link to an equation whose home chapter is not in the book yet is plain text; any other link without a
target is a warning.
"""

from __future__ import annotations

import re

from docutils import nodes
from equation_names import TAG, anchor
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

logger = logging.getLogger(__name__)

# The home chapter of every printed number, by the first two letters of the file's name.
HOME = {
    "02": "4.20 4.27 4.28 4.42",
    "03": "4.43",
    "04": "4.44 4.45",
    "05": "4.46 4.47 4.48",
    "06": "4.49 4.50",
    "07": "4.22 4.23 4.34 4.35",
    "08": "4.21 4.24 4.25 4.26 4.32",
    "09": "4.29 4.30 4.31 4.33 4.36 4.37 4.38 4.39 4.40 4.41",
    "10": "4.51 4.52 4.53",
}
PUBLISHED = re.compile(r"https://[\w-]+\.github\.io/[\w.-]+/[\w-]+\.html(#eq-[\w-]+)")


class EquationTags(SphinxTransform):
    """Show every ``$$`` block as it is (in Sphinx's ``split`` MathJax refuses tags) and register its tags, for the search too."""

    default_priority = 350

    def apply(self) -> None:
        labels = self.env.get_domain("std")
        slugs = self.env.metadata[self.env.docname].setdefault("myst_slugs", {})
        for block in list(self.document.findall(nodes.math_block)):
            tex = block.astext()
            if not block.get("nowrap"):
                block["nowrap"] = True
                block.children = [nodes.Text(rf"\[{tex}\]")]
            for tag in TAG.findall(tex):
                name = anchor(tag)
                if name in labels.anonlabels:
                    other = self.env.doc2path(labels.anonlabels[name][0], base=False)
                    logger.warning("equation %s is tagged twice, first in %s", tag, other, location=block)
                    continue
                block["ids"].append(name)
                labels.note_hyperlink_target(name, self.env.docname, name, f"({tag})")
                slugs[name] = (block.line, name, f"({tag})")
                block.parent.insert(block.parent.index(block), addnodes.index(entries=[("single", tag, name, "", None)]))
        for link in self.document.findall(nodes.reference):
            published = PUBLISHED.fullmatch(link.get("refuri", ""))
            if published:
                link["refuri"], link["id_link"] = published[1], True
        homes = {page[:2] for page in self.env.found_docs}
        absent = [anchor(tag) for home, tags in HOME.items() if home not in homes for tag in tags.split()]
        for link in list(self.document.findall(nodes.reference)):
            if link.get("refuri", "").removeprefix("#").removesuffix("-prime") in absent and link.children:
                link.replace_self(link.children)


def setup(app: Sphinx) -> dict[str, object]:
    app.add_transform(EquationTags)
    return {"version": "1", "env_version": 1, "parallel_read_safe": True, "parallel_write_safe": True}
