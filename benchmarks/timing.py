"""Times of several calls side by side, in rounds, so that a slow minute of the machine meets all of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.case import Call

Clock = Callable[[Call], float]


class Budget(NamedTuple):
    """How long to measure: at least `least` runs of every call, then up to `most` while it has used fewer `seconds`."""

    least: int
    most: int
    seconds: float


BUDGETS = {
    **{"quick": Budget(3, 7, 0.3), "bar": Budget(3, 60, 10.0), "full": Budget(3, 15, 4.0)},
    **{"gpu": Budget(5, 25, 0.3), "gpu-quick": Budget(3, 5, 0.1)},
}
WALLS = 5


def clock_for(device: torch.device) -> Clock:
    """Return what times one call, in seconds."""
    return _cuda_clock(device) if device.type == "cuda" else _cpu_clock


def _cpu_clock(call: Call) -> float:
    with call.around():
        state = call.prepare()
        start = time.perf_counter()
        result = call.run(state)
        seconds = time.perf_counter() - start
        # What was returned is freed outside the time, as a caller would keep it.
        del result
        return seconds


def _cuda_clock(device: torch.device) -> Clock:
    """Time on the device between two events, with nothing of the inputs left in the second-level cache."""
    cache = int(torch.cuda.get_device_properties(device).L2_cache_size)
    flush: Tensor = torch.empty(max(2 * cache, 1 << 26), dtype=torch.uint8, device=device)

    def clock(call: Call) -> float:
        with call.around():
            state = call.prepare()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(device)
            # It takes longer than Python needs to launch the first kernels, whose gaps so do not count.
            flush.zero_()
            start.record()
            result = call.run(state)
            end.record()
            torch.cuda.synchronize(device)
            del result
            return 1e-3 * float(start.elapsed_time(end))

    return clock


def wall(call: Call, device: torch.device) -> float:
    """Return the median time of a call on the host's clock, in seconds, its launches and the wait for it included."""
    found = []
    for _ in range(WALLS):
        with call.around():
            state = call.prepare()
            torch.cuda.synchronize(device)
            start = time.perf_counter()
            result = call.run(state)
            torch.cuda.synchronize(device)
            found.append(time.perf_counter() - start)
            del result
    return statistics.median(found)


def rounds(calls: Mapping[str, Call], clock: Clock, budget: Budget) -> dict[str, list[float]]:
    """Return the seconds of every call, one run of each per round; the round begins with another call every time."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    collects = gc.isenabled()
    gc.disable()
    try:
        for i in range(budget.most):
            left = [n for n, s in found.items() if len(s) < budget.least or sum(s) < budget.seconds]
            if not left:
                break
            first = i % len(left)
            for name in [*left[first:], *left[:first]]:
                found[name].append(clock(calls[name]))
    finally:
        if collects:
            gc.enable()
    return found


def spread(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and the 20 and 80 % quantiles, in milliseconds."""
    milliseconds = [1e3 * s for s in seconds]
    if len(milliseconds) == 1:
        return (milliseconds[0],) * 3
    low, *_, high = statistics.quantiles(milliseconds, n=5, method="inclusive")
    return statistics.median(milliseconds), low, high
