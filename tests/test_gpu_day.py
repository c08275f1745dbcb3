"""`benchmarks/gpu_day.sh`: time limits, killing, partial records, the summary, and that no op is forgotten; no GPU."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from bench_records import make_record
from gpu_day import files, graphs, machine, memory, plan, process, repeats, sanitizer, sizes, stages, subjects, workers
from gpu_day.day import Day, Outcome, Settings, Stage, table
from gpu_day.keep import keep
from op_tester import OpRecorder

import fastnn
from fastnn.bench import record as records
from fastnn.bench.suites import SUITES

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture
def settings(tmp_path) -> Settings:
    for name in ("out", "work"):
        (tmp_path / name).mkdir()
    return Settings("cpu", tmp_path / "out", tmp_path / "work", None, 2, process.Stop())


def script(tmp_path: Path, code: str, **options) -> process.Command:
    return process.Command([sys.executable, "-c", code], tmp_path / "log.txt", ENVIRONMENT, **options)


def run(command: process.Command, seconds: float, grace: float = 1.0, stop: process.Stop | None = None):
    (ended,) = process.run_all([command], seconds, stop or process.Stop(), grace=grace)
    return ended


def alive(pid: int) -> bool:
    """A zombie, which waits for whoever adopted it, is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


# ---- processes -----------------------------------------------------------------------------------------------


def test_a_command_that_ends_by_itself_says_how(tmp_path):
    ended = run(script(tmp_path, "print('the last line'); raise SystemExit(3)"), 20)
    assert (ended.status, ended.cut, ended.said) == (3, None, "the last line")


def test_at_the_limit_a_command_may_write_what_it_knows(tmp_path):
    code = f"""
import pathlib, time
try:
    print("began", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path({str(tmp_path / "record")!r}).write_text("what is known")
"""
    began = time.monotonic()
    ended = run(script(tmp_path, code), 10, grace=4)
    assert ended.cut == "its time was up"
    assert (tmp_path / "record").read_text() == "what is known"
    assert time.monotonic() - began < 10


def test_who_does_not_end_is_killed_with_its_children(tmp_path):
    code = f"""
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path({str(tmp_path / "child")!r}).write_text(str(child.pid))
time.sleep(60)
"""
    began = time.monotonic()
    ended = run(script(tmp_path, code), 2, grace=0.3)
    assert (ended.status, ended.cut) == (-signal.SIGKILL, "its time was up")
    assert time.monotonic() - began < 10
    child = int((tmp_path / "child").read_text())
    wait_for(lambda: not alive(child), 2)


def test_what_a_command_leaves_behind_is_killed(tmp_path):
    code = f"""
import pathlib, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path({str(tmp_path / "child")!r}).write_text(str(child.pid))
"""
    assert run(script(tmp_path, code), 20).status == 0
    child = int((tmp_path / "child").read_text())
    wait_for(lambda: not alive(child), 2)


def test_what_hangs_is_killed_long_before_the_limit(tmp_path):
    ended = run(script(tmp_path, "import time; time.sleep(60)", hangs=lambda: True), 60)
    assert ended.cut == workers.HUNG
    assert ended.seconds < 5


def test_a_stop_ends_what_runs_and_begins_nothing_more(tmp_path):
    stop = process.Stop()
    code = f"import pathlib, time; pathlib.Path({str(tmp_path / 'began')!r}).touch(); time.sleep(60)"
    waits = script(
        tmp_path, code, hangs=lambda: stop._hear(signal.SIGTERM, None) if (tmp_path / "began").exists() else None
    )
    first, second = process.run_all([waits, script(tmp_path, "")], 60, stop)
    assert first.cut == second.cut == "stopped by SIGTERM"
    assert first.seconds < 10
    assert second.status is None


# ---- records -------------------------------------------------------------------------------------------------


