"""timm's `vit_relpos_*` and `vit_srelpos_*`, and the relative position modules that other timm models use, too.

RelPosBias holds a table, RelPosMlp (Liu et al. 2021, Swin v2, arXiv 2111.09883) computes one entry per offset from the
offset's logarithmic coordinates, RelPosBiasTf holds MaxViT's table, whose offsets are key minus query.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_rel import RelPosBias, RelPosBiasTf, RelPosMlp
from timm.models.vision_transformer_relpos import RelPosAttention, VisionTransformerRelPos
from torch import Tensor, nn

from wfkernels.attention.api import attention
from wfkernels.attention.bucket import BucketTable
from wfkernels.integrations.adapter import (
    Finding,
    Replacement,
    dropout_obstacle,
    dropout_p,
    judge,
    readers,
    sharing_obstacle,
)
from wfkernels.integrations.windows import from_index, index_obstacle, over_offsets, positions, with_group


def bucket(module: Any) -> BucketTable:
    """Return the bias of a RelPosBias, RelPosMlp or RelPosBiasTf."""
    kind: type = type(module)
    if issubclass(kind, RelPosBias):
        table, index = module.relative_position_bias_table, module.relative_position_index
        return from_index(table.mT, index, class_token=_has_prefix(module))
    if issubclass(kind, RelPosBiasTf):
        table = module.relative_position_bias_table  # [H, 2 Wh - 1, 2 Ww - 1]
        return over_offsets(table.flatten(1), positions(module.window_size, table.device), reverse=True)
    # The activation of E entries, not of S x S: it works entry by entry, so that it may come before the look-up.
    entries = module.bias_act(module.mlp(module.rel_coords_log).flatten(0, 1).mT)  # [H, E]
    if module.bias_gain is not None:
        entries = module.bias_gain * entries
    found = from_index(entries, module.relative_position_index)
    if not _has_prefix(module):
        return found
    assert found.position is not None
    position = F.pad(found.position, (module.prefix_tokens, 0))
    group = F.pad(torch.zeros_like(found.position), (module.prefix_tokens, 0), value=1)
    return with_group(entries, position, group, entries.new_zeros(len(entries), 3))


def _has_prefix(module: Any) -> bool:
    """True where the window stands behind prefix tokens; RelPosBias has one at most, RelPosBiasTf none."""
    if isinstance(module, RelPosBias):
        return bool(module.bias_shape[0] > module.window_area)
    return bool(getattr(module, "prefix_tokens", 0))


def form(module: nn.Module | None) -> str:
    """Return the form of a layer's bias in words; None where it has no relative position module of its own."""
    if module is None:
        return "the bias that the layers share"
    source = "from the bias MLP, one entry per offset" if isinstance(module, RelPosMlp) else "over 2-D offsets"
    return f"BucketTable {source}{', the class token a group of its own' if _has_prefix(module) else ''}"


def bias_obstacle(module: Any) -> str | None:
    """Return why the bias of a relative position module cannot be computed by `bucket`, None where it can."""
    if module is None:
        return "it has no learned bias"
    kind: type = type(module)
    if kind not in (RelPosBias, RelPosBiasTf, RelPosMlp, BucketedBias, BucketedMlp):
        return f"rel_pos is a {kind.__module__}.{kind.__qualname__}, which is not known"
    if issubclass(kind, RelPosBias):
        entries = module.relative_position_bias_table.shape[0]
        return index_obstacle(module.relative_position_index, entries, _has_prefix(module))
    if issubclass(kind, RelPosMlp):
        return index_obstacle(module.relative_position_index, module.rel_coords_log[..., 0].numel())
    return None


class BucketedAttention(Replacement, RelPosAttention):
    """timm.models.vision_transformer_relpos.RelPosAttention by wfkernels.attention."""

    def forward(self, x: Tensor, shared_rel_pos: Tensor | BucketTable | None = None) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        query, key = self.q_norm(query), self.k_norm(key)
        bias = shared_rel_pos if self.rel_pos is None else bucket(self.rel_pos)
        out = attention(query, key, value, bias=bias, scale=self.scale, dropout_p=dropout_p(self))
        projected: Tensor = self.proj_drop(self.proj(out.transpose(1, 2).reshape(batch, tokens, width)))
        return projected


class BucketedBias(Replacement, RelPosBias):
    """timm's RelPosBias, shared by all layers, that hands them its table instead of [1, H, S, S]."""

    def get_bias(self) -> BucketTable:  # type: ignore[override]
        return bucket(self)


class BucketedMlp(Replacement, RelPosMlp):
    """timm's RelPosMlp, shared by all layers, that hands them its entries instead of [1, H, S, S]."""

    def get_bias(self) -> BucketTable:  # type: ignore[override]
        return bucket(self)


def find(model: nn.Module) -> Iterator[Finding]:
    """Yield the attention modules of `vit_relpos_*` and the bias that their layers may share."""
    shared = readers(model, VisionTransformerRelPos, "shared_rel_pos")
    served = {layer for layers in shared.values() for layer in layers}
    findings: dict[nn.Module | None, Finding] = {}
    for path, module in model.named_modules():
        if isinstance(module, RelPosAttention):
            own = module.rel_pos
            reason = dropout_obstacle(module) or (None if module in served else bias_obstacle(own))
            kind = "relative position attention (timm vit_relpos)"
            findings[module] = judge(path, module, BucketedAttention, kind, form(own), reason)
    yield from findings.values()
    for path, module in model.named_modules():
        if module in shared:
            replacement = BucketedMlp if isinstance(module, RelPosMlp) else BucketedBias
            reason = sharing_obstacle(shared[module], findings) or bias_obstacle(module)
            yield judge(path, module, replacement, "bias shared by the layers (timm vit_srelpos)", form(module), reason)
