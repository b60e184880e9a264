"""The Triton rows_pack without a GPU: its kernels in Triton's interpreter, its choice, its tables, its launches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests import interpreted
from tests.rows import aot
from tests.rows.cases import LAYOUTS, teachers
from tests.rows.interpreted import LARGE, mixed, permuted, shifted
from wfkernels import dispatch, gpu, pack
from wfkernels.dispatch import ImplementationError
from wfkernels.layout import RowLayout
from wfkernels.rows import triton_launch

pytest.importorskip("triton")


@pytest.mark.parametrize("part", range(interpreted.PARTS))
def test_calls_are_the_same_bits(part: int) -> None:
    interpreted.check("tests.rows.interpreted", part)


def test_it_wants_a_gpu() -> None:
    layout = LAYOUTS["linear"]
    with pytest.raises(ImplementationError, match=r"it needs an NVIDIA GPU \(sm_80 or newer\) and these .* lie on cpu"):
        pack(teachers(layout), layout, impl="triton")


def arguments(dtype: torch.dtype, target: torch.dtype) -> tuple[Any, ...]:
    return ([torch.zeros(7, 16, dtype=dtype)], [7], [1], [16], target)


def test_auto_does_not_choose_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delenv("WFKERNELS_IMPL", raising=False)
    args = arguments(torch.float32, torch.float32)
    assert "set WFKERNELS_IMPL=triton too" in str(dispatch.verdicts("rows_pack", *args)["triton"])
    monkeypatch.setenv("WFKERNELS_IMPL", "triton")
    assert dispatch.verdicts("rows_pack", *args)["triton"] is None


def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("WFKERNELS_IMPL", "triton")
    reading = dispatch.verdicts("rows_pack", *arguments(torch.float64, torch.float32))["triton"]
    assert reading == "it knows float32, float16 and bfloat16, not torch.float64"
    writing = dispatch.verdicts("rows_pack", *arguments(torch.float32, torch.float64))["triton"]
    assert writing == "it writes float32, float16 and bfloat16, not torch.float64"


@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("name", ["linear", "odd sizes"])
def test_launches_do_not_grow_with_layers_or_teachers(name: str, count: int) -> None:
    found = aot.launches(90, torch.float32, LAYOUTS[name], count)
    assert [launch.name for launch in found] == ["rows_pack", "rows_pack_backward"]


@pytest.mark.parametrize("layout", [*LAYOUTS.values(), LARGE], ids=[*LAYOUTS, "large"])
def test_every_group_of_every_row_is_in_one_tile(layout: RowLayout) -> None:
    counts = tuple(len(member.parameters) for member in layout.layers)
    widths = tuple(p.width for p in layout.parameters)
    tables = triton_launch._tables(tuple(layout.rows), counts, widths, 3, 4, torch.device("cpu"))
    found = []
    for layer, teacher, first in tables.tiles.tolist():
        begin, rows, across, _, _ = tables.layers[layer].tolist()
        groups = range(first, min(first + 4, rows * across))
        found += [begin // 8 + teacher * rows * across + group for group in groups]
    assert sorted(found) == list(range(3 * layout.row_numel // 8))
    parameters = [[p.start, p.width] for p in layout.parameters]
    assert tables.parameters.tolist() == parameters


def entries(tensors: list[Tensor], width: int = 16) -> list[tuple[int, ...]]:
    """Strides and kinds."""
    anchor = triton_launch._anchor(torch.device("cpu"))
    found = [triton_launch._entry(triton_launch._blocks(t, t.shape[0], width), 0, anchor) for t in tensors]
    return [(across, size, along, kind) for _, across, _, size, along, kind in found]


def test_what_is_read_in_groups() -> None:
    tensors = teachers(LAYOUTS["linear"])
    aligned = [t for teacher in tensors for t in teacher]
    assert entries(aligned) == 3 * [(16, 16, 1, 0)]
    assert [entry[3] for entry in entries(mixed(aligned))] == [gpu.DTYPES.index(t.dtype) for t in mixed(aligned)]
    assert entries(permuted(aligned)) == 3 * [(1, 16, 7, 3)]
    assert entries(shifted(aligned)) == 3 * [(16, 16, 1, 3)]


def test_channels_last_is_read_where_it_lies() -> None:
    given = torch.zeros(5, 3, 4, 2).to(memory_format=torch.channels_last)
    assert triton_launch._blocks(given, 5, 24).data_ptr() == given.data_ptr()
    assert entries([given], 24) == [(24, 8, 3, 3)]
    # Neither rows nor blocks of even strides: copied.
    other = torch.zeros(2, 4, 3, 5).permute(3, 2, 1, 0)
    assert triton_launch._blocks(other, 5, 24).is_contiguous()
    assert entries([other], 24) == [(24, 24, 1, 0)]


def test_tables_are_kept() -> None:
    integers = ((7, 1), (1, 1), (16, 4), 2, 4, torch.device("cpu"))
    assert triton_launch._tables(*integers) is triton_launch._tables(*integers)
