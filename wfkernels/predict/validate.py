"""What the door of `predict` checks."""

from __future__ import annotations

from torch import Tensor

from wfkernels import check
from wfkernels.activation import ACTIVATIONS
from wfkernels.attention.validate import INTEGERS, readable
from wfkernels.layout import TokenLayout
from wfkernels.predict.parameters import FIELDS, Block, Parameters, Settings
from wfkernels.projection.api import needed, suits
from wfkernels.projection.reference import OUTPUTS, READS

OP = "predict"
CHOICES = {
    "norm": ("pre", "post"),
    "activation": ACTIVATIONS,
    "feed_forward": ACTIVATIONS,
    "cross_layer": ("none", "parallel"),
    "read": READS,
    "output": OUTPUTS,
    "recompute": ("full", "none"),
}
# What an output may need beside the rows.
OPTIONAL = ("base", "prior", "blend", "gate_weight", "gate_bias")
REQUIRED = ("embedding_biases", "shift", "scale", "position", "gamma", "beta", "strength")
LISTS = ("embedding_weights", "projection_weights", "projection_biases", "blocks")
# What may be held in a dtype that nothing is computed with.
STORED = ("rows", "base", "center", "built_on")


def arguments(
    rows: Tensor,
    parameters: Parameters,
    settings: Settings,
    layout: TokenLayout,
    gate_lookup: Tensor | None,
    return_cross: bool,
    impl: str,
) -> None:
    """Raise TypeError or ValueError naming the first argument that does not fit."""
    _types(parameters, settings, layout)
    check.flag(OP, "return_cross", return_cross)
    check.text(OP, "impl", impl)
    if gate_lookup is not None:
        _lookup(gate_lookup)
    named = zip(parameters.names(), parameters.flatten(), strict=True)
    present = {f"parameters.{name}": t for name, t in named if t is not None}
    for name, tensor in {"rows": rows, **present}.items():
        (check.stored if name.removeprefix("parameters.") in STORED else check.floating)(OP, **{name: tensor})
    check.same_device(OP, rows=rows, **present, gate_lookup=gate_lookup)
    for name, choices in CHOICES.items():
        check.one_of(OP, f"settings.{name}", getattr(settings, name), choices)
    check.integer(OP, "settings.heads", settings.heads)
    check.eps(OP, "settings.eps", settings.eps)
    needed(OP, {"rows": rows, **{name: getattr(parameters, name) for name in OPTIONAL}}, settings.output, "parameters.")
    suits(OP, "settings.read", settings.read, settings.output)
    d = _sizes(rows, parameters, layout)
    if settings.heads < 1 or d % settings.heads:
        raise ValueError(f"{OP}: settings.heads: expected a divisor of d={d}, got {settings.heads}")
    student = layout.layout
    widths = [w.shape[0] for w in parameters.embedding_weights]
    check.projections(OP, "settings.projections", settings.projections, widths, student.widths)
    check.positions(OP, "settings.positions", settings.positions, student.rows, parameters.position)
    _norm(parameters, settings)
    _cross(parameters, layout, d, return_cross)
    _gate(parameters.gate, gate_lookup, settings.heads, layout)


def _types(parameters: Parameters, settings: Settings, layout: TokenLayout) -> None:
    for name, given, wanted in (("parameters", parameters, Parameters), ("settings", settings, Settings)):
        if not isinstance(given, wanted):
            raise TypeError(f"{OP}: {name}: expected wfkernels.{wanted.__name__}, got {type(given).__name__}")
    check.token_layout(OP, layout)
    for name in FIELDS:
        value, label = getattr(parameters, name), f"parameters.{name}"
        if name in LISTS:
            check.sequence(OP, label, value)
            for i, entry in enumerate(value):
                _entry(f"{label}[{i}]", entry, Block if name == "blocks" else Tensor)
        elif value is not None or name in REQUIRED:
            _entry(label, value, Tensor)


