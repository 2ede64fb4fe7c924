"""A reader's update rule beside the source's: the same small search with both (Eqs. 4.50-4.53). Offered as `lab.compare`."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

import numpy as np

from ..data import Data, digits
from ..engine.config import SearchConfig
from ..engine.search import SearchResult, search
from ..method.backtracking import Rule
from .plots import CHILD, PARENT, Figure, canvas, label_axis, plain_style

#: Two rounds on a MICRO supernet of 4 channels: some ten seconds a search on one core.
SMALL = SearchConfig(channels=4, layers=2, batch=16, rounds=2, steps=8, warmup=0, measure_every=4)


@dataclass(frozen=True)
class Comparison:
    """Two searches that differ in the backtracking rule alone: the reader's (`yours`) and the source's (`reference`).

    config is what both have in common. `print` shows a table, `plot` a figure.
    """

    yours: SearchResult
    reference: SearchResult
    config: SearchConfig

    @property
    def verdict(self) -> str:
        """"same as the source" where both rules gave the same α at every step (to 1e-6), else "differs from the source"."""
        same = all(
            np.allclose(self.yours.history[name], self.reference.history[name], rtol=0, atol=1e-6)
            for name in self.yours.history
            if name.startswith("alpha/")
        )
        return "same as the source" if same else "differs from the source"

    def cosines(self, cell_type: str = "normal") -> tuple[np.ndarray, np.ndarray]:
        """Cosine of the correction with −C, the exact one-step coupling, at the measured steps: yours and the source's.

        +1: the correction is what the derivation asks for. 0 where a rule corrects nothing.
        """
        key = f"coupling_cosine/{cell_type}"
        return self.yours.history[key].copy(), self.reference.history[key].copy()

    def __str__(self) -> str:
        steps = self.reference.history["measured"].astype(int)
        child = self.reference.history["network"][steps] == 1
        lines = [f"your rule {self.verdict}", "cosine of the correction with -C, the exact one-step coupling:"]
        for cell_type in self.reference.alphas:
            lines.append(f"  {cell_type} cell     yours  source")
            both = np.stack(self.cosines(cell_type), 1)
            lines += [
                f"  step {step:2} {'Child' if c else 'Parent':6}  {a:+.2f}   {b:+.2f}"
                for step, c, (a, b) in zip(steps, child, both, strict=True)
            ]
            lines.append("  mean            {:+.2f}   {:+.2f}".format(*both.mean(0)))
        lines += ["cells:", f"  {'edge':8} {'yours':14} source"]
        yours, reference = ({edge[:3]: edge[3] for edge in s.genotype.edges()} for s in (self.yours, self.reference))
        for edge in sorted(yours | reference):
            cell_type, source, target = edge
            where = f"{source} → {target}" + (" r" if cell_type == "reduce" else "")
            lines.append(f"  {where:8} {yours.get(edge, '–'):14} {reference.get(edge, '–')}")
        return "\n".join(lines)

    @plain_style
    def plot(self) -> Figure:
        """The cosines of both rules along the search, and how far the two searches' α move apart."""
        history = self.reference.history
        steps, cell_types = history["measured"].astype(int), list(self.reference.alphas)
        figure, axes = canvas(1 + len(cell_types), 1, 5, 2.8 * (1 + len(cell_types)))
        for axis, cell_type in zip(axes.flat, cell_types, strict=False):
            label_axis(axis, f"correction and coupling, {cell_type} cell", "architecture step", "cosine with −C")
            axis.axhline(0, color="black", lw=0.8)
            for values, name, colour in zip(self.cosines(cell_type), ("yours", "the source's"), (CHILD, PARENT), strict=True):
                axis.plot(steps, values, "o-", color=colour, label=name)
            axis.set_ylim(-1.1, 1.1)
            axis.legend(frameon=False, fontsize=8)
        difference = sum(
            np.square(self.yours.history[f"alpha/{t}"] - history[f"alpha/{t}"]).sum((1, 2)) for t in cell_types
        )
        size = sum(np.square(history[f"alpha/{t}"]).sum((1, 2)) for t in cell_types)
        label_axis(axes.flat[-1], f"your rule {self.verdict}", "architecture step", "‖α yours − α source‖ / ‖α source‖")
        axes.flat[-1].plot(np.sqrt(difference / size), ".-", color=CHILD)
        axes.flat[-1].set_ylim(bottom=0)
        return figure


def compare(rule: Rule, config: SearchConfig | None = None, data: Data | None = None) -> Comparison:
    """Run the same seeded search with a reader's backtracking rule and with the source's `Learned` (4.50-4.53).

    rule: any callable from an `ArchitectureStep` to the new α, (E, M), see `backtracking`; a copy of it is used, so that what
    it stores starts afresh. config: default `SMALL`; its fields say what `Learned` is like, and its `measure_every` how often the
    exact coupling is measured. data: default the embedded digits at 8 × 8 pixels.
    Raises TypeError for a rule that cannot be called, ValueError where it returns anything but a tensor like α or where nothing
    would be measured (measure_every 0, or a warmup of all rounds), FloatingPointError where α is no longer finite.
    """
    config = SMALL if config is None else config
    if not callable(rule):
        raise TypeError(f"rule: expected a function of an ArchitectureStep, got {type(rule).__name__}")
    if config.measure_every == 0:
        raise ValueError("measure_every: expected at least 1, got 0: nothing would be measured")
    if config.warmup >= config.rounds:
        got = f"{config.warmup}: no step of α would be made"
        raise ValueError(f"warmup: expected less than rounds = {config.rounds}, got {got}")
    config = dataclasses.replace(config, backtracking="learned")
    data = digits(size=8) if data is None else data
    return Comparison(search(data, config, copy.deepcopy(rule)), search(data, config), config)
