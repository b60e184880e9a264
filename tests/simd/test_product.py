"""csrc/simd/product.h against numpy in float64: sizes around the register tile, a in any order, stored and added."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import numpy as np
import pytest

DTYPES = (np.float32, np.float64)
# Around 6 and 8 rows of a register tile, and the rows of a tile of attention.
ROWS = (0, 1, 2, 3, 5, 6, 7, 8, 9, 13, 15, 17, 63, 64, 65)
DEPTHS = (0, 1, 2, 3, 7, 16, 17, 64, 127, 300)


def matrix(g: np.random.Generator, rows: int, columns: int, dtype: type, gap: int) -> Any:
    """A view with contiguous rows and `gap` elements between them, which nobody may read: they are NaN."""
    whole = np.full((rows, columns + gap), np.nan, dtype)
    whole[:, :columns] = g.standard_normal((rows, columns))
    return whole[:, :columns]


def left(g: np.random.Generator, rows: int, depth: int, dtype: type, order: str, gap: int) -> Any:
    if order == "rows":
        return matrix(g, rows, depth, dtype, gap)
    if order == "columns":
        return matrix(g, depth, rows, dtype, gap).T
    return matrix(g, rows, 3 * depth, dtype, gap)[:, ::3]


def run(internals: ModuleType, isa: str, dtype: type, seed: int) -> None:
    pick = random.Random(seed)
    g = np.random.default_rng(seed)
    lanes = internals.vector_bytes(isa) // np.dtype(dtype).itemsize
    rows, depth, columns = pick.choice(ROWS), pick.choice(DEPTHS), pick.randint(1, 7) * lanes
    a = left(g, rows, depth, dtype, pick.choice(("rows", "columns", "spread")), pick.choice((0, 1, 5)))
    b = matrix(g, depth, columns, dtype, pick.choice((0, 1, lanes)))
    c = matrix(g, rows, columns, dtype, pick.choice((0, 3, lanes)))
    add = pick.random() < 0.5
    if not add:
        c[:] = np.nan  # what is stored does not depend on what was there
    before = c.astype(np.float64) if add else 0.0
    gap = c.base[:, columns:].copy() if c.base is not None else None

    internals.product(isa, a, b, c, add)
    exact = before + a.astype(np.float64) @ b.astype(np.float64)
    # The classical bound of a sum of products in any order, and of one more rounding per step without FMA.
    size = np.abs(before) + np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64)
    assert (np.abs(c - exact) <= (depth + 2) * np.finfo(dtype).eps * size).all()
    if gap is not None:
        np.testing.assert_array_equal(c.base[:, columns:], gap)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
@pytest.mark.parametrize("seed", range(60))
def test_random_products(internals: ModuleType, isa: str, dtype: type, seed: int) -> None:
    run(internals, isa, dtype, seed)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
@pytest.mark.parametrize("add", [False, True])
def test_every_number_of_rows_and_vectors(internals: ModuleType, isa: str, dtype: type, add: bool) -> None:
    """Small integers, so that results are exact whatever the order of the sum."""
    lanes = internals.vector_bytes(isa) // np.dtype(dtype).itemsize
    g = np.random.default_rng(0)
    for rows in range(20):
        for vectors in range(6):
            a = g.integers(-8, 9, (rows, 11)).astype(dtype)
            b = g.integers(-8, 9, (11, vectors * lanes)).astype(dtype)
            c = g.integers(-8, 9, (rows, vectors * lanes)).astype(dtype)
            expected = a @ b + (c if add else 0)
            internals.product(isa, a, b, c, add)
            np.testing.assert_array_equal(c, expected)


def test_shapes_that_do_not_fit_are_refused(internals: ModuleType) -> None:
    def zeros(*shape: int) -> Any:
        return np.zeros(shape, np.float32)

    with pytest.raises(ValueError, match="shapes do not fit"):
        internals.product("portable", zeros(2, 3), zeros(4, 4), zeros(2, 4), False)
    with pytest.raises(ValueError, match="whole vectors"):
        internals.product("portable", zeros(2, 3), zeros(3, 5), zeros(2, 5), False)
    with pytest.raises(ValueError, match="contiguous rows"):
        internals.product("portable", zeros(2, 3), zeros(4, 3).T, zeros(2, 4), False)
    with pytest.raises(TypeError):
        internals.product("portable", zeros(2, 3), zeros(3, 4), np.zeros((2, 4)), False)
