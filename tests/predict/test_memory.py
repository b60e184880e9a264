"""What predict keeps for backward, counted by autograd's own hooks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.predict.cases import CASES, Case, call, layout

SAVED = ["paper", "recipe", "specialists", "bucketed", "dropout, post"]


def kept_elements(case: Case) -> tuple[int, int]:
    """How many float elements are kept beyond the leaves, and how many integer ones."""
    c = call(case)
    known = {t.untyped_storage().data_ptr() for t in c.leaves.values()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = c.run(c.leaves)
    sizes = [0, 0]
    for tensor in kept.values():
        sizes[not tensor.is_floating_point()] += tensor.untyped_storage().nbytes() // tensor.element_size()
    assert all(y.requires_grad for y in outputs)
    return sizes[0], sizes[1]


@pytest.mark.parametrize("name", SAVED)
def test_recomputing_keeps_three_numbers_per_token_and_channel_at_most(name: str) -> None:
    case = replace(CASES[name], d=32)
    tokens = layout().tokens(case.teachers, case.cross).total
    allowed = 3 * tokens * case.d + tokens * case.settings.heads
    floats, integers = zip(*(kept_elements(replace(case, blocks=blocks)) for blocks in (2, 3, 4)), strict=True)
    for blocks, count in zip((2, 3, 4), floats, strict=True):
        # Beside the blocks: the cross tokens of every sequence, and which of them are earlier.
        once = len(case.teachers) * 3 * case.cross * case.d + (3 * case.cross) ** 2
        assert count <= blocks * allowed + once
    assert floats[1] - floats[0] == floats[2] - floats[1] <= allowed
    assert len(set(integers)) == 1


@pytest.mark.parametrize("name", SAVED)
def test_keeping_all_costs_more_than_that(name: str) -> None:
    case = replace(CASES[name], d=32)
    tokens = layout().tokens(case.teachers, case.cross).total
    more, fewer = (kept_elements(replace(case.but(recompute="none"), blocks=blocks))[0] for blocks in (4, 3))
    assert more - fewer > 3 * tokens * case.d + tokens * case.settings.heads
