"""The public projection: documentation and validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from wfkernels import autocast, check
from wfkernels.layout import TokenLayout
from wfkernels.projection import ops
from wfkernels.projection.reference import OUTPUTS, READS

# What every kind of output needs beside the tokens.
NEEDS = {
    "plain": (),
    "anchor": ("rows",),
    "mean": ("rows",),
    "prior": ("rows", "prior", "blend"),
    "gated": ("rows", "base", "gate_weight", "gate_bias"),
}


def projection(
    tokens: Tensor,  # [tokens read, d]
    weights: Sequence[Tensor],  # one [d, r] per projection group
    biases: Sequence[Tensor],  # one [r] per projection group
    strength: Tensor,  # [layers]
    shift: Tensor,  # [column_numel]
    scale: Tensor,  # [column_numel]
    *,
    layout: TokenLayout,
    projections: Sequence[int] | None = None,
    rows: Tensor | None = None,  # [sum(T) * row_numel]
    base: Tensor | None = None,  # [row_numel]
    prior: Tensor | None = None,  # [row_numel]
    blend: Tensor | None = None,  # [layers]
    gate_weight: Tensor | None = None,  # [projection groups, d]
    gate_bias: Tensor | None = None,  # [projection groups]
    read: str = "anchor",
    output: str = "plain",
    impl: str = "auto",
) -> Tensor:
    """Turn tokens back into weights: one student buffer [groups, numel] per group of teachers, for `unpack`.

    A layer's rows are scale_l * strength_l * (z @ weights[g] + biases[g]), where z is the anchor teacher's token of a
    row or the mean of the row's T tokens, added to what the output builds on:

    * "plain": shift_l + base (the paper, arXiv 2210.01973, section 3.3);
    * "anchor": the anchor teacher's rows; "mean": the mean of the teachers' rows;
    * "prior": blend_l * mean + (1 - blend_l) * (scale_l * prior + shift_l + base), a learned student that is pulled
      towards the mean;
    * "gated": base + sum_t w_t (row_t - base) with w_t = 1/T + h_t . gate_weight[g] + gate_bias[g] for every row and
      teacher, h_t being the teacher's token of the row.

    This is `value * scale_l + shift_l + base` for a value in the domain of `embedding`'s normalised rows, a correction
    added to teachers there; written out, the normalisation of the teachers cancels. So a correction of 0 gives the
    anchor to the bit, and shift, scale and base have gradients only where they count.

    Args:
        tokens: the tokens read, in sequence order without cross tokens: the anchor's n_l rows of each sequence for
            read="anchor" (the first teacher), all T * n_l of them for read="mean"; "gated" reads "mean".
        weights, biases, gate_weight, gate_bias: in the dtype of the tokens; torch.autocast casts them all.
        strength: one scalar per layer. The result has its dtype; sums are float32 (float64 where tokens or strength
            are).
        rows, base, shift, scale: as for `embedding`. prior: a rows buffer of one network, in the normalised domain.
            Those that the output does not need take no part.
        layout: `RowLayout.tokens(teachers, cross)`. projections: index into `weights` per layer.
        impl: "auto" or the name of one implementation.

    Raises:
        TypeError: an argument has the wrong type. ValueError: a shape does not fit the layout, a tensor that the output
        needs is missing, devices or dtypes differ. ImplementationError: `impl` names one that cannot run this call.
    """
    op = "projection"
    check.token_layout(op, layout)
    check.sequence(op, "weights", weights)
    check.sequence(op, "biases", biases)
    check.one_of(op, "read", read, READS)
    check.one_of(op, "output", output, OUTPUTS)
    check.text(op, "impl", impl)
    optional = {
        "rows": rows,
        "base": base,
        "prior": prior,
        "blend": blend,
        "gate_weight": gate_weight,
        "gate_bias": gate_bias,
    }
    needed(op, optional, output)
    suits(op, "read", read, output)
    lists = {
        **{f"weights[{i}]": w for i, w in enumerate(weights)},
        **{f"biases[{i}]": b for i, b in enumerate(biases)},
    }
    named = {"tokens": tokens, **lists, "strength": strength, "shift": shift, "scale": scale}
    named |= {name: tensor for name, tensor in optional.items() if tensor is not None}
    for name, tensor in named.items():
        (check.stored if name in ("rows", "base") else check.floating)(op, **{name: tensor})
    check.same_device(op, **named)
    check.same_dtype(op, tokens=tokens, **lists, gate_weight=gate_weight, gate_bias=gate_bias)

    student, groups, layers = layout.layout, len(weights), len(layout.layout.layers)
    copies = sum(layout.teachers) if read == "mean" else layout.groups
    check.shape(op, "tokens", tokens, (copies * sum(student.rows), "d"))
    d = tokens.shape[1]
    if len(biases) != groups:
        raise ValueError(f"{op}: biases: expected {groups} tensors like weights, got {len(biases)}")
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        check.shape(op, f"weights[{i}]", w, (d, "r"))
        check.shape(op, f"biases[{i}]", b, (w.shape[1],))
    expected: dict[str, tuple[int | str, ...]] = {
        "strength": (layers,),
        "shift": (student.column_numel,),
        "scale": (student.column_numel,),
        "rows": (sum(layout.teachers) * student.row_numel,),
        "base": (student.row_numel,),
        "prior": (student.row_numel,),
        "blend": (layers,),
        "gate_weight": (groups, d),
        "gate_bias": (groups,),
    }
    for name, size in expected.items():
        if name in named:
            check.shape(op, name, named[name], size)
    projections = check.projections(op, "projections", projections, [w.shape[1] for w in weights], student.widths)

    students: Tensor = ops.projection(
        autocast.cast(tokens),
        [autocast.cast(w) for w in weights],
        [autocast.cast(b) for b in biases],
        strength,
        shift,
        scale,
        rows,
        base,
        prior,
        blend,
        autocast.cast_optional(gate_weight),
        autocast.cast_optional(gate_bias),
        student.rows,
        [p.width for p in student.parameters],
        [len(layer.parameters) for layer in student.layers],
        projections,
        layout.teachers,
        read,
        output,
        impl,
    )
    return students


def needed(op: str, given: Mapping[str, Tensor | None], output: str, prefix: str = "") -> None:
    """Raise ValueError unless `given` holds all that the output needs."""
    for name in NEEDS[output]:
        if given[name] is None:
            raise ValueError(f"{op}: {prefix}{name}: expected a tensor, because output={output!r} needs it, got None")


def suits(op: str, name: str, read: str, output: str) -> None:
    """Raise ValueError unless the tokens that are read are enough for the output."""
    if output == "gated" and read != "mean":
        raise ValueError(f"{op}: {name}: expected 'mean', because output='gated' reads all tokens, got {read!r}")
