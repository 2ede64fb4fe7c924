"""What a reading of a line is, when it is right, and what follows for the line; `readings` has those of every line.

A reading fixes what the print leaves open: what a letter stands for, the layout, the transposes, the order of the factors, what
is summed. Its error is relative, on random problems with E < M, E > M and E = M, and inf where it does not exist. It is right if
it holds on all of them. A correction is compared up to one common factor, which η could take up.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from .problems import SIZES, Case, deviation
from .table import EXACT, link

Readings = dict[str, float]  # error of each reading by name, on one problem


@dataclass(frozen=True)
class Line:
    """varied: what the readings differ in. printed: they keep to the printed line, so that its verdict follows from them."""

    number: str
    varied: str
    read: Callable[[Case], Readings] = field(repr=False)
    printed: bool = True

    def tried(self) -> dict[str, list[float]]:
        """The errors of each reading, one for each problem."""
        found = [self.read(Case(number)) for number in range(len(SIZES))]
        return {name: [errors[name] for errors in found] for name in found[0]}


LINES: list[Line] = []


def line(number: str, varied: str, printed: bool = True) -> Callable:
    def enter(read: Callable[[Case], Readings]) -> Callable:
        LINES.append(Line(number, varied, read, printed))
        return read

    return enter


def right(tried: dict[str, list[float]]) -> list[str]:
    """The readings that hold on every problem."""
    return [name for name, errors in tried.items() if max(errors) <= EXACT]


def verdict(tried: dict[str, list[float]]) -> str:
    """What the readings of a printed line say of it."""
    return "under an assumption" if right(tried) else "corrected"


def least(readings: Readings) -> float:
    """The error of the kindest reading of one problem."""
    return min(readings.values())


def parallel(got: Tensor, want: Tensor) -> float:
    """Relative error up to one common factor; inf where shapes differ."""
    if got.shape != want.shape:
        return float("inf")
    norm = (got * got).sum()
    return deviation(got * ((got * want).sum() / norm if norm > 0 else 0), want)


def product(*factors: Tensor) -> Tensor | None:
    """The matrix product, over leading axes as well; None where the shapes do not fit."""
    out = factors[0]
    for factor in factors[1:]:
        if out.shape[-1] != factor.shape[-2]:
            return None
        out = out @ factor
    return out


def arranged(**factors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor | None]]:
    """Every choice of one form of each factor, in every order, by name, with its product."""
    for choice in itertools.product(*(forms.items() for forms in factors.values())):
        for order in itertools.permutations(choice):
            yield " ".join(name for name, _ in order), product(*(tensor for _, tensor in order))


def turned(name: str, tensor: Tensor) -> dict[str, Tensor]:
    return {name: tensor, f"{name}ᵀ": tensor.mT}


def markdown(found: dict[Line, dict[str, list[float]]]) -> str:
    """The readings of lines as a Markdown table: how many were tried, exist in some size, are right; which; the verdict."""
    rows = ["| Eq. | Varied | Tried | Exist | Right | Which | Verdict |", "|" + "---|" * 7]
    for entry, tried in found.items():
        exist, holding = sum(min(errors) < float("inf") for errors in tried.values()), right(tried)
        which = "<br>".join([f"`{name}`" for name in holding[:4]] + [f"and {len(holding) - 4} more"] * (len(holding) > 4))
        rows.append(
            f"| [({entry.number})]({link(entry.number)}) | {entry.varied} | {len(tried)} | {exist} | "
            f"{len(holding)} | {which or 'none'} | {verdict(tried) if entry.printed else 'mended'} |"
        )
    return "\n".join(rows)
