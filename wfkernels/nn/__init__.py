"""Modules to drop into a model; each says which module of another library it replaces."""

from __future__ import annotations

from wfkernels.nn.multihead_attention import MultiheadAttention
from wfkernels.nn.relative_position import RelativePositionBias
from wfkernels.nn.weight_projection import WeightProjection
from wfkernels.nn.weight_token_embedding import WeightTokenEmbedding

__all__ = ["MultiheadAttention", "RelativePositionBias", "WeightProjection", "WeightTokenEmbedding"]
