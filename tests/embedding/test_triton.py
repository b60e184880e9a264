"""The Triton embedding without a GPU: its kernels in Triton's interpreter, its choice, its tables, its launches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests import interpreted
from tests.embedding import aot
from tests.embedding.cases import CASES, Case, call, draw, library_arguments
from tests.embedding.interpreted import implementation_arguments
from wfkernels import dispatch
from wfkernels.dispatch import ImplementationError
from wfkernels.embedding import triton_schedule as work
from wfkernels.layout import aligned

pytest.importorskip("triton")
CPU = torch.device("cpu")


@pytest.mark.parametrize("part", range(interpreted.PARTS))
def test_calls_are_no_worse_than_eager(part: int) -> None:
    interpreted.check("tests.embedding.interpreted", part)


def arguments(case: Case, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    leaves = {n: t.detach().to(dtype) for n, t in call(case).leaves.items()}
    return implementation_arguments(library_arguments(case, leaves))


def test_it_wants_a_gpu() -> None:
    c = call(CASES["base"]).to(torch.float32)
    with pytest.raises(ImplementationError, match=r"it needs an NVIDIA GPU \(sm_80 or newer\) and these .* lie on cpu"):
        c.run(c.leaves, impl="triton")


def test_auto_does_not_choose_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delenv("WFKERNELS_IMPL", raising=False)
    args = arguments(CASES["base"])
    assert "set WFKERNELS_IMPL=triton too" in str(dispatch.verdicts("embedding", *args)["triton"])
    monkeypatch.setenv("WFKERNELS_IMPL", "triton")
    assert dispatch.verdicts("embedding", *args)["triton"] is None


def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("WFKERNELS_IMPL", "triton")
    args = arguments(CASES["base"], torch.float64)
    reason = "it knows float32, float16 and bfloat16, not torch.float64"
    assert dispatch.verdicts("embedding", *args)["triton"] == reason
    assert dispatch.verdicts("embedding_backward", args[0], *args, True)["triton"] == reason


@pytest.mark.parametrize("layers", [1, 40])
@pytest.mark.parametrize("teachers", [(1,), (2, 1, 4)])
def test_launches_do_not_grow_with_layers_or_teachers(layers: int, teachers: tuple[int, ...]) -> None:
    case = {"layers": ((3, (9,)),) * layers, "teachers": teachers}
    found = aot.launches(90, 8, torch.float32, "gelu, base", **case)
    assert [launch.name.removeprefix("embedding_") for launch in found] == [
        "forward",
        "backward",
        "sums",
        "sums",
        "backward_inputs",
        "sums",
        "backward_weights",
    ]


@pytest.mark.parametrize(
    ("dtype", "inputs", "narrow", "precision"),
    [
        (torch.bfloat16, torch.bfloat16, True, "ieee"),
        (torch.float16, torch.float16, False, "tf32"),
        (torch.float32, torch.bfloat16, False, "ieee"),
        # The gradients of float32 rows are float32 too.
        (torch.bfloat16, torch.float32, False, "ieee"),
        (torch.float16, torch.float32, False, "ieee"),
    ],
)
def test_the_dtype_of_products(dtype: torch.dtype, inputs: torch.dtype, narrow: bool, precision: str) -> None:
    forward, *backward = aot.launches(90, 8, dtype, "codes", inputs)
    form = backward[0].arguments["FORM"]
    assert (form.is_narrow, form.precision) == (narrow, precision)
    assert forward.arguments["FORM"].is_narrow == (dtype == torch.bfloat16)


def of_case(case: Case) -> work.Lengths:
    rows, weights, _, _, _, _, position, teacher, layer, cross, _, _, shape, *_ = arguments(case)
    return work.lengths(shape, weights, position, teacher, layer, cross)


TABLES = {
    **CASES,
    **{f"draw({seed})": draw(seed)[0] for seed in range(20)},
    "shared by many": Case(layers=((40, (9,)), (3, (5,)), (0, (9,)), (50, (9,))), projections=(0, 1, 0, 0), cross=2),
}
every_table = pytest.mark.parametrize("name", TABLES)


@every_table
def test_every_token_is_in_one_tile(name: str) -> None:
    n = of_case(TABLES[name])
    tables = work.of_tokens(n, 4, CPU)
    found = []
    for layer, first, end, _ in tables.tiles.tolist():
        start = int(tables.layers[layer, 0])
        found += tables.tokens[0, start + first : start + min(first + 4, end)].tolist()
    assert sorted(found) == list(range(n.units + n.cross_tokens))
    widths = [int(tables.layers[layer, 1]) for layer in tables.tiles[:, 0].tolist()]
    assert widths == sorted(widths, reverse=True)


@every_table
def test_sums_of_codes_are_those_of_autograd(name: str) -> None:
    """The gradients of the codes where every token is the sum of its codes."""
    case = replace(TABLES[name], activation="none")
    n = of_case(case)
    leaves = {k: t.detach() for k, t in call(case).leaves.items()}
    first, second = work.of_codes(n, 4, CPU)
    grads = torch.randn(n.units + n.cross_tokens, 3, dtype=torch.float64)
    slots = work.of_tokens(n, 4, CPU).tiles.shape[0]
    partial = torch.zeros(3 * slots + first.targets.numel(), 3, dtype=torch.float64)
    add_up(grads, first, partial)
    found = torch.empty(second.targets.numel(), 3, dtype=torch.float64)
    add_up(partial, second, found)
    wanted = torch.zeros(sum(n.codes), 3, dtype=torch.float64)
    tokens = work._tokens(n)
    for kind in tokens[1:4]:
        wanted.index_add_(0, kind[kind >= 0], grads[kind >= 0])
    torch.testing.assert_close(found[len(n.group_widths) + 2 :], wanted)
    assert not found[: len(n.group_widths) + 2].any()
    assert (first.bounds.diff() <= work.PIECE).all()
    names = ("position", "teacher", "layer")
    assert sum(n.codes[:3]) == sum(leaves[k].shape[0] for k in names if k in leaves)


def add_up(source: torch.Tensor, sums: work.Sums, out: torch.Tensor) -> None:
    for i, target in enumerate(sums.targets.tolist()):
        out[target] = source[sums.members[sums.bounds[i] : sums.bounds[i + 1]].long()].sum(0)


@every_table
@pytest.mark.parametrize("shortest", [8, 1024])
def test_every_unit_adds_to_every_column_of_its_weight_once(
    name: str, shortest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "SHORTEST", shortest)
    monkeypatch.setattr(work, "PROGRAMS", 1)
    n = of_case(TABLES[name])
    split = work.of_weights.__wrapped__(n, 4, 16, 8, 16, CPU)
    rows = [[] for _ in range(split.rows)]  # what every row of the buffer is a sum of
    for width, first, target, begin, end in split.blocks.tolist():
        units = [(layer, u) for layer, start, stop in split.runs[begin:end].tolist() for u in range(start, stop)]
        for i in range(first, min(first + 4, width)):
            rows[target + i] += units
    sums = split.sums
    for i, target in enumerate(sums.targets.tolist()):
        for member in sums.members[sums.bounds[i] : sums.bounds[i + 1]].tolist():
            rows[target] += rows[member]
    place = 0
    for group, width in enumerate(n.group_widths):
        wanted = [(i, u) for i, g in enumerate(n.projections) if g == group for u in range(n.copies * n.rows[i])]
        assert all(sorted(found) == wanted for found in rows[place : place + width])
        place += width


@every_table
def test_every_column_of_every_row_is_in_one_tile(name: str) -> None:
    n = of_case(TABLES[name])
    split = work.of_inputs(n, 4, 16, CPU)
    found = [
        (layer, row, c)
        for layer, first, column in split.blocks.tolist()
        for row in range(first, min(first + 4, n.rows[layer]))
        for c in range(column, min(column + 16, aligned(n.widths[layer])))
    ]
    wanted = [(i, r, c) for i, w in enumerate(n.widths) for r in range(n.rows[i]) for c in range(aligned(w))]
    assert sorted(found) == wanted
    # A tile's sums are told by the layer and column that they are of.
    tiles = [[layer * 1000.0 + column + c for c in range(16)] for layer, _, column in split.blocks.tolist()]
    partial = torch.tensor([row for tile in tiles for row in (tile, [-x for x in tile])]).view(-1, 16)
    sums = torch.zeros(split.sums.targets.numel(), 16)
    add_up(partial, split.sums, sums)
    of_shift, of_scale = sums.flatten()[split.places].chunk(2)
    wanted_sums = [
        -(-rows // 4) * (i * 1000.0 + c) for i, rows in enumerate(n.rows) for c in range(aligned(n.widths[i]))
    ]
    assert of_shift.tolist() == wanted_sums
    assert torch.equal(of_scale, -of_shift)
