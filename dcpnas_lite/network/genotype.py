"""Genotype: the discrete cell a search returns, its JSON form and that of DARTS, discretization of α, the published cell."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .operations import REGISTRY

if TYPE_CHECKING:
    from jaxtyping import Float

    from .supernet import Space

Edge = tuple[str, int]  # (operation, source node)


@dataclass(frozen=True)
class Genotype:
    """A cell: for each intermediate node its incoming edges as (operation, source node).

    Nodes are numbered from the input nodes on: 0 … inputs − 1 are inputs, the first intermediate node is `inputs`.
    `reduce` is None where the space has one cell type only. Raises ValueError where an operation is unknown or an edge
    comes from a node that does not precede its target.
    """

    inputs: int
    normal: tuple[tuple[Edge, ...], ...]
    reduce: tuple[tuple[Edge, ...], ...] | None = None

    def __post_init__(self):
        if type(self.inputs) is not int or self.inputs not in (1, 2):
            raise ValueError(f"inputs: expected 1 or 2 input nodes, got {self.inputs!r:.60}")
        for cell_type, nodes in self.cells.items():
            if not nodes:
                raise ValueError(f"{cell_type}: expected at least one intermediate node, got none")
            for target, edges in enumerate(nodes, self.inputs):
                for name, source in edges:
                    where = f"{cell_type}, node {target}"
                    if name not in [*REGISTRY]:
                        raise ValueError(f"{where}: expected an operation of {', '.join(REGISTRY)}, got {name!r:.60}")
                    if type(source) is not int or not 0 <= source < target:
                        raise ValueError(f"{where}: expected a source node in 0 … {target - 1}, got {source!r:.60}")
        if self.reduce is not None and len(self.reduce) != len(self.normal):
            raise ValueError(f"reduce: expected {len(self.normal)} nodes as in normal, got {len(self.reduce)}")

    @property
    def cells(self) -> dict[str, tuple[tuple[Edge, ...], ...]]:
        """Cell type → nodes."""
        return {"normal": self.normal} | ({} if self.reduce is None else {"reduce": self.reduce})

    def edges(self) -> list[tuple[str, int, int, str]]:
        """(cell type, source, target, operation) of every edge, node by node."""
        return [
            (cell_type, source, target, name)
            for cell_type, nodes in self.cells.items()
            for target, incoming in enumerate(nodes, self.inputs)
            for name, source in incoming
        ]

    @classmethod
    def from_operations(cls, space: Space, operations: Mapping[str, Sequence[str]] | Sequence[str]) -> Genotype:
        """The cell that keeps every edge of `space`, with one operation name per edge (per cell type if it has two)."""
        if not isinstance(operations, Mapping):
            operations = {space.cell_types[0]: operations}
        if set(operations) != set(space.cell_types):
            raise ValueError(f"operations: expected cell types {space.cell_types}, got {tuple(operations)}")
        cells = {}
        for cell_type, names in operations.items():
            if len(names) != len(space.edges):
                raise ValueError(f"operations: expected {len(space.edges)} names, one per edge, got {len(names)}")
            cells[cell_type] = tuple(
                tuple((name, i) for name, (i, j) in zip(names, space.edges, strict=True) if j == node)
                for node in range(space.inputs, space.inputs + space.nodes)
            )
        return cls(space.inputs, **cells)

    def to_json(self) -> str:
        """JSON text that `from_json` reads back to an equal genotype."""
        return json.dumps({"inputs": self.inputs} | self.cells, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Genotype:
        """Read the text of `to_json`; ValueError says what is wrong with any other text."""
        try:
            raw = json.loads(text, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"genotype: expected JSON, got text that is not ({error})") from None
        if not isinstance(raw, dict) or not {"inputs", "normal"} <= set(raw) <= {"inputs", "normal", "reduce"}:
            raise ValueError('genotype: expected a JSON object with "inputs", "normal" and, for two cell types, "reduce"')
        cells = {k: raw[k] for k in ("normal", "reduce") if k == "normal" or raw.get(k) is not None}
        for nodes in cells.values():
            if not isinstance(nodes, list) or not all(isinstance(edges, list) and all(map(_pair, edges)) for edges in nodes):
                raise ValueError("genotype: expected nodes as lists of [operation, source node] pairs")
        return cls(raw["inputs"], **{k: tuple(tuple(map(tuple, edges)) for edges in nodes) for k, nodes in cells.items()})

    @classmethod
    def from_darts(cls, text: str) -> Genotype:
        """Read the text form of DARTS, in which each node has two edges; nothing in it is evaluated.

        `Genotype(normal=[('sep_conv_3x3', 1), …], normal_concat=range(2, 6), reduce=[…], reduce_concat=range(2, 6))`: as a
        cell here concatenates all its intermediate nodes, so must this one. ValueError says what is wrong with other text.
        """
        fields = _darts_fields(text)
        cells = {}
        for cell_type in ("normal", "reduce"):
            edges, concat = fields[cell_type], fields[f"{cell_type}_concat"]
            if not isinstance(edges, list | tuple) or len(edges) % 2 or not all(map(_pair, edges)):
                raise ValueError(f"{cell_type}: expected a list of (operation, source node) pairs, two for each node")
            cells[cell_type] = tuple(tuple(map(tuple, edges[i : i + 2])) for i in range(0, len(edges), 2))
            nodes = range(2, 2 + len(cells[cell_type]))
            if concat != nodes and (not isinstance(concat, list | tuple) or list(concat) != list(nodes)):
                raise ValueError(f"{cell_type}_concat: expected all intermediate nodes, {nodes}, got {concat!r:.60}")
        return cls(2, **cells)

    def __str__(self) -> str:
        lines = []
        for cell_type, nodes in self.cells.items():
            text = " | ".join(", ".join(f"{name}←{source}" for name, source in edges) for edges in nodes)
            lines.append(f"{cell_type}: {text}")
        return "\n".join(lines)


def _pair(edge) -> bool:
    return isinstance(edge, list | tuple) and len(edge) == 2


def _unique(pairs: list[tuple[str, object]]) -> dict:
    if len(out := dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice in an object")
    return out


def _darts_fields(text: str) -> dict:
    """The four arguments of `Genotype(…)`: literals, or range(…) of literals."""
    try:
        if len(text) > 100_000:
            raise ValueError("a text of more than 100,000 characters")
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or getattr(call.func, "id", "") != "Genotype" or call.args:
            raise ValueError("no call of Genotype by keywords")
        fields = {}
        for keyword in call.keywords:
            value = keyword.value
            if isinstance(value, ast.Call) and getattr(value.func, "id", "") == "range" and not value.keywords:
                fields[keyword.arg] = range(*map(ast.literal_eval, value.args))
            else:
                fields[keyword.arg] = ast.literal_eval(value)
        if sorted(str(keyword.arg) for keyword in call.keywords) != ["normal", "normal_concat", "reduce", "reduce_concat"]:
            raise ValueError("not the arguments normal, normal_concat, reduce and reduce_concat, each once")
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        what = (str(error) or type(error).__name__).partition("\n")[0]
        raise ValueError(f"genotype: expected the text form of DARTS, Genotype(normal=[…], …), got another ({what})") from None
    return fields


def discretize(space: Space, alphas: Mapping[str, Float[Tensor, "E M"]]) -> Genotype:
    """The genotype of architecture parameters: per edge the strongest operation other than `none`.

    Where a node of the space has more than `space.keep` incoming edges, the `keep` edges stay whose best operation has the
    largest softmax weight, as in DARTS. Ties go to the lower index. ValueError where a cell type is missing, or α has another
    shape or an entry that is not finite.
    """
    if missing := [t for t in space.cell_types if t not in alphas]:
        raise ValueError(f"alphas: expected cell types {space.cell_types}, got none for {missing[0]!r}")
    candidates = [m for m, name in enumerate(space.operations) if name != "none"]
    cells = {}
    for cell_type in space.cell_types:
        alpha = alphas[cell_type].detach()
        expected = (len(space.edges), len(space.operations))
        if alpha.shape != expected:
            raise ValueError(f"alpha[{cell_type!r}]: expected shape {expected}, got {tuple(alpha.shape)}")
        if not alpha.isfinite().all():
            raise ValueError(f"alpha[{cell_type!r}]: expected finite numbers, got {alpha[~alpha.isfinite()][0].item()}")
        strength, choice = alpha.softmax(1)[:, candidates].max(1)
        nodes = []
        for node in range(space.inputs, space.inputs + space.nodes):
            incoming = [e for e, (_, j) in enumerate(space.edges) if j == node]
            kept = sorted(sorted(incoming, key=lambda e: -strength[e].item())[: space.keep])
            nodes.append(tuple((space.operations[candidates[choice[e].item()]], space.edges[e][0]) for e in kept))
        cells[cell_type] = tuple(nodes)
    return Genotype(space.inputs, **cells)


def random_cell(space: Space, seed: int) -> Genotype:
    """A cell drawn at random: every choice of kept edges, and of operations other than `none`, is equally likely."""
    generator, shape = torch.Generator().manual_seed(seed), (len(space.edges), len(space.operations))
    return discretize(space, {t: torch.randn(shape, generator=generator) for t in space.cell_types})


#: The cell in the authors' public code, which retrains it but does not contain the search that found it.
PUBLISHED = Genotype(
    inputs=2,
    normal=(
        (("sep_conv_5x5", 1), ("max_pool_3x3", 0)),
        (("dil_conv_3x3", 2), ("skip_connect", 0)),
        (("sep_conv_3x3", 3), ("avg_pool_3x3", 1)),
        (("dil_conv_3x3", 4), ("avg_pool_3x3", 3)),
    ),
    reduce=(
        (("max_pool_3x3", 0), ("sep_conv_3x3", 1)),
        (("dil_conv_3x3", 1), ("sep_conv_3x3", 0)),
        (("max_pool_3x3", 1), ("dil_conv_5x5", 2)),
        (("dil_conv_5x5", 2), ("sep_conv_5x5", 1)),
    ),
)
