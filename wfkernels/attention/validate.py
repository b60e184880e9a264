"""What the door of `attention` checks: shapes always, values where reading them costs no wait for a device."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from wfkernels import check, env
from wfkernels.attention.arguments import Arguments
from wfkernels.attention.bucket import BucketTable

OP = "attention"
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
# Rows are added to lengths in int64.
MOST_ROWS = 2**62


def readable(tensor: Tensor) -> bool:
    """True for a CPU tensor that really holds values: not while compiling, exporting or in a fake mode.

    Under WFKERNELS_CHECK=1 true on any device that holds values, although reading one waits for it.
    """
    if type(tensor) not in (Tensor, torch.nn.Parameter) or torch.compiler.is_compiling():
        return False
    return tensor.device.type == "cpu" or (tensor.device.type != "meta" and env.CHECK.read() == "1")


def floating(**tensors: Tensor | None) -> None:
    """Raise TypeError for the first argument that is not a floating-point tensor; None is not one either."""
    for name, tensor in tensors.items():
        if tensor is None:
            raise TypeError(f"{OP}: {name}: expected a torch.Tensor, got None")
        if name in ("bias", "gate") and isinstance(tensor, Tensor) and tensor.dtype == torch.bool:
            raise TypeError(
                f"{OP}: {name}: expected a floating-point tensor, got torch.bool; a mask of the pairs that are seen is"
                " gate=mask.to(query.dtype)"
            )
    check.floating(OP, **tensors)


def integers(name: str, tensor: Tensor | None, dtypes: tuple[torch.dtype, ...] = INTEGERS) -> None:
    """Raise unless `tensor` is None or a one-dimensional integer tensor."""
    if tensor is None:
        return
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{OP}: {name}: expected a torch.Tensor or None, got {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        names = ", ".join(str(dtype) for dtype in dtypes)
        raise ValueError(f"{OP}: {name}: expected one of {names}, got {tensor.dtype}; cast it with .to()")
    check.dense(OP, name, tensor)
    if tensor.ndim != 1:
        raise ValueError(f"{OP}: {name}: expected one dimension, got shape {list(tensor.shape)}")


def scalars(*, is_causal: bool, scale: float | None, max_length: int | None, impl: str) -> None:
    """Raise unless flags are flags, numbers are finite numbers and names are names."""
    check.flag(OP, "is_causal", is_causal)
    check.text(OP, "impl", impl)
    if scale is not None:
        check.number(OP, "scale", scale)
    if max_length is not None:
        check.integer(OP, "max_length", max_length)
        # A traced length would be bounded by the comparison.
        if not torch.compiler.is_compiling() and not 0 <= max_length < MOST_ROWS:
            wanted = "at least 0" if max_length < 0 else f"less than {MOST_ROWS}"
            raise ValueError(f"{OP}: max_length: expected {wanted}, got {max_length}")


def heads(query: Tensor, key: Tensor, value: Tensor, ragged: bool) -> None:
    """Raise unless the shapes of query, key and value fit together."""
    tensors = {"query": query, "key": key, "value": value}
    for name, tensor in tensors.items():
        if ragged and tensor.ndim != 3:
            raise ValueError(
                f"{OP}: {name}: expected [tokens, heads, width] because offsets are given, got {list(tensor.shape)}"
            )
        if tensor.ndim < 3:
            raise ValueError(f"{OP}: {name}: expected [..., heads, tokens, width], got {list(tensor.shape)}")
    head, token = (1, 0) if ragged else (-3, -2)
    for name in ("query", "key", "value"):
        if tensors[name].shape[head] < 1 or tensors[name].shape[-1] < 1:
            raise ValueError(f"{OP}: {name}: expected at least one head of width one, got {list(tensors[name].shape)}")
    if query.shape[head] % key.shape[head]:
        raise ValueError(
            f"{OP}: query: expected a multiple of the {key.shape[head]} heads of key, got {query.shape[head]} heads"
        )
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(f"{OP}: key: expected width {query.shape[-1]} like query, got {key.shape[-1]}")
    for what, place in (("heads", head), ("tokens", token)):
        if value.shape[place] != key.shape[place]:
            raise ValueError(f"{OP}: value: expected {key.shape[place]} {what} like key, got {value.shape[place]}")
    for name in () if ragged else ("key", "value"):
        if tensors[name].shape[:-3] != query.shape[:-3]:
            raise ValueError(
                f"{OP}: {name}: expected leading dimensions {list(query.shape[:-3])} like query, got"
                f" {list(tensors[name].shape[:-3])}; use .expand(), it copies nothing"
            )


def lengths(
    query: Tensor,
    key: Tensor,
    offsets: Tensor,
    key_offsets: Tensor | None,
    query_start: Tensor | None,
    max_length: int | None,
) -> int:
    """Check a ragged call's offsets and return max_length, the given one or that of the longest sequence."""
    if offsets.shape[0] < 1:
        raise ValueError(f"{OP}: offsets: expected [N + 1] entries, got none")
    for name, tensor, size in (("key_offsets", key_offsets, 0), ("query_start", query_start, 1)):
        if tensor is not None and tensor.shape[0] != offsets.shape[0] - size:
            raise ValueError(
                f"{OP}: {name}: expected [{offsets.shape[0] - size}] entries for {offsets.shape[0] - 1} sequences, got"
                f" {list(tensor.shape)}"
            )
    if key_offsets is None and key.shape[0] != query.shape[0]:
        raise ValueError(
            f"{OP}: key: expected {query.shape[0]} tokens like query, got {key.shape[0]}; give key_offsets"
        )
    if not all(readable(t) for t in (offsets, key_offsets, query_start) if t is not None):
        if max_length is None:
            raise ValueError(
                f"{OP}: max_length: expected an int because the offsets are on {offsets.device} or traced, got None;"
                " give the number of tokens of the longest sequence"
            )
        return max_length
    needed = _needed_length(query, key, offsets, key_offsets, query_start)
    if max_length is not None and max_length < needed:
        raise ValueError(f"{OP}: max_length: expected at least {needed}, the longest sequence, got {max_length}")
    return needed if max_length is None else max_length


