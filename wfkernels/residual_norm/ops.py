"""The library ops wfkernels::residual_norm and wfkernels::residual_norm_backward: schemas, fakes, gradient.

Nothing is checked here: `api.residual_norm` is the door. All that is returned is contiguous; mean and rstd are float32,
float64 where an input is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wfkernels.dispatch import Implementation, always, choose, register
from wfkernels.judge import Contract, named
from wfkernels.precision import accumulator
from wfkernels.residual_norm import cpp, reference, triton_launch

register(
    "residual_norm",
    Implementation("triton", triton_launch.forward, triton_launch.why_not),
    Implementation("cpp", cpp.forward, cpp.why_not),
    Implementation("reference", reference.forward, always),
    contract=Contract(named("h", "y", "mean", "rstd")),
)
register(
    "residual_norm_backward",
    Implementation("triton", triton_launch.backward, triton_launch.why_not_backward),
    Implementation("cpp", cpp.backward, cpp.why_not_backward),
    Implementation("reference", reference.backward, always),
    contract=Contract(named("dx", "dresidual", "dweight", "dbias"), gradient=True),
)


@torch.library.custom_op(
    "wfkernels::residual_norm",
    mutates_args=(),
    schema="(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps, float dropout_p, Tensor? seed, int site,"
    " str impl) -> (Tensor, Tensor, Tensor, Tensor)",
)
def residual_norm(
    x: Tensor,  # [rows, d]
    residual: Tensor,  # [rows, d]
    weight: Tensor,  # [d]
    bias: Tensor,  # [d]
    eps: float,
    dropout_p: float,
    seed: Tensor | None,
    site: int,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # h [rows, d], y [rows, d], mean [rows], rstd [rows]
    args = (x, residual, weight, bias, eps, dropout_p, seed, site)
    result: tuple[Tensor, Tensor, Tensor, Tensor] = choose("residual_norm", impl, *args).run(*args)
    return result


@residual_norm.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    statistics = x.new_empty(x.shape[0], dtype=accumulator(x, weight))
    return x.new_empty(x.shape), x.new_empty(x.shape), statistics, torch.empty_like(statistics)


@torch.library.custom_op(
    "wfkernels::residual_norm_backward",
    mutates_args=(),
    schema="(Tensor? grad_h, Tensor? grad_y, Tensor h, Tensor mean, Tensor rstd, Tensor weight, float dropout_p,"
    " Tensor? seed, int site, str impl) -> (Tensor, Tensor, Tensor, Tensor)",
)
def residual_norm_backward(
    grad_h: Tensor | None,  # [rows, d]
    grad_y: Tensor | None,  # [rows, d]
    h: Tensor,  # [rows, d]
    mean: Tensor,  # [rows]
    rstd: Tensor,  # [rows]
    weight: Tensor,  # [d]
    dropout_p: float,
    seed: Tensor | None,
    site: int,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # grads of x, residual [rows, d], weight, bias [d]
    args = (grad_h, grad_y, h, mean, rstd, weight, dropout_p, seed, site)
    result: tuple[Tensor, Tensor, Tensor, Tensor] = choose("residual_norm_backward", impl, *args).run(*args)
    return result


@residual_norm_backward.register_fake
def _(grad_h: Any, grad_y: Any, h: Tensor, mean: Any, rstd: Any, weight: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return h.new_empty(h.shape), h.new_empty(h.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, weight, _, _, ctx.dropout_p, seed, ctx.site, ctx.impl = inputs
    h, _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(h, mean, rstd, weight, seed)


def _backward(ctx: Any, grad_h: Tensor | None, grad_y: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_h is None and grad_y is None:
        return (None,) * 9
    h, mean, rstd, weight, seed = ctx.saved_tensors
    grads = residual_norm_backward(grad_h, grad_y, h, mean, rstd, weight, ctx.dropout_p, seed, ctx.site, ctx.impl)
    return (*grads, None, None, None, None, None)


residual_norm.register_autograd(_backward, setup_context=_setup_context)
