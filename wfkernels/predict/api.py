"""The public predict: documentation and validation."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from wfkernels import autocast, check
from wfkernels.layout import TokenLayout
from wfkernels.predict import casts, validate
from wfkernels.predict.function import Predict, forward
from wfkernels.predict.parameters import Parameters, Settings
from wfkernels.predict.plan import Plan, indices

# Statistics, bases and the correction's strength keep their own precision; the last decides the student's. So does a
# bucketed gate, whose few entries cost nothing.
KEPT = ("shift", "scale", "base", "center", "built_on", "prior", "blend", "strength")


def predict(
    rows: Tensor,  # [sum(T) * row_numel]
    parameters: Parameters,
    settings: Settings,
    *,
    layout: TokenLayout,
    gate_lookup: Tensor | None = None,  # [2R + 1]
    seed: Tensor | None = None,
    return_cross: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Predict the weights of one student per group of teachers: [groups, numel], a buffer for `unpack` each.

    The whole WeightFormer (arXiv 2210.01973) in one autograd node: embedding of all rows, encoder blocks over one
    ragged batch with a sequence per layer and group, projection. The last block computes only the tokens that the
    projection reads. With settings.cross_layer="parallel", every block adds to the attention output of the cross tokens
    of a layer (inside their sequence) that of a second attention to the cross tokens of all strictly earlier layers.

    Args:
        rows: the teachers' rows as `pack` writes them. parameters, settings: see Parameters and Settings. Everything is
            computed in the dtype of parameters.gamma, under torch.autocast in its dtype, but for the rows and what is
            measured in them (shift, scale, base, center, built_on, prior, blend, strength), which keep their own, as
            does a bucketed gate. Statistics and sums are float32 (float64 for float64). The result has the dtype of
            parameters.strength.
        layout: `RowLayout.tokens(teachers, cross)`.
        gate_lookup: int tensor [2R + 1]; makes parameters.gate a bucketed table over groups (0 cross, 1 row), same or
            other teacher, and lookup[neuron_i - neuron_j], in which a token's gate to itself is always open.
        seed: int64 tensor of one element for dropout; drawn when None.
        return_cross: also return the last block's cross tokens [groups, c, d], for a layout of one layer; they are the
            `parameters.cross` of the next layer in a recurrent pass.
        impl: "auto" or the name of one implementation, used by every op of the chain.

    Gradients: exact for rows and every parameter; not differentiable twice (a second backward raises RuntimeError).
    settings.recompute="full" keeps per block its input, attention output and log-sum-exp.

    Raises:
        TypeError: an argument has the wrong type. ValueError: a shape, a device or a setting does not fit, or, checked
        only for tensors on the CPU outside torch.compile (anywhere under WFKERNELS_CHECK=1), the gate or its lookup is
        out of range. ImplementationError: `impl` names one that cannot run this call.

    Under torch.compile the numbers of teachers may be symbolic: groups of other teachers compile nothing anew (those of
    one teacher each apart, whose last block computes every token). Another number of groups, layers or blocks is
    another program. torch.export (its default, not strict) traces the chain, and what it exports is differentiable.
    """
    validate.arguments(rows, parameters, settings, layout, gate_lookup, return_cross, impl)
    seed = check.dropout(validate.OP, settings.dropout_p, seed, rows.device, "settings.dropout_p")
    dtype = autocast.dtype(parameters.gamma)
    kept = KEPT if gate_lookup is None else (*KEPT, "gate")
    named = dict(zip(parameters.names(), parameters.flatten(), strict=True))
    cast = casts.cast({name: t for name, t in named.items() if t is not None and name not in kept}, dtype)
    parameters = parameters.unflatten(list({**named, **cast}.values()))
    if parameters.cross is not None:
        cross = parameters.cross.expand(layout.groups, *parameters.cross.shape[-2:])
        parameters = replace(parameters, cross=cross.repeat(len(layout.layout.layers), 1, 1))
    plan = Plan(layout, settings, return_cross, impl)
    given = parameters.flatten()
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (rows, *given)):
        structure = parameters.structure()
        students, crossed = Predict.apply(plan, structure, rows, seed, gate_lookup, *indices(plan, rows), *given)
    else:
        students, crossed, *_ = forward(plan, indices(plan, rows), rows, seed, gate_lookup, parameters, keep=False)
    return (students, crossed) if return_cross else students
