"""A fit whose numbers end says at which step, in which layer, and what is left: in every way that it can go wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests.weightformer.test_cli import DIGITS, Run, pool, run
from tests.weightformer.test_fit import POOL as TEACHERS
from tests.weightformer.test_fit import RECIPE, Interrupt, fitted, norm_of, same, small, stop_at, task
from tests.weightformer.tiny import CLASSES, HEAD, HIDDEN, SMALL, generic, layout, network
from weightformer import divergence
from weightformer.compare.controls import ConstantStudent, MeanAndDelta
from weightformer.config import Config
from weightformer.fit import Diverged, Example, fit
from weightformer.model import StudentModel

__all__ = ["pool", "run"]  # fixtures

Draw = Callable[[torch.Generator], Example]


def failing(step: int, **changes: Callable[[Example], Any]) -> Draw:
    """The usual task, but in one step the examples are changed: by default the images are no numbers."""
    changes = changes or {"images": lambda example: example.images * math.nan}
    calls = 0

    def draw(generator: torch.Generator) -> Example:
        nonlocal calls
        calls += 1
        example = task(generator)
        bad = calls > RECIPE.groups * (step - 1)
        return example._replace(**{name: change(example) for name, change in changes.items()}) if bad else example

    return draw


def poisoned_layer(model: StudentModel) -> None:
    """The third step leaves a parameter of one layer that is no number."""
    calls = 0

    def poison(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            model.get_parameter("strength").data[HIDDEN] = math.nan

    model.register_forward_pre_hook(poison)


def endless_penalty(model: StudentModel) -> None:
    def penalty(rows: Tensor, teachers: Sequence[int], sparsity: float, shift: float) -> Tensor:
        return rows.new_tensor(math.inf)

    model.penalty = penalty  # type: ignore[method-assign]


def huge_head(model: StudentModel) -> None:
    """Weights that are finite, and scores that are not."""
    model.get_parameter(f"weights.{2 * HEAD + 1}").data.fill_(3e38)


def bad_gradient(name: str, value: float, at: int = 0) -> Callable[[StudentModel], None]:
    """The gradient of a parameter is no number, at one index of its first dimension."""

    def spoil(gradient: Tensor) -> Tensor:
        return gradient.index_fill(0, torch.tensor([at]), value)

    def harm(model: StudentModel) -> None:
        model.get_parameter(name).register_hook(spoil)

    return harm


def constant() -> ConstantStudent:
    return ConstantStudent(layout(), TEACHERS[0])


def sharing() -> StudentModel:
    return small(share_projections=True)


class Root(nn.Module):
    """A square root, whose derivative at zero is infinite."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * (x > 0)).sqrt()


def rooted() -> nn.Module:
    student = network()
    student.tanh2 = Root()
    return student


ALL_FINITE = "all predicted weights are finite, the output of the student's layer"


class Case(NamedTuple):
    """What the message says, at which step, and what brings it about."""

    reason: str
    step: int = 1
    model: Callable[[], StudentModel] = small
    harm: Callable[[StudentModel], None] | None = None
    draw: Callable[[], Draw] = lambda: task
    student: Callable[[], nn.Module] = network


CASES = {
    "predicted weights": Case(
        "the loss is nan: the weights predicted for the student's layer hidden (hidden.weight) are not finite",
        step=4,
        harm=poisoned_layer,
    ),
    "images": Case(
        f"the loss is nan: {ALL_FINITE} conv is not; the images that it is given are not, either",
        step=3,
        draw=lambda: failing(3),
    ),
    "a layer that overflows": Case(f"the loss is nan: {ALL_FINITE} head is not", model=constant, harm=huge_head),
    "soft targets": Case(
        "the loss is nan: all layers of the student are finite, the soft targets of its images are not",
        step=3,
        draw=lambda: failing(3, targets=lambda example: torch.full((len(example.images), CLASSES), math.nan)),
    ),
    "penalty": Case(
        "the loss is inf: all layers of the student are finite, the loss made of its scores or what is added (sparsity,"
        " shift) is not",
        harm=endless_penalty,
    ),
    "gradient of the student": Case(
        "the gradient at the student's layer hidden (hidden.bias) is not finite", student=rooted
    ),
    "gradient of a control": Case(
        "the gradient of the model's deltas.1 is not finite",
        model=lambda: MeanAndDelta(layout(), HEAD),
        harm=bad_gradient("deltas.1", math.nan),
    ),
    "gradient, shared by layers": Case(
        "the gradient of the output projection of the student's layers hidden, head (the model's outputs.1.weight) is"
        " not finite",
        model=sharing,
        harm=bad_gradient("outputs.1.weight", math.inf),
    ),
    "gradient, of one layer": Case(
        "the gradient of the strength of the output of the student's layer hidden (the model's strength) is not finite",
        harm=bad_gradient("strength", math.nan, at=HIDDEN),
    ),
    "gradient, of all layers": Case(
        "the gradient of block 2 of the encoder, which all layers share (the model's blocks.1.up.weight) is not finite",
        harm=bad_gradient("blocks.1.up.weight", math.nan),
    ),
    "gradients together": Case(
        "the gradients are too large together, though each is finite; the largest is that of the strength of the output"
        " of the student's layer head (the model's strength)",
        harm=bad_gradient("strength", 3e38, at=HEAD),
    ),
}


