"""What bits buy in time and size: packed layers and networks beside torch float32, into two tables of the package.

python benchmarks/packed.py [layers | networks]

packed-layers.csv: from float32 numbers to float32 numbers, signs packed on the way. A layer has as many filters as channels and
an image of SIDE × SIDE; torch convolves the same numbers, contiguous and channels last, without anything behind it.
packed-networks.csv: the found micro cell, three layers, 16 × 16 images, packed and as the real-valued twin.
Medians, the candidates in turn; one thread by its time on the processor, more by the clock, which needs a quiet machine.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import dcpnas_lite as dcp
from dcpnas_lite import files
from dcpnas_lite.evaluation import cells
from dcpnas_lite.network.discrete import DiscreteNetwork
from dcpnas_lite.packed import export, fast, pack

TABLES = Path(dcp.__file__).parent / "tables"
SIDE = 16
LAYERS = [
    *(("pointwise", channels, 1, 1) for channels in (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 576, 768)),
    *(("3x3", channels, 3, 1) for channels in (8, 16, 32, 64, 128, 256)),
    *(("depthwise", channels, kernel, dilation) for channels in (16, 64, 128, 256) for kernel, dilation in ((3, 1), (5, 2))),
]
CELL = 287  # what DCP-NAS finds on the digits with seed 0: tables/default-digits.csv
WIDTHS, BATCHES = (16, 64, 128), (1, 32)


def timed(tasks: dict[str, Callable], repeats: int, threads: int) -> dict[str, float]:
    """Median seconds of each task, blocks of calls of about a millisecond in turn; the first round only sets their lengths."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    calls, seconds = dict.fromkeys(tasks, 1), {name: [] for name in tasks}
    for _ in range(repeats + 2):
        for name, task in tasks.items():
            start = clock()
            for _ in range(calls[name]):
                task()
            seconds[name].append((clock() - start) / calls[name])
            if len(seconds[name]) == 2:
                calls[name] = max(1, int(1e-3 / seconds[name][1]))
    return {name: statistics.median(values[2:]) for name, values in seconds.items()}