def test_a_record_that_cannot_be_written_leaves_the_one_before(tmp_path):
    path = tmp_path / "record.json"
    files.write(path, {"whole": True})
    with pytest.raises(TypeError):
        files.write(path, {"no": object()})
    assert files.read(path) == {"whole": True}
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_a_journal_goes_on_behind_the_item_that_cost_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SECONDS_BETWEEN_WRITES", 0.0)
    path = tmp_path / "journal.json"
    first = files.Journal(path)
    for name in ("a", "b"):
        first.begin(name)
        if name == "a":
            first.end(files.PASSED, seconds=1.0)
    second = files.Journal(path)
    assert second.done == {"a", "b"}
    assert second.record["items"][1] == {"name": "b", "status": "failed", "what": "the process died in it"}
    assert files.at_item(path) is None
    second.begin("c")
    second.close(complete=False)  # interrupted: no verdict
    assert files.Journal(path).done == {"a", "b"}


def test_packed_records_come_before_logs(tmp_path):
    import tarfile

    (tmp_path / "out" / "logs").mkdir(parents=True)
    for name in ("logs/a.txt", "summary.json", "b.json"):
        (tmp_path / "out" / name).write_text("{}")
    files.pack(tmp_path / "out", tmp_path / "packed" / "day.tar.gz")
    with tarfile.open(tmp_path / "packed" / "day.tar.gz") as tar:
        assert tar.getnames() == ["summary.json", "b.json", "logs/a.txt"]


WORKER = """
import os, sys, time
from pathlib import Path
from gpu_day import files
journal = files.Journal(Path(sys.argv[1]))
journal.record["planned"] = 4
for name in "abcd":
    if name not in journal.done:
        journal.begin(name)
        if name == "b":
            os._exit(9)
        if name == "c":
            time.sleep(60)
        journal.end("passed")
journal.close(complete=True)
"""


def test_a_worker_is_taken_past_what_kills_it_and_what_hangs(settings):
    journal = settings.out / "items.json"
    worker = process.Command([sys.executable, "-c", WORKER, str(journal)], settings.out / "log.txt", ENVIRONMENT)
    ended, broken = workers.keep_working(settings, worker, journal, 30, hang=1)
    outcome = workers.judge(journal, ended, broken)
    assert (outcome.status, outcome.counts["passed"], outcome.counts["planned"]) == ("failed", 2, 4)
    died, hung = outcome.failures
    assert died.startswith("b: the process died in it, status 9")
    assert hung.startswith("c: took more than 1 s: it hangs")


def test_a_worker_that_cannot_begin_is_not_tried_for_ever(settings):
    journal = settings.out / "items.json"
    worker = process.Command([sys.executable, "-c", "raise SystemExit('no such')"], settings.out / "log.txt")
    outcome = workers.judge(journal, *workers.keep_working(settings, worker, journal, 30))
    assert outcome.status == "failed"
    assert "no such" in outcome.reason


# ---- the day -------------------------------------------------------------------------------------------------


def make_stage(name: str, run, share: float = 1.0) -> Stage:
    return Stage(name, share, "", run, needs_fastnn=False)


