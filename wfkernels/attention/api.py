"""The public attention: documentation and validation."""

from __future__ import annotations

from typing import Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor

from wfkernels import autocast, check
from wfkernels.attention import nested, ops, validate
from wfkernels.attention.arguments import Arguments
from wfkernels.attention.bucket import BucketTable

OFFSETS = (torch.int64, torch.int32)


class Options(TypedDict, total=False):
    """The keyword arguments of `attention` but return_lse, which decides what comes back."""

    bias: Tensor | BucketTable | None
    gate: Tensor | BucketTable | None
    offsets: Tensor | None
    key_offsets: Tensor | None
    max_length: int | None
    query_start: Tensor | None
    is_causal: bool
    scale: float | None
    dropout_p: float
    seed: Tensor | None
    impl: str


@overload
def attention(
    query: Tensor, key: Tensor, value: Tensor, *, return_lse: Literal[False] = False, **options: Unpack[Options]
) -> Tensor: ...


@overload
def attention(
    query: Tensor, key: Tensor, value: Tensor, *, return_lse: Literal[True], **options: Unpack[Options]
) -> tuple[Tensor, Tensor]: ...


def attention(
    query: Tensor,  # [..., H, Sq, D], ragged [total_q, H, D], or nested [N, j, H, D] or [N, H, j, D]
    key: Tensor,  # [..., Hk, Sk, D], ragged [total_k, Hk, D], or nested
    value: Tensor,  # [..., Hk, Sk, Dv], ragged [total_k, Hk, Dv], or nested
    *,
    bias: Tensor | BucketTable | None = None,  # broadcasts against [..., H, Sq, Sk], or ragged [H|1, M, M], or a table
    gate: Tensor | BucketTable | None = None,  # likewise
    offsets: Tensor | None = None,  # [N + 1]
    key_offsets: Tensor | None = None,  # [N + 1]
    max_length: int | None = None,
    query_start: Tensor | None = None,  # [N]
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,  # [] or [1], int64
    return_lse: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Multi-head attention with a learned bias or gate, both with exact gradients; dense or ragged.

    s_ij = scale * q_i.k_j + bias_ij, P_ij = gate_ij exp(s_ij - lse_i), lse_i = log sum_j gate_ij exp(s_ij),
    out_i = sum_j P_ij v_j: scaled dot-product attention (Vaswani et al. 2017, arXiv 1706.03762, eq. 1), with the
    additive bias of T5 and BEiT and, for the gate, the weighting inside the softmax that a learned mask needs
    (arXiv 2210.01973, section 3).

    Dense: any leading dimensions, equal in query, key and value. Ragged (`offsets` given): sequence n is the tokens
    offsets[n] to offsets[n + 1]; sequences do not see each other and may be empty. H is a multiple of Hk: query head h
    reads key head h // (H // Hk).

    Nested (torch.nested with layout torch.jagged) is ragged with the offsets of its own; tokens stand in whichever
    dimension is jagged, and out and lse are nested like query.

    Args:
        query, key, value: one dtype, float64, float32, bfloat16 or float16; sums are float32 (float64 for float64).
            Under torch.autocast they are cast, and so are a dense bias and gate; tables stay as they are.
        bias: added to the scores. -inf forbids a pair, whose score and gate are then never looked at: a NaN there does
            not spread. Dense, it is not expanded anywhere, and its gradient is summed over every dimension along which
            it was broadcast. Ragged, a dense one has entries for the rows and columns of the longest sequence; every
            sequence takes its top-left corner.
        gate: multiplies exp(score), in [0, 1]. 0 closes a pair but leaves it a gradient, the one-sided derivative
            exp(min(s_ij - lse_i, 30)) * d out_i . (v_j - out_i), so that training may open it again. The cut at 30 is
            the one deviation from exact. A gate g > 0 equals a bias log g.
        offsets, key_offsets: int32 or int64, from 0 to the number of tokens; key_offsets where those of keys differ.
        max_length: at least the number of keys and of rows of every sequence. Needed where the offsets lie on a GPU or
            are traced (nothing is read back); else it is computed.
        query_start: int32 or int64, which row of its sequence the first query is (pruned queries, cached keys); 0 when
            None. In a dense call one entry, or one for each of the flattened leading dimensions. It moves the rows of
            the causal mask, buckets, dropout and of a ragged dense bias or gate; a dense call's bias and gate tensors
            stay aligned with the queries given.
        is_causal: query row i sees keys j <= i.
        scale: 1 / sqrt(D) when None.
        dropout_p: probability in [0, 1) with which an entry of P is dropped; the others are divided by 1 - dropout_p.
            Callers pass 0 outside training.
        seed: key of the dropout mask (Philox, counter: sequence, query head, row, column), drawn from torch's default
            generator when None. One seed gives the same mask in every implementation, and pruned queries that of
            all queries.
        return_lse: also return lse, which is differentiable.
        impl: "auto" or the name of one implementation, which then runs or raises ImplementationError.

    Returns:
        out [..., H, Sq, Dv] or [total_q, H, Dv], contiguous, or nested; with return_lse also lse, the same without the
        last dimension, in float32 (float64 for float64). A query that sees no open pair has out 0 and lse -inf, and
        gives no gradient.

    Raises:
        TypeError: an argument has the wrong type. ValueError: shapes, dtypes or devices do not fit; or, checked only
        for tensors on the CPU outside torch.compile (anywhere under WFKERNELS_CHECK=1), a value is out of range.
    """
    op = validate.OP
    outer = query
    if nested.is_nested(query, key, value):
        query, key, value, offsets, key_offsets, max_length = nested.ragged(
            query, key, value, offsets, key_offsets, max_length, query_start
        )
    tensors: dict[str, Tensor | None] = {"query": query, "key": key, "value": value}
    validate.floating(**tensors)
    terms = {"bias": bias, "gate": gate}
    for name, term in terms.items():
        tensors |= _tensors_of(name, term)
    places = {"offsets": offsets, "key_offsets": key_offsets, "query_start": query_start}
    for name, place in places.items():
        validate.integers(name, place, OFFSETS)
    validate.scalars(is_causal=is_causal, scale=scale, max_length=max_length, impl=impl)
    check.flag(op, "return_lse", return_lse)
    seed = check.dropout(op, dropout_p, seed, query.device)
    check.same_device(op, **tensors, **places, seed=seed)
    check.same_dtype(op, query=query, key=key, value=value)
    validate.heads(query, key, value, ragged=offsets is not None)
    both = None
    if offsets is not None:
        max_length = validate.lengths(query, key, offsets, key_offsets, query_start, max_length)
        both = (offsets, offsets if key_offsets is None else key_offsets)
    else:
        for name, given in (("key_offsets", key_offsets), ("max_length", max_length)):
            if given is not None:
                kind = type(given).__name__
                raise ValueError(f"{op}: {name}: expected None in a dense call, got {kind}; a ragged call has offsets")
        validate.dense_start(query, query_start)
    for name, term in terms.items():
        if isinstance(term, BucketTable):
            validate.bucket(name, term, query, key, both, query_start)
        elif term is not None:
            validate.dense_term(name, term, query, key, max_length)
    bias, gate = (autocast.cast(term) if isinstance(term, Tensor) else term for term in (bias, gate))
    query, key, value = (autocast.cast(x) for x in (query, key, value))
    arguments = Arguments(
        bias, gate, offsets, key_offsets, query_start, seed, max_length or 0, is_causal, scale, dropout_p, 0, impl
    )
    out, lse = ops.forward(query, key, value, arguments)
    if outer.is_nested:
        out, lse = nested.like(outer, out), nested.like(outer, lse)
    return (out, lse) if return_lse else out


def _tensors_of(name: str, term: Tensor | BucketTable | None) -> dict[str, Tensor | None]:
    """Check the types inside a bias or gate and return its tensors by name."""
    if term is None:
        return {}
    if not isinstance(term, BucketTable):
        if not isinstance(term, Tensor):
            raise TypeError(
                f"{validate.OP}: {name}: expected a torch.Tensor, a BucketTable or None, got {type(term).__name__}"
            )
        validate.floating(**{name: term})
        return {name: term}
    validate.floating(**{f"{name}.table": term.table})
    tensors: dict[str, Tensor | None] = {f"{name}.table": term.table}
    for field in ("lookup", "group", "segment", "position"):
        tensors[f"{name}.{field}"] = getattr(term, field)
        validate.integers(f"{name}.{field}", getattr(term, field))
    if term.lookup is None:
        raise TypeError(f"{validate.OP}: {name}.lookup: expected a torch.Tensor, got None")
    check.flag(validate.OP, f"{name}.diagonal_open", term.diagonal_open)
    return tensors
