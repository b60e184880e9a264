"""Which implementation a call uses, and why not the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import wfkernels
from wfkernels import dispatch


def explain(op: str | Callable[..., object], *args: Any, **kwargs: Any) -> str:
    """Run a call once and return, line by line, which implementation each library op in it used and why not the others.

    Args:
        op: the name of a public function ("attention", "pack", "predict", ...), or any callable; one that calls
            `.backward()` explains the gradients too.
        *args, **kwargs: its arguments.

    Raises:
        ValueError: there is no public function of that name. Whatever the call itself raises, except that an
        ImplementationError is part of the answer: its op is listed with nothing that can run.

    >>> print(wfkernels.explain("attention", query, key, value, bias=bias))
    """
    if isinstance(op, str):
        functions = [name for name in wfkernels.__all__ if name.islower()]
        if op not in functions:
            raise ValueError(f"explain: op: expected one of {', '.join(functions)} or a callable, got {op!r}")
        op = getattr(wfkernels, op)
        assert callable(op)
    with dispatch.recording() as choices:
        try:
            op(*args, **kwargs)
        except dispatch.ImplementationError:
            if not choices or choices[-1].runs is not None:
                raise
    return "\n".join(dict.fromkeys(map(str, choices)))
