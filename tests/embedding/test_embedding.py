"""embedding is what its definition says, in every form, and keeps all that the rooms promise."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from tests import properties
from tests.embedding.cases import CASES, Case, call, library_arguments, row_layout
from wfkernels import embedding
from wfkernels.embedding import ops

FULL = Case(cross=1, base=True, activation="gelu", projections=(0, 1, 1))
CHOSEN = pytest.mark.parametrize("case", [FULL, CASES["no codes"]], ids=["everything", "no codes"])


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str) -> None:
    properties.agrees_with_definition(call(CASES[name]))


@pytest.mark.parametrize("name", ["cross tokens", "base", "shared projections", "no codes", "empty layer"])
def test_gradcheck(name: str) -> None:
    properties.passes_gradcheck(call(CASES[name]))


@CHOSEN
def test_any_strides(case: Case) -> None:
    properties.takes_any_strides(call(case))
    properties.takes_expanded_gradients(call(case))


@CHOSEN
def test_only_gradients_asked_for(case: Case) -> None:
    properties.gives_only_gradients_asked_for(call(case))


def test_every_subset_of_requires_grad() -> None:
    one_layer = Case(layers=((2, (3,)),), teachers=(1,), cross=1, d=2, base=True)
    properties.gives_only_gradients_asked_for(call(one_layer), most=None)


@CHOSEN
def test_inputs_untouched_and_runs_repeat(case: Case) -> None:
    properties.leaves_inputs_alone_and_repeats(call(case))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("name", ["odd sizes", "empty layer", "no codes"])
def test_every_element_is_written(name: str) -> None:
    properties.writes_every_element(call(CASES[name]))


@CHOSEN
def test_paddings_are_not_read_and_get_no_gradient(case: Case) -> None:
    c = call(case)
    student = case.layout.layout
    column = torch.ones(student.column_numel, dtype=torch.bool)
    row = torch.ones(student.row_numel, dtype=torch.bool)
    rows = torch.ones(sum(case.teachers) * student.row_numel, dtype=torch.bool)
    for mask in student.column_blocks(column) + student.row_blocks(row, 1):
        mask.fill_(False)
    for mask in student.row_blocks(rows, sum(case.teachers)):
        mask.fill_(False)
    masks = {"rows": rows, "shift": column, "scale": column} | ({"base": row} if case.base else {})
    assert all(mask.any() for mask in masks.values())
    dirty = {n: c.leaves[n].detach().masked_fill(mask, torch.nan).requires_grad_() for n, mask in masks.items()}
    found = properties.results(c.but(dirty))
    properties.assert_same(found, properties.results(c), exact=True)
    for name, mask in masks.items():
        assert (found[f"gradient of {name}"][mask] == 0).all()


def test_teachers_of_one_group_do_not_reach_another() -> None:
    c, n = call(CASES["groups of different size"]), 3
    rows = c.leaves["rows"].detach().clone()
    rows[: n * 16] = torch.nan  # layer 0 of the first teacher of the first group: 3 rows of stride 16
    (tokens,) = c.but({"rows": rows}).run({**c.leaves, "rows": rows})
    assert tokens[:n].isnan().all() and tokens[n:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["odd sizes", "base", "gelu"])
def test_error_is_that_of_eager(dtype: torch.dtype, name: str) -> None:
    properties.is_no_worse_than_eager([call(CASES[name])], dtype)


@pytest.mark.parametrize("layout", [lambda x: x, properties.permuted], ids=["contiguous", "permuted"])
@CHOSEN
def test_opcheck(case: Case, layout: Any) -> None:
    leaves = {n: layout(t) for n, t in call(case).leaves.items()}
    torch.library.opcheck(ops.embedding, (*library_arguments(case, leaves), "auto"))


@pytest.mark.parametrize("inputs", [True, False], ids=["inputs", "parameters only"])
@pytest.mark.parametrize("layout", [lambda x: x, properties.permuted], ids=["contiguous", "permuted"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@CHOSEN
def test_opcheck_backward(case: Case, layout: Any, inputs: bool, dtype: torch.dtype) -> None:
    leaves = {n: layout(t.detach().to(dtype)).detach() for n, t in call(case).leaves.items()}
    arguments = library_arguments(case, leaves)
    grad = layout(torch.randn_like(ops.embedding(*arguments, "auto"))).detach()
    torch.library.opcheck(
        ops.embedding_backward,
        (grad, *arguments, inputs, "auto"),
        test_utils=("test_schema", "test_faketensor"),
    )


@CHOSEN
def test_compiled(case: Case) -> None:
    properties.compiles_in_one_graph(call(case))


def test_other_groups_of_teachers_do_not_compile_again() -> None:
    counter = CompileCounter()

    def step(rows: Tensor, layout: Any) -> Tensor:
        leaves = {**call_.leaves, "rows": rows}
        weights = [leaves.pop(f"weights[{i}]") for i in range(3)]
        return embedding(**leaves, weights=weights, layout=layout, projections=None)

    call_ = call(Case(teachers=(9,)))
    student = row_layout(*Case().layers)
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
    for teachers in ((2, 3), (5, 2), (4, 4), (1, 8)):
        layout = student.tokens(teachers)
        rows = torch.randn(sum(teachers) * student.row_numel, dtype=torch.float64)
        # Eager first: a layout that has never been read is another thing to torch.compile than one that has.
        wanted = step(rows, layout)
        torch.testing.assert_close(compiled(rows, layout), wanted)
    assert counter.frame_count == 1


@CHOSEN
def test_exported(case: Case) -> None:
    properties.exports_with_gradients(call(case))


def test_not_differentiable_twice() -> None:
    properties.is_not_differentiable_twice(call(FULL))


def test_autocast_casts_parameters_but_not_rows() -> None:
    c = call(FULL).to(torch.float32)
    # A common base far from zero, against which the teachers differ by less than bfloat16 resolves.
    c.leaves["rows"].data += 100
    c.leaves["base"].data += 100
    with torch.autocast("cpu", torch.bfloat16):
        found = properties.results(c)
    exact = ("rows", "base", "shift", "scale")
    mixed = c.but({n: t.detach().bfloat16().requires_grad_() for n, t in c.leaves.items() if n not in exact})
    wanted = properties.results(mixed)
    assert found["output 0"].dtype == torch.bfloat16
    for name, tensor in found.items():
        assert name == "output 0" or tensor.dtype == torch.float32
        assert torch.equal(tensor, wanted[name].to(tensor.dtype)), name
    error = (found["output 0"].double() - c.to(torch.float64).run(c.to(torch.float64).leaves)[0]).abs().max()
    assert error < 0.1


def test_sizes_beyond_two_to_the_31() -> None:
    layout = row_layout((2**20, (1100,))).tokens([2, 1])
    student, d = layout.layout, 1024
    with torch.device("meta"):
        leaves = {
            "rows": torch.empty(3 * student.row_numel, requires_grad=True),
            "biases": torch.empty(1, d),
            "shift": torch.empty(student.column_numel),
            "scale": torch.empty(student.column_numel),
            "position": torch.empty(2**20, d, requires_grad=True),
            "gamma": torch.empty(d),
            "beta": torch.empty(d),
        }
        weight = torch.empty(1100, d, requires_grad=True)
    tokens = embedding(**leaves, weights=[weight], layout=layout)
    assert leaves["rows"].numel() > 2**31 and tokens.numel() > 2**31 and tokens.shape == (3 * 2**20, d)
    tokens.sum().backward()
    for leaf in (leaves["rows"], leaves["position"], weight):
        assert leaf.grad is not None and leaf.grad.shape == leaf.shape


def test_named_implementations() -> None:
    properties.refuses_other_implementations(call(FULL), "embedding")


LAYOUT = row_layout((3, (4,)), (2, (5,))).tokens([2, 1])
GOOD: dict[str, Any] = {
    "rows": torch.zeros(3 * 40),
    "weights": [torch.zeros(4, 6), torch.zeros(5, 6)],
    "biases": torch.zeros(2, 6),
    "shift": torch.zeros(16),
    "scale": torch.ones(16),
    "position": torch.zeros(3, 6),
    "gamma": torch.zeros(6),
    "beta": torch.zeros(6),
    "layout": LAYOUT,
}
WITH_CROSS = replace(LAYOUT, cross=2)
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"layout": LAYOUT.layout}, TypeError, "layout: expected a TokenLayout (RowLayout.tokens), got RowLayout"),
    ({"weights": torch.zeros(2, 4, 6)}, TypeError, "weights: expected a list or tuple of tensors, got Tensor"),
    ({"weights": []}, ValueError, "weights: expected at least one tensor, got none"),
    ({"weights": [torch.zeros(4, 6), None]}, TypeError, "weights[1]: expected a torch.Tensor, got NoneType"),
    ({"rows": [0.0]}, TypeError, "rows: expected a torch.Tensor, got list"),
    (
        {"base": torch.zeros(40, dtype=torch.int64)},
        TypeError,
        "base: expected a floating-point tensor, got torch.int64",
    ),
    (
        {"scale": torch.ones(16, device="meta")},
        ValueError,
        "scale: expected a tensor on cpu like rows, got one on meta",
    ),
    ({"beta": torch.zeros(6).double()}, ValueError, "beta: expected dtype torch.float32 like weights[0], got"),
    ({"teacher": torch.zeros(3, 6).half()}, ValueError, "teacher: expected dtype torch.float32 like weights[0], got"),
    ({"activation": "silu"}, ValueError, "activation: expected one of none, relu, gelu, got 'silu'"),
    ({"gamma": torch.zeros(())}, ValueError, "gamma: expected shape [d], got []"),
    ({"weights": [torch.zeros(4, 6), torch.zeros(5)]}, ValueError, "weights[1]: expected shape [r, 6], got [5]"),
    ({"rows": torch.zeros(80)}, ValueError, "rows: expected shape [120], got [80]"),
    ({"biases": torch.zeros(6)}, ValueError, "biases: expected shape [2, 6], got [6]"),
    ({"shift": torch.zeros(9)}, ValueError, "shift: expected shape [16], got [9]"),
    ({"scale": torch.zeros(9)}, ValueError, "scale: expected shape [16], got [9]"),
    ({"position": torch.zeros(3)}, ValueError, "position: expected shape [positions, 6], got [3]"),
    ({"beta": torch.zeros(5)}, ValueError, "beta: expected shape [6], got [5]"),
    ({"base": torch.zeros(80)}, ValueError, "base: expected shape [40], got [80]"),
    ({"teacher": torch.zeros(3, 5)}, ValueError, "teacher: expected shape [teacher ids, 6], got [3, 5]"),
    ({"teacher": torch.zeros(2, 6)}, ValueError, "teacher: expected at least 3 codes, for cross tokens and 2 teachers"),
    ({"layer": torch.zeros(3, 6)}, ValueError, "layer: expected shape [2, 6], got [3, 6]"),
    ({"cross": torch.zeros(4, 2, 6)}, ValueError, "cross: expected shape [4, 0, 6], got [4, 2, 6]"),
    ({"cross": torch.zeros(4, 0, 6)}, ValueError, "cross: expected None, because the layout has 0 cross tokens"),
    ({"layout": WITH_CROSS}, ValueError, "cross: expected a tensor, because the layout has 2 cross tokens per layer"),
    (
        {"layout": WITH_CROSS, "cross": torch.zeros(2, 2, 6)},
        ValueError,
        "cross: expected shape [4, 2, 6], got [2, 2, 6]",
    ),
    ({"projections": [0]}, ValueError, "projections: expected one index for each of 2 layers, got 1"),
    ({"projections": [0, 2]}, ValueError, "projections: layer 1: expected an index into the 2 weights given, got 2"),
    (
        {"projections": [0, 0]},
        ValueError,
        "projections: layer 1: expected weights for rows of 5 columns, got weights[0] for rows of 4",
    ),
    ({"positions": [0]}, ValueError, "positions: expected one start for each of 2 layers, got 1"),
    ({"positions": [0, 2]}, ValueError, "positions: layer 1: expected a start from 0 to 1, because position has 3"),
    ({"positions": [-1, 0]}, ValueError, "positions: layer 0: expected a start from 0 to 0"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m for _, _, m in BAD])
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    embedding(**GOOD)
    with pytest.raises(error, match=f"^embedding: {re.escape(message)}") as caught:
        embedding(**{**GOOD, **change})
    assert "\n" not in str(caught.value)