def _entry(label: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        wanted = "wfkernels.Block" if kind is Block else "a torch.Tensor"
        raise TypeError(f"{OP}: {label}: expected {wanted}, got {type(value).__name__}")
    if isinstance(value, Block):
        for name, tensor in zip(Block._fields, value, strict=True):
            _entry(f"{label}.{name}", tensor, Tensor)


def _sizes(rows: Tensor, parameters: Parameters, layout: TokenLayout) -> int:
    """Check every shape that follows from the layout and return d."""
    student, layers = layout.layout, len(layout.layout.layers)
    check.shape(OP, "parameters.gamma", parameters.gamma, ("d",))
    d, groups = parameters.gamma.shape[0], len(parameters.embedding_weights)
    if d == 0:
        raise ValueError(f"{OP}: parameters.gamma: expected shape [d] with d at least 1, got [0]")
    for name in ("projection_weights", "projection_biases"):
        if len(getattr(parameters, name)) != groups:
            raise ValueError(
                f"{OP}: parameters.{name}: expected {groups} tensors like embedding_weights, got"
                f" {len(getattr(parameters, name))}"
            )
    for i, weight in enumerate(parameters.embedding_weights):
        check.shape(OP, f"parameters.embedding_weights[{i}]", weight, ("r", d))
        width = weight.shape[0]
        check.shape(OP, f"parameters.projection_weights[{i}]", parameters.projection_weights[i], (d, width))
        check.shape(OP, f"parameters.projection_biases[{i}]", parameters.projection_biases[i], (width,))
    for i, block in enumerate(parameters.blocks):
        check.shape(OP, f"parameters.blocks[{i}].up_weight", block.up_weight, ("ffn", d))
        ffn = block.up_weight.shape[0]
        shapes = ((d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,), (d,), (d,), (ffn, d), (ffn,), (d, ffn), (d,))
        for name, tensor, size in zip(Block._fields, block, shapes, strict=True):
            check.shape(OP, f"parameters.blocks[{i}].{name}", tensor, size)
    all_rows, one = (sum(layout.teachers) * student.row_numel,), (student.row_numel,)
    sizes: dict[str, tuple[int | str, ...]] = {
        "embedding_biases": (groups, d),
        "shift": (student.column_numel,),
        "scale": (student.column_numel,),
        "position": ("positions", d),
        "beta": (d,),
        "strength": (layers,),
        "teacher": ("teacher ids", d),
        "layer": (layers, d),
        "final_weight": (d,),
        "final_bias": (d,),
        "base": one,
        "center": one,
        "prior": one,
        "blend": (layers,),
        "gate_weight": (groups, d),
        "gate_bias": (groups,),
        "built_on": all_rows,
    }
    for name, expected in sizes.items():
        tensor = getattr(parameters, name)
        if tensor is not None:
            check.shape(OP, f"parameters.{name}", tensor, expected)
    check.shape(OP, "rows", rows, all_rows)
    if parameters.teacher is not None:
        check.teacher_codes(OP, "parameters.teacher", parameters.teacher, layout.teachers)
    return d


def _norm(parameters: Parameters, settings: Settings) -> None:
    for name in ("final_weight", "final_bias"):
        missing = getattr(parameters, name) is None
        if missing == (settings.norm == "pre"):
            wanted = "a tensor [d]" if missing else "None"
            raise ValueError(
                f"{OP}: parameters.{name}: expected {wanted}, because settings.norm is {settings.norm!r}, got"
                f" {'None' if missing else 'a tensor'}"
            )


def _cross(parameters: Parameters, layout: TokenLayout, d: int, return_cross: bool) -> None:
    cross, layers = parameters.cross, len(layout.layout.layers)
    check.cross_tokens(OP, "parameters.cross", cross, layout)
    if cross is not None:
        lead = (layout.groups,) if cross.ndim == 3 else ()
        check.shape(OP, "parameters.cross", cross, (*lead, layout.cross, d))
    if return_cross and (layers != 1 or not layout.cross):
        raise ValueError(
            f"{OP}: return_cross: expected a layout of one layer with cross tokens, got {layers} layers with"
            f" {layout.cross} cross tokens each"
        )


def _gate(gate: Tensor | None, lookup: Tensor | None, heads: int, layout: TokenLayout) -> None:
    if gate is None:
        if lookup is not None:
            raise ValueError(f"{OP}: gate_lookup: expected None, because parameters.gate is None, got a tensor")
        return
    if lookup is not None:
        fits = gate.ndim == 5 and gate.shape[0] in (1, heads) and gate.shape[1:4] == (2, 2, 2) and gate.shape[4] > 0
        if not fits:
            raise ValueError(f"{OP}: parameters.gate: expected [{heads} or 1, 2, 2, 2, E], got {list(gate.shape)}")
        if readable(lookup) and not 0 <= int(lookup.min()) <= int(lookup.max()) < gate.shape[4]:
            raise ValueError(
                f"{OP}: gate_lookup: expected integers from 0 to {gate.shape[4] - 1}, the entries of parameters.gate,"
                f" got {int(lookup.min())} to {int(lookup.max())}"
            )
    else:
        longest = layout.max_length
        if gate.ndim != 3 or gate.shape[0] not in (1, heads) or min(gate.shape[1:]) < longest:
            raise ValueError(
                f"{OP}: parameters.gate: expected [{heads} or 1, M, M] with M at least {longest}, the longest sequence"
                f" (or a table and gate_lookup), got {list(gate.shape)}"
            )
    if readable(gate) and gate.numel():
        low, high = (float(x) for x in gate.detach().aminmax())
        if low < 0 or high > 1:
            raise ValueError(f"{OP}: parameters.gate: expected values in [0, 1], got {low:g} to {high:g}")


def _lookup(lookup: Tensor) -> None:
    if not isinstance(lookup, Tensor):
        raise TypeError(f"{OP}: gate_lookup: expected a torch.Tensor or None, got {type(lookup).__name__}")
    check.dense(OP, "gate_lookup", lookup)
    if lookup.dtype not in INTEGERS:
        raise TypeError(f"{OP}: gate_lookup: expected an integer tensor, got {lookup.dtype}")
    if lookup.ndim != 1 or lookup.shape[0] % 2 == 0:
        raise ValueError(
            f"{OP}: gate_lookup: expected shape [2R + 1], an odd number of entries, got {list(lookup.shape)}"
        )
