"""Wrong calls: one line that names the op, the argument, what was expected and what was given, before any work."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.attention.cases import CASES, DENSE, PRUNED, RAGGED, build
from wfkernels import BucketTable, attention
from wfkernels.attention import ops

Q = torch.zeros(2, 4, 5, 3)  # dense: batch 2, 4 heads, 5 queries of width 3
K = torch.zeros(2, 2, 7, 3)
V = torch.zeros(2, 2, 7, 6)
R = torch.zeros(9, 4, 3)  # ragged: 9 tokens, 4 heads
CUTS = torch.tensor([0, 4, 4, 9])
LOOKUP = torch.tensor([0, 1, 0])
TABLE = torch.rand(4, 1, 1, 1, 2)
NINE = torch.zeros(9, dtype=torch.int64)


def ragged(**options: Any) -> dict[str, Any]:
    return {"query": R, "key": R, "value": R, "offsets": CUTS, **options}


def dense(**options: Any) -> dict[str, Any]:
    return {"query": Q, "key": K, "value": V, **options}


def bucket(*changes: Any, **more: Any) -> BucketTable:
    table, lookup = (*changes, *(TABLE, LOOKUP)[len(changes) :])
    return BucketTable(table, lookup, **more)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    (dense(query=[1.0]), TypeError, "query: expected a torch.Tensor, got list"),
    (dense(value=None), TypeError, "value: expected a torch.Tensor, got None"),
    (dense(key=K.long()), TypeError, "key: expected a floating-point tensor, got torch.int64"),
    (dense(bias=3.0), TypeError, "bias: expected a torch.Tensor, a BucketTable or None, got float"),
    (dense(gate=torch.ones(5, 7, dtype=torch.bool)), TypeError, "gate: expected a floating-point tensor"),
    (dense(bias=bucket(None)), TypeError, "bias.table: expected a torch.Tensor"),
    (dense(bias=bucket(TABLE, None)), TypeError, "bias.lookup: expected a torch.Tensor, got None"),
    (dense(gate=bucket(TABLE, [0, 1, 0])), TypeError, "gate.lookup: expected a torch.Tensor or None, got list"),
    (dense(gate=bucket(diagonal_open=NINE)), TypeError, "gate.diagonal_open: expected bool, got Tensor"),
    (dense(is_causal=1), TypeError, "is_causal: expected bool, got int"),
    (dense(impl=None), TypeError, "impl: expected str, got NoneType"),
    (dense(scale="big"), TypeError, "scale: expected float, got str"),
    (ragged(max_length=4.5), TypeError, "max_length: expected int, got float"),
    (ragged(offsets=[0, 4, 4, 9]), TypeError, "offsets: expected a torch.Tensor or None, got list"),
    (dense(dropout_p=0.1, seed=3), TypeError, "seed: expected an int64 tensor"),
    (dense(dropout_p=1.0), ValueError, "dropout_p: expected a probability in [0, 1), got 1.0"),
    (dense(key=K.double()), ValueError, "key: expected dtype torch.float32 like query, got torch.float64"),
    (dense(value=V.to("meta")), ValueError, "value: expected a tensor on cpu like query, got one on meta"),
    (dense(bias=torch.zeros(7, device="meta")), ValueError, "bias: expected a tensor on cpu like query"),
    (dense(query=Q[0, 0]), ValueError, "query: expected [..., heads, tokens, width], got [5, 3]"),
    (dense(query=Q[:, :3]), ValueError, "query: expected a multiple of the 2 heads of key, got 3 heads"),
    (dense(query=Q[:, :0]), ValueError, "expected at least one head of width one"),
    (dense(key=K[..., :2]), ValueError, "key: expected width 3 like query, got 2"),
    (dense(value=V[:, :1]), ValueError, "value: expected 2 heads like key, got 1"),
    (dense(value=V[:, :, :6]), ValueError, "value: expected 7 tokens like key, got 6"),
    (dense(key=K[:1]), ValueError, "key: expected leading dimensions [2] like query, got [1]"),
    (dense(bias=torch.zeros(5, 6)), ValueError, "bias: expected a shape that broadcasts to [2, 4, 5, 7], got [5, 6]"),
    (dense(gate=torch.zeros(1, 2, 4, 5, 7)), ValueError, "gate: expected a shape that broadcasts to [2, 4, 5, 7]"),
    (dense(gate=torch.full((5, 7), 1.5)), ValueError, "gate: expected values in [0, 1], got 1.5 to 1.5"),
    (dense(gate=torch.full((5, 7), -0.5)), ValueError, "gate: expected values in [0, 1], got -0.5 to -0.5"),
    (dense(max_length=5), ValueError, "max_length: expected None in a dense call, got int"),
    (dense(key_offsets=CUTS), ValueError, "key_offsets: expected None in a dense call"),
    (dense(query_start=torch.tensor([0, 0, 0])), ValueError, "query_start: expected [1] or [2] entries"),
    (dense(query_start=torch.tensor([0, -1])), ValueError, "query_start: expected rows from 0 on, got -1"),
    (dense(query_start=torch.tensor(1)), ValueError, "query_start: expected one dimension, got shape []"),
    (dense(bias=bucket(TABLE[:3])), ValueError, "bias.table: expected [4 or 1, 1, 1, 1, E]"),
    (dense(bias=bucket(TABLE[0])), ValueError, "bias.table: expected [4 or 1, 1, 1, 1, E]"),
    (dense(bias=bucket(TABLE.expand(4, 2, 2, 1, 2))), ValueError, "bias.table: expected [4 or 1, 1, 1, 1, E]"),
    (dense(bias=bucket(TABLE.expand(4, 1, 1, 2, 2))), ValueError, "bias.table: expected [4 or 1, 1, 1, 1, E]"),
    (dense(bias=bucket(segment=NINE[:7])), ValueError, "bias.table: expected [4 or 1, 1, 1, 2, E]"),
    (dense(bias=bucket(TABLE, LOOKUP[:2])), ValueError, "bias.lookup: expected 2R + 1 entries, an odd number, got 2"),
    (dense(bias=bucket(TABLE, LOOKUP + 1)), ValueError, "bias.lookup: expected integers from 0 to 1, got 1 to 2"),
    (dense(bias=bucket(TABLE, LOOKUP.float())), ValueError, "bias.lookup: expected one of torch.int64"),
    (dense(bias=bucket(group=NINE[:7] - 1)), ValueError, "bias.group: expected integers from 0 to 0, got -1 to -1"),
    (dense(bias=bucket(position=NINE)), ValueError, "bias.position: expected [7] entries, one per token, got [9]"),
    (
        dense(bias=bucket(position=NINE[:7]), query_start=torch.tensor([3])),
        ValueError,
        "bias.position: expected at least [8] entries, one per row, got [7]",
    ),
    (dense(gate=bucket(TABLE + 1)), ValueError, "gate.table: expected values in [0, 1]"),
    (ragged(query=Q), ValueError, "query: expected [tokens, heads, width] because offsets are given"),
    (ragged(offsets=CUTS.float()), ValueError, "offsets: expected one of torch.int64, torch.int32, got torch.float32"),
    (ragged(offsets=CUTS.short()), ValueError, "offsets: expected one of torch.int64, torch.int32, got torch.int16"),
    (ragged(offsets=CUTS[None]), ValueError, "offsets: expected one dimension, got shape [1, 4]"),
    (ragged(offsets=CUTS[:0]), ValueError, "offsets: expected [N + 1] entries, got none"),
    (ragged(offsets=CUTS + 1), ValueError, "offsets: expected to start at 0, never to fall and to end at 9"),
    (ragged(offsets=CUTS[:3]), ValueError, "offsets: expected to start at 0, never to fall and to end at 9"),
    (ragged(offsets=torch.tensor([0, 5, 4, 9])), ValueError, "offsets: expected to start at 0, never to fall"),
    (ragged(key=R[:8], value=R[:8]), ValueError, "key: expected 9 tokens like query, got 8; give key_offsets"),
    (ragged(key_offsets=CUTS[:3]), ValueError, "key_offsets: expected [4] entries for 3 sequences, got [3]"),
    (ragged(key_offsets=CUTS * 2), ValueError, "key_offsets: expected to start at 0, never to fall and to end at 9"),
    (ragged(query_start=CUTS), ValueError, "query_start: expected [3] entries for 3 sequences, got [4]"),
    (ragged(query_start=-CUTS[1:]), ValueError, "query_start: expected rows from 0 on, got -9"),
    (ragged(max_length=4), ValueError, "max_length: expected at least 5, the longest sequence, got 4"),
    (ragged(bias=torch.zeros(4, 4, 5)), ValueError, "bias: expected [4 or 1, M, M] with M at least 5"),
    (ragged(bias=torch.zeros(5, 5)), ValueError, "bias: expected [4 or 1, M, M] with M at least 5"),
    (ragged(gate=torch.zeros(2, 5, 5)), ValueError, "gate: expected [4 or 1, M, M] with M at least 5"),
    (ragged(gate=torch.zeros(4, 5, 5), max_length=6), ValueError, "gate: expected [4 or 1, M, M] with M at least 6"),
    (ragged(gate=bucket(position=NINE[:8])), ValueError, "gate.position: expected [9] entries, one per key token"),
    (
        ragged(gate=bucket(position=NINE), query_start=torch.tensor([0, 0, 1])),
        ValueError,
        "gate.position: expected every query's row to be a row of the key side",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_wrong_calls(call: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="^attention: " + ".*" + re.escape(message)) as caught:
        attention(**call)
    assert "\n" not in str(caught.value)


def test_traced_offsets_need_max_length() -> None:
    with pytest.raises(
        Exception, match="max_length: expected an int because the offsets are on cpu or traced, got None"
    ):
        torch.compile(attention, fullgraph=True, backend="eager")(**ragged())
    with FakeTensorMode() as mode, pytest.raises(ValueError, match="max_length: expected an int"):
        attention(**{name: mode.from_tensor(t) for name, t in ragged().items()})


def test_fake_tensors_have_no_values_to_check() -> None:
    call = build(replace(PRUNED, gate="rich", bias="full"), dtype=torch.float32)
    with FakeTensorMode() as mode:

        def fake(x: Any) -> Any:
            return mode.from_tensor(x) if isinstance(x, Tensor) else x

        options = {name: fake(x) for name, x in call.options.items()}
        gate = BucketTable(*(fake(x) for x in call.gate))
        tensors = (fake(x) for x in (call.query, call.key, call.value))
        out, lse = attention(*tensors, bias=fake(call.bias), gate=gate, return_lse=True, max_length=7, **options)
    wanted = call.run(attention, return_lse=True)
    assert [(x.shape, x.dtype, x.stride()) for x in (out, lse)] == [(x.shape, x.dtype, x.stride()) for x in wanted]


def test_values_on_other_devices_are_not_read() -> None:
    # Meta tensors stand for a GPU here: reading a value of one would raise.
    call = build(replace(PRUNED, gate="rich", dropout_p=0.2, bias="full"), dtype=torch.float32)
    leaves = {n: t.detach().to("meta").requires_grad_() for n, t in call.leaves().items()}
    call = call.with_leaves(leaves)
    query, key, value, *rest = call.arguments()
    moved = [x.to("meta") if isinstance(x, Tensor) else x for x in rest]
    out, lse = ops.attention_forward(query, key, value, *moved)
    (out.sum() + lse.sum()).backward()
    assert all(leaf.grad is not None and leaf.grad.shape == leaf.shape for leaf in leaves.values())


def test_a_longer_max_length_changes_nothing() -> None:
    call = build(CASES["ragged tables"])
    assert torch.equal(call.run(attention), call.run(attention, max_length=1000))


def test_nothing_to_attend_to() -> None:
    empty = build(replace(DENSE, lead=(0,)))
    out = empty.run(attention)
    assert out.shape == (0, 4, 5, 5)
    out.sum().backward()
    assert empty.query.grad is not None
    none = build(replace(RAGGED, queries=()))
    assert none.run(attention).shape == (0, 4, 5)
    no_keys = build(replace(DENSE, keys=(0,)))
    out, lse = no_keys.run(attention, return_lse=True)
    assert (out == 0).all() and (lse == -torch.inf).all()
