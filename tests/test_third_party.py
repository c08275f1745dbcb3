"""A model that nobody here wrote, converted: the same logits, gradients and running statistics as the original."""

from __future__ import annotations

import copy
import os

import pytest
import torch

import fastnn

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import transformers


def make_resnet() -> torch.nn.Module:
    """ResNet of basic and strided bottleneck layers, random weights, small enough for a test."""
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64], depths=[2, 2, 1], layer_type="bottleneck", num_labels=10
    )
    return transformers.ResNetForImageClassification(config)


def run(model: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Logits, every gradient and every buffer after one training step's forward and backward."""
    x = x.clone().requires_grad_()
    out = model(pixel_values=x, labels=labels)
    out.loss.backward()
    results = {"logits": out.logits.detach(), "grad of pixel_values": x.grad}
    results |= {f"grad of {name}": p.grad for name, p in model.named_parameters()}
    return results | {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_resnet_of_transformers(training: bool, dtype: torch.dtype) -> None:
    original = make_resnet().to(dtype).train(training)
    converted = copy.deepcopy(original)
    optimiser = torch.optim.SGD(converted.parameters(), lr=0.1)
    held = {id(p) for group in optimiser.param_groups for p in group["params"]}
    assert fastnn.convert(converted) is converted
    assert {id(p) for p in converted.parameters()} == held
    report = fastnn.conversion_report(converted)
    kinds = {row.class_name for row in report if row.replaced}
    assert kinds == {"AdaptiveAvgPool2d", "Conv2d", "BatchNorm2d", "MaxPool2d"}

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 3, 64, 48, generator=generator, dtype=dtype)
    labels = torch.randint(0, 10, (4,), generator=generator)
    expected, got = run(original, x, labels), run(converted, x, labels)
    assert list(got) == list(expected)
    # Both sides round: dozens of layers deep, float32's 6e-8 has grown to some 1e-4 of the largest value.
    tolerance = 1e-10 if dtype == torch.float64 else 1e-3
    for name, value in expected.items():
        scale = float(value.abs().max()) if value.is_floating_point() else 0.0
        torch.testing.assert_close(
            got[name], value, rtol=tolerance, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )

    fastnn.revert(converted)
    assert not fastnn.conversion_report(converted).replaced
    reverted = run(converted.eval(), x, labels)["logits"]
    torch.testing.assert_close(reverted, run(original.eval(), x, labels)["logits"], rtol=1e-3, atol=1e-3)
