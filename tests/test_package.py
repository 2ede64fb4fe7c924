"""The package as it is published: what the wheel holds, and what importing it costs."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(python: Path, code: str, folder: Path) -> str:
    done = subprocess.run([python, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_wheel_holds_the_whole_package_and_nothing_else(wheel):
    present = [path for path in (ROOT / "dcpnas_lite").rglob("*") if path.is_file() and path.suffix != ".pyc"]
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
