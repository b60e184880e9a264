"""The public embedding: documentation and validation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from wfkernels import autocast, check
from wfkernels.activation import ACTIVATIONS
from wfkernels.embedding import ops
from wfkernels.layout import TokenLayout


def embedding(
    rows: Tensor,  # [sum(T) * row_numel]
    weights: Sequence[Tensor],  # one [r, d] per projection group
    biases: Tensor,  # [projection groups, d]
    shift: Tensor,  # [column_numel]
    scale: Tensor,  # [column_numel]
    position: Tensor,  # [positions, d]
    gamma: Tensor,  # [d]
    beta: Tensor,  # [d]
    *,
    layout: TokenLayout,
    projections: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    base: Tensor | None = None,  # [row_numel]
    teacher: Tensor | None = None,  # [teacher ids, d]
    layer: Tensor | None = None,  # [layers, d]
    cross: Tensor | None = None,  # [sequences, c, d]
    activation: str = "none",
    eps: float = 1e-5,
    impl: str = "auto",
) -> Tensor:
    """Turn rows of weights into tokens [layout.total, d] (WeightFormer, arXiv 2210.01973, section 3.1).

    A row x of layer l, neuron j, teacher t becomes
    LN(act(((x - base - shift_l) / scale_l) @ weights[g] + biases[g]) + position[start_l + j] + teacher[t] + layer[l])
    * gamma + beta, with g = projections[l]. Cross token i of sequence s becomes
    LN(cross[s, i] + teacher[0] + layer[l]) * gamma + beta.

    Args:
        rows: the buffer that `pack` writes, in any float dtype. weights, biases, gamma, beta, codes: the parameters, in
            one dtype, which is also the result's; under torch.autocast they are cast, and rows are not, because the
            difference of close networks would be lost. Sums and statistics are float32 (float64 for float64).
        shift, scale: column buffers, usually the teacher pool's mean and standard deviation.
        layout: `RowLayout.tokens(teachers, cross)`.
        projections: for every layer the index into `weights`; each layer its own by default. Layers of equal width may
            share one.
        positions: for every layer the first row of `position` it uses; 0 for all by default, so that neuron j has the
            same code in every layer.
        base: rows of one network (a common ancestor), subtracted first: tokens are then task vectors.
        teacher: code per teacher within its group, row 0 for cross tokens. layer: code per layer.
        cross: initial cross tokens, required exactly when layout.cross > 0.
        activation: "none", "relu" or "gelu".
        impl: "auto" or the name of one implementation.

    Raises:
        TypeError: an argument has the wrong type. ValueError: a shape does not fit the layout, devices or parameter
        dtypes differ, or an index is out of range. ImplementationError: `impl` names one that cannot run this call.
    """
    op = "embedding"
    check.token_layout(op, layout)
    check.sequence(op, "weights", weights)
    parameters: dict[str, Tensor] = {
        **{f"weights[{i}]": w for i, w in enumerate(weights)},
        "biases": biases,
        "position": position,
        "gamma": gamma,
        "beta": beta,
    }
    optional = {"teacher": teacher, "layer": layer, "cross": cross, "base": base}
    codes = {name: t for name, t in optional.items() if t is not None}
    buffers = {"rows": rows, "shift": shift, "scale": scale}
    for name, tensor in {**buffers, **parameters, **codes}.items():
        (check.stored if name in ("rows", "base") else check.floating)(op, **{name: tensor})
    check.same_device(op, **buffers, **parameters, **codes)
    check.same_dtype(op, **parameters, teacher=teacher, layer=layer, cross=cross)
    check.one_of(op, "activation", activation, ACTIVATIONS)
    check.eps(op, "eps", eps)
    check.text(op, "impl", impl)

    student, teachers = layout.layout, layout.teachers
    check.shape(op, "gamma", gamma, ("d",))
    d = gamma.shape[0]
    if d == 0:
        raise ValueError(f"{op}: gamma: expected shape [d] with d at least 1, got [0]")
    for i, w in enumerate(weights):
        check.shape(op, f"weights[{i}]", w, ("r", d))
    expected: dict[str, tuple[int | str, ...]] = {
        "rows": (sum(teachers) * student.row_numel,),
        "shift": (student.column_numel,),
        "scale": (student.column_numel,),
        "biases": (len(weights), d),
        "position": ("positions", d),
        "beta": (d,),
        "base": (student.row_numel,),
        "teacher": ("teacher ids", d),
        "layer": (len(student.layers), d),
        "cross": (len(student.layers) * layout.groups, layout.cross, d),
    }
    for name, tensor in {**buffers, **parameters, **codes}.items():
        if name in expected:
            check.shape(op, name, tensor, expected[name])
    projections = check.projections(op, "projections", projections, [w.shape[0] for w in weights], student.widths)
    positions = check.positions(op, "positions", positions, student.rows, position)
    if teacher is not None:
        check.teacher_codes(op, "teacher", teacher, teachers)
    check.cross_tokens(op, "cross", cross, layout)

    tokens: Tensor = ops.embedding(
        rows,
        [autocast.cast(w) for w in weights],
        autocast.cast(biases),
        base,
        shift,
        scale,
        autocast.cast(position),
        autocast.cast_optional(teacher),
        autocast.cast_optional(layer),
        autocast.cast_optional(cross),
        autocast.cast(gamma),
        autocast.cast(beta),
        student.rows,
        student.widths,
        projections,
        positions,
        teachers,
        activation,
        eps,
        impl,
    )
    return tokens
