"""Which implementation of an op runs, and why.

A room registers its implementations in order of preference; each brings one predicate, `why_not`, that is used both to
choose and to word the error, so the two can never disagree.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from wfkernels import env, judge
from wfkernels.judge import Contract

log = logging.getLogger("wfkernels")


class ImplementationError(RuntimeError):
    """A named implementation cannot run this call. The message says why and what would change it."""


@dataclass(frozen=True)
class Implementation:
    """One way to run an op. `run` and `why_not` take the op's own arguments.

    `why_not` returns None where the call can run, else the reason, worded so that it says what to do.
    """

    name: str
    run: Callable[..., Any]
    why_not: Callable[..., str | None]


_registry: dict[str, tuple[Implementation, ...]] = {}
_contracts: dict[str, Contract] = {}


def always(*_: Any, **__: Any) -> None:
    """The predicate of an implementation that runs everywhere (the reference)."""
    return None


def register(op: str, *implementations: Implementation, contract: Contract | None = None) -> None:
    """Declare the implementations of `op`, best first. The last one is the reference, which runs everywhere.

    `contract`: what the judge of results should know about the op.
    """
    _registry[op] = implementations
    _contracts[op] = contract or Contract()


def choose(op: str, impl: str, *args: Any) -> Implementation:
    """Return the implementation of `op` that runs for these arguments.

    "auto" (or WFKERNELS_IMPL behind it) takes the first that can; a named one that cannot raises ImplementationError.
    """
    wanted = env.IMPL.read() if impl == "auto" else impl
    refused: dict[str, str] = {}
    chosen = None
    for candidate in _registry[op]:
        if wanted not in ("auto", candidate.name):
            continue
        reason = candidate.why_not(*args)
        if reason is None:
            chosen = candidate
            break
        refused[candidate.name] = reason
    if _recordings:
        choice = _explain(op, wanted, chosen, args)
        for recording in _recordings:
            recording.append(choice)
    why = "; ".join(f"not {name}: {reason}" for name, reason in refused.items())
    if chosen is None:
        known = ", ".join(i.name for i in _registry[op])
        raise ImplementationError(
            f"{op}: impl={wanted!r} cannot run here: {why or f'{op} has the implementations {known}'}"
        )
    log.debug("%s: %s (%s)", op, chosen.name, why or "first choice")
    for calls in _captures:
        calls.append((op, args))
    return _checked(op, chosen, args) if env.CHECK.read() == "1" else chosen


def _checked(op: str, chosen: Implementation, args: tuple[Any, ...]) -> Implementation:
    """Check values now, and have results compared with those of the reference when the implementation runs."""
    contract, reference = _contracts[op], _registry[op][-1]
    if contract.values is not None:
        contract.values(*args)
    if chosen is reference:
        return chosen

    def run(*args: Any) -> Any:
        return judge.check(op, chosen.name, contract, chosen.run, reference.run, args)

    return replace(chosen, run=run)


def verdicts(op: str, *args: Any) -> dict[str, str | None]:
    """Return, for every implementation of `op`, None where it could run these arguments, else the reason."""
    return {i.name: i.why_not(*args) for i in _registry[op]}


def ops() -> tuple[str, ...]:
    """Return the names of all ops registered so far."""
    return tuple(_registry)


def implementations(op: str) -> tuple[Implementation, ...]:
    """Return the implementations of `op`, best first, the reference last."""
    return _registry[op]


def contract(op: str) -> Contract:
    """Return what the judge of results knows about `op`."""
    return _contracts[op]


@dataclass(frozen=True)
class Choice:
    """What `choose` decided for one call: the implementation (None: none can run) and why not the others."""

    op: str
    runs: str | None
    why_not: dict[str, str]

    def __str__(self) -> str:
        others = "".join(f"; not {name}: {reason}" for name, reason in self.why_not.items())
        return f"{self.op}: {self.runs or 'nothing can run'}{others}"


_recordings: list[list[Choice]] = []
_captures: list[list[tuple[str, tuple[Any, ...]]]] = []


@contextmanager
def recording() -> Iterator[list[Choice]]:
    """Collect every choice made inside the block, in whatever thread: a GPU's backward has threads of its own."""
    choices: list[Choice] = []
    _recordings.append(choices)
    try:
        yield choices
    finally:
        _recordings[:] = [other for other in _recordings if other is not choices]


@contextmanager
def capturing() -> Iterator[list[tuple[str, tuple[Any, ...]]]]:
    """Collect (op, arguments) of every call made inside the block, in whatever thread."""
    calls: list[tuple[str, tuple[Any, ...]]] = []
    _captures.append(calls)
    try:
        yield calls
    finally:
        _captures[:] = [other for other in _captures if other is not calls]


def _explain(op: str, wanted: str, chosen: Implementation | None, args: tuple[Any, ...]) -> Choice:
    default = f"it could run, but {wanted if chosen is None else chosen.name} was asked for"
    if wanted == "auto" and chosen is not None:
        default = f"it could run, but {chosen.name} comes first"
    reasons = {name: reason or default for name, reason in verdicts(op, *args).items()}
    if chosen is not None:
        del reasons[chosen.name]
    return Choice(op, chosen.name if chosen else None, reasons)
