"""Layers as torch's own: state_dict, copies, pickling, repr, tracing, transforms; and fastnn.nn as a
namespace."""

from __future__ import annotations

import copy
import importlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap

import fastnn


@dataclass(frozen=True)
class Layer:
    """A layer by name, the arguments that make it, and the sizes of its inputs."""

    name: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    sizes: tuple[tuple[int, ...], ...]
    variant: str = ""

    @property
    def has_no_parameters(self) -> bool:
        """Then neither dtype nor device."""
        return "Pool" in self.name or self.name == "LocalResponseNorm"

    def make(self, namespace: Any, **extra: Any) -> nn.Module:
        torch.manual_seed(0)
        return getattr(namespace, self.name)(*self.arguments, **self.options, **extra)

    def pair(self, **extra: Any) -> tuple[nn.Module, nn.Module]:
        stock, ours = self.make(nn, **extra), self.make(fastnn.nn, **extra)
        ours.load_state_dict(stock.state_dict())
        return stock, ours

    def inputs(self, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        return [torch.randn(size, generator=generator, dtype=dtype) for size in self.sizes]

    def call(self, module: nn.Module, inputs: list[torch.Tensor]) -> torch.Tensor:
        """The output, or for a cell h and c in one tensor."""
        if self.name == "LSTMCell" and len(inputs) == 3:
            inputs = [inputs[0], (inputs[1], inputs[2])]
        out = module(*inputs)
        if self.name in WHOLE_SEQUENCES:
            out = out[0]
        return torch.cat(out, -1) if isinstance(out, tuple) else out

    @property
    def id(self) -> str:
        return f"{self.name} {self.variant}".strip()


WHOLE_SEQUENCES = ("LSTM", "GRU", "RNN")
# Dynamo refuses every subclass of torch's recurrent layers, unless told not to.
ALLOW_RNN = torch._dynamo.config.patch(allow_rnn=True)
IMAGE = ((2, 4, 7, 6),)
LAYERS = [
    Layer("Conv2d", (4, 6, 3), {"padding": 1, "stride": 2}, IMAGE),
    Layer("Conv2d", (4, 6, (3, 2)), {"padding": "same", "groups": 2, "bias": False}, IMAGE, "same"),
    Layer("Conv2d", (4, 4, 3), {"padding": 1, "padding_mode": "reflect"}, IMAGE, "reflect"),
    Layer("Conv2d", (4, 4, 3), {"padding": (2, 1), "padding_mode": "replicate"}, IMAGE, "replicate"),
    Layer("Conv2d", (4, 4, 3), {"padding": "same", "padding_mode": "circular"}, IMAGE, "circular"),
    Layer("Conv2d", (4, 6, 3), {}, ((4, 7, 6),), "unbatched"),
    Layer("MaxPool2d", (2,), {}, IMAGE),
    Layer("MaxPool2d", (3, 2, 1), {"ceil_mode": True}, IMAGE, "ceil"),
    Layer("MaxPool2d", (2,), {}, ((4, 7, 6),), "unbatched"),
    Layer("MaxPool1d", (3, 2), {"padding": 1}, ((2, 4, 9),)),
    Layer("MaxPool3d", (2,), {"stride": 1}, ((2, 4, 3, 4, 5),)),
    Layer("AvgPool1d", (3,), {"padding": 1}, ((2, 4, 9),)),
    Layer("AvgPool2d", (3, 2, 1), {"ceil_mode": True, "divisor_override": 4}, IMAGE),
    Layer("AvgPool3d", (2,), {"count_include_pad": False, "padding": 1}, ((2, 4, 3, 4, 5),)),
    Layer("LPPool1d", (2, 3), {}, ((2, 4, 9),)),
    Layer("LPPool2d", (2, 3), {"stride": 2}, IMAGE),
    Layer("LPPool3d", (2, 2), {}, ((2, 4, 3, 4, 5),)),
    Layer("AdaptiveAvgPool1d", (4,), {}, ((2, 4, 9),)),
    Layer("AdaptiveAvgPool2d", ((3, None),), {}, IMAGE),
    Layer("AdaptiveAvgPool3d", (1,), {}, ((2, 4, 3, 4, 5),)),
    Layer("AdaptiveMaxPool1d", (4,), {}, ((2, 4, 9),)),
    Layer("AdaptiveMaxPool2d", ((3, None),), {}, IMAGE),
    Layer("AdaptiveMaxPool3d", (2,), {}, ((2, 4, 3, 4, 5),)),
    Layer("BatchNorm1d", (4,), {}, ((5, 4),)),
    Layer("BatchNorm1d", (4,), {}, ((5, 4, 3),), "3-D"),
    Layer("BatchNorm2d", (4,), {}, IMAGE),
    Layer("BatchNorm2d", (4,), {"momentum": None}, IMAGE, "cumulative"),
    Layer("BatchNorm2d", (4,), {"affine": False}, IMAGE, "no affine"),
    Layer("BatchNorm2d", (4,), {"track_running_stats": False}, IMAGE, "no statistics"),
    Layer("BatchNorm3d", (4,), {"momentum": 0.3, "eps": 1e-3}, ((2, 4, 3, 2, 3),)),
    Layer("GroupNorm", (2, 4), {}, IMAGE),
    Layer("InstanceNorm1d", (4,), {"affine": True}, ((2, 4, 5),)),
    Layer("InstanceNorm2d", (4,), {"affine": True, "track_running_stats": True}, IMAGE),
    Layer("InstanceNorm2d", (4,), {}, ((4, 7, 6),), "unbatched"),
    Layer("InstanceNorm3d", (4,), {}, ((2, 4, 3, 2, 3),)),
    Layer("LocalResponseNorm", (3,), {"alpha": 0.5}, IMAGE),
    Layer("LSTM", (4, 5), {"num_layers": 2, "bidirectional": True}, ((6, 3, 4),)),
    Layer("LSTMCell", (4, 5), {}, ((3, 4), (3, 5), (3, 5))),
    Layer("LSTMCell", (4, 5), {"bias": False}, ((3, 4), (3, 5), (3, 5)), "no bias"),
    Layer("LSTMCell", (4, 5), {}, ((3, 4),), "no state"),
    Layer("LSTMCell", (4, 5), {}, ((4,), (5,), (5,)), "unbatched"),
    Layer("GRU", (4, 5), {"num_layers": 2, "bidirectional": True}, ((6, 3, 4),)),
    Layer("RNN", (4, 5), {"nonlinearity": "relu", "bias": False}, ((6, 3, 4),)),
    Layer("GRUCell", (4, 5), {}, ((3, 4), (3, 5))),
    Layer("GRUCell", (4, 5), {}, ((4,),), "unbatched"),
    Layer("RNNCell", (4, 5), {}, ((3, 4), (3, 5))),
    Layer("Conv1d", (4, 6, 3), {"padding": 1, "stride": 2}, ((2, 4, 9),)),
    Layer("Conv1d", (4, 6, 4), {"padding": "same", "padding_mode": "circular"}, ((2, 4, 9),), "circular"),
    Layer("Conv3d", (4, 6, (2, 3, 2)), {"padding": (1, 0, 1), "groups": 2}, ((2, 4, 3, 5, 4),)),
    Layer("Conv3d", (4, 4, 3), {"padding": 1, "padding_mode": "replicate"}, ((2, 4, 3, 5, 4),), "replicate"),
    Layer("ConvTranspose1d", (4, 6, 3), {"stride": 2, "output_padding": 1}, ((2, 4, 5),)),
    Layer("ConvTranspose2d", (4, 6, 3), {"stride": 2, "padding": 1, "groups": 2}, IMAGE),
    Layer("ConvTranspose2d", (4, 6, (3, 2)), {"dilation": 2, "bias": False}, ((4, 7, 6),), "unbatched"),
    Layer("ConvTranspose3d", (4, 6, 2), {"stride": (1, 2, 2)}, ((1, 4, 2, 3, 4),)),
]
every_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.id)
NORMS = ("BatchNorm2d", "GroupNorm", "InstanceNorm2d", "LocalResponseNorm")
NAMES = ("Conv2d", "MaxPool2d", "AvgPool2d", "LPPool2d", "AdaptiveMaxPool2d", *NORMS, "LSTM", "GRU")
ONE_OF_EACH = [next(layer for layer in LAYERS if layer.name == name) for name in NAMES]
one_of_each = pytest.mark.parametrize("layer", ONE_OF_EACH, ids=lambda layer: layer.id)


