"""What every program here does with its cases: judge, measure, compare, print and write.

One row per case, contender and mode; `ratios` says how many times slower and bigger each peer is than ours; `targets`
which of the expected figures were reached. Peers that cannot run are rows with a reason. The file is written after
every case, so that an interrupted run leaves what it has.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.case import PRESETS, Call, Case, Contender, Problem, Setting, call
from benchmarks.gate import judged, repeats
from benchmarks.memory import peak_mb
from benchmarks.report import ratios, targets, text
from benchmarks.timing import BUDGETS, Budget, Clock, clock_for, rounds, spread, wall
from wfkernels import dispatch, env, gpu
from wfkernels.allocator import settle
from wfkernels.selftest.command import devices

GEMM, COPY = "the machine's own product", "the machine's own copy"


@dataclass
class Row:
    """One contender in one mode of one case.

    peak_mb: extra memory, in MB of 2^20 bytes. gflops: by counted operations; fraction_of_gemm: of the product that
    ran in the same rounds; gb_per_s, fraction_of_copy: likewise for what is bound by memory. max_error: against
    float64, over the largest entry of each result. share: the worst error over the one that is allowed. judged_at: the
    size at which that was. runs: which implementation each library op chose. reason: why there is no time.

    first_ms: the first calls in this process, that at the judged size and that at its own, which compile what modes
    before it left to compile. wall_ms: on the host's clock, where median_ms is the device's. launches: of our Triton
    kernels in one call. executed_gflops: by the operations that the kernels really compute. same_bits: of five runs, in
    the presets for a GPU.
    """

    case: str
    impl: str
    mode: str
    ours: bool
    dtype: str
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    rounds: int = 0
    peak_mb: float | None = None
    gflops: float | None = None
    fraction_of_gemm: float | None = None
    gb_per_s: float | None = None
    fraction_of_copy: float | None = None
    max_error: float | None = None
    correct: bool | None = None
    share: float | None = None
    judged_at: str = ""
    runs: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    first_ms: float | None = None
    wall_ms: float | None = None
    launches: int | None = None
    executed_gflops: float | None = None
    same_bits: bool | None = None

    @property
    def failed(self) -> bool:
        """Ours, and wrong or broken; that an implementation does not exist here is no failure."""
        refused = dispatch.ImplementationError.__name__ in self.reason
        return self.ours and not refused and (self.correct is False or bool(self.reason))


def measure(case: Case, setting: Setting, clock: Clock) -> list[Row]:
    """Judge every contender of a case, then measure those that may be."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # the graphs of one case are not those of the next
    at, build = case.judged or ("its own size", case.build)
    problem = build()
    rows = _rows(case, problem, setting)
    for row in rows:
        contender = problem.contenders[row.impl]
        row.reason = contender.absent.get("", contender.absent.get(row.mode, ""))
        if contender.unlike:
            row.judged_at = f"not judged: {contender.unlike}"
        elif not row.reason:
            row.judged_at = at
            _judge(row, problem, contender, setting)
    if case.judged is not None:
        del problem
        problem = case.build()
    for mode in case.modes:
        _time(case, [row for row in rows if row.mode == mode and not row.reason], problem, setting, clock)
    return rows


def _rows(case: Case, problem: Problem, setting: Setting) -> list[Row]:
    names = [n for n, c in problem.contenders.items() if c.ours or setting.peers is None or n in setting.peers]
    dtype = str(case.dtype).removeprefix("torch.")
    return [Row(case.name, name, mode, problem.contenders[name].ours, dtype) for mode in case.modes for name in names]


def _judge(row: Row, problem: Problem, contender: Contender, setting: Setting) -> None:
    try:
        found = judged(problem, contender, row.mode)
        if setting.gpu and row.ours and not contender.steps:  # the steps are those of others' models
            row.same_bits = repeats(problem, contender, row.mode)
    except Exception as error:  # whatever a contender raises is its own failure, not the benchmark's
        row.reason = _words(error)
        return
    row.correct = found.correct
    # JSON knows no infinity.
    row.max_error, row.share = (x if isfinite(x) else None for x in (found.max_error, found.share))
    row.first_ms = 1e3 * found.seconds
    if row.ours and not found.correct:
        row.reason = f"wrong: {found.detail}"
    elif row.same_bits is False:
        row.reason = "wrong: runs with the same arguments differ"


