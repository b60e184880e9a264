"""csrc/simd/exponential.h: how far from exp it is, and what becomes of numbers without a normal result."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

# Units in the last place; a fused multiply-add, which the portable code has not, brings it below 1.
LARGEST_ERROR = {"portable": 1.25, "avx2": 1.0, "avx512": 1.0}
# Whatever is more exact, and the x at which results become normal and infinite.
WIDER = {np.float32: np.float64, np.float64: np.longdouble}


def ends(dtype: type) -> tuple[Any, Any]:
    """The smallest and the largest x whose exp is a normal number."""
    limits = np.finfo(dtype)
    low, high = (np.log(WIDER[dtype](x)) for x in (limits.tiny, limits.max))
    low, high = dtype(low), dtype(high)
    low = low if WIDER[dtype](low) >= np.log(WIDER[dtype](limits.tiny)) else np.nextafter(low, dtype(0))
    high = high if WIDER[dtype](high) <= np.log(WIDER[dtype](limits.max)) else np.nextafter(high, dtype(0))
    return low, high


def samples(dtype: type) -> Any:
    """Numbers of every size, and on both sides of where the power of two changes."""
    low, high = ends(dtype)
    g = np.random.default_rng(0)
    small = g.uniform(-1, 1, 200_000) * 10.0 ** g.uniform(-40 if dtype is np.float32 else -310, 0, 200_000)
    halves = np.arange(2 * int(low / np.log(2)), 2 * int(high / np.log(2))) * (np.log(2) / 2)
    borders = halves[:, None] * (1 + np.arange(-20, 21) * np.finfo(dtype).eps)
    x = np.concatenate([np.linspace(low, high, 500_001), g.uniform(-1, 1, 200_000), small, borders.ravel()])
    return np.clip(x.astype(dtype), low, high)


@pytest.mark.parametrize("dtype", WIDER, ids=lambda t: t.__name__)
def test_the_error_in_units_of_the_last_place(internals: ModuleType, isa: str, dtype: type) -> None:
    x = samples(dtype)
    exact = np.exp(x.astype(WIDER[dtype]))
    unit = np.spacing(np.minimum(exact, np.finfo(dtype).max).astype(dtype)).astype(WIDER[dtype])
    error = np.abs(internals.exponential(isa, x).astype(WIDER[dtype]) - exact) / unit
    worst = int(error.argmax())
    assert error[worst] <= LARGEST_ERROR[isa], f"{error[worst]:.3f} units at x = {x[worst]!r}"


@pytest.mark.parametrize("dtype", WIDER, ids=lambda t: t.__name__)
def test_the_ends(internals: ModuleType, isa: str, dtype: type) -> None:
    low, high = ends(dtype)
    limits = np.finfo(dtype)
    least, below, most, above = internals.exponential(
        isa, np.array([low, np.nextafter(low, dtype(-np.inf)), high, np.nextafter(high, dtype(np.inf))])
    )
    assert limits.tiny <= least < limits.tiny * 1.00001 and below == 0
    assert limits.max * 0.99998 < most <= limits.max and above == np.inf


@pytest.mark.parametrize("dtype", WIDER, ids=lambda t: t.__name__)
def test_numbers_without_a_normal_result(internals: ModuleType, isa: str, dtype: type) -> None:
    payload = np.array([np.nan], dtype)
    payload.view(np.uint32 if dtype is np.float32 else np.uint64)[:] += 5  # a NaN whose low bits are not 0
    x = np.array([-np.inf, np.nan, np.inf, -1e30, 1e30, 0.0, -0.0, *payload, -payload[0]], dtype)
    # A lane does not disturb its neighbours, wherever it stands and whatever fills the last vector.
    for shift in range(len(x)):
        found = internals.exponential(isa, np.roll(x, shift))
        np.testing.assert_array_equal(
            np.roll(found, -shift), np.array([0, np.nan, np.inf, 0, np.inf, 1, 1, np.nan, np.nan], dtype)
        )


@pytest.mark.parametrize("dtype", WIDER, ids=lambda t: t.__name__)
def test_subnormal_results_are_zero_and_subnormal_arguments_are_not_lost(
    internals: ModuleType, isa: str, dtype: type
) -> None:
    low, _ = ends(dtype)
    x = np.linspace(low * 1.3, np.nextafter(low, dtype(-np.inf)), 1001, dtype=dtype)
    assert not internals.exponential(isa, x).any()
    tiny = np.finfo(dtype).smallest_subnormal
    assert (internals.exponential(isa, np.array([tiny, -tiny], dtype)) == 1).all()


def test_what_is_wrong_is_said(internals: ModuleType) -> None:
    with pytest.raises(ValueError, match="isa: nothing is compiled for sse9"):
        internals.exponential("sse9", np.zeros(3, np.float32))
    with pytest.raises(TypeError):
        internals.exponential("portable", np.zeros(3, np.int32))