def loss_gradients(layer: Layer, module: nn.Module, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    inputs = [x.clone().requires_grad_() for x in inputs]
    y = layer.call(module, inputs)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    return [y.detach(), *(x.grad for x in inputs), *(p.grad for p in module.parameters())]


# ---- as torch's layer ---------------------------------------------------------------------------------------


@every_layer
def test_repr_and_attributes_are_torch_s(layer: Layer):
    stock, ours = layer.pair()
    assert repr(ours) == repr(stock)
    assert vars(ours).keys() == vars(stock).keys()
    assert isinstance(ours, type(stock))


@every_layer
def test_state_dicts_are_interchangeable(layer: Layer):
    stock, ours = layer.make(nn), layer.make(fastnn.nn)
    assert list(ours.state_dict()) == list(stock.state_dict())
    assert ours.state_dict()._metadata == stock.state_dict()._metadata
    ours.load_state_dict(stock.state_dict(), strict=True)
    stock.load_state_dict(ours.state_dict(), strict=True)


@every_layer
def test_values_gradients_and_buffers_are_torch_s(layer: Layer):
    stock, ours = layer.pair(**{} if layer.has_no_parameters else {"dtype": torch.float64})
    inputs = layer.inputs(torch.float64)
    for _ in range(2):  # twice, so that the running statistics have moved from where they began
        torch.testing.assert_close(loss_gradients(layer, ours, inputs), loss_gradients(layer, stock, inputs))
    torch.testing.assert_close(ours.state_dict(), stock.state_dict())
    torch.testing.assert_close(layer.call(ours.eval(), inputs), layer.call(stock.eval(), inputs))
    torch.testing.assert_close(ours.state_dict(), stock.state_dict())


@every_layer
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies(layer: Layer, clone: Callable[[nn.Module], nn.Module]):
    module = layer.make(fastnn.nn)
    other = clone(module)
    assert type(other) is type(module)
    assert repr(other) == repr(module)
    inputs = layer.inputs()
    torch.testing.assert_close(layer.call(other, inputs), layer.call(module, inputs))
    torch.testing.assert_close(other.state_dict(), module.state_dict())
    assert not {id(p) for p in other.parameters()} & {id(p) for p in module.parameters()}


@every_layer
def test_layers_on_the_meta_device(layer: Layer):
    module = layer.make(fastnn.nn, **{} if layer.has_no_parameters else {"device": "meta"})
    real = layer.call(layer.make(fastnn.nn), layer.inputs())
    out = layer.call(module, [x.to("meta") for x in layer.inputs()])
    assert (out.shape, out.dtype, out.stride()) == (real.shape, real.dtype, real.stride())


@one_of_each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_torch_s_types(layer: Layer, dtype: torch.dtype):
    stock, ours = layer.pair()
    if layer.name in WHOLE_SEQUENCES and (layer.name, dtype) != ("LSTM", torch.bfloat16):
        return  # of these torch casts the LSTM alone, and has no kernel for float16
    if layer.name in WHOLE_SEQUENCES:
        # Without AVX-512 oneDNN has no bfloat16 LSTM, and torch's layer raises.
        expected = layer.call(stock, layer.inputs()).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        if layer.name not in WHOLE_SEQUENCES:
            expected = layer.call(stock, layer.inputs())
        actual = layer.call(ours, layer.inputs())
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)


