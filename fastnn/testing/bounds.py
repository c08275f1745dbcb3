"""The oracle of a case and how far a kernel may be from it; see :mod:`fastnn.testing.bounded`."""

from __future__ import annotations

from torch import Tensor

from .activation_bounds import expected_activation
from .bounded import Bounded, Expected, repeated_terms, tf32_products
from .cases import (
    ActivationCase,
    BatchNormCase,
    Case,
    ConvCase,
    GroupNormCase,
    InstanceNormCase,
    LocalResponseNormCase,
    LstmCellCase,
    MaxoutCase,
    MaxPool2dCase,
    PoolingCase,
    RecurrenceCase,
)
from .cell_bounds import expected_lstm_cell
from .convolution_bounds import expected_conv_transpose, expected_convolution, expected_locally_connected
from .convolution_cases import ConvTransposeCase, LocallyConnectedCase
from .normalisation_bounds import expected_batch_norm, expected_group_norm, expected_local_response_norm
from .pooling_bounds import expected_max_pool2d, expected_maxout, expected_pooling
from .recurrence_bounds import expected_recurrence

__all__ = ["Bounded", "Expected", "expected", "repeated_terms", "tf32_products"]


def expected(case: Case, inputs: dict[str, Tensor], cotangents: list[Tensor | None]) -> Expected:
    """Oracle and bounds of a case.

    Args:
        case: the case; its type chooses the oracle.
        inputs: what ``case.make_inputs`` gave, any floating dtype, layout and device.
        cotangents: gradient of the loss with respect to each floating output; None for an output that the loss
            does not use.

    Returns:
        values in float64 on the CPU with their bounds.
    """
    oracles = {
        ActivationCase: expected_activation,
        ConvTransposeCase: expected_conv_transpose,
        LocallyConnectedCase: expected_locally_connected,
        ConvCase: expected_convolution,
        MaxoutCase: expected_maxout,
        MaxPool2dCase: expected_max_pool2d,
        PoolingCase: expected_pooling,
        BatchNormCase: expected_batch_norm,
        GroupNormCase: expected_group_norm,
        InstanceNormCase: expected_group_norm,
        LocalResponseNormCase: expected_local_response_norm,
        LstmCellCase: expected_lstm_cell,
        RecurrenceCase: expected_recurrence,
    }
    compute = next(oracle for kind, oracle in oracles.items() if isinstance(case, kind))
    exact = {name: tensor.detach().cpu().double().contiguous() for name, tensor in inputs.items()}
    grads = [None if c is None else c.detach().cpu().double().contiguous() for c in cotangents]
    return compute(case, exact, grads, inputs)
