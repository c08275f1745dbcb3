"""How well the CUDA kernels access memory, counted by the emulator: no GPU is needed."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastnn.testing.emulation import library_path


@dataclass(frozen=True)
class AccessSite:
    """The accesses of one kind that a line of a kernel makes.

    What a request moves, and what a conflict is, is said in ``tests/emulator/checkers/profile.h``.

    Attributes:
        place: file and line; with the caller's where an inlined function of another file makes the access.
        space: ``global`` or ``shared``.
        kind: ``read`` or ``write``; an atomic operation is a write.
        bytes: of one lane's access; 0 for a bulk copy.
        requests: how often a warp executed it.
        lanes: how many lanes took part, in all.
        asked_bytes: what requests asked for; of global memory, bytes that several lanes want count once a request.
        moved_bytes: what sectors of 32 bytes hold of it; 0 for shared memory.
        ideal_wavefronts: what shared memory would need without conflicts.
        wavefronts: what it needs.
    """

    place: str
    space: str
    kind: str
    bytes: int
    requests: int
    lanes: int
    asked_bytes: int
    moved_bytes: int
    ideal_wavefronts: int
    wavefronts: int

    @property
    def wasted_bytes(self) -> int:
        """Bytes of global memory that moved though nobody asked for them."""
        return self.moved_bytes - self.asked_bytes if self.space == "global" else 0

    @property
    def conflicts(self) -> int:
        """Wavefronts beyond the ideal."""
        return self.wavefronts - self.ideal_wavefronts

    @property
    def efficiency(self) -> float:
        """Asked over moved bytes of global memory, ideal over actual wavefronts of shared memory; at most 1."""
        if self.space == "global":
            return self.asked_bytes / self.moved_bytes
        return self.ideal_wavefronts / self.wavefronts


@dataclass(frozen=True)
class KernelAccesses:
    """What all launches of one kernel did.

    Attributes:
        name: the kernel's.
        launches: how many.
        blocks: of all launches; clusters, where blocks form those.
        profiled_blocks: those that were looked at. Of large grids it is a sample, from which counts are scaled.
        distinct_bytes: size of the sectors that a launch touched, each once when read and once when written: what must
            move to and from memory at least. ``None`` where blocks were left out.
        sites: the accesses.
    """

    name: str
    launches: int
    blocks: int
    profiled_blocks: int
    distinct_bytes: int | None
    sites: tuple[AccessSite, ...]

    def _sum(self, attribute: str, space: str) -> int:
        return sum(getattr(site, attribute) for site in self.sites if site.space == space)

    @property
    def asked_bytes(self) -> int:
        """Of global memory."""
        return self._sum("asked_bytes", "global")

    @property
    def moved_bytes(self) -> int:
        """Of global memory, between a multiprocessor and its caches."""
        return self._sum("moved_bytes", "global")

    @property
    def efficiency(self) -> float:
        """Asked over moved bytes of global memory: 1 where every access is coalesced, and where there is none."""
        return self.asked_bytes / self.moved_bytes if self.moved_bytes else 1.0

    @property
    def rereads(self) -> float | None:
        """Moved over distinct bytes: how often a sector moves, which caches must make up for."""
        return self.moved_bytes / self.distinct_bytes if self.distinct_bytes else None

    @property
    def ideal_wavefronts(self) -> int:
        """Of shared memory."""
        return self._sum("ideal_wavefronts", "shared")

    @property
    def wavefronts(self) -> int:
        """Of shared memory."""
        return self._sum("wavefronts", "shared")

    @property
    def conflict_ratio(self) -> float:
        """Actual over ideal wavefronts: 1 without bank conflicts, and where shared memory is not used."""
        return self.wavefronts / self.ideal_wavefronts if self.ideal_wavefronts else 1.0

    def worst(self, count: int = 3) -> list[AccessSite]:
        """The sites that waste most, by the sectors that move for nothing and the wavefronts that conflicts cost."""
        wasteful = [site for site in self.sites if site.wasted_bytes or site.conflicts]
        return sorted(wasteful, key=lambda s: s.wasted_bytes / 32 + s.conflicts, reverse=True)[:count]


def _parse(text: str) -> Iterable[KernelAccesses]:
    for kernel in json.loads(text)["kernels"]:
        yield KernelAccesses(**{**kernel, "sites": tuple(AccessSite(**site) for site in kernel["sites"])})


@contextmanager
def access_profile() -> Iterator[list[KernelAccesses]]:
    """Counts the memory accesses of kernels that the emulator runs within the context.

    The list is empty until the context ends, then it holds the kernels by name. The setting is the process's, and what
    was counted before is forgotten: contexts cannot be nested. A library with AddressSanitizer counts nothing. ::

        with emulated_cuda(), access_profile() as kernels:
            functional.conv2d(x, weight)
        print(kernels[0].efficiency)

    Raises:
        FileNotFoundError: As :func:`fastnn.testing.emulation.library_path`.
    """
    library = ctypes.CDLL(str(library_path()))
    library.fastnn_emulator_set_profiling.argtypes = [ctypes.c_bool]
    library.fastnn_emulator_set_profiling.restype = ctypes.c_bool
    library.fastnn_emulator_profile_json.restype = ctypes.c_char_p
    kernels: list[KernelAccesses] = []
    library.fastnn_emulator_profile_reset()
    before = library.fastnn_emulator_set_profiling(True)
    try:
        yield kernels
    finally:
        library.fastnn_emulator_set_profiling(before)
    kernels.extend(_parse(library.fastnn_emulator_profile_json().decode()))
