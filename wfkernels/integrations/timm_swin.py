"""Swin (Liu et al. 2021, arXiv 2103.14030) and Swin v2 (arXiv 2111.09883) of timm: windows, shifted in half the blocks.

A block that shifts its windows forbids pairs from different regions of the picture by adding -100 to their scores.
With the region as a token's segment that is a second row of the bias table, and there is no sum of a bias and a mask
with an entry for every window, head and pair of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import swin_transformer, swin_transformer_v2
from torch import Tensor, nn

from wfkernels.attention.api import attention
from wfkernels.attention.bucket import BucketTable
from wfkernels.attention.validate import readable
from wfkernels.integrations.adapter import Finding, Replacement, dropout_obstacle, dropout_p, judge, project_qkv
from wfkernels.integrations.windows import from_index, index_obstacle

FORM = "BucketTable over 2-D offsets, regions of shifted windows as segments"
FORM_V2 = "BucketTable from the bias MLP, one entry per offset, regions of shifted windows as segments"
BLOCKS = (swin_transformer.SwinTransformerBlock, swin_transformer_v2.SwinTransformerV2Block)


def _regions(mask: Tensor) -> Tensor:  # [windows, N, N]: 0 inside a region, else one other number
    """Return the region of every token, named by its first token: int64 [windows, N]."""
    return (mask == 0).byte().argmax(-1)


def _is_made_of_regions(mask: Tensor) -> bool:  # [windows, N, N]
    regions = _regions(mask)
    same = regions.unsqueeze(-1) == regions.unsqueeze(-2)
    return torch.equal(mask, torch.where(same, 0.0, mask.amin()).to(mask.dtype))


def _attend(
    module: Any,
    qkv: Tensor,  # [B * windows, N, 3, H, D]
    entries: Tensor,  # [H, E]
    mask: Tensor | None,  # [windows, N, N]
    scale: float,
    factor: Tensor | None = None,  # [H, 1]: of unit queries and keys
) -> Tensor:
    """Return the heads' outputs side by side, [B * windows, N, H * D]."""
    count, tokens = qkv.shape[:2]
    query, key, value = qkv.unbind(2)
    if factor is not None:
        query, key = F.normalize(query, dim=-1) * factor, F.normalize(key, dim=-1)
    bias = from_index(entries, module.relative_position_index)
    dropout = dropout_p(module)
    if mask is None:
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        out = attention(query, key, value, bias=bias, scale=scale, dropout_p=dropout)
        return out.transpose(1, 2).flatten(2)
    if readable(mask) and not _is_made_of_regions(mask):
        raise ValueError(
            f"{type(module).__name__}: mask: expected 0 inside regions and one other number between them, as timm's"
            " blocks make it, got another one; call unpatch first"
        )
    # Regions differ from window to window, so a window is a sequence of a ragged batch.
    bias = _by_region(bias, mask, count)
    offsets = torch.arange(0, count * tokens + 1, tokens, device=mask.device)
    query, key, value = (x.flatten(0, 1) for x in (query, key, value))
    out = attention(query, key, value, bias=bias, offsets=offsets, max_length=tokens, scale=scale, dropout_p=dropout)
    return out.view(count, tokens, -1)


def _by_region(bias: BucketTable, mask: Tensor, count: int) -> BucketTable:
    """Return the bias of `count` windows [count * N] in which pairs from different regions get the mask's number."""
    assert bias.position is not None
    windows, tokens = mask.shape[:2]
    segment = _regions(mask).expand(count // windows, windows, tokens).reshape(-1)
    position = bias.position.expand(count, tokens).reshape(-1)
    table = torch.cat([bias.table + mask.amin(), bias.table], dim=3)
    return bias._replace(table=table, segment=segment, position=position)


class BucketedAttention(Replacement, swin_transformer.WindowAttention):
    """timm.models.swin_transformer.WindowAttention by wfkernels.attention."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, -1)
        table = self.relative_position_bias_table.mT
        projected: Tensor = self.proj_drop(self.proj(_attend(self, qkv, table, mask, self.scale)))
        return projected


class BucketedAttentionV2(Replacement, swin_transformer_v2.WindowAttention):
    """timm.models.swin_transformer_v2.WindowAttention, cosine attention, by wfkernels.attention."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        qkv = project_qkv(self, x).reshape(*x.shape[:2], 3, self.num_heads, -1)
        factor = self.logit_scale.clamp(max=math.log(1.0 / 0.01)).exp().flatten(1)
        # The sigmoid of E entries, not of N x N: it works entry by entry, so that it may come before the look-up.
        entries = 16 * torch.sigmoid(self.cpb_mlp(self.relative_coords_table).view(-1, self.num_heads).mT)
        projected: Tensor = self.proj_drop(self.proj(_attend(self, qkv, entries, mask, 1.0, factor)))
        return projected


def find(model: nn.Module) -> Iterator[Finding]:
    """Yield the attention modules of Swin and Swin v2."""
    blocks = {block.attn: block for block in model.modules() if type(block) in BLOCKS}
    module: Any
    for path, module in model.named_modules():
        if isinstance(module, swin_transformer.WindowAttention):
            reason = _obstacle(module, module.relative_position_bias_table.shape[0], blocks.get(module))
            yield judge(path, module, BucketedAttention, "Swin attention (timm)", FORM, reason)
        elif isinstance(module, swin_transformer_v2.WindowAttention):
            entries = module.relative_coords_table[..., 0].numel()  # type: ignore[index]
            reason = _obstacle(module, entries, blocks.get(module))
            yield judge(path, module, BucketedAttentionV2, "Swin v2 attention (timm)", FORM_V2, reason)


def _obstacle(module: Any, entries: int, block: nn.Module | None) -> str | None:
    if block is None:
        return "its mask does not come from a block of timm's Swin"
    mask = block.attn_mask
    if isinstance(mask, Tensor) and not mask.is_meta and not _is_made_of_regions(mask):
        return "the mask of its block is not made of regions"
    return dropout_obstacle(module) or index_obstacle(module.relative_position_index, entries)
