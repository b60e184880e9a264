"""Jagged nested tensors at the door of `attention`: they take the ragged path and come back nested."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nested import nested_tensor_from_jagged

from wfkernels import check
from wfkernels.attention.validate import OP, readable


class Ragged(NamedTuple):
    """What the ragged path takes in place of nested tensors."""

    query: Tensor  # [total_q, H, D]
    key: Tensor  # [total_k, Hk, D]
    value: Tensor  # [total_k, Hk, Dv]
    offsets: Tensor  # [N + 1]
    key_offsets: Tensor | None  # [N + 1]
    max_length: int | None


def is_nested(*values: object) -> bool:
    """True where at least one of the arguments is a nested tensor."""
    return any(isinstance(value, Tensor) and value.is_nested for value in values)


def validate(op: str, ndim: int, places: tuple[int, ...], **tensors: object) -> None:
    """Raise unless all are floating, jagged nested tensors of `ndim` dimensions with one number of sequences.

    places: which dimension may be the jagged one.
    """
    batch = None
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{op}: {name}: expected a nested torch.Tensor like the others, got {type(tensor).__name__}"
            )
        if not tensor.is_nested:
            raise ValueError(
                f"{op}: {name}: expected a nested tensor like the others, got a dense one of shape"
                f" {list(tensor.shape)}; nest all of query, key and value or none"
            )
        if tensor.layout != torch.jagged:
            raise ValueError(
                f"{op}: {name}: expected a nested tensor of layout torch.jagged, got {tensor.layout}; build it with"
                " layout=torch.jagged"
            )
        if tensor.ndim != ndim or tokens_at(tensor) not in places:
            where = " or ".join(map(str, places))
            raise ValueError(
                f"{op}: {name}: expected {ndim} dimensions, jagged in dimension {where}, got {tensor.ndim}, jagged in"
                f" {tokens_at(tensor)}"
            )
        check.floating(op, **{name: _values(tensor)})
        batch = tensor.shape[0] if batch is None else batch
        if tensor.shape[0] != batch:
            raise ValueError(f"{op}: {name}: expected {batch} sequences like query, got {tensor.shape[0]}")


def ragged(
    query: Tensor,  # nested [N, j, H, D] or [N, H, j, D]
    key: Tensor,  # likewise with its own j
    value: Tensor,  # likewise with key's j
    offsets: object,
    key_offsets: object,
    max_length: int | None,
    query_start: Tensor | None,  # [N]
) -> Ragged:
    """Return the arguments of a ragged call; a max_length of None is what `attention` can find out or has to ask for.

    Raises:
        TypeError, ValueError: not all are jagged, their sequences do not fit together, or offsets are given as well.
    """
    validate(OP, 4, (1, 2), query=query, key=key, value=value)
    for name, given in (("offsets", offsets), ("key_offsets", key_offsets)):
        if given is not None:
            raise ValueError(
                f"{OP}: {name}: expected None, because nested tensors have their own, got {type(given).__name__}"
            )
    (q, q_offsets), (k, k_offsets), (v, v_offsets) = (_tokens(x) for x in (query, key, value))
    if readable(k_offsets) and readable(v_offsets) and not torch.equal(k_offsets, v_offsets):
        raise ValueError(
            f"{OP}: value: expected sequences as long as those of key, {_some(k_offsets)}, got {_some(v_offsets)}"
        )
    if max_length is None and query_start is None and not (readable(q_offsets) and readable(k_offsets)):
        max_length = max(_longest(query), _longest(key))
    return Ragged(q, k, v, q_offsets, None if k_offsets is q_offsets else k_offsets, max_length)


def like(
    query: Any,  # nested; torch's annotations of Tensor leave out what only nested ones have
    tokens: Tensor,  # [total_q, H, ...]
) -> Tensor:
    """Return `tokens` nested as `query` is: the same sequences, heads and tokens in its order."""
    offsets, lengths = query.offsets(), query.lengths()
    if lengths is not None:
        places = _places(offsets, lengths)
        count = _values(query).shape[tokens_at(query) - 1]
        tokens = tokens.new_zeros((count, *tokens.shape[1:])).index_copy(0, places, tokens)
    found = nested_tensor_from_jagged(
        tokens, offsets, lengths, min_seqlen=_known(query, "min"), max_seqlen=_known(query, "max")
    )
    return found.transpose(1, 2) if tokens_at(query) == 2 else found


def tokens_at(tensor: Any) -> int:
    """Return which dimension of a nested tensor is jagged. Torch has no public name for it."""
    return int(tensor._ragged_idx)


def _values(tensor: Any) -> Tensor:
    """Return the dense tensor in which a nested one keeps all its sequences, one behind the other."""
    values: Tensor = tensor.values()
    return values


def _known(tensor: Any, which: str) -> int | None:
    """Return the length of the shortest ("min") or longest ("max") sequence where the tensor already knows it."""
    length: int | None = getattr(tensor, f"_maybe_{which}_seqlen")
    return length


def _longest(tensor: Any) -> int:
    """Return the length of the longest sequence, or while compiling at least a bound: nothing can be read there.

    Eagerly on a GPU a tensor that does not know it reads it back, once.
    """
    known = _known(tensor, "max")
    if known is not None:
        return known
    length: int = (
        _values(tensor).shape[tokens_at(tensor) - 1] if torch.compiler.is_compiling() else tensor._get_max_seqlen()
    )
    return length


def _tokens(tensor: Any) -> tuple[Tensor, Tensor]:
    """Return the tokens [total, heads, width] and the offsets [N + 1] of a jagged tensor; its holes are left out."""
    tokens, offsets, lengths = _values(tensor), tensor.offsets(), tensor.lengths()
    if tokens_at(tensor) == 2:
        tokens = tokens.transpose(0, 1)
    if lengths is None:
        return tokens, offsets
    return tokens[_places(offsets, lengths)], torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def _places(offsets: Tensor, lengths: Tensor) -> Tensor:
    """Return where the tokens of sequences with holes behind them lie: int64 [sum(lengths)].

    The sequences of `torch.nested.narrow` start at offsets[:-1] and have lengths of their own.
    """
    starts = offsets[:-1] - lengths.cumsum(0) + lengths
    total = torch.arange(int(lengths.sum()), device=lengths.device)
    return total + starts.repeat_interleave(lengths)


def _some(offsets: Tensor) -> list[int]:
    """Return the first few lengths, for an error."""
    lengths: list[int] = offsets.diff()[:8].tolist()
    return lengths
