"""What the machine can do at best, measured in the same run: bandwidth of a large copy, rate of a large product."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from fastnn.bench.timing import cache_bytes, median, time_in_turn

# By the names in records; tf32 is float32 whose products may be rounded to 10 bits.
DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Within the context, float32 products are rounded to TF32 on a GPU if ``dtype`` is ``tf32``, else never.

    cuDNN tries its algorithms and takes the fastest.
    """
    backends, allowed = torch.backends, dtype == "tf32"
    before = backends.cuda.matmul.allow_tf32
    backends.cuda.matmul.allow_tf32 = allowed
    try:
        with backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=allowed):
            yield
    finally:
        backends.cuda.matmul.allow_tf32 = before


def measure_limit(device: torch.device, dtype: str) -> dict[str, float]:
    """The limits for one dtype.

    Args:
        device: a CPU or GPU.
        dtype: a key of ``DTYPES``.

    Returns:
        ``copy_bytes_per_second``, bytes read and bytes written, and ``flops_per_second`` of a square product.
    """
    element = DTYPES[dtype]
    # Far beyond the last-level cache, but on a machine with a huge one not beyond its memory.
    size = min(max(256 << 20, 4 * cache_bytes(device)), 1 << 30)
    source = torch.ones(size // element.itemsize, dtype=element, device=device)
    target = torch.empty_like(source)
    n = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device).to(element) for _ in range(2))
    with precision(dtype):
        copy = median(time_in_turn({"copy": lambda: target.copy_(source)}, 0.05, 5)["copy"])
        product = median(time_in_turn({"product": lambda: a @ b}, 0.1, 5)["product"])
    return {"copy_bytes_per_second": 2 * source.nbytes / copy, "flops_per_second": 2 * n**3 / product}
