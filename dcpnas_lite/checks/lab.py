"""The reader's bench: `check("4.49", fn)` holds a reader's function against the package on random problems.

`signatures()` lists what can be checked and how the function is called; `mutants("4.49")` lists wrong versions that the
check is known to catch, and by which it names a slip. A bare number is the line as printed, "4.49 derived" the corrected one; a
third word names a part; other names are of exercises that no equation belongs to. The bare number may also be written as one,
4.49. `progress()` shows what has passed.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .. import files
from ..report.compare import compare as compare
from .equations import CHAPTERS
from .table import PAGES as HOME
from .table import SIZES, Exercise

TOLERANCE = 1e-9
PROGRESS = "dcpnas-progress.txt"  # in the reader's folder, once `progress` was called there: a name a line
EXERCISES: dict[str, Exercise] = dict(
    sorted((item for chapter in CHAPTERS for item in chapter.exercises.items()), key=lambda item: item[0].split()[0])
)
PAGES = {name: chapter.stem for chapter in CHAPTERS for name in chapter.exercises}
_passed: set[str] = set()


class CheckFailed(AssertionError):
    """A function does not compute the equation. index, yours, expected: the first wrong entry; slip: what is wrong with it, in
    the words of `mutants` or a factor; each None where there is none."""

    def __init__(self, equation: str, message: str, index: tuple[int, ...] | None = None, yours=None, expected=None, slip=None):
        super().__init__(f"{equation}: {message}")
        self.equation, self.index, self.yours, self.expected, self.slip = equation, index, yours, expected, slip


def check(equation: str | float, fn: Callable) -> str:
    """Check a reader's function on three random problems (float64, distinct sizes, E > M and E < M).

        fn is called with positional arguments as below and must return a new tensor of exactly the stated shape, in float64,
        leaving its arguments as they are. Prints and returns a line that says what was checked, or raises CheckFailed that
        names the equation and what is wrong: first the kind of result, then its shape, then its values. A wrong answer that is a
        known slip on all problems is called by its name, with the place in the book.
        ValueError for an equation that is not listed.

    {signatures}
    """
    equation, exercise = _exercise(equation)
    if not callable(fn):
        raise TypeError(f"fn: expected a function, got {type(fn).__name__}")
    for number, sizes in enumerate(SIZES):
        arguments, given = exercise.problem(number), exercise.problem(number)
        expected = exercise.reference(*arguments.values())
        where = ", ".join(f"{letter} = {sizes[letter]}" for letter in sizes if re.search(rf"\b{letter}\b", exercise.signature))
        try:
            yours = fn(*given.values())
            if yours is ...:
                raise NotImplementedError
        except NotImplementedError:
            raise CheckFailed(equation, "nothing is written yet", slip="nothing is written yet") from None
        except Exception as problem:
            raise CheckFailed(equation, f"your function raised {type(problem).__name__}: {problem} ({where})") from problem
        for name, value in arguments.items():
            if isinstance(value, Tensor) and not torch.equal(value, given[name]):
                raise CheckFailed(equation, f"your function changes its argument {name}")
        shape, kind = tuple(expected.shape), type(yours).__name__
        if not isinstance(yours, Tensor):
            raise CheckFailed(equation, f"expected a tensor of shape {shape}, your function returned {kind}")
        if tuple(yours.shape) != shape:
            slip = _slip(exercise, fn)
            message = f"wrong shape: yours {tuple(yours.shape)}, expected {shape} ({where})"
            raise CheckFailed(equation, message + _told(equation, slip), slip=slip)
        if yours.dtype != expected.dtype:
            raise CheckFailed(equation, f"wrong type of number: yours {yours.dtype}, expected {expected.dtype}")
        if (yours.device, yours.layout) != (expected.device, expected.layout):
            raise CheckFailed(equation, f"expected a tensor in main memory, yours is {yours.layout} on {yours.device}")
        right = _close(yours, expected)
        if not right.all():
            index = tuple((~right).nonzero()[0].tolist())
            mine, theirs = yours[index].item(), expected[index].item()
            at = f" at {list(index)}" if index else ""
            slip = _slip(exercise, fn)
            message = f"wrong value{at}: yours {mine:.6g}, expected {theirs:.6g} ({where}){_told(equation, slip)}"
            raise CheckFailed(equation, message, index, mine, theirs, slip)
    message = f"{equation} passes: {exercise.what}; {len(SIZES)} random problems, shapes and values to {TOLERANCE:.0e}"
    print(message)
    _passed.add(equation)
    if Path(PROGRESS).exists():
        _keep()
    return message


def progress() -> None:
    """Print which equations have passed, chapter by chapter, and keep them in a file of the reader's, dcpnas-progress.txt.

    The file is made by the first call; from then on every check that passes in its folder is added to it. OSError where it
    cannot be written, ValueError where something else has its name.
    """
    done = _keep()
    for stem in sorted(set(PAGES.values())):
        names = [name for name in EXERCISES if PAGES[name] == stem]
        passed, to_do = (", ".join(name for name in names if (name in done) == has) or "–" for has in (True, False))
        print(f"chapter {int(stem[:2])}  passed: {passed}\n           to do: {to_do}")
    print(f"{len(done)} of {len(EXERCISES)} have passed; kept in {PROGRESS}")


def _keep() -> set[str]:
    """Add what has passed to the reader's file; returns all that is in it. Lines that name no exercise stay."""
    lines = []
    with contextlib.suppress(FileNotFoundError):
        lines = files.read(PROGRESS, "a list of passed exercises", 1 << 20).decode(errors="replace").splitlines()
    added = [name for name in EXERCISES if name in _passed and name not in lines]
    if added or not lines:
        files.write(PROGRESS, "".join(f"{line}\n" for line in [*lines, *added]))
    return {*lines, *added} & set(EXERCISES)


