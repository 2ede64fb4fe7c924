"""The packed network of "Draw a digit": the shipped file and 100 test digits as data for the script, and a picture without it."""

from __future__ import annotations

import base64
import json

import numpy as np
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from dcpnas_lite.data import digits
from dcpnas_lite.evaluation.microbench import TABLES
from dcpnas_lite.packed import load, pack

MODEL = TABLES / "packed-digits.safetensors"
SHOWN, PIXEL, FILTER = 100, 136, 0


def text(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def digit_bench() -> str:
    """The element that digit.js works on."""
    network, source = load(MODEL, fast=False), digits(size=8)
    about, small, large = network.about["data"], source.test, digits().test
    pixels = (small.x[:SHOWN].double() * source.std[0] + source.mean[0]).mul(16).round().numpy().astype(np.uint8)
    steps = [
        {**step, "kernel": network.arrays[f"{k}.weight"].shape[2]} if step["op"] == "convolution" else step
        for k, step in enumerate(network.steps)
    ]
    data = {
        "steps": steps, "mean": about["mean"][0], "std": about["std"][0],
        "labels": small.y[:SHOWN].tolist(), "digits": text(pixels),
        "arrays": {name: [str(array.dtype), text(array)] for name, array in network.arrays.items()},
    }  # fmt: skip
    k = next(k for k, step in enumerate(network.steps) if step["op"] == "product")
    values = network.values(large.x[:1].numpy())
    n, p = network.steps[k]["n"], divmod(PIXEL, large.x.shape[3])
    image = pack.unpack(values[network.steps[k]["inputs"][0]][(0, *p)].reshape(-1), n)
    weight = np.unpackbits(network.arrays[f"{k}.weight"], bitorder="little")[FILTER * n : FILTER * n + n].astype(bool)
    rows = {"image": image, "filter": weight, "XNOR": image == weight}
    table = "".join(f"<tr><th>{name}</th>{''.join(f'<td>{int(b)}</td>' for b in bits)}</tr>" for name, bits in rows.items())
    agree = int(rows["XNOR"].sum())
    assert 2 * agree - n == values[k + 1][(0, *p)][FILTER]
    return (
        f'<div id="digit-bench" class="bench"><div class="digit-static"><div class="heat-frame"><table>{table}</table></div>'
        f"<p>Scripts are off: this is one product of the first 1-bit layer, on the first test digit, a {small.y[0]}. {agree} of "
        f"{n} bits agree, so the product is 2 · {agree} − {n} = {2 * agree - n}.</p></div>"
        f'<script type="application/json">{json.dumps(data, separators=(",", ":"))}</script></div>'
    )


class DigitBench(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(MODEL))
        return [nodes.raw("", digit_bench(), format="html")]


def setup(app: Sphinx) -> dict[str, object]:
    app.add_directive("digit-bench", DigitBench)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
