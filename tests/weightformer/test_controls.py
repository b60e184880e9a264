"""The controls: models that may not read what a WeightFormer reads, and states with parts of others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tests.weightformer.tiny import CLASSES, HEAD, HIDDEN, assert_same, images, layout, network, teachers
from weightformer import rows
from weightformer.compare.controls import ConstantStudent, MeanAndDelta, in_order, with_layer_of
from weightformer.state import State

PARAMETERS = {name for name, _ in network().named_parameters()}
ORDER = torch.tensor([2, 0, 1])


def mean_of(group: list[State]) -> dict[str, Tensor]:
    return {name: torch.stack([state[name] for state in group]).mean(0) for name in PARAMETERS}


def test_a_constant_student_is_its_start_whatever_the_teachers() -> None:
    pool = teachers(5)
    model = ConstantStudent(layout(), pool[4])
    for group in (pool[:1], pool[1:4]):
        state = model.predict(group)
        assert all(torch.equal(state[name], pool[4][name]) for name in PARAMETERS)
        assert torch.equal(state["norm.running_mean"], group[0]["norm.running_mean"])
        network().load_state_dict(state)


def test_a_constant_student_learns_without_touching_its_start() -> None:
    pool = teachers(3)
    before = {name: tensor.clone() for name, tensor in pool[0].items()}
    model = ConstantStudent(layout(), pool[0])
    one, other = model(model.pack([pool[:1], pool[1:]]), [1, 2])
    scores = functional_call(network(), one, (images(4),)) + functional_call(network(), other, (images(4),))
    scores.square().sum().backward()
    assert len(list(model.parameters())) == len(PARAMETERS)
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None and parameter.grad.any()
            parameter -= parameter.grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in pool[0].items())
    assert not torch.equal(model.predict(pool[:1])["head.weight"], before["head.weight"])


def test_mean_and_delta_starts_at_the_mean_of_every_group() -> None:
    pool = teachers(5)
    model = MeanAndDelta(layout(), HEAD)
    one, other = model(model.pack([pool[:2], pool[2:]]), [2, 3])
    assert_same(one, mean_of(pool[:2]))
    assert_same(other, mean_of(pool[2:]))
    assert_same(model.predict(pool), mean_of(pool))


def test_mean_and_delta_scales_and_moves_every_weight_but_the_heads() -> None:
    pool = teachers(3)
    model = MeanAndDelta(layout(), HEAD)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)
    (student,) = model(model.pack([pool]), [3])
    mean = mean_of(pool)
    assert_same(student, {name: tensor for name, tensor in mean.items() if name.startswith("head")})
    columns = slice(0, 4)
    factors, deltas = model.factors[HIDDEN], model.deltas[HIDDEN]
    expected = mean["hidden.weight"] * factors[:, columns] + deltas[:, columns]
    torch.testing.assert_close(student["hidden.weight"], expected)
    sum(tensor.square().sum() for tensor in student.values()).backward()
    trained = {id(p) for p in model.parameters() if p.grad is not None and p.grad.any()}
    kept = {id(model.factors[HEAD]), id(model.deltas[HEAD])}
    assert trained == {id(p) for p in model.parameters()} - kept


def test_another_order_of_the_classes_turns_the_outputs_and_is_undone_by_its_inverse() -> None:
    (state,) = teachers(1)
    moved = in_order(state, layout(), HEAD, ORDER)
    assert list(moved) == list(state)
    back = in_order(moved, layout(), HEAD, ORDER.argsort())
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    network_of = {id(s): network().eval() for s in (state, moved)}
    for s in (state, moved):
        network_of[id(s)].load_state_dict(s)
    x = images(5)
    torch.testing.assert_close(network_of[id(moved)](x), network_of[id(state)](x)[:, ORDER])


@pytest.mark.parametrize("layers", [[], [HEAD], [0, HIDDEN], [0, HIDDEN, HEAD]], ids=str)
def test_layers_of_another_network_are_swapped_in_and_out_again(layers: list[int]) -> None:
    one, other = teachers(2)
    mixed, rest = with_layer_of(one, other, layout(), layers), with_layer_of(other, one, layout(), layers)
    names = {p.name for i in layers for p in layout().layers[i].parameters}
    for name in one:
        assert mixed[name] is (other if name in names else one)[name]
        assert rest[name] is (one if name in names else other)[name]
    back = with_layer_of(mixed, rest, layout(), layers)
    assert all(back[name] is one[name] for name in one)


class Tied(nn.Module):
    """A head whose weight stands under a second name as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, CLASSES), nn.Linear(3, CLASSES)
        self.head.weight = self.first.weight


def test_tied_parameters_move_under_all_of_their_names() -> None:
    module = Tied()
    of = rows.layout(module)
    pool = [{**state, "head.weight": state["first.weight"]} for state in teachers(2, module)]
    head = rows.head(of, name="first")
    moved = in_order(pool[0], of, head, ORDER)
    assert torch.equal(moved["head.weight"], moved["first.weight"])
    mixed = with_layer_of(pool[0], pool[1], of, [head])
    assert torch.equal(mixed["head.weight"], pool[1]["head.weight"])
    for model in (ConstantStudent(of, pool[0]), MeanAndDelta(of, head)):
        state = model.predict(pool)
        assert torch.equal(state["head.weight"], state["first.weight"])
        module.load_state_dict(state)
