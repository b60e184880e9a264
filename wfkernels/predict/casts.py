"""Parameters in the dtype of the computation, all cast at once: launches do not grow with the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors in a dtype, differentiably; those that have it already as they are."""
    if torch.compiler.is_compiling():  # a compiler puts its casts together itself
        return {name: t.to(dtype) for name, t in tensors.items()}
    names = [name for name, t in tensors.items() if t.dtype != dtype]
    found = _Cast.apply(dtype, *(tensors[name] for name in names)) if names else ()
    return {**tensors, **dict(zip(names, found, strict=True))}


def _copied(tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    copies = [torch.empty_like(t, dtype=dtype) for t, dtype in zip(tensors, dtypes, strict=True)]
    torch._foreach_copy_(copies, list(tensors))
    return copies


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtypes = [t.dtype for t in tensors]
        return tuple(_copied(tensors, [dtype] * len(tensors)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = list(grads)
        given = [(i, g) for i, g in enumerate(grads) if g is not None]
        copies = _copied([g for _, g in given], [ctx.dtypes[i] for i, _ in given])
        for (i, _), copy in zip(given, copies, strict=True):
            found[i] = copy
        return (None, *found)
