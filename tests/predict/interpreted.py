"""Whole predicts in Triton's interpreter: python -m tests.predict.interpreted PART, or their names.

Every op of the chain is held against the reference where it is called, with what the ops before it returned.
"""

from __future__ import annotations

import os
import sys
from functools import partial

import torch

from tests import interpreted
from tests.predict.cases import CASES, SEED, Case, tensors
from wfkernels import dispatch, predict
from wfkernels.judge import Disagreement

NAMES = ("paper", "recipe", "specialists", "bucketed", "mean", "shared", "dropout", "empty layer with cross tokens")
ROOMS = ("embedding", "attention", "residual_norm", "projection")


def calls() -> interpreted.Calls:
    for name in NAMES:
        yield name, partial(wrongs, CASES[name])


@torch.enable_grad()
def wrongs(case: Case) -> list[str]:
    """Return the first disagreement of forward and backward, and what did not run in Triton."""
    rows, parameters, layout, lookup = tensors(case)
    rows = rows.detach().float().requires_grad_()
    flat = [None if t is None else t.detach().float().requires_grad_() for t in parameters.flatten()]
    given = parameters.unflatten(flat)
    try:
        with dispatch.recording() as choices:
            students = predict(rows, given, case.settings, layout=layout, gate_lookup=lookup, seed=SEED)
            assert isinstance(students, torch.Tensor)
            students.sum().backward()
    except Disagreement as error:
        return [str(error)]
    ran = {choice.op for choice in choices if choice.runs == "triton"}
    wanted = {f"{room}{part}" for room in ROOMS for part in ("", "_backward")}
    return [f"{op} did not run" for op in sorted(wanted - ran)]


if __name__ == "__main__":
    os.environ["WFKERNELS_CHECK"] = "1"
    sys.exit(interpreted.main(calls(), sys.argv[1:]) > 0)
