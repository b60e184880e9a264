"""CoAtNet and MaxViT of timm (Dai et al. 2021, arXiv 2106.04803; Tu et al. 2022, arXiv 2204.01697)."""

from __future__ import annotations

from collections.abc import Iterator

from timm.models.maxxvit import Attention2d, AttentionCl
from torch import Tensor, nn

from wfkernels.attention.api import attention
from wfkernels.attention.bucket import BucketTable
from wfkernels.integrations.adapter import Finding, Replacement, dropout_obstacle, dropout_p, judge
from wfkernels.integrations.timm_relpos import bias_obstacle, bucket, form


def _attend(
    module: Attention2d | AttentionCl,
    query: Tensor,  # [B, H, S, D]
    key: Tensor,  # [B, H, S, D]
    value: Tensor,  # [B, H, S, D]
    shared: Tensor | BucketTable | None,
) -> Tensor:
    bias = shared if module.rel_pos is None else bucket(module.rel_pos)
    return attention(query, key, value, bias=bias, scale=module.scale, dropout_p=dropout_p(module))


class BucketedAttention2d(Replacement, Attention2d):
    """timm.models.maxxvit.Attention2d, which takes [B, C, H, W], by wfkernels.attention."""

    def forward(self, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
        batch, _, height, width = x.shape
        if self.head_first:
            query, key, value = self.qkv(x).view(batch, self.num_heads, self.dim_head * 3, -1).chunk(3, dim=2)
        else:
            query, key, value = self.qkv(x).reshape(batch, 3, self.num_heads, self.dim_head, -1).unbind(1)
        out = _attend(self, query.mT, key.mT, value.mT, shared_rel_pos)
        projected: Tensor = self.proj_drop(self.proj(out.mT.reshape(batch, -1, height, width)))
        return projected


class BucketedAttentionCl(Replacement, AttentionCl):
    """timm.models.maxxvit.AttentionCl, which takes [B, ..., C], by wfkernels.attention."""

    def forward(self, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
        batch, places = x.shape[0], x.shape[:-1]
        if self.head_first:
            qkv = self.qkv(x).view(batch, -1, self.num_heads, self.dim_head * 3)
            query, key, value = qkv.transpose(1, 2).chunk(3, dim=3)
        else:
            qkv = self.qkv(x).reshape(batch, -1, 3, self.num_heads, self.dim_head)
            query, key, value = qkv.transpose(1, 3).unbind(2)
        out = _attend(self, query, key, value, shared_rel_pos)
        projected: Tensor = self.proj_drop(self.proj(out.transpose(1, 2).reshape(*places, -1)))
        return projected


def find(model: nn.Module) -> Iterator[Finding]:
    """Yield the attention modules of CoAtNet and MaxViT."""
    for path, module in model.named_modules():
        if isinstance(module, Attention2d | AttentionCl):
            reason = dropout_obstacle(module) or bias_obstacle(module.rel_pos)
            replacement = BucketedAttention2d if isinstance(module, Attention2d) else BucketedAttentionCl
            yield judge(path, module, replacement, "CoAtNet/MaxViT attention (timm)", form(module.rel_pos), reason)
