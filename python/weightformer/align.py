"""Bring the neurons of independently trained networks into one order.

Hidden channels may be permuted freely as long as everything that touches them is permuted alike. What is permuted
together is a *wire*: a convolution's rows, the BatchNorm behind it, the input channels of the next layer (blocks of
them behind a flatten); the layers of a residual stage that are added up share one wire. `trace` derives the wires from
the model's torch.fx graph. Channels that reach the output, the input or an operation that is not known to treat
channels alike keep their order.

`Aligner` permutes a network onto an anchor (recipe of activation matching, arXiv 1910.05653, 2209.04836 section 3.1):
post-activation outputs of both on the same images, correlated channel by channel, and one linear assignment for each
wire. No wire's correlations depend on another wire's permutation, so nothing is iterated.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from weightformer.evaluate import evaluating, recalibrate
from weightformer.state import State

# A wider map is sampled at every third position: neighbours say nearly the same.
DENSE_WIDTH, STRIDE = 7, 3

_ACTIVATIONS = {"relu", "relu_", "relu6", "gelu", "silu", "elu", "leaky_relu", "hardswish", "mish", "tanh", "sigmoid"}
_ELEMENTWISE = {"dropout", "contiguous", "identity"}
_POOLS = {"max_pool2d", "boolean_dispatch", "avg_pool2d", "adaptive_avg_pool2d"}
_BINARY = {operator.add, operator.iadd, operator.mul, operator.imul, torch.add, torch.mul}
_ACTIVATION_MODULES = (
    nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Hardswish, nn.Mish, nn.Tanh, nn.Sigmoid,
)  # fmt: skip
_ELEMENTWISE_MODULES = (nn.Identity, nn.Dropout, nn.Dropout2d)
_POOL_MODULES = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


@dataclass(frozen=True)
class Place:
    """Axis `axis` of tensor `name` lies on a wire; each channel takes `block` consecutive entries."""

    name: str
    axis: int
    block: int = 1


@dataclass(frozen=True)
class Wire:
    """`size` channels that are permuted together in all `places`; `probes` are the graph nodes that show them."""

    size: int
    places: tuple[Place, ...]
    probes: tuple[str, ...]


@dataclass(frozen=True)
class Wiring:
    """What may be permuted, and `normed`: the (layer, BatchNorm) pairs where the layer's rows may be rescaled."""

    wires: tuple[Wire, ...]
    normed: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Channels:
    """Where a value carries a wire: along dimension `axis`, each channel as `block` consecutive entries."""

    wire: int
    axis: int
    block: int = 1

    @property
    def at(self) -> tuple[int, int]:
        return self.axis, self.block


