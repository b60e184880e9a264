"""The programs in benchmarks/: what their JSON holds, and that nothing wrong is ever timed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import (
    attention,
    embedding,
    harness,
    linear,
    machine,
    patched,
    predict,
    projection,
    residual_norm,
    rows,
    shapes,
)
from benchmarks.case import FORWARD, FULL, MODES, Call, Case, Contender, Problem, Setting, Target, missing
from benchmarks.timing import Budget, clock_for, rounds, spread
from tests import fakes
from weightformer import rows as module_rows
from weightformer import students
from wfkernels import judge

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
PROGRAMS = (attention, embedding, linear, patched, predict, projection, residual_norm, rows)
FIELDS = {
    *("case", "impl", "mode", "median_ms", "p20_ms", "p80_ms", "peak_mb", "gflops", "fraction_of_gemm", "max_error"),
    "correct",
}
Cases = Callable[[Setting], Sequence[Case]]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own rates, which no test looks at closely, from next to nothing."""
    monkeypatch.setitem(machine.SIZES, "cpu", (64, 1 << 12))


def report(cases: Cases, path: Path, *options: str) -> tuple[int, dict[str, Any]]:
    status = harness.main("test", cases, ["--rounds", "2", "--json", str(path / "out.json"), *options])
    return status, json.loads((path / "out.json").read_text())


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda module: module.__name__)
def test_the_json_of_every_program(program: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, found = report(program.cases, tmp_path, "--peer", "eager")
    assert status == 0 and found["complete"] and found["preset"] == "quick"
    facts = found["machine"]
    assert {"name", "threads", "versions", "commit", "date", "load", "rates"} <= set(facts)
    assert all(rate > 0 for rate in facts["rates"].values())
    cases = program.cases(Setting(CPU))
    assert {row["case"] for row in found["rows"]} == {case.name for case in cases}
    for row in found["rows"]:
        assert set(row) >= FIELDS and row["impl"].startswith(("auto", "eager")) and row["mode"] in MODES
        assert row["correct"] is True and row["max_error"] < 1e-4 and not row["reason"]
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"] and row["peak_mb"] is not None
        assert (row["gflops"] is None) == (row["fraction_of_gemm"] is None) and row["judged_at"]
    for own in (row for row in found["rows"] if row["ours"]):
        against = found["ratios"][own["case"]][own["mode"]][own["impl"]]["eager"]
        (peer,) = (r for r in found["rows"] if (r["case"], r["mode"], r["impl"]) == (own["case"], own["mode"], "eager"))
        assert against["time"] == pytest.approx(peer["median_ms"] / own["median_ms"])
    assert all(case.name in capsys.readouterr().out for case in cases[:1])


@pytest.mark.parametrize("op, mode", [("attention", FORWARD), ("attention_backward", FULL)])
def test_a_wrong_kernel_is_not_timed(
    op: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(judge, "NEIGHBOURS", 1)  # a fault of a hundredth needs no second opinion
    fakes.register(monkeypatch, op, fakes.off(0))
    status, found = report(attention.cases, tmp_path, "--peer", "eager", "--case", "bias", "--impl", "cpp")
    (own,) = (row for row in found["rows"] if row["ours"] and row["mode"] == mode)
    assert status == 1 and own["correct"] is False and own["median_ms"] is None and own["runs"] == {}
    assert own["reason"].startswith("wrong: ") and "the float64 reference says" in own["reason"]
    assert all(row["correct"] and row["median_ms"] for row in found["rows"] if not row["ours"])
    assert mode not in found["ratios"].get(own["case"], {}) and " NO " in capsys.readouterr().out


def test_a_wrong_gradient_of_a_closed_gate_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(results: list[Tensor], args: Any) -> None:
        results[4][args[14] == 0] *= 1.001

    monkeypatch.setattr(judge, "NEIGHBOURS", 1)
    fakes.register(monkeypatch, "attention_backward", closed)
    status, found = report(attention.cases, tmp_path, "--peer", "eager", "--case", "gate", "--impl", "cpp")
    (own,) = (row for row in found["rows"] if row["ours"])
    assert status == 1 and "closed entries" in own["reason"]


def test_an_implementation_that_is_not_there_is_a_row_with_the_reason(tmp_path: Path) -> None:
    status, found = report(rows.cases, tmp_path, "--impl", "cuda", "--impl", "reference", "--peer", "eager")
    gone = [row for row in found["rows"] if row["impl"] == "cuda"]
    assert status == 0 and gone and all("ImplementationError" in row["reason"] for row in gone)
    assert report(rows.cases, tmp_path, "--impl", "cuda", "--peer", "eager")[0] == 1  # nothing of ours ran


def case(targets: Sequence[Target] = (), **contenders: Contender) -> Case:
    """Twice a number, by whoever is given."""
    x = torch.ones(64, requires_grad=True)
    problem = Problem((x,), (torch.ones(64),), lambda x: 2 * x, contenders)
    return Case("double", lambda: problem, {FORWARD: 64.0}, modes=(FORWARD,), targets=targets)


def slow(x: Tensor) -> Tensor:
    time.sleep(0.02)
    return 2 * x


def crash(x: Tensor) -> Tensor:
    raise RuntimeError("no such\nthing")


def test_peers_that_cannot_run_are_rows_and_no_failure(tmp_path: Path) -> None:
    def cases(setting: Setting) -> Sequence[Case]:
        return [case(auto=Contender(lambda x: x + x, ours=True), crash=Contender(crash), none=missing("too big"))]

    status, found = report(cases, tmp_path)
    reasons = {row["impl"]: row["reason"] for row in found["rows"]}
    assert status == 0 and reasons == {"auto": "", "crash": "RuntimeError: no such thing", "none": "too big"}
    assert found["ratios"] == {"double": {FORWARD: {"auto": {}}}}


def test_our_own_crash_is_a_failure(tmp_path: Path) -> None:
    status, found = report(lambda _: [case(auto=Contender(crash, ours=True))], tmp_path)
    assert status == 1 and found["rows"][0]["reason"] == "RuntimeError: no such thing"


def test_targets_are_held_against_the_ratios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = [Target(FORWARD, "time", bound, "slow") for bound in (2.0, 1e9)]
    wanted += [Target(FORWARD, "time", 1.0, "gone"), Target(FORWARD, "gemm", 1e9)]

    def cases(setting: Setting) -> Sequence[Case]:
        return [case(wanted, auto=Contender(lambda x: 2 * x, ours=True), slow=Contender(slow))]

    status, found = report(cases, tmp_path)
    assert status == 0 and [one["reached"] for one in found["targets"]] == [True, False, None, False]
    out = capsys.readouterr().out
    assert out.count(": reached") == 1 and out.count("MISSED") == 2 and out.count("not measured") == 1


def test_rounds_are_interleaved_and_begin_with_another_call_each_time() -> None:
    order: list[str] = []
    calls = {name: Call(lambda _, name=name: order.append(name)) for name in "abc"}  # type: ignore[misc]
    found = rounds(calls, clock_for(CPU), Budget(3, 3, 0.0))
    assert "".join(order) == "abcbcacab" and {len(seconds) for seconds in found.values()} == {3}


def test_slow_calls_stop_early() -> None:
    def clock(call: Call) -> float:
        return float(call.prepare())

    found = rounds({"fast": Call(id, lambda: 0.1), "slow": Call(id, lambda: 5.0)}, clock, Budget(2, 6, 1.0))
    assert (len(found["fast"]), len(found["slow"])) == (6, 2)


def test_spread() -> None:
    assert spread([0.001 * i for i in range(1, 12)]) == pytest.approx((6.0, 3.0, 9.0))
    assert spread([0.002]) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("name, layers", [("vgg11_bn", shapes.vgg11_bn()), ("resnet50", shapes.resnet50())])
def test_shapes_are_those_of_torchvision(name: str, layers: Any) -> None:
    found = module_rows.layout(students.create(f"torchvision:{name}"))
    convolutions = [layer for layer in found.layers if layer.kind == "conv"]
    assert sorted((a.rows, a.width) for a in convolutions) == sorted((b.rows, b.width) for b in layers.layers)


def test_t5s_buckets_are_those_of_transformers() -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    difference = torch.arange(-attention.REACH, attention.REACH + 1)
    wanted = T5Attention._relative_position_bucket(-difference, True, attention.BUCKETS, attention.REACH)
    assert torch.equal(attention.t5_buckets(), wanted)


@pytest.mark.parametrize("preset", ["bar", "full"])
def test_every_case_of_a_preset_has_a_name_of_its_own_and_work(preset: str) -> None:
    for program in PROGRAMS:
        cases = program.cases(Setting(CPU, preset))
        assert len({case.name for case in cases}) == len(cases)
        assert program is patched or all(set(case.modes) <= set(case.flop or case.bytes) for case in cases)


@pytest.mark.parametrize("how", [["benchmarks/rows.py"], ["-m", "benchmarks.rows"]], ids=["script", "module"])
def test_both_ways_to_call_a_program(how: list[str]) -> None:
    done = subprocess.run([sys.executable, *how, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--preset" in done.stdout


@pytest.mark.parametrize(
    "options, message",
    [
        (["--device", "gpu"], "--device: expected cpu or a device that torch can use here, got 'gpu'"),
        (["--rounds", "0"], "invalid positive number value: '0'"),
        (["--impl", "fast"], "invalid choice: 'fast'"),
        (["--case", "nothing"], "--case: expected a part of 'VGG-11 in small"),
    ],
)
def test_bad_arguments_exit_with_2(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        harness.main("rows", rows.cases, options)
    assert stopped.value.code == 2 and message in capsys.readouterr().err
