"""The calls of attention in Triton's interpreter: python -m tests.attention.interpreted PART, or their names."""

from __future__ import annotations

import sys
from functools import partial

import torch

from tests import interpreted
from tests.attention.cases import CASES, Call, Case, build, draw
from wfkernels.attention import ops, validate

SEEDS = range(4)
# Over the borders of tiles of 32 x 32, and of several programs that share a sum.
LARGE = {
    "several tiles": Case(lead=(2,), queries=(65,), keys=(70,), bias=(65, 70), gate=(2, 65, 1), closed=0.2),
    "several tiles, causal": Case(lead=None, queries=(40, 0, 33), bias="table", gate="rich", is_causal=True),
    "sums that are split": Case(lead=(5,), queries=(33,), heads=2, key_heads=1, bias=(33, 33), dropout_p=0.2),
    "a table that is split": Case(lead=(5,), queries=(33,), heads=2, key_heads=1, bias="table"),
    "wide": Case(lead=(), queries=(5,), heads=1, key_heads=1, width=80, value_width=40, bias="full"),
    "widest": Case(lead=(), queries=(17,), heads=1, key_heads=1, width=256, value_width=129, gate="full"),
}
HALVES = ("dense bias", "dense gate", "ragged tables", "dense dropout", "ragged pruned", "several tiles, causal")


def calls() -> interpreted.Calls:
    cases = CASES | LARGE
    for name, case in cases.items():
        yield name, partial(wrongs, build(case, dtype=torch.float32))
    for name in HALVES:
        yield f"{name}, float16", partial(wrongs, build(cases[name], dtype=torch.float16))
    for seed in SEEDS:
        yield f"draw({seed})", partial(wrongs, build(draw(seed), seed, torch.float32))


def wrongs(call: Call) -> list[str]:
    """Return every disagreement of forward and backward with the reference."""
    options = call.options
    if "offsets" in options:
        lengths = (options["offsets"], options.get("key_offsets"), options.get("query_start"), None)
        options["max_length"] = validate.lengths(call.query, call.key, *lengths)
    args = (*call.arguments()[:-1], "triton")
    out, lse = ops.attention_forward(*args)
    found = interpreted.wrongs("attention", args, (out, lse))
    grads = [torch.randn_like(x) for x in (out, lse)]
    needs = [True, True, True, call.bias is not None, call.gate is not None]
    args = (*grads, needs, *args[:3], out, lse, *args[3:])
    return found + interpreted.wrongs("attention_backward", args, ops.attention_backward(*args))


if __name__ == "__main__":
    sys.exit(interpreted.main(calls(), sys.argv[1:]) > 0)
