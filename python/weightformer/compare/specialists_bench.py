"""Specialists: the plan of their comparison, the pool, the domains, and how models are fitted on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from weightformer import bounds, domains, evaluate, regimes, rows
from weightformer.baselines import Setting
from weightformer.compare.controls import in_order
from weightformer.compare.device import on
from weightformer.compare.same_task_bench import fitted
from weightformer.compare.table import Judged
from weightformer.config import Config, preset
from weightformer.domains import Domain
from weightformer.fit import Example, Recipe
from weightformer.model import StudentModel, WeightFormer
from weightformer.predictor import Predictor
from weightformer.progress import bar
from weightformer.rows import tensors
from weightformer.source import Source
from weightformer.state import State
from weightformer.teachers import Teacher, TeacherPool
from wfkernels import pack

PROXY = 100  # unlabelled images of a group's domain, ten of each class


@dataclass(frozen=True)
class Plan:
    """One comparison of specialists: the pool, the model, and how long everything trains."""

    title: str = "Specialists of one base, each group in an unseen domain, MNIST 14x14"
    regime: regimes.Specialists = regimes.Specialists(train=50, teachers=20, test=32)
    model: Config = preset("specialists")
    arch: str = "vgg"
    data: Source = Source()
    recipe: Recipe = Recipe(steps=3600, learning_rate=1.5e-3, warmup=40, groups=8, noise=0.3)
    delta: Recipe = Recipe(steps=300, learning_rate=2e-3, warmup=40, groups=3)
    batch_size: int = 48
    group: int = 3
    tuning: int = 100

    def __post_init__(self) -> None:
        bounds.check(self, {"batch_size": 2, "group": 1, "tuning": 1})

    def check_teachers(self) -> None:
        """Raise ValueError where the regime does not bring the teachers that a comparison needs."""
        teachers = min(self.regime.teachers, self.regime.held_out_teachers)
        if self.group > teachers:
            raise ValueError(f"Plan: group: expected at most the {teachers} teachers of a domain, got {self.group}")
        if not self.regime.test:
            raise ValueError("Plan: regime.test: expected at least one domain to report on, got 0")


@dataclass(frozen=True, eq=False)
class Group:
    """Held-out teachers of one domain with the data of that domain."""

    teachers: tuple[Teacher, ...]
    setting: Setting
    labelled: Setting
    proxy: Tensor  # [PROXY, C, H, W]
    judged: Judged
    order: Tensor  # [classes] an unseen order of the classes

    @property
    def states(self) -> list[State]:
        return [teacher.state for teacher in self.teachers]

    @property
    def counts(self) -> Tensor:
        return torch.tensor([teacher.class_counts for teacher in self.teachers])


class Bench:
    """The pool, the domains and what every method shares."""

    def __init__(
        self, plan: Plan, seed: int, device: str, folder: Path | None, pool: TeacherPool | None = None
    ) -> None:
        """Train the teachers into `folder`, or take those of `pool`; `folder` also keeps interrupted fits."""
        self.plan, self.seed, self.device, self.folder = plan, seed, device, folder
        data = domains.load(plan.data)
        if pool is None:
            teachers = None if folder is None else folder / "teachers"
            with bar("teachers") as tell:
                options = {"seed": seed, "folder": teachers, "device": device, "progress": tell}
                pool = regimes.train_teachers(data, plan.regime, architecture=plan.arch, **options)
        self.data, self.pool = on(data, device), on(pool, device)
        assert self.pool.base is not None
        self.base = self.pool.base
        self.train = self.pool.select("train")
        self.student = self.pool.create(0).to(device)
        self.layout = rows.layout(self.student)
        self.head = rows.head(self.layout, classes=self.data.classes)
        self.base_rows = pack([tensors(self.base, self.layout)], self.layout)
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.groups = self._groups(self.pool.select("test"))
        self.validation = self._groups(self.pool.select("validation"))

    def _groups(self, pool: TeacherPool) -> list[Group]:
        if not len(pool):
            return []
        return [self._group([pool.teachers[i] for i in chosen]) for chosen in pool.groups(self.plan.group)]

    def _group(self, teachers: Sequence[Teacher]) -> Group:
        domain = _domain(teachers[0])
        seen = self.data.render(self.data.proxy[:PROXY], domain)
        bank = seen.images[:, None]
        setting = Setting(self.pool.create, seen.images, bank)
        judged = Judged(self.data.render(self.data.test, domain), self.data.render(self.data.validation, domain))
        order = torch.randperm(self.data.classes, generator=self.generator)
        labelled = Setting(self.pool.create, seen.images, bank, seen.labels)
        return Group(tuple(teachers), setting, labelled, seen.images, judged, order)

    def example(self, generator: torch.Generator) -> Example:
        """Draw teachers of one training domain and labelled images seen through it."""
        chosen = self.train.sample(self.plan.group, generator)
        teachers = [self.train.teachers[i] for i in chosen]
        index = torch.randperm(len(self.data.private), generator=generator)[: self.plan.batch_size]
        seen = self.data.render(self.data.private[index], _domain(teachers[0]))
        return Example([teacher.state for teacher in teachers], seen.images, seen.labels, None)

    def fitted(
        self,
        title: str,
        model: StudentModel,
        recipe: Recipe,
        validate: Callable[[StudentModel], float] | None = None,
    ) -> float:
        recipe = recipe.but(seed=self.seed)
        return fitted(title, model, self.pool, self.example, recipe, self.head, validate, self.folder)

    def validate(self, model: StudentModel) -> float:
        """Return the mean accuracy of the predicted students on the validation domains, in percent."""
        scores = []
        for group in self.validation:
            network = group.setting.network(self.predicted(model, group))
            seen = group.judged.validation
            scores.append((evaluate.logits(network, seen.images).argmax(1) == seen.labels).float().mean().item())
        return 100 * fmean(scores)

    def fitted_predictor(self) -> tuple[Predictor, float]:
        """Meta-train a WeightFormer on the training domains; return it ready to predict, and the seconds it took."""
        plan = self.plan
        torch.manual_seed(self.seed)
        model = WeightFormer(self.layout, plan.model.but(head=self.head), base=self.base_rows).to(self.device)
        model.set_statistics(self.train.states, self.head)
        seconds = self.fitted("WeightFormer", model, plan.recipe, self.validate if self.validation else None)
        return Predictor(model, self.pool.architecture, self.pool.arguments), seconds

    def predicted(self, model: StudentModel, group: Group, tokens: Sequence[State] | None = None) -> dict[str, Tensor]:
        """Return the student of a group in its unseen order of classes, put back; `tokens` replaces what is read."""

        def shuffled(states: Sequence[State]) -> list[State]:
            return [in_order(state, self.layout, self.head, group.order) for state in states]

        own = shuffled(group.states)
        if tokens is None:
            state = model.predict(own)
        else:
            assert isinstance(model, WeightFormer)
            state = model.predict(shuffled(tokens), built_on=own)
        return in_order(state, self.layout, self.head, group.order.argsort())


def _domain(teacher: Teacher) -> Domain:
    assert teacher.domain is not None
    return teacher.domain
