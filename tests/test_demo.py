"""``fastnn demo``: two small trainings end to end, what fails them, and what is said when they cannot run."""

from __future__ import annotations

import argparse
import json
import math
import sys
import types
from pathlib import Path

import pytest
import torch
from rich.console import Console

import fastnn.nn
from fastnn import demo
from fastnn.demo import gradients, images, text, training

CPU = torch.device("cpu")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PROSE = "".join(f"def f{number}(x):\n    return x + {number % 7}\n\n\n" for number in range(400))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "ROUNDS", 1)
    monkeypatch.setattr(text, "SAMPLE_CHARACTERS", 40)
    monkeypatch.setattr(text, "HIDDEN", 96)


@pytest.fixture
def prose(tmp_path: Path) -> str:
    path = tmp_path / "prose.txt"
    path.write_text(PROSE, encoding="utf-8")
    return str(path)


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return demo.run(parser.parse_args(arguments))


def results_in(out: Path) -> dict:
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


def test_both_trainings_end_to_end(tmp_path: Path, prose: str, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "new" / "reports"
    status = run("all", "--epochs", "5", "--text", prose, "--out", str(out))
    printed = capsys.readouterr()
    assert status == 0, printed.err
    for name in ("images.png", "text.png"):
        assert (out / name).read_bytes().startswith(PNG_SIGNATURE)
    results = results_in(out)
    assert results["machine"]["versions"]["torch"] == torch.__version__
    for name, initial in (("images", math.log(10)), ("text", math.log(len(text.Vocabulary(PROSE))))):
        measured = results["trainings"][name]
        assert measured["failures"] == []
        assert measured["expected_initial_loss"] == pytest.approx(initial, abs=0.05)
        assert set(measured["sides"]) == {"torch", "fastnn"}
        for side in measured["sides"].values():
            assert len(side["losses"]) == 5 * measured["steps_per_epoch"]
            assert len(side["held-out accuracy"]) == 5
            assert side["final_loss"] < side["losses"][0]
            assert side["seconds"] > 0
        assert measured["drift"]["largest_loss_difference"] <= measured["drift"]["bound"]
        assert all(set(layer["seconds"]) == {"torch", "fastnn"} for layer in measured["layers"].values())
    assert list(results["trainings"]["images"]["layers"]) == [
        "conv1", "norm1", "conv2", "norm2", "pool2", "conv3", "norm3", "pool3",
    ]  # fmt: skip
    assert list(results["trainings"]["text"]["layers"]) == ["recurrent"]
    assert min(side["held-out accuracy"][-1] for side in results["trainings"]["images"]["sides"].values()) >= 0.97
    for words in (
        "initial loss",
        "learnt by heart",
        "written after 0 steps",
        "images ━",
        "text ━",
        "held-out accuracy",
    ):
        assert words in printed.out


def test_fastnn_alone_on_the_shortest_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shortest = tmp_path / "shortest.txt"
    shortest.write_text(PROSE[: text.MINIMUM_CHARACTERS], encoding="utf-8")
    assert run("text", "--no-compare", "--epochs", "1", "--text", str(shortest), "--out", str(tmp_path)) == 0
    results = results_in(tmp_path)
    assert list(results["trainings"]) == ["text"]
    assert list(results["trainings"]["text"]["sides"]) == ["fastnn"]
    assert results["trainings"]["text"]["largest_loss_difference"] is None
    assert (tmp_path / "text.png").read_bytes().startswith(PNG_SIGNATURE)
    assert not (tmp_path / "images.png").exists()
    assert "fastnn vs torch" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cell", "sides"), [("gru", {"torch", "fastnn"}), ("peephole", {"fastnn"}), ("mut1", {"fastnn"})]
)
def test_other_cells(cell: str, sides: set[str], tmp_path: Path, prose: str):
    assert run("text", "--cell", cell, "--epochs", "2", "--text", prose, "--out", str(tmp_path)) == 0
    measured = results_in(tmp_path)["trainings"]["text"]
    assert set(measured["sides"]) == sides
    assert measured["title"].startswith(f"{cell}, ")


