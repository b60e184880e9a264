"""Specialists: fine-tunes of one base, each group of teachers in a domain that nobody has seen before.

Prior matching ("pm") is a free step after any method, so every method is shown without and with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from weightformer import domains, evaluate, regimes, rows
from weightformer.baselines import Result, Setting
from weightformer.baselines.average_ensemble import average_ensemble
from weightformer.baselines.cross_entropy import cross_entropy
from weightformer.baselines.distillation import distillation
from weightformer.baselines.head_counts import head_counts
from weightformer.baselines.known_counts import known_counts
from weightformer.baselines.prior_matching import match_prior
from weightformer.baselines.single import single
from weightformer.baselines.task_arithmetic import task_arithmetic
from weightformer.baselines.weight_mean import weight_mean
from weightformer.compare.controls import ConstantStudent, MeanAndDelta, in_order
from weightformer.compare.device import on
from weightformer.compare.same_task import fitted
from weightformer.compare.table import Comparison, Gate, Judged, Kind
from weightformer.config import Config, preset
from weightformer.domains import Domain, SpecialistData
from weightformer.fit import Example, Recipe
from weightformer.model import State, StudentModel, WeightFormer
from weightformer.predictor import Predictor
from weightformer.progress import bar
from weightformer.rows import tensors
from weightformer.teachers import Teacher, TeacherPool
from wfkernels import pack

PROXY = 100  # unlabelled images of a group's domain, ten of each class


@dataclass(frozen=True)
class Plan:
    """One comparison of specialists: the pool, the model, and how long everything trains."""

    title: str = "Specialists of one base, each group in an unseen domain, MNIST 14x14"
    regime: regimes.Specialists = regimes.Specialists(train=160, test=32)
    config: Config = preset("specialists")
    recipe: Recipe = Recipe(steps=2400, learning_rate=2e-3, warmup=40, groups=3, noise=0.3)
    delta: Recipe = Recipe(steps=300, learning_rate=2e-3, warmup=40, groups=3)
    batch_size: int = 48
    group: int = 3
    tuning: int = 100
    data: Callable[[], SpecialistData] = domains.mnist_specialists


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

    def __init__(self, plan: Plan, seed: int, device: str, folder: Path | None) -> None:
        self.plan, self.seed, self.device, self.folder = plan, seed, device, folder
        data: SpecialistData = domains.mnist_specialists()
        teachers = None if folder is None else folder / "teachers"
        with bar("teachers") as tell:
            pool = regimes.specialists(data, plan.regime, seed=seed, folder=teachers, device=device, progress=tell)
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


def run(plan: Plan, seed: int, device: str = "cpu", folder: Path | None = None) -> tuple[Comparison, Predictor]:
    """Run the comparison of specialists; return the table and the fitted predictor."""
    bench = Bench(plan, seed, device, folder)
    torch.manual_seed(seed)
    model = WeightFormer(bench.layout, plan.config.but(head=bench.head), base=bench.base_rows).to(device)
    model.set_statistics(bench.train.states, bench.head)

    def validate(candidate: StudentModel) -> float:
        scores = []
        for group in bench.validation:
            network = group.setting.network(bench.predicted(candidate, group))
            seen = group.judged.validation
            scores.append((evaluate.logits(network, seen.images).argmax(1) == seen.labels).float().mean().item())
        return 100 * sum(scores) / len(scores)

    seconds = bench.fitted("WeightFormer", model, plan.recipe, validate)
    table = Comparison(plan.title, seed, len(bench.groups))
    table.facts.append(("meta-training of the WeightFormer, shared by all groups", seconds, "s"))
    table.facts.append(("meta-training steps", plan.recipe.steps, "steps"))
    table.facts.append(("accuracy of one pass on the validation domains", validate(model), "%"))
    baselines(bench, table)
    one_pass(bench, table, model)
    controls(bench, table, model)
    _gates(table)
    return table, Predictor(model, bench.pool.architecture, bench.pool.arguments)


def _add(
    bench: Bench, table: Comparison, method: str, kind: Kind, make: Callable[[Group], Result], note: str = ""
) -> list[Result]:
    """Add a method's row and that of the same networks with prior matching."""
    judged = [group.judged for group in bench.groups]
    results = table.add(method, kind, judged, lambda g: make(bench.groups[g]), note=note)
    table.add(f"{method} + pm", kind, judged, lambda g: match_prior(results[g], bench.groups[g].proxy), note=note)
    return results


