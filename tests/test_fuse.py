"""fuse, unfuse and fusion_report: what a fused model computes, keeps and remembers, and what it must not change."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import rich.console
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import fastnn
from fastnn import _fused
from fastnn.bench.memory import live_and_peak_bytes
from fastnn.models import mobilenet_v2, resnet50
from fastnn.models.blocks import conv_norm_relu
from fastnn.models.resnet import Residual, bottleneck

C = 4
IMAGE = (3, C, 6, 5)


class BasicBlock(nn.Module):
    """ResNet-18's block, as torchvision writes it; ``inplace`` says how."""

    def __init__(self, downsample: bool = False, inplace: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(C, C, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(C)
        self.relu = nn.ReLU(inplace=inplace)
        self.conv2 = nn.Conv2d(C, C, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(C)
        self.downsample = nn.Sequential(nn.Conv2d(C, C, 1, bias=False), nn.BatchNorm2d(C)) if downsample else None
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        if self.inplace:
            out += identity
        else:
            out = torch.add(identity, out)
        return self.relu(out)


class PreActivation(nn.Module):
    """Batch norm and ReLU before each convolution; the sum is used by the next block's batch norm and shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(C), nn.BatchNorm2d(C)
        self.conv1 = nn.Conv2d(C, C, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(C, C, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(self.bn2(out).relu_())
        out += x
        return out


class Functional(nn.Module):
    """Activations as functions and methods, a dropout that follows the mode, and a head of two dimensions."""

    def __init__(self, activate: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, C, 3, bias=True)
        self.norm = nn.BatchNorm2d(C, momentum=None)
        self.linear = nn.Linear(C, 6)
        self.norm1d = nn.BatchNorm1d(6, affine=False, momentum=None, track_running_stats=False)
        self.head = nn.Linear(6, 5)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        x = self.activate(self.norm(self.conv(x))).mean((2, 3))
        x = F.dropout(self.norm1d(self.linear(x)).relu(), 0.5, training=self.training)
        return self.head(x)


class BothNormalised(nn.Module):
    """RepVGG's: sums of batch norms, one of them of the input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
        self.point = nn.Sequential(nn.Conv2d(C, C, 1, bias=False), nn.BatchNorm2d(C))
        self.itself = nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.dense(x) + self.point(x) + self.itself(x))


class Broadcasts(nn.Module):
    """A residual of another shape, one that only its values tell apart from the usual."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        pooled = F.adaptive_avg_pool2d(x, 1)
        if self.in_place:
            y += pooled
            return F.relu(y)
        return F.relu(pooled + y)


class SharedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(F.relu(self.norm(x)))))


class Branching(nn.Module):
    """Python decides by a value, which torch.fx cannot trace; the blocks can be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([BasicBlock(), BasicBlock(downsample=True)])
        self.norm = nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        if x.sum() > 1e9:
            return x
        return F.relu(self.norm(x))


class InvertedResidual(nn.Module):
    """MobileNetV2's: the block ends in a batch norm and a sum, without an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            conv_norm_relu(nn, C, 3 * C, 1, relu="ReLU6"),
            conv_norm_relu(nn, 3 * C, 3 * C, 3, groups=3 * C, relu="ReLU6"),
            nn.Conv2d(3 * C, C, 1, bias=False),
            nn.BatchNorm2d(C),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class UsedTwice(nn.Module):
    """The batch norm's output, and the sum's, are wanted besides what follows them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.norm2 = nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C), nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        z = self.norm2(x) + y
        return torch.relu(y) + torch.relu_(z) * z.sigmoid()


class Aliases(nn.Module):
    """`y += ` changes what `x` is too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        y = x = x * 2
        n = m = x.shape[0]
        m += 1
        z = F.relu(self.norm(x.tanh()))
        y += z
        return x * n + y * m


class ConvolutionUsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return F.relu(self.norm(y)) * y


class WrittenBetween(nn.Module):
    """The batch norm's input is overwritten before the activation runs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(C, affine=False)  # with weights it would save its input

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.5
        y = self.norm(x.detach())
        x.mul_(3)
        return F.relu(y) + x


class SharedConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, C, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(F.relu(self.conv(x))))


