"""The correctness gate: every contender by the rule of `wfkernels.judge`, before anything is timed.

The reference runs in float64 and in the case's own dtype; a contender passes where its errors are at most 2x (gradients
3x) those of the latter. That rule is for our kernels. Of peers it only says how exact they are: one that keeps its
softmax in bfloat16 does not pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.case import BACKWARD, FORWARD, Contender, Problem, call
from wfkernels import judge
from wfkernels.judge import Contract, Verdict, named


class Judgement(NamedTuple):
    """max_error: relative to the largest entry of the result. share: of the error that is allowed.

    seconds: what the call itself took, which compiles what is compiled.
    """

    correct: bool
    max_error: float
    share: float
    detail: str
    seconds: float


def judged(problem: Problem, contender: Contender, mode: str) -> Judgement:
    """Run one mode of a contender and return how its results compare."""
    plain = Contender(contender.run, full=contender.full, around=contender.around)
    wanted = call(problem, plain, mode)
    with wanted.around():
        start = time.perf_counter()
        found = wanted.run(wanted.prepare())
        seconds = time.perf_counter() - start
    outputs = [] if mode == BACKWARD else found[: len(problem.results)]
    gradients = [] if mode == FORWARD else found[len(outputs) :]
    verdicts: list[Verdict] = []
    errors = [0.0]
    if outputs:
        reference = _Recorded(lambda *args: judge.flat(problem.reference(*args)))
        contract = Contract(named(*problem.results), exact=problem.exact)
        verdicts += judge.examine(contract, reference, problem.tensors, outputs)
        errors += map(relative_error, outputs, reference.exact)
    if gradients:
        reference = _Recorded(_gradients(problem))
        contract = Contract(_names(problem), gradient=True, parts=_parts(problem))
        verdicts += judge.examine(contract, reference, (*problem.tensors, *problem.grads), gradients)
        errors += map(relative_error, gradients, reference.exact)
    worst = max(verdicts, key=lambda verdict: verdict.share)
    return Judgement(worst.share <= 1, max(errors), worst.share, str(worst), seconds)


def repeats(problem: Problem, contender: Contender, mode: str, runs: int = 5) -> bool:
    """Return whether so many runs of one mode agree in every bit."""
    plain = Contender(contender.run, full=contender.full, around=contender.around)
    wanted = call(problem, plain, mode)
    with wanted.around():
        first, *others = [wanted.run(wanted.prepare()) for _ in range(runs)]
    return all(_same(a, b) for other in others for a, b in zip(first, other, strict=True))


def _same(first: Tensor, second: Tensor) -> bool:
    # By bits, so that a NaN equals itself.
    a, b = (t.detach().contiguous().flatten().view(torch.uint8) for t in (first, second))
    return torch.equal(a, b)


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Return the largest difference over the largest entry; places where both are the same infinity count as equal."""
    if found.shape != exact.shape or not found.numel():
        return float("inf") if found.shape != exact.shape else 0.0
    found, exact = found.detach().double(), exact.detach().double()
    difference = (found - exact).abs().masked_fill(found == exact, 0.0).nan_to_num(nan=torch.inf)
    size = float(exact.abs().masked_fill(~exact.isfinite(), 0.0).max())
    error = float(difference.max())
    return error / size if size else error


class _Recorded:
    """A reference that keeps its first float64 results: the exact ones at the inputs themselves."""

    def __init__(self, reference: Callable[..., list[Tensor]]) -> None:
        self.reference = reference
        self.kept: list[Tensor] | None = None
        self.first: list[Tensor] = []

    def __call__(self, *args: Any) -> list[Tensor]:
        found = self.reference(*args)
        self.first = self.first or found
        if self.kept is None and all(t.dtype == torch.float64 for t in found if t.is_floating_point()):
            self.kept = found
        return found

    @property
    def exact(self) -> list[Tensor]:
        # Where bits are compared, no float64 run is needed.
        return self.kept or self.first


def _gradients(problem: Problem) -> Callable[..., list[Tensor]]:
    count, learns = len(problem.tensors), [t.requires_grad for t in problem.tensors]

    def gradients(*args: Tensor) -> list[Tensor]:
        with torch.enable_grad():  # the judge runs without
            tensors = [t.detach().requires_grad_(learn) for t, learn in zip(args[:count], learns, strict=True)]
            outputs = judge.flat(problem.reference(*tensors))
            leaves = [t for t in tensors if t.requires_grad]
            # What the reference returns in its own dtype may be wider than the gradient that was drawn for it.
            grads = [g.to(x.dtype) for g, x in zip(args[count:], outputs, strict=True)]
            return list(torch.autograd.grad(outputs, leaves, grads))

    return gradients


def _names(problem: Problem) -> Callable[..., Sequence[str]]:
    return named(*(f"gradient of tensor {i}" for i, t in enumerate(problem.tensors) if t.requires_grad))


def _parts(problem: Problem) -> Callable[..., Mapping[str, Mapping[str, Tensor]]]:
    parts = {f"gradient of tensor {i}": masks for i, masks in problem.parts.items()}
    return lambda *args: parts
