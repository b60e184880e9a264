"""fit: what a step computes, that a run repeats and resumes bit by bit, and what it does when things go wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tests.weightformer.tiny import (
    CLASSES,
    HEAD,
    SMALL,
    generic,
    images,
    layout,
    network,
    teachers,
    untouched,
)
from weightformer import finetune
from weightformer import fit as fitting
from weightformer.compare.controls import ConstantStudent, MeanAndDelta, in_order
from weightformer.fit import Example, History, Recipe, add_noise, fit, has_bfloat16, permute_head
from weightformer.model import StudentModel, WeightFormer

POOL = teachers(6)
LABELS = torch.arange(40) % CLASSES
IMAGES = images(40) + 2.0 * LABELS.view(-1, 1, 1, 1)
RECIPE = Recipe(steps=6, learning_rate=1e-2, warmup=2, checkpoint_every=2)


def task(generator: torch.Generator) -> Example:
    """Two or three teachers and eight labelled images."""
    size = int(torch.randint(2, 4, (), generator=generator))
    chosen = torch.randperm(len(POOL), generator=generator)[:size]
    index = torch.randperm(len(IMAGES), generator=generator)[:8]
    return Example([POOL[i] for i in chosen], IMAGES[index], LABELS[index], None)


def small(**settings: Any) -> WeightFormer:
    torch.manual_seed(3)
    model = WeightFormer(layout(), SMALL.but(output="mean", **settings))
    model.set_statistics(POOL)
    return model


def fitted(model: StudentModel, recipe: Recipe = RECIPE, draw: Callable = task, **options: Any) -> History:
    return fit(model, network(), draw, recipe, head=HEAD, **options)


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def first_loss(model: StudentModel, draw: Callable = task, **settings: Any) -> float:
    """The loss of the first step, before anything is learned."""
    return fitted(model, RECIPE.but(steps=1, warmup=0, **settings), draw).losses[0]


def test_the_loss_falls_and_the_model_ends_in_evaluation_mode() -> None:
    model = WeightFormer(layout(), SMALL.but(output="prior"))
    model.set_statistics(POOL)
    history = fitted(model, RECIPE.but(steps=60, permute_labels=False))
    assert sum(history.losses[-10:]) < 0.5 * sum(history.losses[:10])
    assert len(history.losses) == 60 and history.validations == [] and not model.training


class Noisy(nn.Module):
    """A student that draws from the global generator while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.drop = network(), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.drop(x))


def noisy_task(generator: torch.Generator) -> Example:
    example = task(generator)
    return example._replace(teachers=[{f"inner.{n}": t for n, t in s.items()} for s in example.teachers])


def noisy_run(global_seed: int, seed: int = 0) -> tuple[WeightFormer, History]:
    from weightformer import rows

    torch.manual_seed(3)
    model = WeightFormer(rows.layout(Noisy()), SMALL.but(dropout=0.2))
    torch.manual_seed(global_seed)
    return model, fit(model, Noisy(), noisy_task, RECIPE.but(noise=0.1, seed=seed), head=HEAD)


def test_the_same_seed_gives_the_same_run_bit_by_bit_whatever_the_global_generator() -> None:
    (one, history), (two, again), (other, different) = noisy_run(1), noisy_run(2), noisy_run(1, seed=1)
    assert same(one, two) and history == again
    assert not same(one, other) and history != different


def test_a_run_leaves_the_global_generator_and_the_student_as_they_were() -> None:
    student = network().eval()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    state = torch.get_rng_state()
    model = small(dropout=0.1)
    torch.set_rng_state(state)
    fit(model, student, task, RECIPE, head=HEAD)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    assert not student.training


def norm_of(model: StudentModel) -> float:
    return -float(sum(p.detach().square().sum() for p in model.parameters()))


class Interrupt(Exception):
    pass


