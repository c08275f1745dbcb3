"""What recurrent layers and cells share: how layers and directions are run, and what is done with options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.parameter import Parameter
from torch.nn.utils.rnn import PackedSequence

from fastnn.nn.recurrent_options import CellOptions, States, Weights

# ---- layers -------------------------------------------------------------------------------------------------


class RecurrentLayer(torch.nn.RNNBase):
    """Layers and directions of any cell, over padded, packed and single sequences.

    Attributes:
        cell_options: what makes the cell a variant.
        memory_efficient: whether backward makes the gates again and forward keeps none.
    """

    cell_options: CellOptions
    memory_efficient: bool = False
    _compute: ClassVar[Callable[..., Any]]
    _state_names: ClassVar[tuple[str, ...]] = ("hx",)  # as errors call them

    def _take_options(self, options: CellOptions, memory_efficient: bool) -> None:
        """Makes a layer that torch's constructor has made one with these options."""
        if not isinstance(memory_efficient, bool):
            raise ValueError(f"memory_efficient must be True or False, got {memory_efficient!r}")
        if memory_efficient:
            self.memory_efficient = True
        directions = 2 if self.bidirectional else 1
        state = self.proj_size or self.hidden_size
        inputs = [self.input_size, *[state * directions] * (self.num_layers - 1)]
        for size in inputs:
            options.check_sizes(type(self).__name__, size, self.hidden_size, self.bias)
        if options == self.cell_options and options.is_plain:
            return
        self.cell_options = options
        like = {"dtype": self._flat_weights[0].dtype, "device": self._flat_weights[0].device}
        for name in self._flat_weights_names:
            delattr(self, name)
        self._flat_weights_names, self._all_weights = [], []
        for layer in range(self.num_layers):
            for suffix in ("", "_reverse")[:directions]:
                shapes = options.shapes(inputs[layer], self.hidden_size, self.bias, self.proj_size)
                for name, shape in shapes.items():
                    setattr(self, f"{name}_l{layer}{suffix}", Parameter(torch.empty(shape, **like)))
                names = [f"{name}_l{layer}{suffix}" for name in shapes]
                self._flat_weights_names.extend(names)
                self._all_weights.append(names)
        self._init_flat_weights()
        self.reset_parameters()

    @property
    def is_plain(self) -> bool:
        """Whether torch's layer of the same name computes the same."""
        return self.cell_options.is_plain

    def reset_parameters(self) -> None:
        """Draws the weights as torch does, within ``1 / sqrt(H)`` of 0; gains begin at 1, biases of norms at 0."""
        super().reset_parameters()
        for index in range(len(self._all_weights)):
            self.cell_options.reset(self._weights_of(index), self.hidden_size)

    def flatten_parameters(self) -> None:
        """As torch's, which knows torch's weights alone: of variants nothing."""
        if self.is_plain:
            super().flatten_parameters()

    def extra_repr(self) -> str:
        """As torch's, and the options that are given."""
        efficient = "memory_efficient=True" if self.memory_efficient else ""
        return ", ".join(filter(None, (super().extra_repr(), str(self.cell_options), efficient)))

    def _weights_of(self, index: int) -> Weights:
        """Of one direction of one layer, by their names without what follows them."""
        return {name.rsplit("_l", 1)[0]: getattr(self, name) for name in self._all_weights[index]}

    def _zero_states(self, like: Tensor, batch: int) -> Any:
        states = self.num_layers * (2 if self.bidirectional else 1)
        return like.new_zeros(states, batch, self.hidden_size)

    def _split_states(self, hx: Any) -> States:
        return (hx,)

    def _join_states(self, states: States) -> Any:
        return states[0]

    def _call_compute(self, input: Tensor, states: States, weights: Weights, **steps: Any) -> tuple[Tensor, ...]:
        """One direction of one layer."""
        steps["memory_efficient"] = self.memory_efficient
        return self.cell_options.call(type(self)._compute, input, states, weights, self.training, **steps)

    def _run_sequences(
        self, input: Tensor | PackedSequence, hx: Any, lengths: Tensor | None, **wanted: bool
    ) -> tuple[list[Any], Any]:
        """The outputs of every step, of which ``wanted`` may ask for more, and the last states."""
        name = type(self).__name__
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError(f"{name}: got lengths beside a PackedSequence, which has its own")
            data, batch_sizes, sorted_indices, unsorted_indices = input
            hx = self._zero_states(data, int(batch_sizes[0])) if hx is None else self.permute_hidden(hx, sorted_indices)
            self.check_forward_args(data, hx, batch_sizes)
            outputs, hidden = self._run_layers(data, hx, batch_sizes, None, **wanted)
            packed = [PackedSequence(o, batch_sizes, sorted_indices, unsorted_indices) for o in outputs]
            return packed, self.permute_hidden(hidden, unsorted_indices)
        if input.dim() not in (2, 3):
            raise ValueError(f"{name}: Expected input to be 2D or 3D, got {input.dim()}D instead")
        batch_dim, batched = 0 if self.batch_first else 1, input.dim() == 3
        if not batched:
            if lengths is not None:
                raise ValueError(f"{name}: got lengths for a single sequence; it has its own")
            input = input.unsqueeze(batch_dim)
        zeros = hx is None
        hx = self._zero_states(input, input.size(batch_dim)) if zeros else self._batched_states(hx, batched)
        self.check_forward_args(input, hx, None)
        outputs, hidden = self._run_layers(
            input.transpose(0, 1) if self.batch_first else input, hx, None, lengths, **wanted
        )
        if self.batch_first:
            outputs = [output.transpose(0, 1) for output in outputs]
        if batched:
            return outputs, hidden
        single = tuple(state.squeeze(1) for state in self._split_states(hidden))
        return [output.squeeze(batch_dim) for output in outputs], self._join_states(single)

    def _batched_states(self, hx: Any, batched: bool) -> Any:
        """States beside a padded or, with a batch of 1 put into them, a single sequence."""
        states = self._split_states(hx)
        dim, said = (3, "batched 3-D") if batched else (2, "unbatched 2-D")
        if any(state.dim() != dim for state in states):
            got = ", ".join(f"{state.dim()}-D" for state in states)
            got = f"{got} tensor" if len(states) == 1 else f"({got}) tensors"
            raise RuntimeError(
                f"For {said} input, {' and '.join(self._state_names)} should also be {dim}-D but got {got}"
            )
        return hx if batched else self._join_states(tuple(state.unsqueeze(1) for state in states))

    def _run_layers(
        self, input: Tensor, hx: Any, batch_sizes: Tensor | None, lengths: Tensor | None, **wanted: bool
    ) -> tuple[list[Tensor], Any]:
        """All layers, of ``[T, N, I]`` or packed rows."""
        directions = 2 if self.bidirectional else 1
        states, last = self._split_states(hx), []
        first = list(zip(*(state.unbind() for state in states), strict=True))
        outputs: list[Tensor] = [input]
        for layer in range(self.num_layers):
            if layer > 0 and self.dropout > 0:
                outputs[0] = torch.nn.functional.dropout(outputs[0], self.dropout, self.training)
            made = []
            for direction in range(directions):
                index = layer * directions + direction
                y, *rest = self._call_compute(
                    outputs[0],
                    first[index],
                    self._weights_of(index),
                    batch_sizes=batch_sizes,
                    lengths=lengths,
                    reverse=direction == 1,
                    **wanted,
                )
                last.append(rest[: len(states)])
                made.append([y, *rest[len(states) :]])
            outputs = [each[0] if directions == 1 else torch.cat(each, -1) for each in zip(*made, strict=True)]
        joined = (torch.stack(each) if len(each) > 1 else each[0].unsqueeze(0) for each in zip(*last, strict=True))
        return outputs, self._join_states(tuple(joined))


