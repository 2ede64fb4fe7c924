"""The page *Your first hour*: its commands, in order, in a folder that holds what the repository gives, with its outputs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "book" / "first-hour.md").read_text(encoding="utf8")
BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(found["kind"], found["mark"] or "", found["text"]) for found in BLOCK.finditer(PAGE)]
DIFFERS = "yours may differ"
END = "-- end of block --"
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What of the repository a reader needs, in a folder of its own."""
    folder = tmp_path_factory.mktemp("first-hour") / "dcpnas-lite"
    shutil.copytree(ROOT / "dcpnas_lite", folder / "dcpnas_lite", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def printed(folder) -> list[str]:
    """What every block of commands prints, all in one shell. pip takes the libraries that are here in place of the net's."""
    libraries = sysconfig.get_path("purelib")  # the working copy, installed editable, is not seen from a path alone
    settings = dict(PIP_NO_INDEX="1", PIP_NO_DEPS="1", PIP_NO_BUILD_ISOLATION="0", PYTHONPATH=libraries, OMP_NUM_THREADS="1")
    script = ["set -e"]
    for kind, mark, text in BLOCKS:
        if kind == "python":
            (folder / mark.removeprefix("file ")).write_text(text, encoding="utf8")
        elif kind == "bash":
            script += [text, f'echo "{END}"']
    settings["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))  # the same Python
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"} | settings
    done = subprocess.run(["bash", "-c", "\n".join(script)], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split(f"{END}\n")[:-1]


def test_the_page_is_made_of_commands_files_and_outputs():
    assert {kind for kind, *_ in BLOCKS} == {"bash", "python", "text"}
    assert all(mark.startswith("file ") for kind, mark, _ in BLOCKS if kind == "python")
    assert sum(mark == DIFFERS for _, mark, _ in BLOCKS) == 1
    assert sum(kind == "text" for kind, *_ in BLOCKS) >= 8


def test_every_command_prints_what_the_page_shows(printed):
    shown, number = [], -1
    for kind, mark, text in BLOCKS:
        if kind == "bash":
            number += 1
        elif kind == "text":
            shown.append(number)
            if mark == DIFFERS:
                assert [len(line.split()) > 2 for line in printed[number].splitlines()] == [True] * len(text.splitlines())
                assert re.search(r"better than \S+ % of the other cells", printed[number])
            else:
                assert printed[number] == text
    assert number == len(printed) - 1 and len(set(shown)) == len(shown)


def test_in_the_end_the_package_is_as_it_was(printed, folder):
    ours = ROOT / "dcpnas_lite"
    for path in ours.rglob("*.py"):
        assert (folder / "dcpnas_lite" / path.relative_to(ours)).read_bytes() == path.read_bytes(), path
    assert not list(folder.rglob("*.bak"))


def test_minutes_in_the_headings_make_an_hour():
    assert 45 <= sum(int(m) for m in re.findall(r"^## .* \((\d+) minutes\)$", PAGE, re.MULTILINE)) <= 60
