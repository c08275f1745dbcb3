"""The ops under torch's tracers: opcheck, torch.compile, make_fx, torch.func and autocast. Layers are in
test_modules.py; here are the functions and the dispatcher's ops beneath them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch.nn import functional as torch_functional

import fastnn.functional as F
from fastnn.testing.cases import generator_for

ops = torch.ops.fastnn


def t(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = True) -> Tensor:
    tensor = torch.randn(shape, generator=generator_for("compile", shape), dtype=torch.float64).to(dtype)
    return tensor.requires_grad_(grad)


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous(memory_format=torch.channels_last).requires_grad_(tensor.requires_grad)


ONE, NONE = [1, 1], [0, 0, 0, 0]
STATISTICS = (t(3, grad=False), t(3, grad=False).abs() + 0.5, torch.tensor(4))


def offsets_of(x: Tensor) -> Tensor:
    return ops.max_pool(x.detach(), [2, 2], [2, 2], [0, 0], ONE, False, True, False)[1]


def saved_by_act(x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """mean, invstd, scale, shift and mask of a ``batch_norm_act_forward`` of x."""
    options = (None, None, None, None, None, True, 0.1, 1e-5, "leaky_relu", 0.1, True)
    return ops.batch_norm_act_forward(x.detach(), residual, *options)[1:]


# How the op knows its cells; see fastnn/_recurrent.py.
LSTM, COUPLED, GRU, RNN = ([kind, 0, 2, 2, int(c), 0, 0, 1, 0] for kind, c in ((0, 0), (0, 1), (1, 0), (2, 0)))
MUT1, MUT3 = [3, 0, 2, 2, 0, 0, 1, 0, 0], [3, 0, 2, 2, 0, 0, 1, 1, 1]


def recurrence_calls() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Layers of 2 samples, 4 inputs and 3 units, and the stages of their cells."""
    ops, calls = torch.ops.fastnn, {}
    h, c, x, rows = t(2, 3), t(2, 3), t(5, 2, 4), t(7, 4)
    lengths, batch_sizes = torch.tensor([3, 5]), torch.tensor([2, 2, 2, 1])
    layers = {
        "lstm": (x, c, 12, 12, {}, (None, lengths, True, True, True, LSTM)),
        "norms": (x, c, 12, 12, {"norms": (t(12), t(12), t(3), t(3))}, (None, None, False, False, True, LSTM)),
        "coupled": (
            *(rows, c, 9, 9, {"peephole": t(2, 3), "zoneouts": (t(7, 3), t(3))}),
            (batch_sizes, None, False, False, True, COUPLED),
        ),
        "gru": (x, None, 9, 9, {}, (None, None, False, False, True, GRU)),
        "rnn": (x, None, 3, 3, {"zoneouts": (t(5, 2, 3), None)}, (None, None, True, False, False, RNN)),
        "mut1": (t(5, 2, 9), None, None, 6, {}, (None, lengths, False, False, True, MUT1)),
    }
    for name, (input, c0, w_ih, w_hh, given, (sizes, lens, reverse, cells, save, cell)) in layers.items():
        w_ih, b_ih = (None, None) if w_ih is None else (t(w_ih, 4), t(w_ih))
        zoneouts = [None if d is None else d.detach().sigmoid() for d in given.get("zoneouts", (None, None))]
        peephole, norms = given.get("peephole"), given.get("norms", (None,) * 4)
        weights = (input, h, c0, w_ih, t(w_hh, 3), b_ih, None)
        arguments = (*weights, peephole, *zoneouts, *norms, sizes, lens, reverse)
        calls[f"recurrence_layer-{name}"] = (ops.recurrence_layer.default, (*arguments, cells, save, cell))
        whole = (*weights, None, *arguments[7:], False, cell)
        calls[f"recurrence-{name}"] = (ops.recurrence.default, whole)
        if not save:
            continue
        plain = [a.detach() if isinstance(a, Tensor) else a for a in arguments]
        y, h_n, _, *saved = ops.recurrence_layer(*plain, cells, True, cell)
        masks = [True, c0 is None, c0 is not None, w_ih is not None, True, False, cell is GRU]
        masks += [a is not None for a in (peephole, *norms)]
        calls[f"recurrence_layer_backward-{name}"] = (
            ops.recurrence_layer_backward.default,
            (y, None if c0 is None else h_n, None, None, *plain[:5], *plain[7:14], y, *saved, *plain[14:], masks, cell),
        )
    stages = {  # a, u, c, h, peephole
        "lstm": (0, LSTM, (t(2, 12), None, c, h, t(3, 3))),
        "coupled": (0, COUPLED, (t(2, 9), None, c, None, None)),
        "gru": (1, GRU, (t(2, 9), t(2, 9), None, h, None)),
        "rnn": (2, RNN, (t(2, 3), None, None, h, None)),
        "reset": (3, MUT3, (t(2, 6), None, None, h, None)),
        "blend": (4, MUT3, (t(2, 3), None, c, h, None)),
    }
    for name, (stage, cell, tensors) in stages.items():
        there, shares = [a is not None for a in tensors], (t(2, 3).detach().sigmoid() if name == "rnn" else None, None)
        plain = [None if a is None else a.detach() for a in tensors]
        first, second = ops.recurrent_cell_pointwise(*plain, *shares, stage, cell)
        second = second if second.numel() else None
        calls[f"recurrent_cell_pointwise-{name}"] = (
            ops.recurrent_cell_pointwise.default,
            (*tensors, *shares, stage, cell),
        )
        calls[f"recurrent_cell_pointwise_backward-{name}"] = (
            ops.recurrent_cell_pointwise_backward.default,
            (first, second, *tensors, *shares, stage, cell, there),
        )
        calls[f"recurrent_cell_pointwise_double_backward-{name}"] = (
            ops.recurrent_cell_pointwise_double_backward.default,
            (*plain, first, None, *plain, *shares, stage, cell, [True, second is not None, *there]),
        )
    return calls