# ---- batch normalisation's counting -------------------------------------------------------------------------


def test_a_batch_that_is_refused_touches_no_statistic():
    module = fastnn.nn.BatchNorm1d(4)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        module(torch.randn(1, 4))
    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        module(torch.randn(2, 4, 3, 3))
    with pytest.raises(RuntimeError):
        module(torch.randn(3, 5))
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)


def test_cumulative_statistics_are_the_average_over_batches():
    module = fastnn.nn.BatchNorm2d(3, momentum=None).double()
    batches = [torch.randn(2, 3, 4, 4, dtype=torch.float64) + i for i in range(4)]
    for batch in batches:
        module(batch)
    assert module.num_batches_tracked.item() == 4
    means = torch.stack([batch.mean((0, 2, 3)) for batch in batches])
    variances = torch.stack([batch.var((0, 2, 3), correction=1) for batch in batches])
    torch.testing.assert_close(module.running_mean, means.mean(0))
    torch.testing.assert_close(module.running_var, variances.mean(0))
    module.eval()(batches[0])
    assert module.num_batches_tracked.item() == 4


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_that_nobody_counts(momentum: float | None):
    stock, ours = nn.BatchNorm2d(3, momentum=momentum), fastnn.nn.BatchNorm2d(3, momentum=momentum)
    stock.num_batches_tracked = ours.num_batches_tracked = None
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(ours(x), stock(x))
    torch.testing.assert_close(ours.state_dict(), stock.state_dict())


