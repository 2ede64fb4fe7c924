"""The closed table: complete, every check passes, and no check survives a mutant of what it checks."""

from __future__ import annotations

import dataclasses
import os
import pkgutil
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dcpnas_lite.checks import equations, lab, mutation
from dcpnas_lite.checks.problems import SIZES, Case
from dcpnas_lite.checks.table import link
from dcpnas_lite.derivation import trace
from dcpnas_lite.method import backtracking

BOOK = Path(__file__).parents[1] / "book"
NUMBERS = [f"4.{n}" for n in range(20, 54)]


def test_the_table_is_closed():
    assert [e.number for e in equations.TABLE] == NUMBERS
    assert [equations.get(number).number for number in NUMBERS] == NUMBERS
    with pytest.raises(KeyError, match="expected a number from 4.20 to 4.53, got '4.54'"):
        equations.get("4.54")
    assert sorted(row.number for chapter in equations.CHAPTERS for row in chapter.rows) == NUMBERS


@pytest.mark.parametrize("number", NUMBERS)
def test_entry(number):
    e = equations.get(number)
    assert e.kind in equations.KINDS and e.verdict in equations.VERDICTS and e.proof in equations.PROOFS
    assert e.title and e.printed and e.run.__doc__ and e.run.__name__ == "check_" + number.replace(".", "_")
    assert bool(e.reason) == (e.verdict in ("corrected", "under an assumption"))
    assert e.derived or e.verdict != "corrected"
    assert "\\tag" not in e.printed + e.derived  # a number is tagged once, in its chapter
    for tex in (e.printed, e.derived):
        assert tex.count("{") == tex.count("}") and tex.count(r"\begin") == tex.count(r"\end")
        assert tex.count(r"\Bigl") == tex.count(r"\Bigr")
    for path in e.functions:
        assert callable(pkgutil.resolve_name(path))


@pytest.fixture(scope="module")
def checked():
    """(number → check, processor seconds of all, whether torch's generator was left alone)."""
    state, start = torch.get_rng_state(), time.process_time()
    checks = {e.number: e.check() for e in equations.TABLE}
    return checks, time.process_time() - start, torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("number", NUMBERS)
def test_check_passes(number, checked):
    e, check = equations.get(number), checked[0][number]
    assert check.passed, check.text
    assert check == e.check()  # the same on every run
    if e.verdict in ("corrected", "under an assumption"):
        assert check.discrepancy >= equations.WRONG
    else:
        assert check.discrepancy <= e.exact


def test_all_checks_are_quick_and_leave_the_generator_alone(checked):
    _, seconds, left_alone = checked
    assert seconds < 10 and left_alone


FUNCTIONS = [(e.number, path) for e in equations.TABLE for path in e.functions]


@pytest.mark.parametrize("number, path", FUNCTIONS)
def test_no_check_survives_a_mutant(number, path):
    original = pkgutil.resolve_name(path)
    outcomes = {mutant: mutation.caught(equations.get(number), path, mutant) for mutant in mutation.MUTANTS}
    assert False not in outcomes.values(), outcomes
    assert all(outcomes[mutant] for mutant in mutation.RESULTS)  # these change every result
    assert pkgutil.resolve_name(path) is original and equations.get(number).check().passed


def test_a_weak_check_is_seen():
    """A check that looks at the size alone lets a mutant pass, and its score says so."""

    def weak(case):
        alpha, factor = case.normal(case.E, case.M), case.normal(case.M, case.E)
        return abs(trace.alpha_factor(alpha, factor).norm() / (alpha @ factor).norm() - 1).item()

    row = dataclasses.replace(equations.get("4.47"), run=weak)
    assert row.check().passed and mutation.score(row) == "4/6"  # neither the sign nor the order of the edges
    assert mutation.caught(equations.get("4.53"), equations.get("4.53").functions[0], "blind to signs") is None


def test_order_is_not_taken_for_rank(monkeypatch):
    monkeypatch.setattr(backtracking, "ranking", lambda norms: norms.argsort(stable=True) + 1)
    assert not equations.get("4.52").check().passed


def test_problems_are_of_every_shape_and_sign():
    cases = [Case(number) for number in range(len(SIZES))]
    assert {(c.E > c.M) - (c.E < c.M) for c in cases} == {-1, 0, 1} and len(cases) >= 4
    for c in cases:
        toy, jacobian, _, _ = c.mixture()
        for values in (toy.alpha, jacobian[jacobian != 0], c.normal(20)):
            assert (values > 0).any() and (values < 0).any()
        assert torch.equal(Case(c.number).normal(3), Case(c.number).normal(3)) and not torch.equal(c.normal(3), c.normal(3))


def test_a_check_holds_on_every_problem():
    """One problem in four that fails is enough."""
    row = equations.get("4.47")
    for number in range(len(SIZES)):
        once = dataclasses.replace(row, run=lambda case, n=number: 1.0 if case.number == n else row.run(case))
        assert not once.check().passed
    assert not dataclasses.replace(row, run=lambda case: float("nan")).check().passed
    corrected = equations.get("4.49")
    same = dataclasses.replace(corrected, run=lambda case: (0.0, 1.0 if case.number else 0.0))
    assert not same.check().passed  # the printed line must fail on every problem, too


def test_every_equation_is_implemented_and_mutated():
    assert all(e.functions for e in equations.TABLE)


