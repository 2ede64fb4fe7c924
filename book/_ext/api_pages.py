"""The package's reference, written from its docstrings when the book is built, and links to it from the code words of the text.

A page that holds the line ``<!-- room NAME FIRST … -->`` gets one section for every module of ``dcpnas_lite.NAME``: what it says
of itself, then its public functions and classes with shapes, each with a link to its source. So there is no list to keep.

Docstrings are plain text: `as_text` escapes what reStructuredText would take for a mark, keeps paragraphs, lists and indented
lines as they are written, and makes every number 4.20 to 4.53 a link to the equation.

On every other page a literal such as ``dcp.search``, ``trace.update`` or ``method/tangent.py`` links to its entry, the first time
that a section has it. A literal that fits two entries stays as it is, and so does a bare name in an exercise: it is the reader's.
"""

from __future__ import annotations

import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

import dcpnas_lite
from dcpnas_lite.checks import lab
from dcpnas_lite.derivation import responses, toys, trace
from dcpnas_lite.method import backtracking

ROOT = Path(dcpnas_lite.__file__).parent
ROOM = re.compile(r"^<!-- room (\w+)((?: \w+)*) -->$", re.MULTILINE)
PARAMETERS = re.compile(r"<dl>\n(<dd><em class=\"sig-param\">.*?)</dl>", re.DOTALL)
PARAMETER, PLACE = re.compile(r"<dd>(.*?)</dd>", re.DOTALL), r'<span class="parameter">\1</span>'
NUMBER = re.compile(r"(?<![\w.])4\.([2-4]\d|5[0-3])(?![\w.]*\d)")
SECTION = """\
## {name}

```{{eval-rst}}
.. automodule:: {module}
   :members:
   :ignore-module-all:
```
"""


def modules(room: str, first: str = "") -> list[str]:
    """The modules of a room: those that come first, the others by name. A room that is one file is one module."""
    folder = ROOT / room
    if not folder.is_dir():
        return [f"dcpnas_lite.{room}"]
    names = [path.stem for path in sorted(folder.glob("*.py")) if path.stem != "__init__"]
    order = [*first.split(), *(name for name in names if name not in first.split())]
    return [f"dcpnas_lite.{room}.{name}" for name in order]


