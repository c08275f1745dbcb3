"""``torch.backends.cudnn.benchmark``: a convolution's ways are timed once, and the fastest is kept and used."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conv_cases import HOPPER_CASES
from op_tester import make_inputs

from fastnn import __version__
from fastnn import functional as F
from fastnn._backend import _C
from fastnn._cache import cache_directory
from fastnn.testing.access_profile import access_profile
from fastnn.testing.cases import CONV2D, Conv2dCase, lay_out
from fastnn.testing.emulation import emulated_cuda, played_device

pytestmark = pytest.mark.usefixtures("emulated")
# A little more than one chunk of k, for few outputs.
SPLITS = Conv2dCase(id="splits", shape=(1, 1088, 3, 3), filters=72, kernel=(1, 1))
BY_ID = {case.id: case for case in (*CONV2D, *HOPPER_CASES, SPLITS)}
DIRECTIONS = ["forward", "grad_input", "grad_weight"]


@pytest.fixture
def emulated():
    with emulated_cuda():
        yield


@pytest.fixture
def kept(tmp_path):
    """The file of choices, which is not there yet; no choice is in memory."""
    _C.set_conv_choices_directory(str(tmp_path / "above" / "version"))
    yield tmp_path / "above" / "version" / "conv-emulated.tsv"
    _C.set_conv_choices_directory("")


def benchmarking(**flags):
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False, **flags)


def lines_of(path):
    return [line.split("\t") for line in path.read_text().splitlines()]


def products_of(kernels):
    return [k.name for k in kernels for _ in range(k.launches) if not re.search("pack|sum|combine", k.name)]


class Call:
    """One direction of a case."""

    def __init__(self, case, direction, dtype=torch.bfloat16, layout="channels_last"):
        inputs = {name: t.detach() for name, t in make_inputs(case, dtype, layout, torch.device("cpu")).items()}
        x, w = inputs["input"], inputs["weight"]
        out = F.conv2d(x, w, **case.options)
        padding = (case.padding, case.padding) if isinstance(case.padding, int) else case.padding
        pair = lambda v: [v, v] if isinstance(v, int) else list(v)  # noqa: E731
        options = (pair(case.stride), [p for p in padding for _ in range(2)], pair(case.dilation), case.groups)
        g = lay_out(torch.randn(out.shape).to(out), layout)
        last = layout == "channels_last"
        ops = torch.ops.fastnn
        self.direction = direction
        self.run = {
            "forward": lambda: ops.convolution(x, w, None, *options),
            "grad_input": lambda: ops.convolution_grad_input(g, w, x.shape, *options, last),
            "grad_weight": lambda: ops.convolution_grad_weight(x, g, w.shape, *options, last),
        }[direction]
        exact = (x.double(), w.double(), g.double())
        arguments = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation, "groups": case.groups}
        self.exact = {
            "forward": lambda: torch.nn.functional.conv2d(exact[0], exact[1], **arguments),
            "grad_input": lambda: torch.nn.grad.conv2d_input(x.shape, exact[1], exact[2], **arguments),
            "grad_weight": lambda: torch.nn.grad.conv2d_weight(exact[0], w.shape, exact[2], **arguments),
        }[direction]()

    def __call__(self):
        with access_profile() as kernels:
            result = self.run()
        tolerance = 2e-2 if result.dtype == torch.bfloat16 else 1e-4
        scale = self.exact.abs().max().item()
        torch.testing.assert_close(result.double(), self.exact, rtol=tolerance, atol=tolerance * scale)
        return result, products_of(kernels)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_ways_are_timed_once_and_the_fastest_is_used(direction, kept):
    call = Call(BY_ID["hopper_square_edges"], direction)
    _, own = call()
    with benchmarking():
        _, first = call()
        _, second = call()
    assert len(own) == 1
    assert len(second) == 1
    lines = lines_of(kept)
    assert len(first) == 4 * len(lines) + 1
    assert len(lines) > 1
    assert {line[0].split()[0] for line in lines} == {direction}
    times = [float(line[2]) for line in lines]
    assert times == sorted(times, reverse=True)
    assert len({line[1] for line in lines}) == len(lines)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    "case",
    ["hopper_square_edges", "hopper_stride_2", "depthwise", "splits"],
)
def test_every_way_is_right_and_used_where_the_file_says_so(case, direction, capability, kept):
    """By its name in the file, as another process would find it; ways with the bits of the default have them."""
    with played_device(compute_capability=capability):
        call = Call(BY_ID[case], direction)
        default, _ = call()
        with benchmarking(deterministic=True):
            call()
        same_bits = {line[1] for line in lines_of(kept)} if kept.exists() else set()
        with benchmarking():
            call()
        if not kept.exists():
            return
        lines = [line for line in lines_of(kept) if not line[0].endswith("same bits")]
        used = set()
        for key, name, _ in lines:
            kept.write_text(f"{key}\t{name}\t1.0\n")
            _C.set_conv_choices_directory(str(kept.parent))
            with benchmarking():
                result, products = call()
            assert len(products) == 1
            used.add((products[0], name))
            if name in same_bits:
                assert torch.equal(result, default), name
        assert len(used) == len(lines)


def test_which_ways_there_are(kept):
    """Of a product that fills no device: Hopper's tiles, whole and split; those of mma.sync."""
    with benchmarking():
        Call(SPLITS, "forward")()
    assert {line[1] for line in lines_of(kept)} == {
        "wgmma square, 1 splits",
        "wgmma square, 2 splits",
        "wgmma tall, 1 splits",
        "mma large",
        "mma large split",
        "mma small",
        "mma small split",
    }


