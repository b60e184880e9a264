"""Fused, differentiable kernels for networks that read and write the weights of other networks.

Importing this package imports nothing else: every public name is loaded when it is first used (PEP 562).
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wfkernels import nn as nn
    from wfkernels.attention.api import attention
    from wfkernels.attention.bucket import BucketTable
    from wfkernels.attention.sdpa import scaled_dot_product_attention
    from wfkernels.embedding.api import embedding
    from wfkernels.explain import explain
    from wfkernels.layout import RowLayout
    from wfkernels.predict.api import predict
    from wfkernels.predict.parameters import Block, Parameters, Settings
    from wfkernels.projection.api import projection
    from wfkernels.residual_norm.api import residual_norm
    from wfkernels.rows.api import pack, unpack

__version__ = "0.1.0.dev0"

__all__ = [
    "Block",
    "BucketTable",
    "Parameters",
    "RowLayout",
    "Settings",
    "attention",
    "embedding",
    "explain",
    "pack",
    "predict",
    "projection",
    "residual_norm",
    "scaled_dot_product_attention",
    "unpack",
]

_HOMES = {
    "Block": "wfkernels.predict.parameters",
    "BucketTable": "wfkernels.attention.bucket",
    "Parameters": "wfkernels.predict.parameters",
    "RowLayout": "wfkernels.layout",
    "Settings": "wfkernels.predict.parameters",
    "attention": "wfkernels.attention.api",
    "embedding": "wfkernels.embedding.api",
    "explain": "wfkernels.explain",
    "pack": "wfkernels.rows.api",
    "predict": "wfkernels.predict.api",
    "projection": "wfkernels.projection.api",
    "residual_norm": "wfkernels.residual_norm.api",
    "scaled_dot_product_attention": "wfkernels.attention.sdpa",
    "unpack": "wfkernels.rows.api",
}

# Packages whose contents are public under their own name.
_PACKAGES = ("integrations", "nn")


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"wfkernels.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'wfkernels' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})


class _Package(ModuleType):
    """Keeps a public function's name from being rebound to the room of the same name when that room is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