def _close(yours: Tensor, expected: Tensor) -> Tensor:
    """Where two tensors of one shape agree, at the scale of the largest entry."""
    return torch.isclose(yours, expected, rtol=TOLERANCE, atol=TOLERANCE * expected.abs().max().item())


def _slip(exercise: Exercise, fn: Callable) -> str | None:
    """What is wrong with a function: the mutant or the factor that it is on every problem; None for anything else."""
    problems = [list(exercise.problem(number).values()) for number in range(len(SIZES))]
    try:
        yours = [fn(*copy.deepcopy(arguments)) for arguments in problems]
    except Exception:  # it runs on some sizes alone
        return None
    if not all(isinstance(value, Tensor) and value.dtype == torch.float64 and value.isfinite().all() for value in yours):
        return None

    def same(wrong: list) -> bool:
        pairs = list(zip(yours, wrong, strict=True))
        alike = all(isinstance(w, Tensor) and (w.shape, w.dtype) == (y.shape, y.dtype) for y, w in pairs)
        return alike and all(_close(w, y).all() for y, w in pairs)

    for name, wrong in {**exercise.wrong, **_general(exercise)}.items():
        if same([wrong(*arguments) for arguments in problems]):
            return name
    right = [exercise.reference(*arguments) for arguments in problems]
    if all(y.shape == r.shape for y, r in zip(yours, right, strict=True)):
        factors = [((y * r).sum() / (r * r).sum()).item() for y, r in zip(yours, right, strict=True)]
        texts = list(dict.fromkeys(f"{factor:.4g}" for factor in factors))
        if same([c * r for c, r in zip(factors, right, strict=True)]) and (len(texts) == 1 or all(r.ndim for r in right)):
            return f"a factor, {' or '.join(texts)}" + (" by the sizes" if len(texts) > 1 else "")
    return None


def _told(equation: str, slip: str | None) -> str:
    """The slip in words and where the book has the equation, or what an exercise without a number is about."""
    if not slip:
        return ""
    number, _, part = equation.partition(" ")
    words = {"negated": "the sign", "zero": "0 everywhere"}.get(slip, slip)
    line = (f"({number}′)" if part == "derived" else f"({number})") + " in " if number in HOME else ""
    return f". The slip: {words}. See {line}chapter {int(HOME.get(number, PAGES[equation])[:2])}"


def _general(exercise: Exercise) -> dict[str, Callable]:
    """Wrong versions that every exercise has."""
    return {
        "zero": lambda *a: exercise.reference(*a) * 0,
        "negated": lambda *a: -exercise.reference(*a),
        "left to broadcasting": lambda *a: exercise.reference(*a).flatten()[:1],
        "a plain number": lambda *a: exercise.reference(*a).sum().item(),
    }


def mutants(equation: str | float) -> dict[str, Callable]:
    """Wrong versions of an equation by name: each has the signature of the right one, and its check catches every one."""
    _, exercise = _exercise(equation)
    return {**_general(exercise), **exercise.wrong}


def signatures() -> str:
    """One line for every equation that can be checked: name, call, what it is."""
    return "\n".join(f"{name:16} fn({e.signature.replace(' -> ', ') -> ')}: {e.what}" for name, e in EXERCISES.items())


def _exercise(equation: str | float) -> tuple[str, Exercise]:
    """Its name and itself; the number 4.5 is the name "4.50"."""
    name = equation
    if isinstance(equation, float) and float(f"{equation:.2f}") == equation:
        name = f"{equation:.2f}"
    if isinstance(name, str) and name in EXERCISES:
        return name, EXERCISES[name]
    number = name.split()[:1] if isinstance(name, str) else []
    close = [listed for listed in EXERCISES if listed.split()[:1] == number]
    got = repr(equation) if isinstance(equation, str | float | int) else type(equation).__name__
    raise ValueError(f"equation: expected one of {', '.join(close or EXERCISES)}, got {got}")


if check.__doc__:  # none under python -OO
    check.__doc__ = check.__doc__.format(signatures="\n".join("    " + line for line in signatures().splitlines()))
