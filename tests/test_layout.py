"""RowLayout and TokenLayout: where rows, columns, parameters and tokens lie."""

from __future__ import annotations

import pytest
import torch

from wfkernels import RowLayout
from wfkernels.layout import ALIGNMENT, Layer, Parameter, aligned, starts

LAYOUT = RowLayout(
    (
        Layer("conv", "conv", 3, (Parameter("conv.weight", (3, 2, 2, 1), 0, 4), Parameter("conv.bias", (3,), 4, 1))),
        Layer("head", "linear", 2, (Parameter("head.weight", (2, 16), 0, 16),)),
    ),
    tied=(("copy.weight", "head.weight"),),
)


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 8), (7, 8), (8, 8), (9, 16), (2**33 + 1, 2**33 + 8)])
def test_aligned_rounds_up(count: int, expected: int) -> None:
    assert aligned(count) == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_alignment_is_16_bytes_in_every_dtype(dtype: torch.dtype) -> None:
    assert ALIGNMENT * dtype.itemsize % 16 == 0


def test_starts_are_exclusive_sums_with_the_total_last() -> None:
    assert starts([]) == (0,)
    assert starts([3, 0, 2]) == (0, 3, 3, 5)


def test_sizes_of_the_buffers() -> None:
    assert [layer.width for layer in LAYOUT.layers] == [5, 16]
    assert [layer.stride for layer in LAYOUT.layers] == [8, 16]
    assert LAYOUT.rows == (3, 2)
    assert LAYOUT.widths == (5, 16)
    assert LAYOUT.row_numel == 3 * 8 + 2 * 16
    assert LAYOUT.column_numel == 8 + 16
    assert LAYOUT.sizes == (16, 8, 32)
    assert LAYOUT.numel == 56
    assert [p.name for p in LAYOUT.parameters] == ["conv.weight", "conv.bias", "head.weight"]


def test_row_blocks_are_views_without_the_padding() -> None:
    rows = torch.arange(2.0 * LAYOUT.row_numel)
    conv, head = LAYOUT.row_blocks(rows, 2)
    assert conv.shape == (6, 5) and head.shape == (4, 16)
    assert conv[1, 0] == 8 and conv[5, 4] == 44 and head[0, 0] == 48
    assert conv.untyped_storage().data_ptr() == rows.untyped_storage().data_ptr()


def test_column_blocks_are_views_without_the_padding() -> None:
    conv, head = LAYOUT.column_blocks(torch.arange(float(LAYOUT.column_numel)))
    assert conv.tolist() == [0, 1, 2, 3, 4]
    assert head.tolist() == list(range(8, 24))


def test_layouts_compare_by_what_they_say() -> None:
    assert LAYOUT.select([0, 1]) == RowLayout(LAYOUT.layers)
    assert LAYOUT.select([1]).layers == LAYOUT.layers[1:]
    assert LAYOUT.select([0, 1]) != LAYOUT
    assert hash(LAYOUT) == hash(RowLayout(LAYOUT.layers, LAYOUT.tied))


def test_sequences_go_layer_by_layer_and_group_by_group() -> None:
    tokens = LAYOUT.tokens([2, 1], cross=1)
    assert tokens.groups == 2
    assert tokens.lengths == (1 + 2 * 3, 1 + 3, 1 + 2 * 2, 1 + 2)
    assert tokens.starts == (0, 7, 11, 16, 19)
    assert tokens.total == 19
    assert tokens.max_length == 7
    assert tokens.offsets().dtype == torch.int64
    assert tokens.offsets().tolist() == [0, 7, 11, 16, 19]


@pytest.mark.parametrize("teachers", [[], [2, 0]])
def test_a_group_without_teachers_is_an_error(teachers: list[int]) -> None:
    with pytest.raises(ValueError, match="tokens: teachers: expected at least one teacher in every group"):
        LAYOUT.tokens(teachers)


def test_negative_cross_is_an_error() -> None:
    with pytest.raises(ValueError, match="tokens: cross: expected zero or more tokens per layer, got -1"):
        LAYOUT.tokens([1], cross=-1)
