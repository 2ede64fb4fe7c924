"""The list of all exercises, made from the chapters' own headings when the book is built: nothing to keep in order by hand.

A heading ``### Exercise 2: the coupling (easy, 10 minutes)`` in a chapter is an exercise; the first ``lab.check("NAME", …)`` in
a code cell below it is its check. ``{exercise-list}`` is the table of them all.
"""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

HEADING = re.compile(r"Exercise (\d+): (.+) \((easy|medium|hard|open), (\d+) minutes\)")
CHECK = re.compile(r'lab\.check\("([^"]+)"')
COLUMNS = {"Ch.": 6, "Exercise": 44, "Level, time": 22, "Check": 28}


class ExerciseList(nodes.General, nodes.Element):
    """The place of the table."""


class Directive(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        return [ExerciseList()]


def inner(title: nodes.title, name: str) -> list[nodes.Node]:
    """The title without its number, level and minutes; formulas in it stay formulas."""
    parts = [child.deepcopy() for child in title.children]
    if len(parts) == 1:
        return [nodes.Text(name)]
    parts[0] = nodes.Text(re.sub(r"^Exercise \d+: ", "", parts[0].astext()))
    parts[-1] = nodes.Text(re.sub(r" \(\w+, \d+ minutes\)$", "", parts[-1].astext()))
    return parts


def collect(app: Sphinx, doctree: nodes.document) -> None:
    docname = app.env.docname
    found = []
    for section in doctree.findall(nodes.section) if docname[:2].isdigit() else ():
        title = section.next_node(nodes.title)
        heading = title and HEADING.fullmatch(title.astext())
        if heading:
            code = "\n".join(block.astext() for block in section.findall(nodes.literal_block))
            check = CHECK.search(code)
            _, name, level, minutes = heading.groups()
            found.append((section["ids"][0], inner(title, name), level, int(minutes), check and check[1]))
    exercises(app.env)[docname] = found


def exercises(env) -> dict[str, list]:
    if not hasattr(env, "exercises_of_chapters"):
        env.exercises_of_chapters = {}
    return env.exercises_of_chapters


def purge(app: Sphinx, env, docname: str) -> None:
    exercises(env).pop(docname, None)


def merge(app: Sphinx, env, docnames, other) -> None:
    exercises(env).update({name: found for name, found in exercises(other).items() if name in docnames})


def cell(*children: nodes.Node) -> nodes.entry:
    return nodes.entry("", nodes.paragraph("", "", *children))


def table(app: Sphinx, docname: str) -> list[nodes.Node]:
    listed = [(chapter, *one) for chapter, found in sorted(exercises(app.env).items()) for one in found]
    head = nodes.thead("", nodes.row("", *(cell(nodes.Text(name)) for name in COLUMNS)))
    body = nodes.tbody()
    for chapter, anchor, title, level, minutes, check in listed:
        number, shown = chapter[:2].lstrip("0"), nodes.inline("", "", *title)
        target = make_refnode(app.builder, docname, chapter, anchor, shown)
        to_chapter = make_refnode(app.builder, docname, chapter, "", nodes.Text(number), f"chapter {number}")
        name = nodes.literal(check, check) if check else nodes.Text("–")
        cells = cell(to_chapter), cell(target), cell(nodes.Text(f"{level}, {minutes} min")), cell(name)
        body += nodes.row("", *cells)
    columns = [nodes.colspec(colwidth=width) for width in COLUMNS.values()]
    grid = nodes.table("", nodes.tgroup("", *columns, head, body, cols=len(COLUMNS)), classes=["exercise-list"])
    hours, checked = sum(one[4] for one in listed) / 60, sum(bool(one[5]) for one in listed)
    words = f"{len(listed)} exercises, about {hours:.0f} hours in all; {checked} of them have a check."
    return [nodes.paragraph("", words), grid]


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    for place in list(doctree.findall(ExerciseList)):
        place.replace_self(table(app, docname))


def setup(app: Sphinx) -> dict[str, object]:
    app.add_node(ExerciseList)
    app.add_directive("exercise-list", Directive)
    app.connect("doctree-read", collect)
    app.connect("env-purge-doc", purge)
    app.connect("env-merge-info", merge)
    app.connect("doctree-resolved", fill, priority=400)
    return {"version": "1", "env_version": 1, "parallel_read_safe": True, "parallel_write_safe": True}
