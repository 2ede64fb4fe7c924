"""A search killed at random moments and resumed, beside the same search left alone: the results must agree bit by bit.

    python benchmarks/kills.py [--kills 20] [--seed 0] [--steps 6]

Each of the `--kills` searches runs from the command line in a folder of its own, gets one SIGKILL at a moment drawn uniformly
from the time that the undisturbed search took, writing of the results included, and is then started again. Exit status 1 where
one differs in its cell or in any array of its history.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dcpnas_lite.engine import checkpoint


def same(first: Path, second: Path) -> bool:
    with np.load(first / "history.npz") as a, np.load(second / "history.npz") as b:
        arrays = set(a) == set(b) and all(a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a)
    return arrays and (first / "genotype.json").read_bytes() == (second / "genotype.json").read_bytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    parser.add_argument("--steps", type=int, default=6, help="steps of a phase; there are four phases")
    args = parser.parse_args()
    command = [sys.executable, "-m", "dcpnas_lite", "search", "--quiet", "--set", "channels=4", "--set", "batch=8"]
    command += ["--set", "rounds=2", "--set", f"steps={args.steps}", "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(folder: Path) -> subprocess.Popen:
        return subprocess.Popen([*command, str(folder)], stdout=subprocess.DEVNULL, env=environment)

    moments, agree, struck = random.Random(args.seed), 0, 0
    with tempfile.TemporaryDirectory() as base:
        whole = Path(base) / "whole"
        began = time.perf_counter()
        if start(whole).wait():
            return 1
        took = time.perf_counter() - began
        print(f"undisturbed: {took:.1f} s, {4 * args.steps} steps", flush=True)
        for k in range(args.kills):
            folder, moment = Path(base) / f"killed-{k}", moments.uniform(0, took)
            process = start(folder)
            try:
                process.wait(moment)
                where = "after its end"
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                struck += 1
                saved = folder / "checkpoint.npz"
                where = f"with {checkpoint.load(saved)['done']} steps saved" if saved.exists() else "with nothing saved"
            finished = start(folder).wait() == 0 and same(folder, whole)
            agree += finished
            print(f"SIGKILL {k + 1:2d} at {moment:5.1f} s, {where}: {'identical' if finished else 'DIFFERS'}", flush=True)
    print(f"{agree} of {args.kills} resumed searches are bit-identical to the undisturbed one ({struck} killed while running)")
    return int(agree < args.kills)


if __name__ == "__main__":
    sys.exit(main())