# ---- cells --------------------------------------------------------------------------------------------------


class RecurrentCell(torch.nn.RNNCellBase):
    """One step of any cell, of a batch or of one sample.

    Attributes:
        cell_options: what makes the cell a variant.
    """

    cell_options: CellOptions
    _compute: ClassVar[Callable[..., Any]]

    def _take_options(self, options: CellOptions) -> None:
        """Makes a cell that torch's constructor has made one with these options."""
        options.check_sizes(type(self).__name__, self.input_size, self.hidden_size, self.bias)
        if options == self.cell_options and options.is_plain:
            return
        self.cell_options = options
        like = {"dtype": self.weight_ih.dtype, "device": self.weight_ih.device}
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            delattr(self, name)
        shapes = options.shapes(self.input_size, self.hidden_size, self.bias, 0)
        for name in options.shapes(self.input_size, self.hidden_size, True, 0):
            weight = Parameter(torch.empty(shapes[name], **like)) if name in shapes else None
            self.register_parameter(name, weight)
        self.reset_parameters()

    @property
    def is_plain(self) -> bool:
        """Whether torch's cell of the same name computes the same."""
        return self.cell_options.is_plain

    def reset_parameters(self) -> None:
        """Draws the weights as torch does, within ``1 / sqrt(H)`` of 0; gains begin at 1, biases of norms at 0."""
        super().reset_parameters()
        self.cell_options.reset(self._weights_of(), self.hidden_size)

    def extra_repr(self) -> str:
        """As torch's, and the options that are given."""
        return ", ".join(filter(None, (super().extra_repr(), str(self.cell_options))))

    def _weights_of(self) -> Weights:
        names = self.cell_options.shapes(self.input_size, self.hidden_size, self.bias, 0)
        return {name: getattr(self, name) for name in names}

    def _call_compute(self, input: Tensor, states: States, **others: Any) -> Any:
        return self.cell_options.call(type(self)._compute, input, states, self._weights_of(), self.training, **others)

    def _batched_states(self, input: Tensor, hx: States | None, names: tuple[str, ...]) -> tuple[Tensor, States]:
        """The input and the states as a batch, which one sample is of one; None becomes zeros."""
        name = type(self).__name__
        if input.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        for state, said in zip(() if hx is None else hx, names, strict=False):
            if state.dim() not in (1, 2):
                raise ValueError(f"{name}: Expected {said} to be 1D or 2D, got {state.dim()}D instead")
        batched = input.dim() == 2
        if not batched:
            input = input.unsqueeze(0)
        if hx is None:
            hx = (input.new_zeros(input.size(0), self.hidden_size),) * len(names)
        elif not batched:
            hx = tuple(state.unsqueeze(0) for state in hx)
        return input, hx
