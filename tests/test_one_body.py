"""One body: the function that stands for an equation is the one that a search calls, and a change of it is seen everywhere."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dcpnas_lite as dcp
from dcpnas_lite.checks import equations, lab
from dcpnas_lite.derivation import trace
from dcpnas_lite.method import tangent
from dcpnas_lite.method.algorithm10 import algorithm10
from dcpnas_lite.network import binarize
from dcpnas_lite.network.supernet import MICRO

ROOT = Path(__file__).resolve().parent.parent


def config(**changes) -> dcp.SearchConfig:
    return dcp.SearchConfig(**dict(channels=2, layers=1, rounds=1, steps=2, warmup=0, batch=8) | changes)


@pytest.fixture(scope="module")
def data():
    return dcp.digits(size=8)


CHANGES = {
    "4.50": (trace, "update", lambda n, a, p, eta: n - 5 * eta * p * a, "4.50", "4.50 update"),
    "4.22": (binarize, "scale", lambda w: w.abs().flatten(1).amax(1), "4.23", None),
    "4.31": (tangent, "distance", lambda c, p, kind="F": sum((3 * (a - b)).square().sum() for a, b in zip(c, p, strict=True)),
             "4.31", "4.31"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_line_is_seen_by_search_algorithm_table_and_lab(data, monkeypatch, change):
    module, name, other, row, exercise = CHANGES[change]
    original, settings = getattr(module, name), config(lam=50.0, eta=0.5)

    def both():
        return dcp.search(data, settings).alphas["normal"], algorithm10(data, settings, MICRO)[1]["normal"]

    before = both()
    assert equations.get(row).check().passed
    monkeypatch.setattr(module, name, other)
    after = both()
    for was, now in zip(before, after, strict=True):
        assert (was - now).abs().max() > 1e-4
    torch.testing.assert_close(*after, rtol=1e-3, atol=1e-3)
    assert not equations.get(row).check().passed
    if exercise:
        call = (lambda c, p: original([c], [p])) if change == "4.31" else original
        with pytest.raises(lab.CheckFailed):
            lab.check(exercise, call)


def resolve(path: str):
    """The object of a dotted path."""
    parts = path.split(".")
    for k in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:k]))
        except ImportError:
            continue
        for name in parts[k:]:
            found = getattr(found, name)
        return found


def traced(run) -> set[str]:
    """The functions of the equation table that `run()` calls."""
    codes, seen = {}, set()
    for path in {path for e in equations.TABLE for path in e.functions}:
        found = resolve(path)
        function = getattr(found, "forward", None) or found.__call__ if inspect.isclass(found) else found
        codes[function.__code__] = path
    def watch(frame, event, _):
        if event == "call" and frame.f_code in codes:
            seen.add(codes[frame.f_code])
    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(before)
    return seen


def test_what_the_table_says_runs_in_a_search_does(data):
    default = traced(lambda: dcp.search(data, config()))
    written = traced(lambda: algorithm10(data, config(), MICRO))
    variants = set().union(*(traced(lambda c=c: dcp.search(data, config(**c))) for c in (
        dict(curvature="hessian"), dict(curvature="gauss_newton"), dict(lam=0.0), dict(backtracking="refreshed"),
    )))  # fmt: skip
    places = {"search": default, "variant": variants, "Algorithm 10": written}
    for equation in equations.TABLE:
        for path in equation.functions:
            where = next((name for name, seen in places.items() if path in seen), "derivation")
            assert equations.runs(path) == where, (equation.number, path, where)
    assert {equations.runs(path) for e in equations.TABLE for path in e.functions} == {
        "search", "variant", "Algorithm 10", "derivation"
    }  # fmt: skip


def test_the_script_of_the_readme(tmp_path):
    """An operation, a space and a rule of one's own: Algorithm 10 and the search end at the same cell."""
    text = (ROOT / "README.md").read_text(encoding="utf8")
    script = text.split("<!-- script -->")[1].split("```python\n")[1].split("```")[0]
    assert len(script.splitlines()) <= 20
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "normal: " in done.stdout and done.stderr == "", done.stderr


def test_the_reading_path_is_an_afternoon():
    """READING.md names its files with their numbers of lines, which add up to an afternoon."""
    text = (ROOT / "READING.md").read_text(encoding="utf8")
    rows = [row.split("|") for row in text.splitlines() if row.startswith("| `dcpnas_lite/")]
    lines = {row[1].strip(" `"): int(row[2]) for row in rows}
    assert len(lines) == 8 and 1200 < sum(lines.values()) <= 1500
    for path, expected in lines.items():
        assert abs(len((ROOT / path).read_text(encoding="utf8").splitlines()) - expected) <= 10, path
