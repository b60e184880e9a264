"""Everything that has to be shown on a GPU: tests, targets of speed, and where others are faster.

    python benchmarks/gpu_suite.py                      # all parts, each under eight minutes
    python benchmarks/gpu_suite.py --part attention     # one of them; what is complete for this commit is kept
    python benchmarks/gpu_suite.py --device cpu --quick # the same code without a GPU, in about two minutes
    python benchmarks/gpu_suite.py --profile "bias [S, S], S=4096"

Every step is a process of its own. What they find goes into one results/<gpu>-<date>-<commit>.json, with a table (.md)
and curves (.png) beside it; the README's table is written from a complete run. Results are never edited by hand.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import attention, machine, patched, predict, rows, suite_report
from benchmarks.case import Setting
from benchmarks.suite_report import ABSENT, FAILED, LATE, OK, Results
from wfkernels import compiled
from wfkernels.selftest.command import devices

ROOT = Path(__file__).resolve().parents[1]
SCRATCH = ROOT / "build" / "gpu_suite"
LIMIT, QUICK_LIMIT = 470.0, 120.0  # seconds of a part; of all parts together
PROGRAMS = {"attention": attention, "predict": predict, "patched": patched, "rows": rows}
PARTS = {"test": (), "attention": ("attention",), "predict": ("predict", "patched"), "pack": ("rows",), "sanitize": ()}
ROOMS = ("attention", "embedding", "projection", "residual_norm", "rows", "predict")
# pytest's -k: a step for each dtype, so that what was tested stays tested when the time is over.
KINDS = {"float32": "float32", "float16": "float16 and not bfloat16", "bfloat16": "bfloat16", "rest": "not float"}
CASE = "test_as_exact_as_eager_and_the_same_in_every_run"
# What the sanitizers watch, and a quick run.
FEW = {
    "attention": f"test_attention.py::{CASE}[dense bias-{{}}]",
    "embedding": f"test_embedding.py::{CASE}[cross tokens-{{}}]",
    "projection": f"test_projection.py::{CASE}[plain, anchor-{{}}]",
    "residual_norm": f"test_residual_norm.py::{CASE}[dropout, 3 x 65-{{}}]",
    "rows": "test_rows.py::test_every_bit_and_the_same_in_every_run[linear-as they are-{}]",
}
TOOLS = ("memcheck", "racecheck")
INSTALL = "{} is not on the PATH: install {} (it is part of the CUDA toolkit) and call this again"


@dataclass(frozen=True)
class Step:
    """A process that either tests (its output counts) or measures (it writes a report, and goes on where it stopped).

    absent: why it cannot run here.
    """

    name: str
    command: Sequence[str]
    reports: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    absent: str = ""


def steps(part: str, device: torch.device, quick: bool) -> list[Step]:
    """Return the steps of a part, the first of which builds what is not built."""
    build = Step("build", [sys.executable, "setup.py", "build_ext", "--inplace"])
    return [*([build] if compiled.why_not(compiled.CPP) is not None else []), *work(part, device, quick)]


def work(part: str, device: torch.device, quick: bool) -> list[Step]:
    if part == "test":
        return tests(device, quick)
    if part == "sanitize":
        return sanitizers(device)
    preset = ["--preset", "gpu-quick" if quick else "gpu", "--device", str(device)]
    return [Step(name, [*python("benchmarks." + name), *preset], reports=True) for name in PARTS[part]]


def python(module: str) -> list[str]:
    return [sys.executable, "-m", module]


def tests(device: torch.device, quick: bool) -> list[Step]:
    found = [Step("selftest", [*python("wfkernels"), "selftest", "--device", str(device)])]
    pytest = [*python("pytest"), "-q", "-p", "no:cacheprovider", "--no-header"]
    if quick:
        dtype = "bfloat16" if device.type == "cuda" else "float32"
        return [*found, Step("one case of every op", [*pytest, *nodes(dtype)], environment=interpreter(device))]
    # Compiling kernels is work for CPUs.
    several = ["-n", str(min(12, os.cpu_count() or 1))] if find_spec("xdist") else []
    for room in ROOMS:
        for kind, words in KINDS.items():
            command = [*pytest, *several, f"tests/gpu/test_{room}.py", "-k", words]
            found.append(Step(f"{room}, {kind}", command, environment=interpreter(device)))
    return found


def nodes(dtype: str) -> list[str]:
    return [f"tests/gpu/{node.format(dtype)}" for node in FEW.values()]


def interpreter(device: torch.device) -> dict[str, str]:
    return {} if device.type == "cuda" else {"TRITON_INTERPRET": "1", "WFKERNELS_IMPL": "triton"}


def sanitizers(device: torch.device) -> list[Step]:
    absent = ""
    if device.type != "cuda":
        absent = "there is no GPU whose kernels it could watch"
    elif shutil.which("compute-sanitizer") is None:
        absent = INSTALL.format("compute-sanitizer", "NVIDIA Compute Sanitizer")
    found = []
    for tool in TOOLS:
        watch = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
        # torch's own allocator would hide what is read behind the end of a tensor.
        uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        command = [*watch, *python("pytest"), "-q", "-p", "no:cacheprovider", *nodes("bfloat16")]
        found.append(Step(tool, command, environment=uncached, absent=absent))
    return found


def run(step: Step, seconds: float, folder: Path) -> dict[str, Any]:
    """Run a step for at most so long; return its state, and what it printed last or reported."""
    if step.absent:
        return {"state": ABSENT, "why": step.absent}
    folder.mkdir(parents=True, exist_ok=True)
    log, report = folder / f"{step.name}.log", folder / f"{step.name}.json"
    command = [*step.command, *(["--resume", "--json", str(report)] if step.reports else [])]
    start, state = time.perf_counter(), OK
    with log.open("w") as out:
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | step.environment, stdout=out, start_new_session=True
            )
        except OSError as error:
            return {"state": FAILED, "why": str(error)}
        try:
            status = process.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            state, status = LATE, stop(process)
        except BaseException:
            stop(process)
            raise
    found: dict[str, Any] = {"state": state, "status": status, "seconds": time.perf_counter() - start}
    found["command"] = command
    if step.reports and report.exists():
        found["report"] = suite_report.read(report)
    if not step.reports:
        found["says"] = log.read_text().splitlines()[-1:]
    complete = not step.reports or found.get("report", {}).get("complete", False)
    if state == OK and (status or not complete):
        found |= {"state": FAILED, "why": f"exit status {status}", "log": log.read_text().splitlines()[-40:]}
    if state == LATE:
        found["why"] = f"out of time after {seconds:.0f} s; called again it goes on"
    return found


def stop(process: subprocess.Popen[bytes]) -> int:
    """End a step with all that it started: kindly, so that it says where it is, then surely."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            return process.wait(10)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            break
    return process.wait()


