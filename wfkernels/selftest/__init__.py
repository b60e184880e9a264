"""`python -m wfkernels selftest`: is what is installed here correct, and how fast is it?

`run` holds every implementation of every op against the reference and the reference against finite differences;
`rates` measures this machine, and `trace` with `seconds` say what a computation would take on it.
"""

from __future__ import annotations

from wfkernels.selftest.compare import Line, run
from wfkernels.selftest.kept import Rates, load, save
from wfkernels.selftest.measure import rates, seconds
from wfkernels.selftest.work import Piece, Work, even, lengths_of, trace

__all__ = [
    "Line",
    "Piece",
    "Rates",
    "Work",
    "even",
    "lengths_of",
    "load",
    "rates",
    "run",
    "save",
    "seconds",
    "trace",
]
