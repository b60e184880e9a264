"""Finding the best config of a kernel on the GPU at hand: WFKERNELS_AUTOTUNE=1 and `python -m wfkernels tune`.

Lengths are no part of a kind, so the first call of a kind decides for all: let it be one that matters. A config fixes
the order of all sums: results are the same in every run of a process, and between processes that found the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock

from wfkernels.gpu import Config, Kind

WARPS = (4, 8)
STAGES = (1, 2, 3, 4)
# The tensor cores take no smaller side; a kernel whose side is smaller has no products.
SMALLEST = 16


@dataclass(frozen=True)
class Found:
    """The fastest config of a kind, and milliseconds with it and with the one that the table has."""

    config: Config
    best: float
    shipped: float


found: dict[Kind, Found] = {}
_log = logging.getLogger(__name__)
# A GPU's backward has a thread of its own: two searches at once would measure each other.
_searching = RLock()
_only: list[str] = []


def candidates(shipped: Config) -> list[Config]:
    """Return a config and its neighbours: one side halved or doubled, with every number of warps and stages."""
    shapes = [shipped]
    for name in ("block_m", "block_n", "block_k"):
        side = getattr(shipped, name)
        smaller = side // 2
        others = [smaller] if smaller >= SMALLEST or 1 <= smaller < side < SMALLEST else []
        others += [2 * side] if side else []
        shapes += [shipped._replace(**{name: other}) for other in others]
    tried = [shape._replace(warps=warps, stages=stages) for shape in shapes for warps in WARPS for stages in STAGES]
    return list(dict.fromkeys([shipped, *tried]))


def best(kind: Kind, shipped: Config, step: Callable[[Config], object], search: bool = True) -> Config:
    """Return the fastest config of a kind, or the shipped one where none was found. search: look for it now."""
    with _searching:
        if kind not in found and search and all(kind.kernel.startswith(name) for name in _only):
            found[kind] = _fastest(kind, shipped, step)
    return found[kind].config if kind in found else shipped


def _fastest(kind: Kind, shipped: Config, step: Callable[[Config], object]) -> Found:
    times: dict[Config, float] = {}
    for config in candidates(shipped):
        try:
            times[config] = milliseconds(lambda config=config: step(config))  # type: ignore[misc]
        except Exception as error:  # too much shared memory, too many registers, a layout the compiler does not know
            if config == shipped:
                raise
            _log.debug("%s: %s does not run: %s", kind, config, error)
    fastest = min(times, key=lambda config: times[config])
    _log.info("%s: %s, %.3f ms; shipped: %s, %.3f ms", kind, fastest, times[fastest], shipped, times[shipped])
    return Found(fastest, times[fastest], times[shipped])


def milliseconds(run: Callable[[], object]) -> float:
    """Return the median time of a call by the GPU's clock, after some to warm up, with nothing in the L2 cache."""
    from triton.testing import do_bench

    return float(do_bench(run, warmup=5, rep=20, return_mode="median"))


@contextmanager
def only(prefix: str) -> Iterator[None]:
    """Search for no kernels but those whose names begin so, inside the block."""
    _only.append(prefix)
    try:
        yield
    finally:
        _only.remove(prefix)
