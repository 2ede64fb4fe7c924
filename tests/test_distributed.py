"""A search shared by two processes: equal to the search of one, and stopped, resumed and refused as one.

Without BatchNorm, which sees a process's own images, two processes compute what one does, up to rounding. `WORKER` replaces it
by the identity and runs in float64; the one process is a worker as well.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dcpnas_lite.engine import checkpoint

WORKER = """
import dataclasses, datetime, json, sys
from pathlib import Path
import numpy as np, torch
import torch.distributed as dist
from dcpnas_lite.engine import search as loop
from dcpnas_lite.engine.config import SPACES, SearchConfig
from dcpnas_lite.data import Split, digits
from dcpnas_lite.network import operations, supernet

rank, size, folder, jobs = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
torch.set_num_threads(1)
if size > 1:
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{folder}/meet", timeout=limit, rank=rank, world_size=size)
torch.set_default_dtype(torch.float64)
operations.norm = supernet.norm = lambda channels, affine: torch.nn.Identity()
names = ("none", "skip_connect", "max_pool_3x3", "dil_conv_3x3", "sep_conv_3x3")
SPACES["small"] = supernet.Space("small", 1, 2, ("normal",), names)
whole = digits(size=8)
splits = {name: Split(getattr(whole, name).x[:n].double(), getattr(whole, name).y[:n])
          for name, n in (("train", 28), ("validation", 20), ("test", 4))}
data = dataclasses.replace(whole, **splits)

for name, job in jobs.items():
    config = SearchConfig(space="small", channels=4, layers=1, warmup=0, tau=3, **dict(rounds=2, batch=8) | job["config"])
    seen = []

    class Watched(loop.SearchRun):
        def batch(self, *arguments):
            batch = super().batch(*arguments)
            seen.append(batch[0].flatten(1).sum(1))
            return batch

    def callback(progress):
        return rank == size - 1 and progress.step == job.get("stop")  # one process alone asks to stop

    def disagree(step):
        return step.alpha_next + 1e-15 * rank * (step.index == 1)

    rule = disagree if job.get("disagree") else None
    out = {}
    try:
        file = job.get("file", name)
        path = folder / f"{file}.pt" if rank == 0 else folder / "nowhere" / "x.pt"  # only process 0 needs the folder
        original, loop.SearchRun = loop.SearchRun, Watched
        result = loop.search(data, config, rule, callback, progress=job.get("bar", False), checkpoint=path, save_every=3)
        out = {**result.history, "final": result.alphas["normal"].numpy(), "seen": torch.stack(seen).numpy()}
    except (loop.SearchStopped, ValueError, RuntimeError, FloatingPointError) as error:
        out = {"error": np.array(f"{type(error).__name__}: {error}")}
    finally:
        loop.SearchRun = original
    np.savez(folder / f"{name}-{size}-{rank}.npz", **out)
"""


def run(folder, size: int, jobs: dict) -> dict:
    """The jobs in `size` processes; returns job → one dictionary of arrays per process, and "stderr" → their texts."""
    command = [sys.executable, "-c", WORKER]
    processes = [
        subprocess.Popen([*command, str(rank), str(size), folder, json.dumps(jobs)], stderr=subprocess.PIPE, text=True)
        for rank in range(size)
    ]
    try:
        errors = [p.communicate(timeout=120)[1] for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert [p.returncode for p in processes] == [0] * size, errors
    (folder / "meet").unlink(missing_ok=True)
    results = {name: [dict(np.load(folder / f"{name}-{size}-{r}.npz")) for r in range(size)] for name in jobs}
    return results | {"stderr": errors}


SAME = {
    "hessian": dict(config=dict(curvature="hessian", steps=2, lam=50.0), bar=True),
    "gauss_newton": dict(config=dict(curvature="gauss_newton", steps=3, rounds=1, lam=5.0, distance="cosine")),
    "sampled": dict(config=dict(curvature="sampled", steps=2, rounds=1, seed=3)),
    "refreshed": dict(
        config=dict(backtracking="refreshed", refresh=2, eta=5.0, curvature="hessian", steps=2, rounds=1, measure_every=2)
    ),
    "child": dict(config=dict(networks="child", lam=0.0, steps=4, rounds=1, mu=0.01)),
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(results of one process, results of two)."""
    folders = [tmp_path_factory.mktemp(f"processes-{size}") for size in (1, 2)]
    others = {
        "stopped": SAME["gauss_newton"] | dict(stop=4),
        "resumed": SAME["gauss_newton"] | dict(file="stopped"),
        "disagreeing": dict(config=dict(steps=2), disagree=True),
        "indivisible": dict(config=dict(steps=1, batch=7)),
    }
    return run(folders[0], 1, SAME), run(folders[1], 2, SAME | others), folders


