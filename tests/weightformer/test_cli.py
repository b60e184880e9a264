"""The command line as a user meets it: what it writes, and one clear line for whatever is wrong."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from weightformer import cli, preset, rows, students
from weightformer.compare import presets
from weightformer.compare.table import Comparison
from weightformer.model import WeightFormer
from weightformer.predictor import Predictor


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["weightformer", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three teachers, a WeightFormer for them, and a file for everything that can be wrong."""
    folder = tmp_path_factory.mktemp("shop")
    states = [students.create("mlp", seed=i).state_dict() for i in range(3)]
    for i, state in enumerate(states):
        safetensors.torch.save_file(state, folder / f"teacher{i}.safetensors")
    torch.save(states[0], folder / "teacher0.pth")
    torch.manual_seed(0)
    model = WeightFormer(rows.layout(students.create("mlp")), preset("shared-init"))
    model.set_statistics(states)
    Predictor(model, "mlp", {"classes": 10, "channels": 1, "size": 8}).save(folder / "wf.safetensors")

    name = next(iter(states[0]))
    for label, value in (("nan", float("nan")), ("inf", float("inf"))):
        broken = {k: v.clone() for k, v in states[0].items()}
        broken[name].view(-1)[3] = value
        safetensors.torch.save_file(broken, folder / f"{label}.safetensors")
    wider = {k: (torch.zeros(v.shape[0] + 1, *v.shape[1:]) if k == name else v) for k, v in states[0].items()}
    safetensors.torch.save_file(wider, folder / "wider.safetensors")
    whole = (folder / "teacher0.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "text.pth").write_text("not weights\n")
    (folder / "code.pth").write_bytes(pickle.dumps(Attack(folder / "attacked")))
    (folder / "existing.safetensors").write_bytes(b"precious")
    (folder / "existing.json").write_text("precious")
    return folder


class Attack:
    """A pickle that creates a file when somebody loads it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.target}",)


FIRST = next(iter(students.create("mlp", seed=0).state_dict()))

# What differs from a good command -> what the one line has to say.
BAD: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "a missing teacher": ({"teachers": ["nowhere.safetensors"]}, ("nowhere.safetensors", "no such file")),
    "a folder as teacher": ({"teachers": ["."]}, ("not a file",)),
    "a truncated teacher": ({"teachers": ["truncated.safetensors"]}, ("truncated.safetensors", "complete")),
    "an empty teacher": ({"teachers": ["empty.safetensors"]}, ("empty.safetensors", "empty")),
    "no weights at all": ({"teachers": ["text.pth"]}, ("text.pth",)),
    "a pickle that runs code": ({"teachers": ["code.pth"]}, ("code.pth", "refused", "nothing was run")),
    "other shapes": ({"teachers": ["teacher0.safetensors", "wider.safetensors"]}, ("wider.safetensors", FIRST)),
    "NaN": ({"teachers": ["teacher0.safetensors", "nan.safetensors"]}, ("nan.safetensors", FIRST, "NaN")),
    "Inf": ({"teachers": ["inf.safetensors"]}, ("inf.safetensors", FIRST, "Inf")),
    "an unknown architecture": ({"arch": "mpl"}, ("mpl", "mlp")),
    "another architecture": ({"arch": "vgg"}, ("--arch", "mlp", "vgg")),
    "no WeightFormer": ({"weightformer": "nowhere.safetensors"}, ("nowhere.safetensors", "no such file")),
    "a teacher for a WeightFormer": ({"weightformer": "teacher0.safetensors"}, ("is no WeightFormer",)),
    "an output that exists": ({"output": "existing.safetensors"}, ("--output", "exists already")),
    "an output of another kind": ({"output": "student.pth"}, ("--output", ".safetensors")),
    "an output in no folder": ({"output": "nowhere/student.safetensors"}, ("nowhere",)),
    "a JSON file that exists": ({"json": "existing.json"}, ("--json", "exists already")),
    "a JSON file in no folder": ({"json": "nowhere/a.json"}, ("--json", "does not exist")),
    "no device": ({"device": "gpu"}, ("--device", "gpu")),
    "a device that is not here": ({"device": "meta"}, ("--device", "cpu or cuda")),
}


def command(folder: Path, **changes: object) -> list[object]:
    given = {"teachers": [f"teacher{i}.safetensors" for i in range(3)], "arch": "mlp", "weightformer": "wf.safetensors"}
    given |= {"output": "student.safetensors"} | changes
    paths = [str(folder / str(t)) for t in given.pop("teachers")]
    arguments: list[object] = ["predict", *paths]
    for option, value in given.items():
        arguments += [f"--{option}", value if option in ("arch", "device", "seed") else folder / str(value)]
    return arguments


@pytest.mark.parametrize("case", BAD, ids=lambda name: name.replace(" ", "-"))
def test_a_bad_command_ends_in_one_line_and_writes_nothing(case: str, shop: Path, run: Callable[..., Outcome]) -> None:
    changes, expected = BAD[case]
    before = {path: path.read_bytes() for path in shop.iterdir() if path.is_file()}
    outcome = run(*command(shop, **changes))
    assert outcome.code == 2
    assert outcome.out == ""
    (line,) = outcome.err.strip().splitlines()
    assert line.startswith("weightformer: ")
    for words in expected:
        assert words in line
    assert {path: path.read_bytes() for path in shop.iterdir() if path.is_file()} == before


def test_predict_writes_the_student_that_the_predictor_predicts(
    shop: Path, tmp_path: Path, run: Callable[..., Outcome]
) -> None:
    out, numbers = tmp_path / "student.safetensors", tmp_path / "numbers.json"
    outcome = run(*command(shop, output=out, json=numbers))
    assert (outcome.code, outcome.err) == (0, "")
    assert str(out) in outcome.out
    found = safetensors.torch.load_file(out)
    states = [safetensors.torch.load_file(shop / f"teacher{i}.safetensors") for i in range(3)]
    expected = Predictor.load(shop / "wf.safetensors")(states)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    students.create("mlp").load_state_dict(found)
    assert json.loads(numbers.read_text())["tensors"] == len(found)


def test_teachers_may_be_files_of_torch_save(shop: Path, tmp_path: Path, run: Callable[..., Outcome]) -> None:
    teachers = ["teacher0.pth", "teacher1.safetensors"]
    assert run(*command(shop, teachers=teachers, output=tmp_path / "student.safetensors")).code == 0


def test_compare_suggests_the_nearest_preset(run: Callable[..., Outcome]) -> None:
    outcome = run("compare", "--preset", "specialist")
    assert outcome.code == 2
    assert "did you mean specialists?" in outcome.err


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["compare", "--help"], ["predict", "--help"]])
def test_help_names_every_option(arguments: list[str], run: Callable[..., Outcome]) -> None:
    outcome = run(*arguments)
    assert outcome.code == 0
    if arguments[0] != "--help":
        for option in ("--seed", "--device", "--json"):
            assert option in outcome.out


def test_demo_prints_the_table_and_keeps_what_it_is_asked_to(
    shop: Path, tmp_path: Path, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.load(shop / "wf.safetensors")
    asked = []

    def pretend(seed: int, device: str, folder: Path | None) -> tuple[Comparison, Predictor]:
        asked.append((seed, device, folder))
        return Comparison("a title", seed, 0), predictor

    monkeypatch.setitem(presets.PRESETS, "demo", presets.Preset("nothing", pretend))
    folder, numbers = tmp_path / "run", tmp_path / "demo.json"
    outcome = run("demo", "--seed", 3, "--output", folder, "--json", numbers)
    assert outcome.code == 0
    assert "a title" in outcome.out
    assert asked == [(3, "cpu", folder)]
    assert json.loads(numbers.read_text())["seed"] == 3
    assert Predictor.load(folder / "weightformer.safetensors").architecture == "mlp"
    again = run("demo", "--output", folder)
    assert again.code == 2
    assert "exists already" in again.err
