"""`weightformer plan`: for how many threads and which device its times are, and what comes on top of peak memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.weightformer.test_cli import Outcome, call
from weightformer import costs
from wfkernels import selftest
from wfkernels.__main__ import _parser

PLAN = "plan --arch mlp --preset recipe --teachers 2"
THREADS = 3  # of `predict`; `fit` takes one

Run = Callable[[str], Outcome]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Commands in an empty folder, on a machine whose rates are not known."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch, "get_num_threads", lambda: THREADS)
    return lambda command: call(command, capsys)


def test_times_follow_from_the_rates_of_the_threads_that_the_commands_take(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = set()

    def load(device: str, threads: int) -> dict[str, Any]:
        asked.add((device, threads))
        return {"threads": threads}

    monkeypatch.setattr(selftest, "load", load)
    monkeypatch.setattr(costs, "seconds", lambda work, rates, implementation: 0.5 * rates["threads"])
    outcome = run(f"{PLAN} --json plan.json")
    assert (outcome.code, outcome.err) == (0, "")
    assert asked == {("cpu", THREADS), ("cpu", 1)}
    assert "1.5 s, 3 threads" in outcome.out and "0.5 s, 1 thread" in outcome.out
    found = json.loads(Path("plan.json").read_text())
    forward, training = found["passes"]
    assert (found["device"], forward["threads"], training["threads"]) == ("cpu", THREADS, 1)
    assert set(forward["seconds"].values()) == {1.5} and set(training["seconds"].values()) == {0.5}


def test_rates_that_are_not_known_are_asked_for_by_a_command_that_exists(run: Run) -> None:
    outcome = run(PLAN)
    assert outcome.code == 0 and "not known, 1 thread" in outcome.out
    lines = outcome.err.splitlines()
    assert [line.split()[-1] for line in lines] == ["1", str(THREADS)]
    for line in lines:
        assert line.startswith("no rates are known for cpu on ")
        program, *arguments = line.partition("measure them with: ")[2].split()
        assert program == "wfkernels" and _parser().parse_args(arguments).rates


def test_what_comes_on_top_of_peak_memory_is_printed(run: Run) -> None:
    outcome = run(f"{PLAN} --groups 3 --json plan.json")
    found = json.loads(Path("plan.json").read_text())
    assert "3 groups of 2 teachers" in outcome.out
    assert f"({found['model_bytes'] / 2**20:.1f} MiB as float32, buffers included)" in outcome.out
    assert f"the rows of all teachers ({found['input_bytes'] / 2**20:.1f} MiB as float32)" in outcome.out
    assert "beside the WeightFormer and its inputs" in outcome.out
