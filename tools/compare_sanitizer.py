"""Compares the emulator's verdict of its own test kernels with a GPU's and compute-sanitizer's.

    python tools/compare_sanitizer.py [--only REGEX] [--out FOLDER] [--time-limit 60] [--jobs 4]
    python tools/compare_sanitizer.py --build-only      # compiles and links under nvcc; needs no GPU

Needs a GPU, nvcc, compute-sanitizer, rich, and cmake and ninja for the emulator's library (or FASTNN_EMULATOR_LIBRARY).
Every kernel of tests/emulator/selftest runs in the emulator, plainly on the GPU, and there under compute-sanitizer:
faulty kernels under the tool that their case names, correct ones under all four. Each run is a process of its own,
since a kernel that fails takes the process's device with it, and is killed at the time limit, since some hang.

Writes sanitizer.md and sanitizer.json. Ends with 1 when the emulator is wrong (it missed a mistake that the device
shows, or accused a correct kernel) or a correct kernel gives a wrong result on the device; with 2 when there is
nothing to compare with.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import ctypes
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

ROOT = Path(__file__).resolve().parent.parent
SELFTEST = ROOT / "tests" / "emulator" / "selftest"
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND = 86  # compute-sanitizer's exit status when it has something to report
# Lines of its report that name an error; the summary's count decides whether there is one.
REPORT = re.compile(
    r"^=+ *(?:Error: |Warning: )*"
    r"(?P<what>(?:Invalid|Misaligned|Uninitialized|Unaligned|Race|Barrier|Program hit|Potential|Divergent|Illegal).*)$",
    re.MULTILINE,
)
SUMMARY = re.compile(r"^=+ *\w+ SUMMARY: (?P<count>\d+) (?:error|hazard)", re.MULTILINE)
# What a kernel says that traps because the GPU lacks what it needs, and a launch that asks for too much.
TOO_NEW = re.compile(r"unspecified launch failure|illegal instruction|invalid argument|no kernel image|not supported")

console = Console()


@dataclass
class Case:
    """One self test and what became of it. Every verdict is empty where nothing was noticed.

    Attributes:
        name: of the case.
        tool: of compute-sanitizer that should see the mistake; ``none``; or ``hangs``.
        expected: regular expression of the emulator's report; empty for a correct kernel.
        emulator: what the emulator said.
        device: what the device alone said, or that it hangs there.
        sanitizer: by tool, what it said.
        skipped: why there is no verdict of the device's.
    """

    name: str
    tool: str
    expected: str
    emulator: str = ""
    device: str = ""
    sanitizer: dict[str, str] = field(default_factory=dict)
    skipped: str = ""

    @property
    def faulty(self) -> bool:
        """Whether it has a mistake."""
        return self.expected != ""

    @property
    def tools(self) -> tuple[str, ...]:
        """Those it runs under: correct kernels must please all; deadlocks are synccheck's subject."""
        if not self.faulty:
            return TOOLS
        return (self.tool,) if self.tool in TOOLS else ("synccheck",) if self.tool == "hangs" else ()

    @property
    def seen_on_device(self) -> bool:
        """Whether anything there told of the mistake."""
        return bool(self.device) or any(self.sanitizer.values())

    @property
    def verdict(self) -> str:
        """How the opinions compare; between asterisks where the emulator, or the case, is wrong."""
        if self.faulty:
            if not self.emulator:
                return "**missed by the emulator**"
            if self.skipped:
                return "emulator alone: " + self.skipped
            if self.seen_on_device:
                return "agree"
            return "emulator alone" + ("" if self.tool == "none" else f": {self.tool} says nothing")
        if self.emulator:
            return "**accused by the emulator**"
        if self.skipped:
            return "not compared: " + self.skipped
        if self.device:
            return "**wrong on the device**"
        accusers = [tool for tool, said in self.sanitizer.items() if said]
        return f"accused by {', '.join(accusers)}" if accusers else "agree"

    @property
    def failed(self) -> bool:
        """Whether that is so."""
        return self.verdict.startswith("**")


# ---- processes ----


