"""The command line, in a process of its own where that makes a difference: results, resuming, and one line for wrong input."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dcpnas_lite import files
from dcpnas_lite.__main__ import main, parse
from dcpnas_lite.commands.folder import SETTINGS, read_run, read_summary
from dcpnas_lite.commands.search import settings
from dcpnas_lite.commands.seeds import parse_seeds
from dcpnas_lite.commands.shared import guarded
from dcpnas_lite.engine.config import SearchConfig
from dcpnas_lite.evaluation.training import load
from dcpnas_lite.network.genotype import Genotype
from dcpnas_lite.network.operations import Shortcut

SIZES = "rounds=1", "steps=2", "warmup=0", "channels=2", "layers=1", "batch=8", "selection=strength"
TINY = ["--quiet", *(f"--set={size}" for size in SIZES)]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    command = [sys.executable, "-m", "dcpnas_lite", "search", "--out", str(folder), *TINY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_search_writes_what_it_says(searched):
    folder, done = searched
    for name in ("config.json", "genotype.json", "history.npz", "summary.json", "cell.png"):
        assert (folder / name).stat().st_size > 0
        assert name in done.stdout
    genotype = Genotype.from_json((folder / "genotype.json").read_text())
    assert str(genotype) in done.stdout
    with np.load(folder / "history.npz", allow_pickle=False) as history:
        assert history["alpha/normal"].shape == (4, 3, 8)  # 2 architecture steps of Parent and of Child
        row = json.loads((folder / "summary.json").read_text())
        assert row["cell"] == str(genotype) and row["seed"] == 0 and row["seconds"] > 0
        last = dict(parent_weight_loss=("weight_loss", 1), parent_alpha_loss=("alpha_loss", 1), distance=("distance", 3))
        last |= dict(child_weight_loss=("weight_loss", 3), child_alpha_loss=("alpha_loss", 3))
        assert {name: history[quantity][step] for name, (quantity, step) in last.items()}.items() <= row.items()
    assert not list(folder.glob("*.part"))
    assert done.stderr == ""


def test_search_again_says_it_is_finished(searched, capsys):
    folder, _ = searched
    assert main(["search", "--out", str(folder), *TINY]) == 0
    assert "finished already" in capsys.readouterr().out


def test_other_settings_in_the_same_folder_are_refused(searched, capsys):
    folder, _ = searched
    assert main(["search", "--out", str(folder), "--seed", "1", *TINY]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "other settings" in error


def one_line_of(capsys, *words):
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and all(word in error for word in words), error


def test_what_determines_a_result_is_in_its_identity_and_nothing_else(searched, tmp_path, capsys):
    folder, _ = searched
    assert main(["search", "--out", str(folder), "--root", str(tmp_path), *TINY]) == 0  # the digits need no root
    assert "finished already" in capsys.readouterr().out
    assert main(["search", "--out", str(folder), "--set", "lam=1", *TINY]) == 0  # 1 is 1.0
    assert "finished already" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["genotype.json", "summary.json"])
def test_damaged_results_are_not_taken_for_finished(searched, tmp_path, capsys, name):
    shutil.copytree(searched[0], tmp_path / "seed-0")
    file = tmp_path / "seed-0" / name
    whole = file.read_bytes()
    other = whole.replace(b"sep_conv_5x5" if b"sep_conv_5x5" in whole else b"conv", b"skip_connect")
    for content in (whole[:-20], b"", whole.replace(b'"', b"'"), other, b"[" * 100_000, b"\xff"):
        file.write_bytes(content)
        assert main(["search", "--seeds", "0", "--out", str(tmp_path), *TINY]) == 2
        one_line_of(capsys, name)
    file.unlink()
    status = main(["search", "--seeds", "0", "--out", str(tmp_path), *TINY])
    if name == "summary.json":  # says what to do
        assert status == 2
        one_line_of(capsys, "delete its genotype.json")
        (tmp_path / "seed-0" / "genotype.json").unlink()
        assert main(["search", "--seeds", "0", "--out", str(tmp_path), *TINY]) == 0
    equal(tmp_path / "seed-0", searched[0])


def test_a_copied_folder_is_no_seed_of_its_own(searched, tmp_path):
    for name in ("seed-0", "seed-0 (copy)", "seed-00", "seed-x"):
        shutil.copytree(searched[0], tmp_path / name)
    assert main(["search", "--seeds", "0", "--out", str(tmp_path), *TINY]) == 0
    assert [row["seed"] for row in table(tmp_path)] == ["0"]


def test_a_start_that_fails_leaves_nothing(tmp_path, capsys):
    out = tmp_path / "a"
    for wrong in (["--data", "fashion_mnist", "--root", str(tmp_path / "none")], ["--set", "batch=7000", "--set", "lam=-1"],
                  ["--device", "cuda:77"], ["--threads", "100000"], ["--seed", str(2**31)], ["--set", "space=paper"],
                  ["--seeds", "0-1", "--set", "seed=5"], ["--seeds", "0-99999999"]):  # fmt: skip
        assert main(["search", "--out", str(out), *TINY, *wrong]) == 2, wrong
        one_line_of(capsys, "expected" if wrong[0] != "--data" else "Fashion-MNIST")
        assert not out.exists(), wrong
    assert main(["search", "--out", str(out), *TINY, "--seed", str(2**31 - 1)]) == 0


def test_two_searches_into_one_folder(searched, tmp_path, capsys):
    with files.lock(tmp_path):
        for seeds in ([], ["--seeds", "0-1"]):
            assert main(["search", "--out", str(tmp_path), *seeds, *TINY]) == 2
            one_line_of(capsys, f"{tmp_path}: in use by process {os.getpid()} on ")


@pytest.mark.parametrize("environment, command", [
    ({"PYTHONIOENCODING": "ascii"}, ["search", "--help"]),
    ({"PYTHONIOENCODING": "cp1252"}, ["search", "--out", "α", "--set=λ=1"]),
    ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, ["search", "--out", "a", *TINY]),
])  # fmt: skip
def test_a_terminal_without_greek(tmp_path, environment, command):
    command = [sys.executable, "-m", "dcpnas_lite", *command]
    done = subprocess.run(command, capture_output=True, env=os.environ | environment, cwd=tmp_path)
    assert done.returncode == (2 if "--set=λ=1" in command else 0) and b"Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "a" / "genotype.json").exists() == ("a" in command)


def test_a_picture_that_fails_is_a_warning(tmp_path, capsys, monkeypatch):
    def no_latex(*_, **__):
        raise RuntimeError("latex was not able to process the string\n'lp'")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", no_latex)
    assert main(["search", "--out", str(tmp_path), *TINY]) == 0
    assert (tmp_path / "genotype.json").exists() and not (tmp_path / "cell.png").exists()
    one_line_of(capsys, "cell.png is not drawn: latex was not able")


@pytest.mark.parametrize("error, status, words", [
    (ValueError("a\nb"), 2, "a b"),
    (KeyError("name"), 2, "KeyError: 'name'"),
    (AssertionError("Torch not compiled with CUDA enabled"), 2, "CUDA"),
    (MemoryError("Unable to allocate 1 TiB"), 2, "not enough memory Unable"),
    (ZeroDivisionError("by zero"), 2, "by zero"),
    (KeyboardInterrupt(), 130, "interrupted; what is written stays"),
    (KeyboardInterrupt("after step 3"), 130, "interrupted; after step 3"),
])  # fmt: skip
def test_every_command_ends_in_one_line(capsys, error, status, words):
    def fail(_):
        raise error

    assert guarded(fail, None) == status
    one_line_of(capsys, words)


def test_a_reader_that_has_enough(searched):
    command = f"{sys.executable} -m dcpnas_lite show {searched[0]} | head -c 10; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and len(done.stdout) == 10


def test_json_that_is_no_object(searched, tmp_path, capsys):
    for name in ("config.json", "genotype.json", "summary.json", "history.npz"):
        shutil.copytree(searched[0], tmp_path / name)
        for content in ("3", "[]", "null", '"text"', "{}", '{"search": 1, "data": 2}'):
            (tmp_path / name / name).write_text(content)
            for command in (["show"], ["train", "--epochs=1"], ["search", *TINY, "--out"]):
                if command[0] == "show" and name == "summary.json" or name == "history.npz" and command[0] != "show":
                    continue
                if command[0] == "train" and name == "summary.json":
                    continue
                assert main([*command, str(tmp_path / name)]) == 2, (name, content, command)
                one_line_of(capsys, str(tmp_path / name))


def test_a_history_of_texts(searched, tmp_path, capsys):
    shutil.copytree(searched[0], tmp_path / "a")
    path = tmp_path / "a" / "history.npz"
    with np.load(path) as file:
        history = dict(file)
    for name in ("network", "alpha/normal", "final/normal"):
        files.write(path, files.arrays_to_bytes(history | {name: history[name].astype(str)}))
        assert main(["show", str(tmp_path / "a")]) == 2
        one_line_of(capsys, f"history.npz, {name}: expected numbers")


def test_show_and_train(searched, capsys):
    folder, _ = searched
    assert main(["show", str(folder)]) == 0
    assert "Parent: weight loss" in capsys.readouterr().out and (folder / "losses.png").exists()
    assert main(["train", str(folder), "--bits=1", "--epochs=1", "--channels=4", "--layers=1", "--quiet"]) == 0
    row = json.loads((folder / "train-1bit-seed0.json").read_text())
    assert row["bits"] == 1 and 0 <= row["test_accuracy"] <= 1 and row["data"] == "digits"
    assert f"{row['test_accuracy']:.4f}" in capsys.readouterr().out


def test_train_takes_the_block_of_the_search_or_the_one_that_is_asked_for(searched, tmp_path, capsys):
    folder, sizes = tmp_path / "a", ["--epochs=1", "--channels=4", "--layers=1", "--quiet"]
    shutil.copytree(searched[0], folder)
    settings = read_run(folder)
    for of_search, asked, expected in (("plain", [], "plain"), ("plain", ["--block=shortcut"], "shortcut"),
                                       ("shortcut", [], "shortcut"), ("shortcut", ["--block=plain"], "plain")):  # fmt: skip
        settings["search"]["block"] = of_search
        files.write(folder / "config.json", files.seal(settings, SETTINGS))
        assert main(["train", str(folder), *asked, *sizes]) == 0
        assert json.loads((folder / "train-1bit-seed0.json").read_text())["block"] == expected
        network, _ = load(folder / "train-1bit-seed0.safetensors")
        assert any(type(m) is Shortcut for m in network.modules()) == (expected == "shortcut")
    capsys.readouterr()
    assert main(["train", str(folder), "--bits=32", "--block=plain", *sizes]) == 2
    one_line_of(capsys, "--block", "--bits 1", "--bits 32")
    assert main(["train", str(folder), "--bits=32", *sizes]) == 0
    assert json.loads((folder / "train-32bit-seed0.json").read_text())["block"] is None


def test_interrupt_saves_and_the_same_command_goes_on(tmp_path):
    longer = [*TINY, "--set", "rounds=2", "--set", "steps=8"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = [sys.executable, "-m", "dcpnas_lite", "search", "--out", str(cut), *longer]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (cut / "checkpoint.npz").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130 and "goes on from here" in out, (out, error)
    for folder in (cut, whole):
        assert main(["search", "--out", str(folder), *longer]) == 0
    equal(cut, whole)


def equal(first, second):
    """Bit by bit the same search."""
    with np.load(first / "history.npz") as a, np.load(second / "history.npz") as b:
        assert set(a) == set(b) and all(np.array_equal(a[k], b[k], equal_nan=True) for k in a)
    assert (first / "genotype.json").read_bytes() == (second / "genotype.json").read_bytes()


def table(folder):
    with open(folder / "searches.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_seeds_are_searched_in_folders_and_collected_in_a_table(searched, tmp_path, capfd):
    single, _ = searched
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1" / "checkpoint.npz").write_text("spoiled")
    assert main(["search", "--seeds", "0-2", "--workers", "2", "--out", str(tmp_path), *TINY]) == 2
    printed, error = capfd.readouterr()  # of the workers, too; one that fails does not stop the others
    assert [line.split(":")[1] for line in error.splitlines()] == [" seed 1", " failed"], error
    equal(single, tmp_path / "seed-0")
    assert (single / "config.json").read_bytes() == (tmp_path / "seed-0" / "config.json").read_bytes()
    written = {"config.json", "genotype.json", "history.npz", "cell.png", "summary.json", "checkpoint.npz"}
    assert {p.name for p in (tmp_path / "seed-0").iterdir()} == written <= {p.name for p in single.iterdir()}
    first = table(tmp_path)
    for row in first:
        summary = read_summary(tmp_path / f"seed-{row['seed']}")
        assert row == {name: str(value) for name, value in summary.items()}
        assert sum(line.startswith(f"seed {row['seed']}: {row['cell']}") for line in printed.splitlines()) == 1
    assert [row["seed"] for row in first] == ["0", "2"] and len(printed.splitlines()) == 2
    before = (tmp_path / "seed-2" / "history.npz").stat().st_mtime_ns
    (tmp_path / "seed-1" / "checkpoint.npz").unlink()
    assert main(["search", "--seeds", "1-2", "--out", str(tmp_path), *TINY]) == 0  # seed 2 is there already
    assert "searches.csv" in capfd.readouterr().out.splitlines()[-1]
    assert (tmp_path / "seed-2" / "history.npz").stat().st_mtime_ns == before
    assert [row["seed"] for row in table(tmp_path)] == ["0", "1", "2"] and table(tmp_path)[::2] == first
    assert main(["search", "--seeds", "1-2", "--out", str(tmp_path), *TINY, "--method", "darts"]) == 2
    error = capfd.readouterr().err
    assert len(error.splitlines()) == 1 and "seed-0" in error and "other settings" in error


def test_interrupted_and_killed_seeds_go_on(tmp_path):
    longer = [*TINY, "--set", "rounds=2", "--set", "steps=8"]
    out, whole = tmp_path / "all", tmp_path / "whole"
    command = [sys.executable, "-m", "dcpnas_lite", "search", "--seeds", "0-1", "--out", str(out), *longer]

    def start():
        """The command, once both workers have written something."""
        folders = [out / f"seed-{seed}" for seed in (0, 1)]
        before = [f.stat().st_mtime_ns if (f := folder / "checkpoint.npz").exists() else 0 for folder in folders]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and any(
            not (f := folder / "checkpoint.npz").exists() or f.stat().st_mtime_ns == t
            for folder, t in zip(folders, before, strict=True)
        ):
            time.sleep(0.02)
        return process

    process = start()
    process.send_signal(signal.SIGINT)
    printed, error = process.communicate(timeout=120)
    assert process.returncode == 130 and error == "" and "goes on from here" in printed, (printed, error)
    assert not (out / "seed-0" / "genotype.json").exists() and table(out) == []
    process = start()
    process.kill()
    process.communicate(timeout=20)  # returns once the workers have closed their side of the pipes: they left, too
    for command in (["--seeds", "0-1", "--out", str(out)], ["--seed", "1", "--out", str(whole)]):
        assert main(["search", *command, *longer]) == 0
    equal(out / "seed-1", whole)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["search", "--out", "x", "--set", "rounds=0"], ["rounds", "at least 1", "0"]),
        (["search", "--out", "x", "--set", "rounds=many"], ["rounds", "int", "many"]),
        (["search", "--out", "x", "--set", "nothing=1"], ["NAME=VALUE", "nothing=1"]),
        (["search", "--out", "x", "--set", "absolute=maybe"], ["absolute", "bool", "maybe"]),
        (["search", "--out", "x", "--data", "cifar10", "--root", "nowhere"], ["nowhere"]),
        (["search", "--out", "x", "--seeds", "3-1"], ["--seeds", "3-1"]),
        (["search", "--out", "x", "--seeds", "1,,2"], ["--seeds", "1,,2"]),
        (["search", "--out", "x", "--seeds", "all"], ["--seeds", "all"]),
        (["search", "--out", "x", "--seeds", "0-1", "--workers", "0"], ["workers", "expected 1 …", "got 0"]),
        (["search", "--out", "x", "--seeds", "0", "--data", "cifar10", "--root", "nowhere"], ["nowhere"]),
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


def test_foreign_genotype_is_named(tmp_path, capsys):
    (tmp_path / "g.json").write_text('{"inputs": 1, "normal": [[["conv_9x9", 0]]]}')
    assert main(["train", str(tmp_path / "g.json")]) == 2
    one_line_of(capsys, "g.json", "conv_9x9")


def test_seed_and_seeds_exclude_each_other(capsys):
    with pytest.raises(SystemExit) as left:
        main(["search", "--out", "x", "--seed", "1", "--seeds", "0-3"])
    assert left.value.code == 2 and "not allowed with argument" in capsys.readouterr().err


def test_ranges_of_seeds():
    assert parse_seeds("0-2,7,1") == [0, 1, 2, 7] and parse_seeds("5") == [5] and parse_seeds("3-3") == [3]


MICRO = dict(seed=3, channels=16, layers=3, rounds=6, steps=16, weight_lr=0.02, selection="perturbation")
LARGE = dict(space="paper", seed=3, layers=3, rounds=5, tangent_every=2, selection="perturbation")
PRINTED = dict(selection="strength", psi_shape="edge", eq_4_29="printed", eq_4_41="printed", eq_4_52="printed")


@pytest.mark.parametrize(
    ("space", "data", "given", "expected"),
    [
        ("micro", "digits", [], SearchConfig(**MICRO)),
        ("micro", "fashion_mnist", [], SearchConfig(**MICRO)),
        ("micro", "digits", ["--as-printed"], SearchConfig(**MICRO | PRINTED)),
        ("micro", "fashion_mnist", ["--as-printed", "--set", "tau=3"], SearchConfig(**MICRO | PRINTED, tau=3)),
        ("micro", "digits", ["--as-printed", "--method", "cp-nas"], SearchConfig.method("cp-nas", **MICRO | PRINTED)),
        ("paper", "digits", [], SearchConfig(**LARGE, steps=16)),
        ("paper", "cifar10", [], SearchConfig(**LARGE, steps=48)),
        ("paper", "fashion_mnist", ["--set", "steps=7", "--method", "darts"],
         SearchConfig.method("darts", **LARGE, steps=7)),
    ],
)  # fmt: skip
def test_defaults_follow_space_and_data(space, data, given, expected):
    command = ["search", "--out", "x", "--space", space, "--data", data, "--seed", "3", *given]
    config, made_by = settings(parse(command), "0123")
    assert config == expected
    rest = {"root": None, "images": "0123", "precision": "float32", "search": dataclasses.asdict(config)}
    assert made_by == {"data": data, **rest}


@pytest.mark.parametrize("command", [[], ["search"], ["train"], ["show"], ["equations"], ["microbench"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    assert left.value.code == 0 and "usage:" in capsys.readouterr().out
