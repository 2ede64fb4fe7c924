"""Pictures of results: a found cell, and what α, ψ̃ and the losses did during a search. Owns no equation.

Every function takes results and returns a matplotlib figure on a white ground: the last expression of a notebook cell shows it,
`.savefig(path)` writes it. Colours are those of Okabe and Ito, which colour-blind readers can tell apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import TYPE_CHECKING

import matplotlib.figure
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from ..network.operations import REGISTRY
from .history import SKIP, entropy, kept_edges, shares, skip_edges, skip_share

if TYPE_CHECKING:
    from jaxtyping import Float

    from ..network.genotype import Genotype
    from ..network.supernet import Space

PARENT, CHILD = "#0072B2", "#D55E00"
CELL_COLOURS = "#009E73", "#CC79A7"  # of the normal and of the reduction cell

#: Makes or saves a picture in matplotlib's own style, whatever the reader's is: TeX that is not installed, white on white.
plain_style = matplotlib.style.context("default")


class Figure(matplotlib.figure.Figure):
    """A matplotlib figure that a notebook shows whether or not pyplot was imported."""

    @plain_style
    def savefig(self, *args, **options) -> None:
        super().savefig(*args, **options)

    def _repr_png_(self) -> bytes:
        out = BytesIO()
        self.savefig(out, format="png")
        return out.getvalue()


def canvas(rows: int, columns: int, width: float, height: float, **options) -> tuple[Figure, np.ndarray]:
    """A figure of that many inches, and its axes (rows, columns)."""
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white", layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def label_axis(axis: Axes, title: str, xlabel: str = "", ylabel: str = "") -> None:
    """Title and labels of an axis, in the style of all pictures here."""
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)


def label(operation: str) -> str:
    """"sep_conv_3x3" → "sep conv 3×3"."""
    return operation.replace("_connect", "").replace("_", " ").replace("3x3", "3×3").replace("5x5", "5×5")


def _cell_name(cell_type: str) -> str:
    return {"reduce": "reduction"}.get(cell_type, cell_type) + " cell"


@plain_style
def cell(genotype: Genotype) -> Figure:
    """Draw the cell, or the normal and the reduction cell: nodes in a row, one arrow with its operation per edge."""
    arcs = {cell_type: _arcs(genotype, cell_type) for cell_type in genotype.cells}
    heights = [1.15 + max((apex for *_, apex in cell_arcs), default=0) for cell_arcs in arcs.values()]
    last = genotype.inputs + len(genotype.normal) - 1
    inch = 1.45  # per unit, a unit being the distance of two nodes
    figure, axes = canvas(len(arcs), 1, (last + 1.85) * inch, sum(heights) * inch + 0.3 * len(arcs), height_ratios=heights)
    for axis, (name, cell_arcs), height in zip(axes.flat, arcs.items(), heights, strict=True):
        axis.set(xlim=(-0.35, last + 1.5), ylim=(-0.75, height - 0.75), aspect="equal")
        axis.set_title(_cell_name(name), fontsize=10)
        axis.set_axis_off()
        _draw_cell(axis, genotype.inputs, last, cell_arcs)
    return figure


def _arcs(genotype: Genotype, cell_type: str) -> list[tuple[str, int, int, float]]:
    """(operation, source, target, height of the arc) of every edge; equal edges stand above each other."""
    arcs, seen = [], Counter[tuple]()
    for of, source, target, name in genotype.edges():
        if of == cell_type:
            arcs.append((name, source, target, 0.5 * (target - source - 1 + seen[source, target])))
            seen[source, target] += 1
    return arcs


def _draw_cell(axis: Axes, inputs: int, last: int, arcs: list[tuple[str, int, int, float]]) -> None:
    for name, source, target, apex in arcs:
        arrow = FancyArrowPatch(
            (source, 0),
            (target, 0),
            connectionstyle=f"arc3,rad={-2 * apex / (target - source)}",
            arrowstyle="-|>",
            mutation_scale=13,
            shrinkA=11,
            shrinkB=11,
            lw=1.8,
            color=REGISTRY[name].colour,
            linestyle=":" if name == "none" else "-",
        )
        axis.add_patch(arrow)
        text = label(name).replace(" 3", "\n3").replace(" 5", "\n5")
        box = dict(boxstyle="round,pad=0.3", facecolor="white", edgecolor=REGISTRY[name].colour, lw=1.2)
        axis.text((source + target) / 2, apex, text, ha="center", va="center", fontsize=8, linespacing=1, bbox=box, zorder=5)
    for node in range(last + 1):
        face = "#DDDDDD" if node < inputs else "white"
        axis.plot(node, 0, "o", markersize=22, markerfacecolor=face, markeredgecolor="black", zorder=4)
        axis.text(node, 0, str(node), ha="center", va="center_baseline", fontsize=10, zorder=5)
        if node < inputs:
            axis.text(node, -0.25, "input", ha="center", va="top", fontsize=8)
        else:
            axis.plot([node, node], [-0.2, -0.5], color="#777777", lw=1.2)
    axis.annotate("", (last + 0.7, -0.5), (inputs, -0.5), arrowprops=dict(arrowstyle="-|>", color="#777777", lw=1.2, shrinkA=0))
    axis.text(last + 0.75, -0.5, "concatenated\noutput", va="center", fontsize=8)


@plain_style
def trajectories(history: Mapping[str, np.ndarray], space: Space, cell_type: str = "normal", columns: int = 5) -> Figure:
    """softmax(α) of every operation over the architecture steps, one panel per edge; the Child's phases have a grey ground.

    columns: at most so many panels beside each other. Raises KeyError where `history` has no such cell type.
    """
    child = np.asarray(history["network"]) == 1
    return _edges(shares(history[f"alpha/{cell_type}"]), child, space, "softmax(α)", columns)


@plain_style
def psi(
    history: Mapping[str, np.ndarray], space: Space, cell_type: str = "normal", network: str = "child", columns: int = 5
) -> Figure:
    """ψ̃ of one network ("parent" or "child") over that network's architecture steps, one panel per edge.

    columns: at most so many panels beside each other. Raises KeyError where the search learned no ψ̃ for this cell type,
    ValueError where it has no steps of this network.
    """
    mine = np.asarray(history["network"]) == (network == "child")
    if network not in ("parent", "child") or not mine.any():
        raise ValueError(f"network: expected one that was searched, 'parent' or 'child', got {network!r}")
    values = history[f"psi/{cell_type}"][mine]
    return _edges(values, np.zeros(len(values), bool), space, f"ψ̃ of the {network.capitalize()}", columns)


def _edges(values: Float[np.ndarray, "T E M"], shaded: np.ndarray, space: Space, ylabel: str, columns: int) -> Figure:
    columns = min(len(space.edges), columns)
    rows = -(-len(space.edges) // columns)
    width = 5.5 if columns == 1 else max(2.0 * columns, 7.5)
    figure, axes = canvas(rows, columns, width, 1.9 * rows + 0.9, sharex=True, sharey=True)
    for e, axis in enumerate(axes.flat):
        if e >= len(space.edges):
            axis.set_axis_off()
            continue
        _shade(axis, shaded)
        for m, name in enumerate(space.operations):
            style = ":" if name == "none" else "--" if "pool" in name else "-"
            axis.plot(values[:, e, m], style, color=REGISTRY[name].colour, lw=1.6, label=label(name), marker=_marker(values))
        source, target = space.edges[e]
        below = e + columns >= len(space.edges)
        label_axis(axis, f"edge {source} → {target}", "architecture step" if below else "", ylabel if e % columns == 0 else "")
        _whole_steps(axis)
        axis.tick_params(labelbottom=below)
    handles = axes.flat[0].get_legend_handles_labels()[0]
    if shaded.any():
        handles.append(Patch(color="#EEEEEE", label="Child's phases"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3 if columns == 1 else 5, frameon=False, fontsize=8.5)
    return figure


def _shade(axis: Axes, shaded: np.ndarray) -> None:
    for start, stop in _runs(shaded):
        axis.axvspan(start - 0.5, stop - 0.5, color="#EEEEEE", lw=0)


def _whole_steps(axis: Axes) -> None:
    """Ticks at whole steps alone; to be called when the axis holds its data."""
    left, right = axis.get_xlim()
    if right - left < 1:  # a single step
        axis.set_xlim((left + right - 1) / 2, (left + right + 1) / 2)
    locator = axis.xaxis.get_major_locator()
    assert isinstance(locator, MaxNLocator)  # that of every axis with numbers
    locator.set_params(integer=True, min_n_ticks=1)


def _marker(values: np.ndarray) -> str:
    """A line of one point shows nothing without a marker."""
    return "." if len(values) == 1 else ""


def _runs(mask: np.ndarray) -> Iterator[tuple[int, int]]:
    """[start, stop) of every unbroken run of True."""
    ends = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    yield from zip(ends[::2], ends[1::2], strict=True)


@plain_style
def losses(history: Mapping[str, np.ndarray], columns: int = 3) -> Figure:
    """The weight loss and the architecture loss of Parent and Child, and the tangent distance D, over the architecture steps.

    The Parent's losses are L_NAS; a Child with a Parent has −G (+ μ L_R in the weight loss), one without has L_NAS. columns: 3
    panels beside each other or, with 1, on top of each other.
    """
    child = np.asarray(history["network"]) == 1
    figure, axes = canvas(3 // columns, columns, 9.0 if columns == 3 else 5.5, 2.9 if columns == 3 else 6.9)
    for axis, key, title in zip(axes.flat[:2], ("weight_loss", "alpha_loss"), ("loss of w", "loss of α"), strict=True):
        label_axis(axis, title, "architecture step", "loss")
        for mine, name, colour in ((~child, "Parent", PARENT), (child, "Child", CHILD)):
            if mine.any():
                axis.plot(np.flatnonzero(mine), np.asarray(history[key])[mine], ".", color=colour, ms=5, label=name)
        _whole_steps(axis)
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False)
    axis = axes.flat[2]
    label_axis(axis, "tangent distance D (Child)", "architecture step", "D")
    known = np.isfinite(history["distance"])
    if known.any():
        axis.semilogy(np.flatnonzero(known), np.asarray(history["distance"])[known], ".", color=CHILD, ms=5)
        _whole_steps(axis)
    else:
        axis.text(0.5, 0.5, "not used", transform=axis.transAxes, ha="center", va="center")
    return figure


@plain_style
def collapse(history: Mapping[str, np.ndarray], space: Space) -> Figure:
    """How decided α is and whether it runs into skip connections, over the architecture steps; a colour for each cell type.

    Entropy of softmax(α) and the share of `skip_connect`: the line is the mean over the edges, the band goes from the lowest edge
    to the highest, and dashed is α = 0, where all operations have the same share. Below: the edges with `skip_connect` in the
    cell that α stands for at that step; dashed is their mean over cells drawn at random. The Child's phases have a grey ground.
    """
    shaded, m = np.asarray(history["network"]) == 1, len(space.operations)
    skips, kept = skip_edges(history, space), kept_edges(space)
    offered, chance = SKIP in space.operations, 1 / len(set(space.operations) - {"none"})
    figure, axes = canvas(3, 1, 5.5, 7.2, sharex=True)
    top, middle, bottom = axes.flat
    for axis, title, ylabel, equal in (
        (top, "entropy of softmax(α)", "nats", np.log(m)),
        (middle, "share of skip", "share", offered / m),
        (bottom, "edges with skip", f"of the {kept} edges", kept * offered * chance),
    ):
        label_axis(axis, title, "architecture step" if axis is bottom else "", ylabel)
        _shade(axis, shaded)
        axis.axhline(equal, color="black", lw=1.2, ls="--", zorder=3)
    for number, cell_type in enumerate(space.cell_types):
        alpha, style = history[f"alpha/{cell_type}"], dict(color=CELL_COLOURS[number], lw=2.6 - 1.2 * number)
        for axis, values in ((top, entropy(alpha)), (middle, skip_share(alpha, space))):
            steps = np.arange(len(values))
            axis.fill_between(steps, values.min(1), values.max(1), color=style["color"], alpha=0.25, lw=0)
            axis.plot(steps, values.mean(1), marker=_marker(values), **style)
        bottom.plot(skips[cell_type], drawstyle="steps-mid", marker=_marker(skips[cell_type]), **style)
    for axis in axes.flat:
        _whole_steps(axis)
    bottom.set_ylim(-0.2, kept + 0.2)
    bottom.yaxis.get_major_locator().set_params(integer=True)
    handles = [
        *(Line2D([], [], color=c, lw=2.6, label=_cell_name(t)) for c, t in zip(CELL_COLOURS, space.cell_types, strict=False)),
        Patch(color="#777777", alpha=0.25, label="lowest to highest edge"),
        Line2D([], [], color="black", lw=1.2, ls="--", label="equal shares; below: random cells"),
        *([Patch(color="#EEEEEE", label="Child's phases")] if shaded.any() else []),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


@plain_style
def mix(alphas: Mapping[str, np.ndarray], space: Space, genotype: Genotype | None = None) -> Figure:
    """softmax(α) of every edge and operation in per cent, one panel per cell type; framed: the edges of `genotype`.

    `alphas`: (E, M) per cell type. White is the equal share 1/M, violet more, orange less.
    """
    values = {t: 100 * shares(alphas[t]) for t in space.cell_types}
    equal = 100 / len(space.operations)
    span = max(*(np.abs(v - equal).max() for v in values.values()), 1e-9)
    height = 0.3 * len(space.edges) + 0.6
    figure, axes = canvas(len(values), 1, 5.6, height * len(values) + 0.8, sharex=True)
    for axis, (cell_type, share) in zip(axes.flat, values.items(), strict=True):
        picture = axis.imshow(share, cmap="PuOr", vmin=equal - span, vmax=equal + span, aspect="auto")
        for (e, m), value in np.ndenumerate(share):
            dark = abs(value - equal) > 0.6 * span
            axis.text(m, e, f"{value:.1f}", ha="center", va="center", fontsize=8.5, color="white" if dark else "black")
        for of, source, target, name in genotype.edges() if genotype else ():
            if of == cell_type:
                corner = space.operations.index(name) - 0.5, space.edges.index((source, target)) - 0.5
                axis.add_patch(Rectangle(corner, 1, 1, fill=False, lw=1.8, edgecolor="black", clip_on=False))
        axis.set_title(_cell_name(cell_type), fontsize=10)
        names = [label(name).replace(" conv", "").replace(" pool", "") for name in space.operations]
        axis.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=9)
        axis.set_yticks(range(len(space.edges)), [f"{i} → {j}" for i, j in space.edges], fontsize=9)
        axis.set_ylabel("edge")
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    bar = figure.colorbar(picture, ax=axes, label="softmax(α) in %", location="bottom", shrink=0.8, aspect=35, pad=0.01)
    bar.ax.set_xlim(max(0, equal - span))  # the colours are centred on 1/M, but there are no negative shares
    return figure