def test_cells_are_compared(tmp_path: Path, prose: str, capsys: pytest.CaptureFixture[str]):
    assert run("text", "--compare-cells", "--epochs", "2", "--text", prose, "--out", str(tmp_path)) == 0
    results = results_in(tmp_path)
    assert results["trainings"] == {}
    cells = results["cells"]["cells"]
    assert list(cells) == list(demo.CELLS)
    for measured in cells.values():
        assert measured["final_loss"] < measured["losses"][0]
        assert len(measured["held-out accuracy"]) == 2
    assert cells["coupled"]["parameters"] < cells["lstm"]["parameters"] < cells["peephole"]["parameters"]
    assert (tmp_path / "cells.png").read_bytes().startswith(PNG_SIGNATURE)
    printed = capsys.readouterr().out
    assert all(f"│ {cell} " in printed for cell in demo.CELLS)


def test_one_cell_or_all():
    with pytest.raises(SystemExit):
        run("text", "--cell", "gru", "--compare-cells")


def test_layers_come_from_the_namespace():
    for name, package in (("torch", "torch.nn"), ("fastnn", "fastnn.nn")):
        layers = [
            layer
            for side in (images.make_sides([name], CPU, 0)[0], text.make_sides([name], 8, CPU, 0)[0])
            for layer in side.model.modules()
            if isinstance(layer, training.TIMED_LAYERS)
        ]
        assert len(layers) == 9
        assert all(type(layer).__module__.startswith(package) for layer in layers)


@pytest.mark.parametrize("make", [images.make_sides, lambda *rest: text.make_sides(rest[0], 11, *rest[1:])])
def test_both_sides_start_alike(make):
    def weights(seed: int) -> list[dict]:
        return [side.model.state_dict() for side in make(("torch", "fastnn"), CPU, seed)]

    left, right = weights(3)
    assert list(left) == list(right)
    assert all(torch.equal(left[key], right[key]) for key in left)
    assert not all(torch.equal(left[key], other) for key, other in weights(4)[0].items())


def test_different_weights_are_noticed(monkeypatch: pytest.MonkeyPatch):
    class Shifted(fastnn.nn.LSTM):
        def reset_parameters(self) -> None:
            super().reset_parameters()
            torch.nn.init.zeros_(self.weight_hh_l0)

    replace_fastnn(monkeypatch, LSTM=Shifted)
    with pytest.raises(RuntimeError, match="different weights from the same seed"):
        text.make_sides(("torch", "fastnn"), 11, CPU, 0)


