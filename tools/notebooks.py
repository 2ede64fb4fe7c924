"""Keep the notebooks of the book in order.

python tools/notebooks.py execute [NOTEBOOK ...]   execute in place, with normalised metadata
python tools/notebooks.py setup [NOTEBOOK ...]     write Colab link, reading time, first code cell and links to equations
python tools/notebooks.py url URL                  change the repository's address everywhere
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book" / "_ext"))
from equation_names import TAG, anchor  # noqa: E402

FOLDED = "hide-input"  # the tag of a cell whose code the book shows folded
FIRST_LINE = "# Installs dcpnas_lite where it is missing"  # how the cell starts that `setup` writes
COLAB = re.compile(r"^\[[^\]]*\]\(https://colab\.research\.google\.com/github/[^)]*\)$\n*", re.MULTILINE)
TIME = re.compile(r"^\*\*Time\*\*:.*$", re.MULTILINE)
MINUTES = re.compile(r"^### Exercise \d+: .+ \((?:easy|medium|hard|open), (\d+) minutes\)$", re.MULTILINE)
WORDS, LINES, LOOK = 130, 20, 0.5  # words a minute, lines of code a minute, minutes for a displayed equation and for a figure
EQUATION = re.compile(r"\]\([^()\s#]*#(eq-[\w-]+)\)")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def repository_url(root: Path = ROOT) -> str:
    return yaml.safe_load((root / "_config.yml").read_text(encoding="utf8"))["repository"]["url"]


def notebooks(root: Path = ROOT) -> list[Path]:
    return sorted((root / "book").glob("*.ipynb"))


def title_start(stem: str) -> str:
    """A chapter, 07-name.ipynb, carries its number in the title, so that Colab shows it, too."""
    return f"# {int(stem[:2])}. " if stem[:2].isdigit() else "# "


def colab_link(name: str, url: str) -> str:
    """The line below the title that opens the page in Colab; empty while the repository has no address."""
    slug = url.removeprefix("https://github.com/")
    link = f"[Open this page in Colab](https://colab.research.google.com/github/{slug}/blob/main/book/{name})\n\n"
    return "" if "/OWNER/" in url else link


def first_cell(url: str) -> str:
    """Source of the first code cell. It never installs torch or numpy: on Colab everything else is there already.

    Where the package is missing it takes the wheel beside the notebook, the repository around it, or the repository's
    address; failing these it stops, with one line. The figures are asked for by name, because a kernel that finds MPLBACKEND in
    its environment shows none.
    """
    address = "" if "/OWNER/" in url else f"    else:\n        %pip install --quiet --no-deps git+{url}\n"
    return f'''{FIRST_LINE}, and shows figures in the page.
import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("dcpnas_lite") is None:
    wheels = sorted(Path.cwd().glob("dcpnas_lite-*.whl"))
    around = [p for p in Path.cwd().parents if (p / "dcpnas_lite/__init__.py").exists()]
    if wheels:
        %pip install --quiet --no-deps "{{wheels[-1]}}"
    elif around:
        sys.path.insert(0, str(around[0]))
{address}if importlib.util.find_spec("dcpnas_lite") is None:
    todo = "in its repository run make wheel, put the file from dist/ beside this notebook"
    missing = ModuleNotFoundError(f"dcpnas_lite is missing: {{todo}}, run this cell again")
    missing._render_traceback_ = lambda: [str(missing)]  # one line
    raise missing
%matplotlib inline
%config InlineBackend.figure_formats = ["retina"]'''


def published(url: str) -> str:
    """Where GitHub Pages shows the book of a repository; empty while that has no address."""
    owner, name = url.removeprefix("https://github.com/").split("/")
    return "" if owner == "OWNER" else f"https://{owner.lower()}.github.io/{name}/"


def homes(root: Path = ROOT) -> dict[str, str]:
    """Anchor of an equation → the page that carries its tag."""
    pages = {path.stem: "\n".join(c.source for c in read(path).cells if c.cell_type == "markdown") for path in notebooks(root)}
    return {anchor(tag): stem for stem, text in pages.items() for tag in TAG.findall(text)}


def link_equations(text: str, own: str, pages: dict[str, str], url: str) -> str:
    """Make the links to equations lead somewhere in a raw notebook, too: to the published book or, while that has no address,
    to the notebook of the equation. The build turns either into links inside the book."""

    def target(found: re.Match) -> str:
        name = found[1]
        page = pages.get(name, own)
        if published(url):
            return f"]({published(url)}{page}.html#{name})"
        return f"](#{name})" if page == own else f"]({page}.ipynb#{name})"

    return EQUATION.sub(target, text)


def read(path: Path):
    return nbformat.read(path, as_version=4)


def write(path: Path, notebook) -> None:
    """Write atomically, with metadata and cell ids that depend on nothing but the content's order."""
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index:02d}"
        cell.metadata = nbformat.from_dict({"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {})
    nbformat.validate(notebook)
    text = nbformat.writes(notebook, indent=1, ensure_ascii=False).rstrip("\n") + "\n"
    if path.exists() and path.read_text(encoding="utf8") == text:
        return
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf8")
    os.replace(temporary, path)


def reading_minutes(cells: list) -> float:
    """For words, displayed equations, figures and code that is not folded, at one pace for all; without the exercises."""
    minutes, exercises = 0.0, False
    for cell in cells:
        if cell.cell_type == "markdown":
            for part in re.split(r"^(?=## )", TIME.sub("", cell.source), flags=re.MULTILINE):
                exercises = part.startswith("## Exercises") or exercises and not part.startswith("## ")
                text, equations = re.subn(r"\$\$.*?\$\$", "", part, flags=re.DOTALL)
                text = re.sub(r"\$[^$]*\$", "x", re.sub(r"\]\([^)]*\)", "]", text))  # a formula is a word, a link is its text
                minutes += 0 if exercises else len(re.findall(r"\w\S*", text)) / WORDS + equations * LOOK
        elif not exercises:
            minutes += LOOK * sum("image/png" in output.get("data", {}) for output in cell.outputs)
            if FOLDED not in cell.metadata.get("tags", []):
                minutes += len(cell.source.splitlines()) / LINES
    return minutes


def rounded(minutes: float) -> int:
    return max(5, 5 * round(minutes / 5))


def time_line(line: str, cells: list) -> str:
    """The line on time: reading and exercises are counted here, what it says of the code is the author's."""
    read = rounded(reading_minutes(cells))
    minutes = sum(map(int, MINUTES.findall("\n".join(cell.source for cell in cells if cell.cell_type == "markdown"))))
    also = f", {rounded(read + minutes)} with the exercises" if minutes else ""
    code = re.search(r"the code .*", line)
    return f"**Time**: {read} minutes to read{also}{'; ' + code[0] if code else '.'}"


def set_up(path: Path, url: str, pages: dict[str, str]) -> None:
    """Write what `setup` writes; pages as `homes` gives them."""
    notebook = read(path)
    cells = notebook.cells
    title = title_start(path.stem)
    if not cells or cells[0].cell_type != "markdown" or not cells[0].source.startswith(title):
        raise SystemExit(f"{path.name}: the first cell must be Markdown and start with the title, '{title}…'")
    title, _, rest = COLAB.sub("", cells[0].source).partition("\n")
    cells[0].source = f"{title}\n\n{colab_link(path.name, url)}{rest.lstrip()}".rstrip()
    position = next((i for i, cell in enumerate(cells) if cell.cell_type == "code"), len(cells))
    if position == len(cells) or not cells[position].source.startswith(FIRST_LINE):
        cells.insert(position, nbformat.v4.new_code_cell())
    cells[position].source = first_cell(url)
    cells[position].metadata["tags"] = [FOLDED]
    for cell in cells:
        if cell.cell_type == "markdown":
            cell.source = link_equations(cell.source, path.stem, pages, url)
    cells[0].source = TIME.sub(lambda line: time_line(line[0], cells), cells[0].source)
    write(path, notebook)


def execute(path: Path, timeout: int = 600) -> None:
    """Execute in an empty folder, so that the notebook can use nothing but the installed package."""
    notebook = read(path)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as empty:
        where = {"metadata": {"path": empty}}
        client = NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources=where,
            extra_arguments=["--log-level=ERROR"],
        )
        try:
            client.execute()
        except CellExecutionError as error:
            raise SystemExit(f"{path.name}: a cell failed\n{error}") from None
    for index, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                raise SystemExit(f"{path.name}, cell {index}: wrote to stderr, nothing is saved:\n{output.text}")
    write(path, notebook)
    print(f"{path.name}: {time.perf_counter() - start:.1f} s")


def change_url(url: str, root: Path = ROOT) -> None:
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", url):
        raise SystemExit(f"expected an address like https://github.com/NAME/dcpnas-lite, got {url!r}")
    old, new = (address.removeprefix("https://github.com/") for address in (repository_url(root), url))
    names = ["_config.yml", "CITATION.cff", "pyproject.toml", "README.md", "CONTRIBUTING.md"]
    for path in [*(root / name for name in names), *sorted((root / "book").glob("*.md"))]:
        path.write_text(path.read_text(encoding="utf8").replace(f"/{old}", f"/{new}"), encoding="utf8")
    pages = homes(root)
    for path in notebooks(root):
        set_up(path, url, pages)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("execute", help="execute notebooks in place (all, if none is named)")
    command.add_argument("paths", nargs="*", type=Path, metavar="NOTEBOOK")
    command = commands.add_parser("setup", help="write what is the same in all notebooks into them (all, if none is named)")
    command.add_argument("paths", nargs="*", type=Path, metavar="NOTEBOOK")
    commands.add_parser("url", help="change the repository's address everywhere").add_argument("url")
    options = parser.parse_args(arguments)
    if options.command == "execute":
        for path in options.paths or notebooks():
            execute(path)
    elif options.command == "setup":
        pages = homes()
        for path in options.paths or notebooks():
            set_up(path, repository_url(), pages)
    else:
        change_url(options.url)


if __name__ == "__main__":
    sys.exit(main())
