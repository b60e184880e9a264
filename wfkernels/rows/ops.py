"""Library ops of rows: schemas, fakes, gradient, and the compiled implementation.

Packing has no autocast rule: the dtype of the buffer is an argument, and weights must not lose bits on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wfkernels import compiled
from wfkernels.dispatch import Implementation, always, choose, register
from wfkernels.judge import Contract, named
from wfkernels.rows import reference, triton_launch

_CPP_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_INPUTS = "Tensor[] tensors, SymInt[] rows, SymInt[] parameters, SymInt[] widths, ScalarType dtype"

torch.library.define(
    "wfkernels_cpp::rows_pack",
    f"({_INPUTS}) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _empty_rows(
    tensors: Sequence[Tensor],
    rows: Sequence[int],
    parameters: Sequence[int],
    widths: Sequence[int],
    dtype: torch.dtype,
    *_: Any,
) -> Tensor:
    teachers = len(tensors) // len(widths)
    return tensors[0].new_empty(teachers * reference.row_numel(rows, parameters, widths), dtype=dtype)


torch.library.register_fake("wfkernels_cpp::rows_pack", _empty_rows)
torch.library.define(
    "wfkernels_cpp::rows_pack_backward",
    "(Tensor grad, int teachers, int[] rows, int[] parameters, int[] widths, int[] needed) -> Tensor[]",
)


def _cpp(*args: Any) -> Tensor:
    result: Tensor = torch.ops.wfkernels_cpp.rows_pack(*args)
    return result


def _cpp_why_not(tensors: Sequence[Tensor], rows: Any, parameters: Any, widths: Any, dtype: torch.dtype) -> str | None:
    device = tensors[0].device
    if device.type != "cpu":
        return f"it reads CPU tensors and these lie on {device}"
    unsupported = {dtype, *(t.dtype for t in tensors)}.difference(_CPP_DTYPES)
    if unsupported:
        return f"it does not know {', '.join(sorted(map(str, unsupported)))}; cast to float32 first"
    return compiled.why_not(compiled.CPP)


register(
    "rows_pack",
    Implementation("triton", triton_launch.forward, triton_launch.why_not),
    Implementation("cpp", _cpp, _cpp_why_not),
    Implementation("reference", reference.forward, always),
    contract=Contract(named("rows"), exact=True),
)


def _gradient_names(grad: Any, teachers: int, rows: Any, parameters: Any, widths: Sequence[int], *_: Any) -> list[str]:
    return [f"dteachers[{t}][{i}]" for t in range(teachers) for i in range(len(widths))]


def _cpp_backward(
    grad: Tensor,
    teachers: int,
    rows: Sequence[int],
    parameters: Sequence[int],
    widths: Sequence[int],
    needed: Sequence[bool],
) -> list[Tensor]:
    needs = [int(need) for need in needed]
    found: list[Tensor] = torch.ops.wfkernels_cpp.rows_pack_backward(
        grad.contiguous(), teachers, rows, parameters, widths, needs
    )
    return found


def _cpp_why_not_backward(grad: Tensor, *_: Any) -> str | None:
    if grad.device.type != "cpu":
        return f"it reads CPU tensors and these lie on {grad.device}"
    return compiled.why_not(compiled.CPP)


register(
    "rows_pack_backward",
    Implementation("triton", triton_launch.backward, triton_launch.why_not_backward),
    Implementation("cpp", _cpp_backward, _cpp_why_not_backward),
    Implementation("reference", reference.backward, always),
    contract=Contract(_gradient_names, exact=True),
)


@torch.library.custom_op(
    "wfkernels::rows_pack",
    mutates_args=(),
    schema=f"({_INPUTS}, str impl) -> Tensor",
)
def rows_pack(
    tensors: Sequence[Tensor],  # teachers * parameters, teacher by teacher
    rows: Sequence[int],  # [layers]
    parameters: Sequence[int],  # [layers], how many parameters stand side by side in a row
    widths: Sequence[int],  # [parameters]
    dtype: torch.dtype,
    impl: str,
) -> Tensor:  # [teachers * row_numel]
    args = (tensors, rows, parameters, widths, dtype)
    result: Tensor = choose("rows_pack", impl, *args).run(*args)
    return result


rows_pack.register_fake(_empty_rows)


@torch.library.custom_op(
    "wfkernels::rows_pack_backward",
    mutates_args=(),
    schema="(Tensor grad, int teachers, SymInt[] rows, SymInt[] parameters, SymInt[] widths, bool[] needed, str impl)"
    " -> Tensor[]",
)
def rows_pack_backward(
    grad: Tensor,  # [teachers * row_numel]
    teachers: int,
    rows: Sequence[int],  # [layers]
    parameters: Sequence[int],  # [layers]
    widths: Sequence[int],  # [parameters]
    needed: Sequence[bool],  # [teachers * parameters]
    impl: str,
) -> list[Tensor]:  # for every tensor [n, width] in the dtype of grad, or [0] where it is not needed
    args = (grad, teachers, rows, parameters, widths, needed)
    result: list[Tensor] = choose("rows_pack_backward", impl, *args).run(*args)
    return result


@rows_pack_backward.register_fake
def _(
    grad: Tensor,
    teachers: int,
    rows: Sequence[int],
    parameters: Sequence[int],
    widths: Sequence[int],
    needed: Sequence[bool],
    impl: str,
) -> list[Tensor]:
    rows_of = [n for n, count in zip(rows, parameters, strict=True) for _ in range(count)]
    shapes = [(n, width) for n, width in zip(rows_of, widths, strict=True)] * teachers
    return [grad.new_empty(shape if need else 0) for shape, need in zip(shapes, needed, strict=True)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors, ctx.rows, ctx.parameters, ctx.widths, _, ctx.impl = inputs
    ctx.like = [(t.shape, t.dtype) for t in tensors]


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    needed = list(ctx.needs_input_grad[0])
    teachers = len(needed) // len(ctx.widths)
    # The forward's choice says nothing about the gradient's, which has implementations of its own.
    grads = rows_pack_backward(grad, teachers, ctx.rows, ctx.parameters, ctx.widths, needed, "auto")
    found = [
        grad.to(dtype).view(shape) if need else None
        for grad, (shape, dtype), need in zip(grads, ctx.like, needed, strict=True)
    ]
    return found, None, None, None, None, None


rows_pack.register_autograd(_backward, setup_context=_setup_context)
