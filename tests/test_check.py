"""``fastnn check``: what it reports, that it can fail, what it says when it cannot run."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from pathlib import Path

import pytest
import torch

import fastnn
from fastnn import check, cli
from fastnn.check import random_cases, runner, selection
from fastnn.check.plants import PLANTS
from fastnn.functional import ACTIVATIONS
from fastnn.testing import trial
from fastnn.testing.bounds import Bounded
from fastnn.testing.cases import CASES, PRECISE, TORCH, affordable_in_emulator
from fastnn.testing.judge import find_fault, measure, ulp
from fastnn.testing.recurrence_cases import GATES

# A case of each op, all of its directions among them.
FEW = ("--case", "3x3|indices|max3|4d|2x3x4|silu_4d|lstm_5x2x3x4", "--device", "cpu")
FEWER = (*FEW, "--dtype", "float32", "--layout", "contiguous")
DIRECTIONS = {
    "conv2d": {"output", "gradient of input", "gradient of weight", "gradient of bias", "second derivative"},
    "max_pool2d": {"output", "indices", "gradient of input", "second derivative"},
    "pooling": {"output", "indices", "gradient of input", "second derivative"},
    "batch_norm": {
        "output", "gradient of input", "gradient of weight", "gradient of bias", "running_mean", "running_var",
        "second derivative",
    },
    "activation": {"output", "gradient of input", "second derivative"},
    "maxout": {"output", "gradient of input", "second derivative"},
    "group_norm": {"output", "gradient of input", "gradient of weight", "gradient of bias", "second derivative"},
    "instance_norm": {"output", "gradient of input", "gradient of weight", "gradient of bias", "second derivative"},
    "local_response_norm": {"output", "gradient of input", "second derivative"},
    "lstm_cell": {
        "h", "c", "second derivative",
        *(f"gradient of {name}" for name in ("input", "hx", "cx", "w_ih", "w_hh", "b_ih", "b_hh")),
    },
    "recurrence": {
        "output", "h_n", "c_n", "second derivative",
        *(f"gradient of {name}" for name in ("input", "h0", "c0", "w_ih", "w_hh", "b_ih", "b_hh")),
    },
}  # fmt: skip


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    check.add_arguments(parser)
    return check.run(parser.parse_args(arguments))


def record_of(tmp_path: Path, *arguments: str) -> tuple[int, dict]:
    path = tmp_path / "record.json"
    status = run(*arguments, "--json", str(path))
    return status, json.loads(path.read_text(encoding="utf-8"))


# ---- what it reports -----------------------------------------------------------------------------------------


def test_a_few_cases_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    dtypes, layouts = ("float32", "bfloat16"), ("contiguous", "sliced")
    chosen = [f"--dtype={name}" for name in dtypes] + [f"--layout={name}" for name in layouts]
    status, record = record_of(tmp_path, *FEW, *chosen, "--repeat", "1")
    printed = capsys.readouterr()
    assert status == 0, printed.out
    assert printed.err == ""
    for words in ("checking ━", "cpu: errors against the float64 oracle", "gradient of w_hh", "passed: "):
        assert words in printed.out
    assert record["schema"] == 1
    assert record["complete"] is record["passed"] is True
    assert record["failures"] == []
    assert record["runs"] == len(DIRECTIONS) * 2 * 2
    assert record["machine"]["torch"] == torch.__version__
    assert record["arguments"]["dtype"] == list(dtypes)
    assert record["seconds"] > 0
    found = {(g["op"], g["direction"], g["dtype"], g["layout"], g["device"]) for g in record["groups"]}
    assert found == {
        (op, direction, dtype, layout, "cpu")
        for op, directions in DIRECTIONS.items()
        for direction in directions
        for dtype in dtypes
        for layout in layouts
    }
    for group in record["groups"]:
        assert group["cases"] == 1
        assert group["bits_differ"] == 0
        for side in ("fastnn", "torch"):
            errors = group[side]
            if (side, group["op"], group["dtype"]) == ("torch", "local_response_norm", "bfloat16"):
                assert errors["refused"] >= 1  # on the CPU it has no such kernel
                continue
            assert errors["results"] >= 1
            assert errors["refused"] == 0
            for ulps in (errors["ulps_scaled"], errors["ulps_own"]):
                assert 0 <= ulps["mean"] <= ulps["max"]
        assert group["fastnn"]["of_bound"] <= 1
        assert group["fastnn"]["broken"] == 0
    rounded = next(g for g in record["groups"] if g["op"] == "conv2d" and g["dtype"] == "bfloat16")
    assert 0 < rounded["fastnn"]["ulps_own"]["max"] <= 0.51


def test_a_row_for_each_layout(capsys: pytest.CaptureFixture[str]):
    arguments = ("--op", "max_pool2d", "--case", "2x2", "--dtype", "float32", "--device", "cpu")
    for option, rows in (((), 3), (("--verbose",), 15)):
        assert run(*arguments, *option) == 0
        printed = capsys.readouterr().out
        assert printed.count(" float32 ") == rows
        assert ("transposed" in printed) is bool(option)


def test_json_on_standard_output(capsys: pytest.CaptureFixture[str]):
    assert run("--op", "max_pool2d", *FEWER[2:], "--case", "2x2", "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["passed"] is True
    assert "passed: " in printed.err


def test_worst_cases_can_be_run_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    table = ("--op", "batch_norm", "--case", "3d|4d|2d", "--dtype", "float16")
    random = ("--op", "conv2d", "--random", "3", "--seed", "5", "--case", "random.*", "--dtype", "float32")
    for arguments in (table, random):
        _, record = record_of(tmp_path, *arguments, "--layout", "sliced", "--device", "cpu")
        for group in record["groups"]:
            worst = group["fastnn"]["worst"]
            program, command, *options = shlex.split(worst["command"])
            assert (program, command) == ("fastnn", "check")
            _, alone = record_of(tmp_path, *options)
            (same,) = [g for g in alone["groups"] if g["direction"] == group["direction"]]
            assert same["cases"] == 1
            assert same["fastnn"]["of_bound"] == group["fastnn"]["of_bound"]
            assert same["fastnn"]["worst"] == worst
    capsys.readouterr()


def test_torch_may_refuse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def refuse(input, *arguments, **options):
        if not input.is_meta:
            raise RuntimeError("not implemented for this type")
        return torch.nn.functional.conv2d(input, *arguments, **options)

    monkeypatch.setattr(TORCH, "conv2d", refuse)
    assert run("--op", "conv2d", *FEWER) == 0
    assert "refused" in capsys.readouterr().out


# ---- it can fail ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PLANTS)
def test_a_planted_fault_is_caught_in_every_direction(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    status, record = record_of(tmp_path, *FEWER, "--plant", kind)
    printed = capsys.readouterr().out
    assert status == 1
    assert "FAILED: " in printed
    assert not record["passed"]
    assert record["complete"]
    caught = {op: set() for op in DIRECTIONS}
    for group in record["groups"]:
        if (group["bits_differ"] if kind == "bits" else group["fastnn"]["broken"]) > 0:
            caught[group["op"]].add(group["direction"])
        assert group["torch"]["broken"] == 0
    # Indices are whole numbers, which no plant touches.
    assert caught == {op: directions - {"indices"} for op, directions in DIRECTIONS.items()}
    words = {"nan": "NaN at", "bits": "other bits in run 2"}
    for failure in record["failures"]:
        assert words.get(kind, "beyond the bound") in failure["what"]
        assert f"--op {failure['op']} --case {failure['case']} --dtype float32" in failure["command"]
    assert "wrong: conv2d 3x3, float32 contiguous on cpu: output: " in printed
    assert "fastnn check --op conv2d --case 3x3 --dtype float32 --layout contiguous --device cpu\n" in printed


def test_a_kernel_that_raises_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken(*arguments, **options):
        raise RuntimeError("launch failed")

    monkeypatch.setattr(fastnn.functional, "conv2d", broken)
    status, record = record_of(tmp_path, "--op", "conv2d", *FEWER)
    assert status == 1
    assert {failure["what"] for failure in record["failures"]} == {"raised RuntimeError: launch failed"}
    assert all(group["fastnn"]["refused"] > 0 for group in record["groups"])
    assert "launch failed" in capsys.readouterr().out


def test_writing_to_an_input_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    original = fastnn.functional.conv2d

    def careless(input, weight, bias, **options):
        out = original(input, weight, bias, **options)
        weight.data[0] = 0
        return out

    monkeypatch.setattr(fastnn.functional, "conv2d", careless)
    assert run("--op", "conv2d", *FEWER) == 1
    assert "weight: was modified" in capsys.readouterr().out


def test_an_interrupted_check_prints_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    original, calls = trial.run, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) > 6:  # two of fastnn and one of torch for each case
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(trial, "run", interrupted)
    status, record = record_of(tmp_path, *FEWER)
    assert status == 130
    assert record["complete"] is record["passed"] is False
    assert record["runs"] == 2
    assert record["groups"]
    printed = capsys.readouterr().out
    assert f"INCOMPLETE, 2 of {len(DIRECTIONS)} runs were done; nothing wrong so far" in printed
    assert "gradient of input" in printed


# ---- random cases --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("op", CASES)
def test_random_cases_are_valid_and_cover_the_options(op: str):
    cases = [random_cases.random_case(op, 0, index) for index in range(250)]
    assert cases == [random_cases.random_case(op, 0, index) for index in range(250)]
    assert cases[:20] != [random_cases.random_case(op, 1, index) for index in range(20)]
    for case in cases[:60]:
        inputs = case.make_inputs(torch.float32, "meta", "contiguous", torch.Generator())
        case.apply(TORCH, inputs)
    assert {"normal", "nonfinite"} <= {case.values for case in cases}
    if op == "lstm_cell":
        assert {0, 1} < {case.rows for case in cases}
        assert {63, 64, 65} & {case.hidden_size for case in cases}
        assert {case.through for case in cases} == {"both", "h", "c"}
        return
    if op == "recurrence":
        assert {0, 1} < {case.rows for case in cases}
        assert {16, 17, 32, 33, 64, 65} & {case.hidden_size for case in cases}
        assert {case.kind for case in cases} == set(GATES)
        assert {case.reverse for case in cases} == {case.memory_efficient for case in cases} == {True, False}
        assert any(case.lengths and 0 in case.lengths for case in cases)
        return
    assert any(0 in case.shape for case in cases) or op == "instance_norm"  # whose random cases have none
    # Volumes of many channels would cost too much.
    edges = {16, 17, 32, 33} if op.endswith("3d") or "transpose" in op else {16, 17, 32, 33, 64, 65, 128}
    if op == "activation":
        assert set(ACTIVATIONS) == {case.activation for case in cases}
        assert {case.residual for case in cases} == {True, False}
        return
    if op in ("maxout", "group_norm"):  # of outputs, and of groups; the channels are as many times more
        edges = {16, 17, 32, 33, 64, 65}
    assert edges <= {size for case in cases for size in case.shape}
    rank = int(op[-2]) if op.endswith("d") else 0
    if "locally" in op:
        assert any(case.dilation != 1 for case in cases)
        assert {len(case.shape) for case in cases} == {rank + 1, rank + 2}
    elif "conv" in op:
        assert any(1 < case.groups < case.channels for case in cases)
        assert any(case.groups == case.channels > 1 for case in cases)
        assert any(case.dilation != 1 for case in cases)
        if "transpose" in op:
            assert any(max(case.output_padding) > 0 for case in cases)
        else:
            assert {"same", "valid"} <= {case.padding for case in cases}
        assert {len(case.shape) for case in cases} == {rank + 1, rank + 2}
    elif op == "pooling":
        assert {case.rank for case in cases} == {1, 2, 3}
        assert {"lp_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool"} <= {case.kind for case in cases}
    elif op == "max_pool2d":
        assert {case.ceil_mode for case in cases} == {True, False}
        assert any(case.dilation != 1 for case in cases)
        assert {len(case.shape) for case in cases} == {3, 4}
    elif op == "maxout":
        assert {case.pieces_first for case in cases} == {True, False}
        assert {1, 2, 3, 16, 17} <= {case.pieces for case in cases}
    elif op == "local_response_norm":
        assert len({case.size for case in cases}) > 3
        assert {len(case.shape) for case in cases} >= {3, 4}
    elif op in ("group_norm", "instance_norm"):
        assert any(case.values == "large_mean" for case in cases)
        assert {case.mixed for case in cases} == {True, False}
        assert {len(case.shape) for case in cases} >= {3, 4}
    else:
        assert all(case.dtypes == PRECISE for case in cases if case.values == "large_mean")
        assert any(case.values == "large_mean" for case in cases)
        assert {len(case.shape) for case in cases} == {2, 3, 4, 5}
        assert {case.training for case in cases} == {case.mixed for case in cases} == {True, False}


def test_random_cases_come_from_the_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ("--op", "max_pool2d", "--case", "random.*", "--random", "4", *FEWER[2:])

    def errors(*options: str) -> list:
        return record_of(tmp_path, *arguments, *options)[1]["groups"]

    assert errors() == errors("--seed", "0") != errors("--seed", "1")
    capsys.readouterr()


# ---- what it says when it cannot run -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "conv9d"], f"unknown op 'conv9d': choose from {', '.join(CASES)}"),
        (["--dtype", "int8"], "unknown dtype 'int8': choose from float64, float32, bfloat16, float16"),
        (["--layout", "nhwc"], "unknown layout 'nhwc': choose from contiguous, channels_last, sliced"),
        (["--device", "tpu"], "unknown device 'tpu': choose cpu, cuda, cuda:N or emulated"),
        (["--device", "cuda:99"], "--device cuda:99: "),
        (["--op", "lstm_cell", "--case", "3x3"], "'3x3' is the whole name of no case. There are\n  lstm_cell: 2x3x4,"),
        (["--op", "conv2d", "--case", "huge", "--dtype", "float16"], "nothing to check: "),
        (["--random-case", "0:1", "--random", "5"], "--random-case runs one case alone"),
        (["--plant", "gremlin"], "unknown plant 'gremlin': choose from element, nan, column, bits"),
        (["--plant", "bits", "--repeat", "1"], "--plant bits needs --repeat 2 or more"),
        (["--json", "{tmp}/nowhere/record.json"], "record.json: cannot write there: No such file or directory"),
        (["--json", "{tmp}"], "cannot write there: Is a directory"),
    ],
)  # fmt: skip
def test_what_cannot_run(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(runner, "check", lambda *arguments: pytest.fail("work was begun"))
    assert run(*(argument.format(tmp=tmp_path) for argument in arguments)) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("fastnn check: ")
    assert message in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--random-case", "5"], "expected SEED:INDEX, as 0:17, got '5'"),
        (["--case", "["], "'[' is no regular expression"),
        (["--random", "-1"], "expected a whole number of at least 0, got '-1'"),
        (["--repeat", "0"], "expected a whole number of at least 1, got '0'"),
        (["--seed", "x"], "expected a whole number of at least 0, got 'x'"),
    ],
)
def test_what_is_no_value(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        run(*arguments)
    assert message in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["check", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    for words in ("--random-case SEED:INDEX", ", ".join(CASES), "Exit status: 0 passed; 1"):
        assert words in printed
    assert "--plant" not in printed


def test_rich_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, "rich", None)
    assert run() == 2
    assert "pip install 'fastnn[bench]'" in capsys.readouterr().err


# ---- the parts -----------------------------------------------------------------------------------------------


def plan(*arguments: str) -> selection.Plan:
    parser = argparse.ArgumentParser()
    check.add_arguments(parser)
    return selection.select(parser.parse_args(arguments))


def test_the_default_is_everything(monkeypatch: pytest.MonkeyPatch):
    everything = plan("--device", "cpu")
    assert {case for case, _, _ in everything.items} == {case for cases in CASES.values() for case in cases}
    assert everything.runs == 5 * sum(len(case.dtypes) for cases in CASES.values() for case in cases)
    quick = plan("--device", "cpu", "--quick")
    assert quick.runs < everything.runs / 5
    assert all(case.small for case, _, _ in quick.items)
    monkeypatch.setattr(selection, "usable_device", torch.device)
    assert [device.name for device in plan().devices] == ["cpu", "cuda"]


def test_the_emulator_gets_what_it_can_afford(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(selection, "emulated_cuda", contextlib.nullcontext)
    chosen = plan("--device", "emulated", "--random", "20")
    assert any(case.id.startswith("random-") for case, _, _ in chosen.items)
    for case, dtype, places in chosen.items:
        for _, layouts in places:
            assert all(affordable_in_emulator(case, dtype, layout) for layout in layouts)
    assert 0 < chosen.runs < plan("--device", "cpu", "--random", "20").runs


@pytest.mark.skipif(os.environ.get("FASTNN_TEST_EMULATOR") == "0", reason="the emulator is left out")
def test_the_emulator(capsys: pytest.CaptureFixture[str]):
    assert run("--op", "max_pool2d", "--case", "2x2", *FEWER[4:], "--device", "emulated") == 0
    assert "emulated: errors against the float64 oracle" in capsys.readouterr().out


def test_torch_computes_in_full_precision_for_the_time():
    before = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    try:
        with runner.full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32 == before
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (1.0, torch.float32, 2.0**-23),
        (1.999999999, torch.float32, 2.0**-22),  # rounds to 2
        (0.75, torch.bfloat16, 2.0**-8),
        (-5.0, torch.float16, 2.0**-8),
        (0.0, torch.float16, 2.0**-24),
        (1e-40, torch.float32, 2.0**-149),
        (3.0, torch.int64, 1.0),
    ],
)
def test_ulp(value: float, dtype: torch.dtype, expected: float):
    assert ulp(torch.tensor(value, dtype=torch.float64), dtype).item() == expected


def test_measured_errors():
    u = 2.0**-23
    want = torch.tensor([1.0, 4.0, 1e-9, float("nan")], dtype=torch.float64)
    got = want.float() + torch.tensor([2 * u, 4 * u, 0.0, 0.0])
    got[2] = u
    errors = measure(got, Bounded(want, torch.full_like(want, 8 * u), u))
    # The third is below its own bound: no digit of it is certain, so it has no ulps of its own.
    assert (errors.own_count, errors.own_max, errors.own_sum) == (2, 2.0, 3.0)
    assert (errors.scaled_count, errors.scaled_max) == (3, 1.0)
    assert errors.of_bound == 0.5
    nothing = Bounded(want[2:3], torch.ones(1, dtype=torch.float64), u)
    assert measure(got[2:3], nothing).scaled_count == 0
    exact = Bounded.exact(want[:1], 0.0)
    assert measure(got[:1], exact).of_bound == float("inf")


@pytest.mark.parametrize(
    ("got", "want", "fault"),
    [
        ([1.0, 2.0], [1.0, 2.0], None),
        ([1.0, 2.25], [1.0, 2.0], None),
        ([1.0, 2.5], [1.0, 2.0], "1 of 2 elements beyond the bound, first [1]"),
        ([1.0], [1.0, 2.0], "shape (1,), expected (2,)"),
        ([float("nan"), 2.0], [1.0, 2.0], "NaN at [0]"),
        ([1.0, 2.0], [1.0, float("nan")], "NaN at [1]"),
        ([1.0, float("inf")], [1.0, 2.0], "not finite at [1]"),
        ([1.0, 2.0], [1.0, float("inf")], "finite at [1], not inf"),
        ([1.0, float("-inf")], [1.0, float("inf")], "sign of an infinity"),
        ([1.0, float("inf")], [1.0, 1e39], None),  # beyond float32
        ([1.0, float("inf")], [1.0, -1e39], "sign of an infinity"),
    ],
)
def test_faults(got: list[float], want: list[float], fault: str | None):
    value = torch.tensor(want, dtype=torch.float64)
    found = find_fault(torch.tensor(got), Bounded(value, torch.full_like(value, 0.3), 0.0))
    assert (found is None) if fault is None else fault in found


def test_faults_of_kind():
    one = Bounded.exact(torch.ones(1, dtype=torch.float64), 0.0)
    assert find_fault(None, one) == "there is none"
    assert find_fault(torch.ones(1), one, torch.float64) == "float32, expected float64"
