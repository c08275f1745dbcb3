"""``fastnn bench``: suites, floors, timing, memory, noise and the command, on layers that take no time."""

from __future__ import annotations

import json
import os
import re
import time
import types
from pathlib import Path

import pytest
import torch

import fastnn
from fastnn import bench, cli
from fastnn.bench import correctness, graphs, measure, memory, noise, record, session, suites, timing
from fastnn.bench.convolutions import ConvOfRank, LocallyConnected
from fastnn.bench.layers import Conv, Linear, Norm, NormReLU, Pool
from fastnn.bench.networks import NETWORKS
from fastnn.bench.recurrent import Cell, Recurrence

CPU = torch.device("cpu")
LIMIT = {"copy_bytes_per_second": 1e10, "flops_per_second": 1e11}
FEW_ROWS = ("lenet5", "--only", "5x5, 6 to 16.*contiguous", "--budget", "1", "--device", "cpu")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "measure_limit", lambda device, dtype: dict(LIMIT))
    monkeypatch.setattr(bench, "_look_around", lambda console, strict, on_cpu: None)
    monkeypatch.setattr(measure, "MOST_COPIES", {"cpu": 2, "cuda": 2})


# ---- suites -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "convolutions", "depthwise"),
    [
        ("resnet50", 25_557_032, 53, 0),
        ("vgg16", 138_357_544, 13, 0),
        ("alexnet", 61_100_840, 5, 0),
        ("googlenet", 7_005_832, 57, 0),
        ("lenet5", 61_706, 3, 0),
        ("digits", 58_986, 3, 0),
        ("mobilenet_v2", 3_504_872, 52, 17),
    ],
)
def test_networks_are_the_papers_and_all_their_layers_are_found(name, parameters, convolutions, depthwise):
    with torch.device("meta"):
        network = NETWORKS[name].make()
    assert sum(p.numel() for p in network.parameters()) == parameters
    found = suites.traced(name, 2)
    of_convolutions = {layer: times for layer, times in found if isinstance(layer, Conv)}
    assert sum(of_convolutions.values()) == convolutions
    assert sum(times for layer, times in of_convolutions.items() if layer.groups == layer.c > 1) == depthwise
    assert [layer.first for layer in of_convolutions] == [True] + [False] * (len(of_convolutions) - 1)
    # What the layers hold is what the network holds.
    in_layers = sum(
        times * sum(p.numel() for p in layer.make().parameters())
        for layer, times in found
        if not (isinstance(layer, Linear) and layer.inputs > 5000)  # large, and one alone needs no counting
    )
    large = sum(m.weight.numel() + m.bias.numel() for m in network.modules() if getattr(m, "in_features", 0) > 5000)
    assert in_layers + large == parameters


def test_known_layers_of_resnet50():
    found = dict(suites.traced("resnet50", 8))
    assert found[Conv(8, 3, 224, 224, 64, 7, 7, 2, 3, 1, False, True)] == 1
    assert found[Conv(8, 64, 56, 56, 64, 3, 3, 1, 1, 1, False, False)] == 3
    assert found[Conv(8, 512, 7, 7, 512, 3, 3, 1, 1, 1, False, False)] == 2
    assert found[Pool(8, 64, 112, 112, 3, 2, 1)] == 1
    assert found[Norm(8, 64, 112, 112)] == 1
    assert sum(times for layer, times in found.items() if isinstance(layer, Norm)) == 53


@pytest.mark.parametrize("suite", suites.SUITES)
def test_cases_are_unique_and_quick_is_a_part(suite):
    every = suites.rows([suite], 8, ["float32"])
    assert len({str(row) for row in every}) == len(every) > 0
    quick = suites.rows([suite], 8, ["float32"], 4e9)
    assert set(quick) <= set(every)


def test_lstm_suite_has_the_sequences():
    cases = [layer.case for layer, _ in suites.layers("lstm", 8)]
    assert "cell B16 H128" in cases
    for case in ("B64 T128 H512", "B16 T1024 H768", "B32 T500 H320 bidirectional", "B1 T100 H128"):
        assert case in cases
    assert (100_000, 32) in [(layer.n, layer.c) for layer, _ in suites.layers("norm", 8)]