def limited(command: list[str], seconds: float) -> tuple[int | None, str]:
    """Exit status, None where the time limit killed it, and all that was printed."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # compute-sanitizer's child as well
            output, _ = process.communicate()
            return None, output
    return process.returncode, output


def said_of(name: str, status: int | None, output: str, seconds: float) -> str:
    """What a run of the program said of its case; empty when it found everything right."""
    if status is None:
        return f"hangs (killed after {seconds:g} s)"
    if status == 0:
        return ""
    said = re.search(rf"^{re.escape(name)}: (.*)", output, re.MULTILINE)
    return said[1] if said else f"ended with status {status}: {output.strip()[-200:]}"


# ---- building ----


def find_nvcc() -> str | None:
    """The compiler, as $CUDACXX or on PATH."""
    return os.environ.get("CUDACXX") or shutil.which("nvcc")


def find_sanitizer(nvcc: str) -> str | None:
    """compute-sanitizer: on PATH, beside nvcc, or where the toolkit puts it."""
    homes = [os.environ.get("CUDA_HOME", "/usr/local/cuda"), str(Path(nvcc).resolve().parents[1])]
    folders = [os.environ["PATH"], *(f"{home}/{folder}" for home in homes for folder in ("bin", "compute-sanitizer"))]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def build(nvcc: str, architectures: list[str], jobs: int) -> Path:
    """Compiles the self tests for a device.

    Raises:
        RuntimeError: nvcc failed; the message is what it said.
    """
    folder = ROOT / "build" / "selftest"
    folder.mkdir(parents=True, exist_ok=True)
    sources = [*sorted(SELFTEST.glob("*.cu")), SELFTEST / "registry.cpp"]
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    # ptxas drops collectives whose lanes it can prove to be together, and moves others: a mistake would be gone before
    # the device could show it. With -lineinfo and -rdynamic compute-sanitizer names lines and functions.
    common = [nvcc, "-std=c++20", "-O3", "-Xptxas=-O0", "-lineinfo", "-Xcompiler=-rdynamic", "--expt-relaxed-constexpr"]
    common += codes

    def run(command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")

    objects = [folder / (source.stem + ".o") for source in sources]
    with Progress(console=console, transient=True) as progress, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        task = progress.add_task("compiling", total=len(sources))
        compiling = [
            pool.submit(run, [*common, "-x", "cu", "-c", str(source), "-o", str(target)])
            for source, target in zip(sources, objects, strict=True)
        ]
        for job in concurrent.futures.as_completed(compiling):
            job.result()
            progress.advance(task)
    program = folder / "emulator_selftest"
    run([*common, *map(str, objects), "-o", str(program)])
    return program


# ---- the three opinions ----


def emulator_cases(library: Path) -> list[Case]:
    """The cases as the emulator's library lists them."""
    library_list = ctypes.CDLL(str(library)).fastnn_emulator_selftest_list
    library_list.restype = ctypes.c_char_p
    return [Case(*line.split("\t")) for line in library_list().decode().splitlines()]


def run_in_emulator(library: str, name: str) -> int:
    """Runs one case here, and says of it what the program for a device says."""
    run = ctypes.CDLL(library).fastnn_emulator_selftest_run
    run.restype, run.argtypes = ctypes.c_char_p, [ctypes.c_char_p]
    said = run(name.encode())
    print(f"{name}: {'right' if said is None else said.decode(errors='replace')}", flush=True)
    return 0 if said is None else 1


def sanitize(sanitizer: str, tool: str, program: Path, name: str, seconds: float) -> str:
    """What one tool of compute-sanitizer reports of a case; empty for nothing."""
    command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "3", str(program), name]
    status, output = limited(command, seconds)
    summary = SUMMARY.search(output)
    if status == FOUND or (summary is not None and int(summary["count"]) > 0):
        report = REPORT.search(output)
        return report["what"].strip() if report else "reports an error"
    if summary is None:
        return f"hangs (killed after {seconds:g} s)" if status is None else f"failed with status {status}"
    return ""


def examine(case: Case, library: Path, program: Path, sanitizer: str, built: set[str], lesser: bool, limit: float):
    """Fills in a case's verdicts. `lesser`: the GPU is older than sm_90, which some kernels need."""
    emulator = [sys.executable, str(Path(__file__).resolve()), "--in-emulator", str(library), case.name]
    case.emulator = said_of(case.name, *limited(emulator, limit), limit)
    if case.name not in built:
        case.skipped = "nvcc does not compile it"
        return
    case.device = said_of(case.name, *limited([str(program), case.name], limit), limit)
    if lesser and TOO_NEW.search(case.device):
        case.skipped, case.device = f"not on this GPU ({case.device})", ""
        return
    for tool in case.tools:
        case.sanitizer[tool] = sanitize(sanitizer, tool, program, case.name, limit)


# ---- the record ----


