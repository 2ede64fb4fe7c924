"""The reader's checker: every reference passes, every mutant fails, and a wrong answer gets a message that helps."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dcpnas_lite.checks import equations, lab
from dcpnas_lite.derivation import trace

ROOT = Path(__file__).resolve().parent.parent
EVERY_MUTANT = [(name, mutant) for name in lab.EXERCISES for mutant in lab.mutants(name)]


@pytest.mark.parametrize("name", lab.EXERCISES)
def test_reference_passes_and_says_what_was_checked(name, capsys):
    message = lab.check(name, lab.EXERCISES[name].reference)
    assert message.startswith(f"{name} passes: {lab.EXERCISES[name].what}")
    assert capsys.readouterr().out == message + "\n"


@pytest.mark.parametrize("name, mutant", EVERY_MUTANT)
def test_every_mutant_fails(name, mutant):
    with pytest.raises(lab.CheckFailed, match=f"^{re.escape(name)}: ") as failure:
        lab.check(name, lab.mutants(name)[mutant])
    assert failure.value.equation == name
    assert "raised" not in str(failure.value)  # mutants are wrong, not broken


@pytest.mark.parametrize("name", lab.EXERCISES)
def test_every_mutant_is_called_by_its_name(name):
    """The message says which slip it is and where to read on; only a result of another kind speaks for itself."""
    named = 0
    for mutant, wrong in lab.mutants(name).items():
        failure = failing(wrong, name)
        other_kind = re.search("your function returned|wrong type of number", str(failure))
        assert failure.slip == (None if other_kind else mutant)
        named += not other_kind
        words = {"negated": "the sign", "zero": "0 everywhere"}.get(mutant, mutant)
        assert other_kind or f". The slip: {words}. See " in str(failure)
    assert named >= 6


@pytest.mark.parametrize(
    "wrong, slip",
    [
        (lambda *a: 2 * trace.trace_components(*a), "a factor, 2"),
        (lambda *a: trace.trace_components(*a) / len(a[0]), "a factor, 0.3333 or 0.2 or 0.07143 by the sizes"),
        (lambda *a: trace.trace_components(*a) + 1, None),
        (lambda a, L, dw: (a @ L).sum(1) * (1 if len(a) == 3 else 2), None),  # a mutant on the first problem alone
        (lambda a, L, dw: -trace.trace_components(a, L, dw) if len(a) == 3 else 1 / 0, None),
    ],
)
def test_a_slip_is_one_on_all_problems(wrong, slip):
    failure = failing(wrong)
    assert failure.slip == slip and ("The slip" in str(failure)) == bool(slip)


def test_a_number_is_no_factor_of_another():
    failure = failing(lambda weight, beta: torch.tensor(1.0, dtype=torch.float64), "4.23")
    assert failure.slip is None
    assert failing(lambda *a: 0.5 * lab.EXERCISES["4.23"].reference(*a), "4.23").slip == "a factor, 0.5"


def test_the_book_has_the_line_that_a_slip_points_to():
    for name in lab.EXERCISES:
        told = str(failing(lab.mutants(name)["negated"], name))
        number, chapter = re.search(r"See (?:\((\S+)\) in )?chapter (\d+)$", told).groups()
        (page,) = (ROOT / "book").glob(f"{int(chapter):02}-*.ipynb")
        assert bool(number) == numbered(name)
        if number:
            assert rf"\\tag{{{number}}}" in page.read_text(encoding="utf8"), name
        else:
            assert f'lab.check(\\"{name}\\"' in page.read_text(encoding="utf8"), f"{name}: not asked in its chapter"


def numbered(name: str) -> bool:
    """Whether an exercise is about an equation; the others are named in words."""
    assert name.split()[0] in {e.number for e in equations.TABLE} or re.fullmatch("[a-z]+( [a-z]+)*", name), name
    return name[0] == "4"


def test_there_are_enough_mutants():
    assert len(EVERY_MUTANT) >= 80
    assert all(len(lab.mutants(name)) >= 7 for name in lab.EXERCISES)


def test_problems_are_generic():
    for sizes in lab.SIZES:
        assert len(set(sizes.values())) == len(sizes)  # no two letters agree: no transposition goes unseen
    assert any(s["E"] > s["M"] for s in lab.SIZES) and any(s["E"] < s["M"] for s in lab.SIZES)
    for exercise in lab.EXERCISES.values():
        for number in range(len(lab.SIZES)):
            again = exercise.problem(number)
            for argument, value in exercise.problem(number).items():
                if isinstance(value, torch.Tensor):
                    assert value.dtype == torch.float64 and torch.equal(value, again[argument])
            result = exercise.reference(*again.values())
            assert torch.isfinite(result).all() and (result != 0).any()


def failing(fn, name="4.49") -> lab.CheckFailed:
    with pytest.raises(lab.CheckFailed) as failure:
        lab.check(name, fn)
    return failure.value


def test_shape_comes_before_value_and_is_not_broadcast():
    problem = failing(lambda alpha, factor, dw: torch.zeros(1, dtype=torch.float64))
    assert str(problem) == "4.49: wrong shape: yours (1,), expected (3,) (E = 3, M = 4)"
    assert problem.index is None
    assert "wrong shape: yours (), expected (3,)" in str(failing(lambda *a: torch.tensor(1.0, dtype=torch.float64)))
    assert "wrong shape: yours (3, 1)" in str(failing(lambda *a: trace.trace_components(*a)[:, None]))


def test_value_failure_names_index_yours_and_expected():
    def one_wrong(alpha, factor, dw):
        out = trace.trace_components(alpha, factor, dw)
        out[2] += 1
        return out

    problem = failing(one_wrong)
    assert problem.index == (2,) and problem.yours == pytest.approx(problem.expected + 1)
    assert re.match(r"4.49: wrong value at \[2\]: yours \S+, expected \S+ \(E = 3, M = 4\)$", str(problem))
    assert problem.slip is None
    scalar = failing(lambda weight, beta: torch.tensor(0.0, dtype=torch.float64), "4.23")
    assert scalar.index == () and "wrong value: yours 0, expected" in str(scalar)


@pytest.mark.parametrize(
    "fn, message",
    [
        (lambda *a: None, "your function returned NoneType"),
        (lambda *a: 1.0, "your function returned float"),
        (lambda *a: trace.trace_components(*a).tolist(), "your function returned list"),
        (lambda *a: trace.trace_components(*a).numpy(), "your function returned ndarray"),
        (lambda *a: trace.trace_components(*a) * float("nan"), "yours nan"),
        (lambda *a: trace.trace_components(*a) / 0, "yours"),
        (lambda *a: trace.trace_components(*a).float(), "wrong type of number: yours torch.float32"),
        (lambda alpha: alpha, "your function raised TypeError"),
        (lambda *a: a[0] @ a[0], "your function raised RuntimeError"),
        (lambda *a: trace.trace_components(*a).add(1e-6), "wrong value"),
        (lambda *a: trace.trace_components(*a).to("meta"), "expected a tensor in main memory, yours is torch.strided on meta"),
        (lambda *a: trace.trace_components(*a).to_sparse(), "expected a tensor in main memory, yours is torch.sparse_coo on cpu"),
    ],
)
def test_what_is_not_an_answer(fn, message):
    assert message in str(failing(fn))


def test_arguments_must_stay_as_they_are():
    def careless(alpha, factor, dw):
        out = trace.trace_components(alpha, factor, dw)
        dw.mul_(2)
        return out

    assert str(failing(careless)) == "4.49: your function changes its argument dw"


def test_unknown_equation_and_no_function():
    with pytest.raises(ValueError, match="equation: expected one of 4.45 derived, 4.45 matrix, got '4.45'"):
        lab.check("4.45", trace.coupling)
    with pytest.raises(ValueError, match="expected one of 4.21, 4.22.*got 'x'"):
        lab.mutants("x")
    with pytest.raises(TypeError, match="fn: expected a function, got int"):
        lab.check("4.49", 3)


@pytest.mark.parametrize("number, name", [(4.49, "4.49"), (4.5, "4.50"), (np.float64(4.51), "4.51")])
def test_a_number_is_the_line_as_printed(number, name):
    assert lab.check(number, lab.EXERCISES[name].reference).startswith(f"{name} passes")
    with pytest.raises(lab.CheckFailed, match=f"^{name}: wrong value") as failure:
        lab.check(number, lab.mutants(number)["negated"])
    assert failure.value.equation == name


@pytest.mark.parametrize(
    "equation",
    [4, 4.499999, 4.45, True, None, float("nan"), float("inf"), 10**400, ["4.49"], b"4.49", torch.ones(2, 2), "", " ", "4.5"],
)
def test_anything_else_gets_one_line(equation):
    for call in (lambda: lab.check(equation, trace.coupling), lambda: lab.mutants(equation)):
        with pytest.raises(ValueError, match="^equation: expected one of 4.[^\n]*, got [^\n]*$"):
            call()


@pytest.mark.parametrize("stub", ["return ...", "raise NotImplementedError"])
def test_an_untouched_stub_is_told_so(stub):
    names: dict = {}
    exec(f"def stub(alpha, factor, dw):\n    {stub}", names)
    assert str(failing(names["stub"])) == "4.49: nothing is written yet"


def test_what_a_function_keeps_is_its_own():
    """Given and returned tensors may be changed later: the next problem and the next check do not see it."""
    kept = []

    def keeping(*arguments):
        for tensor in kept:
            tensor.zero_()
        kept[:] = [*arguments, trace.trace_components(*arguments)]
        return kept[-1]

    for _ in range(2):
        assert "passes" in lab.check("4.49", keeping)
    assert "passes" in lab.check("4.49", trace.trace_components)


def test_signatures_are_told():
    listed = lab.signatures()
    assert "4.49             fn(alpha (E, M), factor (M, E), dw (E, M)) -> (E): as printed" in listed
    for line in listed.splitlines():
        assert line in lab.check.__doc__
    required = "4.22 4.23 4.31 4.33 4.35 4.43 4.44 4.45 4.46 4.47 4.48 4.49 4.50 4.51 4.52 4.53".split()
    assert {name.split()[0] for name in lab.EXERCISES} >= set(required)


# What a reader has passed


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lab, "_passed", set())
    return tmp_path


def passes(name: str) -> None:
    lab.check(name, lab.EXERCISES[name].reference)


def test_nothing_is_written_before_progress_is_asked_for(folder, capsys):
    passes("4.49")
    assert list(folder.iterdir()) == []
    lab.progress()
    assert [path.name for path in folder.iterdir()] == [lab.PROGRESS]
    out = capsys.readouterr().out
    assert "chapter 6  passed: 4.49\n           to do: 4.49 derived, 4.50" in out
    assert f"1 of {len(lab.EXERCISES)} have passed; kept in {lab.PROGRESS}" in out
    passes("4.50")
    failing(lab.mutants("4.51")["negated"], "4.51")
    assert (folder / lab.PROGRESS).read_text() == "4.49\n4.50\n"


def test_progress_outlives_the_session_and_keeps_the_readers_lines(folder, capsys):
    (folder / lab.PROGRESS).write_text("my own remark\n4.22\n4.22\n")
    passes("4.23")
    lab._passed.clear()  # a new session
    lab.progress()
    assert "chapter 7  passed: 4.22, 4.23\n           to do: 4.34 scale, 4.35" in capsys.readouterr().out
    assert (folder / lab.PROGRESS).read_text() == "my own remark\n4.22\n4.22\n4.23\n"
    for name in lab.EXERCISES:
        passes(name)
    capsys.readouterr()
    lab.progress()
    out = capsys.readouterr().out
    assert f"{len(lab.EXERCISES)} of {len(lab.EXERCISES)} have passed" in out and out.count("to do: –") == out.count("chapter ")


def test_progress_where_it_cannot_be_kept(folder):
    (folder / lab.PROGRESS).mkdir()
    with pytest.raises(ValueError, match="dcpnas-progress.txt: expected a list of passed exercises, got a folder"):
        lab.progress()
