"""The command line as a user meets it: what it writes, that a run can be repeated, resumed and replaced."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from weightformer import cli, report, students
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


def numbers(path: Path) -> dict[str, object]:
    """Return the results of a comparison without what is measured in seconds."""
    found = json.loads(path.read_text())
    for row in found["rows"]:
        del row["seconds"]
    for name in ("facts", "gates"):
        found[name] = [entry for entry in found[name] if entry["unit"] not in ("s", "ms")]
    return {name: found[name] for name in ("rows", "facts", "gates", "seed")}


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


# So few teachers that they train in this process.
QUICK = f"{COMPARE} --set regime.fast=4 --set regime.test=3 --set sizes=[2,3] --set paper=false"
# What a command is asked for, the option that names its result, and the file of it that is compared.
PART = "pool/test-000.safetensors"
ASKED = {
    "teachers": (POOL, "-o {}", "{}/train-fast-004.safetensors"),
    "fit": (FIT, "-o {}", "{}/weightformer.safetensors"),
    "compare": (QUICK, "-o {}", "{}/results.json"),
    "demo": (QUICK.replace("compare --preset demo", "demo"), "-o {}", "{}/results.json"),
    "predict": (
        f"predict {PART} pool/test-001.safetensors --arch mlp --weightformer fit/weightformer.safetensors",
        "-o {}.safetensors",
        "{}.safetensors",
    ),
    "finetune": (
        f"finetune {PART} --arch mlp --teacher pool/test-001.safetensors --set data.name=digits --set steps=2",
        "-o {}.safetensors",
        "{}.safetensors",
    ),
    "evaluate": (f"evaluate {PART} --arch mlp --split validation --set data.name=digits", "--json {}.json", "{}.json"),
    "plan": ("plan --arch mlp --teachers 2 --preset recipe --set model.width=32", "--json {}.json", "{}.json"),
}


@pytest.mark.parametrize("command", ASKED)
def test_the_settings_next_to_a_result_repeat_it(
    command: str, run: Run, pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "write_html", lambda *_, **__: None)  # no picture is looked at here
    asked, option, result = ASKED[command]
    if command == "predict":
        run(f"{FIT} -o fit")
    seed = "" if command == "plan" else " --seed 3"
    assert run(f"{asked}{seed} {option.format('a')}").code == 0
    first, second = (Path(result.format(name)) for name in "ab")
    settings = Path("a/config.yaml") if first.parent.name else Path(f"{first}.yaml")
    assert run(f"{command} --config {settings} {option.format('b')}").code == 0
    if first.suffix == ".safetensors":
        assert same(first, second)
    elif command == "plan":
        assert json.loads(first.read_text()) == json.loads(second.read_text())
    else:
        assert numbers(first) == numbers(second)
        assert numbers(first)["seed"] == 3


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


def test_an_interrupted_run_goes_on_with_another_number_of_workers(run: Run, pool: Path) -> None:
    last = pool / "test-002.safetensors"
    whole = last.read_bytes()
    index = json.loads((pool / "pool.json").read_text())
    index["teachers"].pop()
    (pool / "pool.json").write_text(json.dumps(index))
    last.unlink()
    assert run(f"{POOL.replace('--workers 1', '--workers 2')} -o pool --resume").code == 0
    assert last.read_bytes() == whole


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
