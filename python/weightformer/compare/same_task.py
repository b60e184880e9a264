"""Teachers that all solve one task: independent seeds (R1), or a shared initialisation with private data (R2)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from weightformer import data, evaluate, regimes, rows, views
from weightformer.align import Aligner
from weightformer.baselines import Result, Setting
from weightformer.baselines.average_ensemble import average_ensemble
from weightformer.baselines.constant import reordered
from weightformer.baselines.distillation import distillation
from weightformer.baselines.single import single
from weightformer.baselines.weight_mean import weight_mean
from weightformer.compare.controls import ConstantStudent, in_order, with_layer_of
from weightformer.compare.device import on
from weightformer.compare.table import Comparison, Gate, Judged
from weightformer.config import Config, preset
from weightformer.data import Dataset
from weightformer.finetune import bank_logits, finetune, soft_targets
from weightformer.fit import Example, Recipe, fit
from weightformer.model import State, StudentModel, WeightFormer
from weightformer.predictor import Predictor
from weightformer.progress import bar
from weightformer.teachers import TeacherPool

TEMPERATURE = 2.0

# From the number of a group to what a method makes of it.
Method = Callable[[int], Result | Sequence[Result]]


@dataclass(frozen=True)
class Plan:
    """One comparison: where the teachers come from, the model, and how long everything trains.

    sizes: T of the groups in meta-training. paper: also fit the paper's form. distillation: steps of the student from
    scratch. tuning: steps of the fine-tuned rows.
    """

    title: str
    pool: Callable[..., TeacherPool]
    recipe: Recipe
    config: Config = preset("recipe")
    aligned: bool = True
    group: int = 3
    sizes: tuple[int, ...] = (2, 3, 5)
    batch_size: int = 64
    paper: bool = True
    distillation: int = 400
    tuning: tuple[int, ...] = (25,)
    independent_seeds: bool = True
    views: int = 30
    data: Callable[[], Dataset] = data.mnist


SHARED = Plan(
    title="Shared initialisation and private data, MNIST 14x14",
    pool=partial(regimes.shared_initialisation, settings=regimes.SharedInitialisation()),
    config=preset("shared-init"),
    recipe=Recipe(steps=600, learning_rate=1e-3, permute_labels=True),
    aligned=False,
    sizes=(3,),
    independent_seeds=False,
)


class Bench:
    """The pool, the data and what every method of one comparison shares."""

    def __init__(self, plan: Plan, seed: int, device: str, folder: Path | None) -> None:
        self.plan, self.seed, self.device, self.folder = plan, seed, device, folder
        dataset = plan.data()
        teachers = None if folder is None else folder / "teachers"
        with bar("teachers") as tell:
            pool = plan.pool(dataset, seed=seed, folder=teachers, device=device, progress=tell)
        self.dataset, self.pool = on(dataset, device), on(pool, device)
        self.train, self.test = self.pool.select("train"), self.pool.select("test")
        self.bank = views.bank(dataset.train, plan.views).to(device)
        self.calibration = self.bank[:, :2].flatten(0, 1)
        self.setting = Setting(self.pool.create, self.calibration, self.bank, self.dataset.train.labels)
        self.student = self.pool.create(0).to(device)
        self.layout = rows.layout(self.student)
        self.head = rows.head(self.layout, classes=self.dataset.classes)
        self.judged = Judged(self.dataset.test, self.dataset.validation)
        self.groups = self.test.groups(plan.group)
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
    """Meta-train `model` with a progress bar, going on from a checkpoint in `folder`; return the seconds it took."""
    checkpoint = None if folder is None else folder / f"{title.replace(' ', '-').lower()}.checkpoint"
    start = time.perf_counter()
    with bar(title) as tell:
        fit(
            model,
            pool.create(1),
            task,
            recipe,
            head=head,
            validate=validate,
            checkpoint=checkpoint,
            progress=lambda done, steps, _: tell(done, steps),
        )
    return time.perf_counter() - start


def run(plan: Plan, seed: int, device: str = "cpu", folder: Path | None = None) -> tuple[Comparison, Predictor]:
    """Run one comparison; return the table and the fitted predictor."""
    bench = Bench(plan, seed, device, folder)
    states = bench.aligned(bench.train.states)
    torch.manual_seed(seed)
    model = WeightFormer(bench.layout, plan.config.but(head=bench.head)).to(device)
    model.set_statistics(states, bench.head)
    if plan.config.output == "prior":
        model.set_prior(states[0], bench.head)
    seconds = bench.fitted("WeightFormer", model, states, _seeded(plan.recipe, seed))
    predictor = Predictor(
        model,
        bench.pool.architecture,
        bench.pool.arguments,
        bench.calibration,
        bench.train.states[0] if plan.aligned else None,
        bench.dataset.train.images if plan.aligned else None,
    )
    table = Comparison(plan.title, seed, len(bench.groups))
    table.facts.append(("meta-training of the WeightFormer, shared by all groups", seconds, "s"))
    table.facts.append(("meta-training steps", plan.recipe.steps, "steps"))
    orders = _orders(bench, seed)
    baselines(bench, table)
    predictions = one_pass(bench, table, model, orders)
    tuned(bench, table, predictions)
    if plan.paper:
        papers_form(bench, table, orders, seed)
    controls(bench, table, model, orders, states, seed)
    _kl(bench, table, predictions)
    _gates(plan, table)
    return table, predictor


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    return recipe.but(seed=seed)


def _orders(bench: Bench, seed: int) -> list[Tensor]:
    """Return an unseen order of the classes for every held-out group."""
    generator = torch.Generator().manual_seed(seed + 1)
    return [torch.randperm(bench.dataset.classes, generator=generator) for _ in bench.groups]


def _states(bench: Bench, group: int) -> list[State]:
    return [bench.test.states[i] for i in bench.groups[group]]


def baselines(bench: Bench, table: Comparison) -> None:
    """Add single teachers, ensembles, weight means and distillation."""
    plan, setting, aligner = bench.plan, bench.setting, bench.aligner

    def singles(g: int) -> list[Result]:
        states = _states(bench, g)
        return [single(states, setting, index=i) for i in range(len(states))]

    def mean(g: int) -> Result:
        return weight_mean(_states(bench, g), setting)

    def distilled(steps: int, start: Callable[[int], State] | None = None) -> Method:
        def run(g: int) -> Result:
            targets = bench.targets(bench.test, bench.groups[g])
            first = None if start is None else start(g)
            seed = bench.seed + g
            return distillation(_states(bench, g), setting, steps=steps, start=first, targets=targets, seed=seed)

        return run

    methods: dict[str, Method] = {
        "single teacher": singles,
        "ensemble": lambda g: average_ensemble(_states(bench, g), setting),
        "ensemble of logits": lambda g: average_ensemble(_states(bench, g), setting, of="logits"),
        "weight mean": mean,
    }
    if aligner is not None:
        methods["aligned weight mean"] = lambda g: weight_mean(_states(bench, g), setting, aligner=aligner)
    for steps in plan.tuning:
        methods[f"teacher + {steps} steps"] = distilled(steps, lambda g: _states(bench, g)[0])
        if not plan.aligned:
            methods[f"weight mean + {steps} steps"] = distilled(steps, lambda g: _weights(mean(g)))
    methods[f"distillation, {plan.distillation} steps"] = distilled(plan.distillation)
    with bar("baselines") as tell:
        for done, (name, method) in enumerate(methods.items(), 1):
            table.add(name, "baseline", [bench.judged] * len(bench.groups), method)
            tell(done, len(methods))


def _weights(result: Result) -> State:
    assert result.state is not None, f"{result.name} is not one network"
    return result.state


def predicted(
    bench: Bench, model: StudentModel, states: Sequence[State], order: Tensor, aligned: bool = True
) -> dict[str, Tensor]:
    """Return the student predicted from teachers whose classes were put into `order` first, put back afterwards."""
    prepared = bench.aligned(states) if aligned else list(states)
    shuffled = [in_order(state, bench.layout, bench.head, order) for state in prepared]
    return in_order(model.predict(shuffled), bench.layout, bench.head, order.argsort())


def one_pass(bench: Bench, table: Comparison, model: StudentModel, orders: list[Tensor]) -> list[Result]:
    """Add the prediction in one pass, from unseen teachers in an unseen order of the classes."""
    judged = [bench.judged] * len(bench.groups)
    name = "WeightFormer, one pass"

    def predict(g: int) -> Result:
        return bench.setting.result(name, predicted(bench, model, _states(bench, g), orders[g]))

    results = table.add(name, "weightformer", judged, predict)
    aligned = [bench.aligned(_states(bench, g)) for g in range(len(bench.groups))]
    model.predict(aligned[0])
    start = time.perf_counter()
    for states in aligned:
        model.predict(states)
    milliseconds = 1000 * (time.perf_counter() - start) / len(aligned)
    table.facts.append(("one prediction, without alignment and running statistics", milliseconds, "ms"))
    return results


def tuned(bench: Bench, table: Comparison, predictions: list[Result]) -> None:
    """Add the prediction after a few steps of distillation."""
    judged = [bench.judged] * len(bench.groups)
    for steps in bench.plan.tuning:

        def tune(g: int, steps: int = steps) -> Result:
            state = finetune(
                bench.student,
                bench.bank,
                bench.dataset.train.labels,
                bench.targets(bench.test, bench.groups[g]),
                steps=steps,
                start=predictions[g].state,
                seed=bench.seed,
            )
            return bench.setting.result(f"WeightFormer + {steps} steps", state, steps)

        table.add(f"WeightFormer + {steps} steps", "weightformer", judged, tune)


def papers_form(bench: Bench, table: Comparison, orders: list[Tensor], seed: int) -> None:
    """Add the paper's own form at the same size: raw tokens, plain output, a fixed order of the classes."""
    torch.manual_seed(seed)
    model = WeightFormer(bench.layout, preset("paper-small")).to(bench.device)
    model.set_statistics(bench.train.states)
    recipe = _seeded(bench.plan.recipe, seed).but(permute_labels=False, noise=0.0)
    bench.fitted("the paper's form", model, bench.train.states, recipe)
    judged = [bench.judged] * len(bench.groups)
    classes = torch.arange(bench.dataset.classes)

    def predict(g: int) -> Result:
        state = predicted(bench, model, _states(bench, g), classes, aligned=False)
        return bench.setting.result("paper", state)

    table.add("the paper's form, one pass", "weightformer", judged, predict, note="raw tokens, plain output")