@dataclass
class _Trace:
    """The walk over a graph in forward order that gathers the wires."""

    graph: fx.GraphModule
    sizes: list[int] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    fixed: set[int] = field(default_factory=set)
    places: list[tuple[int, Place]] = field(default_factory=list)
    shown: list[tuple[int, bool, str]] = field(default_factory=list)  # wire, behind an activation, node
    value: dict[fx.Node, _Channels | None] = field(default_factory=dict)
    visited: set[str] = field(default_factory=set)

    def root(self, wire: int) -> int:
        while self.parent[wire] != wire:
            wire = self.parent[wire]
        return wire

    def join(self, one: int, other: int) -> None:
        self.parent[self.root(other)] = self.root(one)

    def open(self, size: int, axis: int) -> _Channels:
        self.sizes.append(size)
        self.parent.append(len(self.parent))
        return _Channels(len(self.parent) - 1, axis)

    def fix(self, channels: Iterable[_Channels | None]) -> None:
        self.fixed.update(c.wire for c in channels if c is not None)

    def put(self, channels: _Channels | None, prefix: str, names: Iterable[str], axis: int = 0) -> None:
        """Record that `axis` of the tensors that exist under `prefix` lies on the channels' wire."""
        if channels is None:
            return
        module = self.graph.get_submodule(prefix)
        for name in names:
            if getattr(module, name, None) is not None:
                self.places.append((channels.wire, Place(f"{prefix}.{name}", axis, channels.block)))

    def show(self, node: fx.Node, channels: _Channels | None, activated: bool) -> _Channels | None:
        if channels is not None and channels.block == 1:
            self.shown.append((channels.wire, activated, node.name))
        return channels

    def visit(self, node: fx.Node) -> None:
        inputs = [self.value[n] for n in node.all_input_nodes]
        if node.op == "call_module":
            result = self._module(node, inputs)
        elif node.op in ("call_function", "call_method"):
            result = self._function(node, inputs)
        else:
            self.fix(inputs)
            result = None
        self.value[node] = result

    def _module(self, node: fx.Node, inputs: list[_Channels | None]) -> _Channels | None:
        name, source = str(node.target), inputs[0] if inputs else None
        module = self.graph.get_submodule(name)
        if name in self.visited and next(module.parameters(), None) is not None:
            raise ValueError(f"align: model: {name} runs more than once in a pass, which alignment cannot follow")
        self.visited.add(name)
        if isinstance(module, _ConvNd) and not module.transposed and len(inputs) == 1:
            depthwise = module.groups == module.in_channels == module.out_channels
            channels_first = source is None or source.at == (1, 1)
            if not channels_first or (module.groups > 1 and not depthwise):
                self.fix(inputs)
                return None
            if module.groups > 1:
                self.put(source, name, ["weight", "bias"])
                return source
            self.put(source, name, ["weight"], axis=1)
            target = self.open(module.out_channels, axis=1)
            self.put(target, name, ["weight", "bias"])
            return self.show(node, target, activated=False)
        if isinstance(module, nn.Linear):
            last = _rank(node) - 1
            if source is not None and source.axis == last:
                self.put(source, name, ["weight"], axis=1)
            else:
                self.fix(inputs)
            target = self.open(module.out_features, axis=last)
            self.put(target, name, ["weight", "bias"])
            return self.show(node, target, activated=False)
        if isinstance(module, _BatchNorm) and source is not None and source.axis == 1:
            self.put(source, name, ["weight", "bias", "running_mean", "running_var"])
            return source
        if isinstance(module, nn.LayerNorm) and source is not None and source.axis == _rank(node) - 1:
            self.put(source, name, ["weight", "bias"])
            return source
        if isinstance(module, _ACTIVATION_MODULES):
            return self.show(node, source, activated=True)
        if isinstance(module, _ELEMENTWISE_MODULES):
            return source
        if isinstance(module, _POOL_MODULES) and source is not None and source.axis == 1:
            return source
        if isinstance(module, nn.Flatten) and module.end_dim == -1:
            return self._flatten(node, source, module.start_dim)
        self.fix(inputs)
        return None

    def _function(self, node: fx.Node, inputs: list[_Channels | None]) -> _Channels | None:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        source = inputs[0] if inputs else None
        if len(inputs) == 1:
            if name in _ACTIVATIONS:
                return self.show(node, source, activated=True)
            if name in _ELEMENTWISE or node.target in _BINARY:  # the other operand is a number
                return source
            if name in _POOLS and source is not None and source.axis == 1:
                return source
            if name == "flatten" and node.kwargs.get("end_dim", -1) == -1 and len(node.args) <= 2:
                start = node.args[1] if len(node.args) == 2 else node.kwargs.get("start_dim", 0)
                return self._flatten(node, source, start)
            if name == "mean" and source is not None and _averages_behind(node, source.axis):
                return source
        elif len(inputs) == 2 and (node.target in _BINARY or name in ("add", "add_", "mul", "mul_")):
            one, other = inputs
            same_rank = _rank(node.all_input_nodes[0]) == _rank(node.all_input_nodes[1])
            if one is not None and other is not None and same_rank and one.at == other.at:
                self.join(one.wire, other.wire)
                return one
        self.fix(inputs)
        return None

    def _flatten(self, node: fx.Node, source: _Channels | None, start: Any) -> _Channels | None:
        if source is None:
            return None
        if start != 1 or source.axis != 1:
            self.fix([source])
            return None
        return _Channels(source.wire, 1, source.block * prod(_shape(node.all_input_nodes[0])[2:]))

    def wiring(self) -> Wiring:
        fixed = {self.root(w) for w in self.fixed}
        wires = []
        for wire, size in enumerate(self.sizes):
            if self.root(wire) != wire or wire in fixed:
                continue
            places = tuple(p for w, p in self.places if self.root(w) == wire)
            nodes = [(activated, node) for w, activated, node in self.shown if self.root(w) == wire]
            # Activations are what the next layer reads; a wire that meets none is judged by its layers' own outputs.
            probes = [node for activated, node in nodes if activated] or [node for _, node in nodes]
            wires.append(Wire(size, places, tuple(probes)))
        return Wiring(tuple(wires), tuple(self._normed()))

    def _normed(self) -> Iterable[tuple[str, str]]:
        for node in self.graph.graph.nodes:
            if node.op != "call_module" or len(node.users) != 1:
                continue
            user = next(iter(node.users))
            if user.op != "call_module":
                continue
            layer, norm = self.graph.get_submodule(str(node.target)), self.graph.get_submodule(str(user.target))
            channels_first = isinstance(layer, _ConvNd) and not layer.transposed
            channels_last = isinstance(layer, nn.Linear) and _rank(node) == 2  # else BatchNorm takes another dimension
            if (channels_first or channels_last) and isinstance(norm, _BatchNorm):
                yield str(node.target), str(user.target)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)