def _needed_length(
    query: Tensor, key: Tensor, offsets: Tensor, key_offsets: Tensor | None, query_start: Tensor | None
) -> int:
    """Check the values of the offsets and return the largest number of rows or keys of a sequence."""
    needed = 0
    for name, given, tokens in (("offsets", offsets, query), ("key_offsets", key_offsets, key)):
        if given is None:
            continue
        values = given.tolist()
        if values[0] != 0 or values[-1] != tokens.shape[0] or values != sorted(values):
            raise ValueError(
                f"{OP}: {name}: expected to start at 0, never to fall and to end at {tokens.shape[0]}, the number of"
                f" tokens, got {values if len(values) <= 8 else [*values[:4], '...', *values[-3:]]}"
            )
        first = [0] * len(values) if query_start is None or name == "key_offsets" else first_rows(query_start)
        needed = max((needed, *(row + end - start for row, (start, end) in zip(first, pairwise(values), strict=False))))
    return needed


def first_rows(query_start: Tensor) -> list[int]:
    """Return the entries of query_start, after checking them."""
    rows: list[int] = query_start.tolist()
    for row in (min(rows, default=0), max(rows, default=0)):
        if not 0 <= row < MOST_ROWS:
            wanted = "from 0 on" if row < 0 else f"below {MOST_ROWS}"
            raise ValueError(f"{OP}: query_start: expected rows {wanted}, got {row}")
    return rows


def dense_start(query: Tensor, query_start: Tensor | None) -> None:
    """Raise unless a dense call's query_start fits its leading dimensions."""
    count = math.prod(query.shape[:-3])
    if query_start is not None:
        if query_start.shape[0] not in (1, count):
            raise ValueError(
                f"{OP}: query_start: expected [1] or [{count}] entries, one for each of the leading dimensions"
                f" {list(query.shape[:-3])} flattened, got {list(query_start.shape)}"
            )
        if readable(query_start):
            first_rows(query_start)


def dense_term(name: str, term: Tensor, query: Tensor, key: Tensor, max_length: int | None) -> None:
    """Raise unless a dense bias or gate fits; max_length is None in a dense call."""
    if max_length is None:
        full = (*query.shape[:-1], key.shape[-2])
        fits = term.ndim <= len(full) and all(
            size == 1 or size == expected for size, expected in zip(term.shape[::-1], full[::-1], strict=False)
        )
        if not fits:
            raise ValueError(f"{OP}: {name}: expected a shape that broadcasts to {list(full)}, got {list(term.shape)}")
    else:
        fits = term.ndim == 3 and term.shape[0] in (1, query.shape[1]) and min(term.shape[1:]) >= max_length
        if not fits:
            raise ValueError(
                f"{OP}: {name}: expected [{query.shape[1]} or 1, M, M] with M at least {max_length}, the longest"
                f" sequence, got {list(term.shape)}"
            )
    if name == "gate":
        _unit_interval("gate", term)


