"""fastnn.info, the command line, and what is said when the compiled module does not fit."""

from __future__ import annotations

import importlib.machinery
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastnn
from fastnn import _backend, _info, cli

SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]


def test_info_says_what_runs():
    facts = fastnn.info()
    assert facts["version"] == fastnn.__version__
    assert facts["torch"] == torch.__version__
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["cpu"]["capability"] in facts["cpu"]["compiled"]
    assert facts["cpu"]["threads"] == torch.get_num_threads()
    assert facts["compiler"]
    assert facts["built_for_torch"]
    assert facts["version"] == _backend.BUILD_RECORD["version"]
    assert isinstance(facts["cuda"]["built"], bool)
    assert bool(facts["cuda"]["architectures"]) or not facts["cuda"]["built"]
    assert len(facts["devices"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def test_info_follows_torch_s_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert fastnn.info()["cpu"]["threads"] == 1
    finally:
        torch.set_num_threads(before)


def test_the_command_prints_the_same(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == fastnn.info()
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    facts = fastnn.info()
    for word in (facts["version"], facts["torch"], facts["python"], facts["cpu"]["capability"]):
        assert word in out


def test_the_text_names_a_gpu_without_code():
    facts = fastnn.info()
    facts["cuda"] = {"built": True, "toolkit": "13.0", "architectures": ["80", "90a"]}
    facts["devices"] = [
        {"index": 0, "name": "A", "compute_capability": "8.0", "supported": True},
        {"index": 1, "name": "B", "compute_capability": "12.0", "supported": False},
    ]
    lines = cli.format_info(facts).splitlines()
    assert any("cuda:0 A" in line and "NOT" not in line for line in lines)
    assert any("cuda:1 B" in line and "NOT supported" in line for line in lines)
    assert any("CUDA 13.0 for 80, 90a" in line for line in lines)


@pytest.mark.parametrize("arguments", [["info"], ["--version"], ["demo", "--help"]])
def test_python_m_fastnn(arguments: list[str]):
    done = subprocess.run([sys.executable, "-m", "fastnn", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "fastnn" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["info", "--nonsense"], ["demo", "nonsense"]])
def test_a_wrong_command_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "usage: fastnn" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        ((8, 0), ["80", "90a"], True),
        ((8, 9), ["80"], True),  # machine code runs on later minors of its major
        ((8, 0), ["86"], False),
        ((9, 0), ["sm_90a"], True),
        ((10, 0), ["80", "90a"], False),  # machine code with an a runs on that one version alone
        ((10, 3), ["100a"], False),
        ((10, 3), ["100f"], True),
        ((11, 0), ["100f"], False),
        ((10, 0), ["80", "90+PTX"], True),  # PTX runs on every later version
        ((8, 0), ["90+PTX"], False),
        ((10, 0), ["90a+PTX"], False),
        ((12, 0), ["120"], True),
        ((9, 0), [], False),
    ],
)
def test_which_gpus_have_code(capability: tuple[int, int], architectures: list[str], expected: bool):
    assert _info.has_code_for(capability, architectures) is expected


# ---- what is said when the compiled module does not fit -----------------------------------------------------


def explain(folder: Path, record: dict, torch_version: str = "2.13.0+cpu", torch_cuda: str | None = None) -> str | None:
    return _backend.explain_mismatch(folder, record, torch_version, torch_cuda)


def test_nothing_is_said_when_it_fits(tmp_path: Path):
    (tmp_path / f"_C{SUFFIX}").touch()
    assert explain(tmp_path, {"torch": "2.13.0+cpu", "torch_cuda": None}) is None
    assert explain(tmp_path, {"torch": "2.13.1+cpu", "torch_cuda": ""}) is None
    assert explain(tmp_path, {"torch": "2.13.0+cu130", "torch_cuda": "13.0"}, "2.13.0+cu130", "13.0") is None
    assert explain(tmp_path, {}) is None


def test_not_built(tmp_path: Path):
    reason = explain(tmp_path, {})
    assert "not built" in reason
    assert f"_C{SUFFIX}" in reason
    assert "--no-build-isolation" in reason


def test_built_for_another_python(tmp_path: Path):
    (tmp_path / "_C.cpython-399-x86_64-linux-gnu.so").touch()
    reason = explain(tmp_path, {"torch": "2.13.0+cpu"})
    assert "another Python" in reason
    assert "cpython-399" in reason
    assert "--no-build-isolation" in reason


@pytest.mark.parametrize(
    ("built", "built_cuda", "imported", "imported_cuda"),
    [
        ("2.12.1+cpu", None, "2.13.0+cpu", None),
        ("2.13.0+cpu", None, "2.13.0+cu130", "13.0"),
        ("2.13.0+cu130", "13.0", "2.13.0+cpu", None),
        ("2.13.0+cu128", "12.8", "2.13.0+cu130", "13.0"),
        ("2.1.0+cpu", None, "2.10.0+cpu", None),
    ],
)
def test_built_for_another_torch(
    tmp_path: Path, built: str, built_cuda: str | None, imported: str, imported_cuda: str | None
):
    (tmp_path / f"_C{SUFFIX}").touch()
    reason = explain(tmp_path, {"torch": built, "torch_cuda": built_cuda}, imported, imported_cuda)
    assert built in reason
    assert imported in reason
    assert "--no-build-isolation" in reason


def import_copy(tmp_path: Path, prepare) -> subprocess.CompletedProcess[str]:
    """Imports a copy of the package's Python files, without the compiled module, that `prepare` has changed."""
    source = Path(fastnn.__file__).parent
    package = tmp_path / "fastnn"
    package.mkdir()
    for name in ("__init__.py", "_backend.py"):
        (package / name).write_text((source / name).read_text(encoding="utf-8"), encoding="utf-8")
    prepare(package)
    return subprocess.run(
        [sys.executable, "-c", "import fastnn"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )


def test_the_import_fails_with_the_reason_alone(tmp_path: Path):
    done = import_copy(tmp_path, lambda package: None)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: fastnn cannot be imported: its compiled part is not built")


def test_another_torch_is_noticed_before_loading(tmp_path: Path):
    def prepare(package: Path) -> None:
        (package / f"_C{SUFFIX}").write_bytes(b"loading this would fail")
        (package / "_build.json").write_text(json.dumps({"torch": "1.0.0", "torch_cuda": None}))

    last = import_copy(tmp_path, prepare).stderr.strip().splitlines()[-1]
    assert "it was built for torch 1.0.0" in last
    assert torch.__version__ in last


def test_a_module_that_does_not_load(tmp_path: Path):
    done = import_copy(tmp_path, lambda package: (package / f"_C{SUFFIX}").write_bytes(b"not a library"))
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: fastnn cannot be imported: its compiled part does not load (")
    assert "--no-build-isolation" in last
