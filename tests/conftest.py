from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parent.parent


class ByFile(LoadScopeScheduling):
    """Spreads tests over the workers by file, so that a fixture of a file is made once; every notebook goes on its own."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if "test_a_stranger" in nodeid else nodeid.split("::")[0]


def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


def pytest_collection_modifyitems(items):
    """The slowest first, so that no worker is left with them at the end."""
    slow = ("test_a_stranger", ".ipynb", "test_cli.py", "test_distributed.py")
    items.sort(key=lambda item: not any(name in item.nodeid for name in slow))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory, worker_id) -> Path:
    """The package as it is published, built once for all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "wheel"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
            subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def stranger(wheel) -> Path:
    """Python of a fresh environment: the package from the wheel alone, all else from the test environment."""
    folder = wheel.parent.parent / "stranger"
    python = folder / "bin" / "python"
    with FileLock(f"{folder}.lock"):
        if not (folder / "ready").exists():
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
            # A .pth file inside a folder that a .pth file adds is not read: the editable install stays out of sight.
            site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
            (site / "test-environment.pth").write_text(sysconfig.get_path("purelib") + "\n")
            install = ["install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
            subprocess.run([sys.executable, "-m", "pip", *install], check=True)
            (folder / "ready").touch()
    return python
