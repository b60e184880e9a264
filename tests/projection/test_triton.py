"""The Triton projection without a GPU: its kernels in the interpreter, its choice, its tables, what it launches."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tests import interpreted
from tests.aot import recording
from tests.projection.cases import CASES, Case, call, draw
from tests.projection.interpreted import arguments
from wfkernels import dispatch
from wfkernels.dispatch import ImplementationError
from wfkernels.projection import ops, triton_launch
from wfkernels.projection import triton_tables as tables
from wfkernels.projection.reference import Shape
from wfkernels.projection.triton_tables import Sizes

pytest.importorskip("triton")

CPU = torch.device("cpu")
SEEDS = pytest.mark.parametrize("seed", range(20))


@pytest.mark.parametrize("part", range(interpreted.PARTS))
def test_calls_are_no_worse_than_eager(part: int) -> None:
    interpreted.check("tests.projection.interpreted", part)


def test_it_wants_a_gpu() -> None:
    c = call(CASES["gated"]).to(torch.float32)
    with pytest.raises(ImplementationError, match=r"it needs an NVIDIA GPU \(sm_80 or newer\) and these .* lie on cpu"):
        c.run(c.leaves, impl="triton")


def given(case: Case, dtype: torch.dtype = torch.float32, seed: int | None = None) -> tuple[object, ...]:
    """What implementations take."""
    args = arguments(case, {"rest": dtype}, seed)
    return (*args[:12], ops._shape(*args[12:]))


def test_auto_does_not_choose_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    args = given(CASES["gated"])
    assert "set WFKERNELS_IMPL=triton too" in str(dispatch.verdicts("projection", *args)["triton"])
    monkeypatch.setenv("WFKERNELS_IMPL", "triton")
    assert dispatch.verdicts("projection", *args)["triton"] is None
    assert dispatch.verdicts("projection_backward", torch.zeros(2, 8), *args, True)["triton"] is None


def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("WFKERNELS_IMPL", "triton")
    words = "it knows float32, float16 and bfloat16, not torch.float64"
    args = given(CASES["gated"], torch.float64)
    assert dispatch.verdicts("projection", *args)["triton"] == words
    grad = torch.zeros(2, 8, dtype=torch.float64)
    assert dispatch.verdicts("projection_backward", grad, *given(CASES["gated"]), True)["triton"] == words


@pytest.mark.parametrize("output", ["plain", "anchor", "mean", "prior", "gated"])
def test_launches_grow_neither_with_layers_nor_with_teachers(output: str) -> None:
    def launches(layers: int, teachers: tuple[int, ...]) -> list[str]:
        case = Case(output, "mean", ((9, (7, 1)),) * layers, teachers, base=True)
        args = given(case)
        with recording(90) as found:
            students = triton_launch.forward(*args)
            for wanted in (True, False):
                triton_launch.backward(students, *args, wanted)
        return [launch.name for launch in found]

    assert launches(1, (2,)) == launches(12, (5, 3, 2))


def sizes(seed: int) -> Sizes:
    args = given(draw(seed)[0], seed=seed)
    shape, weights = args[-1], args[1]
    assert isinstance(shape, Shape) and isinstance(weights, list)
    return Sizes.of(shape, weights)


@SEEDS
@pytest.mark.parametrize("kind", ["students", "tokens", "units", "copies", "networks"])
def test_every_tile_is_one_program(kind: str, seed: int) -> None:
    s = sizes(seed)
    found, slots, programs = tables.tiles(s, kind, 4, 8, CPU)
    copies = {"copies": s.copies, "networks": 1}.get(kind, s.groups)
    widths = {"tokens": [s.d] * len(s.rows), "units": [1] * len(s.rows), "copies": [1] * len(s.rows)}
    wanted = [
        (layer, copy, row, column)
        for layer, (n, r) in enumerate(zip(s.rows, widths.get(kind, s.widths), strict=True))
        for copy in range(copies)
        for row in range(-(-n // 4))
        for column in range(-(-r // 8))
    ]
    places = torch.stack([found.layer, found.group, found.row, found.column], 1)
    assert Counter(map(tuple, places.tolist())) == Counter(wanted)
    assert sorted(found.slot.tolist()) == list(range(programs))
    for layer, _, _, column, slot in torch.stack(found, 1).tolist():
        start = int(slots.first[layer] + column * slots.parts[layer])
        assert start <= slot < start + int(slots.parts[layer])


@SEEDS
def test_columns_and_padding_are_where_the_reference_writes(seed: int) -> None:
    s = sizes(seed)
    shape = Shape(s.rows, s.parameters, s.projections, s.teachers, "anchor", "plain")
    buffer = torch.arange(sum(s.students))[None]
    found, layers = tables.columns(s, CPU), tables.layers(s, CPU)
    used = []
    for i, pieces in enumerate(shape.student_blocks(buffer)):
        entries = slice(int(layers.column[i]), int(layers.column[i]) + s.widths[i])
        rows = torch.arange(s.rows[i])[:, None]
        places = found.place[entries] + rows * found.step[entries]
        assert torch.equal(places, torch.cat(pieces, 2)[0])
        used += places.flatten().tolist()
    assert sorted([*used, *tables.padding(s, CPU).tolist()]) == buffer[0].tolist()


@SEEDS
def test_every_unit_is_multiplied_once_for_its_weight(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "RUN", 5)
    s = sizes(seed)
    tables.products.forget()
    found, programs, partials, segments = tables.products(s, 16, 8, CPU)
    tables.products.forget()
    assert programs == found.first.numel()
    units = tables.units(s, CPU)
    numbers, first = [], 0
    for g, r in enumerate(s.breadths):
        count = s.groups * sum(n for n, p in zip(s.rows, s.projections, strict=True) if p == g)
        for row in range(-(-s.d // 16)):
            for column in range(-(-r // 8)):
                numbers += [(unit, row, column) for unit in range(first, first + count)]
        first += count
    assert sorted(units.read.tolist()) == list(range(first)) and units.place.numel() == first
    counted = [
        (unit, int(found.row[i]), int(found.column[i]))
        for i in range(programs)
        for unit in range(int(found.first[i]), int(found.end[i]))
    ]
    assert Counter(counted) == Counter(numbers)
    assert partials == sum(parts * size for _, parts, size, _ in segments)


def test_a_second_call_builds_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    args = given(CASES["gated"])
    with recording(90):
        students = triton_launch.forward(*args)
        triton_launch.backward(students, *args, True)
        monkeypatch.setattr(tables, "_upload", None)
        triton_launch.forward(*args)
        triton_launch.backward(students, *args, True)