@pytest.mark.parametrize("module", [images, text])
def test_both_sides_see_the_same_batches(module, monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, list] = {"torch": [], "fastnn": []}
    original = training.step

    def step(side, batch, *rest):
        seen[side.name].append([part.clone() for part in batch])
        original(side, batch, *rest)

    monkeypatch.setattr(module, "_check_habits", lambda *arguments: None)
    monkeypatch.setattr(training, "step", step)
    corpus = [text.Corpus(PROSE, "prose")] if module is text else []
    outcome = module.train(Console(quiet=True), ("torch", "fastnn"), CPU, 0, 1, *corpus)
    assert len(seen["torch"]) == len(seen["fastnn"]) == outcome.steps_per_epoch > 1
    for left, right in zip(seen["torch"], seen["fastnn"], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
    assert not torch.equal(seen["torch"][0][0], seen["torch"][1][0])


# ---- what makes it fail --------------------------------------------------------------------------------------


def replace_fastnn(monkeypatch: pytest.MonkeyPatch, **layers: type) -> None:
    """Lets the fastnn side build with other layers in place of some of fastnn's."""
    namespace = types.ModuleType("other_layers")
    namespace.__getattr__ = lambda name: layers.get(name) or getattr(fastnn.nn, name)
    monkeypatch.setitem(sys.modules, "other_layers", namespace)
    monkeypatch.setitem(training.NAMESPACES, "fastnn", "other_layers")


def test_a_wrong_layer_is_drift(
    tmp_path: Path, prose: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    class Wrong(fastnn.nn.LSTM):
        def forward(self, input, hx=None):
            output, (h, c) = super().forward(input, hx)
            return output, (h, 0.9 * c)

    replace_fastnn(monkeypatch, LSTM=Wrong)
    assert run("text", "--epochs", "1", "--text", prose, "--out", str(tmp_path)) == 1
    err = capsys.readouterr().err
    assert "FAILED: text: the losses of torch and fastnn differ by" in err
    assert "Traceback" not in err
    assert len(results_in(tmp_path)["trainings"]["text"]["failures"]) == 1


@pytest.mark.parametrize(
    ("torch_losses", "fastnn_losses", "fails"),
    [
        ([2.0, 1.0, 0.5], [2.0, 1.0, 0.5], False),
        ([2.0, 1.0, 0.5], [2.0, 1.00009, 0.5], False),
        ([2.0, 1.0, 0.5], [2.0, 1.00011, 0.5], True),
        ([2.0, 1.0, 0.5], [2.0, 1.0, 0.7], False),  # after the first epoch
        ([2.0, 1.0, 0.5], [math.nan, 1.0, 0.5], True),
        ([2.0, math.nan, 0.5], [2.0, math.nan, 0.5], True),
    ],
)
def test_drift(torch_losses: list[float], fastnn_losses: list[float], fails: bool):
    sides = images.make_sides(("torch", "fastnn"), CPU, 0)
    sides[0].losses, sides[1].losses = torch_losses, fastnn_losses
    outcome = training.Outcome("images", "", sides, steps_per_epoch=2, expected_initial_loss=2.3, drift_bound=1e-4)
    training.check_drift(outcome)
    assert bool(outcome.failures) is fails


def test_too_low_an_accuracy_fails(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "REQUIRED_ACCURACY", 1.01)
    monkeypatch.setattr(images, "_check_habits", lambda *arguments: None)
    outcome = images.train(Console(quiet=True), ("fastnn",), CPU, 0, 1)
    assert len(outcome.failures) == 1
    assert outcome.failures[0].startswith("held-out accuracy with fastnn's layers is ")
    assert outcome.failures[0].endswith("% after 1 epoch(s), below 101%")


def test_a_network_that_does_not_learn_fails_its_habits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "LEARNING_RATE", 0.0)
    outcome = training.Outcome("images", "", [], 23, expected_initial_loss=1.0, drift_bound=1e-4)
    images._check_habits(outcome, Console(quiet=True), images.load_data(0)[0], CPU, 0)
    assert [failure.split()[0] for failure in outcome.failures] == ["initial", "16"]


# ---- what it says when it cannot run -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "unknown device 'tpu': choose cpu, cuda or cuda:N"),
        (["--device", "meta"], "unknown device 'meta'"),
        (["--device", "cuda:99"], "--device cuda:99: "),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--epochs", "-3"], "--epochs must be at least 1, got -3"),
        (["--seed", "-1"], "--seed must lie between 0 and 2**32 - 1, got -1"),
        (["images", "--text", "x"], "--text has no meaning for the images training"),
        (["images", "--cell", "gru"], "--cell has no meaning for the images training"),
        (["images", "--compare-cells"], "--compare-cells has no meaning for the images training"),
        (["--text", "{tmp}/nowhere.txt"], "nowhere.txt: No such file or directory"),
        (["--text", "{tmp}"], "Is a directory"),
        (["--text", "{tmp}/empty"], "empty is empty; the text training needs at least 8320"),
        (["--text", "{tmp}/short"], "short has only 9 characters; the text training needs at least 8320"),
        (["--text", "{tmp}/binary"], "binary: not UTF-8 text (byte 2)"),
        (["--out", "{tmp}/short"], "short: cannot write there: File exists"),
        (["--out", "{tmp}/short/below"], "below: cannot write there: Not a directory"),
    ],
)
def test_what_cannot_run(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_text("too short")
    (tmp_path / "binary").write_bytes(b"ab\xff\xfe" * 4000)
    monkeypatch.chdir(tmp_path)
    assert run(*(argument.format(tmp=tmp_path) for argument in arguments)) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("fastnn demo: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize(
    ("available", "built", "supported", "message"),
    [
        (False, True, True, "this torch is a CPU build"),
        (True, False, True, "this fastnn was built without CUDA"),
        (True, True, False, "this fastnn has no code for Some GPU"),
    ],
)
def test_cuda_that_cannot_be_used(
    available: bool,
    built: bool,
    supported: bool,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    device = {"index": 0, "name": "Some GPU", "supported": supported}
    monkeypatch.setattr(fastnn, "info", lambda: {"cuda": {"built": built}, "devices": [device]})
    assert run("--device", "cuda") == 2
    assert capsys.readouterr().err == f"fastnn demo: --device cuda: {message}\n"


@pytest.mark.parametrize(
    ("module", "package"), [("sklearn", "scikit-learn"), ("matplotlib", "matplotlib"), ("rich", "rich")]
)
def test_a_missing_package(
    module: str, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, module, None)
    assert run() == 2
    err = capsys.readouterr().err
    assert err.startswith(f"fastnn demo: {package} cannot be imported")
    assert "pip install 'fastnn[demo]'" in err


def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(images, "train", interrupt)
    assert run("images", "--out", str(tmp_path)) == 130
    assert capsys.readouterr().err == "fastnn demo: interrupted; no results written\n"


# ---- the parts -----------------------------------------------------------------------------------------------


def test_digits_are_split_by_proportion():
    train_set, held_out = images.load_data(0)
    assert train_set.images.shape == (1437, 1, 8, 8)
    assert held_out.images.shape == (360, 1, 8, 8)
    assert train_set.images.min() == -1
    assert train_set.images.max() == 1
    for part in (train_set, held_out):
        shares = part.labels.bincount(minlength=10) / len(part.labels)
        assert (shares - 0.1).abs().max() < 0.005
    again = images.load_data(0)[1]
    assert torch.equal(again.images, held_out.images)
    assert not torch.equal(images.load_data(1)[1].images, held_out.images)


def test_vocabulary():
    vocabulary = text.Vocabulary("hello")
    assert vocabulary.characters == [text.UNKNOWN, "l", "e", "h", "o"]
    assert vocabulary.encode("hole").tolist() == [3, 4, 1, 2]
    assert vocabulary.decode([3, 4, 1, 2]) == "hole"
    assert vocabulary.encode("hex").tolist() == [3, 2, 0]
    assert vocabulary.encode("").tolist() == []
    many = text.Vocabulary("".join(chr(0x4E00 + number) * (1 + number // 500) for number in range(1000)))
    assert len(many) == text.MAXIMUM_VOCABULARY
    assert text.UNKNOWN in text.Vocabulary("a\ufffdb").characters[:1]
    assert len(text.Vocabulary("a\ufffdb")) == 3


def test_chunks_carry_on_where_they_stopped():
    numbers = torch.arange(103)
    parts = list(text.chunks(numbers, batch=4, chunk=10))
    inputs = torch.cat([part.inputs for part in parts])
    targets = torch.cat([part.targets for part in parts])
    assert [len(part.inputs) for part in parts] == [10, 10, 4]
    assert torch.equal(inputs, torch.arange(100).view(4, 25).t()[:-1])
    assert torch.equal(targets, inputs + 1)


def test_the_standard_library_is_long_enough_and_always_the_same():
    corpus = text.load_corpus()
    assert len(corpus.text) == text.CORPUS_CHARACTERS
    assert "def " in corpus.text
    assert corpus == text.load_corpus()


def test_the_state_is_carried_and_its_gradient_cut():
    side = text.make_sides(["fastnn"], 8, CPU, 0)[0]
    chunk = next(text.chunks(torch.arange(130) % 8, batch=2, chunk=5))
    first = text.loss_of(side, chunk)
    assert all(part.abs().sum() > 0 and not part.requires_grad for part in side.state)
    carried = text.loss_of(side, chunk)
    assert carried.item() != first.item()
    carried.backward()
    first.backward()  # its graph is its own: the later chunk's backward did not go through it


def test_the_gradient_is_clipped():
    side = text.make_sides(["fastnn"], 8, CPU, 0)[0]
    chunk = next(text.chunks(torch.arange(130) % 8, batch=2, chunk=5))
    training.step(side, chunk, text.loss_of, 1e-4)
    norm = torch.cat([parameter.grad.flatten() for parameter in side.model.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-4, rel=1e-2)


def test_held_out_evaluation_is_the_mean_over_all_characters():
    model = text.make_sides(["fastnn"], 8, CPU, 0)[0].model
    numbers = torch.arange(32 * 70) % 8
    loss, accuracy = text.evaluate(model, numbers)
    whole = next(text.chunks(numbers, chunk=1000))
    with torch.no_grad():
        logits, _ = model(whole.inputs)
    assert loss == pytest.approx(
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), whole.targets.flatten()).item(), rel=1e-5
    )
    assert accuracy == pytest.approx((logits.argmax(2) == whole.targets).float().mean().item())


def test_sampling():
    vocabulary = text.Vocabulary("hello world\n")
    side = text.make_sides(["fastnn"], len(vocabulary), CPU, 0)[0]
    written = text.sample(side.model, vocabulary, 50, seed=1)
    assert len(written) == 50
    assert set(written) <= set("hello world\n")
    assert written == text.sample(side.model, vocabulary, 50, seed=1)
    assert written != text.sample(side.model, vocabulary, 50, seed=2)
    # What is learnt by heart is written again.
    numbers = vocabulary.encode("\nhello world\nhello world\n")
    training.overfit(side, next(text.chunks(numbers, batch=1)), text.loss_of, 60, 1.0)
    assert text.sample(side.model, vocabulary, 12, seed=1) == "hello world\n"


def test_printable():
    assert text.printable("a\tb\n\x1b[31m\x0c") == "a b\n·[31m·"


def test_timing_leaves_the_model_alone():
    sides = images.make_sides(("torch", "fastnn"), CPU, 0)
    before = [{key: value.clone() for key, value in side.model.state_dict().items()} for side in sides]
    timings = training.time_layers(sides, lambda model: model(torch.randn(4, 1, 8, 8)))
    assert [timing.description for timing in timings][:2] == ["Conv2d 4x1x8x8", "BatchNorm2d 4x32x8x8"]
    assert all(seconds > 0 for timing in timings for seconds in timing.seconds.values())
    for side, old in zip(sides, before, strict=True):
        assert all(torch.equal(value, old[key]) for key, value in side.model.state_dict().items())
        assert all(parameter.grad is None for parameter in side.model.parameters())


def test_how_far_gradients_reach(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    left = {name: gradients.norms(cell, 60) for name, cell in gradients.cells().items()}
    assert all(len(norms) == 61 and norms[0] == 1 for norms in left.values())
    assert left["RNN, tanh"][-1] < left["LSTM, torch's initial biases"][-1] < 1e-9
    assert 1e-9 < left["LSTM, forget_bias=1"][-1] < 1e-3
    assert left["LSTM, f = 1"] == pytest.approx([1.0] * 61)
    path = tmp_path / "flow.svg"
    assert gradients.main([str(path)]) == 0
    assert "LSTM, f = 1" in path.read_text(encoding="utf-8")
    assert path.stat().st_size < 60_000
    assert gradients.main(["flow.png"]) == 2
    assert "usage" in capsys.readouterr().err
