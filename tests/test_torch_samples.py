"""PyTorch's own samples: every input of ``op_db`` and ``module_db`` for the functions and layers fastnn has.

``torch.testing._internal`` holds the inputs with which PyTorch tests itself. Each runs twice, on torch's function
or layer and on fastnn's: the same values and gradients, also for non-contiguous and channels_last inputs; the same
buffers; the same exception type for the inputs that must fail; layers that copy, pickle and load as torch's do.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.common_methods_invocations import op_db, wrapper_set_seed
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db
from torch.utils._pytree import tree_leaves, tree_map

import fastnn

CONVOLUTIONS = [f"{kind}{rank}d" for kind in ("conv", "conv_transpose") for rank in (1, 2, 3)]
RANKED = ("max_pool", "max_unpool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool")
POOLING = [f"{name}{rank}d" for name in RANKED for rank in (1, 2, 3)] + [
    f"fractional_max_pool{rank}d" for rank in (2, 3)
]
FUNCTIONS = [
    *CONVOLUTIONS,
    *(name for name in POOLING if not name.startswith("lp_")),  # op_db has no L_p
    *("batch_norm", "group_norm", "instance_norm", "local_response_norm"),
]
RECURRENT = ["LSTM", "LSTMCell", "GRU", "GRUCell", "RNN", "RNNCell"]
CONVOLUTION_LAYERS = [
    f"{lazy}{kind}{rank}d" for lazy in ("", "Lazy") for kind in ("Conv", "ConvTranspose") for rank in (1, 2, 3)
]
POOLS = ("MaxPool", "AvgPool", "LPPool", "AdaptiveAvgPool", "AdaptiveMaxPool")
POOLING_LAYERS = [f"{name}{rank}d" for name in POOLS for rank in (1, 2, 3) if f"{name}{rank}d" != "LPPool3d"]
POOLING_LAYERS += ["FractionalMaxPool2d", "FractionalMaxPool3d"]
NORMS = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "GroupNorm", "LocalResponseNorm"]
INSTANCE_NORMS = ["InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"]
LAYERS = [*CONVOLUTION_LAYERS, *POOLING_LAYERS, *NORMS, *INSTANCE_NORMS, *RECURRENT]
DTYPES = [torch.float32, torch.float64]
# Room for another order of summation, far below a wrong term: relative, and absolute at the scale of the tensor.
TOLERANCE = {torch.float32: (1e-4, 2e-5), torch.float64: (1e-9, 1e-10)}
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def tensors_of(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def relaid(tree: Any, variant: str) -> Any:
    """A deep copy of the inputs: ``contiguous``; ``strided`` with NaN between elements; ``channels_last``."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        value = leaf.detach().clone()
        if variant == "strided" and value.dim() and value.numel() > 1:
            storage = torch.full((*value.shape, 2), 7).to(value)
            if value.is_floating_point():
                storage.fill_(float("nan"))
            value = storage[..., 1].copy_(value)
        elif variant == "channels_last" and value.dim() in FORMATS:
            value = value.contiguous(memory_format=FORMATS[value.dim()])
        return value.requires_grad_(leaf.requires_grad)

    return tree_map(one, tree)


def assert_same(ours: Tensor | None, torch_s: Tensor | None, what: str) -> None:
    if ours is None or torch_s is None:  # no gradient is a gradient of zeros
        other = torch_s if ours is None else ours
        assert other is None or not bool(other.any()), f"{what}: one has a gradient, the other none"
        return
    assert ours.dtype == torch_s.dtype, f"{what}: {ours.dtype}, torch {torch_s.dtype}"
    if not torch_s.is_floating_point():
        assert torch.equal(ours, torch_s), what
        return
    relative, absolute = TOLERANCE[torch_s.dtype]
    finite = torch_s[torch_s.isfinite()]
    scale = max(float(finite.detach().abs().max()), 0.1) if finite.numel() else 1.0
    torch.testing.assert_close(
        ours, torch_s, rtol=relative, atol=absolute * scale, equal_nan=True, msg=lambda m: f"{what}: {m}"
    )


