"""Runs calls of the Triton attention in its interpreter and prints what disagrees with the float64 reference.

TRITON_INTERPRET=1 python -m tests.attention.interpreted PART, or the names of calls. triton reads the variable when it
is imported. The interpreter's products of bfloat16 are wrong (upstream), so that dtype is only compiled.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator

import torch

from tests.attention.cases import CASES, Call, Case, build, draw
from wfkernels import dispatch, judge
from wfkernels.attention import ops, validate

PARTS = 4
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


def calls() -> Iterator[tuple[str, Call]]:
    cases = CASES | LARGE
    for name, case in cases.items():
        yield name, build(case, dtype=torch.float32)
    for name in HALVES:
        yield f"{name}, float16", build(cases[name], dtype=torch.float16)
    for seed in SEEDS:
        yield f"draw({seed})", build(draw(seed), seed, torch.float32)


def wrongs(call: Call) -> list[str]:
    """Return every disagreement of forward and backward with the reference."""
    options = call.options
    if "offsets" in options:
        lengths = (options["offsets"], options.get("key_offsets"), options.get("query_start"), None)
        options["max_length"] = validate.lengths(call.query, call.key, *lengths)
    args = (*call.arguments()[:-1], "triton")
    out, lse = ops.attention_forward(*args)
    found = _wrong("attention", args, (out, lse))
    grads = [torch.randn_like(x) for x in (out, lse)]
    needs = [True, True, True, call.bias is not None, call.gate is not None]
    args = (*grads, needs, *args[:3], out, lse, *args[3:])
    return found + _wrong("attention_backward", args, ops.attention_backward(*args))


def _wrong(op: str, args: tuple[object, ...], results: tuple[torch.Tensor, ...]) -> list[str]:
    reference = dispatch.implementations(op)[-1].run
    return [str(v) for v in judge.examine(dispatch.contract(op), reference, args, results) if not v.share <= 1]


def main(wanted: list[str]) -> int:
    warnings.filterwarnings("ignore", "divide by zero", RuntimeWarning)  # the logarithm of a row with nothing open
    torch.manual_seed(0)
    chosen = list(calls())
    chosen = chosen[int(wanted[0]) :: PARTS] if wanted[0].isdigit() else [c for c in chosen if c[0] in wanted]
    bad = 0
    with torch.no_grad():
        for name, call in chosen:
            found = wrongs(call)
            print(name, *(found or ["as the reference"]), sep="\n    ", flush=True)
            bad += len(found)
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) > 0)
