"""Where fastnn keeps what it has measured: which of a convolution's kernels was the fastest on which device."""

from __future__ import annotations

import os
from pathlib import Path

from fastnn._backend import _C
from fastnn._version import __version__


def cache_directory() -> Path | None:
    """The directory of this version's files; it may not exist yet.

    ``FASTNN_CACHE_DIR`` names the one above it; set to nothing, nothing is kept and None is returned. Without it
    ``fastnn`` in ``XDG_CACHE_HOME``, or in ``~/.cache``.
    """
    above = os.environ.get("FASTNN_CACHE_DIR")
    if above is None:
        try:
            above = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        except RuntimeError:  # a user without a home
            return None
        above = Path(above) / "fastnn"
    return Path(above) / __version__ if above else None


_directory = cache_directory()
_C.set_conv_choices_directory("" if _directory is None else str(_directory))