def table(cases: list[Case], facts: dict[str, str]) -> str:
    """The record as Markdown."""

    def cell(text: str, length: int = 110) -> str:
        text = text.replace("|", "\\|").replace("\n", " ")
        return text if len(text) <= length else text[: length - 1] + "…"

    lines = ["# The emulator's verdicts beside compute-sanitizer's", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    for title, faulty in (("Kernels with a mistake", True), ("Correct kernels", False)):
        chosen = [case for case in cases if case.faulty == faulty]
        agree = sum(case.verdict == "agree" for case in chosen)
        lines += ["", f"## {title}: {len(chosen)}, of which both agree on {agree}", ""]
        lines += [
            "| case | tool | emulator | device alone | compute-sanitizer | verdict |",
            "|---|---|---|---|---|---|",
        ]
        for case in chosen:
            tools = "; ".join(f"{tool}: {said}" for tool, said in case.sanitizer.items() if said)
            columns = (case.tool if faulty else "all", case.emulator, case.device, tools, case.verdict)
            lines.append(f"| {case.name} | " + " | ".join(cell(column) for column in columns) + " |")
    return "\n".join(lines) + "\n"


def refuse(why: str) -> int:
    """Says why there is nothing to compare."""
    print(f"compare_sanitizer: {why}", file=sys.stderr)
    return 2


def main() -> int:
    """Builds, runs every case three ways and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build-only", action="store_true", help="compile for sm_80 and sm_90a, and stop")
    parser.add_argument("--only", metavar="REGEX", default="", help="cases whose name this occurs in")
    parser.add_argument("--out", type=Path, help="folder of the record; benchmarks/results/<GPU> unless told")
    parser.add_argument("--time-limit", type=float, default=60, metavar="SECONDS", help="of one run of one case")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="processes at a time")
    parser.add_argument("--in-emulator", nargs=2, metavar=("LIBRARY", "NAME"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_emulator:
        return run_in_emulator(*arguments.in_emulator)

    nvcc = find_nvcc()
    if nvcc is None:
        return refuse("no nvcc: put the CUDA toolkit's bin directory on PATH or set CUDACXX")
    if arguments.build_only:
        try:
            program = build(nvcc, ["80", "90a"], arguments.jobs)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
        count = len(subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.splitlines())
        print(f"{program.relative_to(ROOT)}: {count} cases compile and link for sm_80 and sm_90a")
        return 0 if count else 1
    sanitizer = find_sanitizer(nvcc)
    if sanitizer is None:
        return refuse("no compute-sanitizer: it is a part of the CUDA toolkit; put it on PATH or set CUDA_HOME")
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        found = []
    if not found:
        return refuse("no GPU here: nvidia-smi names none. --build-only compiles the kernels without one")

    major, minor = map(int, found[0].split("."))
    console.print(f"building the self tests for compute capability {major}.{minor}, and the emulator")
    if "FASTNN_EMULATOR_LIBRARY" in os.environ:
        library = Path(os.environ["FASTNN_EMULATOR_LIBRARY"])
    else:
        sys.path.insert(0, str(ROOT / "tests"))
        from emulator.build import build as build_emulator

        library, _ = build_emulator()
    # wgmma and setmaxnreg are in 90a's own instruction set.
    program = build(nvcc, ["90a" if (major, minor) == (9, 0) else f"{major}{minor}"], arguments.jobs)
    device, capability, driver = (
        subprocess.run([program, "--device"], capture_output=True, text=True, check=True).stdout.strip().split("\t")
    )
    listed = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout
    built = {line.split("\t")[0] for line in listed.splitlines()}
    cases = [case for case in emulator_cases(library) if re.search(arguments.only, case.name)]
    version = subprocess.run([sanitizer, "--version"], capture_output=True, text=True, check=False).stdout
    facts = {
        "GPU": f"{device}, compute capability {capability}, driver for CUDA {driver}",
        "compute-sanitizer": (re.findall(r"[Vv]ersion ([\d.]+)", version) or ["of unknown version"])[0],
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }

    with Progress(console=console) as progress, concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        task = progress.add_task("cases", total=len(cases))
        limit, lesser = arguments.time_limit, major < 9
        running = {
            pool.submit(examine, case, library, program, sanitizer, built, lesser, limit): case for case in cases
        }
        for job in concurrent.futures.as_completed(running):
            job.result()
            case = running[job]
            if case.verdict != "agree":
                progress.console.print(f"{case.name}: {case.verdict.strip('*')}", markup=False, highlight=False)
            progress.advance(task)

    folder = arguments.out or ROOT / "benchmarks" / "results" / re.sub(r"\W+", "-", device.lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    record = {"facts": facts, "cases": [asdict(case) | {"verdict": case.verdict.strip("*")} for case in cases]}
    (folder / "sanitizer.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (folder / "sanitizer.md").write_text(table(cases, facts), encoding="utf-8")
    failed = [case.name for case in cases if case.failed]
    agree = sum(case.verdict == "agree" for case in cases)
    console.print(f"{agree} of {len(cases)} verdicts agree; wrong: {', '.join(failed) or 'none'}; see {folder}")
    return 1 if failed or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