def _time(case: Case, rows: Sequence[Row], problem: Problem, setting: Setting, clock: Clock) -> None:
    """Fill in memory and times of one mode."""
    calls: dict[str, Call] = {}
    for row in rows:
        wanted = call(problem, problem.contenders[row.impl], row.mode)
        try:
            start = time.perf_counter()
            with dispatch.recording() as choices:
                clock(wanted)  # compiles, and takes what is taken once
            row.first_ms = (row.first_ms or 0.0) + 1e3 * (time.perf_counter() - start)
            with launching() as launched:
                row.peak_mb = peak_mb(wanted, setting.device)
            row.launches = len(launched) if row.ours and setting.cuda else None
        except Exception as error:
            row.reason = _words(error)
            if setting.cuda:  # what ran out of memory leaves none to the next
                torch.cuda.empty_cache()
            continue
        row.runs = {choice.op: choice.runs or "" for choice in choices}
        calls[row.impl] = wanted
    if not calls:
        return
    probes = _probes(case, setting.device)
    for probe, _ in probes.values():
        clock(probe)
    budget = BUDGETS[setting.preset]
    if setting.rounds is not None:
        budget = Budget(setting.rounds, setting.rounds, 0.0)
    found = rounds(calls | {name: probe for name, (probe, _) in probes.items()}, clock, budget)
    rates = {name: 1e-6 * amount / spread(found[name])[0] for name, (_, amount) in probes.items()}
    for row in rows:
        if row.impl in calls:
            row.median_ms, row.p20_ms, row.p80_ms = spread(found[row.impl])
            row.rounds = len(found[row.impl])
            row.wall_ms = 1e3 * wall(calls[row.impl], setting.device) if setting.cuda else row.median_ms
            _rate(row, case, rates)
            executed = problem.contenders[row.impl].executed.get(row.mode)
            if executed and "triton" in row.runs.values():
                row.executed_gflops = 1e-6 * executed / row.median_ms


@contextmanager
def launching() -> Iterator[list[Any]]:
    """Collect the kernels that ours launch inside the block: every launch of every room passes one function."""
    found: list[Any] = []
    launch = gpu.launch

    def counted(kernel: Any, *args: Any, **options: Any) -> None:
        found.append(kernel)
        launch(kernel, *args, **options)

    gpu.launch = counted
    try:
        yield found
    finally:
        gpu.launch = launch


def _probes(case: Case, device: torch.device) -> dict[str, tuple[Call, float]]:
    """Return what runs in the same rounds to say what the machine can do in that minute."""
    probes = {}
    if case.flop:
        probes[GEMM] = machine.gemm(device, machine.gemm_dtype(device, case.dtype))
    if case.bytes:
        probes[COPY] = machine.copy(device)
    return probes


def _rate(row: Row, case: Case, rates: Mapping[str, float]) -> None:
    assert row.median_ms is not None
    if row.mode in case.flop:
        row.gflops = 1e-6 * case.flop[row.mode] / row.median_ms
        row.fraction_of_gemm = row.gflops / rates[GEMM]
    if row.mode in case.bytes:
        row.gb_per_s = 1e-6 * case.bytes[row.mode] / row.median_ms
        row.fraction_of_copy = row.gb_per_s / rates[COPY]


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main(program: str, cases: Callable[[Setting], Sequence[Case]], argv: Sequence[str] | None = None) -> int:
    """Run a program's cases. Returns 1 where one of ours is wrong, breaks or ran nowhere, 130 when interrupted."""
    parser = _parser(program)
    options = parser.parse_args(argv)
    try:
        (device,) = devices(options.device)
    except ValueError as error:
        parser.error(str(error))
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.keep_memory:
        settle()
    peers = None if options.peer is None else tuple(options.peer)
    setting = Setting(device, options.preset, _ours(options.impl), peers, options.rounds)
    wanted = [case for case in cases(setting) if options.case is None or options.case in case.name]
    if options.json is not None and not options.json.absolute().parent.is_dir():
        parser.error(f"--json: expected a path in a folder that is there, got {options.json}")
    if not wanted:
        parser.error(f"--case: expected a part of {', '.join(repr(case.name) for case in cases(setting))}")
    if options.once:
        _once(wanted)
        return 0
    clock = clock_for(device)
    report: dict[str, Any] = {
        "program": program,
        "preset": options.preset,
        "allocator": "keeps freed memory" if options.keep_memory else "as it comes",
        "ours": list(setting.ours),
        "peers": options.peer,
        "rounds": options.rounds,
        "machine": machine.facts(device) | {"rates": machine.rates(device, clock)},
        "complete": False,
    }
    rows = _kept(options.json, report) if options.resume else []
    try:
        _all(wanted, setting, clock, rows, report, options.json)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    measured = any(row.ours and row.median_ms is not None for row in rows)
    return 1 if not measured or any(row.failed for row in rows) else 0


