"""Every network of fastnn.models gives what the same network of torch's layers gives, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastnn.nn
from fastnn import models

IMAGES = (2, 3, 64, 64)


def image_like(*shape: int) -> tuple[Tensor, ...]:
    return (torch.randn(*shape, dtype=torch.float64),)


def words(count: int, *shape: int) -> Tensor:
    return torch.randint(0, count, shape)


# What builds each, and inputs of it.
NETWORKS = {
    "lenet5": (models.lenet5, lambda: image_like(2, 1, 32, 32)),
    "alexnet": (lambda layers: models.alexnet(layers, 10, image=63, hidden=64), lambda: image_like(2, 3, 63, 63)),
    "alexnet_without_norm": (
        lambda layers: models.alexnet(layers, 10, image=70, hidden=64, local_response_norm=False),
        lambda: image_like(2, 3, 70, 70),
    ),
    "vgg16": (lambda layers: models.vgg16(layers, 10, image=32, hidden=64), lambda: image_like(2, 3, 32, 32)),
    "googlenet": (lambda layers: models.GoogLeNet(layers, 10), lambda: image_like(*IMAGES)),
    "googlenet_one_head": (lambda layers: models.GoogLeNet(layers, 10, auxiliary=False), lambda: image_like(*IMAGES)),
    "resnet18": (lambda layers: models.resnet18(layers, 10), lambda: image_like(*IMAGES)),
    "resnet50": (lambda layers: models.resnet50(layers, 10), lambda: image_like(*IMAGES)),
    "mobilenet_v2": (lambda layers: models.mobilenet_v2(layers, 10), lambda: image_like(*IMAGES)),
    "digits": (models.digits, lambda: image_like(4, 1, 8, 8)),
    "deconvnet": (lambda layers: models.DeconvNet(layers, 2, 3), lambda: image_like(2, 2, 21, 18)),
    "frame_labeller": (lambda layers: models.FrameLabeller(layers, 2, 3), lambda: image_like(4, 2, 2, 11, 12)),
    "captioner": (
        lambda layers: models.Captioner(layers, 9, 2),
        lambda: (*image_like(2, 2, 7, 8), words(9, 5, 2)),
    ),
    "sequence_to_sequence": (
        lambda layers: models.SequenceToSequence(layers, 7, 9, 16),
        lambda: (words(7, 6, 3), torch.tensor([4, 6, 1]), words(9, 5, 3)),
    ),
}


def results(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs, and in training the gradients of a sum of them with random weights."""
    torch.manual_seed(1)  # dropout
    outputs = network(*inputs)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    if not network.training:
        return outputs, {}
    generator = torch.Generator().manual_seed(2)
    loss = sum((out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum() for out in outputs)
    names, parameters = zip(*network.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters)
    return outputs, dict(zip(names, gradients, strict=True))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_their_torch_twins(name, training):
    build, make_inputs = NETWORKS[name]
    ours, twin = build(fastnn.nn).double(), build(nn).double()
    twin.load_state_dict(ours.state_dict())
    inputs = make_inputs()
    for network in (ours, twin):
        network.train(training)
    (outputs, gradients), (want, want_gradients) = results(ours, inputs), results(twin, inputs)
    assert len(outputs) == (3 if name == "googlenet" and training else 1)
    torch.testing.assert_close(outputs, want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients, want_gradients, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours.state_dict(), twin.state_dict(), rtol=1e-9, atol=1e-9)  # running statistics


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_of_the_layers_that_are_given(name):
    build, _ = NETWORKS[name]
    own = tuple(cls for cls in fastnn.nn.IMPLEMENTED if not cls.__name__.startswith("Lazy"))
    replaced = {base for cls in own for base in cls.__mro__ if base.__module__.startswith("torch.nn")} - {nn.Module}
    assert not any(isinstance(module, own) for module in build(nn).modules())
    assert not [m for m in build(fastnn.nn).modules() if type(m) in replaced]


def test_captions_are_written_word_by_word():
    network = models.Captioner(words=9, channels=2).double().eval()
    (images,) = image_like(3, 2, 7, 8)
    written = network.caption(images, begin=0, length=4)
    begun = torch.cat([torch.zeros(1, 3, dtype=torch.long), written[:-1]])
    assert torch.equal(network(images, begun).argmax(-1), written)


def test_attention_is_of_what_was_read():
    network = models.SequenceToSequence(fastnn.nn, 7, 9, 16)
    source, lengths, target = words(7, 6, 3), torch.tensor([4, 6, 1]), words(9, 5, 3)
    read, state = network.encode(source, lengths)
    _, attention, _ = network.decode(read, lengths, target, state)
    torch.testing.assert_close(attention.sum(-1), torch.ones(5, 3))
    for sample, length in enumerate(lengths):
        assert (attention[:, sample, :length] > 0).all()
        assert not attention[:, sample, length:].any()
