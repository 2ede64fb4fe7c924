"""python -m dcpnas_lite export: a trained network as a file for use, in packed words or as ONNX."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..evaluation import training
from ..packed.fold import export, to_onnx


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The arguments of `python -m dcpnas_lite export`."""
    p.description = "Write a trained network as a file that runs elsewhere: in packed words, which need no torch, or as ONNX."
    p.add_argument("network", type=Path, help="folder of a search whose cell was trained, or a train-….safetensors")
    p.add_argument("--format", choices=("packed", "onnx"), default="packed", help="default: packed")
    p.add_argument("--bits", type=int, default=1, choices=(1, 32), help="with a folder: which training (default: 1)")
    p.add_argument("--seed", type=int, default=0, help="with a folder: which training (default: 0)")
    p.add_argument("--out", type=Path, metavar="FILE", help="default: model.safetensors or model.onnx beside the network")


def main(args: argparse.Namespace) -> None:
    """Run `python -m dcpnas_lite export` with parsed arguments."""
    path = args.network
    if path.is_dir():
        path = path / f"train-{args.bits}bit-seed{args.seed}.safetensors"
        if not path.exists():
            raise ValueError(f"{path}: no such file; python -m dcpnas_lite train {args.network} makes it")
    network, data = training.load(path)
    out = args.out or path.parent / {"packed": "model.safetensors", "onnx": "model.onnx"}[args.format]
    if args.format == "onnx":
        to_onnx(network, data["shape"], out)
        print(f"written to {out}: {out.stat().st_size:,} bytes, images of any number in, logits out")
        return
    packed = export(network, data)
    packed.save(out)
    size, work = packed.size(), packed.operations(*data["shape"][1:])
    print(f"written to {out}: {out.stat().st_size:,} bytes")
    print(f"  weights of one bit {size['one_bit']:,} bits, everything else {size['rest']:,} bits, "
          f"the rest of the file says what to do: {8 * out.stat().st_size - size['one_bit'] - size['rest']:,} bits")  # fmt: skip
    print(f"  for an image {work['binary']:,} binary and {work['real']:,} real multiply-accumulates: "
          f"{work['total']:,.0f} in the field's convention, binary / 64 + real")  # fmt: skip
