"""linear in plain PyTorch: the definition of correct."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from wfkernels.activation import activate, activate_backward


def forward(
    x: Tensor,  # [rows, inputs]
    weight: Tensor,  # [outputs, inputs]
    bias: Tensor | None,  # [outputs]
    activation: str,
) -> Tensor:  # [rows, outputs]
    """Return act(x) W^T, plus b where there is one."""
    return functional.linear(activate(x, activation), weight, bias)


def backward(grad: Tensor, x: Tensor, weight: Tensor, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias."""
    grad_x = activate_backward(grad @ weight, x, activation)
    return grad_x, grad.T @ activate(x, activation), grad.sum(0)
