"""Specialists: fine-tunes of one base, each group of teachers in a domain that nobody has seen before.

Prior matching ("pm") is a free step after any method, so every method is shown without and with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from weightformer.baselines import Result, Setting
from weightformer.baselines.average_ensemble import average_ensemble
from weightformer.baselines.constant import reordered
from weightformer.baselines.cross_entropy import cross_entropy
from weightformer.baselines.distillation import distillation
from weightformer.baselines.head_counts import head_counts
from weightformer.baselines.known_counts import known_counts
from weightformer.baselines.prior_matching import match_prior
from weightformer.baselines.single import single
from weightformer.baselines.task_arithmetic import task_arithmetic
from weightformer.baselines.weight_mean import weight_mean
from weightformer.compare import evidence
from weightformer.compare.controls import ConstantStudent, MeanAndDelta, in_order
from weightformer.compare.evidence import Agreement, Evidence
from weightformer.compare.specialists_bench import PROXY, Bench, Group, Plan
from weightformer.compare.table import ONE_PASS, Comparison, Gate, Kind
from weightformer.model import WeightFormer
from weightformer.predictor import Predictor
from weightformer.progress import bar
from weightformer.settings import plain
from weightformer.state import State

__all__ = ["Bench", "Group", "PROXY", "Plan", "run"]

PAIRED = 8  # groups whose students are held against each other's ensembles: the time grows with the square


def run(plan: Plan, seed: int, device: str = "cpu", folder: Path | None = None) -> tuple[Comparison, Predictor]:
    """Run the comparison of specialists; return the table and the fitted predictor."""
    bench = Bench(plan, seed, device, folder)
    predictor, seconds = bench.fitted_predictor()
    model = predictor.model
    table = Comparison(plan.title, seed, len(bench.groups), about=_about(bench), settings=plain(plan))
    table.facts.append(("meta-training of the WeightFormer, shared by all groups", seconds, "s"))
    table.facts.append(("meta-training steps", plan.recipe.steps, "steps"))
    if bench.validation:
        table.facts.append(("accuracy of one pass on the validation domains", bench.validate(model), "%"))
    references = baselines(bench, table)
    predictions = one_pass(bench, table, model)
    controls(bench, table)
    substitutes(bench, table, model)
    agreement = _kl(bench, table, predictions)
    _gates(table)
    table.evidence = _evidence(bench, model, references, predictions, agreement)
    return table, predictor


def _add(
    bench: Bench, table: Comparison, method: str, kind: Kind, make: Callable[[Group], Result], note: str = ""
) -> list[Result]:
    """Add a method's row and that of the same networks with prior matching."""
    judged = [group.judged for group in bench.groups]
    results = table.add(method, kind, judged, lambda g: make(bench.groups[g]), note=note)
    table.add(f"{method} + pm", kind, judged, lambda g: match_prior(results[g], bench.groups[g].proxy), note=note)
    before, after = table.rows[-2:]
    table.rows[-1] = replace(after, seconds=before.seconds + after.seconds)  # pm alone makes no network
    return results


def baselines(bench: Bench, table: Comparison) -> dict[str, list[Result]]:
    """Add everything that is published or obvious for fine-tunes of one base; return the results by method."""
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
        found = {}
        for done, (name, make, note) in enumerate(methods, 1):
            found[name] = _add(bench, table, name, "baseline", make, note)
            tell(done, len(methods))
    return found


def one_pass(bench: Bench, table: Comparison, model: WeightFormer) -> list[Result]:
    """Add the prediction from unseen teachers of unseen domains, and the time it takes."""

    def predict(group: Group) -> Result:
        return group.setting.result(ONE_PASS, bench.predicted(model, group))

    results = _add(bench, table, ONE_PASS, "weightformer", predict)
    start = time.perf_counter()
    for group in bench.groups:
        model.predict(group.states)
    milliseconds = 1000 * (time.perf_counter() - start) / len(bench.groups)
    table.facts.append(("one prediction, without running statistics", milliseconds, "ms"))
    return results


def controls(bench: Bench, table: Comparison) -> None:
    """Add what a model reaches that may not read its teachers."""
    mean = weight_mean(bench.train.states, Setting(bench.pool.create)).state
    assert mean is not None
    constant = ConstantStudent(bench.layout, mean).to(bench.device)
    bench.fitted("constant student", constant, bench.plan.recipe.but(permute_labels=False, noise=0.0))
    delta = MeanAndDelta(bench.layout, bench.head).to(bench.device)
    bench.fitted("mean and one delta", delta, bench.plan.delta)

    def constant_of(group: Group) -> Result:
        return group.setting.result("constant", constant.predict(group.states))

    _add(bench, table, "constant student", "control", constant_of, "ignores the teachers, knows the order")
    # The assignment is the same whatever order the constant's outputs come in: this row is not told it.
    _add(
        bench,
        table,
        "constant + Hungarian",
        "control",
        lambda g: reordered(constant_of(g), g.states, g.setting, images=g.proxy),
        "order from the ensemble's outputs on the unlabelled proxy",
    )
    _add(
        bench,
        table,
        "weight mean + one learned delta",
        "control",
        lambda g: g.setting.result("delta", bench.predicted(delta, g)),
        "the same delta for every group",
    )