def results(call: Callable[[], Any], leaves: list[Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
    """Outputs and the gradients of a random combination of them."""
    torch.manual_seed(0)
    outputs = tensors_of(call())
    generator = torch.Generator().manual_seed(1)
    loss = sum((o * torch.randn(o.shape, generator=generator).to(o)).sum() for o in outputs if o.requires_grad)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if not (isinstance(loss, Tensor) and wanted):
        return outputs, []
    return outputs, list(torch.autograd.grad(loss, wanted, allow_unused=True))


def compare(
    ours: Callable[[], tuple[Callable[[], Any], list[Tensor], list[Tensor]]],
    torch_s: Callable[[], tuple[Callable[[], Any], list[Tensor], list[Tensor]]],
) -> None:
    """Each argument makes (call, tensors to differentiate, tensors that the call may change)."""
    expected_call, expected_leaves, expected_state = torch_s()
    expected, expected_grads = results(expected_call, expected_leaves)
    call, leaves, state = ours()
    got, grads = results(call, leaves)
    assert len(got) == len(expected) and len(grads) == len(expected_grads)
    for kind, a, b in (
        ("output", got, expected),
        ("gradient", grads, expected_grads),
        ("state", state, expected_state),
    ):
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{kind} {index}")


def function_samples(name: str, dtype: torch.dtype) -> Iterator[tuple[Any, Any]]:
    for op in op_db:
        if op.name == f"nn.functional.{name}" and dtype in op.dtypes:
            torch.manual_seed(0)
            source = op.reference_inputs if op.reference_inputs_func else op.sample_inputs
            for sample in source("cpu", dtype, requires_grad=True, set_seed=True):
                yield op, sample


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    "variant, dtype",
    [
        ("contiguous", torch.float32),
        ("contiguous", torch.float64),
        ("strided", torch.float64),
        ("channels_last", torch.float32),
    ],
    ids=str,
)
def test_function_samples(name, variant, dtype):
    ours, count = getattr(fastnn.functional, name), 0
    if name.startswith("fractional"):
        ours = partial(wrapper_set_seed, ours)  # as op_db wraps torch's
    for index, (op, sample) in enumerate(function_samples(name, dtype)):
        if variant == "channels_last" and name.endswith("pool3d") and sample.input.dim() == 4:
            continue  # a volume without a batch: torch refuses it
        inputs = (sample.input, tuple(sample.args), sample.kwargs)

        def make(function, inputs=inputs):
            x, args, kwargs = relaid(inputs, variant)
            leaves = tensors_of((x, args, kwargs))
            return lambda: function(x, *args, **kwargs), leaves, [t for t in leaves if not t.requires_grad]

        try:
            compare(lambda: make(ours), lambda op=op: make(op.op))
        except Exception as error:
            raise AssertionError(f"sample {index}: {sample.summary()}") from error
        count += 1
    assert count, "PyTorch has no samples under this name any more"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_error_inputs(name):
    ours, count = getattr(fastnn.functional, name), 0
    for op in op_db:
        if op.name != f"nn.functional.{name}" or op.error_inputs_func is None:
            continue
        for error in op.error_inputs("cpu"):
            sample = error.sample_input
            with pytest.raises(error.error_type):
                ours(sample.input, *sample.args, **sample.kwargs)
            count += 1
    assert count or not name.startswith(("max_", "avg_", "adaptive_"))


def module_samples(name: str, dtype: torch.dtype, training: bool) -> Iterator[Any]:
    for info in module_db:
        if info.name == f"nn.{name}":
            torch.manual_seed(0)
            for sample in info.module_inputs_func(
                info, device="cpu", dtype=dtype, requires_grad=True, training=training
            ):
                if sample.forward_input is not None:
                    yield sample


def build(namespace: Any, name: str, sample: Any, dtype: torch.dtype, training: bool) -> nn.Module:
    """The layer with reproducible parameters and statistics that are not the initial ones."""
    torch.manual_seed(3)
    arguments = sample.constructor_input
    module = getattr(namespace, name)(*arguments.args, **arguments.kwargs).to(dtype)
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters()):
        with torch.no_grad():
            module(*sample.forward_input.args, **sample.forward_input.kwargs)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return module.train(training)


@every_dtype
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("name", "variant"),
    [
        (name, variant)
        for name in LAYERS
        for variant in ("contiguous", "strided", "channels_last")
        if variant != "channels_last" or name not in RECURRENT  # they have no channels
    ],
)
def test_module_samples(name, variant, training, dtype):
    count = 0
    for index, sample in enumerate(module_samples(name, dtype, training)):
        inputs = (sample.forward_input.args, sample.forward_input.kwargs)

        def make(namespace, sample=sample, inputs=inputs):
            module = build(namespace, name, sample, dtype, training)
            args, kwargs = relaid(inputs, variant)
            leaves = tensors_of((args, kwargs)) + list(module.parameters())
            return lambda: module(*args, **kwargs), leaves, list(module.buffers())

        try:
            compare(lambda: make(fastnn.nn), lambda: make(nn))
        except Exception as error:
            arguments = sample.constructor_input
            raise AssertionError(f"sample {index} {arguments.args} {arguments.kwargs} {sample.desc}") from error
        count += 1
    assert count, "PyTorch has no samples under this name any more"


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", LAYERS)
def test_module_error_inputs(name, training):
    for info in module_db:
        if info.name != f"nn.{name}" or info.module_error_inputs_func is None:
            continue
        for error in info.module_error_inputs_func(
            info, device="cpu", dtype=torch.float32, requires_grad=True, training=training
        ):
            arguments, forward = (
                error.module_error_input.constructor_input,
                error.module_error_input.forward_input,
            )

            def call(namespace, arguments=arguments, forward=forward, error=error):
                module = getattr(namespace, name)(*arguments.args, **arguments.kwargs)
                if error.error_on != ModuleErrorEnum.CONSTRUCTION_ERROR:
                    module.train(training)(*forward.args, **forward.kwargs)

            try:
                call(nn)
            except error.error_type:
                with pytest.raises(error.error_type):
                    call(fastnn.nn)
            else:  # an error of training alone
                call(fastnn.nn)


@pytest.mark.parametrize("name", [name for name in LAYERS if not name.startswith("Lazy")])
def test_modules_copy_pickle_and_load(name):
    for sample in module_samples(name, torch.float32, True):
        torch_s, ours = (build(namespace, name, sample, torch.float32, True) for namespace in (nn, fastnn.nn))
        expected = torch_s.state_dict()
        assert list(ours.state_dict()) == list(expected)
        assert [n for n, _ in ours.named_parameters()] == [n for n, _ in torch_s.named_parameters()]
        twins = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))]
        for twin in twins:
            assert type(twin) is type(ours)
            assert repr(twin) == repr(ours)
            assert all(torch.equal(v, ours.state_dict()[k]) for k, v in twin.state_dict().items())
        twins[0].load_state_dict(expected)
        torch_s.load_state_dict(twins[1].state_dict())