def test_the_summary_is_there_after_each_stage_and_one_failure_stops_none(settings):
    limits = []

    def note(outcome):
        def run(settings, seconds):
            limits.append(seconds)
            return outcome

        return run

    def broken(settings, seconds):
        raise RuntimeError("a mistake in the stage")

    def look(settings, seconds):
        summary = json.loads((settings.out / "summary.json").read_text())
        assert summary["stages"]["right"]["status"] == "passed"
        assert summary["stages"]["look"]["status"] == "running"
        return Outcome.of({"looked": 1}, [], "its time was up")

    wrong = Outcome.of({"passed": 7}, [f"line {i}" for i in range(50)], None)
    day = Day(settings, 1.0, "abc1234", settings.out / "day.tar.gz", ["--dry-run"])
    plan = [make_stage("right", note(Outcome())), make_stage("wrong", note(wrong)), make_stage("broken", broken)]
    day.run([*plan, make_stage("look", look)], lambda line: None)
    # What a stage leaves over goes to those behind it.
    assert limits[0] == pytest.approx(15, abs=0.5) and limits[1] == pytest.approx(20, abs=0.5)
    summary = json.loads((settings.out / "summary.json").read_text())
    assert {name: noted["status"] for name, noted in summary["stages"].items()} == {
        **{"right": "passed", "wrong": "failed"},
        **{"broken": "failed", "look": "stopped"},
    }
    assert summary["commit"] == "abc1234" and summary["dry_run"] and not summary["complete"]
    assert len(summary["stages"]["wrong"]["failures"]) == 20 and summary["stages"]["wrong"]["reason"] == "50 wrong"
    assert "a mistake in the stage" in summary["stages"]["broken"]["reason"]
    assert (settings.out / "day.tar.gz").exists()
    text = table(summary)
    assert "line 0" in text and "7 passed" not in text.splitlines()[0]


def test_without_time_or_with_a_stop_nothing_begins(settings):
    def never(settings, seconds):
        raise AssertionError("it ran")

    day = Day(settings, 0.001, None, None, [])
    day.run([make_stage("late", never)], lambda line: None)
    assert day.summary["stages"]["late"]["status"] == "skipped"
    settings.stop._hear(signal.SIGINT, None)
    day = Day(settings, 1.0, None, None, [])
    day.run([make_stage("unwanted", never)], lambda line: None)
    assert day.summary["stages"]["unwanted"]["reason"] == "stopped by SIGINT"


@pytest.mark.parametrize(
    "facts, why",
    [
        ("fastnn cannot be imported: no _C", "fastnn cannot be imported: no _C"),
        ({"cuda": {"built": False}, "devices": []}, "this fastnn was built without CUDA"),
        ({"cuda": {"built": True}, "devices": []}, "torch sees no usable GPU"),
        ({"cuda": {"built": True}, "devices": [{"name": "G", "supported": False}]}, "this fastnn has no code for G"),
        ({"cuda": {"built": True}, "devices": [{"name": "G", "supported": True}]}, None),
    ],
)
def test_why_a_fastnn_is_of_no_use(facts, why):
    assert machine.why_unusable(facts, "cuda") == why


def test_the_gpu_decides_what_is_compiled(monkeypatch):
    said = "NVIDIA H200, 9.0, 580.159.04, 143771 MiB"
    monkeypatch.setattr(machine, "said_by", lambda *words: said)
    assert machine.find_gpu() == {
        **{"name": "NVIDIA H200", "compute_capability": "9.0"},
        **{"driver": "580.159.04", "memory": "143771 MiB"},
    }
    monkeypatch.setattr(machine, "said_by", lambda *words: "No devices were found")
    assert machine.find_gpu() is None
    assert [machine.architecture(found) for found in ("8.0", "8.9", "9.0", "12.0")] == ["80", "89", "90a", "120"]


# ---- the command ---------------------------------------------------------------------------------------------


def start(*words: str | Path, **options) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "gpu_day", *map(str, words)], env=ENVIRONMENT, **pipes, **options)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--only", "graph"], "--only graph: choose from build, tests"),
        (["--minutes", "0"], "not between 0 and a day"),
        (["--out", "FILE/out"], "cannot write there: Not a directory"),
    ],
)
def test_what_cannot_run_as_asked_says_why_at_once(tmp_path, words, said):
    (tmp_path / "FILE").touch()
    words = [word.replace("FILE", str(tmp_path / "FILE")) for word in words]
    with start("--dry-run", "--out", tmp_path / "out", *words) as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert said in errors
    assert not list(tmp_path.glob("out/*"))


def test_a_day_of_which_nothing_ran_is_no_success(tmp_path):
    with start("--dry-run", "--only", "graphs", "--minutes", "0.001", "--out", tmp_path / "out") as process:
        process.communicate(timeout=30)
    assert process.returncode == 1


