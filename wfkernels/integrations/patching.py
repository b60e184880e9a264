"""`patch` and `unpatch`: which adapters look at a model, and the swap of classes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module

from torch import nn

from wfkernels.integrations.adapter import Finding, Replacement, original
from wfkernels.integrations.report import Entry, Report

# Adapter by the module that defines the attention it replaces: a model that holds one has imported that module.
_ADAPTERS = {
    "timm.models.beit": "timm_beit",
    "timm.models.vision_transformer_relpos": "timm_relpos",
    "timm.models.swin_transformer": "timm_swin",
    "timm.models.swin_transformer_v2": "timm_swin",
    "timm.models.maxxvit": "timm_maxxvit",
    "transformers.models.t5.modeling_t5": "transformers_t5",
    "transformers.models.mt5.modeling_mt5": "transformers_mt5",
}


def patch(model: nn.Module) -> Report:
    """Let every attention with a learned relative position bias in `model` compute with `wfkernels.attention`.

    In place. What is replaced is the computation and only where it is exactly the same function: parameters, buffers,
    state dict, hooks, paths, training mode and dropout probabilities stay as they are. Dropout of the attention matrix
    draws other (counter-based) random numbers than the library's. The patched model can be trained, compiled,
    copied and pickled. A module that is patched already is not touched again.

    Args:
        model: any module; its attention modules are found wherever they are. Patch a whole model, not its layers one
            by one: where layers share one bias (T5, vit_srelpos), they change together or not at all.

    Returns:
        What was replaced and what was left, with the reason. A model in which nothing was replaced is no error: check
        `report.replaced` where that matters, and `print(report)`.

    Raises:
        TypeError: model is not a torch.nn.Module.
    """
    _module("patch", model)
    findings = list(_findings(model))
    entries = []
    for path, module, kind, replacement, detail in findings:
        if isinstance(module, Replacement):
            entries.append(Entry(path, kind, "already", "patched by an earlier call"))
        elif replacement is None:
            entries.append(Entry(path, kind, "left", detail))
        else:
            module.__class__ = replacement
            entries.append(Entry(path, kind, "replaced", detail))
    known = {id(finding.module) for finding in findings}
    entries += (Entry(path, kind, "left", "no integration for this class") for path, kind in _others(model, known))
    return Report(tuple(entries))


def unpatch(model: nn.Module) -> Report:
    """Give every module of `model` that `patch` changed its own class back, in place; the inverse of `patch`.

    Returns:
        What was restored. A module whose class was changed once more after `patch` (torch's `fully_shard`,
        parametrizations) is left, and its entry says so: undo that first.

    Raises:
        TypeError: model is not a torch.nn.Module.
    """
    _module("unpatch", model)
    entries = []
    for path, module in model.named_modules():
        if not isinstance(module, Replacement):
            continue
        if type(module).__module__.startswith(f"{__package__}."):
            module.__class__ = original(type(module))
            entries.append(Entry(path, _name(module), "restored", "computes as its library wrote it"))
        else:
            entries.append(Entry(path, _name(module), "left", "its class was changed after patch; undo that first"))
    return Report(tuple(entries))


def _module(function: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model: expected a torch.nn.Module, got {type(model).__name__}")


def _findings(model: nn.Module) -> Iterator[Finding]:
    for adapter in dict.fromkeys(adapter for library, adapter in _ADAPTERS.items() if library in sys.modules):
        yield from import_module(f"{__package__}.{adapter}").find(model)


def _others(model: nn.Module, known: set[int]) -> Iterator[tuple[str, str]]:
    """Yield path and class of the attention modules that no adapter knows, without those that only hold another."""
    attention = {path: module for path, module in model.named_modules() if "Attention" in type(module).__name__}
    for path, module in attention.items():
        inside = any(child in attention.values() for child in module.modules() if child is not module)
        if id(module) not in known and not inside:
            yield path, _name(module)


def _name(module: object) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
