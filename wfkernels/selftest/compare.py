"""Every implementation of every op, on the calls of `cases`, held against the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from wfkernels import dispatch, env, judge
from wfkernels.selftest.cases import CASES, Call, Draw

DTYPES = {"cpu": (torch.float32, torch.bfloat16, torch.float64)}
DTYPES_OF_GPUS = (torch.float32, torch.bfloat16, torch.float16)
# Of the finite differences: the truncation error h^2 and the rounding error eps / h meet near the cube root of eps.
STEP = torch.finfo(torch.float64).eps ** (1 / 3)
ROUNDINGS = 8


@dataclass
class Line:
    """What one implementation of one op did. `worst` is a share of the error that is allowed."""

    op: str
    implementation: str
    calls: int = 0
    worst: float = 0.0
    refused: dict[str, int] = field(default_factory=dict)
    failure: str | None = None
    note: str = ""

    @property
    def status(self) -> str:
        if self.failure is not None:
            return "FAILED"
        return "ok" if self.calls else "not run"

    def __str__(self) -> str:
        reasons = "; ".join(self.refused)
        if self.failure is not None:
            detail = self.failure
        elif not self.calls:
            detail = reasons
        else:
            share = f"error at most {self.worst:.0%} of what is allowed" if self.worst else "the same bits"
            detail = f"{self.calls} calls, {self.note or share}"
            if self.refused:
                detail += f"; {sum(self.refused.values())} calls not run: {reasons}"
        return f"{self.op:24} {self.implementation:10} {self.status:8} {detail}"


def run(device: torch.device | str, implementation: str | None = None) -> list[Line]:
    """Return a line for every op and implementation (or the one named) on a device."""
    device = torch.device(device)
    calls = list(_calls(device))
    lines: list[Line] = []
    for op in dict.fromkeys(op for op, _, _ in calls):
        mine = [(label, args) for other, label, args in calls if other == op]
        available = [i for i in dispatch.implementations(op) if implementation in (None, i.name)]
        lines += [_judged(op, one, mine) for one in available]
        if not available:
            names = ", ".join(i.name for i in dispatch.implementations(op))
            assert implementation is not None
            lines.append(Line(op, implementation, refused={f"{op} has the implementations {names}": len(mine)}))
    if implementation in (None, "reference"):
        _check_gradients(device, {line.op: line for line in lines if line.implementation == "reference"})
    return lines


def _calls(device: torch.device) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """Yield (op, label, arguments) of every call of a library op that the reference makes in the cases."""
    for dtype in DTYPES.get(device.type, DTYPES_OF_GPUS):
        for case in CASES:
            draw = Draw(device, dtype)
            call = case(draw)
            with env.IMPL.holding("reference"), dispatch.capturing() as captured:
                _forward_and_backward(call, draw)
            label = f"{case.__name__}, {str(dtype).removeprefix('torch.')}"
            yield from ((op, label, args) for op, args in captured)


def _forward_and_backward(call: Call, draw: Draw) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of sum w y by every leaf, and the random weights w of every result y."""
    results = judge.flat(call())
    weights = [torch.randn(y.shape, generator=draw.generator, dtype=torch.float64).to(y) for y in results]
    gradients = torch.autograd.grad(results, draw.leaves, weights, materialize_grads=True)
    return list(gradients), weights


def _judged(op: str, one: dispatch.Implementation, calls: Sequence[tuple[str, tuple[Any, ...]]]) -> Line:
    line = Line(op, one.name)
    reference = dispatch.implementations(op)[-1]
    for label, args in calls:
        reason = one.why_not(*args)
        if reason is not None:
            line.refused[reason] = line.refused.get(reason, 0) + 1
            continue
        line.calls += 1
        try:
            verdicts = _verdicts(op, one, reference, args)
        except Exception as error:  # whatever a kernel raises is its failure, not the self-test's
            line.failure = f"{label}: {type(error).__name__}: {' '.join(str(error).split())}"
            break
        line.worst = max((line.worst, *(v.share for v in verdicts)))
        wrong = next((v for v in verdicts if not v.share <= 1), None)
        if wrong is not None:
            line.failure = f"{label}: {wrong}"
            break
    return line


