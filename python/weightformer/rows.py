"""Rows of any `nn.Module`: which parameters stand side by side in the rows of which layer.

A row is what belongs to one output neuron: dim 0 of a parameter, the rest flattened, so that every parameter is a plain
reshape [rows, width] of the original tensor. In detail:

* parameters of one leaf module (no module below it holds parameters) with the same number of rows are concatenated:
  a Linear with bias has rows of fan_in + 1 columns;
* a norm with the same number of channels directly behind a layer (the next leaf with parameters in registration order,
  behind a convolution or a linear layer) joins that layer's rows; any other norm is a layer of its own;
* modules with children hold parameters too (tokens, position tables, layer scales): each is a layer of its own, but
  `x_weight` and `x_bias` are one layer (`in_proj` of nn.MultiheadAttention);
* outside the known layers, leading dims of size 1 do not count while two dims remain: (1, N, D) is N rows of D,
  (1, 1, D) is one row of D; a single row joins nothing, and a scalar is one row of one column;
* a transposed convolution's dim 0 is its input, so neither its bias nor a norm behind it joins.

Kinds of layers; layers of equal kind and width have rows of the same make and may share a projection:

    conv            rows of a convolution's filters         token       one row (a class token)
    conv_transpose  rows of a transposed convolution        vector      one number per row (layer scale, lone bias)
    linear          rows of a matrix                        scalar      one number
    embedding       rows of nn.Embedding                    table       several rows (position table, bias table)
    norm            a norm that joined no layer             parameter   anything else that shares its rows
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from wfkernels.layout import Layer, Parameter, RowLayout

# The first class that fits decides. _NormBase: batch and instance norms, also synchronised ones.
_KINDS: tuple[tuple[str, tuple[type[nn.Module], ...]], ...] = (
    ("conv_transpose", (_ConvTransposeNd,)),
    ("conv", (_ConvNd,)),
    ("linear", (nn.Linear,)),
    ("embedding", (nn.Embedding, nn.EmbeddingBag)),
    ("norm", (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)),
)
# Norms that derive from no norm of torch: RmsNorm, EvoNorm, FilterResponseNorm, ..., and ResMLP's stand-in, Affine.
_NORM_NAME = re.compile("norm|affine", re.IGNORECASE)
_JOINABLE = ("conv", "linear")


@dataclass(frozen=True)
class _Entry:
    """A parameter that is not yet placed in a row."""

    name: str
    shape: tuple[int, ...]
    rows: int

    @property
    def width(self) -> int:
        return prod(self.shape) // self.rows


def layout(module: nn.Module) -> RowLayout:
    """Return the rows of `module`, layers in registration order, tied parameters once.

    Only names, classes and shapes are read, so a module on the meta device will do.

    Raises TypeError for anything but a module, and ValueError, naming the parameter, for a module without parameters
    and for parameters that have no rows of their own: computed from others (parametrized, weight norm, spectral norm,
    pruned), not yet initialised (lazy), not floating point, or without elements.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"layout: module: expected an nn.Module, got {type(module).__name__}")
    layers: list[Layer] = []
    owner: dict[int, str] = {}
    tied: list[tuple[str, str]] = []
    behind: int | None = None  # the layer that a norm coming next would join
    for path, part in module.named_modules(remove_duplicate=False):
        _refuse_computed(path, part)
        named = list(part.named_parameters(path, recurse=False, remove_duplicate=False))
        if not named:
            continue
        leaf = all(next(child.parameters(), None) is None for child in part.children())
        kind = _known_kind(part, leaf)
        whole = leaf or kind is not None
        new = []
        for name, parameter in named:
            if id(parameter) in owner:
                tied.append((name, owner[id(parameter)]))
            else:
                owner[id(parameter)] = name
                new.append(_entry(name, parameter, kind))
        groups = _groups(new, kind, whole)
        before, behind = behind, None if whole else behind
        if kind == "norm" and before is not None and _fits(groups, layers[before]):
            layers[before] = _layer(layers[before].name, layers[before].kind, groups[0], joined=layers[before])
            continue
        for group in groups:
            main = whole and group[0].name == named[0][0]
            group_kind = kind if main and kind is not None else _free_kind(group)
            if main and group_kind in _JOINABLE:
                behind = len(layers)
            layers.append(_layer(path if main and path else group[0].name, group_kind, group))
    if not layers:
        raise ValueError(f"layout: module: {type(module).__name__} has no parameters, so there are no rows to predict")
    return RowLayout(tuple(layers), tuple(tied))


