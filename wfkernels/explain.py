"""Which implementation a call uses, and why not the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import wfkernels
from wfkernels import dispatch, env


def explain(op: str | Callable[..., object], /, *args: Any, **kwargs: Any) -> str:
    """Run a call once and return, line by line, which implementation each library op in it used and why not the others.

    The last line says which switches were in force. A call without any library op (`unpack` makes views) says so.

    Args:
        op: the name of a public function ("attention", "pack", "predict", ...), or any callable, a module too; one that
            calls `.backward()` explains the gradients as well.
        *args, **kwargs: its arguments.

    Raises:
        TypeError: op is neither a name nor callable. ValueError: there is no public function of that name. Whatever the
        call itself raises, except that an ImplementationError is part of the answer: its op is listed with nothing
        that can run.

    >>> print(wfkernels.explain("attention", query, key, value, bias=bias))
    """
    if not (isinstance(op, str) or callable(op)):
        raise TypeError(f"explain: op: expected one of {', '.join(functions())} or a callable, got {type(op).__name__}")
    if isinstance(op, str):
        if op not in functions():
            raise ValueError(f"explain: op: expected one of {', '.join(functions())} or a callable, got {op!r}")
        op = getattr(wfkernels, op)
        assert callable(op)
    with dispatch.recording() as choices:
        try:
            op(*args, **kwargs)
        except dispatch.ImplementationError:
            if not choices or choices[-1].runs is not None:
                raise
    lines = dict.fromkeys(map(str, choices)) or ["no library op: plain PyTorch"]
    switches = ", ".join(f"{s.name}={s.read()}" for s in env.SWITCHES if not s.build)
    return "\n".join([*lines, f"switches: {switches}"])


def functions() -> list[str]:
    """Return the names of the public functions that compute something."""
    return [name for name in wfkernels.__all__ if name.islower() and name != "explain"]
