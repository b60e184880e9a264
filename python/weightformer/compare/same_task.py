"""Teachers that all solve one task: independent seeds (R1), or a shared initialisation with private data (R2)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from weightformer.baselines import Result
from weightformer.baselines.average_ensemble import average_ensemble
from weightformer.baselines.constant import reordered
from weightformer.baselines.distillation import distillation
from weightformer.baselines.single import single
from weightformer.baselines.weight_mean import weight_mean
from weightformer.compare import evidence
from weightformer.compare.controls import ConstantStudent, in_order, with_layer_of
from weightformer.compare.evidence import Agreement, Evidence
from weightformer.compare.same_task_bench import SHARED, Bench, Plan
from weightformer.compare.table import ONE_PASS, Comparison, Gate
from weightformer.config import preset
from weightformer.finetune import finetune
from weightformer.model import StudentModel, WeightFormer
from weightformer.predictor import Predictor
from weightformer.progress import bar
from weightformer.settings import plain
from weightformer.state import State

__all__ = ["Bench", "Plan", "SHARED", "run"]

ONE_TEACHER = "WeightFormer, one teacher"
PAPER = "the paper's form, one pass"
PREDICTION = "one prediction, without alignment and running statistics"

# From the number of a group to what a method makes of it.
Method = Callable[[int], Result | Sequence[Result]]


def run(plan: Plan, seed: int, device: str = "cpu", folder: Path | None = None) -> tuple[Comparison, Predictor]:
    """Run one comparison; return the table and the fitted predictor."""
    bench = Bench(plan, seed, device, folder)
    predictor, seconds = bench.fitted_predictor()
    model, states = predictor.model, bench.aligned(bench.train.states)
    table = Comparison(plan.title, seed, len(bench.groups), about=_about(bench), settings=plain(plan))
    table.facts.append(("meta-training of the WeightFormer, shared by all groups", seconds, "s"))
    table.facts.append(("meta-training steps", plan.recipe.steps, "steps"))
    orders = _orders(bench, seed)
    references = baselines(bench, table)
    predictions = one_pass(bench, table, model, orders)
    tuned(bench, table, predictions)
    paper = papers_form(bench, table, orders, seed) if plan.paper else None
    controls(bench, table, model, orders, states, seed)
    agreement = _kl(bench, table, predictions)
    _gates(plan, table)
    table.evidence = _evidence(bench, model, paper, references, predictions, agreement)
    return table, predictor


def _orders(bench: Bench, seed: int) -> list[Tensor]:
    """Return an unseen order of the classes for every held-out group."""
    generator = torch.Generator().manual_seed(seed + 1)
    return [torch.randperm(bench.dataset.classes, generator=generator) for _ in bench.groups]


def _states(bench: Bench, group: int) -> list[State]:
    return [bench.test.states[i] for i in bench.groups[group]]


def baselines(bench: Bench, table: Comparison) -> dict[str, list[Result]]:
    """Add single teachers, ensembles, weight means and distillation; return the results by method."""
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
    found = {}
    with bar("baselines") as tell:
        for done, (name, method) in enumerate(methods.items(), 1):
            found[name] = table.add(name, "baseline", [bench.judged] * len(bench.groups), method)
            tell(done, len(methods))
    return found


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
    """Add the prediction in one pass, from unseen teachers in an unseen order of the classes, and from one of them."""
    judged = [bench.judged] * len(bench.groups)

    def predict(g: int) -> Result:
        return bench.setting.result(ONE_PASS, predicted(bench, model, _states(bench, g), orders[g]))

    def alone(g: int) -> Result:
        return bench.setting.result(ONE_TEACHER, predicted(bench, model, _states(bench, g)[:1], orders[g]))

    results = table.add(ONE_PASS, "weightformer", judged, predict)
    fitted = "" if 1 in bench.plan.sizes else "; meta-training had no groups of one"
    table.add(ONE_TEACHER, "weightformer", judged, alone, note=f"reads the first teacher of each group{fitted}")
    aligned = [bench.aligned(_states(bench, g)) for g in range(len(bench.groups))]
    model.predict(aligned[0])
    start = time.perf_counter()
    for states in aligned:
        model.predict(states)
    milliseconds = 1000 * (time.perf_counter() - start) / len(aligned)
    table.facts.append((PREDICTION, milliseconds, "ms"))
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


def papers_form(bench: Bench, table: Comparison, orders: list[Tensor], seed: int) -> WeightFormer:
    """Add the paper's own form at the same size: raw tokens, plain output, a fixed order of the classes."""
    torch.manual_seed(seed)
    model = WeightFormer(bench.layout, preset("paper-small")).to(bench.device)
    model.set_statistics(bench.train.states)
    recipe = bench.plan.recipe.but(seed=seed).but(permute_labels=False, noise=0.0)
    bench.fitted("the paper's form", model, bench.train.states, recipe)
    judged = [bench.judged] * len(bench.groups)
    classes = torch.arange(bench.dataset.classes)

    def predict(g: int) -> Result:
        state = predicted(bench, model, _states(bench, g), classes, aligned=False)
        return bench.setting.result("paper", state)

    table.add(PAPER, "weightformer", judged, predict, note="raw tokens, plain output")
    return model


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
    recipe = bench.plan.recipe.but(seed=seed).but(permute_labels=False, noise=0.0)
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