def sections(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put a room's modules in the place of its mark."""

    def written(found: re.Match) -> str:
        return "\n".join(SECTION.format(name=m.rpartition(".")[2], module=m) for m in modules(*found.groups()))

    source[0] = ROOM.sub(written, source[0])


def escaped(text: str) -> str:
    """A line of plain text in reStructuredText: `code` as code, numbers of equations as links, every other mark as it is."""
    parts = re.split(r"(``?[^`\n]+``?)", text)
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = rf"\ ``{part.strip('`')}``\ "  # an escaped blank shows nothing and may stand anywhere
        else:
            plain = re.sub(r"([\\*`|_])", r"\\\1", part)
            parts[i] = NUMBER.sub(lambda found: rf"\ :ref:`{found[0]} <eq-{found[0].replace('.', '-')}>`\ ", plain)
    return "".join(parts)


def as_text(lines: list[str]) -> list[str]:
    """A docstring as reStructuredText, block by block: a paragraph, a list, or indented lines, which are kept as code."""
    written: list[str] = []
    for block in re.split(r"\n\s*\n", "\n".join(line.rstrip() for line in lines).strip("\n")):
        rows = block.split("\n")
        if not block.strip():
            continue
        if rows[0].startswith("    "):
            written += ["::", "", *(f"    {row}" for row in rows), ""]
        elif rows[0].startswith("- "):
            written += [("- " if row.startswith("- ") else "  ") + escaped(row[2:].lstrip()) for row in rows] + [""]
        else:  # lines that a paragraph indents, as examples of calls, are kept as they are
            head = next((i for i, row in enumerate(rows) if row.startswith("    ")), len(rows))
            written += [escaped(row) for row in rows[:head]] + [""]
            if rows[head:]:
                tail = next((i for i, row in enumerate(rows[head:], head) if not row.startswith("    ")), len(rows))
                written += ["::", "", *(f"    {row}" for row in rows[head:tail]), ""]
                written += as_text(rows[tail:])
    return written


def signature(app: Sphinx, what: str, name: str, thing: object, options: object, arguments: str | None, returns: str | None):
    """Shapes of one axis without the blank that they need in the code: `Float[Tensor, ' M']`."""
    return tuple(text and text.replace("' ", "'") for text in (arguments, returns))


def left_out(app: Sphinx, what: str, name: str, thing: object, skip: bool, options: object) -> bool | None:
    """Fields of a named tuple, of which Python says no more than their number."""
    return True if (thing.__doc__ or "").startswith("Alias for field number") else None


def docstring(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    lines[:] = as_text(lines)


# Links from the text


def names(app: Sphinx) -> dict[str, tuple[str, str, str] | None]:
    """How the text may call an entry → its page, its anchor, its full name; None where two entries fit."""
    known: dict[str, tuple[str, str, str] | None] = {}

    def enter(short: str, entry: tuple[str, str, str]) -> None:
        known[short] = entry if known.get(short, entry) == entry else None

    for full, found in app.env.get_domain("py").objects.items():
        entry = (found.docname, found.node_id, full)
        words = full.split(".")
        for first in range(len(words) - 1):
            enter(".".join(words[first:]), entry)
        if words[-1][:1].isupper() or "_" in words[-1].strip("_"):  # a class, and a name of two words, is known by itself
            enter(words[-1], entry)
        if found.objtype == "module":
            path = "/".join(words) + ".py"
            enter(path, entry)
            enter(path.removeprefix("dcpnas_lite/"), entry)
    for public in dcpnas_lite.__all__:
        thing = getattr(dcpnas_lite, public)
        room = (dcpnas_lite._ROOMS | dcpnas_lite._MODULES)[public]
        full = getattr(thing, "__module__", f"dcpnas_lite.{room}") + f".{getattr(thing, '__qualname__', public)}"
        entry = known.get(thing.__name__ if public in dcpnas_lite._MODULES else full)
        if entry:
            known[f"dcp.{public}"] = known[f"dcpnas_lite.{public}"] = entry
    for module in (lab, trace, toys, responses, backtracking):  # modules that chapters import by name
        known[module.__name__.rpartition(".")[2]] = known.get(module.__name__)
    for short, full in {"lab.compare": "report.compare.compare", "rules": "method.backtracking"}.items():
        known[short] = known.get(full)
    return known


def section_of(node: nodes.Node) -> nodes.Node | None:
    while node is not None and not isinstance(node, nodes.section | nodes.row):
        node = node.parent
    return node


def inside(node: nodes.Node, kinds) -> bool:
    while node is not None and not isinstance(node, kinds):
        node = node.parent
    return node is not None


def link_code(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Link the literals of a page to the entries that they name."""
    known, done = app.env.__dict__.setdefault("api_names", {}), set()
    if not known:
        known.update(names(app))
    for literal in list(doctree.findall(nodes.literal)):
        text = re.sub(r"\(.*\)$", "", literal.astext().strip(), flags=re.DOTALL)
        head = text.rpartition(".")[0]  # a field or an inherited method leads to its class
        entry = known.get(text) or (known.get(head) if head.rpartition(".")[2][:1].isupper() else None)
        if not entry or inside(literal, nodes.reference | nodes.title | nodes.term):
            continue
        section = section_of(literal)
        own = docname.startswith("api") and entry[0] == docname
        exercise = isinstance(section, nodes.section) and section[0].astext().startswith("Exercise ")
        if own or (exercise and "." not in text) or (id(section), entry[2]) in done:
            continue
        done.add((id(section), entry[2]))
        literal.replace_self(make_refnode(app.builder, docname, *entry[:2], literal.deepcopy(), entry[2]))


def accessible(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: nodes.document | None) -> None:
    """A signature of several lines as lines: Sphinx writes a list of definitions without terms, which misleads screen readers."""
    if pagename.startswith("api-") and "body" in context:
        context["body"] = PARAMETERS.sub(lambda f: f"<span>{PARAMETER.sub(PLACE, f[1])}</span>", context["body"])


def forget(app: Sphinx, env, *_) -> None:
    env.__dict__.pop("api_names", None)


def options(app: Sphinx, config) -> None:
    config.autodoc_member_order = "bysource"
    config.autodoc_preserve_defaults = True
    config.autodoc_inherit_docstrings = False
    config.python_maximum_signature_line_length = 88
    config.add_module_names = False
    config.nitpick_ignore_regex = [*config.nitpick_ignore_regex, (r"py:.*", r".*")]  # types of signatures: torch, jaxtyping


def setup(app: Sphinx) -> dict[str, object]:
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.viewcode")
    app.connect("config-inited", options)
    app.connect("source-read", sections)
    app.connect("autodoc-process-docstring", docstring)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", left_out)
    app.connect("env-updated", forget)
    app.connect("doctree-resolved", link_code)
    app.connect("html-page-context", accessible)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
