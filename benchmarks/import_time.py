"""What `import dcpnas_lite` costs on top of `import torch`: medians of interleaved fresh processes, in seconds."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

STATEMENTS = {
    "python alone": "pass",
    "import torch": "import torch",
    "import torch, dcpnas_lite": "import torch, dcpnas_lite",
    "... and every public name": "import torch, dcpnas_lite as dcp; [getattr(dcp, name) for name in dir(dcp)]",
}
ROUNDS = 9


def seconds(statement: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main() -> None:
    for statement in STATEMENTS.values():  # fills the file cache
        seconds(statement)
    rounds = [{name: seconds(statement) for name, statement in STATEMENTS.items()} for _ in range(ROUNDS)]
    median = {name: statistics.median(r[name] for r in rounds) for name in STATEMENTS}
    for name, value in median.items():
        print(f"{name:28} {value:6.3f}   {value - median['import torch']:+.3f} against import torch")


if __name__ == "__main__":
    main()
