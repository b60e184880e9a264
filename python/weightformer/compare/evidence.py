"""What a comparison keeps beside its table, so that a report can show it: plain numbers, small enough for a JSON file.

Matrices are tuples of rows. Where a layer is large, its first rows and columns are kept; the sizes of the whole layer
stand beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from weightformer import evaluate
from weightformer.gates import INITIAL
from weightformer.model import WeightFormer
from weightformer.state import State
from wfkernels.layout import Layer, RowLayout

Matrix = tuple[tuple[float, ...], ...]

ROWS, COLUMNS = 64, 160  # of a layer that are kept
DIGITS = 4


@dataclass(frozen=True)
class Agreement:
    """Students (rows) against ensembles (columns), all on the student's test images; own ones on the diagonal.

    kl: KL(ensemble || student) in nats. percent: images for which both name the same class.
    """

    kl: Matrix
    percent: Matrix

    @property
    def facts(self) -> list[tuple[str, float, str]]:
        """The mean KL on the diagonal and beside it, as facts of a comparison."""
        entries = [(i == j, value) for i, row in enumerate(self.kl) for j, value in enumerate(row)]
        facts = [("KL to the own ensemble", fmean(value for own, value in entries if own), "nats")]
        others = [value for own, value in entries if not own]
        return facts + ([("KL to other groups' ensembles", fmean(others), "nats")] if others else [])


@dataclass(frozen=True)
class Weights:
    """One layer's weights in several networks, a row per neuron; of_base: as differences to the common base."""

    layer: str
    names: tuple[str, ...]
    values: tuple[Matrix, ...]  # one [rows kept][columns kept] per network
    size: tuple[int, int]  # of the whole layer
    of_base: bool = False


@dataclass(frozen=True)
class RowGates:
    """What every row of every teacher counts in an output that is gated: one [teachers][rows kept] per layer."""

    layers: tuple[str, ...]
    sizes: tuple[int, ...]  # rows of the whole layers
    values: tuple[Matrix, ...]


@dataclass(frozen=True)
class DenseGate:
    """The learned gate of the attention for one layer's sequence: `cross` tokens, then `rows` of every teacher.

    values: in [0, 1], mean over heads; the diagonal is the own token, which is always open. initial: where all began.
    """

    method: str
    cross: int
    rows: int
    teachers: int
    values: Matrix
    initial: float


@dataclass(frozen=True)
class BucketedGate:
    """The learned gate of the attention by the difference of two neurons' numbers, mean over heads.

    edges: every bucket's smallest and largest difference. curves: a value per bucket.
    """

    method: str
    edges: tuple[tuple[int, int], ...]
    names: tuple[str, ...]
    curves: Matrix
    initial: float


@dataclass(frozen=True)
class Evidence:
    """Everything but the table. flop: of one pass of one network for one image, a multiply-add being two.

    blend: what share of the teachers' mean enters each layer, where the output is a learned prior.
    """

    flop: int | None = None
    agreement: Agreement | None = None
    weights: Weights | None = None
    row_gates: RowGates | None = None
    dense_gate: DenseGate | None = None
    bucketed_gate: BucketedGate | None = None
    blend: tuple[tuple[str, float], ...] = ()


def collect(
    model: WeightFormer,
    network: nn.Module,
    images: Tensor,  # [n, C, H, W]
    *,
    teachers: Sequence[State],
    networks: Mapping[str, State],
    agreement: Agreement,
    gated: tuple[str, WeightFormer],
    base: State | None = None,
) -> Evidence:
    """Return everything for one group.

    network: one of the architecture. teachers: as the model reads them. networks: those whose weights are shown, by
    name, as differences to `base` where it is given. gated: the method whose attention gate is shown, and its model.
    """
    method, other = gated
    return Evidence(
        flop=flop(network, images),
        agreement=agreement,
        weights=layer_weights(model.layout, networks, base),
        row_gates=row_gates(model, teachers),
        dense_gate=dense_gate(other, method, len(teachers)),
        bucketed_gate=bucketed_gate(other, method),
        blend=blend(model),
    )


def flop(network: nn.Module, images: Tensor) -> int:  # [n, C, H, W]
    """Return the floating-point operations of one pass for one image."""
    with FlopCounterMode(display=False) as counter, evaluate.evaluating(network):
        network(images[:1])
    return int(counter.get_total_flops())