def test_a_check_that_raises_has_failed(monkeypatch):
    def broken(*args):
        raise ValueError("wrong on purpose")

    monkeypatch.setattr("dcpnas_lite.derivation.trace.alpha_factor", broken)
    monkeypatch.setattr(equations, "score", lambda equation: "–")
    monkeypatch.setattr(equations, "TABLE", tuple(e for e in equations.TABLE if "4.45" <= e.number <= "4.50"))
    check = equations.get("4.47").check()
    assert not check.passed and "ValueError: wrong on purpose" in check.text
    report = equations.report()
    assert "4.47  FAIL" in report and "wrong on purpose" in report and "4 of 6" in report  # 4.48 is built on 4.47
    assert "**fails**" in equations.markdown_index()


@pytest.mark.parametrize(("number", "outcome"), [("4.49", 0.0), ("4.43", (0.0, 1.0))])
def test_a_check_returns_as_many_errors_as_its_verdict_needs(number, outcome):
    check = dataclasses.replace(equations.get(number), run=lambda case: outcome).check()
    assert not check.passed and f"{number}: expected {1 if number == '4.43' else 2} errors of its check" in check.text


ONE_ROW = "s = e.score; e.score = lambda row: s(row) if row.number == '4.47' else '–'"  # those of all rows stand in the index


@pytest.fixture(scope="module")
def report(checked) -> str:
    """With the mutants of one row."""
    with pytest.MonkeyPatch.context() as patch:
        real = equations.Equation.check  # which that row's mutants need
        patch.setattr(equations.Equation, "check", lambda e: real(e) if e.number == "4.47" else checked[0][e.number])
        patch.setattr(equations, "score", equations.score)  # put back in the end
        exec(ONE_ROW, {"e": equations})
        return equations.report()


def test_report(report):
    lines = report.splitlines()
    assert len(lines) == 35 and lines[-1] == "34 of 34 equations have a verdict and a passing check"
    for number, line in zip(NUMBERS, lines, strict=False):
        assert line.startswith(f"{number}  pass  ") and ("  6/6  3/3  " in line) == (number == "4.47")


def test_without_docstrings(report):
    """python -OO takes the docstrings and the assertions away: the same table, the same reader's checker."""
    script = f"from dcpnas_lite.checks import equations as e; assert 0; {ONE_ROW}; print(e.report()); print('the lab'); "
    script += "from dcpnas_lite import lab; lab.check(4.49, lab.EXERCISES['4.49'].reference); print(lab.signatures())"
    command, environment = [sys.executable, "-OO", "-c", script], os.environ | {"PYTHONUTF8": "1"}
    done = subprocess.run(command, capture_output=True, encoding="utf8", env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    table, checked = done.stdout.split("the lab\n")
    assert table == f"{report}\n"
    assert checked.startswith("4.49 passes: ") and "4.53  " in checked


def test_generated_pages(monkeypatch, checked):
    monkeypatch.setattr(equations.Equation, "check", lambda self: checked[0][self.number])
    monkeypatch.setattr(equations, "score", lambda equation: f"score of {equation.number}")  # the report's test has its value
    index = equations.markdown_index()
    for number in NUMBERS:
        (row,) = (line for line in index.splitlines() if line.startswith(f"| [({number})]({link(number)}) |"))
        assert f" | score of {number} | " in row
    assert all(line.count("|") == 10 for line in index.splitlines())
    errata = equations.markdown_errata()
    for e in equations.TABLE:
        assert (f"## {e.number} {e.title}" in errata) == bool(e.derived)
        if e.derived:
            assert f"$$ {e.printed} $$" in errata and f"$$ {e.derived} $$" in errata and e.reason in errata
    assert "\\tag" not in errata and "fails" not in re.sub("where the assumption fails|[Ii]t fails", "", errata)


@pytest.mark.parametrize("number", NUMBERS)
def test_every_number_is_tagged_in_its_chapter(number):
    page = (BOOK / f"{equations.get(number).chapter}.ipynb").read_text()
    assert page.count(f"\\\\tag{{{number}}}") == 1


@pytest.mark.parametrize("chapter", equations.CHAPTERS, ids=lambda chapter: chapter.stem)
def test_row_check_exercises_and_mutants_stand_together(chapter):
    numbers = [row.number for row in chapter.rows]
    assert numbers == sorted(numbers) and all(row.chapter == chapter.stem for row in chapter.rows)
    assert {name.split()[0] for name in chapter.exercises if name[0].isdigit()} <= set(numbers)
    assert len({row.run.__module__ for row in chapter.rows}) <= 1  # a chapter without equations has exercises alone
    assert all(lab.EXERCISES[name] is exercise for name, exercise in chapter.exercises.items())


def test_a_changed_line_reaches_check_and_exercise(monkeypatch):
    right = trace.update
    assert lab.check("4.50 update", right) and equations.get("4.50").check().passed
    monkeypatch.setattr(trace, "update", lambda alpha_next, alpha, psi, eta: right(alpha_next, alpha.abs(), -psi, eta))
    assert not equations.get("4.50").check().passed
    assert lab.check("4.50 update", trace.update)
    with pytest.raises(lab.CheckFailed, match="^4.50 update: wrong value"):
        lab.check("4.50 update", right)


def test_the_derivation_at_a_glance_has_its_nine_lines():
    assert list(equations.MOVED) == [f"4.{n}" for n in range(42, 51)]
    page = equations.markdown_glance()
    assert page.count("\n") == 10 and all(f"eq-4-{n})" in page for n in range(42, 51))
