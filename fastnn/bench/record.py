"""The record of a run: what ``fastnn bench`` measured on one machine at one commit, as JSON.

A record is a plain dictionary, so that it can be read without fastnn. Its layout is checked when it is loaded, and what
stands in it means the same everywhere: times in seconds, sizes in bytes, rates in bytes or FLOPs a second, ratios as
another peer's time over fastnn's, so that above 1 fastnn is the faster.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

SCHEMA = 1
OPS = (
    "conv2d",
    "conv1d",
    "conv3d",
    "depthwise",
    "conv_transpose",
    "locally_connected",
    "max_pool2d",
    "avg_pool2d",
    "batch_norm",
    "batch_norm_relu",
    "group_norm",
    "local_response_norm",
    "maxout",
    "activation",
    "conv2d_act",
    "lstm_cell",
    "lstm",
    "gru",
    "rnn",
    "network",
)
LAYOUTS = ("contiguous", "channels_last")
DIRECTIONS = ("forward", "backward", "inference", "training_step")

NUMBER, TEXT, OPTIONAL_TEXT = (int, float), (str,), (str, type(None))
_RECORD = {
    "machine": (dict,),
    "date": TEXT,
    "commit": OPTIONAL_TEXT,
    "arguments": (list,),
    "seconds": NUMBER,
    "complete": (bool,),
    "limits": (dict,),
    "rows": (list,),
}
_MACHINE = {"device": TEXT, "device_name": TEXT, "threads": (int,), "versions": (dict,)}
_LIMIT = {"copy_bytes_per_second": NUMBER, "flops_per_second": NUMBER}
_ROW = {
    "suite": TEXT,
    "op": OPS,
    "case": TEXT,
    "multiplicity": (int,),
    "layout": LAYOUTS,
    "dtype": TEXT,
    "direction": DIRECTIONS,
    "noisy": OPTIONAL_TEXT,
    "wrong": OPTIONAL_TEXT,
}
# What only a row with times has: a wrong kernel gets none.
_TIMED = {
    "bytes": NUMBER,
    "flops": NUMBER,
    "floor_seconds": NUMBER,
    "bound": ("memory", "compute"),
    "rounds": (int,),
}
_BY_PEER = ("seconds", "ratio", "fraction", "bytes_per_second", "flops_per_second", "peak_bytes")


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a record and checks its layout.

    Raises:
        ValueError: when it cannot be read or is not a record of this schema; the text is one line with the path.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_no_constant)
        validate(record)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return record


def save(record: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes a record, all of it or nothing: an interrupted write leaves the file that was there before.

    Raises:
        OSError: when the folder cannot be made or written to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8") as part:
        try:
            part.write(text)
            part.close()
            # A temporary file is its owner's alone; a record is for everybody whom the umask admits.
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(part.name, 0o666 & ~umask)
            os.replace(part.name, path)
        except BaseException:
            os.unlink(part.name)
            raise


def validate(record: Any) -> None:
    """Checks that a record has this schema.

    Raises:
        ValueError: when it has not; the text says where.
    """
    if not isinstance(record, dict) or "schema" not in record:
        raise ValueError('no record of `fastnn bench`: it has no "schema"')
    if record["schema"] != SCHEMA:
        raise ValueError(f"schema {record['schema']!r}: this fastnn reads schema {SCHEMA}")
    _check(record, _RECORD, "record")
    _check(record["machine"], _MACHINE, "machine")
    for dtype, limit in record["limits"].items():
        _check(limit, _LIMIT, f"limits of {dtype}")
    for index, row in enumerate(record["rows"]):
        where = f"row {index}"
        _check(row, _ROW, where)
        if row["wrong"] is not None:
            continue
        _check(row, _TIMED, where)
        for name in _BY_PEER:
            _check(row, {name: (dict,)}, where)
            for peer, value in row[name].items():
                _check(row[name], {peer: NUMBER}, f"{where}, {name}")
                if value < 0 or (value == 0 and name in ("seconds", "ratio")):
                    raise ValueError(f"{where}: {name} of {peer} is {value}")
        _check(row, {"percentiles_20_80": (dict,)}, where)
        for peer in row["seconds"]:
            low_high = row["percentiles_20_80"].get(peer)
            if not isinstance(low_high, list) or [type(x) in NUMBER for x in low_high] != [True, True]:
                raise ValueError(f"{where}: percentiles_20_80 of {peer} is {low_high!r}, expected two numbers")
        if "fastnn" not in row["seconds"]:
            raise ValueError(f"{where}: no time of fastnn")


def _check(value: Any, layout: dict[str, tuple], where: str) -> None:
    """Checks the fields of a dictionary: each has types, or words of which it must be one."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {value!r}, expected an object")
    for name, allowed in layout.items():
        if name not in value:
            raise ValueError(f"{where} has no {name!r}")
        entry = value[name]
        # A bool is an int in Python, and in a record never what a number is expected to be.
        fits = type(entry) in allowed if isinstance(allowed[0], type) else entry in allowed
        if not fits:
            words = [a.__name__ if isinstance(a, type) else a for a in allowed]
            raise ValueError(f"{where}: {name} is {entry!r}, expected {' or '.join(words)}")
        if isinstance(entry, float) and not math.isfinite(entry):
            raise ValueError(f"{where}: {name} is {entry!r}")


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def key(row: dict[str, Any]) -> tuple[str, ...]:
    """What tells a row from the others of its record, and finds it in another record."""
    return tuple(row[name] for name in ("suite", "op", "case", "layout", "dtype", "direction"))


def counts(row: dict[str, Any]) -> bool:
    """Whether a row's times can be believed: neither wrong nor noisy."""
    return row["wrong"] is None and row["noisy"] is None


def geometric_mean(rows: Iterable[dict[str, Any]], peer: str = "torch") -> float | None:
    """Geometric mean of the ratios to a peer, each as often as its layer occurs.

    Rows that are wrong, noisy or without that peer do not count; None where no row does.
    """
    counting = [row for row in rows if counts(row) and peer in row["ratio"]]
    chosen = [(row["multiplicity"], math.log(row["ratio"][peer])) for row in counting]
    weight = sum(multiplicity for multiplicity, _ in chosen)
    return math.exp(sum(m * logarithm for m, logarithm in chosen) / weight) if weight else None
