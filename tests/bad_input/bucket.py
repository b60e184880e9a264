"""Mistakes in the BucketTable of an attention call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import wfkernels
from tests.bad_input.table import Arguments, Bad, Table, put, wrong_tensors
from wfkernels import BucketTable

ENTRIES = torch.rand(4, 2, 2, 2, 3)
FIELDS = ("lookup", "group", "segment", "position")


def dense() -> Arguments:
    tokens = {name: torch.zeros(4, 7, 3) for name in ("query", "key", "value")}
    return {**tokens, "gate": table(7), "bias": table(7)}


def ragged() -> Arguments:
    tokens = {name: torch.zeros(9, 4, 3) for name in ("query", "key", "value")}
    return {**tokens, "gate": table(9), "bias": table(9), "offsets": torch.tensor([0, 4, 4, 9])}


def table(tokens: int) -> BucketTable:
    per_token = (torch.zeros(tokens, dtype=torch.int64) for _ in range(3))
    return BucketTable(ENTRIES.clone(), torch.tensor([0, 1, 2, 1, 0]), *per_token, diagonal_open=True)


def gate(**fields: Any) -> Callable[[Arguments], None]:
    return lambda call: call.update(gate=call["gate"]._replace(**fields))


def bias(**fields: Any) -> Callable[[Arguments], None]:
    return lambda call: call.update(bias=call["bias"]._replace(**fields))


def integers(*values: int) -> torch.Tensor:
    return torch.tensor(values)


SEVEN = torch.zeros(7, dtype=torch.int64)
SHAPE = r"\[4 or 1, G, G, 2, E\]"
DENSE = (
    *wrong_tensors("gate.table", ENTRIES, lambda value: gate(table=value)),
    *(Bad(f"{f} is a list", gate(**{f: [0] * 7}), TypeError, f"gate.{f}", "a torch.Tensor") for f in FIELDS),
    *(Bad(f"{f} is a number", bias(**{f: 0}), TypeError, f"bias.{f}", "a torch.Tensor") for f in FIELDS),
    *(
        Bad(f"floats as {f}", gate(**{f: torch.zeros(7)}), ValueError, f"gate.{f}", "one of torch.int64")
        for f in FIELDS
    ),
    *(Bad(f"bools as {f}", bias(**{f: SEVEN > 0}), ValueError, f"bias.{f}", "one of torch.int64") for f in FIELDS),
    *(Bad(f"{f} 2-D", gate(**{f: SEVEN[None]}), ValueError, f"gate.{f}", "one dimension") for f in FIELDS),
    *(Bad(f"{f} 0-D", gate(**{f: SEVEN[0]}), ValueError, f"gate.{f}", "one dimension") for f in FIELDS),
    *(Bad(f"{f} sparse", gate(**{f: SEVEN.to_sparse()}), TypeError, f"gate.{f}", "a dense tensor") for f in FIELDS),
    *(Bad(f"{f} elsewhere", gate(**{f: SEVEN.to("meta")}), ValueError, f"gate.{f}", "a tensor on cpu") for f in FIELDS),
    *(
        Bad(f"{f} for other tokens", gate(**{f: SEVEN[:6]}), ValueError, f"gate.{f}", r"\[7\] entries, one per token")
        for f in FIELDS[1:]
    ),
    Bad("no lookup", gate(lookup=None), TypeError, "gate.lookup", "a torch.Tensor"),
    Bad("diagonal_open is a number", gate(diagonal_open=1), TypeError, "gate.diagonal_open", "bool"),
    Bad("diagonal_open is None", gate(diagonal_open=None), TypeError, "gate.diagonal_open", "bool"),
    Bad("a flat table", gate(table=ENTRIES[0, 0, 0, 0]), ValueError, "gate.table", SHAPE),
    Bad("a table of six dimensions", gate(table=ENTRIES[None]), ValueError, "gate.table", SHAPE),
    Bad("a table of three heads", gate(table=ENTRIES[:3]), ValueError, "gate.table", SHAPE),
    Bad("a table of no head", gate(table=ENTRIES[:0]), ValueError, "gate.table", SHAPE),
    Bad("groups that differ", gate(table=ENTRIES[:, :1]), ValueError, "gate.table", SHAPE),
    Bad("no groups", gate(table=ENTRIES[:, :0, :0]), ValueError, "gate.table", SHAPE),
    Bad("one segment entry", gate(table=ENTRIES[:, :, :, :1]), ValueError, "gate.table", SHAPE),
    Bad("no bucket", gate(table=ENTRIES[..., :0]), ValueError, "gate.table", SHAPE),
    Bad("groups without group", bias(group=None), ValueError, "bias.table", r"\[4 or 1, 1, 1, 2, E\]"),
    Bad("segments without segment", bias(segment=None), ValueError, "bias.table", r"\[4 or 1, G, G, 1, E\]"),
    Bad("an even lookup", gate(lookup=integers(0, 1)), ValueError, "gate.lookup", r"2R \+ 1 entries, an odd number"),
    Bad("an empty lookup", gate(lookup=SEVEN[:0]), ValueError, "gate.lookup", r"2R \+ 1 entries, an odd number"),
    Bad("lookup beyond E", gate(lookup=integers(0, 3, 0)), ValueError, "gate.lookup", "integers from 0 to 2"),
    Bad("lookup below zero", gate(lookup=integers(0, -1, 0)), ValueError, "gate.lookup", "integers from 0 to 2"),
    Bad("group beyond G", gate(group=SEVEN + 2), ValueError, "gate.group", "integers from 0 to 1"),
    Bad("group below zero", bias(group=SEVEN - 1), ValueError, "bias.group", "integers from 0 to 1"),
    Bad("gate table above one", gate(table=ENTRIES + 1), ValueError, "gate.table", r"values in \[0, 1\]"),
    Bad("gate table below zero", gate(table=-ENTRIES), ValueError, "gate.table", r"values in \[0, 1\]"),
    Bad(
        "fewer positions than rows",
        lambda call: call.update(query_start=integers(3), bias=None),
        ValueError,
        "gate.group",
        r"at least \[10\] entries, one per row",
    ),
)
EACH_ROW = "every query's row to be a row of the key side"
RAGGED = (
    *(
        Bad(f"{f} for other tokens", gate(**{f: SEVEN}), ValueError, f"gate.{f}", r"\[9\] entries, one per key token")
        for f in FIELDS[1:]
    ),
    Bad("rows beyond the keys", put(query_start=integers(0, 0, 1)), ValueError, "bias.group", EACH_ROW),
    Bad(
        "rows beyond the keys, far out",
        put(
            offsets=torch.tensor([0, 4, 4, 9], dtype=torch.int32),
            query_start=torch.tensor([2**31 - 1, 0, 0], dtype=torch.int32),
        ),
        ValueError,
        "bias.group",
        EACH_ROW,
    ),
    Bad("more queries than keys", put(key_offsets=integers(0, 5, 5, 9)), ValueError, "bias.group", EACH_ROW),
)
TABLES = (
    Table("attention", wfkernels.attention, dense, DENSE),
    Table("attention", wfkernels.attention, ragged, RAGGED),
)