def _once(cases: Sequence[Case]) -> None:
    """Run ours at full size, every mode once, and nothing else that a profiler would see."""
    for case in cases:
        problem = case.build()
        for contender in problem.contenders.values():
            for mode in case.modes if contender.ours else ():
                wanted = call(problem, contender, mode)
                with wanted.around():
                    wanted.run(wanted.prepare())


def _all(
    cases: Sequence[Case], setting: Setting, clock: Clock, rows: list[Row], report: dict[str, Any], path: Path | None
) -> None:
    """Measure case after case; after each print its rows and write everything so far."""
    start, measured = time.perf_counter(), 0
    for i, case in enumerate(cases):
        kept = [row for row in rows if row.case == case.name]
        seconds = time.perf_counter() - start
        rest = f", about {seconds / measured * (len(cases) - i):.0f} s left" if measured else ""
        print(f"{i + 1} of {len(cases)}: {case.name}{' is kept' if kept else rest}", file=sys.stderr, flush=True)
        found = [] if kept else measure(case, setting, clock)
        measured += not kept
        rows += found
        report["complete"] = i + 1 == len(cases)
        plain = [asdict(row) for row in rows]
        report |= {"rows": plain, "ratios": ratios(plain), "targets": targets(plain, cases[: i + 1])}
        print(text([asdict(row) for row in kept or found], targets(plain, [case])), flush=True)
        report["machine"]["load at the end"] = list(os.getloadavg())
        if path is not None:
            _write(path, report)


def _kept(path: Path | None, report: Mapping[str, Any]) -> list[Row]:
    """Return the rows of an earlier run of the same commit, machine and options; what failed runs again."""
    commit = report["machine"]["commit"]
    if path is None or not path.exists() or not commit or commit.endswith("+"):
        return []
    earlier = json.loads(path.read_text())
    same = all(earlier["machine"].get(k) == report["machine"][k] for k in ("name", "versions", "commit", "threads"))
    same &= all(k in earlier and earlier[k] == report[k] for k in ("preset", "allocator", "ours", "peers", "rounds"))
    rows = [Row(**row) for row in earlier.get("rows", [])] if same else []
    broken = {row.case for row in rows if row.failed}
    return [row for row in rows if row.case not in broken]


def _write(path: Path, report: Mapping[str, Any]) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(report, indent=1) + "\n")
    part.replace(path)


def _ours(names: Sequence[str] | None) -> tuple[str, ...]:
    names = list(names or ["auto"])
    if "all" in names:
        known = dict.fromkeys(i.name for op in dispatch.ops() for i in dispatch.implementations(op))
        names = ["auto", *known]
    return tuple(dict.fromkeys(names))


def _count(value: str) -> int:
    number = int(value)
    if number < 1:
        raise ValueError
    return number


_count.__name__ = "positive number"  # argparse says it to the user


def _parser(program: str) -> argparse.ArgumentParser:
    names = ("auto", "all", *env.IMPLEMENTATIONS)
    parser = argparse.ArgumentParser(f"benchmarks/{program}.py", description=f"Benchmark of {program}.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--impl", action="append", choices=names, help="ours; repeat for several (auto)")
    parser.add_argument("--peer", action="append", metavar="NAME", help="only these peers: eager, compile, sdpa, ...")
    parser.add_argument("--preset", choices=PRESETS, default="quick")
    parser.add_argument("--case", metavar="TEXT", help="only cases whose name holds it")
    parser.add_argument("--rounds", type=_count, metavar="N", help="runs of each, instead of the preset's")
    parser.add_argument("--threads", type=_count, metavar="N", help="of torch on the CPU; as many as it takes")
    parser.add_argument("--keep-memory", action="store_true", help="freed memory stays: no page faults for anybody")
    parser.add_argument("--once", action="store_true", help="run ours once, unjudged and untimed: for a profiler")
    parser.add_argument("--resume", action="store_true", help="keep what --json already holds of this commit")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write everything")
    return parser
