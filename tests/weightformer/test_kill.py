"""Runs that end before their time, by SIGKILL at any moment or by an interrupt: what they leave, and how they go on."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from tests.weightformer.test_cli import COMPARE, FIT, POOL, Run, numbers, pool, run, same, settings_in
from weightformer import checkpoints, cli
from weightformer import fit as fitting
from weightformer.compare import same_task
from weightformer.predictor import Predictor
from weightformer.teachers import TeacherPool

__all__ = ["pool", "run"]  # fixtures

# Long enough that there is something to interrupt, and so few teachers that they train in the process that is killed.
STEPS = ("recipe.steps=6", "recipe.steps=40")
SLOW_FIT = FIT.replace(*STEPS)
SLOW_COMPARE = f"{COMPARE.replace(*STEPS)} --set regime.fast=4 --set regime.test=3 --set sizes=[2,3]"
SLOW_POOL = f"{POOL} --set regime.fast=40 --set regime.fast_schedule.steps=20"


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Start a command in a process of its own, forked from one that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["weightformer.cli", "weightformer.compare.presets", "weightformer.report.page"])
    monkeypatch.chdir(tmp_path)

    def started(command: str) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["weightformer", *command.split()])  # which the process takes over
            process = context.Process(target=cli.main)
            process.start()
        return process

    return started


def state_of(folder: Path) -> set[tuple[str, int, int]]:
    """Return what a folder holds, files under a temporary name as well, so that every write shows."""
    found = set()
    for base, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # renamed in the meantime
                stat = os.stat(os.path.join(base, name))
                found.add((os.path.join(base, name), stat.st_size, stat.st_mtime_ns))
    return found


def watched(process: Any, folder: Path, most: float = math.inf) -> int:
    """Wait until a process has ended or has changed its folder so many times; return how many times it did."""
    before, changes = state_of(folder), 0
    while changes < most and process.is_alive():
        time.sleep(0.003)
        now = state_of(folder)
        changes, before = changes + (now != before), now
    return changes


def visible(folder: Path) -> list[Path]:
    """Return the files in a folder that have not a temporary name."""
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return [inside for inside in files if not any(part.startswith(".") for part in inside.parts)]


def check_whole(folder: Path) -> None:
    """Read every file that has not a temporary name."""
    for inside in visible(folder):
        path = folder / inside
        if path.suffix == ".safetensors":
            assert checkpoints.load(path), inside
        elif path.suffix == ".checkpoint":
            found = torch.load(path, weights_only=True)
            assert found["losses"] and found["model"] and found["seconds"] > 0, inside
        elif path.suffix == ".json":
            assert json.loads(path.read_text()), inside
        elif path.suffix == ".yaml":
            assert settings_in(path)["seed"] == 0, inside
        else:
            assert path.name == "report.html" and path.read_text().endswith("</html>"), inside
    if (folder / "pool.json").exists():
        TeacherPool.load(folder, partial=True)  # lists no teacher without its file


def results(path: Path) -> dict[str, Any]:
    """Return everything that a comparison wrote but what is measured in seconds, and the command."""
    found = json.loads(path.read_text()) | numbers(path)
    return {name: value for name, value in found.items() if name not in ("total_seconds", "command")}


def check_same(one: Path, other: Path) -> None:
    """Compare what two runs left, file by file; of a run that has ended nobody reads the checkpoints."""
    names, others = ({n for n in visible(folder) if n.suffix != ".checkpoint"} for folder in (one, other))
    assert names == others
    for name in names:
        if name.suffix == ".safetensors":
            assert same(one / name, other / name), name
        elif name.name == "results.json":
            assert results(one / name) == results(other / name)
        elif name.suffix == ".json":
            assert json.loads((one / name).read_text()) == json.loads((other / name).read_text())


@pytest.mark.parametrize(
    ("command", "times"), [(SLOW_FIT, 10), (SLOW_COMPARE, 10), (SLOW_POOL, 4)], ids=["fit", "compare", "teachers"]
)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_result(
    command: str, times: int, start: Callable[[str], Any], pool: Path, tmp_path: Path
) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    process = start(f"{command} -o whole")
    changes = watched(process, whole)
    assert process.exitcode == 0
    moments, kills, ends = Random(0), 0, 0
    while kills < times or process.exitcode < 0:
        process = start(f"{command} -o torn --resume")
        # As many kills as asked for, then to the end.
        if kills < times:
            watched(process, torn, moments.randint(0, 2 * changes // times))
            process.join(moments.uniform(0.0, 0.03))
            process.kill()
        process.join()
        check_whole(torn)
        if process.exitcode == -signal.SIGKILL:
            kills += 1
            continue
        # 2: it was killed when all was written, and refuses to do it again.
        assert process.exitcode in (0, 2)
        check_same(torn, whole)
        assert process.exitcode == 2 or not list(torn.glob("*.checkpoint"))
        shutil.rmtree(torn)
        ends += 1
        assert ends <= times, "it ends before it can be killed"


def seconds_of(name: str) -> float:
    return float(torch.load(f"torn/{name}.checkpoint", weights_only=True)["seconds"])


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_comparison_repeats_no_fit_that_had_ended_and_reports_what_it_took(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted behind two fits of three: six steps each."""
    with monkeypatch.context() as patch:
        patch.setattr(same_task, "controls", interrupted)
        assert run(f"{COMPARE} -o torn").code == 130
    assert visible(Path("torn")) and len(list(Path("torn").glob("*.checkpoint"))) == 2
    took, losses = seconds_of("weightformer"), []
    original = fitting._step_loss
    monkeypatch.setattr(fitting, "_step_loss", lambda *given: losses.append(1) or original(*given))
    assert run(f"{COMPARE} -o torn --resume").code == 0
    assert len(losses) == 6
    facts = json.loads(Path("torn/results.json").read_text())["facts"]
    assert [fact["value"] for fact in facts if fact["what"].startswith("meta-training of")] == [took]
    assert not list(Path("torn").glob("*.checkpoint"))


def test_a_fit_reports_the_seconds_before_an_interrupt_as_well(
    run: Run, pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted when all six steps are done and the result is about to be written."""
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "save", interrupted)
        assert run(f"{FIT} -o torn").code == 130
    took = seconds_of("weightformer")
    assert run(f"{FIT} -o torn --resume --json fit.json").code == 0
    assert json.loads(Path("fit.json").read_text())["seconds"] == took > 0
    assert sorted(str(name) for name in visible(Path("torn"))) == ["config.yaml", "weightformer.safetensors"]
