"""The public residual_norm: documentation and validation."""

from __future__ import annotations

from torch import Tensor

from wfkernels import autocast, check
from wfkernels.residual_norm import ops


def residual_norm(
    x: Tensor,  # [..., d]
    residual: Tensor,  # [..., d]
    weight: Tensor,  # [d]
    bias: Tensor,  # [d]
    *,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return (h, y) with h = residual + dropout(x) and y = LayerNorm(h) * weight + bias, both [..., d].

    A post-LN block (Vaswani et al. 2017, arXiv 1706.03762) goes on with y alone; a pre-LN block (arXiv 2002.04745)
    keeps h as its residual stream and feeds y to the next sub-layer, so one op serves both.

    Args:
        x, residual: equal shape [..., d] and dtype, which is also the results'; torch.autocast takes halves to float32.
        weight, bias: [d], in one dtype. Statistics are float32 (float64 where an argument is).
        eps: added to the variance.
        dropout_p: probability in [0, 1) of zeroing an entry of x; the rest is scaled by 1 / (1 - dropout_p). Callers
            pass 0 outside training.
        seed: int64 tensor of one element, the key of the counter-based mask; drawn from torch's generator when None.
            The same seed gives the same mask in every implementation.
        impl: "auto" or the name of one implementation, which then runs or raises ImplementationError.

    Raises:
        TypeError: an argument has the wrong type. ValueError: shapes, dtypes or devices differ, or dropout_p is outside
        [0, 1). ImplementationError: `impl` names one that cannot run this call.
    """
    op = "residual_norm"
    check.floating(op, x=x, residual=residual, weight=weight, bias=bias)
    check.same_device(op, x=x, residual=residual, weight=weight, bias=bias)
    check.same_dtype(op, x=x, residual=residual)
    check.same_dtype(op, weight=weight, bias=bias)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{op}: x: expected shape [..., d] with d at least 1, got {list(x.shape)}")
    width = x.shape[-1]
    check.shape(op, "residual", residual, tuple(x.shape))
    check.shape(op, "weight", weight, (width,))
    check.shape(op, "bias", bias, (width,))
    check.eps(op, "eps", eps)
    check.text(op, "impl", impl)
    seed = check.dropout(op, dropout_p, seed, x.device)
    x, residual, weight, bias = (autocast.widen(t) for t in (x, residual, weight, bias))
    h, y, _, _ = ops.residual_norm(
        x.reshape(-1, width), residual.reshape(-1, width), weight, bias, eps, dropout_p, seed, 0, impl
    )
    return h.view(x.shape), y.view(x.shape)
