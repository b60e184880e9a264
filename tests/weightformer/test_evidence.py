"""What a comparison keeps for its report: exactly what the models hold, small, and whole after a JSON file."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.weightformer.tiny import CLASSES, SMALL, generic, images, layout, network, teachers, untouched
from weightformer.baselines import Cost
from weightformer.compare import evidence
from weightformer.compare.evidence import Agreement, DenseGate, Evidence, RowGates
from weightformer.compare.reliability import Reliability, bins, reliability
from weightformer.compare.table import Comparison, Gate, Row
from weightformer.config import Config
from weightformer.evaluate import Metrics, metrics
from weightformer.state import State

GATED = SMALL.but(output="gated", read="mean", max_teachers=0)


def prediction(n: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(n, CLASSES, generator=generator), torch.randint(CLASSES, (n,), generator=generator)


def ece(found: Reliability, scaled: bool) -> float:
    """The calibration error in percent, from the bins."""
    b = found.scaled if scaled else found.raw
    gaps = [abs(right - total) for right, total in zip(b.correct, b.confidence, strict=True)]
    return 100 * sum(gaps) / sum(b.count)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_bins_give_the_calibration_error_of_the_metrics(temperature: float) -> None:
    scores, labels = prediction()
    found = reliability(scores, labels, temperature)
    assert sum(found.raw.count) == sum(found.scaled.count) == len(labels)
    assert sum(found.raw.correct) == int((scores.argmax(1) == labels).sum())
    assert ece(found, scaled=False) == pytest.approx(metrics(scores, labels).ece, rel=1e-5)
    assert ece(found, scaled=True) == pytest.approx(metrics(scores / temperature, labels).ece, rel=1e-5)


def test_bins_of_two_sets_add_up_to_those_of_both() -> None:
    (a, x), (b, y) = prediction(seed=1), prediction(n=37, seed=2)
    both, whole = bins(a, x) + bins(b, y), bins(torch.cat([a, b]), torch.cat([x, y]))
    assert (both.count, both.correct) == (whole.count, whole.correct)
    assert both.confidence == pytest.approx(whole.confidence)


def test_full_confidence_is_in_the_last_bin() -> None:
    found = bins(torch.tensor([[1e4, 0.0, 0.0]]), torch.tensor([0]))
    assert found.count[-1] == found.correct[-1] == 1


@pytest.mark.parametrize("classes", [3, 5, 15])
def test_a_border_belongs_to_the_bin_above_it(classes: int) -> None:
    found = bins(torch.zeros(1, classes), torch.tensor([0]))
    assert found.count.index(1) == 15 // classes


def test_flop_counts_a_multiply_add_as_two() -> None:
    conv, hidden, head = 4 * 9 * (2 * 2), 4 * 4, 4 * CLASSES
    assert evidence.flop(network(), images(5)) == 2 * (conv + hidden + head)


def test_gates_over_the_teachers_start_at_their_mean() -> None:
    found = evidence.row_gates(untouched(GATED), teachers(3))
    assert found is not None and found.layers == ("conv", "hidden", "head")
    for layer, rows in zip(found.values, layout().rows, strict=True):
        assert len(layer) == 3 and all(len(row) == rows for row in layer)
        assert all(value == pytest.approx(1 / 3, abs=1e-4) for row in layer for value in row)


def test_gates_over_the_teachers_explain_the_student(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "DIGITS", 12)
    model, group = generic(GATED), teachers(3, dtype=torch.float64)
    found = evidence.row_gates(model, group)
    assert found is not None and model.base is not None
    base: State = {}
    for layer, block in zip(model.layout.layers, model.layout.row_blocks(model.base, 1), strict=True):
        base |= {p.name: block[:, p.start : p.start + p.width].reshape(p.shape) for p in layer.parameters}
    student, without = model.predict(group), model.predict(group, built_on=[base] * 3)
    for layer, gate in zip(model.layout.layers, found.values, strict=True):
        for p in layer.parameters:
            tasks = torch.stack([state[p.name] - base[p.name] for state in group]).reshape(3, layer.rows, p.width)
            expected = (torch.tensor(gate, dtype=torch.float64)[..., None] * tasks).sum(0).reshape(p.shape)
            torch.testing.assert_close(student[p.name] - without[p.name], expected)


def test_a_dense_gate_is_the_corner_that_the_teachers_use() -> None:
    model = generic(SMALL.but(gate="dense"))
    assert model.gate is not None
    found = evidence.dense_gate(model, "ours", 2)
    assert found is not None and (found.cross, found.rows, found.teachers) == (1, 4, 2)
    torch.testing.assert_close(torch.tensor(found.values), model.gate().detach()[0, :9, :9].float(), rtol=1e-3, atol=0)
    assert all(found.values[i][i] == 1.0 for i in range(9))
    assert found.initial == pytest.approx(1 / (1 + math.exp(-2)))
    assert evidence.bucketed_gate(model, "ours") is None


def test_a_bucketed_gate_has_a_value_for_every_distance() -> None:
    model = generic(SMALL)
    assert model.gate is not None and model.gate.lookup is not None
    found = evidence.bucketed_gate(model, "ours")
    assert found is not None
    assert [d for low, high in found.edges for d in range(low, high + 1)] == list(range(-3, 4))
    values = model.gate().detach()
    for curve, kind in zip(found.curves, [(1, 1, 1), (1, 1, 0), (0, 1, 0), (1, 0, 0)], strict=True):
        for value, (low, _) in zip(curve, found.edges, strict=True):
            entry = int(model.gate.lookup[low + model.gate.reach])
            assert value == pytest.approx(values[0][kind][entry].item(), rel=1e-3)
    assert evidence.dense_gate(model, "ours", 2) is None


@pytest.mark.parametrize(("hard", "initial"), [(False, 0.8808), (True, 1.0)])
def test_a_gate_knows_where_it_started(hard: bool, initial: float) -> None:
    found = evidence.bucketed_gate(untouched(SMALL.but(hard=hard)), "ours")
    assert found is not None and found.initial == pytest.approx(initial, abs=1e-4)
    assert all(value == pytest.approx(initial, abs=1e-3) for curve in found.curves for value in curve)


def test_a_model_without_gates_has_none() -> None:
    model = untouched(SMALL.but(gate="none"))
    assert evidence.row_gates(model, teachers(2)) is None
    assert evidence.dense_gate(model, "ours", 2) is None
    assert evidence.bucketed_gate(model, "ours") is None
    assert evidence.blend(model) == ()


def test_the_share_of_the_mean_is_named_by_layer() -> None:
    model = generic(SMALL.but(output="prior"))
    assert model.blend is not None
    assert evidence.blend(model) == tuple(zip(("conv", "hidden", "head"), model.blend.tolist(), strict=True))


def test_the_largest_layer_that_fits_is_shown() -> None:
    one, other = teachers(2)
    found = evidence.layer_weights(layout(), {"a": one, "b": other})
    assert (found.layer, found.size, found.names) == ("conv.weight", (4, 9), ("a", "b"))
    torch.testing.assert_close(torch.tensor(found.values[1]), other["conv.weight"].reshape(4, 9), rtol=1e-3, atol=0)


def test_of_a_large_layer_a_part_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "ROWS", 2)
    monkeypatch.setattr(evidence, "COLUMNS", 3)
    (one,) = teachers(1)
    found = evidence.layer_weights(layout(), {"a": one})
    assert found.layer == "head.weight" and found.size == (CLASSES, 4)
    assert (len(found.values[0]), len(found.values[0][0])) == (2, 3)


def test_fine_tunes_are_shown_as_differences_to_their_base() -> None:
    base, one = teachers(2)
    found = evidence.layer_weights(layout(), {"base": base, "a": one}, base)
    assert found.of_base and not any(value for row in found.values[0] for value in row)
    expected = (one["conv.weight"] - base["conv.weight"]).reshape(4, 9)
    torch.testing.assert_close(torch.tensor(found.values[1]), expected, rtol=1e-3, atol=0)


def test_agreement_has_own_ensembles_on_its_diagonal() -> None:
    scores = [prediction(seed=i)[0] for i in range(3)]
    found = evidence.agreement([[(ensemble, student) for ensemble in scores] for student in scores])
    assert [found.percent[i][i] for i in range(3)] == [100.0] * 3
    assert all(found.kl[i][j] > 0.1 for i in range(3) for j in range(3) if i != j)
    own, others = found.facts
    assert own == ("KL to the own ensemble", pytest.approx(0, abs=1e-9), "nats") and others[1] > 0.1
    # KL(ensemble || student): the row is the student's.
    assert found.kl[0][1] == pytest.approx(evidence.evaluate.kl(scores[1], scores[0]))


def test_one_group_has_no_others_to_agree_with() -> None:
    assert [what for what, _, _ in Agreement(((0.5,),), ((90.0,),)).facts] == ["KL to the own ensemble"]


@pytest.mark.parametrize(
    "config", [GATED, SMALL, SMALL.but(gate="dense", output="prior")], ids=["gated", "plain", "prior"]
)
def test_everything_is_collected_at_once_and_survives_a_file(config: Config) -> None:
    model, group = generic(config), teachers(2)
    found = evidence.collect(
        model,
        network(),
        images(2),
        teachers=group,
        networks={"teacher 1": group[0]},
        agreement=Agreement(((0.5,),), ((math.nan,),)),
        gated=("ours", model),
    )
    assert (found.row_gates is not None) == (config.output == "gated")
    assert (found.dense_gate is not None) == (config.gate == "dense")
    scores, labels = prediction()
    one, broken = metrics(scores, labels), Metrics(*[math.nan] * 8)
    table = Comparison("t", 3, 1, about="what", settings={"a": {"b": [1, 2]}}, evidence=found)
    table.rows += [
        Row("good", "baseline", (one,), Cost(1, 2, 3), 0.5, "note", reliability(scores, labels, 1.0)),
        Row("bad", "control", (broken,), Cost(1, 2, 3), 0.5, reliability=reliability(scores * math.nan, labels, 1.0)),
    ]
    table.facts.append(("f", math.inf, "s"))
    table.gates.append(Gate("g", math.nan, 1.0, at_most=True))
    text = json.dumps(table.as_dict(), allow_nan=False)
    again = Comparison.from_dict(json.loads(text))
    assert json.dumps(again.as_dict(), allow_nan=False) == text
    assert again.rows[0] == table.rows[0]
    assert again.evidence.row_gates == found.row_gates and again.evidence.weights == found.weights


def test_a_file_without_evidence_is_read() -> None:
    content = Comparison("t", 3, 1, [Row("m", "baseline", (Metrics(*[1.0] * 8),), Cost(1, 2, 3), 0.5)]).as_dict()
    for name in ("about", "settings", "evidence"):
        del content[name]
    del content["rows"][0]["reliability"]
    again = Comparison.from_dict(content)
    assert again.evidence == Evidence() and again.rows[0].reliability is None and again.about == ""


def test_evidence_of_different_gates_is_not_mixed_up() -> None:
    rows = RowGates(("a",), (2,), (((0.5, 0.5),),))
    dense = DenseGate("m", 0, 1, 1, ((1.0,),), 0.88)
    table = Comparison("t", 0, 1, evidence=Evidence(row_gates=rows, dense_gate=dense))
    again = Comparison.from_dict(json.loads(json.dumps(table.as_dict()))).evidence
    assert again == replace(again, row_gates=rows, dense_gate=dense) and again.bucketed_gate is None