@pytest.mark.skipif(machine.find_gpu() is not None, reason="there is a GPU")
def test_without_a_gpu_it_says_what_can_be_done(tmp_path):
    with start("--out", tmp_path / "out") as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "--dry-run" in errors


def test_a_dry_run_of_a_stage(tmp_path):
    out = tmp_path / "out"
    with start("--dry-run", "--only", "graphs", "--out", out, "--work", tmp_path / "work") as process:
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    summary = json.loads((out / "summary.json").read_text())
    assert summary["complete"] and list(summary["stages"]) == ["graphs"]
    assert summary["versions"]["torch"] == torch.__version__ and summary["versions"]["fastnn"] == fastnn.__version__
    counts = summary["stages"]["graphs"]["counts"]
    assert counts["passed"] == counts["planned"] > 80
    assert "graphs     passed" in said


def test_sigterm_ends_a_stage_with_its_records(tmp_path):
    out = tmp_path / "out"
    summary = out / "summary.json"
    with start("--dry-run", "--only", "tests,graphs", "--out", out, "--work", tmp_path / "work") as process:
        wait_for(lambda: (out / "logs" / "tests.txt").exists())
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        process.communicate(timeout=30)
        assert time.monotonic() - began < 12
    assert process.returncode == 130
    noted = json.loads(summary.read_text())["stages"]
    assert noted["tests"]["status"] == "stopped" and noted["graphs"]["status"] == "skipped"
    assert noted["graphs"]["reason"] == "stopped by SIGTERM"


# ---- what is run: nothing forgotten --------------------------------------------------------------------------