def controls(
    bench: Bench,
    table: Comparison,
    model: WeightFormer,
    orders: list[Tensor],
    states: Sequence[State],
    seed: int,
) -> None:
    """Add what a model reaches that may not read, or is given other weights to read."""
    judged = [bench.judged] * len(bench.groups)
    constant = ConstantStudent(bench.layout, states[0]).to(bench.device)
    recipe = _seeded(bench.plan.recipe, seed).but(permute_labels=False, noise=0.0)
    bench.fitted("constant student", constant, states, recipe)
    fixed = bench.setting.result("constant student", constant.predict(states[:1]), recipe.steps)
    table.add("constant student", "control", judged, lambda g: fixed, note="ignores the teachers, knows the order")
    images = bench.dataset.train.images
    table.add(
        "constant + Hungarian",
        "control",
        judged,
        lambda g: reordered(fixed, _states(bench, g), bench.setting, images=images),
        note="order from the ensemble's outputs",
    )
    size = bench.plan.group

    def untrained(g: int) -> Result:
        networks = [bench.pool.create(10_000 + seed + size * g + i).state_dict() for i in range(size)]
        return bench.setting.result("untrained", predicted(bench, model, networks, orders[g]))

    table.add("untrained networks as teachers", "control", judged, untrained)
    trunk = [i for i in range(len(bench.layout.layers)) if i != bench.head]
    for layers, name in ((trunk, "trunk"), ([bench.head], "head")):

        def swapped(g: int, layers: list[int] = layers) -> Result:
            own = bench.aligned(_states(bench, g))
            other = [states[(size * g + i) % len(states)] for i in range(size)]
            mixed = [with_layer_of(a, b, bench.layout, layers) for a, b in zip(own, other, strict=True)]
            return bench.setting.result("swapped", predicted(bench, model, mixed, orders[g], aligned=False))

        table.add(f"{name} tokens of training teachers", "control", judged, swapped)


