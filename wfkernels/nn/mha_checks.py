"""What `MultiheadAttention` checks before it computes anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from wfkernels import check
from wfkernels.attention import nested, validate
from wfkernels.attention.bucket import BucketTable
from wfkernels.nn.common import at_least

OP = "MultiheadAttention"


def sizes(embed_dim: int, num_heads: int, dropout: float, kdim: int | None, vdim: int | None) -> None:
    """Raise unless the sizes of a module fit together."""
    at_least(OP, 1, embed_dim=embed_dim, num_heads=num_heads)
    at_least(OP, 1, **{name: size for name, size in (("kdim", kdim), ("vdim", vdim)) if size is not None})
    if embed_dim % num_heads:
        raise ValueError(f"{OP}: num_heads: expected a divisor of embed_dim={embed_dim}, got {num_heads}")
    check.number(OP, "dropout", dropout)
    if not 0 <= dropout < 1:
        raise ValueError(f"{OP}: dropout: expected a probability in [0, 1), got {dropout}")


def held(name: str, term: object, heads: int) -> None:
    """Raise unless a module can hold `term` as its bias or gate."""
    if term is None or isinstance(term, nn.Module):
        return
    if not isinstance(term, nn.Parameter):
        raise TypeError(
            f"{OP}: {name}: expected an nn.Module, an nn.Parameter or None, got {type(term).__name__}; a tensor that is"
            " not learned goes to the call, or into an nn.Parameter with requires_grad=False"
        )
    if not term.is_floating_point() or term.ndim != 3 or term.shape[0] not in (1, heads):
        raise ValueError(
            f"{OP}: {name}: expected a floating-point [{heads} or 1, M, M], got {term.dtype} {list(term.shape)}"
        )


def tokens(module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Raise unless dense query, key and value fit the module; return whether they have a batch dimension."""
    check.floating(OP, query=query, key=key, value=value)
    given = _features(module, query, key, value)
    if query.ndim not in (2, 3):
        raise ValueError(
            f"{OP}: query: expected two dimensions, or three with a batch, got {list(query.shape)}; fold others into"
            " the batch"
        )
    for name in ("key", "value"):
        if given[name].ndim != query.ndim:
            raise ValueError(f"{OP}: {name}: expected {query.ndim} dimensions like query, got {given[name].ndim}")
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(
            f"{OP}: value: expected shape [{', '.join(map(str, key.shape[:-1]))}, {module.vdim}] like key, got"
            f" {list(value.shape)}"
        )
    batched = query.ndim == 3
    at = 0 if module.batch_first else 1
    if batched and key.shape[at] != query.shape[at]:
        order = "[batch, tokens, features]" if module.batch_first else "[tokens, batch, features]"
        raise ValueError(
            f"{OP}: key: expected a batch of {query.shape[at]} like query, got {key.shape[at]}, read as {order} because"
            f" batch_first={module.batch_first}"
        )
    return batched


def masks(query: Tensor, key: Tensor, key_padding_mask: object, attn_mask: object, batched: bool) -> None:
    """Raise unless the masks fit query [N, H, L, D] and key [N, H, S, D]."""
    batch, heads, queries, _ = query.shape
    keys = key.shape[-2]
    shapes: dict[str, tuple[object, list[tuple[int, ...]]]] = {
        "key_padding_mask": (key_padding_mask, [(batch, keys) if batched else (keys,)]),
        "attn_mask": (attn_mask, [(queries, keys), (batch * heads, queries, keys)]),
    }
    for name, (mask, allowed) in shapes.items():
        if mask is None:
            continue
        if not isinstance(mask, Tensor):
            raise TypeError(f"{OP}: {name}: expected a torch.Tensor or None, got {type(mask).__name__}")
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise TypeError(f"{OP}: {name}: expected bool or floating point, got {mask.dtype}; cast it first")
        if tuple(mask.shape) not in allowed:
            wanted = " or ".join(str(list(shape)) for shape in allowed)
            raise ValueError(f"{OP}: {name}: expected shape {wanted}, got {list(mask.shape)}")
        check.same_device(OP, query=query, **{name: mask})


def terms(query: Tensor, key: Tensor, given: Sequence[tuple[str, object]]) -> None:
    """Raise unless the biases and gates of a call fit query [N, H, L, D] and key [N, H, S, D].

    `attention` checks the one bias and the one gate that become of them; this names the one that does not fit.
    """
    full = (*query.shape[:-1], key.shape[-2])
    for name, term in given:
        if isinstance(term, BucketTable):
            validate.bucket(name, term, query, key, None, None)
        elif isinstance(term, Tensor):
            check.floating(OP, **{name: term})
            check.same_device(OP, query=query, **{name: term})
            sizes = zip(term.shape[::-1], full[::-1], strict=False)
            if term.ndim > 4 or not all(size in (1, wanted) for size, wanted in sizes):
                raise ValueError(
                    f"{OP}: {name}: expected a shape that broadcasts to {list(full)}, got {list(term.shape)}"
                )
        elif term is not None:
            kind = type(term).__name__
            raise TypeError(f"{OP}: {name}: expected a torch.Tensor, a BucketTable or None, got {kind}")


def jagged(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    need_weights: bool,
    absent: Mapping[str, object],
) -> None:
    """Raise unless nested query, key and value fit the module and nothing is asked for that they exclude."""
    nested.validate(OP, 3, (1,), query=query, key=key, value=value)
    _features(module, query, key, value)
    for name, given in absent.items():
        if given is not None:
            raise ValueError(f"{OP}: {name}: expected None with nested tensors, got {type(given).__name__}")
    if need_weights:
        raise ValueError(f"{OP}: need_weights: expected False with nested tensors, which have no rectangle of weights")
    if module.bias_k is not None or module.add_zero_attn:
        raise ValueError(f"{OP}: query: expected dense tensors with add_bias_kv or add_zero_attn, got nested ones")


def _features(module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> dict[str, Tensor]:
    """Raise unless dtype, device and last dimension fit the module's parameters."""
    given = {"query": query, "key": key, "value": value}
    check.same_device(OP, parameters=module.out_proj.weight, **given)
    check.same_dtype(OP, parameters=module.out_proj.weight, **given)
    for name, size in (("query", module.embed_dim), ("key", module.kdim), ("value", module.vdim)):
        if given[name].ndim == 0 or given[name].shape[-1] != size:
            raise ValueError(f"{OP}: {name}: expected {size} features, got shape {_shape(given[name])}")
    return given


def _shape(tensor: Tensor) -> str:
    return f"[{', '.join(map(str, tensor.shape))}]"