def substitutes(bench: Bench, table: Comparison, model: WeightFormer) -> None:
    """Add what the model makes of a group when it reads other teachers than the group's."""
    groups, size, states = bench.groups, bench.plan.group, bench.train.states
    trained = [[states[i] for i in chosen] for chosen in bench.train.groups(size)]

    def other(group: Group) -> Group:
        return groups[(groups.index(group) + 1) % len(groups)]

    tokens: dict[str, Callable[[Group], list[State]]] = {
        "tokens of another group": lambda g: other(g).states,
        "tokens of training teachers": lambda g: trained[groups.index(g) % len(trained)],
    }
    for name, read in tokens.items():

        def swapped(group: Group, read: Callable[[Group], list[State]] = read) -> Result:
            return group.setting.result("tokens", bench.predicted(model, group, read(group)))

        _add(bench, table, name, "control", swapped, "own task vectors, gates and delta from others")

    def foreign(group: Group) -> Result:
        return group.setting.result("foreign", bench.predicted(model, other(group)))

    _add(bench, table, "student of another group", "control", foreign)

    def untrained(group: Group) -> Result:
        index = groups.index(group)
        seeds = range(10_000 + bench.seed + size * index, 10_000 + bench.seed + size * (index + 1))
        networks = [bench.pool.create(seed).state_dict() for seed in seeds]
        shuffled = [in_order(state, bench.layout, bench.head, group.order) for state in networks]
        state = in_order(model.predict(shuffled), bench.layout, bench.head, group.order.argsort())
        return group.setting.result("untrained", state)

    _add(bench, table, "untrained networks as teachers", "control", untrained)


def _kl(bench: Bench, table: Comparison, predictions: list[Result]) -> Agreement:
    """Measure how much closer a student is to its own ensemble than to those of other groups, in its own domain."""
    groups = bench.groups[:PAIRED]
    ensembles = [average_ensemble(group.states, group.setting) for group in groups]
    pairs = []
    for group, student in zip(groups, predictions, strict=False):
        images = group.judged.test.images
        seen = student.logits(images)
        pairs.append([(ensemble.logits(images), seen) for ensemble in ensembles])
    found = evidence.agreement(pairs)
    table.facts += found.facts
    return found


def _about(bench: Bench) -> str:
    """Say in sentences what is compared."""
    plan, test = bench.plan, bench.groups[0].judged
    return (
        f"{len(bench.pool)} teachers of one architecture ({bench.pool.architecture}) were fine-tuned from one base, on"
        " private images of which some classes have few and others many. Teachers of a group share a domain: a way of"
        f" showing the images that no other group has. A WeightFormer was fitted on {len(bench.train)} of them. Every"
        f" method is judged on {len(bench.groups)} groups of {plan.group} teachers in unseen domains: it is given a"
        ' group\'s teachers and returns one network, or keeps all of them. "+ pm" is prior matching: one bias a class,'
        f" fitted on {PROXY} unlabelled images of the domain. Test images: {len(test.test)}; the temperature is fitted"
        f" on {len(test.validation)} others."
    )


def _evidence(
    bench: Bench,
    model: WeightFormer,
    references: dict[str, list[Result]],
    predictions: list[Result],
    agreement: Agreement,
) -> Evidence:
    """Return what the report's pictures show, of the first group."""
    group = bench.groups[0]
    networks: dict[str, State] = {f"teacher {i}": state for i, state in enumerate(group.states, 1)}
    chosen = {
        "teachers' mean": references["weight mean"],
        "distilled student": references[f"weight mean + distillation {bench.plan.tuning}"],
        "predicted student": predictions,
    }
    for name, results in chosen.items():
        state = results[0].state
        assert state is not None, f"{name} is not one network"
        networks[name] = state
    return evidence.collect(
        model,
        bench.student,
        group.judged.test.images,
        teachers=group.states,
        networks=networks,
        agreement=agreement,
        gated=(ONE_PASS, model),
        base=bench.base,
    )


def _gates(table: Comparison) -> None:
    one, ensemble = table.row(ONE_PASS), table.row("ensemble")
    mean, swapped = table.row("weight mean").accuracy, table.row("tokens of another group").accuracy
    table.gates += [
        Gate("one pass, over the ensemble", one.accuracy - ensemble.accuracy, 2.0),
        Gate("groups on which one pass wins, of the groups", one.wins(ensemble), 0.75 * table.groups),
        Gate("one pass, over the weight mean", one.accuracy - mean, 10.0),
        Gate("one pass, over tokens of another group", one.accuracy - swapped, 15.0),
        Gate("constant student", table.row("constant student").accuracy, 45.0, at_most=True),
    ]