def never(_: object) -> Any:
    raise AssertionError("a run that had ended computes nothing")


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("sign", [-1, 1], ids=["early-best", "late-best"])
def test_an_interrupted_run_goes_on_as_if_it_had_never_stopped(
    tmp_path: Path, stop: int, prior: bool, sign: int
) -> None:
    def validate(model: StudentModel) -> float:
        return sign * norm_of(model)

    def model() -> WeightFormer:
        torch.manual_seed(3)
        made = WeightFormer(layout(), SMALL.but(output="prior" if prior else "mean", dropout=0.1))
        made.set_statistics(POOL)
        return made

    recipe = RECIPE.but(validate_every=3, noise=0.1)
    whole = model()
    expected = fitted(whole, recipe, validate=validate)

    def interrupt(done: int, total: int, loss: float) -> None:
        assert total == recipe.steps and math.isfinite(loss)
        if done == stop:
            raise Interrupt

    path = tmp_path / "new" / "run.pt"
    with pytest.raises(Interrupt):
        fitted(model(), recipe, validate=validate, checkpoint=path, progress=interrupt)
    assert path.exists() == (stop >= 2)
    steps: list[int] = []

    def told(done: int, total: int, loss: float) -> None:
        steps.append(done)

    resumed = model()
    found = fitted(resumed, recipe, validate=validate, checkpoint=path, progress=told)
    assert steps == list(range(stop // 2 * 2 + 1, recipe.steps + 1))
    assert same(resumed, whole) and found == expected
    steps.clear()
    again = model()
    assert fitted(again, recipe, draw=never, validate=never, checkpoint=path, progress=told) == expected
    assert steps == [recipe.steps] and same(again, whole), "a run that had ended is read back at once"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("scores", [(1.0, 3.0, 2.0), (math.nan, 3.0, 2.0), (1.0, 3.0, math.nan)])
def test_the_best_parameters_on_validation_are_kept(scores: Sequence[float]) -> None:
    taken: list[dict[str, Tensor]] = []

    def validate(model: StudentModel) -> float:
        taken.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return scores[len(taken) - 1]

    model = small()
    history = fitted(model, RECIPE.but(validate_every=2), validate=validate)
    assert [step for step, _ in history.validations] == [2, 4, 6]
    assert all(torch.equal(tensor, taken[1][name]) for name, tensor in model.state_dict().items())


def test_the_last_step_is_validated_and_an_end_without_a_number_stays_the_last() -> None:
    model, plain = small(), small()
    history = fitted(model, validate=lambda _: math.nan)
    fitted(plain)
    assert [step for step, _ in history.validations] == [6] and same(model, plain)


def test_the_seconds_are_those_of_all_processes_that_worked_on_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every draw takes a second here, two a step; a step that an interrupt lost is not counted twice."""
    now = 100.0

    def slow(generator: torch.Generator) -> Example:
        nonlocal now
        now += 1
        return task(generator)

    monkeypatch.setattr(fitting.time, "perf_counter", lambda: now)
    path = tmp_path / "run.pt"
    with pytest.raises(Interrupt):
        fitted(small(), draw=slow, checkpoint=path, progress=stop_at(5))
    for _ in range(2):
        now += 1000  # until somebody goes on with it
        assert fitted(small(), draw=slow, checkpoint=path).seconds == 2 * RECIPE.steps
    assert fitted(small(), draw=slow).seconds == 2 * RECIPE.steps


def stop_at(step: int) -> Callable[[int, int, float], None]:
    def progress(done: int, total: int, loss: float) -> None:
        if done == step:
            raise Interrupt

    return progress


def stopped(path: Path, model: WeightFormer | None = None, recipe: Recipe = RECIPE) -> None:
    with pytest.raises(Interrupt):
        fitted(model or small(), recipe, checkpoint=path, progress=stop_at(5))


def another_pool() -> WeightFormer:
    model = small()
    model.set_statistics(POOL[:3])
    return model


@pytest.mark.parametrize(
    ("model", "recipe", "reason"),
    [
        (small, RECIPE.but(learning_rate=2e-2), "another recipe"),
        (small, RECIPE.but(seed=1), "another recipe"),
        (lambda: small(feed_forward=8), RECIPE, "another model or pool of teachers"),
        (lambda: small(gate="none"), RECIPE, "another model or pool of teachers"),
        (another_pool, RECIPE, "another model or pool of teachers"),
    ],
    ids=["rate", "seed", "size", "parts", "pool"],
)
def test_a_checkpoint_of_another_run_is_refused_and_left_alone(
    tmp_path: Path, model: Callable[[], WeightFormer], recipe: Recipe, reason: str
) -> None:
    path = tmp_path / "run.pt"
    stopped(path)
    content = path.read_bytes()
    other = model()
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match=f"^fit: checkpoint: .*run.pt belongs to {reason}; remove it or give"):
        fitted(other, recipe, checkpoint=path)
    assert path.read_bytes() == content
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"not a checkpoint",
        lambda content: content[:100] + bytes(200) + content[300:],
    ],
    ids=["half", "empty", "text", "holes"],
)
def test_a_damaged_checkpoint_is_named_in_one_line(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "run.pt"
    stopped(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError) as error:
        fitted(small(), checkpoint=path)
    expected = f"fit: checkpoint: {path} is damaged or no checkpoint of fit; remove it or give another name"
    assert str(error.value) == expected


@pytest.mark.parametrize("content", [{"weight": torch.zeros(2)}, torch.zeros(2), [1]], ids=["state", "tensor", "list"])
def test_another_file_of_torch_is_no_checkpoint(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "run.pt")
    with pytest.raises(ValueError, match="run.pt is damaged or no checkpoint of fit; remove it"):
        fitted(small(), checkpoint=tmp_path / "run.pt")


class Payload:
    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Payload, "ran", True)


def test_a_checkpoint_that_would_run_code_is_refused_and_nothing_is_run(tmp_path: Path) -> None:
    torch.save({"recipe": Payload()}, tmp_path / "run.pt")
    with pytest.raises(ValueError, match="run.pt is damaged or no checkpoint of fit"):
        fitted(small(), checkpoint=tmp_path / "run.pt")
    assert not Payload.ran


def test_a_half_written_checkpoint_is_never_taken_for_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power fails while the second checkpoint is written: the first one is still there."""
    whole = small()
    expected = fitted(whole)
    path, save, calls = tmp_path / "run.pt", torch.save, []

    def failing_save(state: object, file: Any) -> None:
        calls.append(file)
        if len(calls) == 2:
            file.write(b"PK\x03\x04 half of it")
            raise Interrupt
        save(state, file)

    monkeypatch.setattr(torch, "save", failing_save)
    with pytest.raises(Interrupt):
        fitted(small(), checkpoint=path)
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 2  # the first, and what was being written
    steps: list[int] = []
    resumed = small()
    found = fitted(resumed, checkpoint=path, progress=lambda done, _, __: steps.append(done))
    assert steps == [3, 4, 5, 6] and found == expected and same(resumed, whole)


def test_without_a_checkpoint_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fitted(small())
    assert list(tmp_path.iterdir()) == []


def test_without_checkpoints_on_the_way_there_is_one_at_the_end(tmp_path: Path) -> None:
    path, recipe = tmp_path / "run.pt", RECIPE.but(checkpoint_every=0)

    def told(done: int, total: int, loss: float) -> None:
        assert not path.exists()

    history = fitted(small(), recipe, checkpoint=path, progress=told)
    assert fitted(small(), recipe, draw=never, checkpoint=path) == history


def test_permuted_labels_are_undone_exactly_before_the_loss() -> None:
    """The mean of the teachers follows any order of the classes, so its loss must not see the permutation."""

    def model() -> MeanAndDelta:
        made = MeanAndDelta(layout(), HEAD)
        generator = torch.Generator().manual_seed(0)
        for parameter in made.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        return made

    def one(generator: torch.Generator) -> Example:
        return Example(POOL[:3], IMAGES[:8], LABELS[:8], None)

    plain = first_loss(model(), one, permute_labels=False)
    for seed in range(4):
        assert first_loss(model(), one, seed=seed) == pytest.approx(plain, rel=1e-6)


def test_the_model_sees_every_group_in_an_order_of_its_own() -> None:
    seen: list[Tensor] = []

    class Spy(ConstantStudent):
        def forward(self, rows: Tensor, teachers: Sequence[int]) -> list[dict[str, Tensor]]:
            seen.append(self.layout.row_blocks(rows, sum(teachers))[HEAD].clone())
            return super().forward(rows, teachers)

    def one(generator: torch.Generator) -> Example:
        return Example(POOL[:2], IMAGES[:8], LABELS[:8], None)

    model = Spy(layout(), POOL[0])
    fitted(model, RECIPE.but(steps=10, groups=2), one)
    states = [torch.cat([s["head.weight"], s["head.bias"][:, None]], 1) for s in POOL[:2]]
    orders = set()
    for block in seen:
        for group in block.view(2, 2, CLASSES, -1):
            order = [int((states[0] == row).all(1).nonzero()) for row in group[0]]
            assert torch.equal(group[1], states[1][order]), "one order for all teachers of a group"
            orders.add(tuple(order))
    assert len(orders) == 6
    seen.clear()
    fitted(model, RECIPE.but(permute_labels=False), one)
    assert all(torch.equal(block.view(4, CLASSES, -1)[0], states[0]) for block in seen)


@pytest.mark.parametrize("head", [HEAD, 1])
def test_permuting_the_rows_buffer_is_permuting_the_states(head: int) -> None:
    model, counts = generic(SMALL), [2, 1, 3]
    orders = [torch.randperm(model.layout.rows[head]) for _ in counts]
    groups = [POOL[:2], POOL[2:3], POOL[3:]]
    found = permute_head(model.pack(groups), model, counts, head, orders)
    expected = [[in_order(s, model.layout, head, o) for s in g] for g, o in zip(groups, orders, strict=True)]
    assert torch.equal(found, model.pack(expected))


def test_noise_has_its_deviation_in_the_normalised_domain_and_spares_the_padding() -> None:
    model = untouched(SMALL)
    model.scale.mul_(torch.rand(model.scale.shape, dtype=torch.float64) + 0.5)
    rows = model.pack([POOL * 40])
    noisy = add_noise(rows, model, 240, 0.3, torch.Generator().manual_seed(0))
    again = add_noise(rows, model, 240, 0.3, torch.Generator().manual_seed(0))
    assert torch.equal(noisy, again) and torch.equal(rows, model.pack([POOL * 40]))
    scales = model.layout.column_blocks(model.scale)
    differences = model.layout.row_blocks(noisy - rows, 240)
    for difference, scale in zip(differences, scales, strict=True):
        z = difference / scale
        bound = 5 / math.sqrt(2 * z.numel())  # five standard errors of a standard deviation
        assert z.std().item() == pytest.approx(0.3, rel=bound)
        assert z.std(0).max() < 2 * z.std(0).min(), "the same in every column"
        assert abs(z.mean().item()) < 5 * 0.3 / math.sqrt(z.numel())
    count = sum(n * w for n, w in zip(model.layout.rows, model.layout.widths, strict=True))
    assert (noisy != rows).sum() == 240 * count


def test_noise_reaches_the_model() -> None:
    assert first_loss(small(), noise=0.0) != first_loss(small(), noise=0.5)


def test_sparsity_and_shift_consistency_are_added_by_their_weights() -> None:
    def model() -> WeightFormer:
        return generic(SMALL).float()

    torch.manual_seed(5)
    state = model().state_dict()

    def loss(**settings: Any) -> float:
        made = model()
        made.load_state_dict(state)
        return first_loss(made, lambda g: Example(POOL[:3], IMAGES[:8], LABELS[:8], None), groups=2, **settings)

    reference = model()
    reference.load_state_dict(state)
    assert reference.gate is not None
    openness = reference.gate.openness(reference.layout.tokens([3, 3], 1)).item()
    plain = loss(permute_labels=False)
    shifted = reference.shift_consistency(reference.pack([POOL[:3], POOL[:3]]), [3, 3]).item()
    assert loss(permute_labels=False, sparsity=2.0) == pytest.approx(plain + 2 * openness, rel=1e-5)
    assert loss(permute_labels=False, shift=0.5) == pytest.approx(plain + 0.5 * shifted, rel=1e-5)


def test_the_loss_is_cross_entropy_for_labels_and_distillation_for_targets() -> None:
    """In batch mode of the student's BatchNorm, averaged over the groups."""
    targets = torch.rand(8, CLASSES).softmax(1)
    batch = (IMAGES[:8], LABELS[:8])
    student = network().train()
    scores = functional_call(student, {n: t for n, t in POOL[0].items() if n != "norm.num_batches_tracked"}, batch[0])
    cross_entropy = nn.functional.cross_entropy(scores, batch[1]).item()
    distilled = finetune.distillation_loss(scores, batch[1], targets, 0.4, 3.0).item()
    soft = finetune.distillation_loss(scores, None, targets, 0.4, 3.0).item()

    def loss(*kinds: tuple[Tensor | None, Tensor | None]) -> float:
        examples = iter([Example(POOL[:1], batch[0], *kind) for kind in kinds])
        settings = {"alpha": 0.4, "temperature": 3.0, "groups": len(kinds), "permute_labels": False}
        return first_loss(ConstantStudent(layout(), POOL[0]), lambda g: next(examples), **settings)

    assert loss((batch[1], None)) == pytest.approx(cross_entropy, rel=1e-5)
    assert loss((batch[1], targets)) == pytest.approx(distilled, rel=1e-5)
    assert loss((None, targets)) == pytest.approx(soft, rel=1e-5)
    mixed = loss((batch[1], None), (batch[1], targets), (None, targets))
    assert mixed == pytest.approx((cross_entropy + distilled + soft) / 3, rel=1e-5)


def test_the_rate_warms_up_and_falls_to_zero_and_the_prior_learns_faster_without_decay() -> None:
    torch.manual_seed(0)
    model = WeightFormer(layout(), SMALL.but(output="prior"))
    recipe = Recipe(steps=12, warmup=4, learning_rate=0.1, prior_rate=5.0, weight_decay=0.2)
    run = fitting._Run(model, recipe, None)
    rates = []
    for _ in range(12):
        rates.append([group["lr"] for group in run.optimizer.param_groups])
        run.optimizer.step()
        run.schedule.step()
    ordinary = [rate for rate, _ in rates]
    assert ordinary[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    cosine = [0.05 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    assert ordinary[4:] == pytest.approx(cosine) and run.optimizer.param_groups[0]["lr"] == pytest.approx(0.0)
    assert all(fast == pytest.approx(5 * rate) for rate, fast in rates)
    assert [group["weight_decay"] for group in run.optimizer.param_groups] == [0.2, 0.0]
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in run.optimizer.param_groups[1]["params"]} == {"prior", "blend"}
    assert sum(len(group["params"]) for group in run.optimizer.param_groups) == len(names)


def test_the_gradient_is_clipped() -> None:
    def moved(clip: float) -> list[Tensor]:
        model = small()
        norms: list[Tensor] = []
        real = torch.optim.AdamW.step

        def step(self: torch.optim.AdamW, *arguments: Any) -> Any:
            norms.append(torch.stack([p.grad.norm() for p in model.parameters()]).norm())
            return real(self, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", step)
            fitted(model, RECIPE.but(clip=clip))
        return norms

    free = moved(1e6)
    assert all(norm > 1e-2 for norm in free)
    assert all(norm == pytest.approx(1e-3, rel=1e-3) for norm in moved(1e-3))


@pytest.mark.parametrize(
    ("device", "hardware", "expected"),
    [("cpu", True, False), ("cuda", True, True), ("cuda", False, False), ("meta", True, False)],
)
def test_bfloat16_is_used_only_where_the_device_has_it(
    device: str, hardware: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return hardware or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert has_bfloat16(torch.device(device)) is expected


@pytest.mark.parametrize("half", [False, True])
def test_students_are_predicted_and_run_under_that_autocast(half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[bool, torch.dtype]] = []

    class Spy(ConstantStudent):
        def forward(self, rows: Tensor, teachers: Sequence[int]) -> list[dict[str, Tensor]]:
            found.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
            return super().forward(rows, teachers)

    monkeypatch.setattr(fitting, "has_bfloat16", lambda device: half)
    model = Spy(layout(), POOL[0])
    fitted(model, RECIPE.but(steps=1))
    assert found == [(half, torch.bfloat16)]
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": -1}, {"groups": 0}, {"warmup": -1}, {"validate_every": -1}, {"checkpoint_every": -2},
        {"learning_rate": math.nan}, {"clip": -1.0}, {"noise": -0.5}, {"sparsity": -1.0}, {"shift": math.inf},
    ],
    ids=str,
)  # fmt: skip
def test_an_impossible_recipe_is_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^Recipe: {next(iter(settings))}: expected "):
        Recipe(**settings)


def test_no_steps_change_nothing() -> None:
    model, other = small(), small()
    assert fitted(model, RECIPE.but(steps=0), validate=norm_of) == History([], []) and same(model, other)
