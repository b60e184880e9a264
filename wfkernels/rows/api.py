"""The public pack and unpack: documentation and validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from wfkernels import check
from wfkernels.layout import RowLayout
from wfkernels.rows import ops


def pack(
    teachers: Sequence[Sequence[Tensor]],  # teachers[t][i] is parameter i of teacher t
    layout: RowLayout,
    *,
    dtype: torch.dtype | None = None,
    impl: str = "auto",
) -> Tensor:  # [len(teachers) * layout.row_numel]
    """Write the rows of all teachers into one layer-major buffer, the input of `wfkernels.predict`.

    Layer l is a block [teachers * n_l, stride_l] (see `RowLayout`), ordered (teacher, row), its padding zero. Several
    groups of teachers go in at once: list the teachers of group 0, then those of group 1, ...; how many each group has
    is said to `layout.tokens`. The tensors are read where they lie and the buffer is written once; the round trip is
    bitwise exact when the dtype is kept.

    Args:
        teachers: for every teacher its tensors in the order of `layout.parameters`, with the shapes given there. Any
            real float dtypes, mixed at will, and any strides; all on one device.
        dtype: of the buffer; None takes the one to which all the tensors' dtypes promote (8-bit ones do not promote).
        impl: "auto" or the name of one implementation, which then runs or raises ImplementationError.

    Gradients: exact for every tensor that requires grad, in the tensor's own dtype. torch.autocast changes nothing.

    Raises:
        TypeError: an entry is not a dense tensor of a real float dtype, or dtype is not one. ValueError: there is no
        teacher or nothing to pack, a count or shape does not fit the layout, or devices differ. Each names the first
        offending teacher and parameter.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in check.STORED):
        got = dtype if isinstance(dtype, torch.dtype) else type(dtype).__name__
        raise TypeError(f"pack: dtype: expected a real floating-point dtype or None, got {got}")
    check.text("pack", "impl", impl)
    check.row_layout("pack", layout)
    if not isinstance(teachers, (list, tuple)):
        raise TypeError(
            f"pack: teachers: expected a list or tuple, one entry per teacher, got {type(teachers).__name__}"
        )
    if not teachers:
        raise ValueError("pack: teachers: expected at least one teacher, got none")
    if not layout.parameters:
        raise ValueError("pack: layout: expected at least one parameter, got an empty layout")
    for index, teacher in enumerate(teachers):
        _check_teacher(index, teacher, layout)
    tensors = [tensor for teacher in teachers for tensor in teacher]
    _check_device(tensors, layout)
    if dtype is None:
        dtype = _promoted(tensors)
    parameters = [len(layer.parameters) for layer in layout.layers]
    widths = [p.width for p in layout.parameters]
    buffer: Tensor = ops.rows_pack(tensors, list(layout.rows), parameters, widths, dtype, impl)
    return buffer


def unpack(
    buffer: Tensor,  # [..., layout.numel]
    layout: RowLayout,
) -> dict[str, Tensor]:  # name: [..., *shape]
    """Return a student buffer's parameters by name, as views that `torch.func.functional_call` takes without a copy.

    Tied names share one view. The gradient of all the views is written once, by one concatenation.

    Args:
        buffer: [layout.numel] for one student. Leading dimensions stay in front of every parameter: with
            [groups, layout.numel] the result is what `torch.vmap` over `functional_call` expects.
        layout: the parameter-major order of the buffer (see `RowLayout.sizes`).

    Raises:
        TypeError: buffer is not a floating-point tensor. ValueError: its last dimension is not layout.numel.
    """
    check.row_layout("unpack", layout)
    check.stored("unpack", buffer=buffer)
    if buffer.ndim == 0 or buffer.shape[-1] != layout.numel:
        raise ValueError(
            f"unpack: buffer: expected shape [..., {layout.numel}] for this layout, got {list(buffer.shape)}"
        )
    # The padding is split off as pieces of its own: a slice of a piece would cost the backward a zero-filled buffer.
    filled = [layer.rows * p.width for layer in layout.layers for p in layer.parameters]
    sizes = [part for used, size in zip(filled, layout.sizes, strict=True) for part in (used, size - used)]
    pieces = buffer.split(sizes, dim=-1)[::2]
    lead = buffer.shape[:-1]
    views = {p.name: piece.view([*lead, *p.shape]) for p, piece in zip(layout.parameters, pieces, strict=True)}
    return views | {name: views[holder] for name, holder in layout.tied}


def pack_student(state: Mapping[str, Tensor], layout: RowLayout) -> Tensor:  # [layout.numel]
    """Return the student buffer that holds `state`, a copy: the inverse of `unpack`, for tests and fixed students.

    Plain PyTorch, hence differentiable; dtypes promote. Raises ValueError for a parameter that `state` lacks or has in
    another shape, TypeError for one that is not floating point.
    """
    check.row_layout("pack_student", layout)
    if not isinstance(state, Mapping):
        raise TypeError(f"pack_student: state: expected a mapping from names to tensors, got {type(state).__name__}")
    pieces = []
    for parameter, size in zip(layout.parameters, layout.sizes, strict=True):
        if parameter.name not in state:
            raise ValueError(f"pack_student: state: expected an entry for {parameter.name}, got none")
        tensor = state[parameter.name]
        check.floating("pack_student", **{parameter.name: tensor})
        check.shape("pack_student", parameter.name, tensor, parameter.shape)
        pieces += [tensor.reshape(-1), tensor.new_zeros(size - tensor.numel())]
    return torch.cat(pieces)


def _promoted(tensors: Sequence[Tensor]) -> torch.dtype:
    dtypes = list(dict.fromkeys(t.dtype for t in tensors))
    small = next((dtype for dtype in dtypes if dtype in check.FLOAT8), None)
    if small is not None and len(dtypes) > 1:
        names = ", ".join(map(str, dtypes))
        raise ValueError(f"pack: dtype: expected one, because {small} promotes to no other dtype, got None for {names}")
    return reduce(torch.promote_types, dtypes)


def _check_teacher(index: int, teacher: Sequence[Tensor], layout: RowLayout) -> None:
    if not isinstance(teacher, (list, tuple)):
        raise TypeError(
            f"pack: teachers[{index}]: expected a list or tuple of tensors in the order of layout.parameters, got"
            f" {type(teacher).__name__}"
        )
    if len(teacher) != len(layout.parameters):
        raise ValueError(
            f"pack: teachers[{index}]: expected {len(layout.parameters)} tensors, one per parameter of the layout, got"
            f" {len(teacher)}"
        )
    for tensor, parameter in zip(teacher, layout.parameters, strict=True):
        label = f"teachers[{index}] {parameter.name}"
        check.stored("pack", **{label: tensor})
        check.shape("pack", label, tensor, parameter.shape)


def _check_device(tensors: Sequence[Tensor], layout: RowLayout) -> None:
    for index, tensor in enumerate(tensors):
        if tensor.device != tensors[0].device:
            teacher, parameter = divmod(index, len(layout.parameters))
            raise ValueError(
                f"pack: teachers[{teacher}] {layout.parameters[parameter].name}: expected a tensor on"
                f" {tensors[0].device} like the first, got one on {tensor.device}; move it with .to()"
            )
