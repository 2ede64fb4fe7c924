"""The 8³ = 512 cells of the MICRO space: their numbers, and which of them are the same function. Owns no equation.

A cell is a number 0 … 511, its three operation names in the order of `MICRO.edges`, or a `Genotype`. The number is a numeral
with one digit an edge, the place of its operation among the eight that MICRO names; an operation that somebody registers
changes no number.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from ..network.genotype import Genotype
from ..network.supernet import MICRO

CELLS = len(MICRO.operations) ** len(MICRO.edges)
Cell = int | Sequence[str] | Genotype


def index(cell: Cell) -> int:
    """The number of a cell. Raises ValueError for anything that is no cell of the MICRO space."""
    number, names = _number(cell), ", ".join(MICRO.operations)
    if number is None:
        raise ValueError(f"cell: expected 0 … {CELLS - 1}, {len(MICRO.edges)} of {names}, or such a Genotype, got {cell!r:.200}")
    return number


def _number(cell: Cell) -> int | None:
    """The number of a cell, None for anything that is none."""
    if isinstance(cell, Genotype):  # a set of edges: their order says nothing
        edges = {(source, target): name for _, source, target, name in cell.edges()}
        twice = len(cell.edges()) > len(edges)
        if cell.inputs != 1 or cell.reduce is not None or twice or set(edges) != set(MICRO.edges):
            return None
        cell = [edges[edge] for edge in MICRO.edges]
    if isinstance(cell, np.ndarray) and cell.ndim:
        cell = cell.tolist()
    if isinstance(cell, list | tuple):
        if len(cell) != len(MICRO.edges) or not all(isinstance(name, str) and name in MICRO.operations for name in cell):
            return None
        number = 0
        for name in cell:
            number = number * len(MICRO.operations) + MICRO.operations.index(name)
        return number
    try:
        number = operator.index(cell)  # type: ignore[arg-type]  # NumPy's integers, too; a TypeError for what is none
    except TypeError:
        return None
    return number if 0 <= number < CELLS and not isinstance(cell, bool) else None


def operations(cell: Cell) -> tuple[str, ...]:
    """The operation names of a cell, in the order of `MICRO.edges`."""
    number, base = index(cell), len(MICRO.operations)
    return tuple(MICRO.operations[number // base**e % base] for e in reversed(range(len(MICRO.edges))))


def genotype(cell: Cell) -> Genotype:
    """The genotype of a cell."""
    return Genotype.from_operations(MICRO, operations(cell))


def canonical(cell: Cell) -> int:
    """The smallest number among the cells that are the same function of the same weights, up to a swap of the two nodes.

    The cell computes node 1 = a(x) and node 2 = b(x) + c(node 1), and returns both. Three identities:
    c = skip_connect is c = none where a = none (either adds zero); with c = none the nodes swap, (a, b) ~ (b, a);
    with a = skip_connect node 1 is x, so node 2 = b(x) + c(x) and (b, c) ~ (c, b). A pooling or convolution that reads a
    `none` is not among them: it still adds its BatchNorm's learned constant and, 1-bit, the pattern of its border.
    """
    a, b, c = operations(cell)
    if a == "none" and c == "skip_connect":
        c = "none"
    same = {(a, b, c)}
    for _ in range(2):  # a swap can make another one possible
        for a, b, c in tuple(same):
            if c == "none":
                same.add((b, a, c))
            if a == "skip_connect":
                same.add((a, c, b))
            if a == "none" and c in ("none", "skip_connect"):
                same |= {(a, b, "none"), (a, b, "skip_connect")}
    return min(map(index, same))


def classes() -> dict[int, list[int]]:
    """Canonical cell → all its isomorphic cells, for every class of more than one."""
    same: dict[int, list[int]] = {}
    for cell in range(CELLS):
        same.setdefault(canonical(cell), []).append(cell)
    return {first: cells for first, cells in same.items() if len(cells) > 1}
