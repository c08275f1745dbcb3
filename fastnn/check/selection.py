"""What is checked: ops, cases, dtypes, layouts and devices, chosen by the command's options."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from fastnn.check.errors import CheckError
from fastnn.check.random_cases import random_case
from fastnn.testing.cases import ALL_DTYPES, CASES, LAYOUTS, Case, affordable_in_emulator
from fastnn.testing.devices import usable_device
from fastnn.testing.emulation import emulated_cuda, execution_order

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in ALL_DTYPES}
QUICK_DTYPES, QUICK_LAYOUTS = ("float32", "bfloat16"), ("contiguous", "channels_last")


@dataclass(frozen=True)
class Device:
    """Where kernels run: ``name`` as the user gave it, ``torch`` where the tensors are."""

    name: str
    torch: torch.device

    @property
    def emulated(self) -> bool:
        """Whether CPU tensors go to the emulated CUDA kernels."""
        return self.name == "emulated"

    @contextlib.contextmanager
    def active(self, repetition: int, threads: int) -> Iterator[None]:
        """Within the context, fastnn's kernels for this device run, and all others of torch.

        Runs of the same inputs must give the same bits, whatever the conditions: every second one on the CPU has
        another number of threads, and each in the emulator another order of execution. A GPU orders its blocks
        anew by itself.

        Args:
            repetition: number of the run; 0 is the first.
            threads: of torch, in the first run.
        """
        with contextlib.ExitStack() as stack:
            if self.emulated:
                stack.enter_context(emulated_cuda())
                if repetition:
                    stack.enter_context(execution_order(seed=repetition, workers=1 + repetition % 2))
            elif self.torch.type == "cuda":
                stack.enter_context(torch.cuda.device(self.torch))
            else:
                stack.enter_context(thread_count(self._threads(repetition, threads)))
            yield

    def conditions(self, repetition: int, threads: int) -> str:
        """What is particular to a run, in words; arguments as of :meth:`active`."""
        if self.emulated:
            return f"order of execution {repetition}"
        if self.torch.type == "cuda":
            return "same conditions"
        count = self._threads(repetition, threads)
        return f"{count} thread{'s' if count > 1 else ''}"

    @staticmethod
    def _threads(repetition: int, threads: int) -> int:
        return threads if repetition % 2 == 0 else 2 if threads == 1 else 1


@contextlib.contextmanager
def thread_count(count: int) -> Iterator[None]:
    """Within the context, torch's kernels and fastnn's on the CPU have that many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Plan:
    """What to run: every case in every dtype with, by device, the layouts to run it in."""

    items: Sequence[tuple[Case, torch.dtype, Sequence[tuple[Device, Sequence[str]]]]]
    ops: Sequence[str]
    devices: Sequence[Device]

    @property
    def runs(self) -> int:
        """Number of (case, dtype, device, layout)."""
        return sum(len(layouts) for _, _, places in self.items for _, layouts in places)


def select(arguments: argparse.Namespace) -> Plan:
    """The plan that the options ask for.

    Args:
        arguments: of the command line.

    Raises:
        CheckError: An option names what does not exist, or nothing is left to check.
    """
    ops = _named("op", arguments.op, CASES)
    dtypes = [DTYPES[name] for name in _named("dtype", arguments.dtype, DTYPES, quick(arguments, QUICK_DTYPES))]
    layouts = _named("layout", arguments.layout, LAYOUTS, quick(arguments, QUICK_LAYOUTS))
    devices = _devices(arguments.device)
    # Ops in turn, evenly, so that the time left is known early: a convolution takes longer than a pooling.
    in_turn = []
    for op in ops:
        cases = _cases(op, arguments)
        in_turn += [((place + 0.5) / len(cases), case) for place, case in enumerate(cases)]
    if not in_turn:
        raise CheckError(_no_case(ops, arguments.case))
    items = []
    for _, case in sorted(in_turn, key=lambda entry: entry[0]):
        for dtype in dtypes:
            if dtype not in case.dtypes:
                continue
            places = [(device, _layouts(device, case, dtype, layouts)) for device in devices]
            items.append((case, dtype, [(device, chosen) for device, chosen in places if chosen]))
    plan = Plan(items, ops, devices)
    if not plan.runs:
        raise CheckError(
            "nothing to check: none of these cases exists in these dtypes, or all are too large for the emulator"
        )
    return plan


def quick(arguments: argparse.Namespace, choice: Sequence[str]) -> Sequence[str] | None:
    """The choice, if ``--quick`` was given."""
    return choice if arguments.quick else None


def _named(
    what: str, names: Sequence[str] | None, existing: Sequence[str] | dict, default: Sequence[str] | None = None
) -> list[str]:
    """The names, without repetition, in the order in which they exist."""
    for name in names or ():
        if name not in existing:
            raise CheckError(f"unknown {what} {name!r}: choose from {', '.join(existing)}")
    chosen = names or default or existing
    return [name for name in existing if name in chosen]


def _devices(names: Sequence[str] | None) -> list[Device]:
    if names is None:
        names = ["cpu"]
        with contextlib.suppress(ValueError):
            usable_device("cuda")
            names.append("cuda")
    devices = []
    for name in dict.fromkeys(names):
        if name == "emulated":
            try:
                with emulated_cuda():
                    pass
            except (FileNotFoundError, RuntimeError) as error:
                raise CheckError(f"--device emulated: {error}") from None
            devices.append(Device(name, torch.device("cpu")))
            continue
        try:
            devices.append(Device(name, usable_device(name)))
        except ValueError as error:
            raise CheckError(str(error).replace("cuda or cuda:N", "cuda, cuda:N or emulated")) from None
    return devices


def _cases(op: str, arguments: argparse.Namespace) -> list[Case]:
    if arguments.random_case is not None:
        return [random_case(op, *arguments.random_case)]
    cases = list(CASES[op]) + [random_case(op, arguments.seed, index) for index in range(arguments.random)]
    if arguments.case is not None:
        return [case for case in cases if arguments.case.fullmatch(case.id)]
    return [case for case in cases if case.small] if arguments.quick else cases


def _no_case(ops: Sequence[str], pattern: re.Pattern[str]) -> str:
    names = "\n".join(f"  {op}: {', '.join(case.id for case in CASES[op])}" for op in ops)
    return f"--case {pattern.pattern!r} is the whole name of no case. There are\n{names}"


def _layouts(device: Device, case: Case, dtype: torch.dtype, layouts: Sequence[str]) -> list[str]:
    if not device.emulated:
        return list(layouts)
    return [layout for layout in layouts if affordable_in_emulator(case, dtype, layout)]