def layer(kind: str, channels: int, kernel: int, dilation: int, threads: int) -> dict[str, Callable]:
    """Name → one pass through a layer, by bits in several ways and by torch."""
    draw, groups, padding = np.random.default_rng(0), channels if kind == "depthwise" else 1, dilation * (kernel // 2)
    x = draw.standard_normal((1, SIDE, SIDE, channels)).astype(np.float32)
    w = draw.standard_normal((channels, kernel, kernel, channels // groups)).astype(np.float32)
    zero, flip, ones = np.zeros(channels, np.float32), np.zeros(channels, bool), np.ones(channels, np.float32)
    images = torch.from_numpy(x).permute(0, 3, 1, 2)
    filters = torch.from_numpy(w).permute(0, 3, 1, 2)
    last = [a.contiguous(memory_format=torch.channels_last) for a in (images, filters)]
    first = [a.contiguous() for a in (images, filters)]
    geometry = (None, 1, padding, dilation, groups)
    tasks = {
        "torch": lambda: F.conv2d(*first, *geometry),
        "torch_last": lambda: F.conv2d(*last, *geometry),
    }
    if kind == "depthwise":
        n = kernel**2
        weights = pack.pack((w[..., 0] >= 0).transpose(1, 2, 0))
        planes = fast.planes(n, np.zeros(channels, np.int32), np.full(channels, n, np.int32), flip)
        along = fast.Product(pack.pack((w >= 0).reshape(channels, 1, 1, n)), n, channels, threads=threads)

        def packed():
            words = pack.border(fast.binarize(x, zero, flip, threads), padding, -1, channels)
            return fast.depthwise(words, weights, 1, dilation, planes, threads)

        def along_kernel():
            """The k² bits of a channel in one word: a pixel's patch is gathered, and one count does it."""
            signs = np.pad(x >= 0, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
            patches = np.stack([pixels for _, _, pixels in pack.taps(signs, kernel, 1, dilation)], -1)
            words = pack.pack(patches)
            return along(words)

        expected = pack.depthwise(pack.border(pack.pack(x >= 0), padding, -1, channels), weights, channels, 1, dilation)
        assert np.array_equal(along_kernel(), expected) and np.array_equal(packed(), pack.pack(expected >= 0))
        return {"packed": packed, "along_kernel": along_kernel} | tasks
    plain = pack.pack(w >= 0)
    product = fast.Product(plain, channels, 1, 1, dilation, threads)

    def framed(words):
        return pack.border(words[:, :, :, None], padding, -1, channels)

    def packed():
        return product.scaled(framed(fast.binarize(x, zero, flip, threads)), ones, ones)

    def reference():
        return pack.scaled(pack.product(framed(pack.pack(x >= zero)), plain, channels, 1, dilation), ones, ones)

    assert np.array_equal(packed(), reference())
    return {"packed": packed, "numpy": reference} | tasks


def layers(repeats: int, counts: list[int]) -> list[dict]:
    """The rows of packed-layers.csv."""
    rows = []
    for kind, channels, kernel, dilation in LAYERS:
        for threads in counts:
            torch.set_num_threads(threads)
            seconds = timed(layer(kind, channels, kernel, dilation, threads), repeats, threads)
            row = {"kind": kind, "channels": channels, "k": kernel, "dilation": dilation, "threads": threads}
            row["K"] = kernel**2 * (1 if kind == "depthwise" else channels)
            microseconds = {name: round(1e6 * seconds[name], 1) if name in seconds else "" for name in NAMES}
            ratio = min(seconds["torch"], seconds["torch_last"]) / seconds["packed"]
            rows.append(row | microseconds | {"ratio": round(ratio, 2)})
            print(rows[-1], flush=True)
    return rows


NAMES = ("packed", "numpy", "along_kernel", "torch", "torch_last")


def networks(repeats: int, counts: list[int]) -> list[dict]:
    """The rows of packed-networks.csv. Time does not depend on what a network has learned: the weights are those of a start."""
    rows, genotype = [], cells.genotype(CELL)
    for width in WIDTHS:
        torch.manual_seed(0)
        binary, real = (DiscreteNetwork(genotype, width, binary=binary).eval() for binary in (True, False))
        channels_last = copy.deepcopy(real).to(memory_format=torch.channels_last)
        packed = export(binary)
        size, work = packed.size(), packed.operations(SIDE, SIDE)
        parameters = sum(p.numel() for p in real.parameters())
        for batch in BATCHES:
            x = torch.randn(batch, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(batch))
            images, last = x.numpy(), x.contiguous(memory_format=torch.channels_last)
            for threads in counts:
                torch.set_num_threads(threads)
                packed = export(binary, threads=threads)
                tasks = {
                    "packed": partial(packed, images), "simulated": partial(binary, x),
                    "torch": partial(real, x), "torch_last": partial(channels_last, last),
                }  # fmt: skip
                with torch.inference_mode():
                    assert np.abs(packed(images) - binary(x).numpy()).max() < 1e-3
                    seconds = timed(tasks, repeats, threads)
                rows.append(
                    {"width": width, "batch": batch, "threads": threads}
                    | {name: round(1e3 * value, 3) for name, value in seconds.items()}
                    | {"ratio": round(min(seconds["torch"], seconds["torch_last"]) / seconds["packed"], 2)}
                    | {"one_bit": size["one_bit"], "rest": size["rest"], "file_bytes": len(packed.to_bytes())}
                    | {"real_parameters": parameters, "binary_macs": work["binary"], "real_macs": work["real"]}
                )
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("layers", "networks"), help="default: both")
    parser.add_argument("--repeats", type=int, default=51)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=TABLES)
    options = parser.parse_args()
    for what in [options.what] if options.what else ["layers", "networks"]:
        rows = {"layers": layers, "networks": networks}[what](options.repeats, options.threads)
        text = "\n".join(",".join(map(str, line)) for line in [rows[0], *(row.values() for row in rows)])
        files.write(options.out / f"packed-{what}.csv", text + "\n")


if __name__ == "__main__":
    main()
