"""From a search to an image: train keeps its network, export writes it, predict reads it; ONNX gives the same labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dcpnas_lite as dcp
from dcpnas_lite.__main__ import main
from dcpnas_lite.commands.predict import averaging
from dcpnas_lite.evaluation import training
from dcpnas_lite.packed import network


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder of a search, its cell trained with one bit and with 32."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "a"
    search = "search --seed 1 --quiet --set channels=2 --set layers=1 --set rounds=1 --set steps=1 --set warmup=0 --set batch=8"
    assert main([*search.split(), "--out", str(folder)]) == 0
    for bits in "1", "32":
        assert main(["train", str(folder), "--quiet", "--bits", bits, "--channels", "4", "--layers", "2", "--epochs", "2"]) == 0
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_train_keeps_its_network(run):
    loaded, about = training.load(run / "train-1bit-seed0.safetensors")
    assert not loaded.training and loaded.binary and about["name"] == "digits" and about["shape"] == [1, 16, 16]
    again = dcp.train(loaded.genotype, dcp.digits(), 1, dcp.TrainConfig(channels=4, layers=2, epochs=2)).network
    for (name, value), other in zip(loaded.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    assert not training.load(run / "train-32bit-seed0.safetensors")[0].binary


def test_export_and_predict(run, capsys, tmp_path):
    assert main(["export", str(run)]) == 0
    said = capsys.readouterr().out
    packed = network.load(run / "model.safetensors")
    size = packed.size()
    assert f"written to {run / 'model.safetensors'}: {(run / 'model.safetensors').stat().st_size:,} bytes" in said
    assert f"{size['one_bit']:,} bits" in said and f"{packed.operations(16, 16)['total']:,.0f} in the field's convention" in said
    assert main(["predict", str(run / "model.safetensors"), "--data", "digits"]) == 0
    data, (float_network, _) = dcp.digits(), training.load(run / "train-1bit-seed0.safetensors")
    labels = training.predict(float_network, data.test)
    right = int((labels == data.test.y).sum())
    assert capsys.readouterr().out == f"digits: {right} of 360 test images right, accuracy {right / 360:.4f}\n"
    assert main(["export", str(run / "train-1bit-seed0.safetensors"), "--out", str(tmp_path / "b.safetensors")]) == 0
    assert (tmp_path / "b.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_an_image_is_seen_as_the_data_are(run, capsys, tmp_path):
    from matplotlib.image import imread, imsave

    assert main(["export", str(run)]) == 0
    model, data = str(run / "model.safetensors"), dcp.digits()
    packed = network.load(model)
    for k in range(3):
        pixels = (data.test.x[k, 0].numpy() * data.std[0] + data.mean[0]).clip(0, 1)
        for invert, size in ((False, 1), (True, 3)):
            path = tmp_path / f"{k}-{size}.png"
            grey = np.kron(1 - pixels if invert else pixels, np.ones((size, size)))
            imsave(path, grey, cmap="gray", vmin=0, vmax=1)
            capsys.readouterr()
            assert main(["predict", model, "--image", str(path)] + ["--invert"] * invert) == 0
            first, *others = capsys.readouterr().out.splitlines()
            seen = imread(path)[::size, ::size, 0]  # with 8 bits a pixel, which can change signs in a network
            assert np.abs((1 - seen if invert else seen) - pixels).max() < 0.005
            x = ((1 - seen if invert else seen) - data.mean[0]) / data.std[0]
            logits = packed(x[None, None].astype(np.float32))[0]
            assert int(first.split()[0]) == logits.argmax() and len(others) == 2
            assert float(first.split()[1]) == pytest.approx(np.exp(logits.max()) / np.exp(logits).sum(), abs=0.005)


def test_averaging_keeps_the_mean_and_cuts_pixels():
    assert averaging(2, 4).tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
    assert averaging(2, 3) == pytest.approx(np.array([[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]]))
    assert averaging(4, 2).tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]


@pytest.mark.parametrize("arguments, line", [
    (["export", "{run}", "--seed", "7"],
     "{run}/train-1bit-seed7.safetensors: no such file; python -m dcpnas_lite train {run} makes it"),
    (["export", "{run}", "--bits", "32"], "network: expected a 1-bit DiscreteNetwork, got a real-valued one"),
    (["export", "{run}/config.json"],
     "{run}/config.json: expected a trained network, got an unreadable file, damaged or of another kind"),
    (["predict", "{run}/none.safetensors", "--data", "digits"], "[Errno 2] No such file or directory: '{run}/none.safetensors'"),
    (["predict", "{run}/train-1bit-seed0.safetensors", "--data", "digits"],
     "{run}/train-1bit-seed0.safetensors: expected a packed 1-bit network, got a trained network"),
    (["predict", "{run}/c.safetensors", "--image", "{run}/config.json"],
     "{run}/config.json: expected a PNG image, got a file that is none"),
    (["predict", "{run}/c.safetensors", "--image", "{run}/none.png"], "[Errno 2] No such file or directory: '{run}/none.png'"),
    (["predict", "{run}/c.safetensors", "--data", "digits", "--threads", "0"], "--threads: expected at least 1, got 0"),
])  # fmt: skip
def test_what_is_wrong_is_one_line(run, capsys, arguments, line):
    assert main(["export", str(run), "--out", str(run / "c.safetensors")]) == 0
    capsys.readouterr()
    assert main([argument.format(run=run) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("dcpnas_lite: " + line.format(run=run)), said.err


def labels_of(path, images: np.ndarray) -> np.ndarray:
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    return session.run(None, {session.get_inputs()[0].name: images})[0].argmax(1)


def test_onnx_gives_the_same_labels(run, capsys):
    """By the command: both forms of a network, on any number of images."""
    pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    data = dcp.digits()
    for bits in 1, 32:
        assert main(["export", str(run), "--format", "onnx", "--bits", str(bits)]) == 0
        said = capsys.readouterr()
        assert said.err == "" and said.out.startswith(f"written to {run / 'model.onnx'}: ")
        expected = training.predict(training.load(run / f"train-{bits}bit-seed0.safetensors")[0], data.test)
        assert np.array_equal(labels_of(run / "model.onnx", data.test.x.numpy()), expected.numpy())


@pytest.mark.filterwarnings("ignore")
def test_the_newer_exporter_gives_the_same_labels(run, tmp_path):
    pytest.importorskip("onnxscript"), pytest.importorskip("onnxruntime")
    net, _ = training.load(run / "train-1bit-seed0.safetensors")
    data = dcp.digits()
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.onnx.export(net, (data.test.x[:3],), dynamo=True, dynamic_shapes=shapes, verbose=False)
    program.save(tmp_path / "model.onnx")
    assert np.array_equal(labels_of(tmp_path / "model.onnx", data.test.x.numpy()), training.predict(net, data.test).numpy())
