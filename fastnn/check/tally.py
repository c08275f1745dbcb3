"""What has been found so far, by group: op, direction, dtype, layout and device."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from fastnn.check.random_cases import PREFIX
from fastnn.testing.judge import Errors

SIDES = ("fastnn", "torch")


@dataclass(frozen=True)
class Run:
    """One case in one dtype and layout on one device, all by name."""

    op: str
    case: str
    dtype: str
    layout: str
    device: str

    def command(self, *more: str) -> str:
        """The command that runs it alone."""
        number = self.case.removeprefix(PREFIX)
        case = ["--case", self.case] if number == self.case else ["--random-case", number]
        options = ["--op", self.op, *case, "--dtype", self.dtype, "--layout", self.layout, "--device", self.device]
        return " ".join(["fastnn check", *options, *more])

    def __str__(self) -> str:
        return f"{self.op} {self.case}, {self.dtype} {self.layout} on {self.device}"


@dataclass(frozen=True)
class Failure:
    """What is wrong with one result of fastnn."""

    run: Run
    result: str
    what: str
    command: str


@dataclass
class Side:
    """The errors of one implementation in a group; the fields are sums and maxima of ``Errors``.

    Attributes:
        results: number of tensors judged.
        broken: number of those that are not as the oracle says.
        refused: number of those that it does not compute at all, but raises an exception.
        worst: the run with the largest error relative to its bound.
    """

    results: int = 0
    broken: int = 0
    refused: int = 0
    scaled_count: int = 0
    scaled_max: float = 0.0
    scaled_sum: float = 0.0
    own_count: int = 0
    own_max: float = 0.0
    own_sum: float = 0.0
    of_bound: float = 0.0
    worst: Run | None = None

    def add(self, run: Run, errors: Errors, broken: bool) -> None:
        """Counts one judged tensor.

        Args:
            run: what gave it.
            errors: its errors; ``of_bound`` is inf where a value is wrong in kind, as NaN for a number.
            broken: whether it is not as the oracle says.
        """
        counted = {field.name: getattr(errors, field.name) for field in dataclasses.fields(Errors)}
        self.merge(Side(results=1, broken=int(broken), worst=run, **counted))

    def merge(self, other: Side) -> None:
        """Adds what another group's same side has found."""
        for name in ("results", "broken", "refused", "scaled_count", "scaled_sum", "own_count", "own_sum"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.scaled_max = max(self.scaled_max, other.scaled_max)
        self.own_max = max(self.own_max, other.own_max)
        if other.of_bound > self.of_bound:
            self.of_bound, self.worst = other.of_bound, other.worst

    @property
    def scaled_mean(self) -> float:
        """Mean error in ulps of the tensors' largest values."""
        return self.scaled_sum / max(self.scaled_count, 1)

    @property
    def own_mean(self) -> float:
        """Mean error in ulps of each value itself."""
        return self.own_sum / max(self.own_count, 1)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: that is null."""
        return {
            "results": self.results,
            "broken": self.broken,
            "refused": self.refused,
            "ulps_scaled": {"max": self.scaled_max, "mean": self.scaled_mean},
            "ulps_own": {"max": self.own_max, "mean": self.own_mean},
            "of_bound": self.of_bound if math.isfinite(self.of_bound) else None,
            "worst": None if self.worst is None else {"case": self.worst.case, "command": self.worst.command()},
        }


@dataclass
class Group:
    """What belongs together, and what was found there; ``bits_differ`` counts results of fastnn."""

    op: str
    direction: str
    dtype: str
    layout: str
    device: str
    cases: set[str] = field(default_factory=set)
    fastnn: Side = field(default_factory=Side)
    torch: Side = field(default_factory=Side)
    bits_differ: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = ("op", "direction", "dtype", "layout", "device")
        return {name: getattr(self, name) for name in names} | {
            "cases": len(self.cases),
            "bits_differ": self.bits_differ,
            **{side: getattr(self, side).as_dict() for side in SIDES},
        }


@dataclass
class Tally:
    """Everything found.

    Attributes:
        groups: by (op, direction, dtype, layout, device).
        failures: in the order in which they were found.
        runs: number of (case, dtype, layout, device) that are done.
    """

    groups: dict[tuple[str, ...], Group] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    runs: int = 0

    def group(self, run: Run, direction: str) -> Group:
        """The group of a run's result; the case counts as one of its cases."""
        key = (run.op, direction, run.dtype, run.layout, run.device)
        group = self.groups.setdefault(key, Group(*key))
        group.cases.add(run.case)
        return group

    def fail(self, run: Run, result: str, what: str, *more: str) -> None:
        """Notes a failure; ``more`` are options that reproducing it needs."""
        self.failures.append(Failure(run, result, what, run.command(*more)))

    def merged_layouts(self) -> list[Group]:
        """The groups with all layouts taken together, named ``all``."""
        merged: dict[tuple[str, ...], Group] = {}
        for group in self.groups.values():
            key = (group.op, group.direction, group.dtype, "all", group.device)
            into = merged.setdefault(key, Group(*key))
            into.cases |= group.cases
            into.bits_differ += group.bits_differ
            into.fastnn.merge(group.fastnn)
            into.torch.merge(group.torch)
        return list(merged.values())