def _unit_interval(name: str, tensor: Tensor) -> None:
    if readable(tensor) and tensor.numel():
        low, high = (float(x) for x in tensor.detach().aminmax())
        if low < 0 or high > 1:
            raise ValueError(f"{OP}: {name}: expected values in [0, 1], got {low:g} to {high:g}; a bias may have any")


def values(query: Tensor, key: Tensor, arguments: Arguments) -> None:
    """Check once more all that depends on values, in a call whose arguments need not have come through the door."""
    offsets, key_offsets, start = arguments.offsets, arguments.key_offsets, arguments.query_start
    both, max_length = None, None
    if offsets is not None:
        both = (offsets, offsets if key_offsets is None else key_offsets)
        max_length = lengths(query, key, offsets, key_offsets, start, arguments.max_length)
    else:
        dense_start(query, start)
    for name, term in (("bias", arguments.bias), ("gate", arguments.gate)):
        if isinstance(term, BucketTable):
            bucket(name, term, query, key, both, start)
        elif term is not None:
            dense_term(name, term, query, key, max_length)


def bucket(
    name: str,
    table: BucketTable,
    query: Tensor,
    key: Tensor,
    offsets: tuple[Tensor, Tensor] | None,
    query_start: Tensor | None,
) -> None:
    """Raise unless a bucketed bias or gate fits; offsets are those of queries and keys, None in a dense call."""
    head_count = query.shape[-3 if offsets is None else 1]
    shape = table.table.shape
    segments = 1 if table.segment is None else 2
    groups_fit = len(shape) == 5 and shape[1] == shape[2] > 0 and (table.group is not None or shape[1] == 1)
    if not groups_fit or shape[0] not in (1, head_count) or shape[3] != segments or shape[4] < 1:
        count = "G, G" if table.group is not None else "1, 1"
        raise ValueError(
            f"{OP}: {name}.table: expected [{head_count} or 1, {count}, {segments}, E] (G is 1 without group; 2 before"
            f" E exactly with segment), got {list(shape)}"
        )
    if table.lookup.shape[0] % 2 == 0:
        raise ValueError(f"{OP}: {name}.lookup: expected 2R + 1 entries, an odd number, got {table.lookup.shape[0]}")
    _in_range(f"{name}.lookup", table.lookup, shape[4])
    if table.group is not None:
        _in_range(f"{name}.group", table.group, shape[1])
    if name == "gate":
        _unit_interval("gate.table", table.table)
    for field in ("group", "segment", "position"):
        tokens = getattr(table, field)
        if tokens is not None:
            _per_token(f"{name}.{field}", tokens, query, key, offsets, query_start)


def _in_range(name: str, tensor: Tensor, end: int) -> None:
    if readable(tensor) and tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) < end:
        raise ValueError(
            f"{OP}: {name}: expected integers from 0 to {end - 1}, got {int(tensor.min())} to {int(tensor.max())}"
        )


def _per_token(
    name: str,
    tokens: Tensor,
    query: Tensor,
    key: Tensor,
    offsets: tuple[Tensor, Tensor] | None,
    query_start: Tensor | None,
) -> None:
    """Raise unless there is an integer for every key and for the row of every query."""
    count = tokens.shape[0]
    if offsets is not None:
        if count != key.shape[0]:
            raise ValueError(f"{OP}: {name}: expected [{key.shape[0]}] entries, one per key token, got [{count}]")
        if not all(readable(t) for t in (*offsets, query_start) if t is not None):
            return
        sizes, key_sizes = (t.long().diff() for t in offsets)
        last = sizes if query_start is None else sizes + query_start.long()
        if bool(((sizes > 0) & (last > key_sizes)).any()):
            raise ValueError(
                f"{OP}: {name}: expected every query's row to be a row of the key side, got a sequence with more"
                " queries (from its query_start on) than keys"
            )
        return
    rows, columns = query.shape[-2], key.shape[-2]
    if query_start is None:
        if count != max(rows, columns):
            raise ValueError(f"{OP}: {name}: expected [{max(rows, columns)}] entries, one per token, got [{count}]")
        return
    if readable(query_start):
        rows += max(first_rows(query_start), default=0)
    if count < max(rows, columns):
        raise ValueError(f"{OP}: {name}: expected at least [{max(rows, columns)}] entries, one per row, got [{count}]")