def _rank(node: fx.Node) -> int:
    return len(_shape(node))


def _averages_behind(node: fx.Node, axis: int) -> bool:
    """Whether a mean runs over dimensions behind `axis` only, which leaves the channels where they are."""
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    rank = _rank(node.all_input_nodes[0])
    listed = [dims] if isinstance(dims, int) else dims
    return isinstance(listed, Sequence) and all(isinstance(d, int) and d % rank > axis for d in listed)


def _graph(model: nn.Module) -> fx.GraphModule:
    try:
        return fx.symbolic_trace(model)
    except Exception as error:  # torch.fx raises whatever the model's Python code raises on a proxy
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"align: model: {type(model).__name__} cannot be traced by torch.fx ({reason}); "
            "align by hand with a Wiring and permute()"
        ) from error


def trace(model: nn.Module, images: Tensor) -> Wiring:  # [n, C, H, W], only the shape of one image is used
    """Return what may be permuted in `model`. Raises ValueError where torch.fx cannot trace it."""
    return _traced(deepcopy(model).eval(), images)[1]


def _traced(model: nn.Module, images: Tensor) -> tuple[fx.GraphModule, Wiring]:
    named = model.state_dict(keep_vars=True)
    if len({id(tensor) for tensor in named.values()}) < len(named):
        raise ValueError("align: model: expected every parameter under one name, some are tied; untie them first")
    graph = _graph(model)
    with torch.no_grad():
        ShapeProp(graph).propagate(images[:1])
    walk = _Trace(graph)
    for node in graph.graph.nodes:
        walk.visit(node)
    return graph, walk.wiring()


def permute(state: Mapping[str, Tensor], wiring: Wiring, permutations: Sequence[Tensor]) -> State:
    """Return `state` with new channel i of every wire taken from channel permutations[wire][i]; the same function."""
    result = dict(state)
    for wire, order in zip(wiring.wires, permutations, strict=True):  # order [size]
        for place in wire.places:
            tensor = result[place.name]
            entries = (order[:, None] * place.block + torch.arange(place.block)).flatten().to(tensor.device)
            result[place.name] = tensor.index_select(place.axis, entries)
    return result


