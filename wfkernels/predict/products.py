"""The products of the blocks: compiled for float32 and float64 on the CPU, else the library's own."""

from __future__ import annotations

from torch import Tensor

from wfkernels import gpu
from wfkernels.linear import cpp, ops, reference


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, impl: str, activation: str = "none") -> Tensor:
    """Return act(x) W^T + b: x [rows, inputs], weight [outputs, inputs], bias [outputs]."""
    # Elsewhere no op stands in between: it would only take time. Tensors without memory are for plans, and Triton's
    # interpreter stands for a GPU.
    if x.device.type in ("cpu", "meta") and x.dtype in cpp.DTYPES and not gpu.interpreted():
        found: Tensor = ops.linear(x, weight, bias, activation, impl)
        return found
    return reference.forward(x, weight, bias, activation)


def times(grad: Tensor, weight: Tensor, impl: str) -> Tensor:
    """Return grad W, the gradient of x in linear(x, weight): grad [rows, outputs], weight [outputs, inputs]."""
    return linear(grad, weight.T, None, impl)
