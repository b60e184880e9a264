"""`weightformer predict` and running statistics: images are asked for, read from files, and refused in one line."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.weightformer.test_cli import Outcome, call
from weightformer import preset, rows, students
from weightformer.model import WeightFormer
from weightformer.predictor import Predictor

ARGUMENTS = {"classes": 3, "channels": 1, "size": 8}
TEACHERS = [students.create("vgg", **ARGUMENTS, seed=i).state_dict() for i in range(2)]
PREDICT = "predict t0.safetensors t1.safetensors --arch vgg --weightformer wf.safetensors -o new.safetensors"
NOTE = "new.safetensors: its BatchNorm layers have the first teacher's running statistics"

Run = Callable[[str], Outcome]


def images(count: int = 20) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def predictor(arch: str = "vgg", calibration: Tensor | None = None) -> Predictor:
    states = [students.create(arch, **ARGUMENTS, seed=i).state_dict() for i in range(2)]
    torch.manual_seed(0)
    model = WeightFormer(rows.layout(students.create(arch, **ARGUMENTS)), preset("shared-init"))
    model.set_statistics(states)
    return Predictor(model, arch, ARGUMENTS, calibration)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Commands in a folder with two teachers and a WeightFormer that was saved without images."""
    monkeypatch.chdir(tmp_path)
    for i, state in enumerate(TEACHERS):
        safetensors.torch.save_file(state, f"t{i}.safetensors")
    predictor().save("wf.safetensors")
    return lambda command: call(command, capsys)


def save_npy(path: Path, given: Tensor) -> None:
    np.save(path, given.numpy())


def save_big_endian(path: Path, given: Tensor) -> None:
    np.save(path, given.numpy().astype(">f8"))


def save_alone(path: Path, given: Tensor) -> None:
    safetensors.torch.save_file({"pixels": given}, path)


def save_with_labels(path: Path, given: Tensor) -> None:
    safetensors.torch.save_file({"labels": torch.zeros(len(given)), "images": given}, path)