def test_running_statistics_switched_off_after_construction():
    stock, ours = nn.BatchNorm2d(3), fastnn.nn.BatchNorm2d(3)
    x = torch.randn(2, 3, 4, 4)
    for module in (stock, ours):
        module.track_running_stats = False
    for training in (True, False):
        torch.testing.assert_close(ours.train(training)(x), stock.train(training)(x))
        torch.testing.assert_close(ours.state_dict(), stock.state_dict())


# ---- the LSTM cell's and the functions' own checks ----------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "state", "message"),
    [
        ((2, 3, 4), None, "Expected input to be 1D or 2D, got 3D instead"),
        ((), None, "Expected input to be 1D or 2D, got 0D instead"),
        ((3, 4), ((3, 5), (1, 3, 5)), r"Expected hx\[1\] to be 1D or 2D, got 3D instead"),
        ((3, 4), ((), (3, 5)), r"Expected hx\[0\] to be 1D or 2D, got 0D instead"),
    ],
)
def test_a_cell_refuses_what_torch_s_refuses(x: tuple, state: tuple | None, message: str):
    for namespace in (nn, fastnn.nn):
        with pytest.raises(ValueError, match=message):
            namespace.LSTMCell(4, 5)(torch.randn(x), state and tuple(torch.randn(size) for size in state))


def test_lstm_cell_wants_two_states():
    x, h, w_ih, w_hh = torch.randn(2, 4), torch.randn(2, 5), torch.randn(20, 4), torch.randn(20, 5)
    with pytest.raises(RuntimeError, match="expects two hidden states"):
        fastnn.functional.lstm_cell(x, (h,), w_ih, w_hh)


def test_max_pool_returns_indices_as_torch_does():
    x = torch.randn(2, 3, 6, 6)
    expected = nn.MaxPool2d(3, 2, return_indices=True)(x)
    for actual in (
        fastnn.nn.MaxPool2d(3, 2, return_indices=True)(x),
        fastnn.functional.max_pool2d(x, 3, 2, return_indices=True),
        fastnn.functional.max_pool2d_with_indices(x, 3, 2),
    ):
        torch.testing.assert_close(actual, tuple(expected), rtol=0, atol=0)


# ---- tracing and transforms ---------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("dynamic", [False, True])
@ALLOW_RNN
def test_compile_without_a_graph_break(layer: Layer, dynamic: bool):
    torch._dynamo.reset()
    stock, ours = layer.pair()
    # aot_eager runs Dynamo, the fake kernels, functionalisation and the backward graph, all but code
    # generation.
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for _ in range(2):
        expected = loss_gradients(layer, stock, layer.inputs())
        actual = loss_gradients(layer, compiled, layer.inputs())
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.state_dict(), stock.state_dict())


