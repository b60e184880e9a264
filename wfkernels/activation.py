"""The pointwise functions that embedding and feed-forward blocks share, with their derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

ACTIVATIONS = ("none", "relu", "gelu")


def activate(x: Tensor, activation: str) -> Tensor:
    """Apply "none", "relu" or "gelu" (exact, by erf) to x of any shape."""
    if activation == "relu":
        return torch.relu(x)
    return torch.nn.functional.gelu(x) if activation == "gelu" else x


def activate_backward(grad: Tensor, x: Tensor, activation: str) -> Tensor:
    """Return grad times the derivative of `activation` at x; the derivative of relu at 0 is 0."""
    if activation == "relu":
        return grad * (x > 0)
    return torch.ops.aten.gelu_backward(grad, x) if activation == "gelu" else grad


def activate_backward_(grad: Tensor, x: Tensor, activation: str) -> Tensor:
    """Return what `activate_backward` does, in the memory of `grad` where that goes."""
    return grad.mul_(x > 0) if activation == "relu" else activate_backward(grad, x, activation)
