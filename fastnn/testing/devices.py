"""Devices by the names that users give them."""

from __future__ import annotations

import torch


def usable_device(name: str) -> torch.device:
    """The device of that name, once torch and fastnn are known to be able to use it.

    Args:
        name: ``cpu``, ``cuda`` (the current one) or ``cuda:N``.

    Raises:
        ValueError: There is no such device, or it cannot be used; the message is one line for the user.
    """
    import fastnn

    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"unknown device {name!r}: choose cpu, cuda or cuda:N")
    if device.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        why = "this torch is a CPU build" if torch.version.cuda is None else "torch sees no usable GPU"
        raise ValueError(f"--device {name}: {why}")
    facts = fastnn.info()
    if not facts["cuda"]["built"]:
        raise ValueError(f"--device {name}: this fastnn was built without CUDA")
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= len(facts["devices"]):
        raise ValueError(f"--device {name}: torch sees {len(facts['devices'])} GPU(s), counted from 0")
    if not facts["devices"][index]["supported"]:
        raise ValueError(f"--device {name}: this fastnn has no code for {facts['devices'][index]['name']}")
    return torch.device("cuda", index)
