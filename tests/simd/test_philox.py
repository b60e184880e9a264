"""csrc/simd/philox.h keeps, bit by bit, what wfkernels/philox.py keeps: everywhere, for every seed and call site."""

from __future__ import annotations

import random
from types import ModuleType

import numpy as np
import pytest
import torch

from wfkernels.philox import keep_mask

LAST = 2**32 - 1
SEEDS = (0, 1, -1, LAST, 2**32, -(2**32), 2**63 - 1, -(2**63), 0x243F6A8885A308D3, -0x243F6A8885A308D3)
SITES = (0, 1, -1, 7, -(2**31), 2**31, 2**40, -(2**40))


def agrees(
    internals: ModuleType, isa: str, seed: int, site: int, place: tuple[int, int, int, int], count: int, p: float
) -> None:
    sequence, head, row, column = place
    found = internals.keep_row(isa, seed, site, sequence, head, row, column, count, round(p * 2**32))
    expected = keep_mask(
        torch.tensor(seed), site, *map(torch.tensor, (sequence, head, row)), column + torch.arange(count), p
    )
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected.to(torch.uint8).numpy(), f"{seed=} {site=} {place=} {count=} {p=}")


@pytest.mark.parametrize("seed", SEEDS)
def test_every_seed_and_site(internals: ModuleType, isa: str, seed: int) -> None:
    for site in SITES:
        agrees(internals, isa, seed, site, (3, 2, 1, 0), 67, 0.5)


@pytest.mark.parametrize("place", [tuple(LAST * bool(i >> d & 1) for d in range(4)) for i in range(16)], ids=str)
def test_first_and_last_of_every_coordinate(internals: ModuleType, isa: str, place: tuple[int, int, int, int]) -> None:
    """Columns that go on behind the last word begin again at 0."""
    agrees(internals, isa, 12345, 1, place, 40, 0.3)


def test_random_places(internals: ModuleType, isa: str) -> None:
    pick = random.Random(0)
    for _ in range(200):
        coordinates = [pick.randrange(pick.choice((8, 1000, 2**32))) for _ in range(4)]
        seed, site = pick.randrange(-(2**63), 2**63), pick.randrange(-(2**31), 2**31)
        place = (coordinates[0], coordinates[1], coordinates[2], coordinates[3])
        agrees(internals, isa, seed, site, place, pick.randrange(70), pick.random())


def test_only_as_many_as_asked_for_and_the_same_at_any_begin(internals: ModuleType, isa: str) -> None:
    whole = internals.keep_row(isa, 5, 0, 1, 2, 3, 0, 64, 2**31)
    for count in range(20):
        part = internals.keep_row(isa, 5, 0, 1, 2, 3, 7, count, 2**31)
        assert part.shape == (count,)
        np.testing.assert_array_equal(part, whole[7 : 7 + count])


@pytest.mark.parametrize(("threshold", "kept"), [(0, 1), (2**32, 0)])
def test_all_and_none(internals: ModuleType, isa: str, threshold: int, kept: int) -> None:
    assert (internals.keep_row(isa, -9, 0, 0, 0, 0, 0, 100, threshold) == kept).all()
