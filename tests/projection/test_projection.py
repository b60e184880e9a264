"""projection is what its definition says, in every form, and keeps all that the rooms promise."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from tests import properties
from tests.embedding.cases import row_layout
from tests.projection.cases import CASES, Case, call, library_arguments
from wfkernels import projection, unpack
from wfkernels.projection import ops

GATED = CASES["gated, shared projections"]
PRIOR = CASES["prior, anchor, base"]
CHOSEN = pytest.mark.parametrize("case", [GATED, PRIOR, CASES["plain, mean"]], ids=["gated", "prior", "plain"])


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str) -> None:
    properties.agrees_with_definition(call(CASES[name]))


@pytest.mark.parametrize("name", ["plain, anchor", "anchor, mean, base", "mean, mean", "prior, anchor, base", "gated"])
def test_gradcheck(name: str) -> None:
    properties.passes_gradcheck(call(CASES[name]))


@CHOSEN
def test_any_strides(case: Case) -> None:
    properties.takes_any_strides(call(case))
    properties.takes_expanded_gradients(call(case))


@CHOSEN
def test_only_gradients_asked_for(case: Case) -> None:
    properties.gives_only_gradients_asked_for(call(case))


@pytest.mark.parametrize("output", ["gated", "prior"])
def test_every_subset_of_requires_grad(output: str) -> None:
    one_layer = Case(output, "mean", layers=((2, (3,)),), teachers=(2,), d=2, base=True)
    properties.gives_only_gradients_asked_for(call(one_layer), most=None)


@CHOSEN
def test_inputs_untouched_and_runs_repeat(case: Case) -> None:
    properties.leaves_inputs_alone_and_repeats(call(case))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("name", CASES)
def test_every_element_is_written(name: str) -> None:
    properties.writes_every_element(call(CASES[name]))


@CHOSEN
def test_paddings_are_not_read_and_get_no_gradient(case: Case) -> None:
    c = call(case)
    student, copies = case.layout.layout, sum(case.teachers)
    masks = {
        "shift": torch.ones(student.column_numel, dtype=torch.bool),
        "scale": torch.ones(student.column_numel, dtype=torch.bool),
        "base": torch.ones(student.row_numel, dtype=torch.bool),
        "prior": torch.ones(student.row_numel, dtype=torch.bool),
        "rows": torch.ones(copies * student.row_numel, dtype=torch.bool),
    }
    blocks = student.column_blocks(masks["shift"]) + student.column_blocks(masks["scale"])
    blocks += student.row_blocks(masks["base"], 1) + student.row_blocks(masks["prior"], 1)
    for block in blocks + student.row_blocks(masks["rows"], copies):
        block.fill_(False)
    masks = {n: mask for n, mask in masks.items() if n in c.leaves}
    assert all(mask.any() for mask in masks.values())
    dirty = {n: c.leaves[n].detach().masked_fill(mask, torch.nan).requires_grad_() for n, mask in masks.items()}
    found = properties.results(c.but(dirty))
    properties.assert_same(found, properties.results(c), exact=True)
    for name, mask in masks.items():
        assert (found[f"gradient of {name}"][mask] == 0).all()


@CHOSEN
def test_paddings_of_the_students_are_zero_and_their_gradient_is_not_read(case: Case) -> None:
    c = call(case)
    (students,) = c.run(c.leaves)
    used = torch.zeros_like(students, dtype=torch.bool)
    position = 0
    for layer in case.layout.layout.layers:
        for p in layer.parameters:
            used[:, position : position + layer.rows * p.width] = True
            position += -(-layer.rows * p.width // 8) * 8
    assert position == students.shape[1] and not used.all() and (students[~used] == 0).all()
    leaves = list(c.leaves.values())
    weights = torch.randn_like(students)
    wanted = torch.autograd.grad(students, leaves, weights, retain_graph=True, materialize_grads=True)
    found = torch.autograd.grad(students, leaves, weights.masked_fill(~used, torch.nan), materialize_grads=True)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("output", ["plain", "anchor", "mean", "prior", "gated"])
def test_groups_do_not_reach_each_other(output: str) -> None:
    case = Case(output, "mean" if output == "gated" else "anchor", base=True, teachers=(2, 3))
    c = call(case)
    (clean,) = c.run(c.leaves)
    # Layer 0 of the first group: n = 3 rows of stride 16 for each of 2 teachers.
    dirty = {"tokens": c.leaves["tokens"].detach().clone()}
    dirty["tokens"][: 6 if case.read == "mean" else 3] = torch.nan
    if "rows" in c.leaves:
        dirty["rows"] = c.leaves["rows"].detach().clone()
        dirty["rows"][: 2 * 3 * 16] = torch.nan
    (found,) = c.run({**c.leaves, **dirty})
    assert torch.equal(found[1], clean[1])
    assert found[0, :27].isnan().all() and torch.equal(found[0, 40:], clean[0, 40:])


@pytest.mark.parametrize("output", ["anchor", "mean"])
def test_correction_of_zero_gives_the_teachers_as_they_are(output: str) -> None:
    case = Case(output, base=True)
    c = call(case)
    (students,) = c.run({**c.leaves, "strength": torch.zeros(3, dtype=torch.float64)})
    rows = case.layout.layout.row_blocks(c.leaves["rows"], 5)[0].view(5, 3, 10)[:2]
    found = unpack(students[0], case.layout.layout)
    both = torch.cat([found["l0.0"], found["l0.1"]], 1)
    if output == "anchor":
        assert torch.equal(both, rows[0])
    else:
        torch.testing.assert_close(both, rows.mean(0))


def test_anchor_is_not_reached_by_other_teachers() -> None:
    c = call(Case("anchor"))
    rows = c.leaves["rows"].detach().clone()
    rows[3 * 16 : 2 * 3 * 16] = torch.nan  # layer 0 of the first group's second teacher
    assert all(torch.equal(a, b) for a, b in zip(c.run({**c.leaves, "rows": rows}), c.run(c.leaves), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["plain, mean", "anchor, anchor", "prior, mean, base", "gated", "odd sizes"])
def test_error_is_that_of_eager(dtype: torch.dtype, name: str) -> None:
    properties.is_no_worse_than_eager([call(CASES[name])], dtype)


@pytest.mark.parametrize("layout", [lambda x: x, properties.permuted], ids=["contiguous", "permuted"])
@CHOSEN
def test_opcheck(case: Case, layout: Any) -> None:
    leaves = {n: layout(t) for n, t in call(case).leaves.items()}
    torch.library.opcheck(ops.projection, (*library_arguments(case, leaves), "auto"))


@pytest.mark.parametrize("inputs", [True, False], ids=["inputs", "parameters only"])
@pytest.mark.parametrize("layout", [lambda x: x, properties.permuted], ids=["contiguous", "permuted"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@CHOSEN
def test_opcheck_backward(case: Case, layout: Any, inputs: bool, dtype: torch.dtype) -> None:
    leaves = {n: layout(t.detach().to(dtype)).detach() for n, t in call(case).leaves.items()}
    arguments = library_arguments(case, leaves)
    grad = layout(torch.randn_like(ops.projection(*arguments, "auto"))).detach()
    torch.library.opcheck(
        ops.projection_backward,
        (grad, *arguments, inputs, "auto"),
        test_utils=("test_schema", "test_faketensor"),
    )


@CHOSEN
def test_compiled(case: Case) -> None:
    properties.compiles_in_one_graph(call(case))


def test_other_groups_of_teachers_do_not_compile_again() -> None:
    counter = CompileCounter()
    c = call(PRIOR)
    weights, biases = ([c.leaves[f"{name}[{i}]"] for i in range(3)] for name in ("weights", "biases"))
    rest = {n: c.leaves[n] for n in ("strength", "shift", "scale", "base", "prior", "blend")}

    def step(tokens: Tensor, rows: Tensor, layout: Any) -> Tensor:
        return projection(tokens, weights, biases, **rest, rows=rows, layout=layout, output="prior", read="mean")

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
    student = row_layout(*PRIOR.layers)
    for teachers in ((2, 3), (5, 2), (4, 4), (1, 8)):
        layout, copies = student.tokens(teachers), sum(teachers)
        tokens = torch.randn(copies * sum(student.rows), 6, dtype=torch.float64)
        rows = torch.randn(copies * student.row_numel, dtype=torch.float64)
        # Eager first: a layout that has never been read is another thing to torch.compile than one that has.
        wanted = step(tokens, rows, layout)
        torch.testing.assert_close(compiled(tokens, rows, layout), wanted)
    assert counter.frame_count == 1


@CHOSEN
def test_exported(case: Case) -> None:
    properties.exports_with_gradients(call(case))


def test_not_differentiable_twice() -> None:
    properties.is_not_differentiable_twice(call(GATED))


def test_autocast_casts_tokens_and_parameters_of_products() -> None:
    c = call(CASES["gated"]).to(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = properties.results(c)
    exact = ("strength", "shift", "scale", "rows", "base")
    mixed = c.but({n: t.detach().bfloat16().requires_grad_() for n, t in c.leaves.items() if n not in exact})
    wanted = properties.results(mixed)
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, wanted[name].float()), name


def test_result_has_the_dtype_of_strength() -> None:
    c = call(PRIOR)
    half = c.but({n: t.detach().bfloat16() for n, t in c.leaves.items() if n != "strength"})
    assert half.run(half.leaves)[0].dtype == torch.float64
    low = c.to(torch.float32).but({"strength": c.leaves["strength"].detach().bfloat16()})
    assert low.run(low.leaves)[0].dtype == torch.bfloat16


def test_sizes_beyond_two_to_the_31() -> None:
    layout = row_layout((2**20, (1100,))).tokens([2, 1])
    student, d = layout.layout, 1024
    with torch.device("meta"):
        tokens = torch.empty(3 * 2**20, d, requires_grad=True)
        weight, bias = torch.empty(d, 1100, requires_grad=True), torch.empty(1100)
        rows = torch.empty(3 * student.row_numel, requires_grad=True)
        rest = {
            "strength": torch.empty(1),
            "shift": torch.empty(student.column_numel),
            "scale": torch.empty(student.column_numel),
        }
    students = projection(tokens, [weight], [bias], **rest, layout=layout, rows=rows, read="mean", output="mean")
    assert tokens.numel() > 2**31 and students.numel() > 2**31 and students.shape == (2, 2**20 * 1100)
    students.sum().backward()
    for leaf in (tokens, weight, rows):
        assert leaf.grad is not None and leaf.grad.shape == leaf.shape


def test_named_implementations() -> None:
    properties.refuses_other_implementations(call(PRIOR), "projection")


LAYOUT = row_layout((3, (4,)), (2, (5,))).tokens([2, 1])
GOOD: dict[str, Any] = {
    "tokens": torch.zeros(10, 6),
    "weights": [torch.zeros(6, 4), torch.zeros(6, 5)],
    "biases": [torch.zeros(4), torch.zeros(5)],
    "strength": torch.zeros(2),
    "shift": torch.zeros(16),
    "scale": torch.ones(16),
    "layout": LAYOUT,
}
ROWS, ONE = torch.zeros(120), torch.zeros(40)
GATES = {"base": ONE, "gate_weight": torch.zeros(2, 6), "gate_bias": torch.zeros(2)}
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"layout": LAYOUT.layout}, TypeError, "layout: expected a TokenLayout (RowLayout.tokens), got RowLayout"),
    ({"weights": torch.zeros(2, 6, 4)}, TypeError, "weights: expected a list or tuple of tensors, got Tensor"),
    ({"biases": []}, ValueError, "biases: expected at least one tensor, got none"),
    ({"biases": [torch.zeros(4), 0]}, TypeError, "biases[1]: expected a torch.Tensor, got int"),
    ({"tokens": None}, TypeError, "tokens: expected a torch.Tensor, got NoneType"),
    ({"strength": torch.zeros(2).int()}, TypeError, "strength: expected a floating-point tensor, got torch.int32"),
    ({"shift": torch.zeros(16, device="meta")}, ValueError, "shift: expected a tensor on cpu like tokens, got one on"),
    ({"tokens": torch.zeros(10, 6).half()}, ValueError, "weights[0]: expected dtype torch.float16 like tokens, got"),
    ({"read": "all"}, ValueError, "read: expected one of anchor, mean, got 'all'"),
    ({"output": "best"}, ValueError, "output: expected one of plain, anchor, mean, prior, gated, got 'best'"),
    ({"output": "mean"}, ValueError, "rows: expected a tensor, because output='mean' needs it, got None"),
    ({"output": "prior", "rows": ROWS}, ValueError, "prior: expected a tensor, because output='prior' needs it"),
    ({"output": "prior", "rows": ROWS, "prior": ONE}, ValueError, "blend: expected a tensor, because output='prior'"),
    ({"output": "gated", "rows": ROWS}, ValueError, "base: expected a tensor, because output='gated' needs it"),
    (
        {"output": "gated", "rows": ROWS, **GATES},
        ValueError,
        "read: expected 'mean', because output='gated' reads all tokens, got 'anchor'",
    ),
    ({"tokens": torch.zeros(15, 6)}, ValueError, "tokens: expected shape [10, d], got [15, 6]"),
    ({"read": "mean"}, ValueError, "tokens: expected shape [15, d], got [10, 6]"),
    ({"biases": [torch.zeros(4)]}, ValueError, "biases: expected 2 tensors like weights, got 1"),
    ({"weights": [torch.zeros(4, 6), torch.zeros(6, 5)]}, ValueError, "weights[0]: expected shape [6, r], got [4, 6]"),
    ({"biases": [torch.zeros(5), torch.zeros(5)]}, ValueError, "biases[0]: expected shape [4], got [5]"),
    ({"strength": torch.zeros(())}, ValueError, "strength: expected shape [2], got []"),
    ({"scale": torch.ones(9)}, ValueError, "scale: expected shape [16], got [9]"),
    ({"base": torch.zeros(9)}, ValueError, "base: expected shape [40], got [9]"),
    ({"rows": ONE}, ValueError, "rows: expected shape [120], got [40]"),
    ({"prior": ROWS}, ValueError, "prior: expected shape [40], got [120]"),
    ({"blend": torch.zeros(3)}, ValueError, "blend: expected shape [2], got [3]"),
    ({"gate_weight": torch.zeros(6)}, ValueError, "gate_weight: expected shape [2, 6], got [6]"),
    ({"gate_bias": torch.zeros(1)}, ValueError, "gate_bias: expected shape [2], got [1]"),
    ({"projections": [0, 1, 1]}, ValueError, "projections: expected one index for each of 2 layers, got 3"),
    ({"projections": [0, -1]}, ValueError, "projections: layer 1: expected an index into the 2 weights given, got -1"),
    ({"projections": [1, 1]}, ValueError, "projections: layer 0: expected weights for rows of 4 columns, got"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m for _, _, m in BAD])
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    projection(**GOOD)
    with pytest.raises(error, match=f"^projection: {re.escape(message)}") as caught:
        projection(**{**GOOD, **change})
    assert "\n" not in str(caught.value)
