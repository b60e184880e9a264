"""The comparisons at toy size: every row and control is there, the same seed gives the same table."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from weightformer import regimes, report
from weightformer.baselines import Cost, Result
from weightformer.compare import presets, same_task, specialists
from weightformer.compare.device import on
from weightformer.compare.table import Comparison, Gate, Judged, Row
from weightformer.data import Images
from weightformer.evaluate import Metrics
from weightformer.fit import Recipe
from weightformer.predictor import Predictor
from weightformer.source import Source
from weightformer.teachers import Schedule, Teacher, TeacherPool

BRIEF = Schedule(steps=2, lr=3e-3, batch_size=16)
SHORT = Recipe(steps=2, warmup=1)


FEW = Source(limit=60)  # images to judge by


def toy_demo() -> same_task.Plan:
    settings = regimes.Independent(fast=3, test=4, fast_schedule=BRIEF, held_out=BRIEF, views=2)
    small = {"distillation": 2, "tuning": (2,), "views": 2, "data": FEW}
    return replace(presets.DEMO, regime=settings, recipe=SHORT, sizes=(2, 3), **small)


def toy_shared() -> same_task.Plan:
    settings = regimes.SharedInitialisation(train=3, test=4, base=BRIEF, schedule=BRIEF, views=2)
    small = {"distillation": 2, "tuning": (2,), "views": 2, "data": FEW}
    return replace(same_task.SHARED, regime=settings, recipe=SHORT, **small)


def toy_specialists() -> specialists.Plan:
    regime = regimes.Specialists(
        train=1, validation=1, test=2, teachers=3, held_out_teachers=3, private=40, base=BRIEF, schedule=BRIEF, views=2
    )
    return specialists.Plan(regime=regime, recipe=SHORT, delta=SHORT, tuning=2, data=FEW)


def numbers(table: Comparison) -> dict[str, object]:
    """Everything but the seconds."""
    content = table.as_dict()
    for row in content["rows"]:
        del row["seconds"]
    for name in ("facts", "gates"):
        content[name] = [entry for entry in content[name] if entry["unit"] not in ("s", "ms")]
    return content


@pytest.fixture(scope="module")
def demo() -> Comparison:
    return same_task.run(toy_demo(), seed=0)[0]


Shared = tuple[Comparison, Predictor, same_task.Bench]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """A comparison, its predictor, and the data and teachers it had."""
    folder = tmp_path_factory.mktemp("shared")
    return *same_task.run(toy_shared(), seed=0, folder=folder), same_task.Bench(toy_shared(), 0, "cpu", folder)


def test_the_demo_has_every_row_that_an_honest_table_needs(demo: Comparison) -> None:
    kinds = {row.method: row.kind for row in demo.rows}
    assert kinds == {
        "single teacher": "baseline",
        "ensemble": "baseline",
        "ensemble of logits": "baseline",
        "weight mean": "baseline",
        "aligned weight mean": "baseline",
        "teacher + 2 steps": "baseline",
        "distillation, 2 steps": "baseline",
        "WeightFormer, one pass": "weightformer",
        "WeightFormer, one teacher": "weightformer",
        "WeightFormer + 2 steps": "weightformer",
        "the paper's form, one pass": "weightformer",
        "constant student": "control",
        "constant + Hungarian": "control",
        "untrained networks as teachers": "control",
        "trunk tokens of training teachers": "control",
        "head tokens of training teachers": "control",
    }
    assert {gate.text for gate in demo.gates} == {
        "one pass, over a single teacher",
        "one pass, over the ensemble",
        "one pass, over distillation, 2 steps",
        "untrained networks as teachers",
        "one prediction",
    }
    assert [row.cost.passes for row in demo.rows] == [1, 3, 3] + [1] * 13
    assert demo.row("ensemble").cost.parameters == 3 * demo.row("single teacher").cost.parameters == 3 * 29178


def test_a_prediction_is_to_take_at_most_50_ms_as_measured(demo: Comparison) -> None:
    (gate,) = (gate for gate in demo.gates if gate.unit)
    measured = {what: value for what, value, _ in demo.facts}
    assert gate == Gate("one prediction", measured[same_task.PREDICTION], 50.0, at_most=True, unit="ms")


def test_one_teacher_alone_is_read_for_every_group(shared: Shared) -> None:
    table, predictor, bench = shared
    order = torch.arange(10)
    for (first, *_), found in zip(bench.groups, table.row("WeightFormer, one teacher").metrics, strict=True):
        state = same_task.predicted(bench, predictor.model, [bench.test.states[first]], order)
        assert found.accuracy == pytest.approx(bench.judged.judge(bench.setting.result("alone", state))[0].accuracy)
    assert table.row("WeightFormer, one teacher").note.endswith("meta-training had no groups of one")


def test_most_groups_of_the_shared_initialisation_have_no_teacher_in_common() -> None:
    teachers = [Teacher(f"test-{i}", "test", i, {}) for i in range(same_task.SHARED.regime.test)]
    groups = TeacherPool("shared-initialisation", "vgg", {}, tuple(teachers)).groups(same_task.SHARED.group)
    pairs = list(combinations(map(set, groups), 2))
    assert sum(not one & other for one, other in pairs) > len(pairs) / 2


def test_the_same_seed_gives_the_same_table(demo: Comparison) -> None:
    assert numbers(same_task.run(toy_demo(), seed=0)[0]) == numbers(demo)


def test_another_seed_gives_another_table(demo: Comparison) -> None:
    assert numbers(same_task.run(toy_demo(), seed=1)[0]) != numbers(demo)


def test_the_predictor_of_a_run_predicts_what_the_table_judged(shared: Shared) -> None:
    table, predictor, bench = shared
    assert {row.method for row in table.rows} >= {"weight mean + 2 steps", "WeightFormer, one pass"}
    assert {gate.text for gate in table.gates} >= {"one pass, over the weight mean", "2 steps, over the ensemble"}
    states = [bench.test.states[i] for i in bench.groups[0]]
    student = bench.setting.result("again", predictor(states))
    order = torch.arange(10)
    direct = bench.setting.result("direct", same_task.predicted(bench, predictor.model, states, order))
    images = bench.dataset.test.images[:50]
    torch.testing.assert_close(student.logits(images), direct.logits(images))


def test_specialists_show_every_method_without_and_with_prior_matching() -> None:
    table, _ = specialists.run(toy_specialists(), seed=0)
    methods = [row.method for row in table.rows]
    plain = [name for name in methods if not name.endswith(" + pm")]
    assert [f"{name} + pm" for name in plain] == [name for name in methods if name.endswith(" + pm")]
    assert set(plain) >= {
        "single teacher",
        "ensemble",
        "ensemble of logits",
        "ensemble / known counts",
        "weight mean",
        "weight mean + cross-entropy 2",
        "WeightFormer, one pass",
        "constant student",
        "constant + Hungarian",
        "weight mean + one learned delta",
        "tokens of another group",
        "tokens of training teachers",
        "student of another group",
        "untrained networks as teachers",
    }
    assert len(table.gates) == 5
    assert numbers(specialists.run(toy_specialists(), seed=0)[0]) == numbers(table)


def test_a_specialists_student_is_the_one_judged_once_it_has_seen_images_of_its_domain() -> None:
    bench = specialists.Bench(toy_specialists(), 0, "cpu", None)
    predictor, _ = bench.fitted_predictor()
    assert predictor.calibration is None, "every group has images of its own"
    for group in bench.groups:
        student = predictor.calibrated(group.proxy)(group.states)
        judged = group.setting.network(bench.predicted(predictor.model, group)).state_dict()
        for name, tensor in judged.items():
            torch.testing.assert_close(student[name], tensor)


def test_a_report_can_be_printed_and_written(demo: Comparison, tmp_path: Path) -> None:
    console = report.console()
    with console.capture() as captured:
        console.print(report.show(demo, 12.0))
    text = captured.get()
    for row in demo.rows:
        (line,) = (line for line in text.splitlines() if line.strip().startswith(f"{row.method}  "))
        mean, std = row.summary.mean, row.summary.std
        assert len(line) <= 120
        for value, spread, digits in (
            (mean.accuracy, std.accuracy, 2),
            (mean.nll, std.nll, 3),
            (mean.brier, std.brier, 3),
            (mean.ece, std.ece, 2),
        ):
            assert f"  {value:.{digits}f}±{spread:.{digits}f}  " in line
        assert f"{row.cost.parameters:,}" in line
    assert "…" not in text
    path = tmp_path / "demo.json"
    report.write_json(demo, path, 12.0)
    content = json.loads(path.read_text())
    assert [row["method"] for row in content["rows"]] == [row.method for row in demo.rows]
    assert content["total_seconds"] == 12.0
    assert [p.name for p in tmp_path.iterdir()] == ["demo.json"]


def test_one_group_is_printed_without_spread_and_with_a_temperature() -> None:
    table = Comparison("t", 0, 1)
    found = (Metrics(95.0, 0.1, 0.2, 1.5, 0.9, 0.3, 0.4, 2.5),)
    table.rows.append(Row("m", "baseline", found, Cost(0, 1, 1_000_000), 0.0))
    console = report.console()
    with console.capture() as captured:
        console.print(report.show(table, 1.0))
    text = captured.get()
    (line,) = (line for line in text.splitlines() if line.startswith("m  "))
    assert line.split() == ["m", "95.00", "0.100", "0.200", "1.50", "0.300", "2.50", "1", "1,000,000", "0", "0.000"]
    assert "±" not in text and "T-scaled" in text


@pytest.mark.parametrize(
    ("value", "bound", "at_most", "holds"),
    [(1.0, 1.0, False, True), (0.9, 1.0, False, False), (20.0, 20.0, True, True), (20.1, 20.0, True, False)],
)
def test_a_gate_holds_at_its_bound(value: float, bound: float, at_most: bool, holds: bool) -> None:
    assert Gate("g", value, bound, at_most).holds is holds


def images(n: int) -> Images:
    return Images(torch.zeros(n, 1, 2, 2), torch.arange(n) % 3)


def perfect(_: Tensor) -> Tensor:
    return 20 * torch.eye(3)[torch.arange(6) % 3]


def wrong(_: Tensor) -> Tensor:
    return perfect(_).roll(1, dims=1)


def test_several_results_of_one_group_are_averaged() -> None:
    table = Comparison("t", 0, 1)
    judged = [Judged(images(6), images(6))]
    results = [Result("a", perfect, None, Cost(0, 1, 5)), Result("b", wrong, None, Cost(0, 1, 5))]
    table.add("both", "baseline", judged, lambda g: results)
    assert table.row("both").accuracy == 50.0
    assert math.isnan(table.row("both").summary.std.accuracy)
    assert table.as_dict()["rows"][0]["std"]["accuracy"] is None


def test_wins_count_groups() -> None:
    def row(*accuracies: float) -> Row:
        found = tuple(Metrics(a, 0, 0, 0, 1, 0, 0, 0) for a in accuracies)
        return Row("m", "baseline", found, Cost(0, 1, 1), 0.0)

    assert row(3, 1, 2).wins(row(1, 1, 1)) == 2


def test_nested_values_move_to_a_device() -> None:
    moved = on({"a": [images(2)], "b": (torch.zeros(1), "text")}, "meta")
    assert moved["a"][0].images.is_meta and moved["a"][0].labels.is_meta
    assert moved["b"][0].is_meta and moved["b"][1] == "text"
