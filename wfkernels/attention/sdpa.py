"""`torch.nn.functional.scaled_dot_product_attention`, computed by `attention`: masks have exact gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from wfkernels import check
from wfkernels.attention import nested
from wfkernels.attention.api import attention

OP = "scaled_dot_product_attention"


def scaled_dot_product_attention(
    query: Tensor,  # [..., H, L, E], or nested [N, H, j, E]
    key: Tensor,  # [..., Hk, S, E], or nested
    value: Tensor,  # [..., Hk, S, Ev], or nested
    attn_mask: Tensor | None = None,  # broadcasts to [..., H, L, S]; nested: [M, M], [1, M, M] or [H, M, M]
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot-product attention with the arguments and the meaning of torch's function of this name.

    Differences, each in what torch refuses or leaves open:

    * a float mask has its gradient in every implementation, summed over the dimensions along which it was broadcast,
      and is never expanded; any shape that broadcasts will do, also one dimension and none;
    * a nested call takes a mask: sequence n of length j uses its top-left corner [j, j];
    * dropout_p = 1, which drops everything, is refused;
    * the dropout mask is Philox from a seed that torch's default generator draws, so its bits differ from torch's.

    Args:
        query, key, value: floating, of one dtype. Leading dimensions are broadcast, heads too.
        attn_mask: bool, True where a pair takes part; or floating, added to the scores, -inf where a pair must not. A
            query without any pair gives 0 and no gradient, as in torch since 2.5.
        dropout_p: probability with which a weight is dropped, whatever mode a module is in.
        is_causal: query i sees keys j <= i, counted from the first of each also where L differs from S. Excludes a
            mask, as in torch; `wfkernels.attention(bias=..., is_causal=True)` takes both.
        scale: 1 / sqrt(E) when None.
        enable_gqa: heads of key and value may be fewer: head h of query reads head h // (H // Hk).

    Returns:
        [..., H, L, Ev], or nested like query.

    Raises:
        TypeError, ValueError: as `attention`; a mask with is_causal; fewer heads of key without enable_gqa; nested
        tensors that are jagged in another dimension than the third (torch means something else by those).
    """
    check.flag(OP, "is_causal", is_causal)
    check.flag(OP, "enable_gqa", enable_gqa)
    jagged = nested.is_nested(query, key, value)
    if jagged:
        # Torch takes a tensor that is jagged in dimension 1 for a batch of attentions over dimension 2.
        nested.validate(OP, 4, (2,), query=query, key=key, value=value)
    else:
        check.floating(OP, query=query, key=key, value=value)
    bias = None if attn_mask is None else _bias(attn_mask, query, is_causal)
    if jagged:
        _check_groups(query.shape[1], key.shape[1], value.shape[1], enable_gqa)
        if bias is not None:
            bias = bias[(None,) * (3 - bias.ndim)]
        return attention(query, key, value, bias=bias, dropout_p=dropout_p, is_causal=is_causal, scale=scale)
    flat = query.ndim == key.ndim == value.ndim == 2
    q, k, v = _aligned(query, key, value, enable_gqa)
    if bias is not None:
        _check_mask(bias, (*q.shape[flat:-1], k.shape[-2]))
    out = attention(q, k, v, bias=bias, dropout_p=dropout_p, is_causal=is_causal, scale=scale)
    return out.squeeze(0) if flat else out


def _bias(mask: Tensor, query: Tensor, is_causal: bool) -> Tensor:
    """Return a mask as what is added to the scores."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"{OP}: attn_mask: expected a torch.Tensor or None, got {type(mask).__name__}")
    if is_causal:
        raise ValueError(
            f"{OP}: attn_mask: expected None because is_causal is set, got a mask of shape {list(mask.shape)}; call"
            " wfkernels.attention, which takes both"
        )
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f"{OP}: attn_mask: expected bool or floating point, got {mask.dtype}; cast it first")
    check.same_device(OP, query=query, attn_mask=mask)
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, float("-inf"))


def _check_mask(bias: Tensor, full: tuple[int, ...]) -> None:
    fits = bias.ndim <= len(full) and all(
        size in (1, wanted) for size, wanted in zip(bias.shape[::-1], full[::-1], strict=False)
    )
    if not fits:
        raise ValueError(f"{OP}: attn_mask: expected a shape that broadcasts to {list(full)}, got {list(bias.shape)}")


def _aligned(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return query [..., H, L, E], key and value [..., Hk, S, *] with equal leading dimensions, as views."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.ndim < 2:
            raise ValueError(f"{OP}: {name}: expected [..., tokens, width], got {list(tensor.shape)}")
    tensors = [x.unsqueeze(0) if x.ndim == 2 else x for x in (query, key, value)]
    heads, key_heads, value_heads = (x.shape[-3] for x in tensors)
    _check_groups(heads, key_heads, value_heads, enable_gqa)
    if enable_gqa and key_heads != value_heads:
        tensors[1:] = [x.repeat_interleave(heads // x.shape[-3], -3) for x in tensors[1:]]
    elif not enable_gqa and max(key_heads, value_heads) > 1:
        heads = max(heads, key_heads, value_heads)
        tensors = [x.expand(*x.shape[:-3], heads, -1, -1) for x in tensors]
    try:
        lead = torch.broadcast_shapes(*(x.shape[:-3] for x in tensors))
    except RuntimeError:
        given = ", ".join(str(list(x.shape)) for x in (query, key, value))
        raise ValueError(f"{OP}: query, key, value: expected leading dimensions that broadcast, got {given}") from None
    q, k, v = (x.expand(*lead, *x.shape[-3:]) for x in tensors)
    return q, k, v


def _check_groups(heads: int, key_heads: int, value_heads: int, enable_gqa: bool) -> None:
    """Raise unless the heads of key and value divide those of query, or without grouped queries broadcast with them."""
    counts = {"key": key_heads, "value": value_heads}
    for name, count in counts.items():
        if enable_gqa and (count < 1 or heads % count):
            raise ValueError(f"{OP}: {name}: expected a divisor of the {heads} heads of query, got {count} heads")
        most = max(heads, *counts.values())
        if not enable_gqa and not {heads, count} <= {1, most}:
            raise ValueError(
                f"{OP}: {name}: expected heads that broadcast with the {heads} of query, got {count}; set"
                " enable_gqa=True where several heads of query share one"
            )
