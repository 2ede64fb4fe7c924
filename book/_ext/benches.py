"""The two figures of the index bench's page: what a reader without scripts sees, and the data that the script works on.

Both are made from the package at build time, so neither can be older than it.
"""

from __future__ import annotations

import json

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from torch import Tensor, einsum

from dcpnas_lite import MicroBench
from dcpnas_lite.derivation import responses, toys, trace
from dcpnas_lite.evaluation.microbench import BITS, CELLS, MICRO, TABLES

SIDE, MARGIN = 400, 46


def chapter_numbers() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """α, L̃, ∂w/∂α and the exact coupling of chapter 6's first toy."""
    toy = toys.LinearMixture.random(3, 4, seed=0)
    w, jacobian = responses.Explicit(toy.phi)(toy.alpha)
    return toy.alpha, toy.factor(toy.alpha, w), einsum("mem->em", jacobian), trace.coupling(toy.dL_dw(toy.alpha, w), jacobian)


def heat(values: Tensor, caption: str, scale: float) -> str:
    """A matrix as the script draws it: a table with numbers, coloured by size and sign."""

    def cell(value: float) -> str:
        number, sign = f"{value:.2f}".replace("-", "−"), "negative" if value < 0 else ""
        return f'<td class="{sign}" style="--strength:{abs(value) / scale:.3f}">{number}</td>'

    cells = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in values.tolist())
    return f'<div class="heat-frame"><table class="heat"><caption>{caption}</caption><tbody>{cells}</tbody></table></div>'


def index_bench() -> str:
    alpha, factor, dw, C = chapter_numbers()
    printed, update = trace.trace_components(alpha, factor, dw)[:, None], -trace.psi_as_printed(factor, dw) * alpha
    scale = max(t.abs().max().item() for t in (printed, update, C))
    tables = {"4.49, ei,if,fm-&gt;e": printed, "exact, added up over m": C.sum(1, keepdim=True)}
    tables |= {"4.50, em,mf,fk-&gt;em": update, "exact coupling C, fm,mf,em-&gt;em": C}
    data = {name: t.flatten().tolist() for name, t in zip(("alpha", "factor", "dw"), (alpha, factor, dw), strict=True)}
    row = "".join(heat(values, caption, scale) for caption, values in tables.items())
    numbers = json.dumps({"E": len(alpha), "M": alpha.shape[1]} | data)
    return (
        f'<div id="index-bench" class="bench"><div class="heat-row">{row}</div>'
        "<p>Scripts are off: this is the picture for the toy of chapter 6, printed lines beside the exact coupling.</p>"
        f'<script type="application/json">{numbers}</script></div>'
    )


def scatter(name: str, bench: MicroBench) -> str:
    """All cells by their percentile, with 32 bits to the right and with 1 bit upwards, as a picture that follows the theme."""

    def place(real: float, one: float) -> tuple[float, float]:
        return round(MARGIN + SIDE * real / 100, 1), round(MARGIN + SIDE - SIDE * one / 100, 1)

    def circle(cell: int) -> str:
        x, y = place(bench.percentile(cell, 32), bench.percentile(cell, 1))
        return f'<circle data-cell="{cell}" cx="{x}" cy="{y}" r="3"/>'

    ticks = ""
    for value in range(0, 101, 25):
        (x, bottom), (left, y) = place(value, 0), place(0, value)
        ticks += f'<text x="{x}" y="{bottom + 20}" text-anchor="middle">{value}</text>'
        ticks += f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{value}</text>'
    (left, bottom), (right, top) = place(0, 0), place(100, 100)
    shown = f"The {CELLS} cells on {name} by percentile of test accuracy: with 32 bits to the right, with 1 bit upwards."
    box = f"0 0 {SIDE + 2 * MARGIN} {SIDE + 2 * MARGIN}"
    return (
        f'<figure data-table="{name}"><svg class="micro-picture" viewBox="{box}" role="img" '
        f'aria-label="{shown}"><path class="axes" d="M{left} {top}V{bottom}H{right}"/>'
        f'<path class="same" d="M{left} {bottom}L{right} {top}"/>'
        f'{ticks}<text x="{right}" y="{bottom + 38}" text-anchor="end">percentile with 32 bits</text>'
        f'<text x="{left}" y="{top - 14}">percentile with 1 bit</text>'
        f'<g class="dots">{"".join(map(circle, range(CELLS)))}</g><circle class="ring" r="8" visibility="hidden"/></svg>'
        f"<figcaption>{shown}</figcaption></figure>"
    )


def micro_table() -> str:
    benches = {name: MicroBench.load(name) for name in ("digits", "fashion_mnist")}
    tables = {
        name: {
            "accuracy": [bench.mean[bits, "test"].tolist() for bits in BITS],
            "size": [[bench.size(cell, bits) for cell in range(CELLS)] for bits in BITS],
        }
        for name, bench in benches.items()
    }
    data = json.dumps({"operations": MICRO.operations, "edges": MICRO.edges, "tables": tables}, separators=(",", ":"))
    pictures = "".join(scatter(name, bench) for name, bench in benches.items())
    return f'<div id="micro-table" class="bench">{pictures}<script type="application/json">{data}</script></div>'


class Figure(SphinxDirective):
    make = staticmethod(index_bench)

    def run(self) -> list[nodes.Node]:
        for path in TABLES.glob("microbench-*.csv.gz"):
            self.env.note_dependency(str(path))
        return [nodes.raw("", self.make(), format="html")]


class MicroTable(Figure):
    make = staticmethod(micro_table)


def setup(app: Sphinx) -> dict[str, object]:
    app.add_directive("index-bench", Figure)
    app.add_directive("micro-table", MicroTable)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
