"""The rule by which every kernel is held against the reference.

The error of a result is its difference from the reference in float64. A kernel passes where the largest and the mean
error of each of its results are at most 2x (gradients 3x) those of the eager computation (the reference in the kernel's
own dtype), plus one unit in the last place of the result's dtype at the result's largest entry. Tests, self-test,
benchmarks and WFKERNELS_CHECK=1 all judge by `examine`.

One eager run may be lucky, above all where a result has few entries. So before a kernel is accused the eager error is
measured at neighbouring inputs too, and the worst one counts.

A float64 result has nothing more exact to be held against. Rounding errors scale with the unit of rounding, so the
eager error is that of the float32 computation, scaled down; and because the float64 reference has that error itself, it
counts once more. Long sums of float32 numbers are taken in float64, so that this error says nothing about theirs: a
float64 result has 32 units in the last place instead of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

NEIGHBOURS = 24
ALLOWED, ALLOWED_OF_GRADIENTS = 2.0, 3.0
UNITS_OF_FLOAT64 = 32
# float32 and float64 round this far apart.
FINER = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps


class Disagreement(RuntimeError):
    """A kernel and the reference disagree. The message says where and by how much."""


def numbered(*args: Any) -> list[str]:
    """The names of the results of an op that names none."""
    return []


def named(*names: str) -> Callable[..., Sequence[str]]:
    """Return the `results` of a contract whose results are always the same."""
    return lambda *args: names


@dataclass(frozen=True)
class Contract:
    """What the judge knows about an op. Every function takes the op's own arguments, as `Implementation.run` does.

    results: the name of every result; those beyond the names given are numbered.
    gradient: the results are gradients.
    exact: the op computes nothing, so its results are those of the reference to the bit.
    values: raises ValueError for values out of range, on any device; called under WFKERNELS_CHECK=1.
    parts: entries that are judged apart, for some results by name: masks of the result's shape, by what they hold.
    """

    results: Callable[..., Sequence[str]] = numbered
    gradient: bool = False
    exact: bool = False
    values: Callable[..., None] | None = None
    parts: Callable[..., Mapping[str, Mapping[str, Tensor]]] | None = None


class Verdict(NamedTuple):
    """How one result, or a part of it, compares. `share` above 1 (of what is allowed) is a disagreement."""

    name: str
    share: float
    detail: str

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}"


class Error(NamedTuple):
    """Largest and mean error of a tensor, absolute."""

    largest: float
    mean: float

    def worst(self, other: Error) -> Error:
        return Error(max(self.largest, other.largest), max(self.mean, other.mean))


Run = Callable[..., Any]


def flat(results: Any) -> list[Tensor]:
    """Return what an op returned as a list of tensors."""
    return [results] if isinstance(results, Tensor) else list(results)


def each(function: Callable[[Tensor], Tensor], args: Any) -> Any:
    """Apply a function to every tensor among an op's arguments, lists of tensors included."""
    if isinstance(args, Tensor):
        return function(args)
    return type(args)(each(function, x) for x in args) if isinstance(args, (list, tuple)) else args


@torch.no_grad()
def examine(contract: Contract, reference: Run, args: Sequence[Any], results: Any) -> list[Verdict]:
    """Return a verdict for every result of a kernel that was run with `args`, in order.

    The reference runs in here, with the same arguments: in their dtypes, in float64 and, where that says too little, at
    neighbouring inputs.
    """
    args, found = tuple(args), flat(results)
    eager = flat(reference(*args))
    if len(found) != len(eager):
        return [Verdict("results", float("inf"), f"{len(found)} tensors instead of {len(eager)}")]
    given = list(contract.results(*args))
    names = [*given, *(f"result {i}" for i in range(len(given), len(eager)))]
    trials = _Trials(reference, args, eager)
    masks = {} if contract.parts is None else contract.parts(*args)
    verdicts = []
    for i, (name, x, y) in enumerate(zip(names, found, eager, strict=True)):
        if (x.shape, x.dtype, x.device) != (y.shape, y.dtype, y.device):
            kinds = (f"{t.dtype} {list(t.shape)} on {t.device}" for t in (x, y))
            verdicts.append(Verdict(name, float("inf"), " instead of ".join(kinds)))
        elif contract.exact or not (y.numel() and y.is_floating_point()):
            verdicts.append(_same_bits(name, x, y))
        else:
            allowed = ALLOWED_OF_GRADIENTS if contract.gradient else ALLOWED
            for part, mask in masks.get(name, {"": None}).items():
                if mask is None or bool(mask.any()):
                    label = f"{name}, {part} entries" if part else name
                    verdicts.append(_verdict(label, x, trials, i, mask, allowed))
    return verdicts


