"""Run the numeric tests and the notebooks as a processor with fewer instructions would: python tools/processors.py

Sums in another order end in other digits. What the tests assert and the notebooks print must not depend on that.
On a processor that has no such instructions to switch off this does nothing and says so.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The table of the equations runs in the notebook of the index.
NUMERIC = "backtracking binarize coupling derivation objectives operations selection supernet tangent training"
SEARCHES = "06 10 11 12", "backtracking coupling objectives selection tangent training"  # chapters and tests that search or train
# What the libraries below numpy and torch ask for: convolutions, matrix products of torch, of numpy, threads.
LIBRARIES = "ONEDNN_MAX_CPU_ISA MKL_ENABLE_INSTRUCTIONS OPENBLAS_CORETYPE OMP_NUM_THREADS".split()
OLD = dict(zip(LIBRARIES, ("SSE41", "SSE4_2", "Nehalem", "1"), strict=True))
RECENT = dict(zip(LIBRARIES, ("AVX2", "AVX2", "Haswell", "2"), strict=True))
PROBE = """
import torch
from numpy._core import _multiarray_umath as m
print(*(name for name in m.__cpu_dispatch__ if m.__cpu_features__.get(name)))
print(torch.backends.cpu.get_cpu_capability())
"""


def under(environment: dict[str, str]) -> dict[str, str]:
    """The environment of a run; what is switched off already stays so."""
    off = " ".join(e.get("NPY_DISABLE_CPU_FEATURES", "") for e in (os.environ, environment)).replace(",", " ").split()
    return os.environ | environment | ({"NPY_DISABLE_CPU_FEATURES": " ".join(sorted(set(off)))} if off else {})


def probe(environment: dict[str, str]) -> tuple[set[str], str]:
    """What numpy's dispatch has beyond its baseline, and torch's capability, under an environment."""
    command = [sys.executable, "-W", "error", "-c", PROBE]
    run = subprocess.run(command, env=under(environment), capture_output=True, text=True, check=True)
    features, capability = run.stdout.split("\n")[:2]
    return set(features.split()), capability


def passes(features: set[str], capability: str) -> list[tuple[str, dict[str, str], tuple[set[str], str]]]:
    """(name, environment, what `probe` must then find), for a processor on which it finds `features` and `capability`."""
    avx512 = {name for name in features if name.startswith("AVX512") or name == "X86_V4"}
    found = []
    for name, off, lower, others in (("AVX2", features, "DEFAULT", OLD), ("AVX-512", avx512, "AVX2", RECENT)):
        if off or capability not in ("DEFAULT", lower):
            environment = {"NPY_DISABLE_CPU_FEATURES": " ".join(sorted(off)), "ATEN_CPU_CAPABILITY": lower.lower()}
            found.append((f"without {name}", environment | others, (features - off, lower)))
    return found


def main() -> int:
    chosen = passes(*probe({})) if platform.machine().lower() in ("x86_64", "amd64") else []
    if not chosen:
        print("other processors: nothing to switch off on this one")
    for number, (name, environment, expected) in enumerate(chosen):
        if probe(environment) != expected:
            print(f"other processors: expected {expected} under {environment}, got {probe(environment)}", file=sys.stderr)
            return 1
        chapters, names = SEARCHES if number else ("", NUMERIC)  # all of them once, those that search under every setting
        tests = [f"tests/test_{name}.py" for name in names.split()]
        notebooks = [str(path) for start in chapters.split() or [""] for path in sorted((ROOT / "book").glob(f"{start}*.ipynb"))]
        options = "--nbval --nbval-current-env -q -n 2 --no-loadscope-reorder -p no:cacheprovider".split()
        command = [sys.executable, "-m", "pytest", *options, *notebooks, *tests]
        start = time.perf_counter()
        run = subprocess.run(command, cwd=ROOT, env=under(environment))
        print(f"other processors: {name}, {len(notebooks)} notebooks and {len(tests)} files of tests, "
              f"{time.perf_counter() - start:.0f} s", flush=True)
        if run.returncode:
            return run.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
