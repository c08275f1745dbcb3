"""What machine this is, and what of fastnn can be used on it."""

from __future__ import annotations

import csv
import datetime
import json
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Asked in a process of its own: torch's start takes seconds, and a broken build must not take us with it.
PROBE = "import json, fastnn; print(json.dumps(fastnn.info()))"
PROBE_SECONDS = 120.0


def said_by(*words: str, seconds: float = 30.0, **options: Any) -> str | None:
    """What a command prints; None where it fails, or there is none."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=True, **options)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def find_gpu() -> dict[str, str] | None:
    """Name, compute capability, driver and memory of the first GPU; None without one."""
    keys = ("name", "compute_cap", "driver_version", "memory.total")
    said = said_by("nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader")
    if not said:
        return None
    values = [value.strip() for value in next(csv.reader(said.splitlines()))]
    if len(values) != len(keys) or not re.fullmatch(r"\d+\.\d+", values[1]):
        return None
    return dict(zip(("name", "compute_capability", "driver", "memory"), values, strict=True))


def describe_cpu() -> dict[str, str]:
    """The processor, in the place of a GPU."""
    try:
        models = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        models = None
    return {"name": models[1] if models else platform.processor() or platform.machine()}


def architecture(compute_capability: str) -> str:
    """What ``FASTNN_CUDA_ARCHS`` must be for a GPU: wgmma and setmaxnreg are in 90a's own instruction set."""
    number = compute_capability.replace(".", "")
    return "90a" if number == "90" else number


def find_commit() -> str | None:
    """The checkout's commit, ``-dirty`` where files differ from it; None outside of one."""
    return said_by("git", "-C", str(ROOT), "describe", "--always", "--dirty") or None


def find_nvcc() -> str | None:
    """The compiler's release."""
    said = said_by(shutil.which("nvcc") or "nvcc", "--version")
    found = re.search(r"release ([\d.]+)", said or "")
    return found[1] if found else None


def today() -> str:
    """Date and time, as records have it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def probe(python: str, environment: Mapping[str, str], folder: Path) -> dict[str, Any] | str:
    """What ``fastnn.info`` says of the fastnn that the stages would import; or why there is none."""
    try:
        done = subprocess.run(
            [python, "-c", PROBE],
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
            env=dict(environment),
            cwd=folder,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"fastnn cannot be asked: {error}"
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return f"fastnn cannot be imported: {said[-1][:300] if said else f'status {done.returncode}'}"
    return json.loads(done.stdout.splitlines()[-1])


def why_unusable(facts: dict[str, Any] | str, device: str) -> str | None:
    """Why the stages cannot run on the device with this fastnn; None where they can."""
    if isinstance(facts, str):
        return facts
    if device == "cpu":
        return None
    if not facts["cuda"]["built"]:
        return "this fastnn was built without CUDA"
    if not facts["devices"]:
        return "torch sees no usable GPU"
    if not facts["devices"][0]["supported"]:
        return f"this fastnn has no code for {facts['devices'][0]['name']}"
    return None
