"""The examples run from beginning to end: a few steps of training, what they print, and their pictures."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "common")
PRINTS = {
    "caption_digits": "held-out captions right to the last word",
    "classify_digits": "held-out accuracy",
    "label_video": "frames labelled right",
    "name_entities": "held-out words right",
    "photographs": "held-out crops named right",
    "segment_shapes": "mean intersection over union",
}


@pytest.fixture
def example(monkeypatch):
    """Imports an example as `python examples/NAME.py` would run it."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    loaded = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - loaded:
        if name == "common" or name in NAMES:
            del sys.modules[name]


@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name, example, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--steps", "2", "--out", str(tmp_path)])
    example(name).main()
    assert PRINTS[name] in capsys.readouterr().out
    assert [p.suffix for p in tmp_path.iterdir()] == [".png"]


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "googlenet", "resnet50"])
def test_every_network_trains_on_photographs(name, example):
    photographs = example("photographs")
    common = example("common")
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.rand(3, 100, 600, generator=generator) for _ in range(2)]
    model = photographs.NETWORKS[name]()
    batch = photographs.crops(pictures, False, generator)
    losses = common.train(model, iter([batch]), photographs.loss_of, 1)
    heads = 1 + 2 * photographs.AUXILIARY if name == "googlenet" else 1
    assert len(losses) == 1 and 0 < losses[0] < 4 * heads * math.log(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "argument --steps: must be at least 1, got 0"),
        (["--network", "lenet"], "--network must be one of alexnet, vgg16, googlenet, resnet18, resnet50, got 'lenet'"),
    ],
)
def test_wrong_arguments(arguments, message, example, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["photographs", *arguments])
    with pytest.raises(SystemExit) as stop:
        example("photographs").main()
    assert message in capsys.readouterr().err + str(stop.value)