def tensors(state: Mapping[str, Tensor] | nn.Module, layout: RowLayout) -> list[Tensor]:
    """Return one teacher's parameters in the order that `wfkernels.pack` takes, from a state dict or a module.

    Tensors of a state dict are returned as they are, those of a module detached. A tied parameter may stand under any
    of its names. Raises ValueError naming the first parameter that is missing or has another shape.
    """
    if isinstance(state, nn.Module):
        state = {name: p.detach() for name, p in state.named_parameters(remove_duplicate=False)}
    further: dict[str, list[str]] = {}
    for alias, name in layout.tied:
        further.setdefault(name, []).append(alias)
    found = []
    for parameter in layout.parameters:
        names = (parameter.name, *further.get(parameter.name, ()))
        tensor = next((state[name] for name in names if name in state), None)
        if tensor is None:
            raise ValueError(
                f"tensors: state: parameter {parameter.name!r} is missing; the layout is of another architecture"
            )
        if tuple(tensor.shape) != parameter.shape:
            raise ValueError(
                f"tensors: state: parameter {parameter.name!r}: expected shape {parameter.shape}, "
                f"got {tuple(tensor.shape)}; the layout is of another architecture"
            )
        found.append(tensor)
    return found


def states(
    rows: Tensor,  # [copies * row_numel]
    layout: RowLayout,
    copies: int = 1,
) -> list[dict[str, Tensor]]:
    """Return the parameters of every teacher in a rows buffer, the inverse of `wfkernels.pack(...)`.

    The tensors have the buffer's dtype and may share its memory; tied parameters stand under all of their names.
    Raises ValueError where the buffer is not that of `copies` teachers.
    """
    expected = (copies * layout.row_numel,)
    if rows.shape != expected:
        raise ValueError(f"states: rows: expected shape {expected} for {copies} teachers, got {tuple(rows.shape)}")
    found: list[dict[str, Tensor]] = [{} for _ in range(copies)]
    for layer, block in zip(layout.layers, layout.row_blocks(rows, copies), strict=True):
        for state, own in zip(found, block.view(copies, layer.rows, layer.width), strict=True):
            for parameter in layer.parameters:
                columns = own[:, parameter.start : parameter.start + parameter.width]
                state[parameter.name] = columns.reshape(parameter.shape)
    for state in found:
        state.update({alias: state[name] for alias, name in layout.tied})
    return found


def head(layout: RowLayout, *, classes: int | None = None, name: str | None = None) -> int:
    """Return the index of the classifier layer, whose rows are the classes.

    `name` (of a layer, a parameter or a tied parameter) wins. Else it is the last linear layer with `classes` rows, or
    where there is none the last convolution with as many; without `classes`, the last linear layer. Of several heads
    the last one is meant. Raises ValueError where no layer fits, or the named one has not `classes` rows.
    """
    layers = layout.layers
    if name is not None:
        ties = dict(layout.tied)
        wanted = {name, ties.get(name, name), ties.get(f"{name}.weight", name)}
        fits = [i for i, layer in enumerate(layers) if wanted & {layer.name, *(p.name for p in layer.parameters)}]
        if not fits:
            raise ValueError(
                f"head: name: no layer or parameter is called {name!r}; the last layer is {layers[-1].name!r}"
            )
        if classes is not None and layers[fits[0]].rows != classes:
            raise ValueError(
                f"head: name: {name!r} has {layers[fits[0]].rows} rows, expected one for each of {classes} classes"
            )
        return fits[0]
    for kind in ("linear",) if classes is None else ("linear", "conv"):
        fits = [i for i, layer in enumerate(layers) if layer.kind == kind and classes in (None, layer.rows)]
        if fits:
            return fits[-1]
    rows = "" if classes is None else f" with {classes} rows"
    raise ValueError(f"head: layout: no linear layer{rows}; say which layer classifies with name=")


