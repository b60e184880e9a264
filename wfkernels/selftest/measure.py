"""What this machine does per second: matrix products, copies, and every op of a training step.

`rates` times real training steps of `predict`, call by call, and fits the rates of `work`. With them `seconds` says how
long any other work takes here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import torch
from torch import Tensor

from wfkernels import dispatch
from wfkernels.allocator import settle
from wfkernels.selftest.kept import Rates, key, machine
from wfkernels.selftest.steps import STEPS, training_step
from wfkernels.selftest.work import Piece, Work, trace

Clock = Callable[[], float]
REPEATS = 3
# Where a kind of aten op was not met, the rates of this one count.
OTHER = "other"
# Seconds below which a clock says nothing.
TICK = 1e-6


def rates(
    device: torch.device | str = "cpu",
    clock: Clock | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Rates:
    """Measure and return the rates of this machine as plain data.

    "sgemm_gflops", "copy_gigabytes_per_second" (read plus written), on a GPU also "bf16_gflops"; and "kinds":
    for every kind of call, library ops as "name:implementation", the seconds per unit of every amount (see `work`);
    "glue": seconds of Python per call.

    Call `wfkernels.allocator.settle` first in a program whose times are to agree; this function does.

    clock: of every measurement, time.perf_counter by default; on a busy machine with one thread, time.process_time does
    not count what others use. progress: is told (done, total).
    """
    device = torch.device(device)
    clock = clock or _waiting(device)
    settle()
    implementations = ["reference", *(["auto"] if _has_others(device) else [])]
    total = len(STEPS) * len(implementations)
    pieces: list[Piece] = []
    for i, impl in enumerate(implementations):
        for k, step in enumerate(STEPS):
            pieces += _timed(training_step(step, device, impl), clock)
            if progress is not None:
                progress(i * len(STEPS) + k + 1, total)
    measured: Rates = {"key": key(device), "machine": machine(device)}
    measured |= _peaks(device, clock)
    measured["kinds"] = dict(_fitted(pieces, measured["sgemm_gflops"]))
    measured["glue"] = _glue(device, clock)
    return measured


def seconds(work: Work, rates: Rates, implementation: str = "auto") -> dict[str, float]:
    """Return the expected seconds of some work by kind of call, and of the Python around it as "glue".

    implementation: of the library ops; "auto" is the one that is preferred here.

    Raises ValueError where the rates do not know how long that implementation of an op takes.
    """
    spent: dict[str, float] = {"glue": rates["glue"] * len(work.pieces)}
    for piece in work.pieces:
        known = _rates_of(piece.kind, rates["kinds"], implementation)
        spent[piece.kind] = spent.get(piece.kind, 0.0) + sum(known.get(k, 0.0) * n for k, n in piece.amounts.items())
    return spent


def _rates_of(kind: str, kinds: Rates, implementation: str) -> dict[str, float]:
    op = kind.removesuffix("_forward")
    if op not in dispatch.ops():
        # Products of another kind (a student's convolutions) at best as fast as those that were measured.
        return dict(kinds[kind]) if kind in kinds else {**kinds[OTHER], "flop": kinds["mm"]["flop"]}
    names = [i.name for i in dispatch.implementations(op)] if implementation == "auto" else [implementation]
    for name in names:
        if f"{kind}:{name}" in kinds:
            return dict(kinds[f"{kind}:{name}"])
    if op == "linear" and "addmm" in kinds:  # where predict calls the library's own product without an op
        return dict(kinds["addmm"])
    measured = ", ".join(k.partition(":")[2] for k in kinds if k.startswith(f"{kind}:"))
    raise ValueError(
        f"seconds: implementation: expected one whose rates were measured for {op} ({measured}), got {implementation!r}"
    )


def _has_others(device: torch.device) -> bool:
    """Say whether anything but the reference runs in a training step here."""
    with dispatch.recording() as choices:
        training_step(STEPS[0], device, "auto")()
    return any(choice.runs != "reference" for choice in choices)


def _waiting(device: torch.device) -> Clock:
    """Return a clock that waits for a GPU first."""
    if device.type != "cuda":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def _timed(function: Callable[[], None], clock: Clock, repeats: int = REPEATS) -> list[Piece]:
    """Return the calls of a function, each with its median time of some runs."""
    function()
    runs = [trace(function, clock=clock).pieces for _ in range(repeats)]
    for same in zip(*runs, strict=True):
        same[0].seconds = median([piece.seconds for piece in same])
    return runs[0]


def _glue(device: torch.device, clock: Clock) -> float:
    """Return the seconds of Python per call: what a small step takes beside its calls."""
    function, repeats = training_step(STEPS[0], device, "reference"), 4 * REPEATS
    pieces = _timed(function, clock, repeats)
    whole = median([_once(function, clock) for _ in range(repeats)])
    return max(0.0, whole - sum(piece.seconds for piece in pieces)) / len(pieces)


def _once(function: Callable[[], object], clock: Clock) -> float:
    start = clock()
    function()
    return clock() - start


def _peaks(device: torch.device, clock: Clock) -> dict[str, float]:
    """Measure matrix products and copies at a size at which they are as fast as they get."""
    n = 8192 if device.type == "cuda" else 1024
    found = {}
    dtypes = {"sgemm_gflops": torch.float32} | ({"bf16_gflops": torch.bfloat16} if device.type == "cuda" else {})
    for name, dtype in dtypes.items():
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        found[name] = 2e-9 * n**3 / _best(lambda a=a, b=b: a @ b, clock)  # type: ignore[misc]
    source = torch.zeros(64 << 20, device=device)
    target = torch.empty_like(source)
    found["copy_gigabytes_per_second"] = 2e-9 * source.nbytes / _best(lambda: target.copy_(source), clock)
    return found


def _best(function: Callable[[], object], clock: Clock) -> float:
    function()
    return max(TICK, min(_once(function, clock) for _ in range(2 * REPEATS)))


def _fitted(pieces: Sequence[Piece], sgemm_gflops: float) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the rates of every kind of call, and of all aten ops that are no products together."""
    by_kind: dict[str, list[Piece]] = {}
    for piece in pieces:
        name = piece.kind if piece.implementation is None else f"{piece.kind}:{piece.implementation}"
        by_kind.setdefault(name, []).append(piece)
        if piece.implementation is None and not piece.flop:
            by_kind.setdefault(OTHER, []).append(piece)
    product = _fit(by_kind["mm"]).get("flop", 1e-9 / sgemm_gflops)
    for name, same in by_kind.items():
        found = _fit(same)
        # Beside all else that a reference does, its products do not show: they are as fast as alone.
        if any(piece.flop for piece in same) and (same[0].implementation == "reference" or "flop" not in found):
            found = _fit(same, {"flop": product})
        yield name, found


