"""Runs the cases of a plan on fastnn and on torch, and judges both by the same oracle."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import fastnn.functional
from fastnn.check.plants import plant
from fastnn.check.selection import Device, Plan, thread_count
from fastnn.check.tally import Group, Run, Tally
from fastnn.testing import trial
from fastnn.testing.bounds import Bounded
from fastnn.testing.cases import TORCH, BatchNormCase, Case, RecurrenceCase
from fastnn.testing.judge import Errors, find_fault, measure, same_bits
from fastnn.testing.trial import SECOND

# Of these values second derivatives are ordinary numbers, for which their normwise bound is meant.
SECOND_VALUES = ("normal", "integers", "ties")

FIRST = "forward and backward"

Expected = dict[str, tuple[Bounded, torch.dtype]]
Results = dict[str, Tensor | None]


def check(plan: Plan, repeat: int, planted: str | None, tally: Tally, done: Callable[[], Any]) -> None:
    """Runs a plan.

    Args:
        plan: what to run.
        repeat: how often fastnn computes each result; all must have the same bits.
        planted: kind of fault to put into fastnn's results, see ``plants.PLANTS``.
        tally: takes what is found, as soon as it is.
        done: called after each run.
    """
    threads = torch.get_num_threads()
    # The oracle's and the judge's tensors are too small to be shared among threads.
    with full_precision(), thread_count(1):
        for case, dtype, places in plan.items:
            # The same values in all layouts but one: `expanded` repeats a row.
            oracles: dict[bool, dict[str, Expected]] = {}
            for device, layouts in places:
                for layout in layouts:
                    run = Run(case.op, case.id, str(dtype).removeprefix("torch."), layout, device.name)
                    expected = oracles.setdefault(layout == "expanded", {})
                    _Runner(case, dtype, device, run, threads, repeat, planted, tally).check(expected)
                    tally.runs += 1
                    done()


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Within the context, torch computes float32 in float32: no TF32, no bfloat16. It keeps its hints to itself."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Using padding='same' with even kernel lengths")
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def direction_of(result: str) -> str:
    """The direction that a result belongs to: its own name, but for second derivatives, which are taken together."""
    return SECOND if result.startswith(SECOND) else result


def has_second_derivatives(case: Case, dtype: torch.dtype, layout: str) -> bool:
    """Whether a case is checked for its second derivatives: small ones, for the oracle's are slow.

    Where the derivatives of a batch norm are the difference of large numbers a normwise bound means nothing. So batch
    statistics of two values are left out, for these are 1 and -1 once normalised, whatever they were; and gradients
    that repeat one row, of which normalising leaves nothing. Nor does it in half types over steps that rectify, whose
    rounding moves values over the kink.
    """
    if isinstance(case, RecurrenceCase) and case.kind == "rnn_relu" and dtype.itemsize < 4:
        return False
    if isinstance(case, BatchNormCase) and case.training:
        two_values = math.prod(case.shape) == 2 * case.shape[1]
        if two_values or layout == "expanded":
            return False
    return case.small and case.values in SECOND_VALUES


@dataclasses.dataclass
class _Runner:
    """One case in one dtype and layout on one device."""

    case: Case
    dtype: torch.dtype
    device: Device
    run: Run
    threads: int
    repeat: int
    planted: str | None
    tally: Tally

    def check(self, expected: dict[str, Expected]) -> None:
        """Runs and judges both sides.

        Args:
            expected: by part, what the oracle says of each result; filled where it is missing.
        """
        for part in (FIRST, SECOND) if has_second_derivatives(self.case, self.dtype, self.run.layout) else (FIRST,):
            if part not in expected:
                oracle = trial.expected_second_derivatives if part == SECOND else trial.expected
                expected[part] = oracle(self.case, self.dtype, self.run.layout)
            self._check_fastnn(part, expected[part])
            self._check_torch(part, expected[part])

    def _conditions(self, repetition: int) -> int:
        """The run whose conditions this one has: the first one's where another number of threads changes bits."""
        return 0 if self.case.framework_products and not self.device.emulated else repetition

    def _compute(self, part: str, functional: Any) -> tuple[Results, list[str]]:
        """Results by name, and the names of what was written and must not be."""
        arguments = (self.case, functional, self.dtype, self.run.layout, self.device.torch)
        if part == SECOND:
            results, modified = trial.second_derivatives(*arguments), []
        else:
            done = trial.run(*arguments)
            results, modified = done.results, done.modified()
        if self.device.torch.type == "cuda":
            torch.cuda.synchronize()  # so that a kernel's error is raised here
        return results, modified

    def _check_fastnn(self, part: str, expected: Expected) -> None:
        first: Results = {}
        for repetition in range(self.repeat):
            try:
                with self.device.active(self._conditions(repetition), self.threads):
                    results, modified = self._compute(part, fastnn.functional)
            except Exception as error:
                for name in expected:
                    self._group(name).fastnn.refused += 1
                self.tally.fail(self.run, part, f"raised {type(error).__name__}: {error}")
                return
            if self.planted is not None:
                results = {
                    name: plant(self.planted, results.get(name), bounded, repetition)
                    for name, (bounded, _) in expected.items()
                }
            if repetition:
                self._compare(expected, first, results, repetition)
                continue
            first = results
            for name in modified:
                self.tally.fail(self.run, name, "was modified")
            for name, fault in self._judge("fastnn", results, expected):
                self.tally.fail(self.run, name, fault)

    def _check_torch(self, part: str, expected: Expected) -> None:
        try:
            with self.device.active(0, self.threads):
                results, _ = self._compute(part, TORCH)
        except (RuntimeError, ValueError):
            for name in expected:
                self._group(name).torch.refused += 1
            return
        for _ in self._judge("torch", results, expected):
            pass

    def _judge(self, side: str, results: Results, expected: Expected) -> Iterator[tuple[str, str]]:
        """Counts the errors of every result; yields the names of those that are wrong, and what is."""
        for name, (bounded, dtype) in expected.items():
            actual = results.get(name)
            fault = find_fault(actual, bounded, dtype)
            measurable = actual is not None and actual.shape == bounded.value.shape
            errors = measure(actual, bounded) if measurable else Errors()
            if fault is not None and errors.of_bound <= 1:
                errors = dataclasses.replace(errors, of_bound=math.inf)
            getattr(self._group(name), side).add(self.run, errors, fault is not None)
            if fault is not None:
                yield name, fault

    def _compare(self, expected: Expected, first: Results, results: Results, repetition: int) -> None:
        for name in expected:
            if not same_bits(first.get(name), results.get(name)):
                self._group(name).bits_differ += 1
                runs = (self._conditions(number) for number in (repetition, 0))
                now, then = (self.device.conditions(number, self.threads) for number in runs)
                what = f"other bits in run {repetition + 1} ({now}) than in the first ({then})"
                more = [] if repetition == 1 else ["--repeat", str(repetition + 1)]
                self.tally.fail(self.run, name, what, *more)

    def _group(self, name: str) -> Group:
        return self.tally.group(self.run, direction_of(name))