@pytest.mark.parametrize("kept", [False, True], ids=["no checkpoint", "checkpoint"])
@pytest.mark.parametrize("name", CASES)
def test_step_layer_and_last_good_checkpoint_are_named(name: str, kept: bool, tmp_path: Path) -> None:
    case, path = CASES[name], tmp_path / "run.pt"
    model = case.model()
    if case.harm is not None:
        case.harm(model)
    with pytest.raises(Diverged) as error:
        recipe = RECIPE.but(checkpoint_every=1)
        fit(model, case.student(), case.draw(), recipe, head=HEAD, checkpoint=path if kept else None)
    left = "no checkpoint was kept"
    if kept and case.step == 1:
        left = "there is no checkpoint yet"
    elif kept:
        left = f"the last good checkpoint, of step {case.step - 1}, is {path}"
        assert len(torch.load(path, weights_only=True)["losses"]) == case.step - 1
    expected = f"fit: step {case.step}: {case.reason}; lower the learning rate or check the data; {left}"
    assert str(error.value) == expected


def test_a_run_that_diverged_keeps_the_best_parameters_on_validation() -> None:
    model, expected = small(), small()
    with pytest.raises(Diverged, match="^fit: step 4: "):
        fitted(model, RECIPE.but(validate_every=2), failing(4), validate=norm_of)
    with pytest.raises(Interrupt):
        fitted(expected, progress=stop_at(2))
    assert same(model, expected) and not model.training


def test_without_validation_it_keeps_the_parameters_before_the_step() -> None:
    model, expected = small(), small()
    with pytest.raises(Diverged, match="^fit: step 4: "):
        fitted(model, draw=failing(4))
    with pytest.raises(Interrupt):
        fitted(expected, progress=stop_at(3))
    assert same(model, expected)


def test_looking_for_the_layer_leaves_no_hook_on_the_student() -> None:
    student = network()
    bad = {name: tensor * math.nan for name, tensor in TEACHERS[0].items()}
    with torch.no_grad():
        assert divergence._first_layer(student, bad, torch.zeros(2, 1, 4, 4)) == "conv"
    assert not any(module._forward_hooks for module in student.modules())


FORMS = {
    "plain": SMALL.but(output="plain", norm="post"),
    "mean": SMALL.but(output="mean", gate="dense"),
    "prior": SMALL.but(output="prior", positions="layer", head=HEAD),
    "gated": SMALL.but(output="gated", read="mean", norm="pre", share_projections=True),
}


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS)
def test_every_parameter_of_every_form_is_told_in_words(config: Config) -> None:
    model = generic(config)
    for name, parameter in model.named_parameters():
        told = divergence.in_words(model, name, torch.full_like(parameter, math.nan))
        assert told.endswith(f" (the model's {name})")
        assert "which all layers share" in told or "of the student's layer" in told


def test_the_first_entry_that_is_no_number_says_which_layer_it_is_of() -> None:
    model = generic(FORMS["prior"])
    conv = model.layout.layers[0]
    first_of_hidden = {"strength": HIDDEN, "position": conv.rows, "prior": conv.rows * conv.stride}
    for name, index in first_of_hidden.items():
        gradient = torch.ones_like(model.get_parameter(name))
        gradient[index:] = math.nan
        assert f" of the student's layer hidden (the model's {name})" in divergence.in_words(model, name, gradient)


# With these rates the first step goes so far that the second cannot be computed, each in another way.
@pytest.mark.parametrize(
    ("rate", "reason"),
    [
        ("1e4", "the gradient"),
        ("1e7", "the loss is nan: all predicted weights are finite, the output of the student's layer "),
        ("1e15", "the loss is nan: the weights predicted for the student's layer "),
    ],
)
def test_the_command_says_so_in_one_line_and_keeps_the_checkpoint(rate: str, reason: str, run: Run, pool: Path) -> None:
    settings = f"recipe.learning_rate={rate} recipe.warmup=0 recipe.steps=20 recipe.checkpoint_every=1 views=2"
    changes = " ".join(f"--set {setting}" for setting in settings.split())
    outcome = run(f"fit {pool} --preset demo {DIGITS} {changes} -o fit")
    assert outcome.code == 1
    (line,) = (line for line in outcome.err.splitlines() if line.startswith("weightformer: "))
    assert line.startswith(f"weightformer: fit: step 2: {reason}"), line
    assert line.endswith("the last good checkpoint, of step 1, is fit/weightformer.checkpoint")
    assert "Traceback" not in outcome.err
    assert len(torch.load("fit/weightformer.checkpoint", weights_only=True)["losses"]) == 1
