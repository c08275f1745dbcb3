"""Cases of the LSTM cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fastnn.testing.case import WIDE_RANGE, Case, draw, lay_out


@dataclass(frozen=True, kw_only=True)
class LstmCellCase(Case):
    """input [N, I]; hx, cx [N, H]; w_ih [4H, I]; w_hh [4H, H]; b_ih, b_hh [4H].

    ``through`` names the outputs through which the gradient comes: ``both``, ``h`` or ``c``.
    """

    op: ClassVar[str] = "lstm_cell"
    outputs: ClassVar[tuple[str, ...]] = ("h", "c")
    differentiable: ClassVar[tuple[str, ...]] = ("input", "hx", "cx", "w_ih", "w_hh", "b_ih", "b_hh")
    rows: int
    input_size: int
    hidden_size: int
    bias: bool = True
    through: str = "both"

    def make_inputs(self, dtype, device, layout, generator):
        """See ``Case.make_inputs``."""
        n, i, h = self.rows, self.input_size, self.hidden_size
        inputs = {
            "input": draw((n, i), self.values, generator),
            "hx": draw((n, h), "normal", generator),
            # Only the cell state may be huge: huge gates would saturate every unit and hide the rest.
            "cx": draw((n, h), self.values, generator),
            "w_ih": draw((4 * h, i), "normal", generator) / max(i, 1) ** 0.5,
            "w_hh": draw((4 * h, h), "normal", generator) / max(h, 1) ** 0.5,
        }
        if self.values == "huge":
            inputs["input"] = draw((n, i), "normal", generator)
        if self.bias:
            inputs["b_ih"] = draw((4 * h,), "normal", generator)
            inputs["b_hh"] = draw((4 * h,), "normal", generator)
        return {name: lay_out(tensor.to(dtype).to(device), layout) for name, tensor in inputs.items()}

    def apply(self, functional, inputs):
        """See ``Case.apply``."""
        return tuple(
            functional.lstm_cell(
                inputs["input"],
                (inputs["hx"], inputs["cx"]),
                inputs["w_ih"],
                inputs["w_hh"],
                inputs.get("b_ih"),
                inputs.get("b_hh"),
            )
        )


def _lstm(id: str, rows: int, input_size: int, hidden_size: int, **options: Any) -> LstmCellCase:
    return LstmCellCase(id=id, rows=rows, input_size=input_size, hidden_size=hidden_size, **options)


LSTM_CELL = (
    _lstm("2x3x4", 2, 3, 4, small=True),
    _lstm("no_bias", 2, 3, 4, bias=False, small=True),
    _lstm("through_h", 3, 5, 6, through="h", small=True),
    _lstm("through_c", 3, 5, 6, through="c", small=True),
    _lstm("through_c_no_bias", 3, 5, 7, through="c", bias=False, small=True),
    _lstm("hidden_odd", 5, 7, 13, small=True),
    _lstm("hidden_32", 3, 8, 32, small=True),
    _lstm("hidden_1", 3, 2, 1, small=True),
    _lstm("one_of_everything", 1, 1, 1, small=True),
    _lstm("batch_0", 0, 4, 5, small=True),
    _lstm("batch_0_no_bias", 0, 4, 5, bias=False, small=True),
    _lstm("batch_1", 1, 6, 9, small=True),
    _lstm("many_rows", 301, 3, 5, crosses_tile=True),
    _lstm("wide_hidden", 6, 9, 261, crosses_tile=True),
    _lstm("wide_both", 70, 33, 67, crosses_tile=True),
    _lstm("wide_input", 4, 300, 17),
    _lstm("characters", 64, 65, 128),
    _lstm("nonfinite", 6, 5, 7, values="nonfinite", small=True),
    _lstm("huge_cell", 4, 5, 7, values="huge", dtypes=WIDE_RANGE, small=True),
)
