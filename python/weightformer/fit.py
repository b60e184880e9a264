"""Meta-training: the student's own loss trains the model that predicted it, end to end."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from weightformer import bounds, divergence
from weightformer.finetune import distillation_loss
from weightformer.model import StudentModel
from weightformer.state import State


class Example(NamedTuple):
    """One group of teachers with a batch on which its student is judged."""

    teachers: Sequence[State]
    images: Tensor  # [B, C, H, W]
    labels: Tensor | None  # [B]
    targets: Tensor | None  # [B, classes], soft targets at Recipe.temperature


Task = Callable[[torch.Generator], Example]


@dataclass(frozen=True)
class Recipe:
    """How a WeightFormer is meta-trained. The defaults were measured to work for independent seeds.

    groups: groups of teachers per step, all in one ragged batch. alpha, temperature: of the distillation loss where an
    example has targets; with labels alone the loss is cross-entropy. permute_labels: every group has its classes in an
    order of its own, so that the student must be read off the teachers. noise: standard deviation of Gaussian noise on
    the normalised rows. sparsity: weight of the gate's mean openness. shift: weight of the shift-consistency loss, with
    windows moved by one neuron. prior_rate: learning rate of the learned prior over that of the rest. validate_every,
    checkpoint_every: steps between two of them; 0 for none on the way. seed: everything random follows from it.
    """

    steps: int = 600
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    warmup: int = 50
    clip: float = 1.0
    groups: int = 2
    alpha: float = 0.7
    temperature: float = 2.0
    permute_labels: bool = True
    noise: float = 0.0
    sparsity: float = 0.0
    shift: float = 0.0
    prior_rate: float = 10.0
    validate_every: int = 0
    checkpoint_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        whole = ("steps", "warmup", "validate_every", "checkpoint_every")
        real = ("learning_rate", "weight_decay", "clip", "noise", "sparsity", "shift", "prior_rate", "alpha")
        bounds.check(self, {**dict.fromkeys((*whole, *real), 0), "groups": 1})
        if self.alpha > 1:
            raise ValueError(f"Recipe: alpha: expected a share from 0 to 1, got {self.alpha}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"Recipe: temperature: expected a finite positive number, got {self.temperature}")

    def but(self, **changes: Any) -> Recipe:
        """Return this recipe with some settings changed."""
        return replace(self, **changes)


class Diverged(FloatingPointError):
    """The loss or a gradient is not finite.

    The message names the step, the student's layer in which it happened (or the part of the model that predicts it) and
    the last good checkpoint.
    """


@dataclass(frozen=True)
class History:
    """What a run did: the loss of every step and (step, score) of every validation, the best of them kept.

    seconds: the time it took, with that before an interrupt (up to the checkpoint that it went on from).
    """

    losses: list[float]
    validations: list[tuple[int, float]]
    seconds: float = field(default=0.0, compare=False)


def permute_head(
    rows: Tensor, model: StudentModel, teachers: Sequence[int], head: int, orders: Sequence[Tensor]
) -> Tensor:
    """Return the rows buffer with the classifier rows of group g's teachers in the order orders[g] [classes]."""
    layout, copies = model.layout, sum(teachers)
    parts = list(rows.split([copies * layer.rows * layer.stride for layer in layout.layers]))
    block = parts[head].view(copies, layout.rows[head], -1)
    index = torch.stack(list(orders)).repeat_interleave(torch.tensor(teachers), 0).to(rows.device)
    parts[head] = block.gather(1, index[..., None].expand_as(block)).flatten()
    return torch.cat(parts)


def add_noise(rows: Tensor, model: StudentModel, copies: int, deviation: float, generator: torch.Generator) -> Tensor:
    """Return the rows with Gaussian noise of `deviation` in the normalised domain."""
    noisy = rows.clone()
    blocks = model.layout.row_blocks(noisy, copies)
    for block, scale in zip(blocks, model.layout.column_blocks(model.scale), strict=True):
        noise = torch.randn(block.shape, generator=generator).to(block)
        block.add_(noise * scale, alpha=deviation)
    return noisy


