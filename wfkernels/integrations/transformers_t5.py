"""Encoders of T5 in Hugging Face transformers (Raffel et al. 2020, arXiv 1910.10683), with no scale in the scores.

The first layer makes the bias and every layer hands it on. Unpatched that is [1, H, S, S]; patched it is one entry per
signed distance, [H, 2 R + 1], from the distance R on all share the last bucket.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5Attention, T5Stack

from wfkernels.attention.api import attention
from wfkernels.attention.bucket import BucketTable
from wfkernels.integrations.adapter import Finding, Replacement, judge
from wfkernels.integrations.windows import expand

FORM = "BucketTable over signed distances, one for all layers"
INTERFACES = ("eager", "sdpa", "flex_attention")


class Bucketed(Replacement):
    """The forward that T5Attention and its copies get."""

    def forward(
        self: Any,
        hidden_states: Tensor,  # [B, S, d_model]
        mask: Any = None,
        key_value_states: Tensor | None = None,
        position_bias: Tensor | None = None,  # [H, 2R + 1], or dense [1, H, S, S]
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        if not _ours(self, mask, key_value_states, position_bias, past_key_values, kwargs):
            return super().forward(  # type: ignore[misc, no-any-return]
                hidden_states,
                mask=mask,
                key_value_states=key_value_states,
                position_bias=position_bias,
                past_key_values=past_key_values,
                **kwargs,
            )
        shape = (*hidden_states.shape[:-1], -1, self.key_value_proj_dim)
        query, key, value = (project(hidden_states).view(shape).transpose(1, 2) for project in (self.q, self.k, self.v))
        if position_bias is None:
            position_bias = _by_distance(self)
        bias, gate = _terms(position_bias, mask, query)
        out = attention(
            query,
            key,
            value,
            bias=bias,
            gate=gate,
            scale=self.scaling,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.o(out.transpose(1, 2).flatten(2)), position_bias, None


def _ours(
    module: nn.Module,
    mask: object,
    key_value_states: object,
    position_bias: object,
    past_key_values: object,
    options: dict[str, Any],
) -> bool:
    """True for a plain encoder layer's call; what wants weights, caches or another mask goes the library's own way."""
    return (
        (mask is None or isinstance(mask, Tensor))
        and key_value_states is None
        and past_key_values is None
        and (position_bias is not None or bool(module.has_relative_attention_bias))
        and not options.get("output_attentions", getattr(module.config, "output_attentions", False))
        and not options.get("is_causal")
    )


def _by_distance(module: Any) -> Tensor:
    """Return the bias of every signed distance query - key = -R ... R, [H, 2R + 1]."""
    reach = module.relative_attention_max_distance
    table = module.relative_attention_bias
    distance = torch.arange(reach, -reach - 1, -1, device=table.weight.device)  # T5 counts key - query
    buckets = module._relative_position_bucket(
        distance,
        bidirectional=True,
        num_buckets=module.relative_attention_num_buckets,
        max_distance=reach,
    )
    entries: Tensor = table(buckets)
    return entries.mT


def _terms(
    position_bias: Tensor,  # [H, 2R + 1], or dense [1, H, S, S]
    mask: Tensor | None,  # broadcasts against [B, H, S, S]: bool, True is seen, or added to the scores
    query: Tensor,  # [B, H, S, D]
) -> tuple[Tensor | BucketTable, Tensor | None]:
    """Return bias and gate."""
    bias: Tensor | BucketTable = position_bias
    if position_bias.ndim == 2:
        lookup = torch.arange(position_bias.shape[1], device=position_bias.device)
        bias = BucketTable(position_bias[:, None, None, None], lookup)
    if mask is None:
        return bias, None
    if mask.dtype == torch.bool:
        # Closed without a gradient, and for all heads at once; a mask over keys alone stays [B, 1, 1, S].
        return bias, mask.to(query.dtype)
    # Numbers to add ("eager" attention, masks of one's own) may be any, so that only the dense sum is exact.
    dense = expand(bias, query.shape[-2]) if isinstance(bias, BucketTable) else bias
    return dense + mask, None


class BucketedAttention(Bucketed, T5Attention):
    """transformers' T5Attention by wfkernels.attention."""


def find(model: nn.Module) -> Iterator[Finding]:
    """Yield the attention modules of T5's encoders, and those of its decoders, which are left."""
    yield from find_in(model, T5Stack, T5Attention, BucketedAttention, "T5")


def find_in(
    model: nn.Module,
    stack: type[nn.Module],
    layer: type[nn.Module],
    replacement: type[nn.Module],
    name: str,
) -> Iterator[Finding]:
    """Yield the attention modules of T5 or of a copy of its code. The layers of a stack change all together or not."""
    paths = {module: path for path, module in model.named_modules()}
    kind = f"{name} encoder attention (transformers)"
    done = set()
    for module in model.modules():
        # A stack with a forward of its own may look at the bias that its layers hand on.
        if type(module).forward is stack.forward and not module.is_decoder:
            layers: list[Any] = [block.layer[0].SelfAttention for block in module.block]  # type: ignore[union-attr]
            found = [judge(paths[m], m, replacement, kind, FORM, _obstacle(m)) for m in layers]
            stuck = [finding for finding in found if finding.replacement is None]
            for finding in found:
                if stuck and finding.replacement is not None:
                    reason = f"{stuck[0].path} is left, and the layers of a stack share one bias"
                    finding = finding._replace(replacement=None, detail=reason)
                yield finding
            done.update(layers)
    for module, path in paths.items():
        if isinstance(module, layer) and module not in done:
            causal = getattr(module, "is_causal", False)
            reason = "it is causal" if causal else "it reads another sequence, or the encoder around it is not known"
            yield Finding(path, module, f"{name} attention (transformers)", None, reason)


def _obstacle(module: Any) -> str | None:
    if not hasattr(module, "config"):  # an older version's, whose arguments `judge` refuses
        return "this version of transformers is not known"
    interface = module.config._attn_implementation
    if interface not in INTERFACES:
        return f"the model asks for the attention implementation {interface!r}"
    # Below, the logarithm of the buckets' formula is not positive.
    if module.relative_attention_max_distance <= module.relative_attention_num_buckets // 4:
        return "relative_attention_max_distance is too small for its number of buckets"
    return None