@one_of_each
@ALLOW_RNN
def test_compile_again_for_another_size(layer: Layer):
    torch._dynamo.reset()
    stock, ours = layer.pair()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (2, 3, 5):
        inputs = [torch.randn(batch, *size[1:]) for size in layer.sizes]
        if len(inputs[0].shape) == 4:
            inputs = [torch.randn(batch, 4, 7 + batch, 6 + batch)]
        expected = loss_gradients(layer, stock, inputs)
        actual = loss_gradients(layer, compiled, inputs)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@one_of_each
def test_export(layer: Layer):
    module = layer.make(fastnn.nn).eval()
    inputs = layer.inputs()
    arguments = (inputs[0], (inputs[1], inputs[2])) if len(inputs) == 3 else tuple(inputs)
    program = torch.export.export(module, arguments)
    torch.testing.assert_close(layer.call(program.module(), inputs), layer.call(module, inputs))


# Not the others: they check the input's rank, as torch's layers do, and fx does not follow control flow.
@pytest.mark.parametrize("layer", ONE_OF_EACH[:2], ids=lambda layer: layer.id)
def test_fx_traces_the_function(layer: Layer):
    module = layer.make(fastnn.nn)
    traced = torch.fx.symbolic_trace(module)
    assert any("fastnn" in str(node.target) for node in traced.graph.nodes)
    torch.testing.assert_close(layer.call(traced, layer.inputs()), layer.call(module, layer.inputs()))


