"""BEiT and BEiT-v2 of timm (Bao et al. 2021, arXiv 2106.08254): a table per layer or one for all, and a class token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from timm.models.beit import Attention, Beit, RelativePositionBias
from torch import Tensor, nn

from wfkernels.attention.api import attention
from wfkernels.attention.bucket import BucketTable
from wfkernels.integrations.adapter import (
    Finding,
    Replacement,
    dropout_obstacle,
    dropout_p,
    judge,
    project_qkv,
    readers,
    sharing_obstacle,
)
from wfkernels.integrations.windows import expand, from_index, index_obstacle

FORM = "BucketTable over 2-D offsets, the class token a group of its own"


def _bucket(module: Any) -> BucketTable:
    """Return the bias of anything that has BEiT's table [E + 3, H] and index [S, S]."""
    return from_index(module.relative_position_bias_table.mT, module.relative_position_index, class_token=True)


class BucketedAttention(Replacement, Attention):
    """timm.models.beit.Attention by wfkernels.attention."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | BucketTable | None = None) -> Tensor:
        batch, tokens, width = x.shape
        qkv = project_qkv(self, x).reshape(batch, tokens, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = _sum(self, shared_rel_pos_bias, tokens)
        out = attention(query, key, value, bias=bias, scale=self.scale, dropout_p=dropout_p(self))
        projected: Tensor = self.proj_drop(self.proj(out.transpose(1, 2).reshape(batch, tokens, width)))
        return projected


def _sum(module: Attention, shared: Tensor | BucketTable | None, tokens: int) -> Tensor | BucketTable | None:
    """Return a layer's own bias plus the shared one, which is dense, [H, S, S], where that had to stay."""
    if module.relative_position_bias_table is None:
        return shared
    own = _bucket(module)
    if shared is None:
        return own
    if isinstance(shared, BucketTable):  # over the same window
        return own._replace(table=own.table + shared.table)
    return expand(own, tokens) + shared


class BucketedBias(Replacement, RelativePositionBias):
    """timm.models.beit.RelativePositionBias that hands its table to the layers instead of [H, S, S]."""

    def forward(self) -> BucketTable:  # type: ignore[override]
        return _bucket(self)


def find(model: nn.Module) -> Iterator[Finding]:
    """Yield the attention modules of BEiT and the bias that its layers may share."""
    shared = readers(model, Beit, "rel_pos_bias")
    served = {layer for layers in shared.values() for layer in layers}
    findings: dict[nn.Module | None, Finding] = {}
    for path, module in model.named_modules():
        if isinstance(module, Attention):
            kind = "BEiT attention (timm)"
            findings[module] = judge(path, module, BucketedAttention, kind, FORM, _obstacle(module, module in served))
    yield from findings.values()
    for path, module in model.named_modules():
        if module in shared:
            reason = sharing_obstacle(shared[module], findings) or _index_obstacle(module)
            yield judge(path, module, BucketedBias, "bias shared by the layers (timm BEiT)", FORM, reason)


def _obstacle(module: Attention, served: bool) -> str | None:
    if module.relative_position_bias_table is None:
        return dropout_obstacle(module) if served else "it has no learned bias"
    return dropout_obstacle(module) or _index_obstacle(module)


def _index_obstacle(module: Any) -> str | None:
    entries = module.relative_position_bias_table.shape[0]
    return index_obstacle(module.relative_position_index, entries, class_token=True)
