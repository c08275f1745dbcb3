"""The stages, the most important first: what each runs, and what it makes of the records."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from gpu_day import files, machine, sanitizer, workers
from gpu_day.day import Outcome, Settings, Stage
from gpu_day.files import FAILED, PASSED, SKIPPED, STOPPED

# Most important first: the nets that the layers are for, then the ops that have the widest gap between prediction and
# knowledge; what is like something measured before comes last.
BENCH_SUITES = (
    *("resnet50", "conv", "lstm", "norm", "pool", "fused", "models", "mobilenet_v2", "average", "sample_norm"),
    *("activation", "googlenet", "vgg16", "alexnet", "digits", "lenet5"),
)
# Of the benchmark's time: one layer of each kind first, so that no op is without a figure.
QUICK_SHARE = 0.35
# What `fastnn bench` needs beside its budget: Python, the device's context, the limits of each dtype.
BENCH_START_SECONDS = 15.0


def fresh(settings: Settings, *names: str) -> None:
    """Removes what an earlier run left in the folder: a journal's items would count as done."""
    for name in names:
        logs = (settings.out / "logs").glob(f"{name}.txt")
        for path in (*settings.out.glob(f"{name}.json"), *settings.out.glob(f".{name}.running"), *logs):
            path.unlink()


# ---- build ----------------------------------------------------------------------------------------------------------


