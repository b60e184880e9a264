"""Where the numbers of a fit ended: the layer of the student, or the part of the WeightFormer, that is not finite.

Nothing here runs while all goes well; `watch` alone is asked beforehand, to keep what `of_gradient` looks at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from weightformer.model import StudentModel, WeightFormer
from weightformer.state import State

_NAMED = 3  # how many layers that share a parameter are listed
# Parts of a WeightFormer by the first word of a parameter's name; layers of equal kind and width may share _OF_GROUPS.
_OF_GROUPS = {
    "embeddings": "the embedding of the rows",
    "outputs": "the output projection",
    "gate_weight": "the gate of the output",
    "gate_bias": "the gate of the output",
}
_OF_LAYERS = {"layer": "the code", "strength": "the strength of the output", "blend": "the blend with the prior"}
_OF_ALL = {
    "position": "the codes of the neurons",
    "teacher": "the codes of the teachers",
    "cross": "the cross tokens",
    "norm": "the norm before the encoder",
    "final_norm": "the norm behind the encoder",
    "gate": "the gate of the attention",
}


def watch(predicted: Sequence[State]) -> None:
    """Let the gradients of predicted weights be there after the backward pass."""
    for weights in predicted:
        for tensor in weights.values():
            if tensor.requires_grad:
                tensor.retain_grad()


@torch.no_grad()
def of_loss(
    model: StudentModel,
    student: nn.Module,
    predicted: Sequence[State],
    images: Sequence[Tensor],
    targets: Sequence[Tensor | None],
) -> str:
    """Say why the loss of some students is not finite; images, targets: one for each of them."""
    for weights in predicted:
        for layer in model.layout.layers:
            for parameter in layer.parameters:
                if not weights[parameter.name].isfinite().all():
                    full = _full(layer.name, parameter.name)
                    return f"the weights predicted for the student's layer {full} are not finite"
    for weights, seen in zip(predicted, images, strict=True):
        name = _first_layer(student, weights, seen)
        if name is not None:
            given = "; the images that it is given are not, either" if not seen.isfinite().all() else ""
            return f"all predicted weights are finite, the output of the student's layer {name} is not{given}"
    if any(soft is not None and not soft.isfinite().all() for soft in targets):
        return "all layers of the student are finite, the soft targets of its images are not"
    return "all layers of the student are finite, the loss made of its scores or what is added (sparsity, shift) is not"


def of_gradient(model: StudentModel, predicted: Sequence[State]) -> str:
    """Say which gradient is not finite after a backward pass through students that were watched."""
    # From the last layer on: that is the way that the gradient comes.
    for layer in reversed(model.layout.layers):
        for parameter in reversed(layer.parameters):
            if any(_spoiled(weights[parameter.name].grad) for weights in predicted if _kept(weights[parameter.name])):
                return f"the gradient at the student's layer {_full(layer.name, parameter.name)} is not finite"
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name, gradient in gradients.items():
        if _spoiled(gradient):
            return f"the gradient of {in_words(model, name, gradient)} is not finite"
    largest = max(gradients, key=lambda name: float(gradients[name].abs().max()))
    return (
        "the gradients are too large together, though each is finite; the largest is that of"
        f" {in_words(model, largest, gradients[largest])}"
    )


def in_words(model: StudentModel, name: str, gradient: Tensor) -> str:
    """Return what a parameter of the model is; where it is of several layers, of the first whose gradient is bad."""
    own = f"the model's {name}"
    if not isinstance(model, WeightFormer):
        return own
    first, *rest = name.split(".")
    layers = [layer.name for layer in model.layout.layers]
    if first in _OF_GROUPS:
        group = int(rest[0]) if rest else _worst(gradient)
        sharing = [layers[i] for i, other in enumerate(model.projections) if other == group]
        return f"{_OF_GROUPS[first]} of the student's {_listed(sharing)} ({own})"
    if first in _OF_LAYERS:
        return f"{_OF_LAYERS[first]} of the student's {_listed([layers[_worst(gradient)]])} ({own})"
    if first == "position" and model.config.positions == "layer":
        worst = _worst(gradient)
        layer = max(i for i, start in enumerate(model.positions) if start <= worst)
        return f"{_OF_ALL[first]} of the student's {_listed([layers[layer]])} ({own})"
    if first == "prior":
        blocks = model.layout.row_blocks(gradient, 1)
        worst = _worst(torch.stack([block.abs().max() for block in blocks]))
        return f"the learned prior of the student's {_listed([layers[worst]])} ({own})"
    if first == "blocks":
        return f"block {int(rest[0]) + 1} of the encoder, which all layers share ({own})"
    return f"{_OF_ALL[first]}, which all layers share ({own})"


def _worst(gradient: Tensor) -> int:
    """Return the first index along dim 0 that is not finite, or where all are, that of the largest."""
    rows = gradient.detach().abs().flatten(1).amax(1) if gradient.ndim > 1 else gradient.detach().abs()
    return int(torch.where(rows.isfinite(), rows, torch.inf).argmax())


def _kept(tensor: Tensor) -> bool:
    return tensor.is_leaf or tensor.retains_grad


def _spoiled(gradient: Tensor | None) -> bool:
    return gradient is not None and not bool(gradient.isfinite().all())


def _first_layer(student: nn.Module, weights: Mapping[str, Tensor], images: Tensor) -> str | None:
    """Return the name of the first module whose output is not finite, None where all are."""
    found: list[str] = []

    def told(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def tell(module: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor) and _spoiled(output):
                found.append(name)

        return tell

    handles = [m.register_forward_hook(told(name or type(m).__name__)) for name, m in student.named_modules()]
    try:
        functional_call(student, dict(weights), (images,))
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _full(layer: str, parameter: str) -> str:
    return layer if layer == parameter else f"{layer} ({parameter})"


def _listed(layers: Sequence[str]) -> str:
    more = f" and {len(layers) - _NAMED} more" if len(layers) > _NAMED else ""
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(layers[:_NAMED])}{more}"