def _fit(pieces: Sequence[Piece], known: dict[str, float] | None = None) -> dict[str, float]:
    """Return the rates of calls of one kind, given those of some amounts."""
    known = known or {}
    amounts = sorted({amount for piece in pieces for amount in piece.amounts} - set(known))
    matrix = torch.tensor([[piece.amounts.get(a, 0.0) for a in amounts] for piece in pieces], dtype=torch.float64)
    spent = [max(p.seconds, TICK) for p in pieces]
    rest = [
        t - sum(rate * p.amounts.get(a, 0.0) for a, rate in known.items()) for t, p in zip(spent, pieces, strict=True)
    ]
    # Relative errors count, those of long calls a little more: what is asked for is the sum of many.
    weight = torch.tensor(spent, dtype=torch.float64) ** -0.75
    solution = non_negative(matrix * weight[:, None], torch.tensor(rest, dtype=torch.float64) * weight)
    return known | {a: x for a, x in zip(amounts, solution.tolist(), strict=True) if x > 0}


def non_negative(matrix: Tensor, wanted: Tensor) -> Tensor:
    """Return the x >= 0 of least squares |matrix x - wanted|.

    Lawson and Hanson, "Solving Least Squares Problems", 1974, chapter 23: the active set method.
    """
    scale = matrix.norm(dim=0).clamp(min=torch.finfo(matrix.dtype).tiny)
    a = matrix / scale
    x = torch.zeros(a.shape[1], dtype=a.dtype)
    used = torch.zeros(a.shape[1], dtype=torch.bool)
    for _ in range(3 * a.shape[1]):
        gain = (a.T @ (wanted - a @ x)).masked_fill(used, float("-inf"))
        if float(gain.max()) <= 1e-9 * float(wanted.norm()):
            break
        used[gain.argmax()] = True
        while True:
            best = torch.zeros_like(x)
            best[used] = torch.linalg.lstsq(a[:, used], wanted[:, None], driver="gelsd").solution.flatten()
            below = used & (best <= 0)
            if not below.any():
                break
            step = (x[below] / (x[below] - best[below])).min()
            x = x + step * (best - x)
            used &= x > 1e-12
            x = x.masked_fill(~used, 0.0)
        x = best
    solution: Tensor = x / scale
    return solution