def unit_rows(state: Mapping[str, Tensor], wiring: Wiring) -> State:
    """Return `state` with every row in front of a BatchNorm scaled to length 1.

    The BatchNorm divides the scale out again: the function is the same up to its eps, and with eps 0 exactly.
    A row of zeros stays.
    """
    result = dict(state)
    for layer, norm in wiring.normed:
        weight = result[f"{layer}.weight"]
        length = weight.flatten(1).norm(dim=1)
        length = torch.where(length > 0, length, torch.ones_like(length))
        result[f"{layer}.weight"] = weight / length.view(-1, *[1] * (weight.dim() - 1))
        for name, scale in (
            (f"{layer}.bias", length), (f"{norm}.running_mean", length), (f"{norm}.running_var", length**2),
        ):  # fmt: skip
            if name in result:
                result[name] = result[name] / scale
    return result


class _Probe(fx.Interpreter):
    """Runs a graph and keeps the outputs of some of its nodes."""

    def __init__(self, graph: fx.GraphModule, names: Iterable[str]) -> None:
        super().__init__(graph)
        self.names = set(names)
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.names:
            self.seen[n.name] = result.clone()  # an in-place activation may follow
        return result


def _samples(activations: Tensor, size: int) -> Tensor:  # [n, C, ...] or [n, ..., C] -> [samples, C]
    """Return one row for each sampled position, every channel centred and of length 1 (a dead one stays 0)."""
    if activations.dim() == 4:
        flat = activations.permute(0, 2, 3, 1).reshape(-1, size)
        flat = flat[::STRIDE] if activations.shape[-1] > DENSE_WIDTH else flat
    else:
        flat = activations.reshape(-1, size)
    return nn.functional.normalize(flat - flat.mean(0), dim=0)


class Aligner:
    """Permutes networks of one architecture onto `anchor`, by their activations on `images`.

    anchor: the network whose order of neurons is kept; it is copied.
    images: [n, C, H, W], a few hundred; labels are not used. BatchNorm statistics are re-estimated on them (on a copy).
    unit: also scale every row in front of a BatchNorm to length 1, as all networks of a pool should be.

    Raises ValueError where the architecture cannot be traced.
    """

    def __init__(self, anchor: nn.Module, images: Tensor, *, unit: bool = True) -> None:
        self._model = deepcopy(anchor).eval()
        self._images = images
        self._unit = unit
        self._graph, self.wiring = _traced(self._model, images)
        self._anchor = self._activations(anchor.state_dict())

    def _activations(self, state: Mapping[str, Tensor]) -> list[list[Tensor]]:
        """Return, for every wire, the samples [samples, size] of each of its probes."""
        self._model.load_state_dict(state)
        recalibrate(self._model, self._images)
        probe = _Probe(self._graph, [name for wire in self.wiring.wires for name in wire.probes])
        with evaluating(self._model):
            probe.run(self._images)
        return [[_samples(probe.seen[name], wire.size) for name in wire.probes] for wire in self.wiring.wires]

    def permutations(self, state: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return, for every wire, which channel of `state` takes each of the anchor's places, int64 [size]."""
        result = []
        for ours, theirs in zip(self._anchor, self._activations(state), strict=True):
            # [size, size], anchor by network; a wire with several probes adds up their correlations
            similarity = torch.stack([a.T @ b for a, b in zip(ours, theirs, strict=True)]).sum(0)
            _, order = linear_sum_assignment(similarity.double().cpu().numpy(), maximize=True)
            result.append(torch.from_numpy(order))
        return tuple(result)

    def __call__(self, network: nn.Module | Mapping[str, Tensor]) -> State:
        """Return the network's state in the anchor's order (and, with `unit`, scale): the same function."""
        state = network.state_dict() if isinstance(network, nn.Module) else network
        state = permute(state, self.wiring, self.permutations(state))
        return unit_rows(state, self.wiring) if self._unit else state


def align(networks: Sequence[nn.Module | Mapping[str, Tensor]], anchor: nn.Module, images: Tensor) -> list[State]:
    """Return the states of `networks` in the order of `anchor`'s neurons; see Aligner."""
    aligner = Aligner(anchor, images)
    return [aligner(network) for network in networks]
