"""The package as it is published: what the wheel holds, what importing it costs, which versions it says it runs with."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


def run(python: Path, code: str, folder: Path) -> str:
    done = subprocess.run([python, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_wheel_holds_the_whole_package_and_nothing_else(wheel):
    present = [path for path in (ROOT / "dcpnas_lite").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files = {path.relative_to(ROOT).as_posix() for path in present}
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == files
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_wheel_is_what_a_stranger_imports(stranger, tmp_path):
    where = run(stranger, "import dcpnas_lite; print(dcpnas_lite.__file__)", tmp_path)
    assert Path(where).is_relative_to(stranger.parent.parent)


def test_import_loads_nothing_heavy(stranger, tmp_path):
    code = "import sys, dcpnas_lite; print(*{'sklearn', 'matplotlib', 'scipy', 'jaxtyping', 'tqdm'} & set(sys.modules))"
    assert run(stranger, code, tmp_path) == ""


def test_scikit_learn_is_needed_by_digits_alone(stranger, tmp_path):
    code = """
import sys
sys.modules["sklearn"] = None  # as on a machine without it
import dcpnas_lite as dcp
for name in dir(dcp):
    getattr(dcp, name)
try:
    dcp.digits()
except ImportError as error:
    print("scikit-learn" in str(error) or "sklearn" in str(error))
"""
    assert run(stranger, code, tmp_path) == "True"


def test_jaxtyping_is_no_runtime_dependency(stranger, tmp_path):
    code = """
import importlib, pkgutil, sys
sys.modules["jaxtyping"] = None
import dcpnas_lite
for module in pkgutil.walk_packages(dcpnas_lite.__path__, "dcpnas_lite."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print("imported")
"""
    assert run(stranger, code, tmp_path) == "imported"


# The declared ranges


def declared() -> dict[str, Requirement]:
    with open(ROOT / "pyproject.toml", "rb") as file:
        return {r.name: r for r in map(Requirement, tomllib.load(file)["project"]["dependencies"])}


def optional() -> dict[str, Requirement]:
    """What an extra brings, as dcpnas_lite[fast]."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    return {r.name: r for needed in extras.values() for r in map(Requirement, needed)}


def imported(source: str) -> set[str]:
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names


def test_what_package_and_chapters_import_is_declared():
    names = set()
    for path in (ROOT / "dcpnas_lite").rglob("*.py"):
        names |= imported(path.read_text(encoding="utf8"))
    for path in (ROOT / "book").glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                names |= imported(re.sub(r"^( *)%.*", r"\1pass", cell.source, flags=re.MULTILINE))
    ours = {"dcpnas_lite", "jaxtyping", "IPython"}  # jaxtyping for type checkers alone; IPython is where a notebook runs
    assert {"scikit-learn" if name == "sklearn" else name for name in names - ours - set(optional())} == set(declared())


def test_the_tested_set_is_within_the_declared_ranges():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf8").splitlines()
    pins = {pin.name: str(pin.specifier) for pin in (Requirement(line) for line in lines if line[:1] not in ("", "#", "-"))}
    for name, requirement in (declared() | {n: r for n, r in optional().items() if n in pins}).items():
        assert pins[name].startswith("==") and pins[name][2:] in requirement.specifier, name


def test_the_package_is_typed():
    """As `make lint`; the settings are in pyproject.toml."""
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (ROOT / "dcpnas_lite" / "py.typed").exists()


def make(*arguments: str) -> subprocess.CompletedProcess:
    """`make` as from a terminal, though these tests may themselves be run by make."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_make_test_lowest_takes_every_floor(tmp_path):
    """What pip is told, by the rule's own line."""
    (line,) = [line for line in make("-n", "test-lowest").stdout.splitlines() if "tomllib" in line]
    line = line.replace("> .venv-lowest", f"> {tmp_path}").replace(".venv-lowest/bin/python", sys.executable)
    subprocess.run(line, shell=True, check=True, cwd=ROOT)
    floors = (tmp_path / "floors.txt").read_text().splitlines()
    assert floors == [str(r).replace(">=", "==") for r in declared().values()] and all("==" in floor for floor in floors)


@pytest.mark.parametrize("target, name", [("test-lowest", "PYTHON_LOWEST"), ("test-newest", "PYTHON_NEWEST")])
def test_make_says_in_one_line_which_python_is_missing(target, name):
    done = make(target, f"{name}=/nowhere/python")
    first, *rest = done.stderr.splitlines()
    assert done.returncode == 2 and first.startswith("'/nowhere/python' is not here") and f"make {name}=" in first
    assert len(rest) == 1 and rest[0].startswith("make:")


def test_make_help_names_every_target():
    (phony,) = re.findall(r"^\.PHONY: help (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert re.findall(r"^make ([\w-]+) ", make("help").stdout, re.MULTILINE) == phony.split()


def test_what_torch_says_of_its_own_forward_mode_reaches_no_reader(tmp_path):
    code = """
import torch
from dcpnas_lite.method import tangent
alpha = torch.zeros(3, 4, requires_grad=True)
tangent.fisher_product(lambda alphas: alphas[0] @ torch.ones(4, 5), [alpha], [torch.ones(3, 4)])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