def _bits(x: Tensor) -> Tensor:
    """Return the bytes of every entry, [entries, bytes of one]."""
    return x.contiguous().flatten().view(torch.uint8).view(-1, x.element_size())


def _same_bits(name: str, found: Tensor, wanted: Tensor) -> Verdict:
    """Compare bit by bit; one NaN is as good as another."""
    differs = (_bits(found) != _bits(wanted)).any(1)
    if differs.any() and found.is_floating_point():
        differs &= ~(found.flatten().double().isnan() & wanted.flatten().double().isnan())
    if not differs.any():
        return Verdict(name, 0.0, "the same bits")
    place = int(differs.nonzero()[0, 0])
    x, y = (t.flatten()[place].item() for t in (found, wanted))
    where = _index(place, wanted.shape)
    return Verdict(name, float("inf"), f"{x:.9g} at {where}, the reference says {y:.9g} and every bit has to agree")


def _index(place: int, shape: torch.Size) -> list[int]:
    return [int(i) for i in torch.unravel_index(torch.tensor(place), shape)]


def _verdict(name: str, found: Tensor, trials: _Trials, i: int, mask: Tensor | None, allowed: float) -> Verdict:
    exact, comparable, size = trials.first(i, mask)
    difference = _difference(found, exact).masked_fill_(~comparable, 0.0)
    error = _measure(difference, comparable)
    unit = torch.finfo(found.dtype).eps * size
    if found.dtype == torch.float64:
        allowed, unit = allowed + 1.0, UNITS_OF_FLOAT64 * unit
    share, limit, kind = 0.0, Error(0.0, 0.0), "largest"
    eager = Error(0.0, 0.0)
    for one in trials.errors(i, mask):
        eager = eager.worst(one)
        limit = Error(*(allowed * e + unit for e in eager))
        ratios = [x / y if y > 0 else (float("inf") if x > 0 else 0.0) for x, y in zip(error, limit, strict=True)]
        share = max(ratios)
        kind = Error._fields[ratios.index(share)]
        if share <= 1:
            break
    place = int(difference.argmax())
    x, y = found.flatten()[place].item(), exact.flatten()[place].item()
    most = limit.largest if kind == "largest" else limit.mean
    average = f" and {error.mean:.3g} on average" if kind == "mean" else ""
    return Verdict(
        name,
        share,
        f"{x:.9g} at {_index(place, found.shape)}, the float64 reference says {y:.9g}; off by {error.largest:.3g}"
        f"{average}, allowed {most:.3g}{' on average' * (kind == 'mean')}",
    )


def _difference(found: Tensor, exact: Tensor) -> Tensor:
    """Return |found - exact|, float64: 0 where both are the same infinity, infinite where one is not a number."""
    found = found.double()
    difference = (found - exact).abs().masked_fill_(found == exact, 0.0)
    return difference.nan_to_num_(nan=float("inf"), posinf=float("inf"))


def _measure(difference: Tensor, comparable: Tensor) -> Error:
    count = int(comparable.sum())
    return Error(float(difference.max()), float(difference.sum()) / count if count else 0.0)


