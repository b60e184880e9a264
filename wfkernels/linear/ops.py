"""The library op wfkernels::linear: schema, fake, gradient.

It has no door of its own: predict's blocks call it, with tensors of one dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wfkernels.dispatch import Implementation, always, choose, register
from wfkernels.judge import Contract, named
from wfkernels.linear import cpp, reference

register(
    "linear",
    Implementation("cpp", cpp.forward, cpp.why_not),
    Implementation("reference", reference.forward, always),
    contract=Contract(named("y")),
)


@torch.library.custom_op(
    "wfkernels::linear",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, str activation, str impl) -> Tensor",
)
def linear(
    x: Tensor,  # [rows, inputs]
    weight: Tensor,  # [outputs, inputs]
    bias: Tensor | None,  # [outputs]
    activation: str,
    impl: str,
) -> Tensor:  # [rows, outputs]
    args = (x, weight, bias, activation)
    result: Tensor = choose("linear", impl, *args).run(*args)
    return result


@linear.register_fake
def _(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.activation, _ = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = reference.backward(grad, x, weight, ctx.activation)
    return grad_x, grad_weight, grad_bias if ctx.has_bias else None, None, None


linear.register_autograd(_backward, setup_context=_setup_context)