@torch.no_grad()
def _verdicts(
    op: str, one: dispatch.Implementation, reference: dispatch.Implementation, args: tuple[Any, ...]
) -> list[judge.Verdict]:
    """Run an implementation twice and return what the judge says, and whether anything changed that must not."""
    results = judge.run_apart(one.run, args)
    again = judge.Contract(dispatch.contract(op).results, exact=True)
    repeated = judge.examine(again, lambda *_: results, args, one.run(*args))
    changed = [verdict._replace(detail=f"two runs differ: {verdict.detail}") for verdict in repeated if verdict.share]
    if one is reference:
        return changed
    return [*changed, *judge.examine(dispatch.contract(op), reference.run, args, results)]


def _check_gradients(device: torch.device, lines: dict[str, Line]) -> None:
    """Hold the reference itself against finite differences, in float64."""
    for case in CASES:
        draw = Draw(device, torch.float64, smooth=True)
        call = case(draw)
        wrong = None
        with env.IMPL.holding("reference"), dispatch.capturing() as captured:
            gradients, weights = _forward_and_backward(call, draw)
            function = partial(_weighted_sum, call, weights)
            if not _slope_agrees(function, draw.leaves, gradients, draw.generator):
                wrong = [
                    i
                    for i, (x, g) in enumerate(zip(draw.leaves, gradients, strict=True))
                    if not _slope_agrees(function, [x], [g], draw.generator)
                ]
        for op in {op for op, _ in captured}:
            line = lines[op]
            line.note = "gradients as by finite differences"
            if wrong is not None and line.failure is None:
                line.failure = f"{case.__name__}: the gradients of inputs {wrong} are not those of finite differences"


def _weighted_sum(call: Call, weights: list[Tensor]) -> tuple[float, float]:
    """Return sum w y over all results y, and sum |w y|, which its rounding error is a share of."""
    with torch.no_grad():
        products = [(w * y).double() for w, y in zip(weights, judge.flat(call()), strict=True)]
    finite = [p[p.isfinite()] for p in products]
    return sum(float(p.sum()) for p in finite), sum(float(p.abs().sum()) for p in finite)


def _slope_agrees(
    function: Callable[[], tuple[float, float]],
    leaves: list[Tensor],
    gradients: list[Tensor],
    generator: torch.Generator,
) -> bool:
    """Compare the slope along a random direction with central differences at two step sizes.

    What the two differ by bounds the error of the smaller step (a third of it, for a smooth function); rounding adds
    the unit of rounding times the size of the sums over the step.
    """
    directions = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device) for x in leaves]
    wanted = sum(float((g * v).sum()) for g, v in zip(gradients, directions, strict=True))
    slopes: list[float] = []
    size = 0.0
    for step in (STEP, 2 * STEP):
        ahead, behind = (_moved(function, leaves, directions, sign * step) for sign in (1, -1))
        slopes.append((ahead[0] - behind[0]) / (2 * step))
        size = max(size, ahead[1], behind[1])
    rounding = torch.finfo(torch.float64).eps * size / STEP
    agrees: bool = abs(slopes[0] - wanted) <= abs(slopes[1] - slopes[0]) + ROUNDINGS * rounding
    return agrees


def _moved(
    function: Callable[[], tuple[float, float]], leaves: list[Tensor], directions: list[Tensor], step: float
) -> tuple[float, float]:
    """Evaluate with the leaves moved along their directions, and put them back to the bit."""
    kept = [x.detach().clone() for x in leaves]
    with torch.no_grad():
        for x, v in zip(leaves, directions, strict=True):
            x.add_(v, alpha=step)
        value = function()
        for x, was in zip(leaves, kept, strict=True):
            x.copy_(was)
    return value
