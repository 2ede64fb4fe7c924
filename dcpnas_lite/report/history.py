"""The course of a finished search, read from the files of its folder, and a text report of it. Owns no equation.

How decided α is, and whether it runs into skip connections, is measured on the shares p = softmax(α) of one edge:
the entropy −Σ p ln p and the share of `skip_connect`.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from .. import files
from ..engine.config import SPACES, SearchConfig
from ..network.genotype import Genotype, discretize
from ..network.supernet import Space

if TYPE_CHECKING:
    from jaxtyping import Float, Int

SKIP = "skip_connect"
NETWORKS = ("Parent", "Child")  # by their code in history["network"]
SERIES = {"weight_loss": "weight loss", "alpha_loss": "architecture loss", "distance": "tangent distance D"}


def shares(alpha: Float[np.ndarray, "*T E M"]) -> Float[np.ndarray, "*T E M"]:
    """softmax(α) over the operations, in float64."""
    alpha = np.asarray(alpha, float)
    exp = np.exp(alpha - alpha.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def entropy(alpha: Float[np.ndarray, "*T E M"]) -> Float[np.ndarray, "*T E"]:
    """Entropy of softmax(α) on every edge in nats: ln M where all operations have the same share, 0 where one has all."""
    p = shares(alpha)
    return -(p * np.log(p, out=np.zeros_like(p), where=p > 0)).sum(-1)


def skip_share(alpha: Float[np.ndarray, "*T E M"], space: Space) -> Float[np.ndarray, "*T E"]:
    """Share of `skip_connect` in softmax(α) on every edge; 0 in a space without it."""
    return shares(alpha)[..., [name == SKIP for name in space.operations]].sum(-1)


def skip_edges(history: Mapping[str, np.ndarray], space: Space) -> dict[str, Int[np.ndarray, " T"]]:
    """Per cell type, how many edges of the cell that `discretize` makes of α hold `skip_connect`, at every step."""
    counts: dict[str, list[int]] = {t: [] for t in space.cell_types}
    for alphas in zip(*(torch.from_numpy(history[f"alpha/{t}"]).float() for t in counts), strict=True):
        for t, nodes in discretize(space, dict(zip(counts, alphas, strict=True))).cells.items():
            counts[t].append(sum(name == SKIP for edges in nodes for name, _ in edges))
    return {t: np.array(values, int) for t, values in counts.items()}


def kept_edges(space: Space) -> int:
    """Edges of one discrete cell of the space."""
    return sum(min(space.keep, j) for j in range(space.inputs, space.inputs + space.nodes))


@dataclass(frozen=True)
class FinishedSearch:
    """What the folder of a finished search holds.

    settings: config.json. history: history.npz, see `search`; `final/T` is the last α of cell type T, (E, M).
    """

    settings: dict
    space: Space
    genotype: Genotype
    history: dict[str, np.ndarray]

    @classmethod
    def load(cls, folder: str | os.PathLike) -> FinishedSearch:
        """Read config.json, genotype.json and history.npz; ValueError names the file that is missing or is something else."""
        folder = Path(folder)
        for name in ("config.json", "history.npz", "genotype.json"):
            if not (folder / name).is_file():
                raise ValueError(f"{folder}: expected the folder of a finished search, but it holds no {name}")
        settings = files.unseal(folder / "config.json", "the settings of a search")
        try:
            space = SPACES[settings["search"]["space"]]
        except (KeyError, TypeError):
            raise ValueError(f"{folder / 'config.json'}: expected the settings of a search, got something else") from None
        try:
            genotype = Genotype.from_json((folder / "genotype.json").read_text(encoding="utf8"))
        except ValueError as error:
            raise ValueError(f"{folder / 'genotype.json'}: {error}") from None
        path, what = folder / "history.npz", "the history of a search"
        history = files.arrays_from_bytes(files.read(path, what), path, what, sealed=False)
        if tuple(genotype.cells) != space.cell_types or (genotype.inputs, len(genotype.normal)) != (space.inputs, space.nodes):
            raise ValueError(f"{folder / 'genotype.json'}: expected a cell of the space {space.name}, got one of another")
        _check(folder / "history.npz", history, space)
        return cls(settings, space, genotype, history)

    @property
    def steps(self) -> int:
        """Architecture steps of Parent and Child together; 0 where every round was warm-up."""
        return len(self.history.get("network", ()))

    @property
    def networks(self) -> dict[str, np.ndarray]:
        """The numbers of the architecture steps of "Parent" and "Child", where they made any."""
        steps = {name: np.flatnonzero(self.history.get("network", np.empty(0)) == code) for code, name in enumerate(NETWORKS)}
        return {name: mine for name, mine in steps.items() if len(mine)}

    def series(self) -> Iterator[tuple[str, np.ndarray]]:
        """(title, values) of every number that the report follows over the steps; none where there was no step."""
        history = self.history
        for network, mine in self.networks.items():
            for key, title in SERIES.items():
                known = history[key][mine][np.isfinite(history[key][mine])]  # D is nan where the search does not use it
                if len(known):
                    yield f"{network}: {title}", known
        skips = skip_edges(history, self.space) if self.steps else {}
        for t in skips:
            alpha = history[f"alpha/{t}"]
            yield f"{t} cell: entropy of softmax(α), mean of the edges", entropy(alpha).mean(1)
            yield f"{t} cell: share of {SKIP}, mean of the edges", skip_share(alpha, self.space).mean(1)
            yield f"{t} cell: share of {SKIP}, largest of the edges", skip_share(alpha, self.space).max(1)
            yield f"{t} cell: edges with {SKIP}, of {kept_edges(self.space)}", skips[t]
            for network, mine in self.networks.items():
                if f"psi/{t}" in history:
                    psi = history[f"psi/{t}"][mine]
                    for title, values in dict(mean=psi.mean((1, 2)), smallest=psi.min((1, 2)), largest=psi.max((1, 2))).items():
                        yield f"{t} cell: {title} ψ̃ of the {network}", values

    def report(self) -> str:
        """The course in text: settings, cell, every series by its first, last, lowest and highest value, and the final α."""
        search = self.settings["search"]
        defaults = {f.name: f.default for f in dataclasses.fields(SearchConfig)}
        changed = [f"{name}={value}" for name, value in search.items() if value != defaults.get(name)]
        made = ", ".join(f"{len(mine)} by the {name}" for name, mine in self.networks.items()) or "every round was warm-up"
        lines = [
            f"space {self.space.name}, data {self.settings.get('data')}, seed {search.get('seed')}",
            f"settings other than the defaults: {', '.join(changed) or 'none'}",
            f"architecture steps: {self.steps} ({made})",
            "",
            str(self.genotype),
        ]
        series = list(self.series())
        if series:
            width = max(len(title) for title, _ in series)
            lines += ["", " " * width + "".join(f"{name:>11}" for name in ("first", "last", "lowest", "highest"))]
        for title, values in series:
            numbers = values[0], values[-1], values.min(), values.max()
            lines.append(f"{title:{width}}" + "".join(f"{value:11.5g}" for value in numbers))
        for t in self.space.cell_types:
            lines += ["", *self._final(t)]
        return "\n".join(lines) + "\n"

    def _final(self, cell_type: str) -> Iterator[str]:
        space, alpha, m = self.space, self.history[f"final/{cell_type}"], len(self.space.operations)
        kept = {(source, target): name for t, source, target, name in self.genotype.edges() if t == cell_type}
        yield f"{cell_type} cell, final softmax(α); equal shares are {1 / m:.3f}, their entropy is ln {m} = {math.log(m):.3f}"
        yield f"{'edge':8}{'strongest':15}{'share':>6}{SKIP:>14}{'entropy':>9}  in the cell"
        for edge, p, h, skip in zip(space.edges, shares(alpha), entropy(alpha), skip_share(alpha, space), strict=True):
            where, name = f"{edge[0]} → {edge[1]}", space.operations[p.argmax()]
            yield f"{where:8}{name:15}{p.max():6.3f}{skip:14.3f}{h:9.3f}  {kept.get(edge, '')}".rstrip()


def _check(path: Path, history: Mapping[str, np.ndarray], space: Space) -> None:
    """ValueError where an array is missing or has another shape than the space and the number of steps ask for."""
    shape, steps = (len(space.edges), len(space.operations)), len(np.atleast_1d(history.get("network", ())))
    wanted: dict[str, tuple[int, ...]] = {f"final/{t}": shape for t in space.cell_types}
    if steps:
        wanted |= dict.fromkeys(("network", *SERIES), (steps,)) | {f"alpha/{t}": (steps, *shape) for t in space.cell_types}
        wanted |= {name: (steps, *shape) for t in space.cell_types if (name := f"psi/{t}") in history}
    for name, expected in wanted.items():
        got = np.shape(history[name]) if name in history else "nothing"
        if got != expected:
            raise ValueError(f"{path}, {name}: expected an array of shape {expected}, got {got}")
    for name, values in history.items():
        if values.dtype.kind not in "fiub":
            raise ValueError(f"{path}, {name}: expected numbers, got {values.dtype}")