def has_bfloat16(device: torch.device) -> bool:
    """Return whether `device` multiplies bfloat16 in hardware, so that autocast to it saves time."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def fit(
    model: StudentModel,
    student: nn.Module,
    task: Task,
    recipe: Recipe,
    *,
    head: int,
    validate: Callable[[StudentModel], float] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> History:
    """Meta-train `model` in place and leave it with the best parameters on validation (the last without it).

    Every step predicts a student for each of `recipe.groups` groups of teachers in one ragged batch, runs the students
    through `torch.func.functional_call` with BatchNorm in batch mode and descends their mean loss.

    Args:
        student: an untrained network of the teachers' architecture, left as it is; its own weights are never used.
        task: draws the next group and batch from the generator it is given.
        head: index of the classifier layer in the layout (`weightformer.rows.head`).
        validate: returns a score, higher is better, every `recipe.validate_every` steps and after the last.
        checkpoint: file to which the state of the run goes every `recipe.checkpoint_every` steps and at the end; if it
            exists and belongs to the same recipe, the run goes on from there and ends as if it had never stopped, at
            once where it had ended. Remove it when what the model is for has been written.
        progress: called as (steps done, steps in all, loss).

    Everything random follows from recipe.seed; torch's global generator is left as it was found.

    Raises:
        Diverged: the loss or a gradient is NaN or infinite; the model then holds the best parameters on validation, or
            without any validation so far those before the step that failed.
        ValueError: `checkpoint` is damaged, or of another recipe, model or pool of teachers.
    """
    run = _Run(model, recipe, checkpoint)
    run.resume()
    device = model.shift.device
    student = deepcopy(student).to(device).train()
    if progress is not None and 0 < recipe.steps == run.saved:
        progress(recipe.steps, recipe.steps, run.history.losses[-1])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        while run.step < recipe.steps:
            # Dropout, here and in the student, draws from the global generator; a resumed run must draw the same.
            torch.manual_seed((recipe.seed * recipe.steps + run.step) % 2**63)
            model.train()
            run.descend(student, *_step_loss(model, student, task, recipe, head, run.generator))
            done = run.step
            if validate is not None and (
                done == recipe.steps or (recipe.validate_every and done % recipe.validate_every == 0)
            ):
                run.keep_if_best(validate(model))
            if recipe.checkpoint_every and done % recipe.checkpoint_every == 0 and done < recipe.steps:
                run.save()
            if progress is not None:
                progress(done, recipe.steps, run.history.losses[-1])
    return run.finish()


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_bfloat16(device))


def _step_loss(
    model: StudentModel, student: nn.Module, task: Task, recipe: Recipe, head: int, generator: torch.Generator
) -> tuple[Tensor, list[State], list[Example]]:
    """Return the loss of one step, the predicted students and what each was judged on."""
    examples = [task(generator) for _ in range(recipe.groups)]
    teachers = [len(example.teachers) for example in examples]
    rows = model.pack([example.teachers for example in examples])
    orders = [torch.arange(model.layout.rows[head]) for _ in examples]
    if recipe.permute_labels:
        orders = [torch.randperm(len(order), generator=generator) for order in orders]
        rows = permute_head(rows, model, teachers, head, orders)
    if recipe.noise:
        rows = add_noise(rows, model, sum(teachers), recipe.noise, generator)
    device = rows.device
    with _autocast(device):
        losses, predicted = [], model(rows, teachers)
        for weights, example, order in zip(predicted, examples, orders, strict=True):
            scores = functional_call(student, weights, (example.images,))
            # Back to the order of the labels: score j belongs to class order[j].
            scores = scores[:, order.argsort().to(device)].float()
            losses.append(distillation_loss(scores, example.labels, example.targets, recipe.alpha, recipe.temperature))
        loss = torch.stack(losses).mean()
        return loss + model.penalty(rows, teachers, recipe.sparsity, recipe.shift), predicted, examples


class _Run:
    """The state of one run: optimiser, generator, best parameters, history; saved and resumed as a whole."""

    def __init__(self, model: StudentModel, recipe: Recipe, checkpoint: str | os.PathLike[str] | None) -> None:
        self.model, self.recipe = model, recipe
        self.path = None if checkpoint is None else Path(checkpoint)
        special = model.fast_parameters()
        ordinary = [p for p in model.parameters() if not any(p is q for q in special)]
        rate = recipe.learning_rate
        groups: list[dict[str, Any]] = [{"params": ordinary, "lr": rate, "weight_decay": recipe.weight_decay}]
        if special:
            groups.append({"params": special, "lr": rate * recipe.prior_rate, "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.history = History([], [])
        self.best: dict[str, Tensor] | None = None
        self.saved: int | None = None  # step of the checkpoint
        self.begun = time.perf_counter()

    def _rate(self, step: int) -> float:
        if step < self.recipe.warmup:
            return (step + 1) / self.recipe.warmup
        through = (step - self.recipe.warmup) / max(self.recipe.steps - self.recipe.warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * min(through, 1.0)))

    @property
    def step(self) -> int:
        return len(self.history.losses)

    @property
    def seconds(self) -> float:
        """The time that the run took so far, in this process and in those before it."""
        return self.history.seconds + time.perf_counter() - self.begun

    def descend(self, student: nn.Module, loss: Tensor, predicted: list[State], examples: list[Example]) -> None:
        value = loss.item()
        if not math.isfinite(value):
            images, targets = [e.images for e in examples], [e.targets for e in examples]
            with _autocast(loss.device):
                where = divergence.of_loss(self.model, student, predicted, images, targets)
            raise self._diverged(f"the loss is {value}: {where}")
        self.optimizer.zero_grad()
        divergence.watch(predicted)
        loss.backward()
        norm = get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        if not math.isfinite(norm.item()):
            raise self._diverged(divergence.of_gradient(self.model, predicted))
        clip_grads_with_norm_(self.model.parameters(), self.recipe.clip, norm)
        self.optimizer.step()
        self.schedule.step()
        self.history.losses.append(value)

    def _diverged(self, reason: str) -> Diverged:
        self._restore_best()
        kept = "no checkpoint was kept" if self.path is None else "there is no checkpoint yet"
        if self.saved is not None:
            kept = f"the last good checkpoint, of step {self.saved}, is {self.path}"
        return Diverged(f"fit: step {self.step + 1}: {reason}; lower the learning rate or check the data; {kept}")

    def keep_if_best(self, score: float) -> None:
        earlier = [s for _, s in self.history.validations if not math.isnan(s)]
        if score > max(earlier, default=-math.inf):
            self.best = {name: t.detach().clone() for name, t in self.model.state_dict().items()}
        self.history.validations.append((self.step, score))

    def _restore_best(self) -> None:
        if self.best is not None:
            self.model.load_state_dict(self.best)
        self.model.eval()

    def save(self) -> None:
        if self.path is None:
            return
        state = {
            "recipe": asdict(self.recipe),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "losses": self.history.losses,
            "validations": self.history.validations,
            "seconds": self.seconds,
            "best": self.best,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.part")
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        self.saved = self.step

    def resume(self) -> None:
        if self.path is None or not self.path.exists():
            return
        remedy = "remove it or give another name"
        try:
            state = dict(torch.load(self.path, weights_only=True, map_location=self.model.shift.device))
            recipe, model, seconds = state["recipe"], state["model"], float(state["seconds"])
        except Exception as error:  # a damaged file can fail the reader in any way
            raise ValueError(f"fit: checkpoint: {self.path} is damaged or no checkpoint of fit; {remedy}") from error
        if recipe != asdict(self.recipe):
            raise ValueError(f"fit: checkpoint: {self.path} belongs to another recipe; {remedy}")
        if not self._fits(model):
            raise ValueError(f"fit: checkpoint: {self.path} belongs to another model or pool of teachers; {remedy}")
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.history, self.begun = History(state["losses"], state["validations"], seconds), time.perf_counter()
        self.schedule.last_epoch = self.step
        self.best = state["best"]
        self.saved = self.step

    def _fits(self, saved: Mapping[str, Tensor]) -> bool:
        """Return whether `saved` has this model's parameters and, untouched by training, its buffers."""
        own = self.model.state_dict()
        trained = {name for name, _ in self.model.named_parameters()}
        return own.keys() == saved.keys() and all(
            t.shape == saved[name].shape and (name in trained or torch.allclose(t, saved[name]))
            for name, t in own.items()
        )

    def finish(self) -> History:
        if self.saved != self.recipe.steps:
            self.save()
            self.history = replace(self.history, seconds=self.seconds)
        self._restore_best()
        return self.history