def build(settings: Settings, seconds: float) -> Outcome:
    """Builds for the GPU that was found and nothing else; without one, sees that the checkout's fastnn is built."""
    fresh(settings, "build")
    if settings.dry:
        facts = machine.probe(sys.executable, settings.environment(), settings.work)
        files.write(settings.out / "build.json", {"seconds": None, "info": facts})
        return Outcome(FAILED, facts) if isinstance(facts, str) else Outcome()
    pip = ("-m", "pip", "install", "-v", "--no-deps", "--no-build-isolation", "--no-index", "--upgrade")
    environment = {
        "FASTNN_CUDA": "on",
        "FASTNN_CUDA_ARCHS": machine.architecture(settings.gpu["compute_capability"]),
        "FASTNN_EMULATOR": "off",
        # The CPU's kernels are not the subject: one instruction set, compiled quickly.
        "FASTNN_CPU": "baseline",
        "FASTNN_BUILD_DIR": str(settings.work / "cmake"),
        "CMAKE_BUILD_PARALLEL_LEVEL": str(settings.cores),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    # Beside the environment's packages and not among them: nothing of the machine is changed.
    words = [*pip, "--target", str(settings.site), str(machine.ROOT)]
    (ended,) = settings.run([settings.command(words, "build", environment=environment)], seconds)
    record = {"seconds": ended.seconds, "architectures": environment["FASTNN_CUDA_ARCHS"], "status": ended.status}
    files.write(settings.out / "build.json", record)
    if ended.cut is not None:
        return Outcome(STOPPED, ended.cut)
    if ended.status:
        return Outcome(FAILED, f"pip ended with status {ended.status}: {ended.said}")
    facts = machine.probe(sys.executable, settings.environment(), settings.work)
    files.write(settings.out / "build.json", {**record, "info": facts})
    why = machine.why_unusable(facts, settings.device)
    return Outcome(PASSED if why is None else FAILED, why)


# ---- the test-suite -------------------------------------------------------------------------------------------------


def tests(settings: Settings, seconds: float) -> Outcome:
    """The test-suite: on a GPU its tests first, then those that know no backend; the CPU's own are CI's."""
    fresh(settings, "tests")
    record = settings.out / "tests.json"
    folder = machine.ROOT / "tests"
    few = [str(folder / "test_info.py"), str(folder / "test_maxout.py"), "-k", "float32 and contiguous or info"]
    words = ["-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "gpu_day.pytest_record"]
    # One test module that cannot be imported must not keep the others from running.
    words += ["--continue-on-collection-errors", "-n", "1" if settings.dry else str(settings.cores)]
    words += few if settings.dry else [str(folder)]
    environment = {
        "FASTNN_TEST_EMULATOR": "0",
        "GPU_DAY_TESTS": str(record),
        "GPU_DAY_BACKEND": settings.device,
        "FASTNN_EMULATE": "0",
    }
    (ended,) = settings.run([settings.command(words, "tests", environment=environment)], seconds)
    found = files.read(record)
    if found is None:
        why = f"pytest ended before its first test: {ended.cut or ended.said}"
        return Outcome(STOPPED if ended.cut else FAILED, why)
    failures = [f"{failure['name']}: {failure['what']}" for failure in found["failures"]]
    unfinished = None if found["complete"] else ended.cut or f"pytest ended with status {ended.status}: {ended.said}"
    return Outcome.of({**found["counts"], "planned": found["planned"]}, failures, unfinished)


# ---- fastnn check ---------------------------------------------------------------------------------------------------


def check(settings: Settings, seconds: float) -> Outcome:
    """``fastnn check``, a process for each op, some at a time: the oracle computes on one core."""
    fresh(settings, "check-*")
    began = time.monotonic()
    ops = _ask(settings, "from fastnn.testing.cases import CASES; print(*CASES)", seconds)
    if not ops:
        return Outcome(FAILED, "the table of cases cannot be imported")
    records = {op: settings.out / f"check-{op}.json" for op in ops}
    how = ["--quick"] if settings.dry else []
    commands = [
        settings.command(
            ["-m", "fastnn", "check", "--device", settings.device, "--op", op, "--json", str(path), *how],
            f"check-{op}",
            environment={"OMP_NUM_THREADS": "1"},
        )
        for op, path in records.items()
    ]
    jobs = max(1, min(len(ops), settings.cores - 1))
    ended = settings.run(commands, seconds - (time.monotonic() - began), jobs)
    failures, runs, unfinished = [], 0, []
    for (op, path), end in zip(records.items(), ended, strict=True):
        found = files.read(path)
        if found is None:
            if end.cut is None:
                failures.append(f"{op}: no record; status {end.status}: {end.said}")
            else:
                unfinished.append(op)
            continue
        runs += found["runs"]
        failures += [f"{f['result']}: {f['what']}: {f['command']}" for f in found["failures"]]
        if not found["complete"]:
            unfinished.append(op)
    cut = f"not finished: {', '.join(unfinished)}" if unfinished else None
    return Outcome.of({"runs": runs, "ops": len(ops) - len(unfinished)}, failures, cut)


def _ask(settings: Settings, code: str, seconds: float) -> list[str]:
    """Words that a line of Python prints; none where it fails."""
    fresh(settings, "ask")
    (ended,) = settings.run([settings.command(["-c", code], "ask")], min(seconds, machine.PROBE_SECONDS))
    return ended.said.split() if ended.status == 0 else []


# ---- fastnn bench ---------------------------------------------------------------------------------------------------


def bench(settings: Settings, seconds: float) -> Outcome:
    """``fastnn bench``: one layer of each kind, then all suites by their importance."""
    names = ("bench-quick", "bench")
    fresh(settings, *names)
    began = time.monotonic()
    if settings.dry:
        chosen = (["lenet5", "norm", "--quick"], ["lenet5", "--only", "5x5, 6 to 16.*contiguous"])
    else:
        chosen = ([*BENCH_SUITES, "--quick"], [*BENCH_SUITES])
    failures, counts, unfinished = [], dict[str, Any](), []
    for name, words, share in zip(names, chosen, (QUICK_SHARE, 1.0), strict=True):
        limit = share * (seconds - (time.monotonic() - began))
        budget = max(1.0, limit - BENCH_START_SECONDS)
        path = settings.out / f"{name}.json"
        words = ["-m", "fastnn", "bench", *words, "--device", settings.device, "--json", str(path)]
        (ended,) = settings.run([settings.command([*words, "--budget", f"{budget:.0f}"], name)], limit)
        record = files.read(path)
        if record is None:
            why = f"{name}: {ended.cut or f'status {ended.status}: {ended.said}'}"
            (unfinished if ended.cut else failures).append(why)
            continue
        rows = record["rows"]
        failures += [f"{row['op']} {row['case']} {row['dtype']}: {row['wrong']}" for row in rows if row["wrong"]]
        counts |= {f"{name} rows": len(rows), f"{name} noisy": sum(row["noisy"] is not None for row in rows)}
        if not record["complete"]:
            at = f"; the last row was of {rows[-1]['suite']}" if rows else ""
            unfinished.append(f"{name} was not finished{at}")
    return Outcome.of(counts, failures, "; ".join(unfinished) or None)


# ---- workers --------------------------------------------------------------------------------------------------------


def work(name: str) -> Callable[[Settings, float], Outcome]:
    """The stage whose items the worker of that name looks at; its journal is the record."""

    def run(settings: Settings, seconds: float) -> Outcome:
        fresh(settings, name)
        journal = settings.out / f"{name}.json"
        ended, broken = workers.keep_working(settings, workers.command(settings, name, journal), journal, seconds)
        return workers.judge(journal, ended, broken)

    return run


# ---- compute-sanitizer ----------------------------------------------------------------------------------------------


def sanitize(settings: Settings, seconds: float) -> Outcome:
    """Every tool over the same cases, side by side; without one, the cases alone, and in the emulator."""
    names = [f"sanitizer-{part}" for part in sanitizer.parts(settings.dry)]
    fresh(settings, *names)
    program = None if settings.dry else sanitizer.find()
    if program is None and not settings.dry:
        return Outcome(SKIPPED, "no compute-sanitizer: put the CUDA toolkit's folder on PATH or set CUDA_HOME")
    return sanitizer.run(settings, seconds, program)


STAGES = (
    Stage("build", 60, "the CUDA kernels compile and link for this GPU", build, needs_fastnn=False),
    Stage("tests", 22, "the whole test-suite on the device", tests),
    Stage("check", 8, "every op, dtype and layout against the float64 oracle, and the same bits again", check),
    Stage("bench", 28, "times against torch's and against the device's limits", bench),
    Stage("sanitizer", 14, "compute-sanitizer's four tools over a small case of every kernel", sanitize),
    Stage("sizes", 8, "every op on more than 2^31 elements", work("sizes")),
    Stage("graphs", 5, "every op captured in a CUDA graph, forward and backward", work("graphs")),
    Stage("repeats", 8, "10,000 repeats of every op give the same bits", work("repeats")),
    Stage("memory", 3, "out of memory in the middle of a training step, and on", work("memory")),
)