def test_tf32_rows_are_those_of_products_alone():
    ops = {row.layer.op for row in suites.rows(["resnet50"], 8, ["tf32"])}
    assert ops == {"conv2d"}


# ---- the least to do ------------------------------------------------------------------------------------------


def test_cost_of_convolution_counted_by_hand():
    conv = Conv(2, 3, 8, 8, 4, 3, 3, 2, 1, 1, True, False)  # output [2, 4, 4, 4]
    x, y, weight, bias = 2 * 3 * 64, 2 * 4 * 16, 4 * 3 * 9, 4
    assert conv.cost("forward", 4) == ((x + weight + bias + y) * 4, 2 * y * 27)
    assert conv.cost("backward", 4) == ((y + x + weight + x + weight + bias) * 4, 2 * 2 * y * 27)
    first = Conv(2, 3, 8, 8, 4, 3, 3, 2, 1, 1, True, True)
    assert first.cost("backward", 2) == ((y + x + weight + bias) * 2, 2 * y * 27)
    depthwise = Conv(1, 6, 5, 5, 6, 3, 3, 1, 1, 6, False, False)
    assert depthwise.cost("forward", 4) == ((150 + 54 + 150) * 4, 2 * 150 * 9)


def test_cost_of_convolutions_of_any_rank_counted_by_hand():
    volume = ConvOfRank(2, 3, 4, (4, 6, 8), (2, 3, 3), padding=1)  # output [2, 4, 5, 6, 8]
    x, y, weight = 2 * 3 * 192, 2 * 4 * 240, 4 * 3 * 18
    assert volume.cost("forward", 4) == ((x + weight + 4 + y) * 4, 2 * y * 54)
    assert volume.cost("backward", 4) == ((y + 2 * x + 2 * weight + 4) * 4, 2 * 2 * y * 54)
    up = ConvOfRank(1, 6, 4, (5, 5), (4, 4), stride=2, padding=1, transposed=True)  # output [1, 4, 10, 10]
    assert up.cost("forward", 2) == ((150 + 384 + 4 + 400) * 2, 2 * 25 * 384)
    assert ConvOfRank(1, 6, 6, (9,), (3,), depthwise=True).cost("forward", 4) == ((54 + 18 + 6 + 42) * 4, 2 * 42 * 3)
    local = LocallyConnected(2, 3, 4, 5, 3)  # output [2, 4, 3, 3]
    assert local.cost("forward", 4) == ((150 + 9 * 108 + 36 + 72) * 4, 2 * 2 * 9 * 108)
    assert local.cost("backward", 4) == ((72 + 300 + 2 * 9 * 108 + 36) * 4, 4 * 2 * 9 * 108)


def test_cost_of_the_others_counted_by_hand():
    pool = Pool(1, 2, 5, 5, 3, 2, 0)  # output 2 x 2
    assert pool.cost("forward", 4) == (4 * (50 + 8) + 8, 8 * 8)
    assert pool.cost("backward", 4) == (4 * (8 + 50) + 8, 8)
    assert pool.cost("inference", 4).bytes == 4 * 58
    assert Pool(1, 1, 6, 6, 3, 2, 0, ceil_mode=True).cost("inference", 1).bytes == 36 + 9
    norm = Norm(2, 3, 4, 4)
    assert norm.cost("forward", 2) == (2 * 96 * 2 + 8 * 3 * 4, 6 * 96)
    assert norm.cost("backward", 2) == (3 * 96 * 2 + 5 * 3 * 4, 9 * 96)
    assert norm.cost("inference", 4).bytes == Norm(2, 3, 4, 4, training=False).cost("forward", 4).bytes
    cell = Cell(2, 3)
    assert cell.cost("inference", 4) == ((3 * 6 + 8 * 9 + 8 * 3 + 2 * 6) * 4, 2 * 2 * 12 * 6)
    assert cell.cost("forward", 4).bytes - cell.cost("inference", 4).bytes == 4 * 6 * 4
    # A sequence of one step has the cell's products and gates.
    assert Recurrence(2, 1, 3).cost("forward", 4).flops == cell.cost("forward", 4).flops
    assert Recurrence(2, 5, 3, bidirectional=True).cost("forward", 4).flops == 10 * cell.cost("forward", 4).flops


