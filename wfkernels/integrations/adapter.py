"""What the adapters share: one for each library or model family, a module with `find(model)`.

A replacement is a subclass of the library's own class with another forward. Patching a module assigns its `__class__`,
nothing else: parameters, buffers, hooks and attributes stay, copies and pickles know the class by its name, and
`isinstance` still holds.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Replacement:
    """Marks the classes that `patch` gives to modules; the class to restore is the first base that has no mark."""


class Finding(NamedTuple):
    """A module that an adapter knows. `replacement` is None where it has to stay, `detail` then says why."""

    path: str
    module: nn.Module
    kind: str
    replacement: type[nn.Module] | None
    detail: str


def original(replacement: type) -> type:
    """Return the library's class behind a replacement."""
    return next(base for base in replacement.__mro__ if not issubclass(base, Replacement))


def judge(
    path: str,
    module: nn.Module,
    replacement: type[nn.Module],
    kind: str,
    form: str,
    reason: str | None = None,
) -> Finding:
    """Return the finding for a module of the replacement's original class, to be left where there is a reason."""
    reason = _unknown(module, replacement) or reason
    return Finding(path, module, kind, None if reason else replacement, reason or form)


def _unknown(module: nn.Module, replacement: type[nn.Module]) -> str | None:
    """Return why a module may compute something else than the class that its replacement was written for."""
    if isinstance(module, Replacement):
        return None
    known, given = original(replacement), type(module)
    if given is not known:
        return f"it is a {given.__module__}.{given.__qualname__}, which may compute something else"
    if "forward" in vars(module):
        return "forward was replaced on the instance (hooks of accelerate?); patch before that"
    arguments, expected = (list(inspect.signature(c.forward).parameters) for c in (known, replacement))
    if arguments != expected:
        return (
            f"this version of {known.__module__.split('.')[0]} calls it with ({', '.join(arguments)}) instead of"
            f" ({', '.join(expected)})"
        )
    return None


def dropout_obstacle(module: nn.Module) -> str | None:
    """Return why a timm module's `attn_drop` cannot be taken over, None where it can."""
    found = getattr(module, "attn_drop", None)
    return None if type(found) is nn.Dropout else f"attn_drop is a {type(found).__name__}, not torch.nn.Dropout"


def dropout_p(module: Any) -> float:
    """Return the probability with which a timm module drops entries of the attention matrix now."""
    return float(module.attn_drop.p) if module.training else 0.0


def project_qkv(module: Any, x: Tensor) -> Tensor:
    """Return query, key and value side by side for the timm modules that keep the bias of their `qkv` apart."""
    biases = None
    if module.q_bias is not None:
        biases = torch.cat((module.q_bias, module.k_bias, module.v_bias))
        if not module.qkv_bias_separate:
            return F.linear(x, module.qkv.weight, biases)
    projected: Tensor = module.qkv(x)  # called where it can be, for hooks and low-rank adapters on it
    return projected if biases is None else projected + biases


def readers(model: nn.Module, parent: Any, name: str) -> dict[nn.Module, list[nn.Module | None]]:
    """Return the attention of every block that reads a bias kept by a timm `parent` under the attribute `name`."""
    found = {}
    for module in model.modules():
        known = getattr(type(module), "forward_features", None) is parent.forward_features
        bias = getattr(module, name, None) if known else None
        if bias is not None:
            found[bias] = [getattr(block, "attn", None) for block in module.blocks]  # type: ignore[union-attr]
    return found


def sharing_obstacle(layers: list[nn.Module | None], findings: Mapping[nn.Module | None, Finding]) -> str | None:
    """Return why a bias that `layers` share has to stay dense, None where all of them take a table."""
    taken = all(layer in findings and findings[layer].replacement is not None for layer in layers)
    return None if taken else "a layer that reads it is left; the others take it as it is"
