"""convert, revert and conversion_report: what changes (the class), and everything that must not."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import rich.console
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import fastnn

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Conv2d": lambda: nn.Conv2d(3, 4, 3, padding=1),
    "Conv1d": lambda: nn.Conv1d(3, 4, 3, padding=1),
    "Conv3d": lambda: nn.Conv3d(3, 4, 3, padding=1),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(3, 4, 3, stride=2),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(3, 4, 3, stride=2),
    "ConvTranspose3d": lambda: nn.ConvTranspose3d(3, 4, 3, stride=2),
    "MaxPool2d": lambda: nn.MaxPool2d(2),
    **{f"MaxPool{r}d": (lambda r=r: getattr(nn, f"MaxPool{r}d")(2)) for r in (1, 3)},
    **{f"MaxUnpool{r}d": (lambda r=r: getattr(nn, f"MaxUnpool{r}d")(2)) for r in (1, 2, 3)},
    **{f"AvgPool{r}d": (lambda r=r: getattr(nn, f"AvgPool{r}d")(2)) for r in (1, 2, 3)},
    **{f"LPPool{r}d": (lambda r=r: getattr(nn, f"LPPool{r}d")(2, 2)) for r in (1, 2, 3)},
    **{f"AdaptiveAvgPool{r}d": (lambda r=r: getattr(nn, f"AdaptiveAvgPool{r}d")(2)) for r in (1, 2, 3)},
    **{f"AdaptiveMaxPool{r}d": (lambda r=r: getattr(nn, f"AdaptiveMaxPool{r}d")(3)) for r in (1, 2, 3)},
    **{f"FractionalMaxPool{r}d": (lambda r=r: getattr(nn, f"FractionalMaxPool{r}d")(2, 2)) for r in (2, 3)},
    "BatchNorm1d": lambda: nn.BatchNorm1d(3),
    "BatchNorm2d": lambda: nn.BatchNorm2d(3),
    "BatchNorm3d": lambda: nn.BatchNorm3d(3),
    "LSTM": lambda: nn.LSTM(3, 5),
    "LSTMCell": lambda: nn.LSTMCell(3, 5),
    "GRU": lambda: nn.GRU(3, 5),
    "GRUCell": lambda: nn.GRUCell(3, 5),
    "RNN": lambda: nn.RNN(3, 5, nonlinearity="relu"),
    "RNNCell": lambda: nn.RNNCell(3, 5),
    "LazyConv1d": lambda: nn.LazyConv1d(4, 3),
    "LazyConv2d": lambda: nn.LazyConv2d(4, 3),
    "LazyConv3d": lambda: nn.LazyConv3d(4, 3),
    "LazyConvTranspose1d": lambda: nn.LazyConvTranspose1d(4, 3),
    "LazyConvTranspose2d": lambda: nn.LazyConvTranspose2d(4, 3),
    "LazyConvTranspose3d": lambda: nn.LazyConvTranspose3d(4, 3),
    "LazyBatchNorm1d": lambda: nn.LazyBatchNorm1d(),
    "LazyBatchNorm2d": lambda: nn.LazyBatchNorm2d(),
    "LazyBatchNorm3d": lambda: nn.LazyBatchNorm3d(),
}
INPUT_SIZES = {
    "Conv2d": (2, 3, 6, 7),
    "Conv1d": (2, 3, 7),
    "Conv3d": (2, 3, 2, 6, 7),
    "ConvTranspose1d": (2, 3, 7),
    "ConvTranspose2d": (2, 3, 6, 7),
    "ConvTranspose3d": (2, 3, 2, 3, 4),
    "MaxPool2d": (2, 3, 6, 7),
    **{
        f"{name}{rank}d": (2, 3, 4, 6, 7)[: 2 + rank]
        for name in ("MaxPool", "AvgPool", "LPPool", "AdaptiveAvgPool", "AdaptiveMaxPool")
        for rank in (1, 2, 3)
    },
    "BatchNorm1d": (4, 3),
    "BatchNorm2d": (2, 3, 6, 7),
    "BatchNorm3d": (2, 3, 2, 3, 4),
    "LSTM": (4, 2, 3),
    "LSTMCell": (2, 3),
    "GRU": (4, 2, 3),
    "GRUCell": (2, 3),
    "RNN": (4, 2, 3),
    "RNNCell": (2, 3),
}


class Small(nn.Module):
    """A layer of each kind, in containers, with a name used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.ModuleList([nn.Conv2d(8, 8, 3, padding="same", groups=2) for _ in range(2)])
        self.pool = nn.MaxPool2d(2)
        self.cell = nn.LSTMCell(8 * 4 * 4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        h, _ = self.cell(self.pool(x).flatten(1))
        return self.head(self.norm(h))


class Standardized(nn.Conv2d):
    """Its own computation: a zero-mean filter."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class OwnConvForward(nn.Conv2d):
    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return super()._conv_forward(x, weight * 2, bias)


class Conv3x3(nn.Conv2d):
    """Inherits torch's computation; its constructor takes other arguments."""

    def __init__(self, channels: int, tag: str = "t") -> None:
        super().__init__(channels, channels, 3, padding=1)
        self.tag = tag


class AnyRankBatchNorm(nn.BatchNorm2d):
    """Inherits torch's computation, with a check of its own."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() == 4:
            raise ValueError("no images here")


class Final(nn.Conv2d):
    def __init_subclass__(cls) -> None:
        raise TypeError("Final is final")


class SlottedConv(nn.Conv2d):
    __slots__ = ("extra",)


class OwnReduce(nn.MaxPool2d):
    def __reduce__(self):
        return OwnReduce, (self.kernel_size,)


def classes(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return LAYERS[name]()


def gradients(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return y.detach(), {name: p.grad for name, p in model.named_parameters()}


# ---- what becomes of a layer --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_keeps_everything_but_its_class(name: str):
    layer = make(name).eval()
    layer.note = object()
    before = dict(vars(layer))
    state = layer.state_dict()
    assert fastnn.convert(layer) is layer
    assert type(layer) is getattr(fastnn.nn, name)
    assert vars(layer).keys() == before.keys()
    assert all(vars(layer)[key] is before[key] for key in before)
    assert not layer.training
    after = layer.state_dict()
    assert list(after) == list(state)
    assert after._metadata == state._metadata
    assert fastnn.revert(layer) is layer
    assert type(layer) is getattr(nn, name)


@pytest.mark.parametrize("name", INPUT_SIZES)
def test_each_layer_computes_as_before(name: str):
    stock = make(name).double()
    ours = fastnn.convert(stock, copy=True)
    x = torch.randn(INPUT_SIZES[name], dtype=torch.float64)
    expected, actual = stock(x), ours(x)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(ours.state_dict(), stock.state_dict())


def test_a_model_gives_the_same_outputs_and_gradients():
    torch.manual_seed(0)
    stock = Small().double()
    ours = fastnn.convert(stock, copy=True)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    for _ in range(2):
        expected, actual = gradients(stock, x), gradients(ours, x)
        torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(ours.state_dict(), stock.state_dict())
    torch.testing.assert_close(ours.eval()(x), stock.eval()(x))


def test_convert_is_in_place_and_an_optimiser_made_before_still_trains_the_model():
    torch.manual_seed(0)
    model = Small()
    modules, parameters = list(model.modules()), list(model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    assert fastnn.convert(model) is model
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    before = copy.deepcopy(model.state_dict())
    gradients(model, torch.randn(4, 3, 8, 8))
    optimizer.step()
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert set(dict(model.named_parameters())) <= set(moved)
    fastnn.revert(model)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


def test_a_copy_leaves_the_model_alone():
    model = Small()
    before = classes(model)
    converted = fastnn.convert(model, copy=True)
    assert classes(model) == before
    assert converted is not model
    assert not {id(p) for p in model.parameters()} & {id(p) for p in converted.parameters()}
    reverted = fastnn.revert(converted, copy=True)
    assert classes(reverted) == before
    assert type(converted.pool) is fastnn.nn.MaxPool2d


def test_converting_twice_is_converting_once():
    model = fastnn.convert(nn.Sequential(Small(), Conv3x3(3)))
    before = classes(model)
    assert classes(fastnn.convert(model)) == before


def test_revert_undoes_convert_and_does_nothing_twice():
    model = nn.Sequential(Small(), Conv3x3(3), Standardized(3, 3, 3))
    before = classes(model)
    fastnn.convert(model)
    assert classes(model) != before
    assert classes(fastnn.revert(model)) == before
    assert classes(fastnn.revert(model)) == before


def test_revert_takes_models_built_from_fastnn():
    class Mine(fastnn.nn.Conv2d):
        pass

    model = nn.Sequential(fastnn.nn.Conv2d(3, 4, 3), fastnn.nn.BatchNorm2d(4), fastnn.nn.MaxPool2d(2), Mine(4, 4, 1))
    weight = model[0].weight
    x = torch.randn(2, 3, 8, 8)
    expected = model.eval()(x)
    fastnn.revert(model)
    assert classes(model)[1:] == [nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, Mine]
    assert model[0].weight is weight
    torch.testing.assert_close(model(x), expected)


def test_torch_nn_is_never_mutated():
    def snapshot() -> dict[str, dict]:
        touched = [nn, nn.functional, nn.modules, nn.utils, *(getattr(nn, name) for name in LAYERS)]
        return {repr(thing): dict(vars(thing)) for thing in touched}

    before = snapshot()
    model = nn.Sequential(Small(), parametrizations.weight_norm(nn.Conv2d(3, 3, 1)), Conv3x3(3))
    fastnn.revert(fastnn.convert(model))
    after = snapshot()
    assert before.keys() == after.keys()
    for thing, names in before.items():
        assert names.keys() == after[thing].keys()
        assert all(after[thing][name] is value for name, value in names.items()), thing


@pytest.mark.parametrize("function", [fastnn.convert, fastnn.revert, fastnn.conversion_report])
def test_something_else_than_a_module_is_refused(function: Callable):
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got list"):
        function([nn.Conv2d(1, 1, 1)])


# ---- hooks, sharing, lazy layers ----------------------------------------------------------------------------


def test_hooks_stay_and_fire():
    layer = nn.Conv2d(3, 4, 3)
    seen: list[str] = []
    layer.register_forward_pre_hook(lambda *_: seen.append("before"))
    layer.register_forward_hook(lambda *_: seen.append("after"))
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    fastnn.convert(layer)(torch.randn(1, 3, 5, 5, requires_grad=True)).sum().backward()
    assert seen == ["before", "after", "backward"]


def test_tied_weights_and_layers_used_twice_stay_tied():
    shared = nn.Conv2d(4, 4, 3, padding=1)
    tied = nn.Conv2d(4, 4, 3, padding=1)
    tied.weight = shared.weight
    model = fastnn.convert(nn.Sequential(shared, tied, shared))
    assert model[0] is model[2]
    assert model[1].weight is model[0].weight
    assert len(list(model.parameters())) == 3
    clone = copy.deepcopy(model)
    assert clone[0] is clone[2]
    assert clone[1].weight is clone[0].weight


@pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith("Lazy")])
def test_a_lazy_layer_becomes_fastnn_s_at_its_first_input(name: str):
    x = torch.randn({"1": (2, 3, 6), "2": (2, 3, 6, 7), "3": (2, 3, 4, 5, 6)}[name[-2]])
    for layer in (
        fastnn.convert(LAYERS[name]()),
        getattr(fastnn.nn, name)(*([4, 3] if "Conv" in name else [])),
    ):
        y = layer(x)
        assert type(layer) is getattr(fastnn.nn, name.removeprefix("Lazy"))
        stock = fastnn.revert(layer, copy=True)
        assert type(stock) is getattr(nn, name.removeprefix("Lazy"))
        torch.testing.assert_close(stock(x), y, rtol=1e-4, atol=1e-5)


# ---- parametrisations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("apply", [parametrizations.weight_norm, parametrizations.spectral_norm])
@pytest.mark.parametrize("order", ["parametrize first", "convert first"])
def test_parametrized_layers(apply: Callable, order: str):
    torch.manual_seed(0)
    stock = apply(nn.Conv2d(3, 4, 3)).eval()
    ours = copy.deepcopy(stock)
    if order == "parametrize first":
        fastnn.convert(ours)
    else:
        ours = apply(fastnn.convert(nn.Conv2d(3, 4, 3))).eval()
        ours.load_state_dict(stock.state_dict())
    assert isinstance(ours, fastnn.nn.Conv2d)
    assert parametrize.is_parametrized(ours, "weight")
    assert type(ours).__name__ == "ParametrizedConv2d"
    assert list(ours.state_dict()) == list(stock.state_dict())
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(gradients(ours, x), gradients(stock, x), rtol=1e-4, atol=1e-5)

    assert isinstance(copy.deepcopy(ours), fastnn.nn.Conv2d)
    back = fastnn.revert(ours, copy=True)
    assert not isinstance(back, fastnn.nn.Conv2d)
    assert isinstance(back, nn.Conv2d)
    parametrize.remove_parametrizations(ours, "weight")
    parametrize.remove_parametrizations(back, "weight")
    assert (type(ours), type(back)) == (fastnn.nn.Conv2d, nn.Conv2d)
    torch.testing.assert_close(ours(x), stock(x), rtol=1e-4, atol=1e-5)
    assert type(stock).__mro__[1] is nn.Conv2d  # the class of the one that was copied is as it was


@pytest.mark.parametrize("apply", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_parametrisation_by_hooks(apply: Callable):
    torch.manual_seed(0)
    stock = apply(nn.Conv2d(3, 4, 3)).eval()
    x = torch.randn(2, 3, 6, 6)
    expected = gradients(stock, x)
    torch.testing.assert_close(gradients(fastnn.convert(stock), x), expected, rtol=1e-4, atol=1e-5)
    assert type(stock) is fastnn.nn.Conv2d


def test_pruned_layers():
    layer = prune.l1_unstructured(nn.Conv2d(3, 4, 3), "weight", amount=0.5)
    x = torch.randn(2, 3, 6, 6)
    expected = layer(x)
    torch.testing.assert_close(fastnn.convert(layer)(x), expected, rtol=1e-4, atol=1e-5)
    assert list(layer.state_dict()) == ["bias", "weight_orig", "weight_mask"]


# ---- subclasses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: Standardized(3, 3, 3), "has its own computation, Standardized.forward"),
        (lambda: OwnConvForward(3, 3, 3), "has its own computation, OwnConvForward._conv_forward"),
        (lambda: Final(3, 3, 3), "Final cannot be subclassed: Final is final"),
        (lambda: nn.Conv2d(3, 3, 3, dtype=torch.complex64), "weight is torch.complex64"),
        (lambda: nn.LayerNorm(3), "fastnn does not implement LayerNorm"),
        (lambda: nn.Bilinear(3, 4, 5), "fastnn does not implement Bilinear"),
        (lambda: nn.Bilinear(3, 3, 3), "fastnn does not implement Bilinear"),
        (lambda: torch.ao.nn.quantized.Conv2d(3, 3, 3), "fastnn does not implement Conv2d"),
        (
            lambda: torch.ao.nn.qat.Conv2d(3, 3, 3, qconfig=torch.ao.quantization.default_qconfig),
            "own computation",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_what_is_left_alone_and_why(layer: Callable[[], nn.Module], reason: str):
    model = nn.Sequential(layer())
    before = type(model[0])
    row = next(iter(fastnn.conversion_report(fastnn.convert(model))))
    assert type(model[0]) is before
    assert not row.replaced
    assert reason in row.reason


def test_a_layer_whose_forward_was_replaced_is_left_alone():
    layer = nn.Conv2d(3, 3, 3)
    layer.forward = lambda x: x
    assert type(fastnn.convert(layer)) is nn.Conv2d
    (row,) = fastnn.conversion_report(layer)
    assert row.reason == "forward is replaced on this object"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_model_is_left_alone():
    model = nn.Sequential(torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 3))), nn.MaxPool2d(2))
    report = fastnn.conversion_report(fastnn.convert(model))
    assert [(row.replaced, row.reason) for row in report] == [(False, "compiled by TorchScript"), (True, "")]


def test_a_subclass_that_inherits_the_computation_is_converted(monkeypatch: pytest.MonkeyPatch):
    layer = Conv3x3(3, tag="mine")
    other = Conv3x3(3)
    x = torch.randn(2, 3, 6, 6)
    expected = layer(x)
    fastnn.convert(nn.Sequential(layer, other))
    assert isinstance(layer, Conv3x3)
    assert isinstance(layer, fastnn.nn.Conv2d)
    assert type(layer) is type(other)
    assert (type(layer).__name__, layer.tag) == ("Conv3x3", "mine")
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)

    called = []
    conv2d = fastnn.functional.conv2d
    monkeypatch.setattr(fastnn.functional, "conv2d", lambda *a: called.append(1) or conv2d(*a))
    layer(x)
    assert called, "the subclass computes with torch's layer"
    fastnn.revert(layer)
    assert type(layer) is Conv3x3


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_converted_subclass_can_be_copied_and_pickled(protocol: int):
    layer = fastnn.convert(Conv3x3(3, tag="mine"))
    for clone in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer, protocol))):
        assert type(clone) is type(layer)
        assert clone.tag == "mine"
        torch.testing.assert_close(clone.state_dict(), layer.state_dict())
        assert type(fastnn.revert(clone)) is Conv3x3
    assert type(layer) is not Conv3x3


def test_a_subclass_with_its_own_pickling_keeps_it():
    layer = fastnn.convert(OwnReduce(2))
    assert isinstance(layer, fastnn.nn.MaxPool2d)
    assert type(pickle.loads(pickle.dumps(layer))) is OwnReduce


def test_a_subclass_with_slots():
    layer = SlottedConv(3, 3, 1)
    layer.extra = 7
    fastnn.convert(layer)
    assert isinstance(layer, fastnn.nn.Conv2d)
    assert layer.extra == 7
    assert type(fastnn.revert(layer)) is SlottedConv
    assert layer.extra == 7


def test_a_subclass_s_own_check_is_kept():
    layer = fastnn.convert(AnyRankBatchNorm(3))
    assert isinstance(layer, fastnn.nn.BatchNorm2d)
    assert layer(torch.randn(4, 3, 5)).shape == (4, 3, 5)
    with pytest.raises(ValueError, match="no images here"):
        layer(torch.randn(4, 3, 5, 5))


def test_whole_models_can_be_saved():
    model = fastnn.convert(nn.Sequential(Small(), Conv3x3(3)))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert classes(loaded) == classes(model)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict())


def test_a_traced_model_can_be_converted():
    stock = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2)).eval())
    x = torch.randn(2, 3, 8, 8)
    expected = stock(x)
    assert fastnn.conversion_report(fastnn.convert(stock)).replaced == 3
    torch.testing.assert_close(stock(x), expected, rtol=1e-4, atol=1e-5)


# ---- the report ---------------------------------------------------------------------------------------------


def test_the_report_names_every_layer_and_says_why_not():
    model = Small()
    before = fastnn.conversion_report(model)
    assert (before.replaced, before.kept) == (0, 9)
    assert {row.reason for row in before if row.class_name == "Conv2d"} == {
        "not converted yet: fastnn.convert(model) replaces it"
    }
    report = fastnn.conversion_report(fastnn.convert(model))
    assert [(row.name, row.class_name, row.replaced, row.reason) for row in report] == [
        ("stem.0", "Conv2d", True, ""),
        ("stem.1", "BatchNorm2d", True, ""),
        ("stem.2", "ReLU", False, "fastnn does not implement ReLU"),
        ("blocks.0", "Conv2d", True, ""),
        ("blocks.1", "Conv2d", True, ""),
        ("pool", "MaxPool2d", True, ""),
        ("cell", "LSTMCell", True, ""),
        ("norm", "BatchNorm1d", True, ""),
        ("head", "Linear", False, "fastnn does not implement Linear"),
    ]
    assert (report.replaced, report.kept, len(report)) == (7, 2, 9)


def test_the_report_has_a_row_for_parameters_of_a_container_and_none_for_a_parametrisation():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.conv = parametrizations.weight_norm(nn.Conv2d(3, 3, 1))

    report = fastnn.conversion_report(fastnn.convert(Scaled()))
    assert [(row.name, row.class_name, row.replaced) for row in report] == [
        ("", "Scaled", False),
        ("conv", "Conv2d", True),
    ]


def test_the_report_prints_as_a_table():
    text = str(fastnn.conversion_report(fastnn.convert(nn.Sequential(nn.MaxPool2d(2), nn.ReLU()))))
    assert text.splitlines() == [
        "layer  class      fastnn  why not",
        "-----  ---------  ------  ------------------------------",
        "0      MaxPool2d  yes",
        "1      ReLU       no      fastnn does not implement ReLU",
        "1 of 2 layers are fastnn's",
    ]


def test_rich_draws_the_report():
    console = rich.console.Console(width=120, record=True, file=io.StringIO())
    console.print(fastnn.conversion_report(fastnn.convert(nn.MaxPool2d(2))))
    text = console.export_text()
    assert "(model)" in text
    assert "MaxPool2d" in text
    assert "1 of 1 layers are fastnn's" in text
