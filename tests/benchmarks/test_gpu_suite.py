"""gpu_suite: what it keeps, what it runs again, and what it says where something is wrong or missing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_suite, harness, machine, suite_report
from benchmarks.case import FORWARD, Case, Contender, Problem, Setting
from benchmarks.gpu_suite import Step
from benchmarks.harness import Row
from benchmarks.report import ratios
from benchmarks.suite_report import ABSENT, FAILED, LATE, OK, Results

ROOT = Path(__file__).resolve().parents[2]
CUDA = torch.device("cuda")  # only its name is looked at
FACTS = {
    "name": "NVIDIA H100 80GB",
    "commit": "abc1234",
    "date": "2026-11-26T12:00:00+00:00",
    "versions": {"torch": "2.14.1"},
}
# Counts its runs in the file that it is given, then does what it is told.
COUNT = "import sys, time; open(sys.argv[1], 'a').write('x');"
WRITE = "open(sys.argv[-1], 'w').write(open(sys.argv[2]).read());"

Suite = Callable[..., tuple[int, dict[str, Any]]]


def row(case: str, impl: str, median: float | None, **more: Any) -> dict[str, Any]:
    found = asdict(Row(case, impl, FORWARD, impl == "auto", "bfloat16", median, **more))
    return found | {"wall_ms": median}


def report(complete: bool = True) -> dict[str, Any]:
    """A report of attention at two lengths: ours is faster than eager at one, and slower at the other."""
    rows = [
        row(f"bias, S={n}", impl, ms)
        for n, times in ((512, (1, 2)), (1024, (4, 3)))
        for impl, ms in zip(("auto", "eager"), times, strict=True)
    ]
    rows.append(row("bias, S=512", "flex", None, reason="too new"))
    target = {"case": "bias, S=1024", "mode": FORWARD, "impl": "auto", "what": "time, times less than eager"}
    return {
        "complete": complete,
        "machine": {"rates": {"bf16_gflops": 600000.0}},
        "rows": rows,
        "ratios": ratios(rows),
        "targets": [
            target | {"at_least": 1.5, "value": 0.75, "reached": False},
            target | {"case": "bias, S=512", "at_least": 1.5, "value": 2.0, "reached": True},
        ],
    }


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """Run the suite on steps of a test's own; return its status and what it keeps."""
    monkeypatch.setattr(gpu_suite, "SCRATCH", tmp_path / "scratch")
    monkeypatch.setattr(machine, "facts", lambda device: FACTS)

    def run(steps: Mapping[str, Sequence[Step]], *options: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(gpu_suite, "steps", lambda part, device, quick: steps.get(part, []))
        status = gpu_suite.main(["--device", "cpu", "--results", str(tmp_path / "results"), *options])
        return status, kept(tmp_path)

    return run


def kept(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "results").glob("*.json")
    return suite_report.read(path)


def step(folder: Path, name: str, script: str = "", reports: bool = False, **more: Any) -> Step:
    given = folder / "given.json"
    given.write_text(json.dumps(report()))
    script = COUNT + (WRITE if reports else "print('3 passed');") + script
    return Step(name, [sys.executable, "-c", script, str(folder / f"{name}.runs"), str(given)], reports, **more)


def runs(folder: Path, name: str) -> int:
    path = folder / f"{name}.runs"
    return len(path.read_text()) if path.exists() else 0


def test_parts_are_merged_into_one_file_with_tables_and_curves(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = {"test": [step(tmp_path, "rooms")], "attention": [step(tmp_path, "attention", reports=True)]}
    status, found = suite(steps)
    assert status == 0 and found["machine"] == FACTS
    assert found["parts"]["test"]["rooms"] | {"state": OK, "says": ["3 passed"]} == found["parts"]["test"]["rooms"]
    assert found["parts"]["attention"]["attention"]["report"]["rows"] == report()["rows"]
    results = tmp_path / "results" / "nvidia-h100-80gb-2026-11-26-abc1234"
    assert results.with_suffix(".json").exists() and results.with_suffix(".png").stat().st_size > 5000
    page = results.with_suffix(".md").read_text()
    losses = page.partition("## Losses")[2].partition("## Times")[0]
    assert "| bias, S=1024 | forward | auto | time of eager over ours | 0.75 |" in losses and "S=512" not in losses
    assert page.count("MISSED") == 1 and page.count("| reached |") == 1 and "too new" in page
    assert "bf16 gflops: 600000" in page and str(results.with_suffix(".md")) in capsys.readouterr().out


def test_what_is_complete_is_not_run_again(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = {"test": [step(tmp_path, "rooms")], "pack": [step(tmp_path, "rows", reports=True)]}
    suite(steps)
    # On another day too: card, versions and commit are the same.
    monkeypatch.setattr(machine, "facts", lambda device: FACTS | {"date": "2026-11-27T01:00:00+00:00"})
    status, found = suite(steps)
    assert status == 0 and runs(tmp_path, "rooms") == runs(tmp_path, "rows") == 1 and len(found["parts"]) == 2
    assert "test, rooms: kept" in capsys.readouterr().err
    suite(steps, "--part", "test", "--force")
    assert (runs(tmp_path, "rooms"), runs(tmp_path, "rows")) == (2, 1)


@pytest.mark.parametrize(
    "other", [{"commit": "abc1235"}, {"versions": {"torch": "2.12.0"}}, {"name": "NVIDIA H200"}], ids=str
)
def test_another_commit_version_or_card_runs_all_again(
    other: dict[str, Any], suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "results"
    first = Results.open(folder, FACTS, False)
    first.put("test", "rooms", {"state": OK})
    assert Results.open(folder, FACTS, False).complete("test", "rooms")
    assert not Results.open(folder, FACTS | other, False).complete("test", "rooms")
    assert not Results.open(folder, FACTS, True).complete("test", "rooms")


def test_a_tree_that_differs_from_its_commit_keeps_nothing(tmp_path: Path) -> None:
    facts = FACTS | {"commit": "abc1234+"}
    Results.open(tmp_path, facts, False).put("test", "rooms", {"state": OK})
    assert not Results.open(tmp_path, facts, False).complete("test", "rooms")


def test_a_step_that_fails_is_reported_and_runs_again(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = {"test": [step(tmp_path, "rooms", "sys.exit(3)"), step(tmp_path, "others")]}
    status, found = suite(steps)
    failed = found["parts"]["test"]["rooms"]
    assert status == 1 and failed["state"] == FAILED and failed["why"] == "exit status 3"
    assert failed["log"] == ["3 passed"] and found["parts"]["test"]["others"]["state"] == OK
    assert "test, rooms: FAILED exit status 3" in capsys.readouterr().out
    suite(steps)
    assert (runs(tmp_path, "rooms"), runs(tmp_path, "others")) == (2, 1)


def test_a_report_that_is_not_complete_is_a_failure_and_its_rows_are_kept(suite: Suite, tmp_path: Path) -> None:
    half = step(tmp_path, "attention", reports=True)
    (tmp_path / "given.json").write_text(json.dumps(report(complete=False)))
    status, found = suite({"attention": [half]})
    assert status == 1 and found["parts"]["attention"]["attention"]["state"] == FAILED
    assert found["parts"]["attention"]["attention"]["report"]["rows"]


def test_a_program_that_is_not_there_is_a_failure(suite: Suite) -> None:
    status, found = suite({"test": [Step("build", ["/no/such/program"])]})
    assert status == 1 and "No such file" in found["parts"]["test"]["build"]["why"]


def test_a_part_out_of_time_stops_and_goes_on_later(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_suite, "LIMIT", 2.0)
    asleep = step(tmp_path, "rows", "sys.stdout.flush(); time.sleep(60)", reports=True)
    steps = {"pack": [asleep, step(tmp_path, "later")], "test": [step(tmp_path, "rooms")]}
    status, found = suite(steps)
    states = {name: one["state"] for part in found["parts"].values() for name, one in part.items()}
    assert status == 1 and states == {"rooms": OK, "rows": LATE, "later": LATE}
    assert found["parts"]["pack"]["rows"]["report"]["rows"]  # what it had written by then
    assert runs(tmp_path, "later") == 0
    steps["pack"] = [step(tmp_path, "rows", reports=True), step(tmp_path, "later")]
    status, found = suite(steps)
    assert status == 0 and runs(tmp_path, "rooms") == 1 and runs(tmp_path, "later") == 1


def test_no_losses_and_no_picture() -> None:
    results = Results(Path("none.json"), {"machine": FACTS, "quick": False, "parts": {}})
    assert suite_report.losses(results) == "None."
    assert suite_report.picture([row("pack", "auto", 1.0)], Path("none.png")).startswith("no picture: no case")
    assert not Path("none.png").exists()


def test_our_own_failures_are_losses() -> None:
    wrong = report() | {"rows": [row("bias, S=512", "auto", None, reason="wrong: gradient 3")], "ratios": {}}
    parts = {"attention": {"attention": {"state": OK, "report": wrong}}}
    assert "wrong: gradient 3" in suite_report.losses(Results(Path(), {"machine": FACTS, "parts": parts}))


def test_the_readme_takes_the_table_and_nothing_else_changes(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text((ROOT / "README.md").read_text())
    parts = {"attention": {"attention": {"state": OK, "report": report()}}}
    results = Results(tmp_path / "h100.json", {"machine": FACTS, "quick": False, "parts": parts})
    suite_report.into_readme(readme, results)
    suite_report.into_readme(readme, results)
    before, _, rest = (ROOT / "README.md").read_text().partition(suite_report.START)
    text = readme.read_text()
    assert text.startswith(before) and text.endswith(rest.partition(suite_report.END)[2]) and rest
    assert text.count("| bias, S=1024 |") == 1 and "(benchmarks/results/h100.md)" in text.replace("losses too](", "(")


def test_profile_without_ncu_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert gpu_suite.main(["--device", "cpu", "--quick", "--profile", "bias [S, S]"]) == 2
    assert "ncu is not on the PATH: install NVIDIA Nsight Compute" in capsys.readouterr().err
    assert gpu_suite.main(["--device", "cpu", "--quick", "--profile", "no such case"]) == 2
    assert "--profile: expected a part of 'bias [S, S], S=64'" in capsys.readouterr().err


def test_profile_runs_one_case_under_ncu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(gpu_suite, "SCRATCH", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        called.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    assert gpu_suite.profile("D=128, S=4096", CUDA, quick=False) == 0
    (command,) = called
    assert command[0] == "ncu" and command[command.index("--case") + 1] == "bias [S, S], D=128, S=4096"
    assert "--once" in command


def test_once_runs_ours_alone() -> None:
    ran: list[str] = []

    def contender(name: str) -> Contender:
        def run(x: torch.Tensor) -> torch.Tensor:
            ran.append(name)
            return 2 * x

        return Contender(run, ours=name == "auto")

    problem = Problem((torch.ones(8),), (), lambda x: 2 * x, {name: contender(name) for name in ("auto", "eager")})
    assert harness.main("test", lambda setting: [Case("double", lambda: problem, modes=(FORWARD,))], ["--once"]) == 0
    assert ran == ["auto"]


def test_sanitize_without_its_tool_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "facts", lambda device: FACTS)
    status = gpu_suite.main(["--device", "cpu", "--part", "sanitize", "--results", str(tmp_path / "results")])
    assert status == 2 and "not run there is no GPU" in capsys.readouterr().out
    assert {found["state"] for found in kept(tmp_path)["parts"]["sanitize"].values()} == {ABSENT}
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for step in gpu_suite.sanitizers(CUDA):
        assert step.absent.startswith("compute-sanitizer is not on the PATH: install NVIDIA Compute Sanitizer")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert not any(step.absent for step in gpu_suite.sanitizers(CUDA))


@pytest.mark.parametrize("quick", [False, True])
def test_every_part_has_steps_whose_files_exist(quick: bool) -> None:
    for part in gpu_suite.PARTS:
        found = gpu_suite.steps(part, CUDA, quick)
        assert found and len({step.name for step in found}) == len(found)
        files = [word.partition("::")[0] for step in found for word in step.command if word.startswith("tests/")]
        assert all((ROOT / file).exists() for file in files)
        assert part not in ("test", "sanitize") or files


def test_the_few_cases_exist_in_every_dtype() -> None:
    nodes = [node for dtype in ("float32", "bfloat16") for node in gpu_suite.nodes(dtype)]
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", *nodes]
    found = subprocess.run(collect, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0 and f"{2 * len(gpu_suite.FEW)} tests collected" in found.stdout, found.stdout


def test_all_cases_of_the_gpu_presets_have_names_of_their_own() -> None:
    for program in gpu_suite.PROGRAMS.values():
        for device, preset in ((CUDA, "gpu"), (CUDA, "gpu-quick"), (torch.device("cpu"), "gpu-quick")):
            cases = program.cases(Setting(device, preset))
            assert len({case.name for case in cases}) == len(cases) > 0


def test_a_program_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(machine.SIZES, "cpu", (64, 1 << 12))
    built: list[str] = []

    def case(name: str) -> Case:
        def build() -> Problem:
            built.append(name)
            x = torch.ones(8)
            return Problem((x,), (), lambda x: 2 * x, {"auto": Contender(lambda x: x + x, ours=True)})

        return Case(name, build, modes=(FORWARD,))

    def program(*names: str, other: tuple[str, ...] = ()) -> dict[str, Any]:
        path = tmp_path / "out.json"
        options = ["--preset", "gpu-quick", "--resume", "--json", str(path), *other]
        assert harness.main("test", lambda setting: [case(name) for name in names], options) == 0
        return suite_report.read(path)

    monkeypatch.setattr(machine, "commit", lambda: "abc1234")
    first = program("a")
    found = program("a", "b")
    assert built == ["a", "b"] and found["complete"] and [r["case"] for r in found["rows"]] == ["a", "b"]
    assert found["rows"][0] == first["rows"][0] and found["rows"][0]["same_bits"] is True
    monkeypatch.setattr(machine, "commit", lambda: "abc1234+")
    program("a", "b")
    assert built == ["a", "b", "a", "b"]
    monkeypatch.setattr(machine, "commit", lambda: "abc1234")
    program("a")
    for other in (("--rounds", "2"), ("--peer", "eager"), ()):
        built.clear()
        program("a", other=other)
        assert built == ["a"]  # what was measured otherwise is measured again


def test_runs_that_differ_are_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(machine.SIZES, "cpu", (64, 1 << 12))
    x = torch.ones(8)
    calls: list[None] = []

    def run(x: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        return torch.nextafter(2 * x, 2 * x + len(calls) % 2)

    problem = Problem((x,), (), lambda x: 2 * x, {"auto": Contender(run, ours=True)})
    path = tmp_path / "out.json"
    options = ["--preset", "gpu-quick", "--json", str(path)]
    assert harness.main("test", lambda setting: [Case("double", lambda: problem, modes=(FORWARD,))], options) == 1
    (found,) = suite_report.read(path)["rows"]
    assert found["reason"] == "wrong: runs with the same arguments differ" and found["median_ms"] is None


def test_a_part_runs_end_to_end_without_a_gpu(tmp_path: Path) -> None:
    options = ["--device", "cpu", "--quick", "--part", "pack", "--results", str(tmp_path / "results")]
    command = [sys.executable, "benchmarks/gpu_suite.py", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (rows,) = kept(tmp_path)["parts"]["pack"].values()
    assert rows["state"] == OK and rows["report"]["complete"] and rows["report"]["preset"] == "gpu-quick"
    assert {target["what"] for target in rows["report"]["targets"]} == {"of the copy", "time, times less than cat"}
