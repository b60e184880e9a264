"""Running Triton kernels in Triton's interpreter, and judging them against the float64 reference.

A room's `interpreted.py` yields its calls; `main` runs a part of them and prints what disagrees. triton reads
TRITON_INTERPRET when it is imported, so a test starts a process of its own. The interpreter's products of bfloat16 are
wrong (upstream), so that dtype is only compiled (tests/aot.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from wfkernels import dispatch, judge

ROOT = Path(__file__).parents[1]
PARTS = 4
# A name, and what returns every disagreement.
Calls = Iterable[tuple[str, Callable[[], list[str]]]]


def wrongs(op: str, args: tuple[object, ...], results: Sequence[Tensor] | Tensor) -> list[str]:
    """Return how results of a library op disagree with the reference. args: as implementations take them."""
    found = judge.examine(dispatch.contract(op), dispatch.implementations(op)[-1].run, args, results)
    return [str(v) for v in found if not v.share <= 1]


def main(calls: Calls, wanted: list[str]) -> int:
    """Run the calls of a part, or those named; return how many disagreements there were."""
    warnings.filterwarnings("ignore", "divide by zero", RuntimeWarning)  # the logarithm of a row with nothing open
    torch.manual_seed(0)
    chosen = list(calls)
    chosen = chosen[int(wanted[0]) :: PARTS] if wanted[0].isdigit() else [c for c in chosen if c[0] in wanted]
    bad = 0
    with torch.no_grad():
        for name, run in chosen:
            found = run()
            print(name, *(found or ["as the reference"]), sep="\n    ", flush=True)
            bad += len(found)
    return bad


def check(module: str, part: int) -> None:
    """Run a part of a room's calls in the interpreter, and fail where one disagrees."""
    found = subprocess.run(
        [sys.executable, "-m", module, str(part)],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "WFKERNELS_IMPL": "triton"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, f"{found.stdout[-5000:]}\n{found.stderr[-3000:]}"