def _kl(bench: Bench, table: Comparison, predictions: list[Result]) -> None:
    """Measure how much closer a student is to its own ensemble than to those of other groups."""
    images = bench.dataset.test.images
    ensembles = [average_ensemble(_states(bench, g), bench.setting).logits(images) for g in range(len(bench.groups))]
    students = [result.logits(images) for result in predictions]
    pairs = [(i == j, evaluate.kl(e, s)) for i, e in enumerate(ensembles) for j, s in enumerate(students)]
    table.facts.append(("KL to the own ensemble", fmean(kl for own, kl in pairs if own), "nats"))
    table.facts.append(("KL to other groups' ensembles", fmean(kl for own, kl in pairs if not own), "nats"))


def _gates(plan: Plan, table: Comparison) -> None:
    """Say what the run was to reach."""
    single_, ensemble = table.row("single teacher").accuracy, table.row("ensemble").accuracy
    one = table.row("WeightFormer, one pass").accuracy
    if plan.independent_seeds:
        untrained = table.row("untrained networks as teachers").accuracy
        table.gates += [
            Gate("one pass, over a single teacher", one - single_, 1.0),
            Gate("one pass, over the ensemble", one - ensemble, -0.5),
            Gate("untrained networks as teachers", untrained, 20.0, at_most=True),
        ]
        return
    values = {what: value for what, value, _ in table.facts}
    ratio = values["KL to the own ensemble"] / values["KL to other groups' ensembles"]
    steps = plan.tuning[0]
    table.gates += [
        Gate("one pass, over the weight mean", one - table.row("weight mean").accuracy, 0.0),
        Gate("one pass, over the ensemble", one - ensemble, -0.3),
        Gate(f"{steps} steps, over the ensemble", table.row(f"WeightFormer + {steps} steps").accuracy - ensemble, 0.0),
        Gate("KL to the own ensemble, over KL to others", ratio, 0.5, at_most=True),
    ]