def baselines(bench: Bench, table: Comparison) -> None:
    """Add everything that is published or obvious for fine-tunes of one base."""
    plan, judged = bench.plan, [group.judged for group in bench.groups]

    def singles(g: int) -> list[Result]:
        group = bench.groups[g]
        return [single(group.states, group.setting, index=i) for i in range(len(group.states))]

    with bar("baselines") as tell:
        table.add("single teacher", "baseline", judged, singles)
        table.add(
            "single teacher + pm",
            "baseline",
            judged,
            lambda g: [match_prior(result, bench.groups[g].proxy) for result in singles(g)],
        )
        methods: list[tuple[str, Callable[[Group], Result], str]] = [
            ("ensemble", lambda g: average_ensemble(g.states, g.setting), ""),
            ("ensemble of logits", lambda g: average_ensemble(g.states, g.setting, of="logits"), ""),
            (
                "ensemble / known counts",
                lambda g: known_counts(g.states, g.setting, counts=g.counts),
                "needs the teachers' class counts",
            ),
            ("weight mean", lambda g: weight_mean(g.states, g.setting), ""),
            ("task arithmetic x1.5", lambda g: task_arithmetic(g.states, g.setting, base=bench.base, scale=1.5), ""),
            (
                "weight mean, head by counts",
                lambda g: head_counts(g.states, g.setting, counts=g.counts),
                "needs the teachers' class counts",
            ),
            (
                f"weight mean + distillation {plan.tuning}",
                lambda g: distillation(
                    g.states, g.setting, steps=plan.tuning, start=weight_mean(g.states, g.setting).state, alpha=1.0
                ),
                "on the unlabelled proxy",
            ),
            (
                f"weight mean + cross-entropy {plan.tuning}",
                lambda g: cross_entropy(g.labelled, steps=plan.tuning, start=weight_mean(g.states, g.setting).state),
                f"{PROXY} labels of the group's domain",
            ),
        ]
        for done, (name, make, note) in enumerate(methods, 1):
            _add(bench, table, name, "baseline", make, note)
            tell(done, len(methods))


def one_pass(bench: Bench, table: Comparison, model: WeightFormer) -> None:
    """Add the prediction from unseen teachers of unseen domains, and the time it takes."""
    name = "WeightFormer, one pass"
    _add(bench, table, name, "weightformer", lambda g: g.setting.result(name, bench.predicted(model, g)))
    start = time.perf_counter()
    for group in bench.groups:
        model.predict(group.states)
    milliseconds = 1000 * (time.perf_counter() - start) / len(bench.groups)
    table.facts.append(("one prediction, without running statistics", milliseconds, "ms"))


def controls(bench: Bench, table: Comparison, model: WeightFormer) -> None:
    """Add what a model reaches that may not read its teachers, or reads others."""
    mean = weight_mean(bench.train.states, Setting(bench.pool.create)).state
    assert mean is not None
    constant = ConstantStudent(bench.layout, mean).to(bench.device)
    bench.fitted("constant student", constant, bench.plan.recipe.but(permute_labels=False, noise=0.0))
    delta = MeanAndDelta(bench.layout, bench.head).to(bench.device)
    bench.fitted("mean and one delta", delta, bench.plan.delta)

    def constant_of(group: Group) -> Result:
        return group.setting.result("constant", constant.predict(group.states))

    _add(bench, table, "constant student", "control", constant_of, "ignores the teachers, knows the order")
    _add(
        bench,
        table,
        "weight mean + one learned delta",
        "control",
        lambda g: g.setting.result("delta", bench.predicted(delta, g)),
        "the same delta for every group",
    )
    groups = bench.groups
    other = {id(group): groups[(i + 1) % len(groups)] for i, group in enumerate(groups)}
    _add(
        bench,
        table,
        "tokens of another group",
        "control",
        lambda g: g.setting.result("tokens", bench.predicted(model, g, other[id(g)].states)),
        "own task vectors, gates and delta from others",
    )

    def foreign(group: Group) -> Result:
        state = bench.predicted(model, other[id(group)])
        return group.setting.result("foreign", state)

    _add(bench, table, "student of another group", "control", foreign)

    def untrained(group: Group) -> Result:
        index = groups.index(group)
        size = bench.plan.group
        seeds = range(10_000 + bench.seed + size * index, 10_000 + bench.seed + size * (index + 1))
        networks = [bench.pool.create(seed).state_dict() for seed in seeds]
        shuffled = [in_order(state, bench.layout, bench.head, group.order) for state in networks]
        state = in_order(model.predict(shuffled), bench.layout, bench.head, group.order.argsort())
        return group.setting.result("untrained", state)

    _add(bench, table, "untrained networks as teachers", "control", untrained)
    images = [group.judged.test.images for group in groups]
    ensembles = [average_ensemble(g.states, g.setting) for g in groups]
    students = [g.setting.result("wf", bench.predicted(model, g)) for g in groups]
    pairs = []
    for i, student in enumerate(students):
        seen = student.logits(images[i])
        pairs += [(i == j, evaluate.kl(ensemble.logits(images[i]), seen)) for j, ensemble in enumerate(ensembles)]
    table.facts.append(("KL to the own ensemble", fmean(kl for own, kl in pairs if own), "nats"))
    table.facts.append(("KL to other groups' ensembles", fmean(kl for own, kl in pairs if not own), "nats"))


def _gates(table: Comparison) -> None:
    one, ensemble = table.row("WeightFormer, one pass"), table.row("ensemble")
    mean, swapped = table.row("weight mean").accuracy, table.row("tokens of another group").accuracy
    table.gates += [
        Gate("one pass, over the ensemble", one.accuracy - ensemble.accuracy, 2.0),
        Gate("groups on which one pass wins, of the groups", one.wins(ensemble), 0.75 * table.groups),
        Gate("one pass, over the weight mean", one.accuracy - mean, 10.0),
        Gate("one pass, over tokens of another group", one.accuracy - swapped, 15.0),
        Gate("constant student", table.row("constant student").accuracy, 45.0, at_most=True),
    ]