def test_every_op_is_reached_by_a_subject(monkeypatch):
    """The dispatcher's ops that have kernels, the public functions, and the recurrent layers."""
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastnn::")]
    ops = {name[8:] for name in names if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")}
    assert len(ops) > 40
    called: set[str] = set()

    def spied(name: str):
        function = getattr(fastnn.functional, name)

        def call(*arguments, **options):
            called.add(name)
            return function(*arguments, **options)

        return call

    functions = {name: spied(name) for name in fastnn.functional.__all__}
    monkeypatch.setattr(subjects.fastnn, "functional", types.SimpleNamespace(**functions, __all__=list(functions)))
    reached: set[str] = set()
    for item in plan.one_of_each_kind(plan.in_turn(plan.subjects(), [torch.float32])):
        with OpRecorder() as recorder:
            subjects.run(item.subject, item.subject.inputs(item.dtype, item.layout, "cpu"))
            if item.subject.twice:
                subjects.run_twice(item.subject, item.subject.inputs(item.dtype, item.layout, "cpu"))
        reached |= {name for name, _ in recorder.calls}
    assert not ops - reached
    layers = {cls.__name__ for cls in (*fastnn.nn.IMPLEMENTED, *fastnn.nn.ADDED) if issubclass(cls, torch.nn.RNNBase)}
    assert layers == set(plan.RECURRENT)
    # Of layers' functions the layers are the subjects; what pools adaptively or by fractions gives indices if asked to.
    recurrent = {name for name in functions if name.split("_")[0] in ("lstm", "gru", "rnn", "mut")}
    others = {name for name in functions if name.endswith("_with_indices")} | {"sync_batch_norm"}
    assert not set(functions) - called - recurrent - others


def test_every_input_is_of_a_sample_or_of_the_layer():
    for subject in plan.subjects():
        if isinstance(subject, subjects.OfCase):
            names = set(subject.inputs(torch.float64, "contiguous", "cpu"))
            assert names <= subjects.PER_SAMPLE | subjects.PARAMETERS, subject


def test_layers_compute_with_the_parameters_that_they_are_given():
    for subject in plan.subjects():
        if isinstance(subject, subjects.OfLayer):
            inputs = subject.inputs(torch.float32, "contiguous", "cpu")
            results = subjects.run(subject, inputs)
            assert {f"gradient of {name}" for name in inputs} <= set(results), subject


def test_in_turn_meets_every_kind_before_any_twice():
    found = plan.subjects()
    items = plan.in_turn(found, (torch.float32, torch.bfloat16))
    kinds = {(item.subject.op, item.subject.kind) for item in items}
    first = [(item.subject.op, item.subject.kind) for item in items[: len(kinds)]]
    assert len(set(first)) == len(first)
    names = [item.name for item in items]
    assert len(set(names)) == len(names)


def test_every_suite_of_the_benchmark_has_its_place():
    assert sorted(stages.BENCH_SUITES) == sorted(SUITES)


def test_every_kernel_is_known_by_name():
    known = sanitizer.known_kernels()
    rows = json.loads((ROOT / "benchmarks/results/cuda_resources.json").read_text())["rows"]
    assert {row["kernel"].split("<")[0].split("::")[-1] for row in rows} <= known


# ---- what the workers notice ---------------------------------------------------------------------------------


@functools.cache
def size_item(op: str) -> plan.Item:
    arguments = types.SimpleNamespace(device="cpu", elements=None)
    return next(item for item in sizes.items(arguments) if item.subject.op == op)


@pytest.mark.parametrize("op, dimension", [("conv2d", 0), ("lstm", 1)])
@pytest.mark.parametrize("fault", ["copy", "sum", "nothing"])
def test_a_wrong_copy_and_a_lost_part_of_a_sum_are_seen(monkeypatch, op, dimension, fault):
    calls = []

    def planted(subject, inputs, given):
        results = subjects.run(subject, inputs, given)
        calls.append(1)
        if len(calls) == 2 and fault == "copy":
            results["output 0"].select(dimension, -1).zero_()
        if len(calls) == 2 and fault == "sum":
            name = next(name for name in results if "weight" in name)
            results[name] = results[name] * 0.8
        return results

    monkeypatch.setattr(sizes, "run", planted)
    arguments = types.SimpleNamespace(device="cpu", elements=2000)
    if fault == "nothing":
        assert sizes.examine(size_item(op), arguments)["copies"] >= 2
    else:
        with pytest.raises(AssertionError, match=r"copy \d+ of" if fault == "copy" else "over the number of copies"):
            sizes.examine(size_item(op), arguments)


@pytest.mark.parametrize("module", [graphs, repeats])
@pytest.mark.parametrize("planted", [True, False])
def test_other_bits_are_seen(monkeypatch, module, planted):
    calls = []

    def changing(subject, inputs, given):
        results = subjects.run(subject, inputs, given)
        calls.append(1)
        if len(calls) == 2 and planted:
            results["gradient of input"][0, 0, 0, 0] += 1e-3
        return results

    monkeypatch.setattr(module, "run", changing)
    arguments = types.SimpleNamespace(device="cpu", repeats=None)
    item = next(item for item in module.items(arguments) if item.subject.op == "conv2d")
    if planted:
        with pytest.raises(AssertionError, match=r"1 (of|elements of)"):
            module.examine(item, arguments)
    else:
        module.examine(item, arguments)


@pytest.mark.parametrize("planted", [True, False])
def test_what_a_failed_step_leaves_behind_is_seen(monkeypatch, planted):
    monkeypatch.setattr(memory, "_step", None)
    arguments = types.SimpleNamespace(device="cpu")
    step, begin = memory.prepare("cpu"), memory.Step.begin

    def forgetful(self):
        begin(self)
        self.network.rows.weight_hh_l0.data[0, 0] += 1.0

    if planted:
        monkeypatch.setattr(memory.Step, "begin", forgetful)
        with pytest.raises(AssertionError, match="the step after it gives other values of"):
            memory.examine(memory.items(arguments)[3], arguments)
    else:
        assert memory.examine(memory.items(arguments)[3], arguments) == {"raised": True}
    assert step is memory.prepare("cpu")


def test_copies_have_the_layout_of_the_block():
    block = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    many = sizes.repeated(block, 7, 0)
    assert many.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(many, block.repeat(7, 1, 1, 1))
    assert torch.equal(sizes.repeated(block[:, :, 0], 3, 1), torch.cat([block[:, :, 0]] * 3, 1))


REPORTS = """
========= COMPUTE-SANITIZER
@@ conv2d 1x1, float32 contiguous
========= Invalid __global__ read of size 4 bytes
=========     at void fastnn::cuda::conv_grad_bias_kernel<float>(float *)+0x10
=========     by thread (0,0,0) in block (0,0,0)
=========
========= Invalid __global__ read of size 4 bytes
=========     at void fastnn::cuda::conv_grad_bias_kernel<float>(float *)+0x10
=========     by thread (1,0,0) in block (0,0,0)
=========
@@ lstm plain, float32 contiguous
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void at::native::some_kernel<float>(float *)+0x10
=========
========= ERROR SUMMARY: 3 errors
"""


def test_reports_belong_to_an_item_and_to_us_or_others():
    assert list(sanitizer.read(REPORTS)) == [
        {
            "item": "conv2d 1x1, float32 contiguous",
            "what": "Invalid __global__ read of size 4 bytes",
            **{"fastnn": True, "times": 2},
        },
        {
            "item": "lstm plain, float32 contiguous",
            "what": "Uninitialized __global__ memory read of size 4 bytes",
            **{"fastnn": False, "times": 1},
        },
    ]


def test_tests_are_recorded_as_they_come(tmp_path):
    (tmp_path / "test_some.py").write_text(
        """
import pytest
def test_right(): pass
def test_wrong(): assert 1 == 2
@pytest.mark.parametrize("backend", ["cpu", "cuda", "emulated"])
def test_backends(backend): assert backend == "cuda"
"""
    )
    (tmp_path / "test_broken.py").write_text("import no_such_module")
    environment = {**ENVIRONMENT, "GPU_DAY_TESTS": str(tmp_path / "tests.json"), "GPU_DAY_BACKEND": "cuda"}
    words = [sys.executable, "-m", "pytest", "-q", "-p", "gpu_day.pytest_record", "--continue-on-collection-errors"]
    words += ["-p", "no:cacheprovider", "-p", "no:hypothesispytest", "--rootdir", str(tmp_path)]
    subprocess.run([*words, str(tmp_path)], env=environment, capture_output=True, check=False, cwd=tmp_path)
    record = json.loads((tmp_path / "tests.json").read_text())
    assert record["complete"] and record["planned"] == 3
    assert record["counts"] == {"passed": 2, "failed": 2, "skipped": 0}
    whats = {failure["name"]: failure["what"] for failure in record["failures"]}
    assert "assert 1 == 2" in whats["test_some.py::test_wrong"]
    assert "no_such_module" in whats["test_broken.py"]


# ---- the records afterwards ----------------------------------------------------------------------------------


def test_benchmarks_are_kept_where_the_tables_find_them(tmp_path):
    day, results = tmp_path / "day", tmp_path / "results"
    day.mkdir()
    files.write(day / "summary.json", {"commit": "abc1234"})
    for name in ("bench-quick", "bench"):
        record = {**make_record(device="cuda:0", name="NVIDIA H200", date="2026-12-01"), "commit": None}
        records.save(record, day / f"{name}.json")
    written = keep(day, results)
    assert [path.relative_to(results).as_posix() for path in written] == [
        "nvidia-h200/2026-12-01-abc1234-quick.json",
        "nvidia-h200/2026-12-01-abc1234.json",
    ]
    assert records.load(written[1])["commit"] == "abc1234"
    with pytest.raises(ValueError, match=r"has no summary\.json"):
        keep(results, results)