def _kl(bench: Bench, table: Comparison, predictions: list[Result]) -> Agreement:
    """Measure how much closer a student is to its own ensemble than to those of other groups."""
    images = bench.dataset.test.images
    ensembles = [average_ensemble(_states(bench, g), bench.setting).logits(images) for g in range(len(bench.groups))]
    students = [result.logits(images) for result in predictions]
    found = evidence.agreement([[(ensemble, student) for ensemble in ensembles] for student in students])
    table.facts += found.facts
    return found


def _about(bench: Bench) -> str:
    """Say in sentences what is compared."""
    plan = bench.plan
    start = "from starts of their own" if plan.independent_seeds else "from one start"
    overlap = " that overlap" if len(bench.groups) * plan.group > len(bench.test) else ""
    return (
        f"{len(bench.pool)} teachers of one architecture ({bench.pool.architecture}) were trained {start} for one task."
        f" A WeightFormer was fitted on {len(bench.train)} of them; the other {len(bench.test)} form"
        f" {len(bench.groups)} groups of {plan.group}{overlap}, on which every method is judged: it is given a group's"
        f" teachers and returns one network, or keeps all of them. Test images: {len(bench.judged.test)}; the"
        f" temperature is fitted on {len(bench.judged.validation)} others."
    )


def _evidence(
    bench: Bench,
    model: WeightFormer,
    paper: WeightFormer | None,
    references: dict[str, list[Result]],
    predictions: list[Result],
    agreement: Agreement,
) -> Evidence:
    """Return what the report's pictures show, of the first group."""
    teachers = bench.aligned(_states(bench, 0))
    (distilled,) = bench.aligned([_weights(references[f"distillation, {bench.plan.distillation} steps"][0])])
    networks = {f"teacher {i}": state for i, state in enumerate(teachers, 1)}
    networks["teachers' mean"] = _weights(weight_mean(teachers, bench.setting))
    networks |= {"distilled student": distilled, "predicted student": _weights(predictions[0])}
    gated = (ONE_PASS, model) if model.gate is not None or paper is None else (PAPER, paper)
    return evidence.collect(
        model,
        bench.student,
        bench.judged.test.images,
        teachers=teachers,
        networks=networks,
        agreement=agreement,
        gated=gated,
    )


def _gates(plan: Plan, table: Comparison) -> None:
    """Say what the run was to reach."""
    single_, ensemble = table.row("single teacher").accuracy, table.row("ensemble").accuracy
    one = table.row(ONE_PASS).accuracy
    values = {what: value for what, value, _ in table.facts}
    if plan.independent_seeds:
        untrained = table.row("untrained networks as teachers").accuracy
        distilled = f"distillation, {plan.distillation} steps"
        table.gates += [
            Gate("one pass, over a single teacher", one - single_, 1.0),
            Gate("one pass, over the ensemble", one - ensemble, -0.5),
            Gate(f"one pass, over {distilled}", one - table.row(distilled).accuracy, 0.0),
            Gate("untrained networks as teachers", untrained, 20.0, at_most=True),
            Gate("one prediction", values[PREDICTION], 50.0, at_most=True, unit="ms"),
        ]
        return
    ratio = values["KL to the own ensemble"] / values["KL to other groups' ensembles"]
    steps = plan.tuning[0]
    table.gates += [
        Gate("one pass, over the weight mean", one - table.row("weight mean").accuracy, 0.0),
        Gate("one pass, over the ensemble", one - ensemble, -0.3),
        Gate(f"{steps} steps, over the ensemble", table.row(f"WeightFormer + {steps} steps").accuracy - ensemble, 0.0),
        Gate("KL to the own ensemble, over KL to others", ratio, 0.5, at_most=True),
    ]