def test_output_sizes_are_torchs():
    for layer, _ in [*suites.traced("googlenet", 1), *suites.traced("alexnet", 1)]:
        if isinstance(layer, Pool):
            module = layer.make().to("meta")
            out = module(torch.empty(layer.n, layer.c, layer.h, layer.w, device="meta"))
            assert layer.cost("backward", 0).bytes == out.numel()


def test_floor_and_what_bounds_it():
    conv = Conv(8, 64, 56, 56, 64, 3, 3, 1, 1, 1, False, False)
    assert conv.floor("forward", 4, LIMIT) == (conv.cost("forward", 4).flops / 1e11, "compute")
    norm = Norm(8, 64, 56, 56)
    assert norm.floor("forward", 4, LIMIT) == (norm.cost("forward", 4).bytes / 1e10, "memory")
    network = suites.WholeNetwork("lenet5", 4)
    parts = sum(
        times * (part.floor("forward", 4, LIMIT)[0] + part.floor("backward", 4, LIMIT)[0])
        for part, times in suites.traced("lenet5", 4)
    )
    assert network.floor("training_step", 4, LIMIT)[0] == pytest.approx(parts)
    assert network.cost("training_step", 4).flops > network.cost("inference", 4).flops


# ---- correctness ----------------------------------------------------------------------------------------------

SMALL = (
    Conv(2, 3, 9, 9, 4, 3, 3, 2, 1, 1, True, True),
    Conv(2, 6, 7, 7, 6, 3, 3, 1, 1, 6, False, False),
    Pool(2, 3, 9, 9, 3, 2, 1),
    Norm(4, 5, 6, 6),
    Norm(16, 5, 0, 0),
    Norm(4, 5, 6, 6, training=False),
    NormReLU(4, 5, 6, 6),
    NormReLU(4, 5, 6, 6, residual=True),
    Cell(3, 8),
    Recurrence(3, 4, 8, bidirectional=True),
    suites.WholeNetwork("lenet5", 2),
)


@pytest.mark.parametrize("layer", SMALL, ids=lambda layer: f"{layer.op} {layer.case}")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_right_kernels_pass_and_wrong_ones_do_not(layer, dtype):
    given = correctness.problem(layer, dtype, CPU)

    class Wrong(torch.nn.Module):
        """One element of the first output is off by its root mean square."""

        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = layer.fastnn(module)

        def named_parameters(self, *args, **options):
            return self.module.named_parameters(*args, **options)

        def forward(self, *inputs):
            out = self.module(*inputs)
            first = out[0] if isinstance(out, tuple) else out
            change = torch.zeros_like(first)
            change[(0,) * change.dim()] = first.detach().square().mean().sqrt() * (4 if layer.amplifies else 1)
            return (first + change, *out[1:]) if isinstance(out, tuple) else out + change

    for layout in layer.layouts:
        assert correctness.fault(given, layer.fastnn, layout) is None
        said = correctness.fault(given, Wrong, layout)
        assert said is not None and said.startswith(("fastnn, forward", "fastnn, inference")), said


# ---- timing, memory, noise ------------------------------------------------------------------------------------


def test_rounds_fit_the_time():
    assert timing.affordable(1.0, 0.1, 21) == 10
    assert timing.affordable(0.1, 0.1, 21) == 3
    assert timing.affordable(100.0, 0.1, 21) == 21
    assert timing.affordable(-1.0, 0.1, 2) == 3
    calls = {"slow": 0, "fast": 0}

    def step(name: str, seconds: float) -> None:
        calls[name] += 1
        time.sleep(seconds)

    steps = {"slow": lambda: step("slow", 0.01), "fast": lambda: step("fast", 0.0)}
    measured = timing.time_in_turn(steps, seconds_per_round=0.005, rounds=20, seconds=0.05)
    assert len(measured["slow"]) == len(measured["fast"]) and 3 <= len(measured["slow"]) <= 5
    assert calls["slow"] == calls["fast"] == len(measured["slow"]) + 2
    assert timing.median(measured["slow"]) >= 0.01 > timing.median(measured["fast"])


