"""The reader's bench: `check("4.49", fn)` holds a reader's function against the package on random problems.

`signatures()` lists what can be checked and how the function is called; `mutants("4.49")` lists wrong versions that the
check is known to catch. A bare number is the line as printed, "4.49 derived" the corrected one; a third word names a part.
The bare number may also be written as one, 4.49.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from ..report.compare import compare as compare
from .equations import CHAPTERS
from .table import SIZES, Exercise

TOLERANCE = 1e-9
EXERCISES: dict[str, Exercise] = dict(
    sorted((item for chapter in CHAPTERS for item in chapter.exercises.items()), key=lambda item: item[0].split()[0])
)


class CheckFailed(AssertionError):
    """A function does not compute the equation. index, yours, expected: the first wrong entry; None where there is none."""

    def __init__(self, equation: str, message: str, index: tuple[int, ...] | None = None, yours=None, expected=None):
        super().__init__(f"{equation}: {message}")
        self.equation, self.index, self.yours, self.expected = equation, index, yours, expected


def check(equation: str | float, fn: Callable) -> str:
    """Check a reader's function on three random problems (float64, distinct sizes, E > M and E < M).

        fn is called with positional arguments as below and must return a new tensor of exactly the stated shape, in float64,
        leaving its arguments as they are. Prints and returns a line that says what was checked, or raises CheckFailed that
        names the equation and what is wrong: first the kind of result, then its shape, then its values.
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
        except Exception as problem:
            raise CheckFailed(equation, f"your function raised {type(problem).__name__}: {problem} ({where})") from problem
        for name, value in arguments.items():
            if isinstance(value, Tensor) and not torch.equal(value, given[name]):
                raise CheckFailed(equation, f"your function changes its argument {name}")
        shape, kind = tuple(expected.shape), type(yours).__name__
        if not isinstance(yours, Tensor):
            raise CheckFailed(equation, f"expected a tensor of shape {shape}, your function returned {kind}")
        if tuple(yours.shape) != shape:
            raise CheckFailed(equation, f"wrong shape: yours {tuple(yours.shape)}, expected {shape} ({where})")
        if yours.dtype != expected.dtype:
            raise CheckFailed(equation, f"wrong type of number: yours {yours.dtype}, expected {expected.dtype}")
        if (yours.device, yours.layout) != (expected.device, expected.layout):
            raise CheckFailed(equation, f"expected a tensor in main memory, yours is {yours.layout} on {yours.device}")
        right = torch.isclose(yours, expected, rtol=TOLERANCE, atol=TOLERANCE * expected.abs().max().item())
        if not right.all():
            index = tuple((~right).nonzero()[0].tolist())
            mine, theirs = yours[index].item(), expected[index].item()
            at = f" at {list(index)}" if index else ""
            raise CheckFailed(
                equation, f"wrong value{at}: yours {mine:.6g}, expected {theirs:.6g} ({where})", index, mine, theirs
            )
    message = f"{equation} passes: {exercise.what}; {len(SIZES)} random problems, shapes and values to {TOLERANCE:.0e}"
    print(message)
    return message


def mutants(equation: str | float) -> dict[str, Callable]:
    """Wrong versions of an equation by name: each has the signature of the right one, and its check catches every one."""
    _, exercise = _exercise(equation)
    return {
        "zero": lambda *a: exercise.reference(*a) * 0,
        "negated": lambda *a: -exercise.reference(*a),
        "left to broadcasting": lambda *a: exercise.reference(*a).flatten()[:1],
        "a plain number": lambda *a: exercise.reference(*a).sum().item(),
        **exercise.wrong,
    }


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