def sample_norm_calls() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Group, instance and local response normalisation, and the ops beneath them."""
    image, direction, w = t(2, 6, 5, 4), t(2, 6, 5, 4, grad=False), t(6)
    mean, invstd = t(2, 3, grad=False), t(2, 3, grad=False).abs() + 0.5
    running = (t(6, grad=False), t(6, grad=False).abs())
    response, masks = (3, 0.5, 0.75, 1.0), [True, True, True]
    return {
        "local_response_norm": (ops.local_response_norm.default, (image, *response)),
        "local_response_norm-channels_last": (ops.local_response_norm.default, (channels_last(image), *response)),
        "local_response_norm_backward": (ops.local_response_norm_backward.default, (t(2, 6, 5, 4), image, *response)),
        "local_response_norm_double_backward": (
            ops.local_response_norm_double_backward.default,
            (direction, direction, image.detach(), *response, [True, True]),
        ),
        "local_response_norm_double_backward-masked": (
            ops.local_response_norm_double_backward.default,
            (direction, None, image.detach(), *response, [True, False]),
        ),
        "group_norm": (ops.group_norm.default, (image, 3, w, None)),
        "group_norm-channels_last": (ops.group_norm.default, (channels_last(image), 2, w, t(6))),
        "instance_norm": (ops.instance_norm.default, (image, *running, w, None, True, 0.1, 1e-5)),
        "instance_norm-eval": (ops.instance_norm.default, (image, *running, w, t(6), False, 0.1, 1e-5)),
        "group_norm_forward": (ops.group_norm_forward.default, (image, w, None, None, None, 3, 0.1, 1e-5)),
        "group_norm_backward": (
            ops.group_norm_backward.default,
            (t(2, 6, 5, 4), image, w, mean, invstd, 3, masks),
        ),
        "group_norm_backward-masked": (
            ops.group_norm_backward.default,
            (t(2, 6, 5, 4), image, None, mean, invstd, 3, [False, True, False]),
        ),
    }


SWITCHES = torch.arange(6).view(1, 1, 3, 2).mul(3).repeat(2, 3, 1, 1)


def dispatcher_calls() -> list[Any]:
    x, w, b, g = t(2, 4, 6, 5), t(6, 2, 3, 2), t(6), t(2, 6, 4, 4)
    image = t(2, 3, 6, 4)
    gates, hidden, bias = t(2, 12), t(2, 3), t(12)
    mean, var, count = STATISTICS
    *saved, no_mask = saved_by_act(image, None)
    mask = saved_by_act(image, t(2, 3, 6, 4, grad=False))[-1]
    activated = (t(2, 3, 6, 4, grad=False), image.detach(), t(3, grad=False))
    products = tuple(t(*size, grad=False) for size in ((2, 5), (2, 3), (12, 5), (12, 3)))
    volume = t(1, 2, 3, 4, 5)
    calls = {
        "conv1d": (ops.conv1d.default, (t(2, 4, 9), t(6, 2, 3), b, [2], [1], [1], 2)),
        "conv1d.padding": (ops.conv1d.padding, (t(2, 4, 9), t(6, 2, 3), b, [1], "same", [2], 2)),
        "conv3d": (ops.conv3d.default, (t(2, 2, 3, 4, 5), t(6, 2, 2, 3, 2), b, [2, 1, 1], [1, 0, 1], [1, 1, 2], 1)),
        "conv3d.padding": (ops.conv3d.padding, (t(1, 2, 3, 4, 5), t(6, 2, 2, 3, 2), b, [1] * 3, "valid", [1] * 3, 1)),
        "conv_transpose1d": (ops.conv_transpose1d.default, (t(2, 4, 5), t(4, 3, 3), b, [3], [1], [2], 2, [1])),
        "conv_transpose2d": (
            ops.conv_transpose2d.default,
            (x, t(4, 3, 3, 2), b, [2, 1], [1, 0], [1, 0], 2, [1, 2]),
        ),
        "conv_transpose3d": (ops.conv_transpose3d.default, (t(1, 4, 2, 3, 2), t(4, 3, 3, 2, 2), None, [2, 1, 1])),
        "locally_connected1d": (ops.locally_connected1d.default, (t(2, 3, 7), t(3, 4, 3, 3), t(4, 3), [2], [0], [1])),
        "locally_connected2d": (
            ops.locally_connected2d.default,
            (t(2, 3, 4, 5), t(4, 2, 5, 3, 3, 2), None, [1, 2], [1, 0], [1, 2]),
        ),
        "locally_connected": (
            ops.locally_connected.default,
            (channels_last(t(2, 3, 4, 5)), t(2, 2, 5, 3, 3, 3), t(5, 2, 2), [1, 2], [0, 0], ONE),
        ),
        "locally_connected_grad_input": (
            ops.locally_connected_grad_input.default,
            (t(2, 5, 2, 2), t(2, 2, 5, 3, 3, 3), [2, 3, 4, 5], [1, 2], [0, 0], ONE, True),
        ),
        "locally_connected_grad_weight": (
            ops.locally_connected_grad_weight.default,
            (t(2, 3, 4, 5), t(2, 5, 2, 2), [2, 2, 5, 3, 3, 3], [1, 2], [0, 0], ONE),
        ),
        "conv2d": (ops.conv2d.default, (x, w, b, [2, 1], [1, 0], [1, 1], 2)),
        "conv2d-channels_last": (ops.conv2d.default, (channels_last(x), w, None, ONE, ONE, ONE, 2)),
        "conv2d.padding": (ops.conv2d.padding, (x, w, b, ONE, "same", ONE, 2)),
        "convolution": (ops.convolution.default, (x, w, b, ONE, [1, 0, 0, 2], ONE, 2)),
        "convolution_grad_input": (
            ops.convolution_grad_input.default,
            (g, w, [2, 4, 6, 5], ONE, NONE, ONE, 2, False),
        ),
        "convolution_grad_input-channels_last": (
            ops.convolution_grad_input.default,
            (channels_last(g), w, [2, 4, 6, 5], ONE, NONE, ONE, 2, True),
        ),
        "convolution_grad_input-bias": (
            ops.convolution_grad_input.default,
            (g, w, [2, 4, 7, 6], ONE, [0, -1, 0, -1], ONE, 2, False, t(4)),
        ),
        "convolution_grad_weight": (
            ops.convolution_grad_weight.default,
            (x, g, [6, 2, 3, 2], ONE, NONE, ONE, 2, False),
        ),
        "convolution_grad_bias": (ops.convolution_grad_bias.default, (g,)),
        "max_pool2d": (ops.max_pool2d.default, (image, [2, 2], [], [0, 0], ONE, True)),
        "max_pool2d_with_indices": (
            ops.max_pool2d_with_indices.default,
            (image, [3, 2], [1, 2], [1, 0], ONE, False),
        ),
        "max_pool": (ops.max_pool.default, (image, [2, 2], [2, 2], [0, 0], ONE, False, True, True)),
        "max_pool-channels_last": (
            ops.max_pool.default,
            (channels_last(image), [2, 2], [2, 2], [0, 0], ONE, False, True, False),
        ),
        "max_pool_backward": (
            ops.max_pool_backward.default,
            (t(2, 3, 3, 2), offsets_of(image), [2, 3, 6, 4], [2, 2], [2, 2], [0, 0], ONE),
        ),
        "max_pool_gather": (
            ops.max_pool_gather.default,
            (image, offsets_of(image), [2, 2], [2, 2], [0, 0], ONE),
        ),
        "max_pool1d": (ops.max_pool1d.default, (t(2, 3, 8), [3], [2], [1])),
        "max_pool1d_with_indices": (ops.max_pool1d_with_indices.default, (t(2, 3, 8), [3])),
        "max_pool3d": (ops.max_pool3d.default, (volume, [2, 2, 2])),
        "max_pool3d_with_indices": (ops.max_pool3d_with_indices.default, (volume, [2, 2, 2])),
        "avg_pool1d": (ops.avg_pool1d.default, (t(2, 3, 8), [3], [2], [1])),
        "avg_pool3d": (ops.avg_pool3d.default, (volume, [2, 2, 2])),
        "lp_pool1d": (ops.lp_pool1d.default, (t(2, 3, 8), 2.0, [3])),
        "lp_pool3d": (ops.lp_pool3d.default, (volume, 2.0, [2, 2, 2])),
        "adaptive_avg_pool1d": (ops.adaptive_avg_pool1d.default, (t(2, 3, 8), [3])),
        "adaptive_avg_pool3d": (ops.adaptive_avg_pool3d.default, (volume, [2, 1, 3])),
        "adaptive_max_pool1d": (ops.adaptive_max_pool1d.default, (t(2, 3, 8), [3], False)),
        "adaptive_max_pool3d": (ops.adaptive_max_pool3d.default, (volume, [2, 1, 3])),
        "fractional_max_pool3d": (
            ops.fractional_max_pool3d.default,
            (volume, [2, 2, 2], [2, 2, 3], torch.rand(1, 2, 3)),
        ),
        "max_unpool1d": (ops.max_unpool1d.default, (t(2, 3, 3), SWITCHES[..., 0] // 2, [3])),
        "max_unpool3d": (ops.max_unpool3d.default, (t(2, 3, 3, 2, 1), SWITCHES[..., None], [2, 2, 2])),
        "avg_pool2d": (ops.avg_pool2d.default, (image, [2, 2], [], [1, 1], True, False, 3)),
        "average_pool": (ops.average_pool.default, (image, [3, 2], [2, 2], [2, 2], NONE[:2], True, None)),
        "average_pool-channels_last": (
            ops.average_pool.default,
            (channels_last(image), [4, 3], [], [], [], False, None),
        ),
        "average_pool_backward": (
            ops.average_pool_backward.default,
            (t(2, 3, 3, 2), [2, 3, 6, 4], [2, 2], [2, 2], NONE[:2], True, None),
        ),
        "lp_pool2d": (ops.lp_pool2d.default, (image, 2.0, [2, 2])),
        "lp_pool": (ops.lp_pool.default, (image, [3, 2], [2, 2], [2, 2], 2.0)),
        "lp_pool_backward": (
            ops.lp_pool_backward.default,
            (t(2, 3, 3, 2, grad=False), image.detach(), t(2, 3, 3, 2, grad=False), [2, 2], [2, 2], 2.0),
        ),
        "adaptive_avg_pool2d": (ops.adaptive_avg_pool2d.default, (image, [4, 3])),
        "adaptive_max_pool2d": (ops.adaptive_max_pool2d.default, (image, [4, 3])),
        "adaptive_max_pool2d-even": (ops.adaptive_max_pool2d.default, (channels_last(image), [3, 2])),
        "fractional_max_pool2d": (
            ops.fractional_max_pool2d.default,
            (image, [2, 2], [3, 2], torch.rand(2, 3, 2)),
        ),
        "max_unpool2d": (ops.max_unpool2d.default, (t(2, 3, 3, 2), SWITCHES, [2, 2])),
        "switch_gather": (ops.switch_gather.default, (image, SWITCHES)),
        "switch_sum": (ops.switch_sum.default, (t(2, 3, 3, 2), SWITCHES, [6, 4])),
        "switch_place": (ops.switch_place.default, (channels_last(t(2, 3, 3, 2)), SWITCHES, [6, 4])),
        "switch_pool": (ops.switch_pool.default, (channels_last(image), [4, 3], [], None)),
        "batch_norm": (ops.batch_norm.default, (image, t(3), t(3), None, None, None, True, 0.1, 1e-5)),
        "batch_norm-running": (ops.batch_norm.default, (image, t(3), t(3), mean, var, count, True, None, 1e-5)),
        "batch_norm-eval": (ops.batch_norm.default, (image, None, t(3), mean, var, count, False, 0.1, 1e-5)),
        "batch_norm_forward": (
            ops.batch_norm_forward.default,
            (image, None, None, mean, var, count, True, 0.1, 1e-5),
        ),
        "batch_norm_backward": (
            ops.batch_norm_backward.default,
            (t(2, 3, 6, 4), image, t(3), mean, var, True, [True, True, True]),
        ),
        "batch_norm_backward-masked": (
            ops.batch_norm_backward.default,
            (t(2, 3, 6, 4), image, t(3), mean, var, False, [True, False, True]),
        ),
        "batch_norm-skip": (
            ops.batch_norm.default,
            (image, t(3), t(3), mean, var, count, True, None, 1e-5, True),
        ),
        "batch_norm_act": (
            ops.batch_norm_act.default,
            (image, t(2, 3, 6, 4), t(3), t(3), mean, var, count, True, None, 1e-5, "relu", 0.0, True),
        ),
        "batch_norm_act-eval": (
            ops.batch_norm_act.default,
            (image, None, t(3), None, mean, var, count, False, 0.1, 1e-5, "elu", 1.0),
        ),
        "batch_norm_act-elu": (
            ops.batch_norm_act.default,
            (image, t(2, 3, 6, 4), t(3), t(3), None, None, None, True, 0.1, 1e-5, "elu", 1.0),
        ),
        "batch_norm_act_forward": (
            ops.batch_norm_act_forward.default,
            (image, t(2, 3, 6, 4), None, None, mean, var, count, True, 0.1, 1e-5, "leaky_relu", 0.1, True),
        ),
        "batch_norm_act_forward-relu_alpha": (
            ops.batch_norm_act_forward.default,
            (image, t(2, 3, 6, 4), None, None, None, None, None, True, 0.1, 1e-5, "relu", 1.0, True),
        ),
        "batch_norm_act_forward-channels_last": (
            ops.batch_norm_act_forward.default,
            (channels_last(image), None, None, None, None, None, None, True, 0.1, 1e-5, "relu", 0.0, True),
        ),
        "batch_norm_act_backward": (
            ops.batch_norm_act_backward.default,
            (*activated, *saved, no_mask, None, True, "relu", 0.0, [True, True, True, True]),
        ),
        "batch_norm_act_backward-masked": (
            ops.batch_norm_act_backward.default,
            (*activated, *saved, mask, None, False, "leaky_relu", 0.1, [True, False, True, False]),
        ),
        "batch_norm_act_gradient": (
            ops.batch_norm_act_gradient.default,
            (t(2, 3, 6, 4), image.detach(), saved[0], *saved[2:], mask, None, "leaky_relu", 0.1),
        ),
        "batch_norm_act_apply": (
            ops.batch_norm_act_apply.default,
            (image.detach(), t(2, 3, 6, 4, grad=False), mean, var, mean, "relu", 0.0),
        ),
        "batch_norm_double_backward": (
            ops.batch_norm_double_backward.default,
            (
                t(2, 3, 6, 4, grad=False),
                None,
                None,
                t(2, 3, 6, 4, grad=False),
                image.detach(),
                None,
                mean,
                var,
                True,
                [True, True, False],
            ),
        ),
        "batch_norm_statistics": (ops.batch_norm_statistics.default, (image.detach(),)),
        "activation": (ops.activation.default, (t(2, 6, 5), None, "softplus", 1.5)),
        "activation-sum": (ops.activation.default, (channels_last(t(2, 6, 5, 4)), t(2, 6, 5, 4), "silu", 0.0)),
        "activation_backward": (ops.activation_backward.default, (t(2, 6, 5), t(2, 6, 5), None, "tanh", 0.0)),
        "activation_backward-sum": (
            ops.activation_backward.default,
            (t(2, 6, 5), t(2, 6, 5), t(2, 6, 5), "gelu", 0.0),
        ),
        "maxout": (ops.maxout.default, (t(2, 6, 5, 4), 3)),
        "maxout-channels_last": (ops.maxout.default, (channels_last(t(2, 6, 5, 4)), 3, True)),
        **sample_norm_calls(),
        **recurrence_calls(),
        "lstm_cell": (ops.lstm_cell.default, (t(2, 5), hidden, t(2, 3), t(12, 5), t(12, 3), bias, None)),
        "lstm_cell_step": (
            ops.lstm_cell_step.default,
            (t(2, 5), hidden, t(2, 3), t(12, 5), t(12, 3), bias, None, True),
        ),
        "lstm_cell_step_backward": (
            ops.lstm_cell_step_backward.default,
            (
                *(t(2, 3), None, t(2, 5), hidden, t(2, 3), t(12, 5), t(12, 3), bias, None, gates.detach()),
                [True, True, True, True, False, True],
            ),
        ),
        "lstm_cell_products": (ops.lstm_cell_products.default, products),
        "lstm_cell_products_backward": (
            ops.lstm_cell_products_backward.default,
            (gates.detach(), *products, [True, False, True, True]),
        ),
        "lstm_cell_pointwise": (ops.lstm_cell_pointwise.default, (gates, bias, t(12), hidden)),
        "lstm_cell_pointwise_backward": (
            ops.lstm_cell_pointwise_backward.default,
            (t(2, 3), None, gates, bias, None, hidden, [True, True, True]),
        ),
        "lstm_cell_pointwise_double_backward": (
            ops.lstm_cell_pointwise_double_backward.default,
            (
                t(2, 12, grad=False),
                None,
                None,
                t(2, 3, grad=False),
                None,
                gates.detach(),
                None,
                None,
                hidden.detach(),
                [True, True, True, True, False],
            ),
        ),
    }
    return [pytest.param(op, arguments, id=name) for name, (op, arguments) in calls.items()]


@pytest.mark.parametrize("op, arguments", dispatcher_calls())
def test_opcheck(op, arguments):
    """Schema, autograd registration, fake kernels (static and dynamic shapes), AOT autograd."""
    opcheck(
        op,
        tuple(a.clone().detach().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in arguments),
    )


def test_every_op_is_checked():
    """A new op in the library must appear in the list above."""
    defined = {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("fastnn::")
    }
    assert defined == {p.values[0]._schema.name.split("::")[1] for p in dispatcher_calls()}


@dataclass(frozen=True)
class Traced:
    """The same computation by fastnn's functions and by torch's; ``sizes`` are those of its tensors."""

    id: str
    ours: Callable[..., Tensor]
    torch_s: Callable[..., Tensor]
    sizes: tuple[tuple[int, ...], ...]

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [t(*size, dtype=dtype) for size in self.sizes]


def conv_net(f: Any) -> Callable[..., Tensor]:
    return lambda x, w, b: f.conv2d(x, w, b, stride=(2, 1), padding=1, groups=2).square()


def same_net(f: Any) -> Callable[..., Tensor]:
    return lambda x, w, b: f.conv2d(x, w, b, padding="same", dilation=(1, 2)).tanh()


def transposed_net(f: Any) -> Callable[..., Tensor]:
    def net(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return f.conv_transpose2d(x, w, b, stride=2, padding=(1, 0), output_padding=1, groups=2).square()

    return net


def ranks_net(f: Any) -> Callable[..., Tensor]:
    """conv3d, then conv1d over what it gives."""

    def net(x: Tensor, w: Tensor, b: Tensor, w1: Tensor) -> Tensor:
        return f.conv1d(f.conv3d(x, w, b, padding=1).flatten(2).tanh(), w1, stride=2).tanh()

    return net


def pool_net(f: Any) -> Callable[..., Tensor]:
    return lambda x: f.max_pool2d(x, 3, 2, 1, ceil_mode=True).square()


def norm_net(f: Any) -> Callable[..., Tensor]:
    return lambda x, w, b: f.batch_norm(x, None, None, w, b, training=True).square()


def block_end(f: Any) -> Callable[..., Tensor]:
    """The end of a residual block, from fastnn's function or torch's."""

    def net(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> Tensor:
        if f is F:
            y = F.batch_norm_relu(x, None, None, w, b, training=True, activation="leaky_relu", alpha=0.1)
            return F.batch_norm_add_relu(y, r, None, None, w, b, training=True).square()
        y = f.leaky_relu(f.batch_norm(x, None, None, w, b, training=True), 0.1)
        return (f.batch_norm(y, None, None, w, b, training=True) + r).relu().square()

    return net


def pooling_net(f: Any) -> Callable[..., Tensor]:
    """Average, L_p, adaptive and unpooling, one after another."""

    def net(x: Tensor) -> Tensor:
        y = f.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        y = f.lp_pool2d(y, 2, 2, 1) + f.adaptive_avg_pool2d(y, (6, 5))
        y, places = f.adaptive_max_pool2d(y, (3, 4), return_indices=True)
        y = f.max_unpool2d(y, places, 2, output_size=(6, 8))
        return (y.flatten(2).sum(2, keepdim=True) + f.avg_pool1d(y.flatten(2), 5)).square()

    return net


def norm_eval_net(f: Any) -> Callable[..., Tensor]:
    def net(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return f.batch_norm(x, torch.zeros_like(w), torch.ones_like(w), w, b, training=False).square()

    return net


def cell_net(cell: Any) -> Callable[..., Tensor]:
    def net(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> Tensor:
        for _ in range(2):
            h, c = cell(x, (h, c), *weights)
        return torch.cat([h, c], 1)

    return net


def gru_net(x: Tensor, h: Tensor, *weights: Tensor) -> Tensor:
    return torch.cat(F.gru(x, h, *weights)[:1] + F.gru(x, h, *weights, reverse=True)[:1], -1)


def torch_gru_net(x: Tensor, h: Tensor, *weights: Tensor) -> Tensor:
    def run(x: Tensor) -> Tensor:
        outputs = [h]
        for step in x:
            outputs.append(torch.gru_cell(step, outputs[-1], *weights))
        return torch.stack(outputs[1:])

    return torch.cat([run(x), run(x.flip(0)).flip(0)], -1)


IMAGE = (2, 4, 7, 6)
CELL = ((3, 5), (3, 4), (3, 4), (16, 5), (16, 4), (16,), (16,))
NETS = [
    Traced("conv2d", conv_net(F), conv_net(torch_functional), (IMAGE, (6, 2, 3, 2), (6,))),
    Traced("conv2d-same", same_net(F), same_net(torch_functional), (IMAGE, (6, 4, 2, 3), (6,))),
    Traced("conv_transpose2d", transposed_net(F), transposed_net(torch_functional), (IMAGE, (4, 3, 3, 2), (6,))),
    Traced(
        "conv3d-conv1d",
        ranks_net(F),
        ranks_net(torch_functional),
        ((2, 4, 3, 5, 4), (6, 4, 3, 2, 3), (6,), (5, 6, 4)),
    ),
    Traced("max_pool2d", pool_net(F), pool_net(torch_functional), (IMAGE,)),
    Traced("pooling", pooling_net(F), pooling_net(torch_functional), (IMAGE,)),
    Traced("batch_norm", norm_net(F), norm_net(torch_functional), (IMAGE, (4,), (4,))),
    Traced("batch_norm_act", block_end(F), block_end(torch_functional), (IMAGE, IMAGE, (4,), (4,))),
    Traced("batch_norm-eval", norm_eval_net(F), norm_eval_net(torch_functional), (IMAGE, (4,), (4,))),
    Traced("lstm_cell", cell_net(F.lstm_cell), cell_net(torch.lstm_cell), CELL),
    Traced("gru", gru_net, torch_gru_net, ((5, 3, 4), (3, 2), (6, 4), (6, 2), (6,), (6,))),
]
every_net = pytest.mark.parametrize("net", NETS, ids=lambda net: net.id)


def value_and_grads(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out = function(*leaves)
    weights = torch.randn(out.shape, generator=generator_for("loss", out.shape)).to(out)
    return [out, *torch.autograd.grad((out * weights).sum(), leaves)]


def assert_close(a: Any, b: Any, relative: float = 1e-4, absolute: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=relative, atol=absolute)


@every_net
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile_has_no_graph_break(net, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(net.ours, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    tensors = net.tensors()
    for a, b in zip(value_and_grads(compiled, tensors), value_and_grads(net.torch_s, tensors), strict=True):
        assert_close(a, b)
    if dynamic:  # the same graph serves another batch and image
        sizes = [(size[0] + 3, *size[1:]) if size[:2] == net.sizes[0][:2] else size for size in net.sizes]
        if net.id == "lstm_cell":
            sizes = [(7, *size[1:]) if size[0] == 3 else size for size in net.sizes]
        tensors = [t(*size) for size in sizes]
        for a, b in zip(value_and_grads(compiled, tensors), value_and_grads(net.torch_s, tensors), strict=True):
            assert_close(a, b)


def test_compile_with_inductor():
    """One network with all four ops through the default backend."""
    torch._dynamo.reset()

    def network(f: Any, cell: Any) -> Callable[..., Tensor]:
        def run(x: Tensor, w: Tensor, scale: Tensor, shift: Tensor, *weights: Tensor) -> Tensor:
            y = f.batch_norm(f.conv2d(x, w, padding=1), None, None, scale, shift, training=True).relu()
            y = f.max_pool2d(y, 2).flatten(1)[:, :5]
            h, c = cell(y, (torch.zeros_like(y[:, :4]), torch.ones_like(y[:, :4])), *weights)
            return h + c

        return run

    tensors = [t(3, 4, 6, 6), t(6, 4, 3, 3), t(6), t(6), t(16, 5), t(16, 4), t(16), t(16)]
    compiled = torch.compile(network(F, F.lstm_cell), fullgraph=True)
    expected = value_and_grads(network(torch_functional, torch.lstm_cell), tensors)
    for a, b in zip(value_and_grads(compiled, tensors), expected, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compile_moves_the_running_statistics(training):
    torch._dynamo.reset()
    x, mean, var = t(4, 3, 5, grad=False), torch.zeros(3), torch.ones(3)
    expected = mean.clone(), var.clone()

    def run(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, training=training)

    assert_close(
        torch.compile(run, fullgraph=True, backend="aot_eager")(x, mean, var),
        torch_functional.batch_norm(x, *expected, training=training),
    )
    assert_close((mean, var), expected)
    assert training != torch.equal(mean, torch.zeros(3))


@every_net
@pytest.mark.parametrize("tracing", ["real", "fake", "symbolic"])
def test_make_fx(net, tracing):
    """The graph of forward and backward, run again on other values of the same shapes."""

    def step(*tensors: Tensor) -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        return list(torch.autograd.grad(net.ours(*leaves).sum(), leaves))

    tensors = [tensor.detach() for tensor in net.tensors()]
    graph = make_fx(step, tracing_mode=tracing)(*tensors)
    assert any("fastnn" in str(node.target) for node in graph.graph.nodes)
    others = [tensor * 0.5 + 0.1 for tensor in tensors]
    leaves = [tensor.requires_grad_() for tensor in others]
    expected = torch.autograd.grad(net.torch_s(*leaves).sum(), leaves)
    for a, b in zip(graph(*(tensor.detach() for tensor in others)), expected, strict=True):
        assert_close(a, b)


@every_net
@pytest.mark.parametrize("transform", ["grad", "jacrev", "jacfwd", "jvp", "hessian"])
@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching rule")
def test_func_transforms(net, transform):
    """The transforms of torch.func give what they give for torch's own functions, in float64."""
    tensors = [tensor.detach() for tensor in net.tensors(torch.float64)]
    # Small enough for a Hessian: the transform is by the last tensor, the function a sum of squares.
    if net.id == "max_pool2d":
        tensors = [tensors[0][:1, :2]]
    last = len(tensors) - 1

    def scalar(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args: function(*args).pow(2).sum()

    def apply(function: Callable[..., Tensor]) -> Any:
        if transform == "grad":
            return grad(scalar(function), argnums=tuple(range(len(tensors))))(*tensors)
        if transform == "jvp":
            return jvp(function, tuple(tensors), tuple(tensor.cos() for tensor in tensors))
        if transform == "hessian":
            return hessian(scalar(function), argnums=last)(*tensors)
        return {"jacrev": jacrev, "jacfwd": jacfwd}[transform](function, argnums=last)(*tensors)

    assert_close(apply(net.ours), apply(net.torch_s), 1e-9, 1e-10)


@every_net
@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching rule")
def test_vmap(net):
    """Over the input alone (an ensemble's data) and over everything (an ensemble of models)."""
    tensors = [tensor.detach() for tensor in net.tensors(torch.float64)]
    stack = [torch.stack([tensor, 2 * tensor + 0.1, -tensor]) for tensor in tensors]
    everything = vmap(net.ours)(*stack)
    first = vmap(net.ours, in_dims=(0, *[None] * (len(tensors) - 1)))(stack[0], *tensors[1:])
    for index in range(3):
        assert_close(everything[index], net.torch_s(*(s[index] for s in stack)), 1e-9, 1e-10)
        assert_close(first[index], net.torch_s(stack[0][index], *tensors[1:]), 1e-9, 1e-10)


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching rule")
def test_per_sample_gradients():
    """functional_call, grad and vmap together, as in torch's tutorial."""
    import fastnn

    model = torch.nn.Sequential(fastnn.nn.Conv2d(2, 3, 3), torch.nn.ReLU(), fastnn.nn.MaxPool2d(2)).double()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    images = t(5, 2, 6, 6, dtype=torch.float64, grad=False)

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(model, parameters, (image[None],)).square().sum()

    per_sample = vmap(grad(loss), in_dims=(None, 0))(parameters, images)
    for index, image in enumerate(images):
        model.zero_grad()
        model(image[None]).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert_close(per_sample[name][index], parameter.grad, 1e-9, 1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("net", [net for net in NETS if net.id != "gru"], ids=lambda net: net.id)  # torch's mixes types
def test_autocast(net, dtype):
    """Outputs and gradients have the dtypes that torch's own functions have under autocast, and close values."""
    tensors = net.tensors()
    with torch.autocast("cpu", dtype=dtype):
        try:
            expected = value_and_grads(net.torch_s, tensors)
        except RuntimeError as error:
            pytest.skip(f"torch itself: {error}")
        got = value_and_grads(net.ours, tensors)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        scale = float(b.detach().abs().max()) + 1e-6
        assert float((a.double() - b.double()).detach().abs().max()) <= 0.04 * scale


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_of_a_network(dtype):
    """Ops one after another under autocast; gradients come back in the parameters' own dtype."""
    w, scale, shift = t(6, 4, 3, 3), t(6), t(6)
    with torch.autocast("cpu", dtype=dtype):
        y = F.conv2d(t(2, 4, 6, 6), w, padding=1)
        assert y.dtype == dtype
        z = F.batch_norm(y, None, None, scale, shift, training=True)
        out = F.max_pool2d(z, 2)
        torch_s = torch_functional.max_pool2d(
            torch_functional.batch_norm(y.detach(), None, None, scale, shift, training=True), 2
        )
    assert out.dtype == torch_s.dtype
    out.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in (w, scale, shift))