def _refuse_computed(path: str, part: nn.Module) -> None:
    """Raise ValueError where a parameter of `part` is computed from others whenever it is used."""
    where = f"layout: module: {path or type(part).__name__!r}"
    if is_parametrized(part):
        raise ValueError(
            f"{where} is parametrized; make its weights plain first, with "
            "torch.nn.utils.parametrize.remove_parametrizations(..., leave_parametrized=True)"
        )
    for name, value in vars(part).items():
        if isinstance(value, Tensor) and any(hasattr(part, f"{name}_{end}") for end in ("v", "orig")):
            raise ValueError(
                f"{where}: {name!r} is computed from other parameters; make it plain first, with "
                "torch.nn.utils.remove_weight_norm, remove_spectral_norm or prune.remove"
            )


def _known_kind(part: nn.Module, leaf: bool) -> str | None:
    """Return the kind of a module whose dim 0 is known to mean one thing, else None."""
    for kind, classes in _KINDS:
        if isinstance(part, classes):
            return kind
    named_norm = leaf and any(_NORM_NAME.search(base.__name__) for base in type(part).__mro__)
    if named_norm and all(p.numel() == max(p.shape, default=1) for p in part.parameters() if not is_lazy(p)):
        return "norm"
    return None


def _entry(name: str, parameter: nn.Parameter, kind: str | None) -> _Entry:
    """Return a parameter with its number of rows; raise ValueError where it cannot have rows."""
    if is_lazy(parameter):
        raise ValueError(f"layout: module: parameter {name!r} is not initialised yet; run one batch through the module")
    shape = tuple(parameter.shape)
    if not parameter.is_floating_point():
        raise ValueError(
            f"layout: module: parameter {name!r}: expected a floating-point dtype, got {parameter.dtype}; "
            "keep it as a buffer, or as two real parameters if it is complex"
        )
    if 0 in shape:
        raise ValueError(f"layout: module: parameter {name!r} of shape {shape} has no elements; remove it")
    if kind == "norm" and prod(shape) == max(shape, default=1):
        return _Entry(name, shape, prod(shape))
    sizes = list(shape) or [1]
    while kind is None and len(sizes) > 2 and sizes[0] == 1:
        sizes.pop(0)
    return _Entry(name, shape, sizes[0])


def _groups(entries: list[_Entry], kind: str | None, whole: bool) -> list[list[_Entry]]:
    """Return the parameters of one module, those that share rows together, in order of their first."""
    groups: dict[tuple[str, int], list[_Entry]] = {}
    for entry in entries:
        alone = kind == "conv_transpose" or (kind is None and entry.rows == 1)
        key = entry.name if alone else "" if whole else re.sub(r"_?(weight|bias)$", "", entry.name)
        groups.setdefault((key, entry.rows), []).append(entry)
    return list(groups.values())


def _fits(groups: list[list[_Entry]], layer: Layer) -> bool:
    """Whether a norm has one value of each of its parameters for every row of `layer`, and nothing else."""
    return len(groups) == 1 and all(entry.rows == layer.rows and entry.width == 1 for entry in groups[0])


def _free_kind(group: list[_Entry]) -> str:
    """Return the kind of parameters that no known module explains, by shape and name."""
    width = sum(entry.width for entry in group)
    if group[0].rows == 1:
        return "scalar" if width == 1 else "token"
    if width == len(group):
        return "vector"
    if group[0].name.endswith("weight"):
        return "linear" if len(group[0].shape) == 2 else "conv"
    return "table" if len(group) == 1 else "parameter"


def _layer(name: str, kind: str, group: list[_Entry], joined: Layer | None = None) -> Layer:
    """Return a layer of `group` side by side, behind the columns of `joined`."""
    parameters = list(joined.parameters) if joined is not None else []
    for entry in group:
        start = parameters[-1].start + parameters[-1].width if parameters else 0
        parameters.append(Parameter(entry.name, entry.shape, start, entry.width))
    return Layer(name, kind, group[0].rows, tuple(parameters))
