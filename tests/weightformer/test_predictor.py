"""Predictor: teachers in, one student out, and the file that holds everything needed for it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from weightformer import checkpoints, evaluate, rows
from weightformer import students as architectures
from weightformer.align import Aligner
from weightformer.checkpoints import CheckpointError
from weightformer.config import preset
from weightformer.model import WeightFormer
from weightformer.predictor import Predictor
from weightformer.state import State
from wfkernels import pack

ARGUMENTS = {"classes": 3, "size": 8}
TINY = {"width": 8, "heads": 2, "layers": 1, "feed_forward": 8}


def network(seed: int) -> nn.Module:
    return architectures.create("vgg", **ARGUMENTS, seed=seed)


def images(count: int) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def teachers(count: int) -> list[State]:
    """Untrained networks, each with running statistics of its own."""
    found = []
    for seed in range(count):
        found.append(evaluate.recalibrate(network(seed), images(30) * (1 + seed)).state_dict())
    return found


POOL = teachers(4)


def made(kind: str = "recipe", calibrated: bool = True, aligned: bool = True) -> Predictor:
    torch.manual_seed(0)
    of = rows.layout(network(0))
    base = pack([rows.tensors(POOL[3], of)], of) if kind == "specialists" else None
    model = WeightFormer(of, preset(kind).but(**TINY), base=base)
    model.set_statistics(POOL, rows.head(of))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    anchor, views = (POOL[0], images(20)) if aligned else (None, None)
    return Predictor(model.eval(), "vgg", ARGUMENTS, images(40) if calibrated else None, anchor, views)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return made()


@pytest.fixture
def saved(predictor: Predictor, tmp_path: Path) -> Path:
    predictor.save(tmp_path / "wf.safetensors")
    return tmp_path / "wf.safetensors"


def equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["recipe", "specialists", "paper-small"])
@pytest.mark.parametrize(("calibrated", "aligned"), [(True, True), (False, False), (True, False)])
def test_a_saved_predictor_gives_the_same_student_bit_by_bit(
    kind: str, calibrated: bool, aligned: bool, tmp_path: Path
) -> None:
    predictor = made(kind, calibrated, aligned)
    expected = predictor(POOL[1:])
    predictor.save(tmp_path / "wf.safetensors")
    loaded = Predictor.load(tmp_path / "wf.safetensors")
    assert equal(loaded(POOL[1:]), expected)
    assert loaded.architecture == "vgg" and loaded.arguments == ARGUMENTS
    assert loaded.model.config == predictor.model.config and not loaded.model.training
    assert (loaded.anchor is not None, loaded.calibration is not None) == (aligned, calibrated)


def test_teachers_are_aligned_with_the_anchor_before_they_are_read(predictor: Predictor) -> None:
    aligner = Aligner(evaluate.with_state(network(0), POOL[0]), images(20))
    expected = [aligner(state) for state in POOL[1:]]
    for found, wanted in zip(predictor.prepare(POOL[1:]), expected, strict=True):
        assert equal(found, wanted)
    student = predictor(POOL[1:])
    by_hand = predictor.model.predict(expected)
    assert all(torch.equal(student[name], by_hand[name]) for name, _ in network(0).named_parameters())
    assert not equal(made(aligned=False)(POOL[1:]), student)
    unaligned = made(aligned=False)
    assert all(a is b for a, b in zip(unaligned.prepare(POOL), POOL, strict=True))


def test_running_statistics_are_re_estimated_and_the_rest_is_as_predicted(predictor: Predictor) -> None:
    student = predictor(POOL[1:])
    expected = evaluate.with_state(network(0), student)
    evaluate.recalibrate(expected, images(40))
    assert equal(student, expected.state_dict())
    raw = made(calibrated=False)(POOL[1:])
    assert torch.equal(raw["norm1.running_var"], predictor.prepare(POOL[1:])[0]["norm1.running_var"])
    assert not torch.equal(raw["norm1.running_var"], student["norm1.running_var"])
    assert torch.equal(raw["conv1.weight"], student["conv1.weight"])


def test_other_images_give_other_running_statistics_and_nothing_else(predictor: Predictor) -> None:
    others = 3 * images(25) + 1
    for given in (predictor, made(calibrated=False)):
        student = given.calibrated(others.double())(POOL[1:])
        expected = evaluate.recalibrate(evaluate.with_state(network(0), predictor(POOL[1:])), others)
        assert equal(student, expected.state_dict())
    assert predictor.calibration is not None and len(predictor.calibration) == 40


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (images(5)[0], "expected images [n, C, 8, 8] for vgg, got [1, 8, 8]"),
        (images(0), "expected images [n, C, 8, 8] for vgg, got [0, 1, 8, 8]"),
        (torch.zeros(5, 1, 8, 14), "expected images [n, C, 8, 8] for vgg, got [5, 1, 8, 14]"),
        (torch.zeros(5, 3, 8, 8), "vgg takes no images [5, 3, 8, 8]"),
        (torch.zeros(5, 1, 8, 8, dtype=torch.uint8), "floating point, prepared as for the teachers, got torch.uint8"),
        (images(5) / 0, "without NaN or Inf"),
        (torch.full((5, 1, 8, 8), 1e300, dtype=torch.float64), "without NaN or Inf"),
    ],
    ids=["no channels", "none", "size", "channels", "raw pixels", "inf", "inf as float32"],
)
def test_images_that_the_architecture_does_not_take_are_refused(
    predictor: Predictor, given: Tensor, reason: str
) -> None:
    with pytest.raises(ValueError) as error:
        predictor.calibrated(given)
    assert reason in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("architecture", "has"), [("vgg", True), ("resnet", True), ("mlp", False), ("vit", False), ("timm:test_vit", False)]
)
def test_images_are_for_networks_with_running_statistics(architecture: str, has: bool) -> None:
    of = rows.layout(architectures.create(architecture, seed=0))
    predictor = Predictor(WeightFormer(of, preset("shared-init").but(**TINY)), architecture, {})
    assert predictor.has_running_statistics() == has
    if not has:
        with pytest.raises(ValueError, match="has no BatchNorm with running statistics"):
            predictor.calibrated(torch.zeros(2, 1, 14, 14))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_student_has_the_teachers_dtype_and_loads_strictly(predictor: Predictor, dtype: torch.dtype) -> None:
    group = [{n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()} for state in POOL[1:]]
    student = predictor(group)
    network(0).to(dtype).load_state_dict(student)
    assert all(tensor.dtype == group[0][name].dtype for name, tensor in student.items())
    assert list(student) == list(group[0])


def test_the_teachers_and_the_predictor_stay_as_they_are(predictor: Predictor) -> None:
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in POOL]
    model = {name: tensor.clone() for name, tensor in predictor.model.state_dict().items()}
    predictor(POOL)
    assert all(equal(a, b) for a, b in zip(before, POOL, strict=True))
    assert equal(predictor.model.state_dict(), model)


def with_nan(state: State) -> State:
    return {**state, "conv2.weight": torch.full_like(state["conv2.weight"], float("nan"))}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_nan, "'conv2.weight' holds NaN"),
        (lambda s: {**s, "head.bias": torch.full((3,), float("inf"))}, "'head.bias' holds Inf"),
        (lambda s: {**s, "head.bias": torch.zeros(4)}, "'head.bias' has shape"),
        (lambda s: {n: t for n, t in s.items() if n != "conv1.weight"}, "missing 'conv1.weight'"),
        (lambda s: architectures.create("mlp", seed=0).state_dict(), "the weights are of another architecture"),
    ],
    ids=["nan", "inf", "shape", "missing", "architecture"],
)
def test_a_teacher_that_does_not_fit_is_refused_in_one_line(
    predictor: Predictor, change: Callable[[State], State], reason: str
) -> None:
    with pytest.raises(CheckpointError) as error:
        predictor([POOL[0], change(POOL[1])])
    message = str(error.value)
    assert message.startswith("teacher 1: ") and reason in message and "\n" not in message


def test_without_teachers_there_is_no_student(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="expected at least one teacher"):
        predictor([])


def test_moving_to_a_device_takes_the_images_along(predictor: Predictor) -> None:
    moved = made().to("meta")
    assert moved.device == torch.device("meta") and moved.student().head.weight.is_meta
    assert moved.calibration is not None and moved.calibration.is_meta
    assert moved.views is not None and moved.views.is_meta
    same = predictor.to("cpu")
    assert same.model is predictor.model and equal(same(POOL[1:]), predictor(POOL[1:]))


def test_the_file_is_plain_tensors_and_text(saved: Path) -> None:
    """Anybody reads it with safetensors alone: nothing in it can run."""
    tensors = safetensors.torch.load_file(saved)
    assert {name.partition(".")[0] for name in tensors} == {"model", "anchor", "calibration", "views"}
    assert {name.removeprefix("anchor.") for name in tensors if name.startswith("anchor.")} == set(POOL[0])
    with safetensors.safe_open(saved, "pt") as file:
        about = json.loads(file.metadata()["weightformer"])
    assert about["architecture"] == "vgg" and about["config"]["output"] == "prior"


def test_reading_a_file_unpickles_nothing(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    Predictor.load(saved)


def test_an_existing_file_is_kept_unless_asked(predictor: Predictor, saved: Path) -> None:
    with pytest.raises(CheckpointError, match="exists already"):
        predictor.save(saved)
    predictor.save(saved, overwrite=True)


def refused(path: Path, reason: str) -> None:
    with pytest.raises(CheckpointError) as error:
        Predictor.load(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and reason in message and "\n" not in message


def changed(path: Path, tensors: Callable[[dict[str, Tensor]], Any] = lambda t: None, **about: Any) -> None:
    """Write the file again with other tensors and other text; a value of None drops the key."""
    state = checkpoints.load(path)
    text = json.loads(checkpoints.metadata(path)["weightformer"])
    tensors(state)
    text = {key: value for key, value in {**text, **about}.items() if value is not None}
    checkpoints.save(state, path, overwrite=True, metadata={"weightformer": json.dumps(text)})


CONFIG = {"width": 8, "heads": 2, "layers": 1}


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"config": {**CONFIG, "colour": 3, "age": 1}}, "colour: there is no such setting"),
        ({"config": {**CONFIG, "heads": 3}}, "expected a divisor of width"),
        ({"config": {**CONFIG, "width": "8"}}, "another version or damaged"),
        ({"config": {**CONFIG, "width": 16}}, "another version or damaged"),
        ({"config": 3}, "another version or damaged"),
        ({"config": None}, "another version or damaged ('config')"),
        ({"version": "2"}, "version 2, expected 1"),
        ({"architecture": "vggg"}, "no network is called 'vggg'"),
        ({"architecture": "mlp"}, "another version or damaged"),
        ({"architecture": 3}, "another version or damaged"),
        ({"arguments": {"classes": 4, "size": 8}}, "another version or damaged"),
        ({"arguments": {"depth": 4}}, "another version or damaged"),
        ({"arguments": [1]}, "another version or damaged"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_other_settings_than_the_tensors_fit_are_refused(saved: Path, about: dict[str, Any], reason: str) -> None:
    changed(saved, **about)
    refused(saved, reason)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"version": "1"}', "[" * 100_000])
def test_text_that_describes_no_weightformer_is_refused(saved: Path, text: str) -> None:
    checkpoints.save(checkpoints.load(saved), saved, overwrite=True, metadata={"weightformer": text})
    refused(saved, "is a WeightFormer of another version or damaged")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("model.strength"), "another version or damaged"),
        (lambda t: t.update({"model.extra": torch.zeros(1)}), "another version or damaged"),
        (lambda t: t["model.strength"].fill_(float("nan")), "'model.strength' holds NaN or Inf"),
        (lambda t: t["calibration"].fill_(float("inf")), "'calibration' holds NaN or Inf"),
        (lambda t: t.pop("anchor.conv1.weight"), "missing 'conv1.weight'"),
    ],
    ids=["missing", "unexpected", "nan", "images", "anchor"],
)
def test_other_tensors_than_the_settings_need_are_refused(
    saved: Path, change: Callable[[dict[str, Tensor]], Any], reason: str
) -> None:
    changed(saved, change)
    refused(saved, reason)


@pytest.mark.parametrize("left", [0, 7, 100, 5000, -1])
def test_a_truncated_file_is_refused(saved: Path, left: int) -> None:
    saved.write_bytes(saved.read_bytes()[:left])
    refused(saved, "copy or save it again")


def test_a_file_that_is_no_weightformer_is_refused(tmp_path: Path) -> None:
    checkpoints.save(dict(POOL[0]), tmp_path / "teacher.safetensors")
    refused(tmp_path / "teacher.safetensors", "is no WeightFormer; give a file written by demo or compare --output")
    torch.save(POOL[0], tmp_path / "teacher.pt")
    refused(tmp_path / "teacher.pt", "is no WeightFormer")
    refused(tmp_path / "nothing.safetensors", "no such file")


class Payload:
    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Payload, "ran", True)


@pytest.mark.parametrize("name", ["wf.safetensors", "wf.pt"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    torch.save({"model": Payload()}, tmp_path / name)
    with pytest.raises(CheckpointError):
        Predictor.load(tmp_path / name)
    assert not Payload.ran