@pytest.mark.parametrize("save", [save_npy, save_big_endian, save_alone, save_with_labels])
def test_running_statistics_are_re_estimated_on_the_images_of_a_file(
    save: Callable[[Path, Tensor], None], run: Run
) -> None:
    path = Path("images.npy" if save in (save_npy, save_big_endian) else "images.safetensors")
    save(path, images())
    outcome = run(f"{PREDICT} --calibrate {path}")
    assert (outcome.code, outcome.err) == (0, "")
    found, expected = safetensors.torch.load_file("new.safetensors"), predictor().calibrated(images())(TEACHERS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert not torch.equal(found["norm1.running_var"], TEACHERS[0]["norm1.running_var"])


def test_the_settings_next_to_a_student_repeat_it(run: Run) -> None:
    save_npy(Path("images.npy"), images())
    run(f"{PREDICT} --calibrate images.npy")
    first = Path("new.safetensors").read_bytes()
    assert run(f"{PREDICT} --config new.safetensors.yaml --force").code == 0
    assert Path("new.safetensors").read_bytes() == first


def test_a_student_that_keeps_a_teachers_statistics_is_written_with_one_note(run: Run) -> None:
    outcome = run(PREDICT)
    (note,) = outcome.err.splitlines()
    assert outcome.code == 0 and note.startswith(NOTE) and "wf.safetensors" in note and "--calibrate FILE" in note
    found = safetensors.torch.load_file("new.safetensors")
    assert torch.equal(found["norm1.running_var"], TEACHERS[0]["norm1.running_var"])


@pytest.mark.parametrize("arch", ["vgg", "mlp"])
def test_there_is_no_note_where_nothing_is_missing(arch: str, run: Run) -> None:
    """Images came with the WeightFormer, or the student has no running statistics."""
    predictor(arch, images() if arch == "vgg" else None).save("wf.safetensors", overwrite=True)
    for i in range(2):
        safetensors.torch.save_file(students.create(arch, **ARGUMENTS, seed=i).state_dict(), f"t{i}.safetensors")
    outcome = run(PREDICT.replace("vgg", arch))
    assert (outcome.code, outcome.err) == (0, "")


class Attack:
    ran = False

    def __reduce__(self) -> tuple[object, ...]:
        return setattr, (sys.modules[__name__].Attack, "ran", True)


def wrong_files() -> None:
    """Write a file for everything that can be wrong with images."""
    save_npy(Path("flat.npy"), images()[:, 0])
    save_npy(Path("larger.npy"), torch.zeros(5, 1, 14, 14))
    save_npy(Path("colour.npy"), torch.zeros(5, 3, 8, 8))
    save_npy(Path("none.npy"), images(0))
    save_npy(Path("raw.npy"), torch.zeros(5, 1, 8, 8, dtype=torch.uint8))
    save_npy(Path("nan.npy"), torch.full((5, 1, 8, 8), torch.nan))
    np.save("text.npy", np.array(["a", "b"]))
    np.save("objects.npy", np.array([Attack()], dtype=object), allow_pickle=True)
    Path("pickle.npy").write_bytes(pickle.dumps(Attack()))
    Path("empty.npy").write_bytes(b"")
    whole = Path("flat.npy").read_bytes()
    Path("truncated.npy").write_bytes(whole[: len(whole) // 2])
    Path("truncated.safetensors").write_bytes(Path("t0.safetensors").read_bytes()[:200])
    torch.save(images(), "images.pt")
    Path("folder.npy").mkdir()


BAD: dict[str, tuple[str, ...]] = {
    "nowhere.npy": ("nowhere.npy", "No such file"),
    "nowhere.safetensors": ("nowhere.safetensors", "no such file"),
    "folder.npy": ("folder.npy", "directory"),
    "empty.npy": ("empty.npy", "no array that numpy.save wrote"),
    "truncated.npy": ("truncated.npy", "no array that numpy.save wrote"),
    "truncated.safetensors": ("truncated.safetensors", "not a complete safetensors file"),
    "pickle.npy": ("pickle.npy", "no array that numpy.save wrote"),
    "objects.npy": ("objects.npy", "allow_pickle=False"),
    "text.npy": ("text.npy", "no array that numpy.save wrote"),
    "images.pt": ("images.pt", ".npy or .safetensors"),
    "t1.safetensors": ("t1.safetensors", "none called 'images'"),
    "flat.npy": ("--calibrate", "flat.npy", "[n, 1, 8, 8] for vgg, got [20, 8, 8]"),
    "larger.npy": ("--calibrate", "[n, 1, 8, 8] for vgg, got [5, 1, 14, 14]"),
    "colour.npy": ("--calibrate", "[n, 1, 8, 8] for vgg, got [5, 3, 8, 8]"),
    "none.npy": ("--calibrate", "got [0, 1, 8, 8]"),
    "raw.npy": ("--calibrate", "floating point", "torch.uint8"),
    "nan.npy": ("--calibrate", "NaN"),
}


@pytest.mark.parametrize("file", BAD)
def test_images_that_cannot_be_used_end_in_one_line_and_nothing_is_written(file: str, run: Run, tmp_path: Path) -> None:
    wrong_files()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    outcome = run(f"{PREDICT} --calibrate {file}")
    assert (outcome.code, outcome.out) == (2, ""), outcome.err
    (line,) = outcome.err.splitlines()
    assert line.startswith("weightformer: ")
    for words in BAD[file]:
        assert words in line
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not Attack.ran


def test_images_for_a_student_without_running_statistics_are_refused(run: Run) -> None:
    predictor("mlp").save("wf.safetensors", overwrite=True)
    save_npy(Path("images.npy"), images())
    outcome = run(f"{PREDICT.replace('vgg', 'mlp')} --calibrate images.npy")
    assert outcome.code == 2 and "mlp has no BatchNorm with running statistics" in outcome.err
    assert not Path("new.safetensors").exists()