@pytest.mark.parametrize("name", SAME)
def test_two_processes_compute_what_one_does(both, name):
    one, two, _ = both
    (expected,) = one[name]
    assert len(expected["alpha_loss"]) >= 4 and np.abs(np.diff(expected["alpha/normal"], axis=0)).max() > 1e-3
    for rank, got in enumerate(two[name]):
        assert got.keys() == expected.keys()
        for quantity in expected.keys() - {"seen"}:
            np.testing.assert_allclose(got[quantity], expected[quantity], rtol=1e-9, atol=1e-13, err_msg=f"{rank} {quantity}")
        # of each batch the process sees its own part, no more
        assert np.array_equal(got["seen"], expected["seen"][:, 4 * rank : 4 * rank + 4])


def test_all_processes_return_the_same_bit_by_bit(both):
    for name in SAME:
        first, second = both[1][name]
        assert all(np.array_equal(first[k], second[k], equal_nan=True) for k in first.keys() - {"seen"})


def test_one_that_asks_stops_all_and_they_go_on_together(both):
    _, two, folders = both
    assert [str(r["error"]) for r in two["stopped"]] == ["SearchStopped: stopped after step 4 of 6"] * 2
    for resumed, whole in zip(two["resumed"], two["gauss_newton"], strict=True):
        assert all(np.array_equal(resumed[k], whole[k], equal_nan=True) for k in whole.keys() - {"seen"})
        assert len(resumed["seen"]) < len(whole["seen"])  # it did not begin again
    assert checkpoint.load(folders[1] / "stopped.pt")["done"] == 6


def test_only_the_first_process_shows_and_writes(both):
    _, two, folders = both
    assert "8/8" in two["stderr"][0] and two["stderr"][1] == ""
    assert not (folders[1] / "nowhere").exists()


def test_processes_that_drift_apart_are_stopped(both):
    for result in both[1]["disagreeing"]:
        message = str(result["error"])
        assert message.startswith("RuntimeError: step 1: the parent's α and ψ̃: expected the same numbers in all 2 processes")


def test_a_batch_that_cannot_be_shared_equally_is_refused(both):
    for result in both[1]["indivisible"]:
        assert str(result["error"]) == "ValueError: batch: expected a multiple of the 2 processes, got 7 images"


def test_torchrun(tmp_path):
    """The command line under torchrun: SIGINT stops both processes, and the same command goes on and writes once."""
    out = tmp_path / "a"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    settings = ["rounds=1", "warmup=0", "channels=4", "layers=1", "batch=8", "steps=10", "selection=strength"]
    command = [*torchrun, "-m", "dcpnas_lite", "search", "--quiet", "--out", str(out), *(f"--set={s}" for s in settings)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not (out / "checkpoint.npz").exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        printed, error = process.communicate(timeout=100)
    finally:
        process.kill()
    assert printed.count("goes on from here") == 1, (printed, error)
    assert 10 <= checkpoint.load(out / "checkpoint.npz")["done"] < 20 and not (out / "genotype.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("searched in") == 1 and not list(out.glob("*.part"))
    with np.load(out / "history.npz") as history:
        assert history["alpha/normal"].shape == (20, 3, 8)
