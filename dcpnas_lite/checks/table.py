"""What the table and the bench are made of: a chapter's rows (`Equation`) and exercises (`Exercise`), collected by `Chapter`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..network.seeded import initialised_by
from .problems import SIZES as PROBLEMS
from .problems import Case

KINDS = ("definition", "identity", "surrogate", "heuristic")
PROOFS = ("written out", "autograd", "differences")  # the other side: loops and closed forms, autograd, central differences
VERDICTS = ("holds", "corrected", "under an assumption", "reconstructed")
EXACT = 1e-9  # largest relative error of a line that holds (float64)
WRONG = 1e-2  # smallest relative error of a line that fails

#: Sizes of the three random problems of an exercise: no two agree, and E and M change places. See the page of notation.
SIZES = (
    {"E": 3, "M": 4, "N": 6, "classes": 2, "C_out": 5, "entries": 7},
    {"E": 5, "M": 2, "N": 3, "classes": 4, "C_out": 7, "entries": 6},
    {"E": 14, "M": 8, "N": 5, "classes": 3, "C_out": 4, "entries": 9},
)


#: The page of every number: the file name stem of the chapter in which the equation carries its tag.
PAGES: dict[str, str] = {}


def link(number: str) -> str:
    """Where an equation stands, as a link between notebooks; the book makes it one between its pages."""
    return f"{PAGES[number]}.ipynb#eq-{number.replace('.', '-')}"


@dataclass(frozen=True)
class Check:
    """Outcome of a check.

    discrepancy: relative error of the line; of a line that fails as printed, or where its assumption does, the smallest
    over all problems and over all that the line could mean; inf where it is undefined.
    """

    passed: bool
    discrepancy: float
    text: str


@dataclass(frozen=True)
class Equation:
    """One numbered equation of the source.

    chapter: file name stem of the chapter in which the equation carries its tag. printed and derived are TeX; derived is ""
    where the printed line stands. reason: why the printed line cannot stand, or what it takes for granted. functions: dotted
    paths of what implements it. run takes a `Case` and returns the relative error of the line that must hold and, for the
    verdicts "corrected" and "under an assumption", that of the line (or case) that must fail.
    """

    number: str
    title: str
    kind: str
    proof: str
    verdict: str
    printed: str
    chapter: str
    run: Callable[[Case], float | tuple[float, float]] = field(repr=False)
    functions: tuple[str, ...] = ()
    derived: str = ""
    reason: str = ""
    exact: float = EXACT

    def check(self) -> Check:
        """Run the check on every problem, up to the first that fails; an exception inside it is a failure."""
        text = " ".join((self.run.__doc__ or "").split())  # without docstrings, python -OO, there are no words
        must_fail = self.verdict in ("corrected", "under an assumption")
        errors, discrepancies = list[float](), list[float]()
        for number in range(len(PROBLEMS)):
            try:
                with initialised_by(torch.Generator().manual_seed(number)):
                    outcome = self.run(Case(number))
                if isinstance(outcome, tuple) != must_fail:
                    raise TypeError(f"{self.number}: expected {2 if must_fail else 1} errors of its check, got {outcome}")
            except Exception as problem:
                return Check(False, float("inf"), f"{text} The check raised {type(problem).__name__}: {problem}".strip())
            error, discrepancy = outcome if isinstance(outcome, tuple) else (outcome, outcome)
            errors.append(error)
            discrepancies.append(discrepancy)
            if not (error <= self.exact and (discrepancy >= WRONG or not must_fail)):
                return Check(False, discrepancy, text)
        return Check(True, min(discrepancies) if must_fail else max(errors), text)

    def figure(self, check: Check) -> str:
        """The discrepancy in words that do not change from machine to machine."""
        if check.discrepancy == float("inf"):
            return "undefined"
        return f"< {self.exact:.0e}".replace("e-0", "e-") if check.discrepancy <= self.exact else f"{check.discrepancy:.2f}"


@dataclass(frozen=True)
class Exercise:
    """What the reader's bench knows: how fn is called, what it shall return, the package's own answer, and wrong ones."""

    signature: str
    what: str
    reference: Callable
    wrong: dict[str, Callable]
    prepare: Callable[[dict], dict] = dict

    def problem(self, number: int) -> dict:
        """Arguments by name of one random problem: float64 tensors, standard normal; numbers between 0.1 and 0.9."""
        generator = torch.Generator().manual_seed(number)
        arguments = {}
        for name, shape in re.findall(r"(\w+)(?: (\([^)]*\)))?(?:,|$)", self.signature.partition(" -> ")[0]):
            if shape:
                size = [SIZES[number][axis] for axis in re.findall(r"\w+", shape)]
                arguments[name] = torch.randn(size, generator=generator, dtype=torch.float64)
            else:
                arguments[name] = 0.1 + 0.8 * torch.rand((), generator=generator).item()
        return self.prepare(arguments)


class Chapter:
    """The rows and the exercises of one chapter; stem is the file name of its page."""

    def __init__(self, stem: str):
        self.stem = stem
        self.rows: list[Equation] = []
        self.exercises: dict[str, Exercise] = {}

    def row(
        self, number: str, title: str, kind: str, proof: str, verdict: str, printed: str, functions: tuple = (), **rest
    ) -> Callable:
        """Enter the decorated check in the table; its docstring says what it checks."""
        paths = tuple(f"{f.__module__}.{f.__qualname__}" for f in functions)

        def enter(run: Callable) -> Callable:
            PAGES[number] = self.stem
            self.rows.append(Equation(number, title, kind, proof, verdict, printed, self.stem, run, paths, **rest))
            return run

        return enter

    def exercise(self, name: str, *parts) -> None:
        """Enter an exercise: a number is the line as printed, "4.49 derived" the corrected one, a third word a part of it."""
        self.exercises[name] = Exercise(*parts)