def test_deterministic_flags_keep_the_bits(kept):
    call = Call(BY_ID["hopper_square_edges"], "grad_weight")
    want, own = call()
    with benchmarking(deterministic=True):
        got, products = call()
    assert torch.equal(got, want)
    assert set(products) == set(own)
    torch.use_deterministic_algorithms(True)
    try:
        with benchmarking():
            got, _ = call()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(got, want)


def test_without_the_flag_nothing_is_timed(kept):
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
        _, products = Call(BY_ID["hopper_square_edges"], "forward")()
    assert len(products) == 1
    assert not kept.exists()


def test_the_cpu_kernels_have_nothing_to_choose(kept):
    previous = _C.set_emulated(False)
    try:
        with benchmarking():
            F.conv2d(torch.randn(2, 8, 9, 9), torch.randn(8, 8, 3, 3))
    finally:
        _C.set_emulated(previous)
    assert not kept.exists()


def test_convolutions_that_differ_have_choices_of_their_own(kept):
    """By shape, stride, layout, type, direction and alignment."""
    x = torch.randn(2, 16, 5, 5).bfloat16().contiguous(memory_format=torch.channels_last)
    w = torch.randn(72, 16, 3, 3).bfloat16().contiguous(memory_format=torch.channels_last)
    odd = torch.zeros(x.numel() + 1).bfloat16()[1:].as_strided(x.shape, x.stride(), 1).copy_(x)
    with benchmarking():
        for args, options in (
            ((x, w), {}),
            ((x, w), {"padding": 1}),
            ((x, w), {"stride": 2}),
            ((x[:1], w), {}),
            ((x.contiguous(), w), {}),
            ((x.half(), w.half()), {}),
            ((x.float(), w.float()), {}),
            ((odd, w), {}),
        ):
            torch.testing.assert_close(
                F.conv2d(*args, **options).float(),
                torch.nn.functional.conv2d(args[0].float(), args[1].float(), **options),
                rtol=2e-2,
                atol=0.5,
            )
    assert len({line[0] for line in lines_of(kept)}) == 8


@pytest.mark.parametrize(
    "damage",
    ["", "\n\n", "half a line", "forward 1 2\twgmma", "\t\t\t\n", "\0\xff\tx\ty\n"],
    ids=["empty", "blank", "no_tab", "one_tab", "no_text", "bytes"],
)
def test_a_damaged_file_is_passed_over(damage, kept):
    call = Call(BY_ID["hopper_square_edges"], "forward")
    kept.parent.mkdir(parents=True)
    kept.write_text(damage, encoding="latin-1")
    with benchmarking():
        call()
        _, products = call()
    assert len(products) == 1


def test_a_way_of_another_version_is_measured_anew(kept):
    call = Call(BY_ID["hopper_square_edges"], "forward")
    with benchmarking():
        call()
        key = lines_of(kept)[0][0]
        kept.write_text(f"{key}\tsome older kernel\t1.0\n")
        _C.set_conv_choices_directory(str(kept.parent))
        _, products = call()
    assert len(products) > 1
    assert len(lines_of(kept)) > 1


def test_a_directory_that_cannot_be_written_is_a_warning(tmp_path, emulated):
    (tmp_path / "file").write_text("")
    code = f"""
import warnings, torch
import fastnn
from fastnn._backend import _C
from fastnn.testing.emulation import emulated_cuda
_C.set_conv_choices_directory({str(tmp_path / "file" / "below")!r})
x, w = torch.randn(2, 64, 9, 9).bfloat16(), torch.randn(136, 64, 3, 3).bfloat16()
with emulated_cuda(), torch.backends.cudnn.flags(enabled=True, benchmark=True):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fastnn.functional.conv2d(x, w)
print([str(w.message) for w in seen])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert "cannot write" in done.stdout + done.stderr
    assert "FASTNN_CACHE_DIR" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("variables", "parts"),
    [
        ({"FASTNN_CACHE_DIR": "/a/b"}, ("/a/b",)),
        ({"FASTNN_CACHE_DIR": "/a/b", "XDG_CACHE_HOME": "/c"}, ("/a/b",)),
        ({"XDG_CACHE_HOME": "/c"}, ("/c", "fastnn")),
        ({"HOME": "/d"}, ("/d", ".cache", "fastnn")),
        ({"FASTNN_CACHE_DIR": ""}, None),
    ],
    ids=["named", "named_first", "xdg", "home", "none"],
)
def test_where_files_are(variables, parts, monkeypatch):
    for name in ("FASTNN_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_directory() == (None if parts is None else Path(*parts) / __version__)
