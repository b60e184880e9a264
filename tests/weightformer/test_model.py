"""WeightFormer: every form it takes, what it must not depend on, where it starts, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tests.weightformer.tiny import (
    CONV,
    HEAD,
    HIDDEN,
    SMALL,
    assert_same,
    generic,
    images,
    layout,
    network,
    rows_of,
    students,
    teachers,
    untouched,
)
from weightformer import rows
from weightformer.config import Config, preset
from weightformer.model import StudentModel, WeightFormer, statistics
from weightformer.state import State
from weightformer.students import create
from wfkernels import predict, unpack
from wfkernels.layout import RowLayout

OUTPUTS = [(o, r) for o in ("plain", "anchor", "mean", "prior", "gated") for r in ("anchor", "mean")]
OUTPUTS.remove(("gated", "anchor"))
CROSS = [("none", 0), ("none", 1), ("parallel", 2), ("recurrent", 1)]
GATES = ("none", "dense", "bucketed")


def forms() -> list[Config]:
    """Every output, cross-layer mode and gate with each other; the other settings so that all pairs of them occur."""
    rest = list(product(("post", "pre"), ("layer", "shared"), (False, True), (4, 0), ("none", "full")))
    found = []
    for i, ((output, read), (mode, cross), gate) in enumerate(product(OUTPUTS, CROSS, GATES)):
        norm, positions, share, codes, recompute = rest[i * 11 % len(rest)]
        found.append(
            SMALL.but(
                output=output,
                read=read,
                cross_layer=mode,
                cross_tokens=cross,
                gate=gate,
                norm=norm,
                positions=positions,
                share_projections=share,
                max_teachers=codes or 4 * (gate == "dense"),
                recompute=recompute,
            )
        )
    return found


FORMS = forms()


def name_of(config: Config) -> str:
    parts = (config.output, config.read, config.cross_layer, config.gate, config.norm, config.positions)
    return "-".join((*parts, "shared" * config.share_projections, f"{config.max_teachers}codes", config.recompute))


def test_the_forms_hold_every_pair_of_settings() -> None:
    settings = ("output", "read", "cross_layer", "gate", "norm", "positions", "share_projections", "max_teachers")
    impossible = {("output", "gated", "read", "anchor"), ("gate", "dense", "max_teachers", 0)}
    for a, b in combinations(settings, 2):
        values = {(getattr(c, a), getattr(c, b)) for c in FORMS}
        every = product({getattr(c, a) for c in FORMS}, {getattr(c, b) for c in FORMS})
        assert {(x, y) for x, y in every if (a, x, b, y) not in impossible} == values


@pytest.mark.parametrize("config", FORMS, ids=name_of)
def test_every_form_gives_students_that_run_and_a_gradient_to_every_parameter(config: Config) -> None:
    model, group, module = generic(config), teachers(4), network().double()
    predicted = model(model.pack([group[:3], group[2:]]), [3, 2])
    assert len(predicted) == 2
    for student in predicted:
        assert {n: t.shape for n, t in student.items()} == {n: p.shape for n, p in module.named_parameters()}
        functional_call(module, student, (images(5).double(),)).square().sum().backward(retain_graph=True)
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert idle == []


SYMMETRIC = [
    SMALL.but(output=output, read="mean", max_teachers=0, gate=gate, cross_layer=mode)
    for output in ("mean", "prior", "gated")
    for gate, mode in (("none", "parallel"), ("bucketed", "recurrent"), ("bucketed", "none"))
]


@pytest.mark.parametrize("config", SYMMETRIC, ids=name_of)
def test_teachers_come_in_any_order_where_nothing_tells_them_apart(config: Config) -> None:
    model, group = generic(config), teachers(4)
    (one,), (other,) = students(model, [group]), students(model, [[group[i] for i in (2, 0, 3, 1)]])
    assert_same(other, one)


@pytest.mark.parametrize("change", [{"max_teachers": 4}, {"read": "anchor"}, {"output": "anchor"}], ids=str)
def test_the_order_of_the_teachers_counts_where_something_tells_them_apart(change: dict[str, object]) -> None:
    model = generic(SMALL.but(output="mean", read="mean", max_teachers=0).but(**change))
    group = teachers(3)
    (one,), (other,) = students(model, [group]), students(model, [[group[i] for i in (2, 0, 1)]])
    assert not torch.allclose(one["conv.weight"], other["conv.weight"])


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("mode", ["none", "parallel", "recurrent"])
def test_groups_predicted_together_equal_those_predicted_alone(gate: str, mode: str) -> None:
    model = generic(SMALL.but(gate=gate, cross_layer=mode, output="gated", read="mean"))
    pool = teachers(6)
    groups = [pool[:1], pool[1:5], pool[4:6]]
    for together, group in zip(students(model, groups), groups, strict=True):
        (alone,) = students(model, [group])
        assert_same(together, alone)


def test_any_number_of_teachers_is_taken_without_codes_and_up_to_the_limit_with_them() -> None:
    pool = teachers(11)
    free, bounded = generic(SMALL.but(max_teachers=0)), generic(SMALL.but(max_teachers=4))
    for count in (1, 2, 11):
        assert all(t.isfinite().all() for t in students(free, [pool[:count]])[0].values())
    for count in (1, 4):
        assert all(t.isfinite().all() for t in students(bounded, [pool[:count]])[0].values())
    with pytest.raises(ValueError, match=r"^WeightFormer: teachers: expected at most 4 \(max_teachers\), got 5$"):
        students(bounded, [pool[:2], pool[:5]])


def perturbed(group: Sequence[State], names: Sequence[str]) -> list[State]:
    return [{n: t + 1.0 if n in names else t for n, t in state.items()} for state in group]


LAYERS = {CONV: ("conv.weight", "norm.bias"), HIDDEN: ("hidden.weight",), HEAD: ("head.weight",)}


@pytest.mark.parametrize("mode", ["none", "parallel", "recurrent"])
@pytest.mark.parametrize("layer", LAYERS)
def test_information_flows_forward_over_the_layers_and_only_so(mode: str, layer: int) -> None:
    # In parallel it takes three blocks: cross tokens read their own rows, then those of earlier layers, then are read.
    model, group = generic(SMALL.but(cross_layer=mode, layers=3)), teachers(2)
    (before,), (after,) = students(model, [group]), students(model, [perturbed(group, LAYERS[layer])])
    for other, names in LAYERS.items():
        reached = other == layer or (other > layer and mode != "none")
        assert all(torch.equal(before[name], after[name]) != reached for name in names)


@pytest.mark.parametrize(
    "form", [{"output": "plain"}, {"output": "gated", "read": "mean"}, {"output": "prior"}], ids=str
)
def test_recurrent_means_layer_by_layer_with_the_cross_tokens_handed_on(form: dict[str, object]) -> None:
    """Every layer predicted by a model of that layer alone, whose cross tokens are what left the layer before."""
    config = SMALL.but(cross_layer="recurrent", cross_tokens=2, gate="bucketed", positions="layer").but(**form)
    model, group = generic(config), teachers(3)
    (found,) = students(model, [group])
    whole, cross = dict(model.named_parameters()), model.cross
    blocks = model.layout.row_blocks(model.pack([group]), 3)
    for i, layer in enumerate(model.layout.layers):
        of = model.layout.select([i])
        alone = WeightFormer(of, config.but(buckets=4), base=torch.zeros(of.row_numel)).double()
        with torch.no_grad():
            for name, parameter in alone.named_parameters():
                first, _, end = name.partition(".")
                if first in ("embeddings", "outputs"):
                    parameter.copy_(whole[f"{first}.{i}.{end.partition('.')[2]}"])
                elif first == "position":
                    start = sum(model.layout.rows[:i])
                    parameter.copy_(model.position[start : start + layer.rows])
                elif first in ("layer", "strength", "blend", "gate_weight", "gate_bias"):
                    parameter.copy_(whole[name][i : i + 1])
                elif first != "prior":
                    parameter.copy_(whole[name])
            alone.shift.copy_(model.shift.split([x.stride for x in model.layout.layers])[i])
            alone.scale.copy_(model.scale.split([x.stride for x in model.layout.layers])[i])
            for buffer in ("base", "center", "prior"):
                given = getattr(model, buffer)
                if given is not None:
                    of.row_blocks(getattr(alone, buffer), 1)[0].copy_(model.layout.row_blocks(given, 1)[i])
            seen = torch.zeros(3 * of.row_numel, dtype=torch.float64)
            of.row_blocks(seen, 3)[0].copy_(blocks[i])
            parameters = alone.parameters_of()
            if model.base is None:
                parameters = replace(parameters, base=None, center=None)
            students_, cross = predict(
                seen,
                replace(parameters, cross=cross),
                alone.settings,
                layout=of.tokens([3], 2),
                gate_lookup=alone.gate.lookup,
                return_cross=True,
            )
        assert_same(found, unpack(students_[0], of))


class Bag(nn.Module):
    """Layers that are in no order: {name: (rows, columns)}."""

    def __init__(self, sizes: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(width, n) for name, (n, width) in sizes.items()})


WHOLE = {"small": (2, 3), "five": (5, 3), "four": (4, 2)}


def window_states(pool: Sequence[State], first: int, by: int) -> list[State]:
    kept = [{n: t for n, t in state.items() if "small" not in n} for state in pool]
    return [{n: t[first : len(t) - by + first] for n, t in state.items()} for state in kept]


@pytest.mark.parametrize("mode", ["none", "parallel", "recurrent"])
@pytest.mark.parametrize("positions", ["shared", "layer"])
@pytest.mark.parametrize("output", ["plain", "prior"])
@pytest.mark.parametrize("counts", [(3,), (2, 1)])
def test_shift_consistency_compares_students_of_two_windows(
    mode: str, positions: str, output: str, counts: tuple[int, ...]
) -> None:
    """Both windows written out as networks of their own, predicted by models with the same parameters."""
    whole, by = Bag(WHOLE), 1
    pool = teachers(3, whole, torch.float64)
    config = SMALL.but(cross_layer=mode, gate="bucketed", positions=positions, output=output, share_projections=True)
    model = generic(config, rows.layout(whole), pool)
    found = model.shift_consistency(model.pack([pool]), counts, by)

    window = Bag({"five": (4, 3), "four": (3, 2)})
    groups = [slice(sum(counts[:g]), sum(counts[: g + 1])) for g in range(len(counts))]
    halves = []
    for first in (0, by):
        part = WeightFormer(rows.layout(window), config).double()
        state = model.state_dict()
        if positions == "layer":  # behind the two codes of the small layer
            state["position"] = torch.cat([state["position"][2:6], state["position"][7:10]])
        else:
            state["position"] = state["position"][:4]
        # The small layer and the first of the others are equally wide, so that they share their projections.
        for name in ("layer", "strength", "blend"):
            if name in state:
                state[name] = state[name][1:]
        for name in ("shift", "scale"):
            state[name] = state[name][8:]
        if output == "prior":
            blocks = model.layout.row_blocks(state["prior"], 1)[1:]
            state["prior"] = torch.zeros_like(part.prior)
            for block, given in zip(part.layout.row_blocks(state["prior"], 1), blocks, strict=True):
                block.copy_(given[first : len(given) - by + first])
        part.load_state_dict(state)
        seen = window_states(pool, first, by)
        halves.append(students(part, [seen[g] for g in groups]))
    differences = []
    scales = part.layout.column_blocks(part.scale)
    for early, late in zip(*halves, strict=True):
        for layer, scale in zip(part.layout.layers, scales, strict=True):
            for p in layer.parameters:
                columns = scale[p.start : p.start + p.width]
                a, b = (s[p.name].view(layer.rows, -1) / columns for s in (early, late))
                differences.append((a[by:] - b[:-by]).flatten())
    torch.testing.assert_close(found, torch.cat(differences).square().mean())
    assert found > 1e-4


def test_shift_consistency_is_zero_where_tokens_neither_meet_nor_know_their_place() -> None:
    """Without attention and position codes every neuron is predicted from its own rows alone."""
    model, group = generic(SMALL.but(output="mean", read="mean", cross_layer="none")), teachers(3)
    found = model.pack([group])
    assert model.shift_consistency(found, [3]) > 1e-4
    with torch.no_grad():
        for block in model.blocks:
            block.get_parameter("out.weight").zero_()
        assert model.shift_consistency(found, [3]) > 1e-4
        model.position.zero_()
    torch.testing.assert_close(model.shift_consistency(found, [3]), torch.zeros((), dtype=torch.float64))


def test_shift_consistency_ignores_dropout_and_layers_that_are_too_small() -> None:
    model, group = generic(SMALL.but(dropout=0.5)).train(), teachers(2)
    found = model.pack([group])
    assert torch.equal(model.shift_consistency(found, [2]), model.shift_consistency(found, [2]))
    assert model.shift_consistency(found, [2], by=2) == 0


def test_statistics_are_a_mean_per_column_and_one_deviation_per_parameter() -> None:
    of, pool = layout(), teachers(5)
    found = torch.cat([rows_of(state, of, torch.float32) for state in pool])  # not the order of pack
    from_pack = WeightFormer(of, SMALL).pack([pool])
    assert not torch.equal(found, from_pack)
    shift, scale = statistics(from_pack, of, 5)
    for layer, a, b in zip(of.layers, of.column_blocks(shift), of.column_blocks(scale), strict=True):
        for p in layer.parameters:
            values = torch.stack([state[p.name].double().view(layer.rows, p.width) for state in pool])
            means = values.mean((0, 1))
            torch.testing.assert_close(a[p.start : p.start + p.width].double(), means, atol=1e-6, rtol=1e-6)
            deviation = ((values - means) ** 2).mean().sqrt()
            torch.testing.assert_close(b[p.start : p.start + p.width].double(), deviation.expand(p.width))


def test_a_parameter_that_never_varies_has_scale_one() -> None:
    pool = [{**state, "norm.weight": torch.full((4,), 0.1)} for state in teachers(7)]
    model = WeightFormer(layout(), SMALL)
    model.set_statistics(pool)
    columns = model.layout.column_blocks(model.scale)[CONV]
    place = next(p.start for p in model.layout.layers[CONV].parameters if p.name == "norm.weight")
    assert columns[place] == 1 and columns[place + 1] != 1
    assert all(t.isfinite().all() for t in students(model, [pool[:2]])[0].values())


def test_with_a_base_tokens_are_task_vectors_around_the_pools_mean() -> None:
    of, pool = layout(), teachers(4)
    model = WeightFormer(of, SMALL.but(output="gated", read="mean"), base=rows_of(pool[0], of)).double()
    model.set_statistics(pool, head=HEAD)
    assert not model.shift.any()
    centers, scales = of.row_blocks(model.center, 1), of.column_blocks(model.scale)
    for i, (layer, center, scale) in enumerate(zip(of.layers, centers, scales, strict=True)):
        for p in layer.parameters:
            values = torch.stack([state[p.name].double().view(layer.rows, p.width) for state in pool])
            columns = slice(p.start, p.start + p.width)
            # The classes are in no order that could be known, so the head's rows share one mean.
            mean = values.mean((0, 1)).expand(layer.rows, -1) if i == HEAD else values.mean(0)
            torch.testing.assert_close(center[:, columns], mean)
            torch.testing.assert_close(scale[columns], (values - mean).square().mean().sqrt().expand(p.width))


def test_the_tokens_do_not_depend_on_the_base_that_the_output_builds_on() -> None:
    """Only the task vectors do: moving the base moves the student of "gated" by what the gates leave of it."""
    of, pool = layout(), teachers(4)
    model = generic(SMALL.but(output="gated", read="mean", max_teachers=0), of, pool)
    (before,) = students(model, [pool[1:]])
    model.base += 1.0
    (after,) = students(model, [pool[1:]])
    with torch.no_grad():
        model.gate_weight.zero_()
        model.gate_bias.fill_(0.1)
        model.base -= 1.0
        (third,) = students(model, [pool[1:]])
        model.base += 1.0
        (fourth,) = students(model, [pool[1:]])
    assert any(not torch.allclose(before[name], after[name]) for name in before)
    # The weights of three teachers add up to 1 + 3 * 0.1, so a move of the base by 1 moves the student by -0.3.
    for name in third:
        torch.testing.assert_close(fourth[name] - third[name], torch.full_like(third[name], -0.3))


def start_of(config: Config, group: Sequence[State]) -> dict[str, Tensor]:
    if config.output == "anchor":
        return {n: t.double() for n, t in group[0].items()}
    return {n: torch.stack([state[n].double() for state in group]).mean(0) for n in group[0]}


@pytest.mark.parametrize("config", [c for c in FORMS if c.output in ("anchor", "mean", "gated")], ids=name_of)
def test_corrections_start_at_nothing(config: Config) -> None:
    model, group = untouched(config), teachers(4)
    (student,) = students(model, [group[1:]])
    parameters = dict(network().named_parameters())
    assert_same(student, {n: t for n, t in start_of(config, group[1:]).items() if n in parameters})


@pytest.mark.parametrize("based", [False, True])
def test_a_prior_starts_at_one_teacher_and_leaves_the_classifier_to_the_mean(based: bool) -> None:
    of, pool = layout(), teachers(4)
    base = rows_of(pool[3], of) if based else None
    model = WeightFormer(of, SMALL.but(output="prior"), base=base).double()
    model.set_statistics(pool, HEAD)
    model.set_prior(pool[0], HEAD)
    (student,) = students(model, [pool[1:3]])
    mean = start_of(SMALL.but(output="mean"), pool[1:3])
    for p in of.parameters:
        assert_same(student, {p.name: mean[p.name] if p.name.startswith("head") else pool[0][p.name]})
    assert {id(p) for p in model.fast_parameters()} == {id(model.prior), id(model.blend)}


def test_only_a_prior_can_be_set() -> None:
    with pytest.raises(ValueError, match="^set_prior: output: expected 'prior', got 'mean'$"):
        WeightFormer(layout(), SMALL.but(output="mean")).set_prior(teachers(1)[0], HEAD)
    assert WeightFormer(layout(), SMALL.but(output="mean")).fast_parameters() == []


def test_the_classes_may_come_in_any_order_where_no_code_tells_them_apart() -> None:
    """Head rows in another order give the same student with its head rows in that order."""
    order = torch.tensor([2, 0, 1])
    model, group = generic(SMALL.but(output="mean", read="mean", gate="none")), teachers(3)
    shuffled = [{n: t[order] if n.startswith("head") else t for n, t in state.items()} for state in group]
    for moves in (True, False):
        (one,), (other,) = students(model, [group]), students(model, [shuffled])
        expected = {n: t[order] if n.startswith("head") else t for n, t in one.items()}
        assert all(torch.allclose(other[n], expected[n]) for n in one if not n.startswith("head"))
        assert torch.allclose(other["head.weight"], expected["head.weight"]) != moves
        model.position.data.zero_()


@pytest.mark.parametrize("config", [SMALL.but(output=output) for output in ("mean", "plain", "prior")], ids=name_of)
def test_a_head_of_its_own_code_takes_the_classes_in_any_order(config: Config) -> None:
    order = torch.tensor([2, 0, 1])
    model, group = generic(config.but(gate="none", positions="layer", head=HEAD)), teachers(3)
    shuffled = [{n: t[order] if n.startswith("head") else t for n, t in state.items()} for state in group]
    (one,), (other,) = students(model, [group]), students(model, [shuffled])
    for name in one:
        expected = one[name][order] if name.startswith("head") else one[name]
        torch.testing.assert_close(other[name], expected)


def test_a_head_beyond_the_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="head: expected a layer below 3, got 3"):
        WeightFormer(layout(), SMALL.but(positions="layer", head=3))


@pytest.mark.parametrize("mode", ["none", "recurrent"])
def test_building_on_other_weights_keeps_what_the_tokens_say(mode: str) -> None:
    pool = teachers(6)
    model = untouched(SMALL.but(output="mean", read="mean", cross_layer=mode), pool=pool)
    (student,) = model(model.pack([pool[:2]]), [2], built_on=pool[3:5])
    assert_same(student, {n: t for n, t in start_of(model.config, pool[3:5]).items() if n in student})
    model = generic(SMALL.but(output="plain"), pool=pool)
    (own,), (other,) = students(model, [pool[:2]]), model(model.pack([pool[:2]]), [2], built_on=pool[3:5])
    assert all(torch.equal(own[n], other[n]) for n in own)
    model = generic(SMALL.but(output="gated", read="mean", cross_layer=mode), pool=pool)
    (own,) = students(model, [pool[:2]])
    (same,) = model(model.pack([pool[:2]]), [2], built_on=pool[:2])
    assert_same(same, own)


def test_dropout_acts_in_training_only() -> None:
    model, group = generic(SMALL.but(dropout=0.4)), teachers(2)
    found = model.pack([group])
    model.train()
    assert not torch.equal(model(found, [2])[0]["head.bias"], model(found, [2])[0]["head.bias"])
    model.eval()
    assert torch.equal(model(found, [2])[0]["head.bias"], model(found, [2])[0]["head.bias"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_predict_gives_a_state_dict_that_loads_strictly(dtype: torch.dtype) -> None:
    model, group, module = generic(SMALL).float(), teachers(3, dtype=dtype), network().to(dtype)
    model.train()
    state = model.predict(group)
    assert model.training
    module.load_state_dict(state)
    assert list(state) == list(group[0])
    (parameters,) = students(model, [group])
    for name, tensor in state.items():
        assert tensor.dtype == group[0][name].dtype and not tensor.requires_grad
        expected = parameters[name].to(tensor.dtype) if name in parameters else group[0][name]
        assert torch.equal(tensor, expected), name
        assert tensor.data_ptr() != group[0][name].data_ptr()
    assert state["norm.num_batches_tracked"] == 7


class Tied(nn.Module):
    """Two layers with one weight between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight


@pytest.mark.parametrize("mode", ["none", "recurrent"])
@pytest.mark.parametrize("missing", [None, "first.weight", "second.weight"])
def test_tied_parameters_stay_tied_under_all_of_their_names(mode: str, missing: str | None) -> None:
    module = Tied()
    group = [{**state, "second.weight": state["first.weight"]} for state in teachers(2, module)]
    model = generic(SMALL.but(cross_layer=mode), rows.layout(module), group).float()
    state = model.predict([{n: t for n, t in s.items() if n != missing} for s in group])
    module.load_state_dict(state)
    assert torch.equal(state["first.weight"], state["second.weight"])


def test_a_base_of_another_size_or_none_where_one_is_needed_is_refused() -> None:
    with pytest.raises(ValueError, match="^WeightFormer: base: expected the rows of the common base"):
        WeightFormer(layout(), SMALL.but(output="gated", read="mean"))
    with pytest.raises(ValueError, match=rf"^WeightFormer: base: expected shape \[{layout().row_numel}\], got \[5\]$"):
        WeightFormer(layout(), SMALL, base=torch.zeros(5))


def test_a_model_without_a_forward_says_so_and_adds_nothing_to_the_loss() -> None:
    model = StudentModel(layout())
    with pytest.raises(NotImplementedError, match="^StudentModel.forward$"):
        model(model.pack([teachers(1)]), [1])
    assert model.penalty(model.pack([teachers(1)]), [1], 1.0, 1.0) == 0 and model.fast_parameters() == []


