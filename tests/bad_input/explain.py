"""Mistakes in a call of explain, and those of the call it explains, which come through."""

from __future__ import annotations

import torch

import wfkernels
from tests.bad_input.attention import dense
from tests.bad_input.table import Arguments, Bad, Table, put


def good() -> Arguments:
    return {"op": "attention", **dense()}


PUBLIC = "one of attention, .*unpack or a callable"
ENTRIES = (
    *(
        Bad(f"op is {op!r}", put(op=op), error, "op", PUBLIC)
        for op, error in (
            ("paint", ValueError),
            ("", ValueError),
            ("Attention", ValueError),
            ("attention_backward", ValueError),
            ("BucketTable", ValueError),
            ("explain", ValueError),
            ("__version__", ValueError),
            (None, TypeError),
            (3, TypeError),
            (torch.zeros(2), TypeError),
            (b"attention", TypeError),
        )
    ),
    Bad("the call's own mistake", put(query=None), TypeError, "query", "a torch.Tensor", "attention"),
    Bad("another function's", put(op="residual_norm", x=1.0), TypeError, "x", "a torch.Tensor", "residual_norm"),
)


def explain(op: object, **call: object) -> str:
    if op == "residual_norm":
        call = {"x": call["x"], **dict.fromkeys(("residual", "weight", "bias"), torch.zeros(1))}
    return wfkernels.explain(op, **call)  # type: ignore[arg-type]


TABLES = (Table("explain", explain, good, ENTRIES),)