def test_tensor_subclasses_see_the_op():
    seen = []

    class Loud(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return super().__torch_function__(function, types, args, kwargs or {})

    y = fastnn.functional.max_pool2d(torch.randn(1, 2, 4, 4).as_subclass(Loud), 2)
    assert isinstance(y, Loud)
    assert any("max_pool2d" in name for name in seen)


@one_of_each
def test_torch_func(layer: Layer, recwarn: pytest.WarningsRecorder):
    """Gradients, Jacobians and per-sample gradients through a functional call, against torch's layer."""
    stock, ours = (m.eval() for m in layer.pair(**{} if layer.has_no_parameters else {"dtype": torch.float64}))
    inputs = layer.inputs(torch.float64)
    parameters = {name: value.detach() for name, value in stock.named_parameters()}
    buffers = dict(stock.named_buffers())

    def forward(module: nn.Module, parameters: dict[str, torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        arguments = (inputs[0], (inputs[1], inputs[2])) if len(inputs) == 3 else inputs
        out = functional_call(module, {**parameters, **buffers}, arguments)
        out = out[0] if layer.name in WHOLE_SEQUENCES else out
        return torch.cat(out, -1) if isinstance(out, tuple) else out

    def loss(module: nn.Module, parameters: dict[str, torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        return forward(module, parameters, *inputs).square().sum()

    def of_input(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: forward(module, parameters, x, *inputs[1:])

    def transforms(module: nn.Module) -> list[Any]:
        f, x = of_input(module), inputs[0]
        return [
            grad(loss, argnums=2)(module, parameters, *inputs),
            grad(loss, argnums=1)(module, parameters, *inputs),
            jvp(f, (x,), (torch.ones_like(x),)),
            jacrev(f)(x),
            jacfwd(f)(x),
            hessian(lambda x: f(x).square().sum())(x) if x.numel() < 100 else None,
        ]

    def close(actual: Any, expected: Any) -> None:
        torch.testing.assert_close(actual, expected)

    for actual, expected in zip(transforms(ours), transforms(stock), strict=True):
        if expected is not None:
            close(actual, expected)

    # Per sample: torch has no batching rule for every one of these, so the expected ones are a loop's.
    samples = [tuple(x[i : i + 1] for x in inputs) for i in range(inputs[0].shape[0])]
    in_dims = (None, *(0 for _ in inputs))
    ones = [x.unsqueeze(1) for x in inputs]
    close(
        vmap(lambda p, *xs: forward(ours, p, *xs), in_dims=in_dims)(parameters, *ones),
        torch.stack([forward(stock, parameters, *xs) for xs in samples]),
    )
    per_sample = vmap(grad(lambda p, *xs: loss(ours, p, *xs)), in_dims=in_dims)(parameters, *ones)
    expected = [grad(lambda p, *xs: loss(stock, p, *xs))(parameters, *xs) for xs in samples]
    for name in parameters:
        close(per_sample[name], torch.stack([grads[name] for grads in expected]))
    # One model an entry: the parameters have the batch.
    models = {name: torch.stack([value, value * 0.5]) for name, value in parameters.items()}
    if models:
        close(
            vmap(lambda p: forward(ours, p, *inputs))(models),
            torch.stack([forward(stock, {k: v[i] for k, v in models.items()}, *inputs) for i in range(2)]),
        )
    # Recurrent cells' pointwise ops have no batching rule, and torch says once a process that it loops.
    drops = [str(w.message) for w in recwarn if "performance drop" in str(w.message)]
    assert not [drop for drop in drops if "::lstm_cell" not in drop and "::recurrent_cell" not in drop]


@pytest.mark.parametrize("input_is_mapped", [True, False])
@pytest.mark.parametrize("track", [True, False])
def test_an_ensemble_of_batch_norms_in_training(input_is_mapped: bool, track: bool):
    """Each entry has its own parameters and statistics, as ``torch.func.stack_module_state`` stacks them."""
    torch.manual_seed(0)
    members = [fastnn.nn.BatchNorm2d(3, track_running_stats=track).double() for _ in range(4)]
    stock = [nn.BatchNorm2d(3, track_running_stats=track).double() for _ in range(4)]
    for mine, theirs in zip(members, stock, strict=True):
        nn.init.normal_(mine.weight)
        theirs.load_state_dict(mine.state_dict())
    parameters, buffers = stack_module_state(members)
    x = torch.randn(4, 2, 3, 5, 4, dtype=torch.float64)
    x = x if input_is_mapped else x[0]
    run = vmap(
        lambda p, b, x: functional_call(members[0], (p, b), (x,)),
        in_dims=(0, 0, 0 if input_is_mapped else None),
    )
    y = run(parameters, buffers, x)
    expected = torch.stack([m(x[i] if input_is_mapped else x) for i, m in enumerate(stock)])
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(buffers, stack_module_state(stock)[1])


def test_statistics_that_are_not_mapped_cannot_follow_a_mapped_input():
    module = fastnn.nn.BatchNorm2d(3)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(RuntimeError, match="running statistics"):
        vmap(module)(torch.randn(4, 2, 3, 5, 4))
    torch.testing.assert_close(module.state_dict(), before)
    module(torch.randn(2, 3, 5, 4))


def test_weights_alone_are_mapped_in_training():
    stock, ours = nn.BatchNorm2d(3).double(), fastnn.nn.BatchNorm2d(3).double()
    x, weights = torch.randn(2, 3, 5, 4, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)

    def run(module: nn.Module) -> torch.Tensor:
        return vmap(lambda w: functional_call(module, {"weight": w}, (x,)))(weights)

    torch.testing.assert_close(run(ours), run(stock))
    torch.testing.assert_close(ours.state_dict(), stock.state_dict())


# ---- the namespaces -----------------------------------------------------------------------------------------


def test_fastnn_nn_is_complete():
    missing = [name for name in dir(nn) if not name.startswith("_") and not hasattr(fastnn.nn, name)]
    assert not missing
    own = {cls.__name__ for cls in fastnn.nn.IMPLEMENTED}
    assert {"Conv2d", "MaxPool2d", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d"} <= own
    assert {"LSTM", "LSTMCell", "GRU", "GRUCell", "RNN", "RNNCell"} <= own
    for name in dir(nn):
        if name.startswith("_") or name == "functional":
            continue
        if name in own:
            assert getattr(fastnn.nn, name).__module__.startswith("fastnn.nn.")
        else:
            assert getattr(fastnn.nn, name) is getattr(nn, name), name


def test_fastnn_functional_is_complete():
    assert not [
        name for name in dir(nn.functional) if not name.startswith("__") and not hasattr(fastnn.functional, name)
    ]
    assert fastnn.functional.relu is nn.functional.relu
    for name in fastnn.functional.__all__:
        assert getattr(fastnn.functional, name).__module__ in (
            "fastnn.functional",
            "fastnn._activation",
            "fastnn._convolution",
            "fastnn._normalisation",
            "fastnn._pooling",
            "fastnn._pooling_by_output",
            "fastnn._recurrent",
            "fastnn._sync_batch_norm",
        )
        assert getattr(fastnn.functional, name).__doc__


@pytest.mark.parametrize("namespace", [fastnn.nn, fastnn.functional])
def test_a_name_that_is_nowhere(namespace: Any):
    with pytest.raises(AttributeError, match="Conv9d"):
        _ = namespace.Conv9d
    assert not hasattr(namespace, "__path_of_nothing__")


def test_a_star_import_brings_what_torch_s_brings():
    theirs: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    exec("from torch.nn import *", theirs)
    exec("from fastnn.nn import *", ours)
    assert theirs.keys() <= ours.keys()
    assert ours["Conv2d"] is fastnn.nn.Conv2d
    assert ours["functional"] is fastnn.functional


@pytest.mark.parametrize(
    "name",
    ["init", "parameter", "utils", "utils.rnn", "modules.batchnorm", "parallel", "attention.flex_attention"],
)
def test_submodules_are_torch_s_own(name: str):
    theirs = importlib.import_module(f"torch.nn.{name}")
    spec = theirs.__spec__
    assert importlib.import_module(f"fastnn.nn.{name}") is theirs
    assert theirs.__spec__ is spec


def test_functional_is_importable_from_nn():
    assert importlib.import_module("fastnn.nn.functional") is fastnn.functional
    assert fastnn.nn.functional is fastnn.functional
    with pytest.raises(ModuleNotFoundError, match=r"fastnn\.nn\.nonsense"):
        importlib.import_module("fastnn.nn.nonsense")


def test_a_script_runs_with_only_its_imports_changed():
    script = """
import {0} as torch_
import {1} as nn
import {1}.functional as F
from {1}.utils import clip_grad_norm_
torch_.manual_seed(0)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 9, 2)
        nn.init.zeros_(self.fc.bias)
    def forward(self, x):
        return self.fc(F.max_pool2d(F.relu(self.norm(self.conv(x))), 2).flatten(1))
net = Net()
loss = F.cross_entropy(net(torch_.randn(4, 1, 8, 8)), torch_.tensor([0, 1, 0, 1]))
loss.backward()
norm = clip_grad_norm_(net.parameters(), 1.0)
"""
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    exec(script.format("torch", "fastnn.nn"), ours)
    exec(script.format("torch", "torch.nn"), theirs)
    assert type(ours["net"].conv) is fastnn.nn.Conv2d
    torch.testing.assert_close(ours["loss"], theirs["loss"])
    torch.testing.assert_close(ours["norm"], theirs["norm"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4), (2, 3, 4, 5), (2, 3, 2, 4, 3)], ids=str)
def test_a_batch_norm_with_an_activation_is_both_layers(shape, residual):
    kind = f"BatchNorm{'Add' if residual else ''}ReLU{max(1, len(shape) - 2)}d"
    layer = getattr(fastnn.nn, kind)(3, momentum=0.3, activation="leaky_relu", alpha=0.2)
    apart = getattr(torch.nn, f"BatchNorm{max(1, len(shape) - 2)}d")(3, momentum=0.3)
    apart.load_state_dict(layer.state_dict())
    for training in (True, False):
        layer.train(training), apart.train(training)
        inputs = [torch.randn(shape) for _ in range(1 + residual)]
        z = apart(inputs[0]) + (inputs[1] if residual else 0)
        torch.testing.assert_close(layer(*inputs), torch.nn.functional.leaky_relu(z, 0.2))
        torch.testing.assert_close(layer.state_dict(), apart.state_dict())
    assert "activation=leaky_relu, alpha=0.2" in repr(layer)
    report = fastnn.conversion_report(layer)
    assert (report.replaced, report.kept) == (1, 0)
    assert type(fastnn.revert(layer)) is getattr(fastnn.nn, kind)
