"""The command line in a subprocess, as a person uses it: results, resuming, and one line for wrong input."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dcpnas_lite.__main__ import main
from dcpnas_lite.network.genotype import Genotype

TINY = [
    "--quiet", "--set", "rounds=1", "--set", "steps=2", "--set", "warmup=0", "--set", "channels=4", "--set", "batch=8",
]  # fmt: skip


def run(*args, cwd=None):
    command = [sys.executable, "-m", "dcpnas_lite", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=cwd)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    done = run("search", "--out", folder, *TINY)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_search_writes_what_it_says(searched):
    folder, done = searched
    for name in ("config.json", "genotype.json", "history.npz", "cell.png"):
        assert (folder / name).stat().st_size > 0
        assert name in done.stdout
    genotype = Genotype.from_json((folder / "genotype.json").read_text())
    assert str(genotype) in done.stdout
    with np.load(folder / "history.npz", allow_pickle=False) as history:
        assert history["alpha/normal"].shape == (4, 3, 8)  # 2 architecture steps of Parent and of Child
    assert not list(folder.glob("*.part"))
    assert done.stderr == ""


def test_search_again_says_it_is_finished(searched):
    folder, _ = searched
    again = run("search", "--out", folder, *TINY)
    assert again.returncode == 0 and "finished already" in again.stdout


def test_other_settings_in_the_same_folder_are_refused(searched):
    folder, _ = searched
    other = run("search", "--out", folder, "--seed", 1, *TINY)
    one_line(other, "other settings")


def test_show_and_train(searched):
    folder, _ = searched
    shown = run("show", folder)
    assert shown.returncode == 0, shown.stderr
    assert "Parent: weight loss" in shown.stdout and (folder / "losses.png").exists()
    trained = run("train", folder, "--bits", 1, "--epochs", 1, "--channels", 4, "--layers", 1, "--quiet")
    assert trained.returncode == 0, trained.stderr
    row = json.loads((folder / "train-1bit-seed0.json").read_text())
    assert row["bits"] == 1 and 0 <= row["test_accuracy"] <= 1 and row["data"] == "digits"
    assert f"{row['test_accuracy']:.4f}" in trained.stdout


def test_interrupt_saves_and_the_same_command_goes_on(tmp_path):
    settings = [*TINY, "--set", "rounds=2", "--set", "steps=8"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = [sys.executable, "-m", "dcpnas_lite", "search", "--out", str(cut), *settings]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (cut / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130 and "goes on from here" in out, (out, error)
    assert run("search", "--out", cut, *settings).returncode == 0
    assert run("search", "--out", whole, *settings).returncode == 0
    with np.load(cut / "history.npz") as a, np.load(whole / "history.npz") as b:
        assert set(a) == set(b) and all(np.array_equal(a[k], b[k], equal_nan=True) for k in a)


def one_line(done, *words):
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["search", "--out", "x", "--set", "rounds=0"], ["rounds", "at least 1", "0"]),
        (["search", "--out", "x", "--set", "rounds=many"], ["rounds", "int", "many"]),
        (["search", "--out", "x", "--set", "nothing=1"], ["NAME=VALUE", "nothing=1"]),
        (["search", "--out", "x", "--set", "absolute=maybe"], ["absolute", "bool", "maybe"]),
        (["search", "--out", "x", "--data", "cifar10", "--root", "nowhere"], ["nowhere"]),
        (["train", "nowhere"], ["nowhere"]),
        (["train", "published", "--epochs", "0"], ["epochs", "at least 1", "0"]),
        (["show", "nowhere"], ["nowhere", "config.json"]),
    ],
)
def test_wrong_input_gets_one_line(tmp_path, monkeypatch, capsys, args, words):
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1 and all(word in error for word in words), error


def test_foreign_genotype_is_named(tmp_path):
    (tmp_path / "g.json").write_text('{"inputs": 1, "normal": [[["conv_9x9", 0]]]}')
    one_line(run("train", "g.json", cwd=tmp_path), "g.json", "conv_9x9")


@pytest.mark.parametrize("command", [[], ["search"], ["train"], ["show"], ["equations"], ["microbench"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    assert left.value.code == 0 and "usage:" in capsys.readouterr().out