def run_part(part: str, todo: Sequence[Step], results: Results, seconds: float, force: bool) -> None:
    """Run the steps of a part that are not complete, and write the results after each."""
    end = time.perf_counter() + seconds
    for i, step in enumerate(todo):
        if not force and results.complete(part, step.name):
            print(f"{part}, {step.name}: kept", file=sys.stderr, flush=True)
            continue
        left = end - time.perf_counter()
        print(f"{part}, {step.name}: step {i + 1} of {len(todo)}, {left:.0f} s left", file=sys.stderr, flush=True)
        scratch = SCRATCH / results.path.stem / part
        if force:
            (scratch / f"{step.name}.json").unlink(missing_ok=True)
        found = run(step, left, scratch) if left > 1 else {"state": LATE, "why": "no time left; called again it runs"}
        results.put(part, step.name, found)
        print(f"{part}, {step.name}: {found['state']} {found.get('why', '')}".rstrip(), flush=True)


def profile(name: str, device: torch.device, quick: bool) -> int:
    """Run one case of ours under Nsight Compute."""
    preset = "gpu-quick" if quick else "gpu"
    found = [
        (program, case.name)
        for program, module in PROGRAMS.items()
        for case in module.cases(Setting(device, preset))
        if name in case.name
    ]
    if not found:
        known = [case.name for module in PROGRAMS.values() for case in module.cases(Setting(device, preset))]
        print(f"--profile: expected a part of {', '.join(map(repr, known))}", file=sys.stderr)
        return 2
    if shutil.which("ncu") is None:
        print(INSTALL.format("ncu", "NVIDIA Nsight Compute"), file=sys.stderr)
        return 2
    program, case = found[0]
    SCRATCH.mkdir(parents=True, exist_ok=True)
    command = ["ncu", "--set", "full", "--force-overwrite", "--export", str(SCRATCH / program), "--kernel-name"]
    command += ["regex:^_", "--launch-count", "60", *python(f"benchmarks.{program}"), "--preset", preset]
    command += ["--device", str(device), "--case", case, "--once"]
    print(f"{case}: ncu writes {SCRATCH / program}.ncu-rep", flush=True)
    return subprocess.run(command, cwd=ROOT).returncode


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser("benchmarks/gpu_suite.py", description="Tests and benchmarks for a GPU.")
    found.add_argument("--part", action="append", choices=PARTS, help="only these; repeat for several")
    found.add_argument("--device", default="cuda", help="cuda; cpu shows that everything runs")
    found.add_argument("--quick", action="store_true", help="small sizes: two minutes, and no results to keep")
    found.add_argument("--force", action="store_true", help="run again what is complete for this commit")
    found.add_argument("--profile", metavar="CASE", help="run one case under ncu instead")
    found.add_argument("--results", type=Path, metavar="DIR", help="where to write instead of benchmarks/results")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Return 1 where a step failed or ran out of time, 2 where a part that was named cannot run, 130 if interrupted."""
    arguments = parser()
    options = arguments.parse_args(argv)
    try:
        (device,) = devices(options.device)
    except ValueError as error:
        arguments.error(str(error))
    if options.profile is not None:
        return profile(options.profile, device, options.quick)
    folder = options.results or (SCRATCH / "results" if options.quick else ROOT / "benchmarks" / "results")
    results = Results.open(folder, machine.facts(device), options.quick)
    parts = options.part or list(PARTS)
    end = time.perf_counter() + QUICK_LIMIT
    try:
        for part in parts:
            limit = end - time.perf_counter() if options.quick else LIMIT
            run_part(part, steps(part, device, options.quick), results, limit, options.force)
    except KeyboardInterrupt:
        print("interrupted; called again it goes on", file=sys.stderr)
        return 130
    finally:
        print(results.finish(), flush=True)
    if device.type == "cuda" and not options.quick and all(map(results.whole, PARTS)):
        suite_report.into_readme(ROOT / "README.md", results)
    states = [found["state"] for part in parts for found in results.steps(part).values()]
    if FAILED in states or LATE in states:
        return 1
    return 2 if options.part and ABSENT in states else 0


if __name__ == "__main__":
    sys.exit(main())
