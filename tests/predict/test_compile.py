"""predict under torch.compile and torch.export, on huge meta tensors, and the library op behind its index tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from tests import properties
from tests.embedding.cases import row_layout
from tests.predict.cases import CASES, Case, call, tensors
from wfkernels import Block, Parameters, Settings, predict
from wfkernels.layout import TokenLayout
from wfkernels.predict import ops
from wfkernels.predict.plan import Indices, Plan, indices


@pytest.mark.parametrize("name", ["dropout", "specialists", "one layer", "keep all", "keep all, pre"])
def test_compiled_in_one_graph_with_backward(name: str) -> None:
    properties.compiles_in_one_graph(call(CASES[name]), backend="aot_eager")


def test_compiled_by_inductor() -> None:
    properties.compiles_in_one_graph(call(CASES["one block"]))


def test_other_groups_of_teachers_do_not_compile_again() -> None:
    case = CASES["bucketed"]
    rows, parameters, tokens, lookup = tensors(case)
    parameters = replace(parameters, teacher=torch.randn(9, 8, dtype=torch.float64, requires_grad=True))
    leaves = [t for t in parameters.flatten() if t is not None]

    def step(rows: Tensor, layout: TokenLayout) -> Tensor:
        students = predict(rows, parameters, case.settings, layout=layout, gate_lookup=lookup)
        assert isinstance(students, Tensor)
        return students

    counter = CompileCounter()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
    for teachers in ((2, 3), (5, 2), (4, 4), (1, 8)):
        other = tokens.layout.tokens(teachers, case.cross)
        rows = torch.randn(sum(teachers) * tokens.layout.row_numel, dtype=torch.float64, requires_grad=True)
        # Eager first: a layout that has never been read is another thing to torch.compile than one that has.
        wanted, found = step(rows, other), compiled(rows, other)
        torch.testing.assert_close(found, wanted)
        grads = [torch.autograd.grad(y.square().sum(), [rows, *leaves]) for y in (found, wanted)]
        torch.testing.assert_close(*grads)
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["paper", "specialists", "one layer"])
def test_exported(name: str) -> None:
    properties.exports_with_gradients(call(CASES[name]))


def test_compiled_under_autocast() -> None:
    c = call(CASES["recipe"]).to(torch.float32)

    def under_autocast(leaves: properties.Leaves) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            return c.run(leaves)

    compiled = torch.compile(under_autocast, fullgraph=True, backend="aot_eager")
    properties.assert_same(properties.results(c, compiled), properties.results(c, under_autocast))


PLANS = {
    "everything": (CASES["bucketed"], False),
    "cross tokens kept": (CASES["one layer"], True),
    "no cross tokens": (CASES["recipe"], False),
    "one cross token, all rows": (CASES["dropout, post"], False),
}


def plan_of(case: Case, return_cross: bool) -> Plan:
    return Plan(case.layout, case.settings, return_cross, "auto")


@pytest.mark.parametrize("name", PLANS)
def test_opcheck_of_the_indices(name: str) -> None:
    plan = plan_of(*PLANS[name])
    arguments = (
        plan.layout.layout.rows,
        plan.layout.teachers,
        plan.layout.cross,
        plan.settings.read == "anchor",
        plan.return_cross,
        torch.device("cpu"),
    )
    torch.library.opcheck(ops.predict_indices, arguments)
    for a, b in zip(indices(plan, torch.zeros(())), ops.predict_indices(*arguments), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", PLANS)
def test_indices_are_those_of_the_tokens_counted_one_by_one(name: str) -> None:
    plan = plan_of(*PLANS[name])
    tokens, c = plan.layout, plan.layout.cross
    wanted: dict[str, list[Any]] = {field: [] for field in Indices._fields}
    wanted["cross"] = [[] for _ in tokens.teachers]
    wanted["offsets"], wanted["read_offsets"] = [0], [0]
    token = read = 0
    for n in tokens.layout.rows:
        for g, teachers in enumerate(tokens.teachers):
            for place in [(0, 0, k) for k in range(c)] + [(1, t + 1, j) for t in range(teachers) for j in range(n)]:
                for field, value in zip(("group", "segment", "position"), place, strict=True):
                    wanted[field].append(value)
                is_cross = place[0] == 0
                if is_cross:
                    wanted["cross"][g].append(token)
                if (is_cross and plan.return_cross) or (place[1] and (plan.settings.read == "mean" or place[1] == 1)):
                    wanted["read"].append(token)
                    wanted["heads" if is_cross else "rows"].append(read)
                    read += 1
                token += 1
            wanted["offsets"].append(token)
            wanted["read_offsets"].append(read)
            wanted["query_start"].append(0 if plan.return_cross else c)
    layers = range(len(tokens.layout.rows))
    wanted["earlier"] = [
        [0.0 if other < layer else -torch.inf for other in layers for _ in range(c)]
        for layer in layers
        for _ in range(c)
    ]
    for field, found in indices(plan, torch.zeros(()))._asdict().items():
        assert found.tolist() == wanted[field], field


def test_indices_are_kept_but_not_those_of_tracers() -> None:
    plan = plan_of(CASES["recipe"], False)
    assert indices(plan, torch.zeros(())) is indices(plan, torch.ones(()))
    with torch._subclasses.FakeTensorMode():
        assert type(indices(plan, torch.zeros(())).offsets) is not Tensor
    assert type(indices(plan, torch.zeros(())).offsets) is Tensor


def test_sizes_beyond_two_to_the_31() -> None:
    n, d, ffn = 2**20, 512, 1024
    tokens = row_layout((n, (800,))).tokens([2, 1], 1)
    student = tokens.layout
    with torch.device("meta"):
        block = Block(
            *(torch.empty(d), torch.empty(d)),
            *(torch.empty(3 * d, d, requires_grad=True), torch.empty(3 * d), torch.empty(d, d), torch.empty(d)),
            *(torch.empty(d), torch.empty(d)),
            *(torch.empty(ffn, d), torch.empty(ffn), torch.empty(d, ffn), torch.empty(d)),
        )
        parameters = Parameters(
            embedding_weights=[torch.empty(800, d)],
            embedding_biases=torch.empty(1, d),
            shift=torch.empty(student.column_numel),
            scale=torch.empty(student.column_numel),
            position=torch.empty(n, d, requires_grad=True),
            gamma=torch.empty(d),
            beta=torch.empty(d),
            blocks=[block, block],
            projection_weights=[torch.empty(d, 800)],
            projection_biases=[torch.empty(800)],
            strength=torch.empty(1),
            cross=torch.empty(1, d, requires_grad=True),
        )
        rows = torch.empty(3 * student.row_numel, requires_grad=True)
    settings = Settings(4, read="mean", output="mean")
    students = predict(rows, parameters, settings, layout=tokens)
    assert isinstance(students, Tensor) and students.shape == (2, student.numel)
    assert rows.numel() > 2**31 and tokens.total * ffn > 2**31
    students.sum().backward()
    for leaf in (rows, parameters.position, parameters.cross, block.qkv_weight):
        assert leaf is not None and leaf.grad is not None and leaf.grad.shape == leaf.shape