def test_the_penalty_is_the_gates_openness_and_the_shift_consistency_by_their_weights() -> None:
    model, group = generic(SMALL), teachers(3)
    found = model.pack([group])
    assert model.gate is not None
    openness = model.gate.openness(model.layout.tokens([3], 1))
    shifted = model.shift_consistency(found, [3])
    torch.testing.assert_close(model.penalty(found, [3], 0.5, 3.0), 0.5 * openness + 3.0 * shifted)
    assert model.penalty(found, [3], 0.0, 0.0) == 0
    assert generic(SMALL.but(gate="none")).penalty(found, [3], 1.0, 0.0) == 0


def on_meta(build: Callable[[], nn.Module]) -> RowLayout:
    with torch.device("meta"):
        return rows.layout(build())


def count(model: nn.Module, *parts: str) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if name.startswith(parts))


def test_the_paper_preset_builds_the_papers_encoder() -> None:
    with torch.device("meta"):
        model = WeightFormer(layout(), preset("paper"))
        reference = nn.TransformerEncoderLayer(512, 8, 2048)
    assert count(model, "blocks") == 6 * count(reference, "")
    assert model.settings.heads == 8 and model.settings.norm == "post" and model.final_norm is None


def test_layers_of_equal_kind_and_width_may_share_their_projections() -> None:
    """ViT-B/32: 36 million parameters in either direction become 4.7 million."""
    of = on_meta(lambda: create("torchvision:vit_b_32", classes=1000))
    with torch.device("meta"):
        own, shared = (
            WeightFormer(of, preset("paper").but(gate="bucketed", share_projections=share)) for share in (False, True)
        )
    kinds = {(layer.kind, layer.width) for layer in of.layers}
    for part in ("embeddings", "outputs"):
        per_column = 512 + (part == "outputs")
        bias = 512 if part == "embeddings" else 0
        assert count(own, part) == sum(w * per_column + bias for w in of.widths)
        assert count(shared, part) == sum(w * per_column + bias for _, w in kinds)
        assert 35e6 < count(own, part) < 37e6 and 4.6e6 < count(shared, part) < 4.8e6
    assert len(own.projections) == len(shared.projections) == len(of.layers)
    for i, j in combinations(range(len(of.layers)), 2):
        alike = (of.layers[i].kind, of.widths[i]) == (of.layers[j].kind, of.widths[j])
        assert (shared.projections[i] == shared.projections[j]) == alike
