"""Numbers as people read them: three digits and a unit, the same in every table and figure."""

from __future__ import annotations

MISSING = "–"
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"))


def with_unit(value: float | None, unit: str) -> str:
    """A number of three digits with its unit's decimal prefix, such as 45.2 GB/s; a dash for None."""
    if value is None:
        return MISSING
    if value == 0:
        return f"0 {unit}"
    for scale, prefix in _PREFIXES:
        # Rounded first: 999.9 MB is 1.00 GB.
        if float(f"{value / scale:.3g}") >= 1:
            return f"{_three_digits(value / scale)} {prefix}{unit}"
    return f"{_three_digits(value * 1e9)} n{unit}"


def tick(value: float, unit: str) -> str:
    """A number at an axis: no more digits than it has."""
    for scale, prefix in _PREFIXES:
        if abs(value) >= scale * 0.999:
            return f"{value / scale:.4g} {prefix}{unit}"
    return f"{value:.4g} {unit}"


def duration(seconds: float | None) -> str:
    """A time, given in seconds."""
    if seconds is not None and seconds >= 100:
        return f"{seconds:,.0f} s"
    return with_unit(seconds, "s")


def size(count: float | None) -> str:
    """A number of bytes; a MB has 10^6."""
    return f"{count:.0f} B" if count is not None and count < 999.5 else with_unit(count, "B")


def ratio(value: float | None) -> str:
    """How many times as fast; two decimals, fewer where they would say nothing."""
    if value is None:
        return MISSING
    return f"{value:.2f}" if value < 9.995 else _three_digits(value)


def share(value: float | None) -> str:
    """A fraction in per cent."""
    if value is None:
        return MISSING
    return f"{value:.1%}" if 0 < value < 0.0995 else f"{value:.0%}"


def _three_digits(value: float) -> str:
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
