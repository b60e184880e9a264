"""Teachers that all solve one task: the plan of a comparison, its pool and data, and how models are fitted on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from weightformer import bounds, evaluate, regimes, rows, views
from weightformer.align import Aligner
from weightformer.baselines import Setting
from weightformer.compare.device import on
from weightformer.compare.table import Judged
from weightformer.config import Config, preset
from weightformer.finetune import bank_logits, soft_targets
from weightformer.fit import Example, Recipe, fit
from weightformer.model import StudentModel, WeightFormer
from weightformer.predictor import Predictor
from weightformer.progress import bar
from weightformer.source import Source
from weightformer.state import State
from weightformer.teachers import TeacherPool

TEMPERATURE = 2.0


@dataclass(frozen=True)
class Plan:
    """One comparison: where the teachers come from, the model, and how long everything trains.

    group: T of the held-out groups; sizes: T of the groups in meta-training. paper: also fit the paper's form.
    distillation: steps of the student from scratch. tuning: steps of the fine-tuned rows.
    """

    title: str
    regime: regimes.Independent | regimes.SharedInitialisation
    recipe: Recipe
    model: Config = preset("recipe")
    arch: str = "vgg"
    data: Source = Source()
    aligned: bool = True
    group: int = 3
    sizes: tuple[int, ...] = (2, 3, 5)
    batch_size: int = 64
    paper: bool = True
    distillation: int = 400
    tuning: tuple[int, ...] = (25,)
    independent_seeds: bool = True
    views: int = 30

    def __post_init__(self) -> None:
        bounds.check(self, dict.fromkeys(("group", "sizes", "batch_size", "distillation", "tuning", "views"), 1))
        bounds.check_some(self, "sizes", "tuning")

    def check_teachers(self) -> None:
        """Raise ValueError where the regime does not bring the teachers that a comparison needs."""
        regime = self.regime
        self.check_sizes(
            regime.train if isinstance(regime, regimes.SharedInitialisation) else regime.fast + regime.slow
        )
        if self.group > regime.test:
            raise ValueError(f"Plan: group: expected at most the {regime.test} test teachers, got {self.group}")

    def check_sizes(self, trained: int) -> None:
        """Raise ValueError where the largest group of the meta-training needs more than `trained` teachers."""
        if max(self.sizes) > trained:
            raise ValueError(f"Plan: sizes: expected at most the {trained} training teachers, got {max(self.sizes)}")


SHARED = Plan(
    title="Shared initialisation and private data, MNIST 14x14",
    # Of six test teachers nearly every two groups share some, and a group's own ensemble hardly differs from others'.
    regime=regimes.SharedInitialisation(test=12),
    model=preset("shared-init"),
    recipe=Recipe(steps=600, learning_rate=1e-3, permute_labels=True),
    aligned=False,
    sizes=(3,),
    independent_seeds=False,
)


class Bench:
    """The pool, the data and what every method of one comparison shares."""

    def __init__(
        self, plan: Plan, seed: int, device: str, folder: Path | None, pool: TeacherPool | None = None
    ) -> None:
        """Train the teachers into `folder`, or take those of `pool`; `folder` also keeps interrupted fits."""
        self.plan, self.seed, self.device, self.folder = plan, seed, device, folder
        dataset = plan.data.load()
        if pool is None:
            teachers = None if folder is None else folder / "teachers"
            with bar("teachers") as tell:
                options = {"seed": seed, "folder": teachers, "device": device, "progress": tell}
                pool = regimes.train_teachers(dataset, plan.regime, architecture=plan.arch, **options)
        self.dataset, self.pool = on(dataset, device), on(pool, device)
        self.train, self.test = self.pool.select("train"), self.pool.select("test")
        plan.check_sizes(len(self.train))
        self.bank = views.bank(dataset.train, plan.views).to(device)
        self.calibration = self.bank[:, :2].flatten(0, 1)
        self.setting = Setting(self.pool.create, self.calibration, self.bank, self.dataset.train.labels)
        self.student = self.pool.create(0).to(device)
        self.layout = rows.layout(self.student)
        self.head = rows.head(self.layout, classes=self.dataset.classes)
        self.judged = Judged(self.dataset.test, self.dataset.validation)
        self.groups = self.test.groups(plan.group) if len(self.test) else []
        self.aligner: Aligner | None = None
        if plan.aligned:
            anchor = evaluate.with_state(self.student, self.train.states[0])
            self.aligner = Aligner(anchor, self.dataset.train.images)
        self.outputs = self._outputs()

    def _outputs(self) -> dict[str, Tensor]:
        """Return every teacher's logits on the whole bank, so that no step of training runs a teacher."""
        found = {}
        with bar("teachers' outputs") as tell:
            for done, teacher in enumerate(self.pool.teachers, 1):
                found[teacher.key] = bank_logits(self.setting.network(teacher.state), self.bank)
                tell(done, len(self.pool))
        return found

    def aligned(self, states: Sequence[State]) -> list[State]:
        return [self.aligner(state) for state in states] if self.aligner else list(states)

    def targets(self, pool: TeacherPool, chosen: Sequence[int]) -> Tensor:
        """Return the soft targets of some teachers on the whole bank, [n, views, classes]."""
        return soft_targets(torch.stack([self.outputs[pool.teachers[i].key] for i in chosen]), TEMPERATURE)

    def example(self, states: Sequence[State], generator: torch.Generator) -> Example:
        """Draw a group of training teachers and a batch with their ensemble's soft targets."""
        plan = self.plan
        t = plan.sizes[int(torch.randint(len(plan.sizes), (), generator=generator))]
        chosen = self.train.sample(t, generator)
        image = torch.randperm(len(self.bank), generator=generator)[: plan.batch_size]
        view = torch.randint(self.bank.shape[1], (len(image),), generator=generator)
        logits = torch.stack([self.outputs[self.train.teachers[i].key][image, view] for i in chosen])
        labels = self.dataset.train.labels[image]
        return Example([states[i] for i in chosen], self.bank[image, view], labels, soft_targets(logits, TEMPERATURE))

    def fitted(self, title: str, model: StudentModel, states: Sequence[State], recipe: Recipe) -> float:
        """Meta-train `model` on groups of `states`; return the seconds it took."""
        task = partial(self.example, states)
        return fitted(title, model, self.pool, task, recipe, self.head, folder=self.folder)

    def fitted_predictor(self) -> tuple[Predictor, float]:
        """Meta-train a WeightFormer on the training teachers; return it ready to predict, and the seconds it took."""
        plan, states = self.plan, self.aligned(self.train.states)
        torch.manual_seed(self.seed)
        model = WeightFormer(self.layout, plan.model.but(head=self.head)).to(self.device)
        model.set_statistics(states, self.head)
        if plan.model.output == "prior":
            model.set_prior(states[0], self.head)
        seconds = self.fitted("WeightFormer", model, states, plan.recipe.but(seed=self.seed))
        predictor = Predictor(
            model,
            self.pool.architecture,
            self.pool.arguments,
            self.calibration,
            self.train.states[0] if plan.aligned else None,
            self.dataset.train.images if plan.aligned else None,
        )
        return predictor, seconds


def fitted(
    title: str,
    model: StudentModel,
    pool: TeacherPool,
    task: Callable[[torch.Generator], Example],
    recipe: Recipe,
    head: int,
    validate: Callable[[StudentModel], float] | None = None,
    folder: Path | None = None,
) -> float:
    """Meta-train `model` with a progress bar; return the seconds it took, with those before an interrupt.

    A TITLE.checkpoint stays in `folder`, so that a run of several fits repeats none that was finished: remove it when
    the result of the run has been written.
    """
    checkpoint = None if folder is None else folder / f"{title.replace(' ', '-').lower()}.checkpoint"
    with bar(title) as tell:
        history = fit(
            model,
            pool.create(1),
            task,
            recipe,
            head=head,
            validate=validate,
            checkpoint=checkpoint,
            progress=lambda done, steps, _: tell(done, steps),
        )
    return history.seconds