def agreement(pairs: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> Agreement:
    """Return how predictions agree; pairs[i][j]: those of ensemble j and of student i on the same images, [n, C]."""
    kl = tuple(tuple(evaluate.kl(ensemble, student) for ensemble, student in row) for row in pairs)
    percent = tuple(tuple(evaluate.agreement(ensemble, student) for ensemble, student in row) for row in pairs)
    return Agreement(kl, percent)


def layer_weights(layout: RowLayout, networks: Mapping[str, State], base: State | None = None) -> Weights:
    """Return one layer's weights in every network, the largest layer that fits ROWS x COLUMNS if one does."""

    def area(layer: Layer) -> int:
        return layer.rows * layer.parameters[0].width

    fitting = [layer for layer in layout.layers if layer.rows <= ROWS and layer.parameters[0].width <= COLUMNS]
    layer = max(fitting, key=area) if fitting else min(layout.layers, key=area)
    parameter = layer.parameters[0]

    def values(state: State) -> Tensor:
        return state[parameter.name].detach().double().reshape(layer.rows, parameter.width)

    origin = 0.0 if base is None else values(base)
    found = tuple(_matrix((values(state) - origin)[:ROWS, :COLUMNS]) for state in networks.values())
    return Weights(parameter.name, tuple(networks), found, (layer.rows, parameter.width), base is not None)


def row_gates(model: WeightFormer, teachers: Sequence[State]) -> RowGates | None:
    """Return what each row of each teacher counts in the student of a model with output "gated", else None.

    The student is linear in the rows it builds on: base + sum_t w_t (row_t - base) + correction. So with the base for
    all teachers, and base + 1 for one of them, two students differ by that teacher's w.
    """
    if model.config.output != "gated" or model.base is None:
        return None
    layout = model.layout
    blocks = layout.row_blocks(model.base, 1)
    base = {
        p.name: block[:, p.start : p.start + p.width].reshape(p.shape)
        for layer, block in zip(layout.layers, blocks, strict=True)
        for p in layer.parameters
    }
    base |= {alias: base[name] for alias, name in layout.tied}
    raised = {name: tensor + 1 for name, tensor in base.items()}

    def student(chosen: int | None) -> dict[str, Tensor]:
        built_on = [raised if t == chosen else base for t in range(len(teachers))]
        return model.predict(teachers, built_on=built_on)

    without = student(None)
    by_teacher = [student(t) for t in range(len(teachers))]

    def counts(layer: Layer) -> Tensor:
        name, width = layer.parameters[0].name, layer.parameters[0].width
        both = [(with_it[name] - without[name]).double().reshape(layer.rows, width) for with_it in by_teacher]
        return torch.stack([difference.mean(1) for difference in both])

    return RowGates(
        tuple(layer.name for layer in layout.layers),
        layout.rows,
        tuple(_matrix(counts(layer)[:, :ROWS]) for layer in layout.layers),
    )


def dense_gate(model: WeightFormer, method: str, teachers: int) -> DenseGate | None:
    """Return the dense gate between the tokens of `teachers` teachers in the longest layer of at most ROWS rows."""
    if model.gate is None or model.gate.lookup is not None:
        return None
    rows = max((n for n in model.layout.rows if n <= ROWS), default=ROWS)
    cross = model.config.cross_tokens
    length = cross + teachers * rows
    with torch.no_grad():
        values = model.gate().mean(0)[:length, :length]
    return DenseGate(method, cross, rows, teachers, _matrix(values), _initial(model))


def bucketed_gate(model: WeightFormer, method: str) -> BucketedGate | None:
    """Return the bucketed gate as one curve for each pair of kinds of tokens that the model has."""
    gate = model.gate
    if gate is None or gate.lookup is None:
        return None
    lookup = gate.lookup.tolist()
    used = sorted(set(lookup))
    places = {entry: [i - gate.reach for i, e in enumerate(lookup) if e == entry] for entry in used}
    kinds = {"rows of the same teacher": (1, 1, 1), "rows of two teachers": (1, 1, 0)}
    if model.config.cross_tokens:
        kinds |= {"cross token reads rows": (0, 1, 0), "rows read the cross token": (1, 0, 0)}
    with torch.no_grad():
        values = gate().mean(0)
    curves = torch.stack([values[kind] for kind in kinds.values()])[:, used]
    edges = tuple((min(found), max(found)) for found in places.values())
    return BucketedGate(method, edges, tuple(kinds), _matrix(curves), _initial(model))


def blend(model: WeightFormer) -> tuple[tuple[str, float], ...]:
    """Return the share of the teachers' mean in every layer of an output "prior"; nothing for any other."""
    if model.blend is None:
        return ()
    return tuple(zip((layer.name for layer in model.layout.layers), model.blend.tolist(), strict=True))


def _initial(model: WeightFormer) -> float:
    start = torch.tensor(INITIAL).sigmoid().item()
    return float(start >= 0.5) if model.config.hard else start


def _matrix(values: Tensor) -> Matrix:  # [rows, columns]
    """Return nested tuples with DIGITS significant digits."""
    return tuple(tuple(float(f"{value:.{DIGITS}g}") for value in row) for row in values.tolist())
