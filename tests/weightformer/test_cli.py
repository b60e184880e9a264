"""The command line as a user meets it: what it writes, that a run can be repeated, resumed and replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
import safetensors.torch
import torch
import yaml

from weightformer import cli, students
from weightformer.compare import presets
from weightformer.compare.table import Comparison
from weightformer.predictor import Predictor
from weightformer.teachers import TeacherPool

# A pool and a fit that take a second: the small perceptron on scikit-learn's digits.
DIGITS = "--set arch=mlp --set data.name=digits --set data.limit=60"
POOL = (
    f"teachers --preset demo {DIGITS} --set regime.fast=5 --set regime.test=3 --set regime.views=2"
    " --set regime.fast_schedule.steps=3 --set regime.held_out.steps=3 --workers 1"
)
SHORT = "--set recipe.steps=6 --set recipe.checkpoint_every=1 --set views=2"
FIT = f"fit pool --preset demo {DIGITS} {SHORT}"
COMPARE = (
    f"compare --preset demo {DIGITS} {SHORT} --set regime.fast=5 --set regime.test=4 --set regime.views=2"
    " --set regime.fast_schedule.steps=3 --set regime.held_out.steps=3 --set distillation=2 --set tuning=[2]"
)


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Run = Callable[[str], Outcome]


def call(command: str, capsys: pytest.CaptureFixture[str]) -> Outcome:
    argv, sys.argv = sys.argv, ["weightformer", *command.split()]
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = argv
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Commands in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield lambda command: call(command, capsys)
    torch.set_num_threads(threads)


@pytest.fixture
def pool(run: Run) -> Path:
    assert run(f"{POOL} -o pool").code == 0
    return Path("pool")


def settings_in(path: Path) -> dict[str, object]:
    found = yaml.safe_load(path.read_text())
    assert isinstance(found, dict)
    return found


def states_in(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path)


def same(one: Path, other: Path) -> bool:
    a, b = states_in(one), states_in(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_whole_way_from_teachers_to_a_judged_student(run: Run, pool: Path) -> None:
    teachers = TeacherPool.load(pool)
    assert (len(teachers.select("train")), len(teachers.select("test")), teachers.architecture) == (5, 3, "mlp")
    assert run(f"{FIT} -o fit").code == 0
    files = " ".join(f"pool/test-00{i}.safetensors" for i in range(3))
    predict = f"predict {files} --arch mlp --weightformer fit/weightformer.safetensors"
    outcome = run(f"{predict} -o student.safetensors --json predict.json")
    assert (outcome.code, outcome.err) == (0, "")
    expected = Predictor.load("fit/weightformer.safetensors")([t.state for t in teachers.select("test").teachers])
    found = states_in(Path("student.safetensors"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    students.create("mlp").load_state_dict(found)
    assert json.loads(Path("predict.json").read_text())["tensors"] == len(found)

    tune = f"finetune student.safetensors --arch mlp --teacher {files.split()[0]} --set data.name=digits --set steps=2"
    assert run(f"{tune} -o tuned.safetensors").code == 0
    assert not same(Path("student.safetensors"), Path("tuned.safetensors"))

    judged = run("evaluate student.safetensors tuned.safetensors --arch mlp --set data.name=digits --json judged.json")
    assert judged.code == 0
    methods = [row["method"] for row in json.loads(Path("judged.json").read_text())["rows"]]
    assert methods == ["student.safetensors", "tuned.safetensors", "ensemble"]


def test_a_fit_on_files_of_ones_own_needs_no_pool(run: Run, pool: Path) -> None:
    files = " ".join(str(path) for path in sorted(pool.glob("train-*.safetensors")))
    outcome = run(f"fit {files} --preset demo {DIGITS} {SHORT} -o fit")
    assert "fitted on 5 teachers" in outcome.out
    run(f"{FIT} -o other")
    assert same(Path("fit/weightformer.safetensors"), Path("other/weightformer.safetensors"))


@pytest.mark.parametrize("command", ["teachers", "fit", "finetune"])
def test_the_settings_next_to_a_result_repeat_it(command: str, run: Run, pool: Path) -> None:
    if command == "finetune":
        run("finetune pool/test-000.safetensors --arch mlp --set data.name=digits --set steps=2 -o a.safetensors")
        first, second, settings = Path("a.safetensors"), Path("b.safetensors"), Path("a.safetensors.yaml")
        target = second
    elif command == "fit":
        run(f"{FIT} -o a")
        first, second = (Path(folder, "weightformer.safetensors") for folder in "ab")
        settings, target = Path("a/config.yaml"), Path("b")
    else:
        first, second = (Path(folder, "train-fast-004.safetensors") for folder in ("pool", "b"))
        settings, target = pool / "config.yaml", Path("b")
    assert run(f"{command} --config {settings} -o {target}").code == 0
    assert same(first, second)


def test_options_win_over_the_file_and_assignments_over_both(run: Run, pool: Path) -> None:
    Path("mine.yaml").write_text("seed: 3\nrecipe:\n  steps: 4\n  noise: 0.5\n")
    assert run(f"{FIT} --config mine.yaml --set recipe.noise=0.25 -o a").code == 0
    found = settings_in(Path("a/config.yaml"))
    recipe = found["recipe"]
    assert isinstance(recipe, dict)
    assert (found["seed"], recipe["steps"], recipe["noise"]) == (3, 6, 0.25)
    assert run(f"{FIT} --config mine.yaml --seed 4 -o b").code == 0
    assert settings_in(Path("b/config.yaml"))["seed"] == 4


def test_a_complete_run_is_replaced_only_by_force(run: Run, pool: Path) -> None:
    before = (pool / "train-fast-000.safetensors").read_bytes()
    refused = run(f"{POOL} -o pool --seed 1")
    assert (refused.code, (pool / "train-fast-000.safetensors").read_bytes()) == (2, before)
    assert run(f"{POOL} -o pool --seed 1 --force").code == 0
    assert (pool / "train-fast-000.safetensors").read_bytes() != before


@pytest.mark.parametrize("arguments", ["--help", *(f"{c.name} --help" for c in cli.app.registered_commands)])
def test_help_fits_and_names_every_option(arguments: str, run: Run) -> None:
    outcome = run(arguments.replace("None", ""))
    assert outcome.code == 0
    assert "Usage" in outcome.out


def test_demo_writes_report_results_and_the_fitted_model(run: Run, pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(f"{FIT} -o fit")
    predictor = Predictor.load("fit/weightformer.safetensors")
    asked = []

    def pretend(plan: presets.Plan, seed: int, device: str, folder: Path) -> tuple[Comparison, Predictor]:
        asked.append((plan, seed, device, folder))
        return Comparison("a title", seed, 0), predictor

    monkeypatch.setattr(presets, "run", pretend)
    outcome = run("demo --seed 3 --json demo.json")
    assert outcome.code == 0, outcome.err
    assert "a title" in outcome.out
    assert asked == [(presets.DEMO, 3, "cpu", Path("runs/demo"))]
    assert json.loads(Path("demo.json").read_text())["seed"] == 3
    assert Predictor.load("runs/demo/weightformer.safetensors").architecture == "mlp"
    assert "a title" in Path("runs/demo/report.html").read_text()
    assert settings_in(Path("runs/demo/config.yaml"))["seed"] == 3
    again = run("demo")
    assert (again.code, "complete run" in again.err) == (2, True)


def killed(command: str, folder: Path, output: Path, seconds: float) -> bool:
    """Start a command in a process of its own and kill it some seconds after it first wrote into its folder.

    Returns whether it had not ended yet.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.time()
    process = subprocess.Popen(
        [sys.executable, "-m", "weightformer", *command.split()],
        cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while process.poll() is None and not any(path.stat().st_mtime > start for path in existing(output)):
        time.sleep(0.02)
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def existing(folder: Path) -> list[Path]:
    """Return the files of a folder in which files come and go."""
    return [path for path in folder.rglob("*") if path.is_file()]


def numbers(path: Path) -> dict[str, object]:
    """Return the results of a comparison without what is measured in seconds."""
    found = json.loads(path.read_text())
    for row in found["rows"]:
        del row["seconds"]
    found["facts"] = [fact for fact in found["facts"] if fact["unit"] not in ("s", "ms")]
    return {name: found[name] for name in ("rows", "facts", "gates", "seed")}


@pytest.mark.parametrize("command", [FIT, COMPARE], ids=["fit", "compare"])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_result(
    command: str, run: Run, pool: Path, tmp_path: Path
) -> None:
    slow = command.replace("recipe.steps=6", "recipe.steps=60")
    start = time.perf_counter()
    assert run(f"{slow} -o whole").code == 0
    whole = time.perf_counter() - start
    moments, kills = Random(0), 0
    for _ in range(5):
        kills += killed(f"{slow} -o torn --resume", tmp_path, tmp_path / "torn", moments.uniform(0.0, whole / 3))
    assert kills >= 2
    last = run(f"{slow} -o torn --resume")
    assert last.code == 0 or "complete run" in last.err
    if command is COMPARE:
        assert numbers(tmp_path / "torn/results.json") == numbers(tmp_path / "whole/results.json")
    assert same(tmp_path / "torn/weightformer.safetensors", tmp_path / "whole/weightformer.safetensors")
