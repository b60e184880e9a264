"""What `predict` computes with: its tensors, its settings, and the flat tuple that autograd sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import repeat
from typing import Any, NamedTuple

from torch import Tensor


class Block(NamedTuple):
    """One encoder block. norm1 stands before (pre) or behind (post) the attention, norm2 likewise for the MLP."""

    norm1_weight: Tensor  # [d]
    norm1_bias: Tensor  # [d]
    qkv_weight: Tensor  # [3 d, d]
    qkv_bias: Tensor  # [3 d]
    out_weight: Tensor  # [d, d]
    out_bias: Tensor  # [d]
    norm2_weight: Tensor  # [d]
    norm2_bias: Tensor  # [d]
    up_weight: Tensor  # [ffn, d]
    up_bias: Tensor  # [ffn]
    down_weight: Tensor  # [d, ffn]
    down_bias: Tensor  # [d]


@dataclass(frozen=True)
class Parameters:
    """Every tensor of a WeightFormer. Shapes as in `embedding`, `attention` and `projection`."""

    # embedding
    embedding_weights: Sequence[Tensor]  # one [r, d] per projection group
    embedding_biases: Tensor  # [projection groups, d]
    shift: Tensor  # [column_numel]
    scale: Tensor  # [column_numel]
    position: Tensor  # [positions, d]
    gamma: Tensor  # [d]
    beta: Tensor  # [d]
    # encoder
    blocks: Sequence[Block]
    # projection
    projection_weights: Sequence[Tensor]  # one [d, r] per projection group
    projection_biases: Sequence[Tensor]  # one [r] per projection group
    strength: Tensor  # [layers]
    # optional parts
    teacher: Tensor | None = None  # [teacher ids, d]
    layer: Tensor | None = None  # [layers, d]
    cross: Tensor | None = None  # [c, d], or [groups, c, d] when handed on from an earlier layer
    gate: Tensor | None = None  # dense [H|1, M, M], or bucketed [H|1, 2, 2, 2, E] with gate_lookup; values in [0, 1]
    final_weight: Tensor | None = None  # [d], norm "pre" only
    final_bias: Tensor | None = None  # [d]
    base: Tensor | None = None  # [row_numel]
    center: Tensor | None = None  # [row_numel] what the embedding subtracts instead of base
    prior: Tensor | None = None  # [row_numel]
    blend: Tensor | None = None  # [layers]
    gate_weight: Tensor | None = None  # [projection groups, d]
    gate_bias: Tensor | None = None  # [projection groups]
    built_on: Tensor | None = None  # [sum(T) * row_numel] rows that the projection builds on instead of those embedded

    def flatten(self) -> tuple[Tensor | None, ...]:
        """Return all tensors in field order, lists and blocks spread out."""
        return tuple(spread([getattr(self, name) for name in FIELDS]))

    def unflatten(self, flat: Sequence[Tensor | None]) -> Parameters:
        """Return a copy of this structure holding the entries of `flat` instead; the inverse of `flatten`."""
        rest = iter(flat)
        return Parameters(**{name: refill(getattr(self, name), rest) for name in FIELDS})

    def structure(self) -> Parameters:
        """Return the nesting of these parameters with None in place of every tensor."""
        return Parameters(**{name: skeleton(getattr(self, name)) for name in FIELDS})

    def names(self) -> list[str]:
        """Return where every entry of `flatten` stands, as "gamma", "embedding_weights[0]" or "blocks[1].up_bias"."""
        return [label for name in FIELDS for label in labels(name, getattr(self, name))]


FIELDS = tuple(f.name for f in fields(Parameters))


def spread(values: Any) -> list[Any]:
    """Return the leaves (tensors and Nones) of nested lists and tuples, depth first."""
    if not isinstance(values, (list, tuple)):
        return [values]
    return [leaf for value in values for leaf in spread(value)]


def refill(like: Any, rest: Iterator[Any]) -> Any:
    """Return the nesting of `like` with its leaves taken from `rest`; the inverse of `spread`."""
    if isinstance(like, list):
        return [refill(item, rest) for item in like]
    if isinstance(like, tuple):
        items = [refill(item, rest) for item in like]
        return type(like)(*items) if hasattr(like, "_fields") else tuple(items)
    return next(rest)


def skeleton(values: Any) -> Any:
    """Return the nesting of `values` without its tensors."""
    return refill(values, repeat(None))


def labels(name: str, values: Any) -> list[str]:
    """Return the name of every leaf of `values`, itself called `name`."""
    if not isinstance(values, (list, tuple)):
        return [name]
    inside = [f".{field}" for field in values._fields] if hasattr(values, "_fields") else None
    places = inside or [f"[{i}]" for i in range(len(values))]
    return [label for place, value in zip(places, values, strict=True) for label in labels(name + place, value)]


@dataclass(frozen=True)
class Settings:
    """Everything about `predict` that is not a tensor. Defaults: the paper's form (arXiv 2210.01973).

    heads: attention heads; d must be a multiple of it.
    norm: "post" (Vaswani et al.) or "pre" (with one more LayerNorm behind the last block).
    activation: of the embedding; feed_forward: of the blocks; "none", "relu" or "gelu".
    dropout_p: of attention weights and of both residual branches.
    cross_layer: "none" or "parallel": what the cross tokens of a layer see beside their own sequence (in "parallel",
        the cross tokens of all earlier layers). What a layer learns of an earlier one's rows takes three blocks: one
        for the earlier cross tokens to read their rows, one to read those, one for the rows to read their own.
    read, output: as for `projection`. projections, positions: as for `embedding`.
    recompute: "full" keeps block inputs, attention outputs and log-sum-exps for backward; "none" keeps all.
    """

    heads: int = 8
    norm: str = "post"
    activation: str = "none"
    feed_forward: str = "relu"
    dropout_p: float = 0.0
    cross_layer: str = "parallel"
    read: str = "anchor"
    output: str = "plain"
    projections: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    recompute: str = "full"
    eps: float = 1e-5