class ConvolutionWrittenBetween(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, C, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.5
        y = self.conv(x.detach())
        x.mul_(3)
        return F.relu(y) + x


class Convolutions(nn.Module):
    """Without batch norms: activations as modules, functions and methods, one that no op fuses, and one written to."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(C, C, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(C, C, 1),
            nn.GELU(),
            nn.Conv2d(C, C, 1),
            nn.ReLU6(),
        )
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(C, C, 3, padding=1, groups=2) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv1(self.features(x)))
        x = x + self.conv2(x).sigmoid()
        y = self.conv3(x)
        x = x * 2
        return F.leaky_relu(y, 0.1) + x


def sequential(*activations: nn.Module) -> nn.Sequential:
    layers: list[nn.Module] = []
    for activation in activations:
        layers += [nn.Conv2d(C, C, 3, padding=1, bias=len(layers) == 0), nn.BatchNorm2d(C), activation]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(C * 6, 5))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "sequential": lambda: sequential(nn.ReLU(), nn.ReLU(inplace=True)),
    "leaky-elu": lambda: sequential(nn.LeakyReLU(0.2), nn.ELU(0.7, inplace=True), nn.LeakyReLU(inplace=True)),
    "silu": lambda: sequential(nn.SiLU(), nn.Hardtanh(-0.5, 0.7, inplace=True), nn.Sigmoid()),
    "gelu": lambda: sequential(nn.GELU("tanh"), nn.Hardswish(), nn.Mish(), nn.ReLU6(inplace=True)),
    "curves": lambda: sequential(nn.Softplus(1.5), nn.GELU(), nn.Tanh(), nn.Hardsigmoid(inplace=True), nn.SiLU(True)),
    "convolutions": Convolutions,
    "basic blocks": lambda: nn.Sequential(BasicBlock(), BasicBlock(downsample=True), BasicBlock(inplace=False)),
    "bottlenecks": lambda: nn.Sequential(bottleneck(nn, C, 2, 2), bottleneck(nn, 8, 2, 1), bottleneck(nn, 8, 2, 1)),
    "a long row": lambda: nn.Sequential(*(BasicBlock() for _ in range(12))),
    "pre-activation": lambda: nn.Sequential(PreActivation(), PreActivation(), nn.BatchNorm2d(C), nn.ReLU()),
    "inverted residual": lambda: nn.Sequential(InvertedResidual(), InvertedResidual()),
    "functional": Functional,
    "functional leaky": lambda: Functional(Leaky()),
    "functional elu": lambda: Functional(Elu()),
    "both normalised": BothNormalised,
    "broadcasts": lambda: nn.Sequential(Broadcasts(False), Broadcasts(True)),
    "shared norm": SharedNorm,
    "branching": Branching,
    "used twice": UsedTwice,
    "written between": WrittenBetween,
    "aliases": Aliases,
    "convolution used twice": ConvolutionUsedTwice,
}


NOTHING_TO_FUSE = ("shared norm", "written between")


class Leaky(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, 0.3, True)


class Elu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x, alpha=0.6)


def make(name: str) -> nn.Module:
    """A model in float64 whose batch norms have weights and statistics like no other's."""
    torch.manual_seed(0)
    model = MODELS[name]().double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
    return model


def image(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(IMAGE, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def step(model: nn.Module, x: Tensor | None = None) -> tuple[Tensor, Tensor, dict[str, Tensor | None]]:
    """Output, gradient of the input and gradients of the parameters; the random generator begins anew."""
    torch.manual_seed(2)
    x = (image() if x is None else x).clone().requires_grad_()
    model.zero_grad()
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return y.detach(), x.grad, {name: p.grad for name, p in model.named_parameters()}


def fused_texts(model: nn.Module) -> dict[str, str]:
    return {row.name: row.fused for row in fastnn.fusion_report(model)}


def reasons(model: nn.Module) -> dict[str, str]:
    return {row.name: row.reason for row in fastnn.fusion_report(model)}


def classes(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


def calls_of(monkeypatch: pytest.MonkeyPatch, function: str) -> list[int]:
    """A list that grows with every call of a function of fastnn's."""
    calls: list[int] = []
    original = getattr(fastnn.functional, function)
    monkeypatch.setattr(fastnn.functional, function, lambda *a, **k: calls.append(1) or original(*a, **k))
    return calls


# ---- what a fused model computes ----------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [True, False], ids=["recompute", "keep"])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_gradients_and_statistics_are_the_model_s(name: str, recompute: bool):
    stock = make(name)
    ours = fastnn.fuse(stock, recompute=recompute, copy=True)
    assert any(fused_texts(ours).values()) or name in NOTHING_TO_FUSE
    for _ in range(2):
        torch.testing.assert_close(step(ours), step(stock))
    torch.testing.assert_close(ours.state_dict(), stock.state_dict())
    stock.eval()
    ours.eval()
    torch.testing.assert_close(step(ours), step(stock))
    with torch.no_grad():
        torch.testing.assert_close(ours(image()), stock(image()))
        torch.testing.assert_close(ours(image()), stock(image()))
    torch.testing.assert_close(ours.state_dict(), stock.state_dict())
    stock.train()
    ours.train()
    torch.testing.assert_close(step(ours), step(stock))
    with torch.no_grad():
        torch.manual_seed(3)
        expected = stock(image())
        torch.manual_seed(3)
        torch.testing.assert_close(ours(image()), expected)
    torch.testing.assert_close(ours.state_dict(), stock.state_dict())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_and_layouts(dtype: torch.dtype, layout: torch.memory_format):
    """As near to the model in float64 as torch's layers come, but for the chance in rounding."""
    exact = make("bottlenecks")
    stock = copy.deepcopy(exact).to(dtype).to(memory_format=layout)
    ours = fastnn.fuse(stock, copy=True)
    exact.load_state_dict(stock.state_dict())
    x = image(dtype).to(memory_format=layout)
    expected = flat(step(exact, x.double()))
    errors = [(flat(step(model, x)) - expected).norm() / expected.norm() for model in (ours, stock)]
    assert errors[0] <= 2 * errors[1]
    assert errors[0] <= (1e-5 if dtype == torch.float32 else 0.3)


@pytest.mark.parametrize("recompute", [True, False], ids=["recompute", "keep"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["sequential", "leaky-elu", "basic blocks", "bottlenecks", "inverted residual"])
def test_every_backend_serves_a_fused_model(name: str, dtype: torch.dtype, layout: str, recompute: bool, backend):
    """All of its layers are fastnn's, so that one backend's kernels meet each other: masks, statistics, layouts."""
    exact = make(name)
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    stock = copy.deepcopy(exact).to(dtype).to(memory_format=memory_format)
    ours = fastnn.fuse(fastnn.convert(stock, copy=True), recompute=recompute).to(backend.device)
    assert any(fused_texts(ours).values())
    exact.load_state_dict(stock.state_dict())
    x = image(dtype).to(memory_format=memory_format)
    for _ in range(2):
        expected = flat(step(exact, x.double()))
        result = flat(step(ours, x.to(backend.device))).cpu()
        error = (result - expected).norm() / expected.norm()
        assert error <= {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.3}[dtype]
    for key, ours_value in ours.state_dict().items():
        want = exact.state_dict()[key]
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
        torch.testing.assert_close(ours_value.cpu().to(want), want, rtol=tolerance, atol=tolerance)


def flat(result: tuple[Tensor, Tensor, dict[str, Tensor]]) -> Tensor:
    y, grad, grads = result
    return torch.cat([tensor.double().flatten() for tensor in (y, grad, *grads.values())])


@pytest.mark.parametrize("name", ["bottlenecks", "a long row", "leaky-elu", "silu", "gelu"])
def test_recomputing_gives_the_same_bits(name: str):
    model = fastnn.convert(make(name).float())  # fastnn's batch norms also where they stand alone
    kept = fastnn.fuse(model, recompute=False, copy=True)
    x = image(torch.float32)
    torch.testing.assert_close(step(fastnn.fuse(model), x), step(kept, x), rtol=0, atol=0)


def test_the_parts_are_computed_by_the_fused_functions(monkeypatch: pytest.MonkeyPatch):
    model = fastnn.fuse(make("bottlenecks"), recompute=False)
    single, with_add = calls_of(monkeypatch, "batch_norm_relu"), calls_of(monkeypatch, "batch_norm_add_relu")
    model(image())
    assert (len(single), len(with_add)) == (6, 3)


def test_double_backward():
    stock = make("basic blocks")
    ours = fastnn.fuse(stock, copy=True)

    def penalty(model: nn.Module) -> dict[str, Tensor]:
        model.zero_grad()
        x = image().requires_grad_()
        (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        grad.square().sum().backward()
        return {name: p.grad for name, p in model.named_parameters()}

    torch.testing.assert_close(penalty(ours), penalty(stock))


def test_backward_may_be_run_twice_and_in_parts():
    stock = make("bottlenecks")
    ours = fastnn.fuse(stock, copy=True)

    def parts(model: nn.Module) -> list[Tensor]:
        x = image().requires_grad_()
        y = model(x).square().sum()
        parameters = list(model.parameters())
        found = [*torch.autograd.grad(y, parameters[:3], retain_graph=True)]
        found += torch.autograd.grad(y, parameters[-3:], retain_graph=True)
        found += torch.autograd.grad(y, [x, *parameters], retain_graph=True)
        return [*found, *torch.autograd.grad(y, [x, *parameters])]

    for actual, expected in zip(parts(ours), parts(stock), strict=True):
        torch.testing.assert_close(actual, expected)


def test_frozen_parts():
    """Frozen layers save less; a batch norm in evaluation among others in training keeps its statistics."""
    stock = make("basic blocks")
    for p in stock[0].parameters():
        p.requires_grad_(False)
    stock[2].bn2.eval()
    ours = fastnn.fuse(stock, copy=True)
    torch.testing.assert_close(step(ours), step(stock))
    torch.testing.assert_close(ours.state_dict(), stock.state_dict())
    assert not ours[2].bn2.training


# ---- the object stays what it is ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_everything_but_classes_stays_and_unfuse_brings_them_back(name: str):
    model = make(name)
    before = [(module, type(module), vars(module).copy()) for module in model.modules()]
    state = model.state_dict()
    assert fastnn.fuse(model) is model
    assert name == "shared norm" or classes(model) != [cls for _, cls, _ in before]
    assert fastnn.unfuse(model) is model
    for module, (same, cls, attributes) in zip(model.modules(), before, strict=True):
        assert module is same
        assert type(module) is cls
        assert vars(module).keys() == attributes.keys()
        assert all(vars(module)[key] is value for key, value in attributes.items())
    after = model.state_dict()
    assert list(after) == list(state)
    assert after._metadata == state._metadata


def test_a_fused_model_has_the_same_names_and_states():
    stock, model = make("bottlenecks"), fastnn.fuse(make("bottlenecks"))
    assert [name for name, _ in model.named_modules()] == [name for name, _ in stock.named_modules()]
    assert list(model.state_dict()) == list(stock.state_dict())
    assert all(isinstance(m, type(s)) for m, s in zip(model.modules(), stock.modules(), strict=True))
    model.load_state_dict(stock.state_dict())
    assert [vars(m).keys() for m in model.modules()] == [vars(m).keys() for m in stock.modules()]


def test_fusing_twice_is_fusing_once():
    model = fastnn.fuse(make("bottlenecks"))
    before = classes(model)
    assert classes(fastnn.fuse(model)) == before
    fastnn.fuse(model, recompute=False)
    assert not fastnn.fusion_report(model).recomputes
    fastnn.unfuse(fastnn.unfuse(model))
    assert classes(model) == classes(make("bottlenecks"))


def test_a_copy_leaves_the_model_alone():
    model = make("bottlenecks")
    before = classes(model)
    fused = fastnn.fuse(model, copy=True)
    assert classes(model) == before
    assert classes(fused) != before
    assert classes(fastnn.unfuse(fused, copy=True)) == before
    assert classes(fused) != before


def test_equal_blocks_share_a_class():
    model = fastnn.fuse(make("a long row"))
    assert len({type(block) for block in model}) == 1


@pytest.mark.parametrize("function", [fastnn.fuse, fastnn.unfuse, fastnn.fusion_report])
def test_something_else_than_a_module_is_refused(function: Callable):
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got list"):
        function([nn.BatchNorm2d(1)])


@pytest.mark.parametrize("name", ["bottlenecks", "branching", "functional"])
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_fused_and_compute_by_themselves(name: str, how: str, monkeypatch: pytest.MonkeyPatch):
    model = fastnn.fuse(make(name))
    if how == "deepcopy":
        clone = copy.deepcopy(model)
    elif how == "pickle":
        clone = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        clone = torch.load(buffer, weights_only=False)
    assert classes(clone) == classes(model)
    assert fused_texts(clone) == fused_texts(model)
    expected = step(model)
    with torch.no_grad():
        for p in model.parameters():  # the clone's are its own
            p.zero_()
    torch.testing.assert_close(step(clone), expected)
    assert classes(fastnn.unfuse(clone)) == classes(make(name))


@pytest.mark.parametrize("order", ["convert first", "fuse first"])
def test_with_convert(order: str):
    stock = make("bottlenecks")
    ours = copy.deepcopy(stock)
    for function in (fastnn.convert, fastnn.fuse) if order == "convert first" else (fastnn.fuse, fastnn.convert):
        function(ours)
    assert type(ours[0].branch[3]) is fastnn.nn.BatchNorm2d
    assert fastnn.fusion_report(ours).fused == 10
    torch.testing.assert_close(step(ours), step(stock))
    torch.testing.assert_close(step(ours.eval()), step(stock.eval()))
    with torch.no_grad():
        torch.testing.assert_close(ours(image()), stock(image()))
    fastnn.revert(fastnn.unfuse(ours))
    assert classes(ours) == classes(stock)


# ---- what is changed after fusing is followed ---------------------------------------------------------------


def test_dropout_follows_the_mode():
    stock = make("functional")
    ours = fastnn.fuse(stock, copy=True)
    outputs = []
    for training in (True, False, True):
        stock.train(training)
        ours.train(training)
        actual = step(ours)
        torch.testing.assert_close(actual, step(stock))
        outputs.append(actual[0])
    assert not torch.allclose(outputs[0], outputs[1])  # or there was no dropout


def test_settings_of_layers_are_read_at_each_call():
    stock = make("leaky-elu")
    ours = fastnn.fuse(stock, copy=True)
    for model in (stock, ours):
        model[1].eps, model[1].momentum, model[2].negative_slope, model[5].alpha = 0.3, 0.7, 0.5, 0.2
    torch.testing.assert_close(step(ours), step(stock))
    torch.testing.assert_close(ours.state_dict(), stock.state_dict())


def test_an_average_over_batches_that_nobody_counts():
    models = make("sequential"), fastnn.fuse(make("sequential"), recompute=False)
    for model in models:
        model[1].momentum = model[1].num_batches_tracked = None
        step(model)
    torch.testing.assert_close(models[1].state_dict(), models[0].state_dict())


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_hooks_registered_later_fire(layer: int):
    """And see what they would have seen."""
    models = make("sequential"), fastnn.fuse(make("sequential"))
    seen: list[list[Tensor]] = []
    for model in models:
        seen.append([])
        model[layer].register_forward_hook(lambda _, args, y, s=seen[-1]: s.extend([args[0].clone(), y.clone()]))
        model[layer].register_full_backward_hook(lambda _, i, o, s=seen[-1]: s.extend(i + o))
        step(model)
    assert len(seen[0]) == 4
    torch.testing.assert_close(seen[1], seen[0])


def test_hooks_of_containers_fire_even_of_those_taken_into_another_s_graph():
    models = make("bottlenecks"), fastnn.fuse(make("bottlenecks"))
    counts = []
    for model in models:
        calls: list[str] = []
        for name, module in model.named_modules():
            if isinstance(module, nn.Sequential | Residual):
                module.register_forward_hook(lambda *_, name=name, calls=calls: calls.append(name))
        step(model)
        counts.append(calls)
    assert counts[0] == counts[1]
    assert "0.branch" in counts[1]


@pytest.mark.parametrize("hooked", ["0", "1", "2"])
def test_a_layer_with_hooks_is_left_alone(hooked: str):
    model = make("sequential")
    calls: list[int] = []
    model.get_submodule(hooked).register_forward_pre_hook(lambda *_: calls.append(1))
    row = next(iter(fastnn.fusion_report(fastnn.fuse(model))))
    expected = {"0": "batch_norm + relu", "1": "", "2": "conv folded in evaluation"}
    assert row.fused == expected[hooked]
    assert "hooks" in row.reason or hooked == "0"
    model(image())
    assert calls == [1]


def test_layers_replaced_later_are_called():
    for change in (
        lambda m: m.__setitem__(2, nn.Sigmoid()),
        lambda m: m.__setitem__(1, nn.InstanceNorm2d(C)),
        lambda m: m.__setitem__(0, nn.Conv2d(C, C, 5, padding=2).double()),
        lambda m: m.insert(2, nn.Tanh()),
        lambda m: m.append(nn.Softmax(1)),
        lambda m: m.pop(2),
    ):
        stock = make("sequential")
        ours = fastnn.fuse(stock, copy=True)
        for model in (stock, ours):
            torch.manual_seed(3)
            change(model)
        torch.testing.assert_close(step(ours), step(stock))
        torch.testing.assert_close(step(ours.eval()), step(stock.eval()))


def test_a_part_of_a_fused_sequential_is_that_part():
    stock = make("sequential")
    ours = fastnn.fuse(stock, copy=True)
    torch.testing.assert_close(ours[:2](image()), stock[:2](image()))
    torch.testing.assert_close(ours[3:6](image()), stock[3:6](image()))


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(C)

    def forward(self, x: Tensor, residual: Tensor | None = None, *, negate: bool = False) -> Tensor:
        y = self.norm(x)
        if residual is not None:
            y = y + residual
        return -F.relu(y) if negate else F.relu(y)


def test_arguments_with_defaults_keep_their_meaning():
    stock = Optional().double()
    ours = fastnn.fuse(stock, copy=True)
    assert fused_texts(ours) == {"norm": "batch_norm + relu"}
    x, r = image(), image().flip(0)
    for args, kwargs in [((x,), {}), ((x, r), {}), ((), {"x": x}), ((x,), {"negate": True}), ((x,), {"residual": r})]:
        torch.testing.assert_close(ours(*args, **kwargs), stock(*args, **kwargs))
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        ours()


def test_an_addition_in_place_keeps_the_type():
    """Of a residual of another type, which is added after the batch norm."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(C)

        def forward(self, x: Tensor, residual: Tensor) -> Tensor:
            y = self.norm(x)
            y += residual
            return F.relu(y)

    stock = Mixed()
    for model in (stock, fastnn.fuse(stock, copy=True)):
        y = model(image(torch.float32), image())
        assert y.dtype == torch.float32
        with pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
            model(image(torch.float32), image()[None].repeat(2, 1, 1, 1, 1))


# ---- folding into convolutions ------------------------------------------------------------------------------


def evaluate(model: nn.Module) -> Tensor:
    """Without a call of eval(), which has everything folded anew."""
    assert not model.training
    with torch.no_grad():
        return model(image())


def test_the_activation_after_a_folded_batch_norm_is_the_convolution_s(monkeypatch: pytest.MonkeyPatch):
    stock = make("sequential").eval()
    ours = fastnn.fuse(fastnn.convert(copy.deepcopy(stock)))
    calls = calls_of(monkeypatch, "conv2d_relu")
    torch.testing.assert_close(evaluate(ours), evaluate(stock))
    assert calls


def test_a_folded_batch_norm_is_not_computed(monkeypatch: pytest.MonkeyPatch):
    ours = fastnn.fuse(make("sequential")).eval()
    calls = calls_of(monkeypatch, "batch_norm_relu")
    monkeypatch.setattr(torch.nn.functional, "batch_norm", None)
    stored = copy.deepcopy(ours.state_dict())
    evaluate(ours)
    assert not calls
    torch.testing.assert_close(ours.state_dict(), stored, rtol=0, atol=0)


def test_folded_weights_are_made_once(monkeypatch: pytest.MonkeyPatch):
    ours = fastnn.fuse(make("sequential"))
    made = []
    fold = _fused._fold
    monkeypatch.setattr(_fused, "_fold", lambda *a: made.append(1) or fold(*a))
    ours.eval()
    with torch.no_grad():
        for _ in range(3):
            ours(image())
    assert len(made) == 2


SOURCES = ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "how", ["in place", "load_state_dict", "data", "another tensor", "another of the same memory", "through .data"]
)
def test_folding_follows_what_it_was_made_of(source: str, how: str):
    stock, ours = make("sequential").eval(), fastnn.fuse(make("sequential")).eval()
    evaluate(ours)
    for model in (stock, ours):
        owner, name = model.get_submodule(source.split(".")[0]), source.split(".")[1]
        tensor = getattr(owner, name)
        new = tensor.detach() * 1.5 + 0.25
        if how == "in place":
            with torch.no_grad():
                tensor.copy_(new)
        elif how == "load_state_dict":
            model.load_state_dict({**model.state_dict(), source: new})
        elif how == "data":
            tensor.data = new
        elif how == "another tensor":
            setattr(owner, name, nn.Parameter(new) if isinstance(tensor, nn.Parameter) else new)
        elif how == "another of the same memory":  # after as many changes as the other has had
            other = tensor.data if not isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.data)
            setattr(owner, name, other)
            with torch.no_grad():
                other.copy_(new)
            while other._version < tensor._version:
                torch.autograd.graph.increment_version(other)
        else:
            tensor.data.copy_(new)  # which torch does not count
            model.eval()
    torch.testing.assert_close(evaluate(ours), evaluate(stock))


def test_folding_follows_eps_training_and_an_optimiser():
    stock, ours = make("sequential").eval(), fastnn.fuse(make("sequential")).eval()
    torch.testing.assert_close(evaluate(ours), evaluate(stock))
    for model in (stock, ours):
        model[1].eps = 0.5
    torch.testing.assert_close(evaluate(ours), evaluate(stock))
    for model in (stock, ours):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step(model)
        optimizer.step()
    torch.testing.assert_close(evaluate(ours), evaluate(stock))
    for model in (stock, ours):
        model.float()
    x = image(torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), stock(x), rtol=1e-4, atol=1e-5)


def test_nothing_is_folded_where_gradients_of_parameters_are_wanted():
    stock, ours = make("sequential").eval(), fastnn.fuse(make("sequential")).eval()
    evaluate(ours)  # folded weights are at hand
    torch.testing.assert_close(step(ours), step(stock))
    for model in (stock, ours):
        model.requires_grad_(False)
    x = image().requires_grad_()
    grads = [torch.autograd.grad(model(x).square().sum(), x)[0] for model in (ours, stock)]
    torch.testing.assert_close(*grads)


def test_weights_folded_in_inference_mode_serve_outside():
    stock, ours = make("sequential").eval().requires_grad_(False), fastnn.fuse(make("sequential")).eval()
    ours.requires_grad_(False)
    with torch.inference_mode():
        torch.testing.assert_close(ours(image()), stock(image()))
    x = image().requires_grad_()
    grads = [torch.autograd.grad(model(x).square().sum(), x)[0] for model in (ours, stock)]
    torch.testing.assert_close(*grads)


def test_a_parametrised_convolution_is_not_folded():
    stock = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(C, C, 3)), nn.BatchNorm2d(C)).double()
    ours = fastnn.fuse(stock, copy=True)
    assert fused_texts(ours) == {"1": "recomputed in backward"}
    torch.testing.assert_close(evaluate(ours.eval()), evaluate(stock.eval()))


def test_folds_die_with_their_model():
    ours = fastnn.fuse(make("sequential")).eval()
    evaluate(ours)
    gc.collect()
    before = len(_fused._folds)
    del ours
    gc.collect()
    assert len(_fused._folds) == before - 2


# ---- memory -------------------------------------------------------------------------------------------------


def training_memory(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """Bytes that a forward keeps for backward, and the peak of a step; gradients of parameters exist before."""
    model(x).sum().backward()
    live, _ = live_and_peak_bytes(lambda: model(x).sum())
    return live, live_and_peak_bytes(lambda: model(x).sum().backward())[1]


def test_resnet50_keeps_at_most_0_65_of_torch_s_activations():
    torch.manual_seed(0)
    stock = resnet50(nn)
    x = torch.randn(2, 3, 64, 64)
    kept, peak = training_memory(stock, x)
    ours_kept, ours_peak = training_memory(fastnn.fuse(stock, copy=True), x)
    assert ours_kept <= 0.65 * kept
    # What backward makes again does not bring back what forward saved. Gradients of weights are in the peak too.
    assert peak - ours_peak >= 0.8 * (kept - ours_kept)


def test_activations_that_no_op_fuses_are_not_kept_either():
    torch.manual_seed(0)
    stock = mobilenet_v2(nn)
    x = torch.randn(2, 3, 64, 64)
    assert training_memory(fastnn.fuse(stock, copy=True), x)[0] <= 0.4 * training_memory(stock, x)[0]


def row(length: int) -> nn.Module:
    return nn.Sequential(*(BasicBlock() for _ in range(length)))


def test_a_long_row_of_blocks_is_not_made_again_all_at_once():
    """The peak of backward grows by what each block keeps, not by its output besides."""
    x = torch.randn(2, C, 32, 32)
    plane = x.numel() * x.element_size()
    memory = {n: training_memory(fastnn.fuse(row(n)), x) for n in (9, 27)}
    for place, per_block in ((0, 2.5), (1, 2.5)):
        assert memory[27][place] - memory[9][place] <= per_block * 18 * plane


def test_each_output_is_made_again_once(monkeypatch: pytest.MonkeyPatch):
    model = fastnn.fuse(make("a long row"))
    made: list[tuple[int, ...]] = []
    original = _fused._Made.value

    def value(self: Any) -> Tensor:
        if self._held is None:
            made.append(id(self))
        return original(self)

    monkeypatch.setattr(_fused._Made, "value", value)
    loss = model(image()).sum()
    loss.backward(retain_graph=True)
    outputs = 2 * len(model)
    assert len(made) == len(set(made)) <= outputs
    loss.backward()
    assert len(made) == 2 * len(set(made))


@pytest.mark.parametrize("name", ["bottlenecks", "silu"])
def test_nothing_is_held_after_backward_and_after_a_forward_without_one(name: str):
    model = fastnn.fuse(make(name))
    x = image()
    before = live_tensors()
    model(x).sum().backward()
    model.zero_grad()
    model(x).sum()
    assert live_tensors() == before


def live_tensors() -> int:
    gc.collect()
    return sum(isinstance(thing, Tensor) for thing in gc.get_objects())


def test_what_backward_is_done_with_is_let_go_at_once():
    model = fastnn.fuse(make("a long row"))
    seen: list[int] = []
    model[0].register_forward_hook(
        lambda _, args, y: y.register_hook(lambda grad: seen.append(live_tensors())) and None
    )
    loss = model(image()).sum()
    before = live_tensors()
    loss.backward()
    model.zero_grad()
    after = live_tensors()
    assert seen[0] - after < 0.2 * (before - after)


def test_an_output_written_to_after_it_was_saved_is_made_again_as_it_was():
    model = fastnn.fuse(nn.Sequential(nn.BatchNorm2d(C), nn.ReLU()).double())
    scale = nn.Parameter(torch.full((C, 1, 1), 2.0, dtype=torch.float64))

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.relu, self.scale = nn.BatchNorm2d(C), nn.ReLU(), scale

        def forward(self, x: Tensor) -> Tensor:
            y = self.relu(self.norm(x))
            z = y * self.scale
            y.mul_(0)
            return z + y

    stock = Scaled().double()
    y = stock.relu(stock.norm(image()))
    fastnn.fuse(stock)(image()).sum().backward()
    torch.testing.assert_close(scale.grad, y.sum((0, 2, 3)).view(C, 1, 1))
    del model


def test_an_output_written_to_before_it_is_saved_is_saved_as_it_is():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(C), nn.Conv2d(C, C, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            y.mul_(2)
            return self.conv(y)

    torch.manual_seed(0)
    stock = Scaled().double()
    torch.testing.assert_close(step(fastnn.fuse(stock, copy=True)), step(stock))


def test_a_view_of_an_output_is_made_again():
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.BatchNorm2d(C), nn.Linear(C * 20 * 30, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(F.relu(self.norm(x)).flatten(1)[1:])

    stock = Rows().double()
    ours, kept = fastnn.fuse(stock, copy=True), fastnn.fuse(stock, recompute=False, copy=True)
    x = torch.randn(8, C, 20, 30, dtype=torch.float64)
    torch.testing.assert_close(step(ours, x), step(stock, x))
    assert live_and_peak_bytes(lambda: ours(x))[0] <= live_and_peak_bytes(lambda: kept(x))[0] - 0.9 * x.numel() * 8


@pytest.mark.parametrize("what", ["input", "residual"])
def test_what_an_output_is_made_of_must_not_be_written_to(what: str):
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(C), nn.Conv2d(C, C, 3)

        def forward(self, x: Tensor, residual: Tensor) -> Tensor:
            return self.conv(F.relu(self.norm(x) + residual))

    model = fastnn.fuse(Residual())
    tensors = {"input": torch.randn(IMAGE), "residual": torch.randn(IMAGE)}
    y = model(tensors["input"], tensors["residual"]).sum()
    tensors[what].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_outputs_that_somebody_holds_are_theirs():
    stock = make("basic blocks")
    ours = fastnn.fuse(stock, copy=True)
    held = []
    for model in (stock, ours):
        held.append([])
        model[0].register_forward_hook(lambda _, args, y, h=held[-1]: h.append(y))
        y = model(image())
        (y.sum() + held[-1][0].square().sum()).backward()
    torch.testing.assert_close(held[1][0], held[0][0])
    for (name, p), q in zip(ours.named_parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


# ---- other machinery of torch -------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["bottlenecks", "functional", "leaky-elu", "gelu", "broadcasts"])
def test_compile_has_no_graph_break(name: str, training: bool):
    torch._dynamo.reset()
    stock = make(name).train(training)
    ours = fastnn.fuse(stock, copy=True)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    if name == "functional":
        stock.eval()
        ours.eval()
    torch.testing.assert_close(step(compiled)[:2], step(stock)[:2])
    torch.testing.assert_close(ours.state_dict(), stock.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(compiled(image()), stock(image()))


def test_torch_func():
    stock = make("basic blocks").eval()
    ours = fastnn.fuse(stock, copy=True)

    def loss(parameters: dict[str, Tensor], model: nn.Module, x: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (x,)).square().sum()

    parameters = {name: p.detach() * 1.25 for name, p in stock.named_parameters()}
    for transform in (torch.func.grad(loss), torch.func.jacrev(loss)):
        torch.testing.assert_close(transform(parameters, ours, image()), transform(parameters, stock, image()))
    with torch.no_grad():
        stacked = {name: torch.stack([p, p * 2]) for name, p in parameters.items()}
        results = [torch.func.vmap(loss, (0, None, None))(stacked, model, image()) for model in (ours, stock)]
        torch.testing.assert_close(*results)
        assert not any(module in _fused._folds for module in ours.modules())
        # Without a transform: folded from the parameters that are given.
        torch.testing.assert_close(loss(parameters, ours, image()), loss(parameters, stock, image()))


def test_forward_mode():
    stock = make("basic blocks").eval()
    ours = fastnn.fuse(stock, copy=True)
    x, direction = image(), image().flip(0)
    for actual, expected in zip(*(torch.func.jvp(m, (x,), (direction,)) for m in (ours, stock)), strict=True):
        torch.testing.assert_close(actual, expected)


def test_checkpoints_around_and_inside():
    stock = make("basic blocks")
    ours = fastnn.fuse(stock, copy=True)

    class Checkpointed(nn.Module):
        def __init__(self, blocks: nn.Module) -> None:
            super().__init__()
            self.blocks = blocks

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False)
            return x

    expected = step(stock)
    outer = checkpoint(ours, image().requires_grad_(), use_reentrant=False)
    torch.testing.assert_close(outer.detach(), expected[0])
    inside = fastnn.fuse(Checkpointed(copy.deepcopy(fastnn.unfuse(ours))))
    torch.testing.assert_close(step(inside)[:2], expected[:2])


def test_other_people_s_hooks_on_saved_tensors_are_theirs():
    ours = fastnn.fuse(make("basic blocks"))
    packed: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t.detach(), lambda t: t):
        y = ours(image())
    assert len(packed) > 10
    expected = {name: p.clone() for name, p in step(make("basic blocks"))[2].items()}
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    torch.testing.assert_close({name: p.grad for name, p in ours.named_parameters()}, expected)
    with torch.autograd.graph.disable_saved_tensors_hooks("none here"):
        ours(image())


def test_autocast():
    stock = make("bottlenecks").float()
    ours = fastnn.fuse(stock, copy=True)
    x = image(torch.float32)
    for training in (True, False):
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(training):
            actual, expected = ours.train(training)(x), stock.train(training)(x)
        assert actual.dtype == expected.dtype == torch.bfloat16
        assert (actual.double() - expected.double()).norm() <= 0.05 * expected.double().norm()
        if training:
            actual.sum().backward()


def test_exceptions_leave_nothing_behind():
    ours = fastnn.fuse(make("basic blocks"))
    with pytest.raises((RuntimeError, ValueError)):
        ours(torch.randn(2, C + 1, 4, 4, dtype=torch.float64))
    assert _fused._outputs() is None
    x = torch.ones(3, requires_grad=True)
    assert (x * x).grad_fn._saved_self is x


# ---- what cannot be fused, and the report -------------------------------------------------------------------


class Own(nn.Module):
    """A batch norm and a ReLU, and before them what a case wants."""

    def __init__(self, before: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.relu = nn.BatchNorm2d(C), nn.ReLU()
        self.before = [before]

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm(self.before[0](self, x)))


def remembers(self: Any, x: Tensor) -> Tensor:
    self.last = x
    return x


def without_gradient(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return x * 2


def in_bfloat16(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return x.mean((2, 3), keepdim=True) @ x


UNTRACEABLE = {
    "branch": (lambda self, x: x if x.sum() > 0 else -x, "TraceError: symbolically traced variables cannot be used"),
    "constant": (lambda self, x: x + torch.ones(5), "its forward makes tensors of its own"),
    "python random": (lambda self, x: x if random.random() < 0.5 else -x, "its forward draws random numbers by itself"),
    "torch random": (lambda self, x: x * torch.rand(1).item(), "its forward draws random numbers by itself"),
    "assigns": (remembers, "its forward assigns to self.last"),
    "no_grad": (without_gradient, "it switches the gradient or autocast mode"),
    "autocast": (in_bfloat16, "it switches the gradient or autocast mode"),
}


@pytest.mark.parametrize("case", UNTRACEABLE)
def test_a_forward_that_torch_fx_would_get_wrong_is_left_alone(case: str):
    before, reason = UNTRACEABLE[case]
    model = nn.Sequential(Own(before), Own(lambda self, x: x * 2))
    state, generator = vars(model[0]).copy(), torch.get_rng_state()
    fastnn.fuse(model)
    assert type(model[0]) is Own
    assert vars(model[0]) == state
    assert torch.equal(torch.get_rng_state(), generator)
    first, second = fastnn.fusion_report(model)
    assert (first.fused, second.fused) == ("", "batch_norm + relu")
    assert first.reason.startswith("in Own: ")
    assert reason in first.reason


class Final(nn.Sequential):
    def __init_subclass__(cls) -> None:
        raise TypeError("Final is final")


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class StarArguments(nn.Sequential):
    def forward(self, *inputs: Tensor) -> Tensor:
        return super().forward(inputs[0])


class InPlaceIntoOther(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        x += self.norm(x)
        return F.relu(x)


class Adds(nn.Module):
    def __init__(self, add: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.add = nn.BatchNorm2d(C), [add]

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.add[0](self.norm(x), x))


def replaced(model: nn.Module) -> nn.Module:
    model.forward = lambda x: x
    return model


NOT_FUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "own computation": (lambda: nn.Sequential(OwnNorm(C), nn.ReLU()), "OwnNorm has its own computation"),
    "lazy": (lambda: nn.Sequential(nn.LazyBatchNorm2d(), nn.ReLU()), "it does not know its size yet"),
    "another activation": (lambda: nn.Sequential(nn.BatchNorm2d(C), nn.Mish()), "Mish is not fused"),
    "another threshold": (lambda: nn.Sequential(nn.BatchNorm2d(C), nn.Softplus(1.0, 8.0)), "Softplus is not fused"),
    "negative ELU": (lambda: nn.Sequential(nn.BatchNorm2d(C), nn.ELU(-0.5)), "ELU is not fused"),
    "negative ELU, a function": (lambda: Adds(lambda y, x: F.elu(y, -0.5)), "elu is not fused"),
    "a function": (lambda: Adds(lambda y, x: y.sin()), "sin is not fused"),
    "a computed parameter": (lambda: Adds(lambda y, x: F.leaky_relu(y, x.shape[0])), "leaky_relu is not fused"),
    "final": (lambda: Final(nn.BatchNorm2d(C), nn.ReLU()), "Final cannot be subclassed: Final is final"),
    "star arguments": (lambda: StarArguments(nn.BatchNorm2d(C), nn.ReLU()), "its forward takes *inputs"),
    "in place": (InPlaceIntoOther, "the addition writes into its other operand"),
    "a number": (lambda: Adds(lambda y, x: y + 1), "no other tensor is added to it"),
    "itself": (lambda: Adds(lambda y, x: y + y), "no other tensor is added to it"),
    "scaled": (lambda: Adds(lambda y, x: torch.add(y, x, alpha=2)), "the addition has other arguments"),
    "replaced forward": (lambda: replaced(nn.Sequential(nn.BatchNorm2d(C), nn.ReLU())), "its forward is replaced"),
    "graph module": (
        lambda: torch.fx.symbolic_trace(nn.Sequential(nn.BatchNorm2d(C), nn.ReLU())),
        "it is traced already",
    ),
    "SyncBatchNorm": (
        lambda: nn.Sequential(nn.SyncBatchNorm(C), nn.ReLU()),
        "SyncBatchNorm has its own computation",
    ),
    "alone": (lambda: nn.BatchNorm2d(C), "no forward that could be traced calls it"),
    "shared": (SharedNorm, "it is called 2 times"),
    "written between": (WrittenBetween, "something may be written in place before what follows it"),
    "used twice": (
        lambda: Adds(lambda y, x: y.sigmoid() * y),
        "its output is used 2 times",
    ),
}


@pytest.mark.parametrize("case", NOT_FUSED)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_what_is_not_fused_and_why(case: str):
    make_model, reason = NOT_FUSED[case]
    model = make_model()
    before = classes(model)
    (row,) = fastnn.fusion_report(fastnn.fuse(model, recompute=False))
    assert row.fused == ""
    assert reason in row.reason
    assert classes(model) == before


def test_a_lazy_batch_norm_is_fused_once_it_knows_its_size():
    model = fastnn.fuse(nn.Sequential(nn.LazyBatchNorm2d(), nn.ReLU()))
    model(image(torch.float32))
    assert fused_texts(fastnn.fuse(model)) == {"0": "batch_norm + relu"}


def test_the_report_names_every_batch_norm():
    model = nn.Sequential(BasicBlock(downsample=True), PreActivation(), InvertedResidual(), SharedNorm(), Branching())
    before = fastnn.fusion_report(model)
    assert (before.fused, len(before), before.recomputes) == (0, 15, False)
    assert {row.reason for row in before if row.name in ("0.bn1", "1.bn2", "4.blocks.1.bn2")} == {
        "not fused yet: fastnn.fuse(model) fuses it"
    }
    report = fastnn.fusion_report(fastnn.fuse(model, recompute=False))
    assert [(row.name, row.fused) for row in report] == [
        ("0.bn1", "batch_norm + relu, conv folded in evaluation"),
        ("0.bn2", "batch_norm + add + relu"),
        ("0.downsample.1", "conv folded in evaluation"),
        ("1.bn1", "batch_norm + relu"),
        ("1.bn2", "batch_norm + relu, conv folded in evaluation"),
        ("2.conv.0.1", "conv folded in evaluation"),
        ("2.conv.1.1", "conv folded in evaluation"),
        ("2.conv.3", "batch_norm + add"),
        ("3.norm", ""),
        ("4.blocks.0.bn1", "batch_norm + relu, conv folded in evaluation"),
        ("4.blocks.0.bn2", "batch_norm + add + relu"),
        ("4.blocks.1.bn1", "batch_norm + relu, conv folded in evaluation"),
        ("4.blocks.1.bn2", "batch_norm + add + relu"),
        ("4.blocks.1.downsample.1", "conv folded in evaluation"),
        ("4.norm", ""),
    ]
    assert {row.class_name for row in report} == {"BatchNorm2d"}
    assert reasons(model)["2.conv.0.1"] == "ReLU6 is not fused"
    assert "TraceError" in reasons(model)["4.norm"]


def convolution_rows(model: nn.Module) -> dict[str, str]:
    return {row.name: row.fused for row in fastnn.fusion_report(model) if row.class_name == "Conv2d"}


def test_activated_convolutions():
    want = {
        "features.0": "conv + relu",
        "features.2": "conv + gelu",
        "conv1": "conv + silu",
        "conv2": "conv + sigmoid",
        "conv3": "conv + leaky_relu",
    }
    model = fastnn.fuse(Convolutions())
    assert convolution_rows(model) == want
    assert set(reasons(model).values()) == {"not before fastnn.convert makes it fastnn's"}
    fastnn.convert(model)
    assert convolution_rows(model) == want
    assert set(reasons(model).values()) == {""}
    fastnn.unfuse(model)
    assert set(convolution_rows(model).values()) == {""}


def test_layers_that_are_fused_by_themselves_are_left_alone_and_reported():
    model = nn.Sequential(fastnn.nn.ConvBNAct2d(C, C, 3, activation="silu"), nn.Conv2d(C, C, 1), nn.ReLU())
    before = type(model[0])
    assert fused_texts(fastnn.fuse(model)) == {
        "0.bn": "batch_norm + silu, conv folded in evaluation",
        "1": "conv + relu",
    }
    assert type(model[0]) is before
    model.eval()
    with torch.no_grad():
        first = model(image(torch.float32))
        model[0].bn.weight.data.mul_(2)
        model.eval()
        assert not torch.equal(model(image(torch.float32)), first)


def test_what_of_convolutions_is_not_fused():
    models = {
        "it has hooks": nn.Sequential(nn.Conv2d(C, C, 1), nn.ReLU()),
        "it is called 2 times": SharedConvolution(),
        "something may be written in place before what follows it": ConvolutionWrittenBetween(),
    }
    models["it has hooks"][0].register_forward_hook(lambda *_: None)
    for reason, model in models.items():
        (row,) = fastnn.fusion_report(fastnn.fuse(model, recompute=False))
        assert (row.fused, row.reason) == ("", reason)
    for other in (nn.Conv2d(C, C, 1), nn.LeakyReLU(-0.5)), (nn.ConvTranspose2d(C, C, 1), nn.Mish()):
        assert len(fastnn.fusion_report(fastnn.fuse(nn.Sequential(*other)))) == 0


def test_an_activated_convolution_is_one_op():
    model = fastnn.convert(fastnn.fuse(nn.Sequential(nn.Conv2d(C, C, 3), nn.ReLU())))
    x = image(torch.float32)
    y = model(x)
    assert y.grad_fn.name() == "FastnnConvolutionBackward"
    model[1] = nn.SiLU()
    assert model(x).grad_fn.name() == "FastnnActivationBackward"
    model[1] = nn.Mish()
    assert "Mish" in model(x).grad_fn.name()
    model[1] = nn.ReLU()
    model[1].register_forward_hook(lambda *_: None)
    assert "Relu" in model(x).grad_fn.name()


def test_the_report_prints_as_a_table():
    text = str(fastnn.fusion_report(fastnn.fuse(nn.Sequential(nn.BatchNorm2d(C), nn.ReLU(), nn.BatchNorm2d(C)))))
    assert text.splitlines() == [
        "layer  class        fused                   why not more",
        "-----  -----------  ----------------------  ----------------------",
        "0      BatchNorm2d  batch_norm + relu",
        "2      BatchNorm2d  recomputed in backward  its output is returned",
        "2 of 2 batch norms and activated convolutions are fused; their outputs are made again in backward",
    ]


def test_rich_draws_the_report():
    console = rich.console.Console(width=120, record=True, file=io.StringIO())
    console.print(fastnn.fusion_report(fastnn.fuse(nn.Sequential(nn.BatchNorm2d(C), nn.ReLU()))))
    text = console.export_text()
    assert "batch_norm + relu" in text
    assert "1 of 1 batch norms and activated convolutions are fused" in text