class _Trials:
    """The eager errors of a call, the first at its own arguments, the others at neighbouring ones, run when needed."""

    def __init__(self, reference: Run, args: tuple[Any, ...], eager: list[Tensor]) -> None:
        self.reference, self.args, self.eager = reference, args, eager
        self.pairs: dict[tuple[int, bool], tuple[list[Tensor], list[Tensor]]] = {}

    def first(self, i: int, mask: Tensor | None) -> tuple[Tensor, Tensor, float]:
        """Return the exact result i, which of its entries are judged, and the size of the largest of them."""
        exact = self._pair(0, False)[1][i]
        comparable = _comparable(self.eager[i], exact, mask)
        largest = exact.abs().masked_fill_(~(comparable & exact.isfinite()), 0.0).max()
        return exact, comparable, float(largest)

    def errors(self, i: int, mask: Tensor | None) -> Iterator[Error]:
        """Yield the eager error of result i at one input after the other."""
        fine = self.eager[i].dtype == torch.float64
        for trial in range(NEIGHBOURS + 1):
            eager, exact = (x[i] for x in self._pair(trial, fine))
            comparable = _comparable(eager, exact, mask)
            error = _measure(_difference(eager, exact).masked_fill_(~comparable, 0.0), comparable)
            yield Error(*(FINER * e for e in error)) if fine else error

    def _pair(self, trial: int, lower: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Return the results in the call's own dtypes (`lower`: with float32 for float64) and those in float64."""
        if (trial, lower) not in self.pairs:
            args = each(_Nudge(trial), self.args) if trial else self.args
            if lower:
                args = each(_lowered, args)
            eager = flat(self.reference(*args)) if trial or lower else self.eager
            self.pairs[trial, lower] = eager, flat(self.reference(*each(_widened, args)))
        return self.pairs[trial, lower]


def _comparable(eager: Tensor, exact: Tensor, mask: Tensor | None) -> Tensor:
    """Say which entries are judged: not where the exact one is NaN, nor where the eager dtype overflowed."""
    same = ~exact.isnan() & (eager.isfinite() == exact.isfinite())
    return same if mask is None else same & mask


def _widened(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _lowered(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.float64 else x


class _Nudge:
    """Moves every entry of a tensor by about one rounding; the same way for the same seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        noise = torch.randn(x.shape, generator=self.generator, dtype=torch.float64).to(x.device)
        return (x.double() * (1 + torch.finfo(x.dtype).eps * noise)).to(x.dtype)


class Disturbance(RuntimeError):
    """A kernel wrote into one of its arguments."""


def run_apart(run: Run, args: Sequence[Any]) -> Any:
    """Run a kernel and return its results; raise Disturbance if it changed a bit of one of its tensor arguments."""
    before = [t.clone() for t in _tensors(args)]
    results = run(*args)
    for i, (was, now) in enumerate(zip(before, _tensors(args), strict=True)):
        if not torch.equal(_bits(was), _bits(now)):
            raise Disturbance(f"it wrote into its tensor argument {i}, {was.dtype} {list(was.shape)}")
    return results


def check(op: str, name: str, contract: Contract, run: Run, reference: Run, args: Sequence[Any]) -> Any:
    """Run a kernel and return its results, unless they disagree with the reference: then raise Disagreement."""
    try:
        results = run_apart(run, args)
    except Disturbance as error:
        raise Disagreement(f"{op}: impl={name!r}: {error}; {_ADVICE}") from None
    for verdict in examine(contract, reference, args, results):
        if not verdict.share <= 1:
            raise Disagreement(f"{op}: impl={name!r} disagrees with the reference in {verdict}; {_ADVICE}")
    return results


_ADVICE = "WFKERNELS_IMPL=reference goes on without it; please report it"


def _tensors(args: Any) -> list[Tensor]:
    """Return every tensor among an op's arguments."""
    if isinstance(args, Tensor):
        return [args]
    return list(chain.from_iterable(map(_tensors, args))) if isinstance(args, (list, tuple)) else []
