"""Encoders of mT5 in Hugging Face transformers, whose attention is a copy of T5's."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers.models.mt5.modeling_mt5 import MT5Attention, MT5Stack

from wfkernels.integrations.adapter import Finding
from wfkernels.integrations.transformers_t5 import Bucketed, find_in


class BucketedAttention(Bucketed, MT5Attention):
    """transformers' MT5Attention by wfkernels.attention."""


def find(model: nn.Module) -> Iterator[Finding]:
    """Yield the attention modules of mT5's encoders, and those of its decoders, which are left."""
    yield from find_in(model, MT5Stack, MT5Attention, BucketedAttention, "mT5")
