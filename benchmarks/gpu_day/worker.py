"""``python -m gpu_day.worker NAME --journal FILE``: looks at one item after the other, and notes what becomes of each.

Ends with 0 when all have been looked at, with 3 when an item has cost the process its device: another process goes on
from the journal. Ctrl-C ends it with 130 and a journal that says what was done.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gpu_day.files import FAILED, PASSED, SKIPPED, Journal

NAMES = ("small", "sizes", "graphs", "repeats", "memory")
DONE, LOST_DEVICE, INTERRUPTED = 0, 3, 130


def main(words: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--journal", type=Path, required=True, metavar="FILE")
    parser.add_argument("--elements", type=int, help="sizes: of the largest tensor (default: 1.25 * 2^31)")
    parser.add_argument("--repeats", type=int, help="repeats: of each item (default: 10,000)")
    parser.add_argument("--kernels", action="store_true", help="small: note which kernels run")
    parser.add_argument("--only", default="", metavar="TEXT", help="items that have this in their name")
    arguments = parser.parse_args(words)

    import torch

    torch.set_num_threads(1)
    # What is compared to the bit must not depend on what an algorithm's timing came to.
    torch.backends.cudnn.benchmark = False
    module = importlib.import_module(f"gpu_day.{arguments.name}")
    journal = Journal(arguments.journal, worker=arguments.name, device=arguments.device)
    try:
        planned = [item for item in module.items(arguments) if arguments.only in item.name]
        journal.record["planned"] = len(planned)
        for item in planned:
            if item.name in journal.done:
                continue
            journal.begin(item.name)
            if not _examine(module, item, arguments, journal):
                return LOST_DEVICE
    except KeyboardInterrupt:
        journal.close(complete=False)
        return INTERRUPTED
    journal.close(complete=True)
    return DONE


def _examine(module, item, arguments, journal: Journal) -> bool:
    """Looks at one item; returns whether the process can go on."""
    import torch

    began = time.perf_counter()
    torch.backends.cudnn.allow_tf32 = getattr(item, "tf32", False)
    try:
        facts = module.examine(item, arguments)
        status, what = PASSED, None
    except AssertionError as error:
        status, what, facts = FAILED, str(error) or "an assertion failed", {}
    except Exception as error:
        skipped = type(error).__name__ == "SkippedError"
        status, facts = (SKIPPED if skipped else FAILED), {}
        what = str(error) if skipped else f"{type(error).__name__}: {error}"
    journal.end(status, None if what is None else what[:600], **facts, seconds=round(time.perf_counter() - began, 4))
    return status != FAILED or not _device_is_lost(arguments.device)


def _device_is_lost(device: str) -> bool:
    """Whether an error stays with this process: that of a kernel does."""
    import torch

    if device == "cpu":
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