def test_budget_is_shared_by_weight(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(session.time, "perf_counter", lambda: now[0])
    budget = session.Budget(100.0, [1.0, 1.0, 2.0, 6.0])
    assert budget.take(2) == pytest.approx(20.0)
    now[0] = 10.0  # ten seconds less than they might have taken: the others get them
    assert budget.take(1) == pytest.approx(90.0 / 4)
    now[0] = 200.0
    assert budget.take(1) == 0.0
    conv = suites.Row("s", Conv(8, 64, 56, 56, 64, 3, 3, 1, 1, 1, False, False), 1, "contiguous", "float32", "forward")
    assert session.weight(conv, LIMIT) > session.SECONDS_FOR_ANY_ROW


def test_peak_memory_of_known_calls():
    x = torch.randn(1000, 100)
    size = x.nbytes

    def chain() -> torch.Tensor:
        y = x + 1
        z = y * 2
        del y
        return z + 1

    assert memory.peak_bytes(lambda: None, CPU) == 0
    assert size <= memory.peak_bytes(lambda: x + 1, CPU) < size + 1000
    assert 2 * size <= memory.peak_bytes(chain, CPU) < 2 * size + 1000
    pool = torch.nn.MaxPool2d(2)
    images = torch.randn(1, 8, 32, 32, requires_grad=True)
    out = 8 * 16 * 16
    theirs, mine = (memory.peak_bytes(lambda p=p: p(images), CPU) for p in (pool, fastnn.nn.MaxPool2d(2)))
    assert theirs >= out * (4 + 8) and out * (4 + 1) <= mine < theirs


def test_memory_of_a_training_step_is_its_activations():
    layer = suites.WholeNetwork("lenet5", 16)
    row = suites.Row("models", layer, 1, "contiguous", "float32", "training_step")
    instance = measure._instances(row, measure.Settings(CPU))[0]
    steps = measure._steps(row, [instance])
    peaks = {n: memory.peak_bytes(call, CPU) for n, call in measure._for_memory(row, instance, steps).items()}
    # The first convolution's output and its tanh, of 16 images; weights and their gradients would be 240 kB each.
    assert peaks["fastnn"] > 2 * 16 * 6 * 28 * 28 * 4
    assert all(parameter.grad is None for parameter in instance.layers["fastnn"].parameters())


def test_noise_is_marked():
    steady = {"fastnn": (1.0e-3, 1.1e-3), "torch": (2.0e-3, 2.2e-3)}
    assert noise.unsteady(steady, {"fastnn": 1e-3, "torch": 2e-3}, 5e-4, 2) is None
    said = noise.unsteady({**steady, "torch": (1e-3, 2e-3)}, {"fastnn": 1e-3, "torch": 2e-3}, 5e-4, 8)
    assert said == "torch: the 80th percentile is 2.0 times the 20th"
    assert "turns of 8 ms" in noise.unsteady(steady, {"fastnn": 0.01601, "torch": 2e-3}, 1e-4, 2)
    assert noise.unsteady(steady, {"fastnn": 0.01601, "torch": 2e-3}, 1e-2, 2) is None  # nearly at its floor
    assert noise.unsteady(steady, {"fastnn": 0.01601, "torch": 2e-3}, 1e-4, 64) is None
    assert noise.crowded(0.05, 2, 2) is None
    assert noise.crowded(None, 2, 2) is None
    assert noise.crowded(1.0, 2, 8) is None
    assert noise.crowded(1.0, 2, 2) == "other processes kept 1.0 of 2 cores busy"


def test_other_processes_are_seen_and_this_one_is_not(monkeypatch: pytest.MonkeyPatch):
    machine, own, now = [100.0], [10.0], [0.0]
    monkeypatch.setattr(noise, "_machine_seconds", lambda: machine[0])
    monkeypatch.setattr(noise, "_own_seconds", lambda: own[0])
    monkeypatch.setattr(noise.time, "perf_counter", lambda: now[0])
    others = noise.OtherProcesses()
    machine[0], own[0], now[0] = 103.0, 12.0, 2.0
    assert others.busy_cores() == pytest.approx(0.5)
    monkeypatch.setattr(noise, "_machine_seconds", lambda: None)
    assert others.busy_cores() is None


def test_strict_refuses_a_busy_machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.undo()
    monkeypatch.setattr(noise.OtherProcesses, "busy_cores", lambda self: 1.5)
    assert cli.main(["bench", *FEW_ROWS, "--strict"]) == 2
    assert "--strict: other processes keep 1.5 cores busy" in capsys.readouterr().err


def test_kernels_that_are_not_optimised_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.undo()
    monkeypatch.setattr(noise.OtherProcesses, "busy_cores", lambda self: None)
    facts = fastnn.info()
    facts["cpu"]["optimised"] = []
    monkeypatch.setattr(fastnn, "info", lambda: facts)
    capability = facts["cpu"]["capability"]
    assert cli.main(["bench", *FEW_ROWS, "--strict"]) == 2
    assert f"--strict: this build has the CPU kernels for {capability} unoptimised" in capsys.readouterr().err
    assert f"{capability} (NOT optimised in this build) in use" in cli.format_info(facts)


class FakeGPU:
    """What ``graphs`` needs of torch.cuda, on the CPU: graphs that record nothing and run what was captured again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, can_capture: bool) -> None:
        self.replays = 0
        gpu = self

        class Graph:
            def capture_begin(self) -> None:
                if not can_capture:
                    raise RuntimeError("operation not permitted when stream is capturing")

            def capture_end(self) -> None:
                pass

            def replay(self) -> None:
                gpu.replays += 1

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                self.at = 0.0

            def record(self) -> None:
                self.at = time.perf_counter()

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, end: Event) -> float:
                return 1e3 * (end.at - self.at)

        fake = types.SimpleNamespace(CUDAGraph=Graph, Event=Event, synchronize=lambda: None)
        monkeypatch.setattr(graphs.torch, "cuda", fake)
        monkeypatch.setattr(graphs, "cache_bytes", lambda device: 1)
        monkeypatch.setattr(graphs, "FLUSH_BYTES", 1)


@pytest.mark.parametrize("can_capture", [True, False])
def test_replays_take_turns_or_events_take_their_place(monkeypatch: pytest.MonkeyPatch, can_capture: bool):
    gpu = FakeGPU(monkeypatch, can_capture)
    ran: list[str] = []
    steps = {name: [lambda name=name, i=i: ran.append(f"{name}{i}") for i in range(3)] for name in ("a", "b")}
    measured, timer = graphs.replay_in_turn(steps, CPU, rounds=5, seconds=60.0)
    assert timer == ("graph" if can_capture else "events")
    assert [len(values) for values in measured.values()] == [5, 5]
    assert set(ran) == {f"{name}{i}" for name in "ab" for i in range(3)}
    assert gpu.replays == (12 if can_capture else 0)


def test_a_replay_has_each_copy_equally_often():
    assert graphs._calls(1.0, 4) == 4
    assert graphs._calls(1e-5, 4) == 52
    assert graphs._calls(1e-9, 4) == 512


# ---- the command ----------------------------------------------------------------------------------------------


def test_a_run_and_its_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "new" / "record.json"
    assert cli.main(["bench", *FEW_ROWS, "--json", str(path), "--verbose", "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "5x5, 6 to 16, 14²" in printed and "2 of 2 rows" in printed
    kept = record.load(path)
    assert kept["complete"] and kept["machine"]["threads"] == 1
    assert [row["direction"] for row in kept["rows"]] == ["forward", "backward"]
    for row in kept["rows"]:
        assert row["rounds"] >= 3 and row["rotated"] == 2 and row["wrong"] is None
        assert row["ratio"]["torch"] == pytest.approx(row["seconds"]["torch"] / row["seconds"]["fastnn"])
        assert row["fraction"]["fastnn"] == pytest.approx(row["floor_seconds"] / row["seconds"]["fastnn"])
        low, high = row["percentiles_20_80"]["torch"]
        assert low <= row["seconds"]["torch"] <= high
        assert row["peak_bytes"]["torch"] > 0 and row["peak_bytes"]["fastnn"] > 0


def test_a_wrong_kernel_gets_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    right = fastnn.functional.conv2d
    monkeypatch.setattr(fastnn.functional, "conv2d", lambda *args: right(*args) * 1.001)
    path = tmp_path / "record.json"
    assert cli.main(["bench", *FEW_ROWS, "--json", str(path)]) == 1
    assert "WRONG, not timed" in capsys.readouterr().out
    for row in record.load(path)["rows"]:
        assert row["wrong"].startswith("fastnn, forward, output 0: ")
        assert "seconds" not in row and "ratio" not in row


def test_a_kernel_that_raises_gets_no_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def conv2d(*args):
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(fastnn.functional, "conv2d", conv2d)
    assert cli.main(["bench", *FEW_ROWS]) == 1
    assert "fastnn raises RuntimeError: no kernel for this" in capsys.readouterr().out


def test_interrupted_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    real = measure._timed

    def timed(row, *args):
        if row.direction == "backward":
            raise KeyboardInterrupt
        return real(row, *args)

    monkeypatch.setattr(measure, "_timed", timed)
    path = tmp_path / "record.json"
    assert cli.main(["bench", *FEW_ROWS, "--json", str(path)]) == 130
    printed = capsys.readouterr()
    assert "1 of 2 rows" in printed.out and "interrupted" in printed.err
    kept = record.load(path)
    assert not kept["complete"] and [row["direction"] for row in kept["rows"]] == ["forward"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet51"], "unknown suite 'resnet51': choose from resnet50, vgg16,"),
        (["lenet5", "--dtype", "float8", "--device", "cpu"], "--dtype float8: choose from float32, bfloat16"),
        (["lenet5", "--dtype", "tf32", "--device", "cpu"], "--dtype tf32: choose from"),
        (["lenet5", "--only", "nothing", "--device", "cpu"], "--only nothing: matches no row of lenet5"),
        (["--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_what_cannot_be_is_said(arguments, message, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--budget", "0"], ["--only", "("], ["--threads", "0"], ["--batch", "x"]])
def test_bad_values_are_refused_by_the_parser(option, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as status:
        cli.main(["bench", *option])
    assert status.value.code == 2
    assert option[0] in capsys.readouterr().err


def test_no_gpu_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", "lenet5", "--device", "cuda"]) == 2
    assert re.search(r"--device cuda: (this torch is a CPU build|torch sees no usable GPU)", capsys.readouterr().err)


def test_nothing_is_measured_for_a_file_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("")
    assert cli.main(["bench", *FEW_ROWS, "--json", str(tmp_path / "file" / "record.json")]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert cli.main(["bench", *FEW_ROWS, "--json", str(tmp_path)]) == 2
    assert "it is a folder" in capsys.readouterr().err
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        assert cli.main(["bench", *FEW_ROWS, "--json", str(tmp_path / "locked" / "record.json")]) == 2


def test_save_needs_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(session, "checkout", lambda: None)
    assert cli.main(["bench", *FEW_ROWS, "--save"]) == 2
    assert "--save: this fastnn does not run from a checkout" in capsys.readouterr().err
    monkeypatch.setattr(session, "checkout", lambda: tmp_path)
    path = session.recorded_file(CPU)
    assert path is not None and path.parent.parent == tmp_path / "benchmarks" / "results"
    assert re.fullmatch(r"[a-z0-9-]+", path.parent.name)


def test_the_list_and_the_subcommands(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["bench", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in suites.SUITES)
    for name in cli.BENCH_COMMANDS:
        with pytest.raises(SystemExit) as status:
            cli.main(["bench", name, "--help"])
        assert status.value.code == 0
        assert f"usage: fastnn bench {name}" in capsys.readouterr().out


def test_compiled_peer_is_one_more_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "compile", lambda module: module)
    path = tmp_path / "record.json"
    assert cli.main(["bench", *FEW_ROWS, "--compile", "--hot", "--json", str(path)]) == 0
    row = json.loads(path.read_text())["rows"][0]
    assert set(row["ratio"]) == {"torch", "torch.compile"} and row["rotated"] == 1
