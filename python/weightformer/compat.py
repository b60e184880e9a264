"""Checkpoints of the public WeightFormer code (arXiv 2210.01973, its encoder without mask) on our modules.

What that encoder computes, for one layer of the student at a time: the rows of *two* teachers stand behind each other
in one sequence, 2n tokens. Each row goes through a linear layer of its student layer and a ReLU; a learned position
code (positions run through the whole sequence, so row j of the second teacher has position n + j) and one of two
segment codes are added, then LayerNorm. Post-norm blocks with ReLU follow; the first n tokens go through an output
layer of their student layer and are the rows of the student. Rows are weights alone, without biases and norms.

Two teachers behind each other are one sequence of 2n rows, so the encoder runs on `wfkernels.predict` as it stands: a
layout whose layers have twice the rows and one "teacher" per group has the same buffer of rows and lets positions run
through. Segments are a second summand of its position codes.

    entry of the checkpoint                     here (L: layer of the student, i: block)
    fc_dict.L.{weight,bias}                     embeddings.[L]
    inverse_fc_dict.L.{weight,bias}             outputs.[L]
    embeddings.position_embeddings.weight       position
    embeddings.segment_type_embedding.weight    segment
    embeddings.position_ids                     (not needed)
    layer_norm.{weight,bias}                    norm
    transforms.i.mhatt.attention.fc_{q,k,v}     blocks.i.qkv, one product
    transforms.i.mhatt.attention.fc_o           blocks.i.out
    transforms.i.mhatt.layer_norm               blocks.i.norm1
    transforms.i.pwff.{fc1,fc2,layer_norm}      blocks.i.{up,down,norm2}

L is the parameter's name in the student without its dots: layer1.0.conv1.weight is layer10conv1weight. The numbers of
blocks, positions and layers, and all widths but the heads', follow from the tensors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn

from weightformer import checkpoints
from weightformer.checkpoints import CheckpointError
from weightformer.config import Config
from weightformer.model import StudentModel, encoder_block
from weightformer.parts import Call
from weightformer.rows import layout as layout_of
from weightformer.state import State
from wfkernels import Block, Parameters, Settings, embedding, predict, unpack
from wfkernels.layout import Layer, Parameter, RowLayout

TEACHERS, SEGMENTS = 2, 2
MOST_TOKENS = 2048  # the longest table of positions in the public code

_EMBEDDING, _OUTPUT, _BLOCK = "fc_dict.", "inverse_fc_dict.", "transforms."
_OF_BLOCKS = {
    "norm1": "mhatt.layer_norm",
    "out": "mhatt.attention.fc_o",
    "norm2": "pwff.layer_norm",
    "up": "pwff.fc1",
    "down": "pwff.fc2",
}
_PRODUCTS = tuple(f"mhatt.attention.fc_{letter}" for letter in "qkv")
_WHOLE = {
    "position": "embeddings.position_embeddings.weight",
    "segment": "embeddings.segment_type_embedding.weight",
    "norm.weight": "layer_norm.weight",
    "norm.bias": "layer_norm.bias",
}


class PublicWeightFormer(StudentModel):
    """The encoder of the public WeightFormer code: predicts some weights of a student from two teachers.

    `predict` returns the other weights and the buffers of the first teacher, as the public code does. Dropout is not
    modelled (the public code drops out other places than `wfkernels.predict` does), so training it further is without.

    Args:
        layout: one layer for every predicted weight, with one parameter each (`load` makes it).
        width, heads, blocks, feed_forward: of the encoder. tokens: position codes, twice the rows of any layer or more.
        strict_quirks: do what the public code does and cannot have meant. (1) The first row of the second teacher has
            the first segment's code. (2) A token whose LayerNorm sums to exactly zero is taken for padding, and no
            token attends to it. That happens by chance of rounding, so which tokens it are can differ from what the
            public code finds. A sequence of such tokens alone gives NaN there; here its attention is 0.
    """

    def __init__(
        self,
        layout: RowLayout,
        *,
        width: int = 512,
        heads: int = 8,
        blocks: int = 6,
        feed_forward: int = 2048,
        tokens: int = MOST_TOKENS,
        strict_quirks: bool = False,
    ) -> None:
        super().__init__(layout)
        for layer in layout.layers:
            if TEACHERS * layer.rows > tokens:
                raise ValueError(
                    f"PublicWeightFormer: layout: {layer.name!r} has {layer.rows} rows, {TEACHERS * layer.rows} for two"
                    f" teachers, but there are position codes for {tokens} (the public code reads at most {MOST_TOKENS}"
                    " tokens); leave this layer out, or fit a weightformer.WeightFormer, which has no such limit"
                )
        self.heads, self.strict_quirks = heads, strict_quirks
        config = Config(width=width, heads=heads, feed_forward=feed_forward)
        self.embeddings = nn.ModuleList(nn.Linear(w, width) for w in layout.widths)
        self.position = nn.Parameter(torch.randn(tokens, width))
        self.segment = nn.Parameter(torch.randn(SEGMENTS, width))
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(encoder_block(config) for _ in range(blocks))
        self.outputs = nn.ModuleList(nn.Linear(width, w) for w in layout.widths)
        # Layers with as many rows share their codes.
        self.sizes = sorted(set(layout.rows))
        starts = {n: TEACHERS * sum(self.sizes[:i]) for i, n in enumerate(self.sizes)}
        self.positions = tuple(starts[n] for n in layout.rows)
        self.sequences = RowLayout(tuple(_sequence(layer) for layer in layout.layers))

    def forward(self, rows: Tensor, teachers: Sequence[int]) -> list[dict[str, Tensor]]:
        """Return every group's predicted weights; rows [sum(T) * row_numel] as `pack` gives them, every T is 2.

        Raises ValueError for groups of any other number of teachers.
        """
        wrong = next((t for t in teachers if t != TEACHERS), None)
        if wrong is not None:
            raise ValueError(
                f"PublicWeightFormer: teachers: expected exactly {TEACHERS} in every group, got {wrong}; the public"
                " code reads two, a weightformer.WeightFormer any number"
            )
        # For predict, a group is one network of twice the rows.
        call = Call(self.sequences, rows, (1,) * len(teachers), self.parameters_of(), self.settings)
        padding = self._padding(call) if self.strict_quirks else None
        students = self._together(call) if padding is None or not padding.any() else self._apart(call, padding)
        return [
            {name: weight[: weight.shape[0] // TEACHERS] for name, weight in student.items()} for student in students
        ]

    def parameters_of(self) -> Parameters:
        """Return all tensors as `wfkernels.predict` takes them."""
        return Parameters(
            embedding_weights=[m.get_parameter("weight").T for m in self.embeddings],
            embedding_biases=torch.stack([m.get_parameter("bias") for m in self.embeddings]),
            shift=self.shift,
            scale=self.scale,
            position=self._position_codes(),
            gamma=self.norm.weight,
            beta=self.norm.bias,
            blocks=[
                Block(*(block.get_parameter(name.replace("_", ".")) for name in Block._fields)) for block in self.blocks
            ],
            projection_weights=[m.get_parameter("weight").T for m in self.outputs],
            projection_biases=[m.get_parameter("bias") for m in self.outputs],
            strength=self.norm.weight.new_ones(len(self.layout.layers)),
        )

    @property
    def settings(self) -> Settings:
        """The settings of `wfkernels.predict`."""
        return Settings(
            heads=self.heads, activation="relu", cross_layer="none", positions=self.positions, recompute="none"
        )

    def _position_codes(self) -> Tensor:
        """Return position + segment of every token, for each number of rows in turn [2 * sum(sizes), d]."""
        codes = []
        for n in self.sizes:
            first = n + 1 if self.strict_quirks else n
            segments = torch.cat([self.segment[0].expand(first, -1), self.segment[1].expand(TEACHERS * n - first, -1)])
            codes.append(self.position[: TEACHERS * n] + segments)
        return torch.cat(codes)

    def _together(self, call: Call) -> list[dict[str, Tensor]]:
        """Return every group's weights, [2n, ...] each."""
        buffers = predict(call.rows, call.parameters, call.settings, layout=call.layout.tokens(call.teachers))
        return [unpack(buffer, call.layout) for buffer in buffers]

    @torch.no_grad()
    def _padding(self, call: Call) -> Tensor:
        """Return which tokens [tokens] the public code takes for padding."""
        p = call.parameters
        tokens = embedding(
            call.rows, p.embedding_weights, p.embedding_biases, p.shift, p.scale, p.position, p.gamma, p.beta,
            layout=call.layout.tokens(call.teachers), positions=self.positions, activation="relu",
        )  # fmt: skip
        return tokens.sum(-1) == 0

    def _apart(self, call: Call, padding: Tensor) -> list[dict[str, Tensor]]:
        """Return the same as `_together`, with a gate of its own for every sequence: nothing attends to padding."""
        students: list[dict[str, Tensor]] = [{} for _ in call.teachers]
        sequences = iter(padding.split(call.layout.tokens(call.teachers).lengths))
        for i in range(len(call.layout.layers)):
            layer = call.part([i])
            for student, rows in zip(students, layer.rows.chunk(len(students)), strict=True):
                padded = next(sequences)
                gate = (~padded).to(self.norm.weight.dtype).expand(1, len(padded), -1)
                parameters = replace(layer.parameters, gate=gate)
                (one,) = self._together(replace(layer, rows=rows, teachers=(1,), parameters=parameters))
                student.update(one)
        return students


def load(
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    student: nn.Module | RowLayout,
    *,
    names: Mapping[str, str] | None = None,
    heads: int = 8,
    strict_quirks: bool = False,
) -> PublicWeightFormer:
    """Return a checkpoint of the public code as a model, in evaluation mode and in the checkpoint's dtype.

    Args:
        source: the file, as `checkpoints.load` reads it, or its state dict. student: the architecture of teachers and
            student, or its layout.
        names: layer in the checkpoint -> parameter of the student, for layers that are not called as a parameter is
            without its dots. Layers that are not in `names` are looked up as ever.
        heads: of the attention, which the tensors do not tell; the public code has 8 of 64. strict_quirks: see
            PublicWeightFormer.

    Raises CheckpointError where tensors are missing, unexpected, or do not fit one another or the student.
    """
    where, state = _read(source)
    layers = _layers(where, state, student, names or {})
    _check(where, state, list(layers))
    try:
        model = PublicWeightFormer(
            RowLayout(tuple(layers.values())),
            width=state[_WHOLE["norm.weight"]].shape[0],
            heads=heads,
            blocks=_blocks(state),
            feed_forward=state[f"{_BLOCK}0.{_OF_BLOCKS['up']}.bias"].shape[0],
            tokens=state[_WHOLE["position"]].shape[0],
            strict_quirks=strict_quirks,
        )
        model.to(state[_WHOLE["norm.weight"]].dtype).load_state_dict(renamed(state, list(layers)), strict=False)
    except (IndexError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{where}: {' '.join(str(error).split())}") from error
    return model.eval()


def renamed(state: Mapping[str, Tensor], layers: Sequence[str]) -> State:
    """Return the tensors of a public checkpoint (or their gradients) under the names of PublicWeightFormer.

    layers: the checkpoint's names of the student's layers, in the model's order.
    """
    found = {ours: state[theirs] for ours, theirs in _WHOLE.items()}
    for part in ("weight", "bias"):
        for i, name in enumerate(layers):
            found[f"embeddings.{i}.{part}"] = state[f"{_EMBEDDING}{name}.{part}"]
            found[f"outputs.{i}.{part}"] = state[f"{_OUTPUT}{name}.{part}"]
        for i in range(_blocks(state)):
            found |= {f"blocks.{i}.{o}.{part}": state[f"{_BLOCK}{i}.{t}.{part}"] for o, t in _OF_BLOCKS.items()}
            found[f"blocks.{i}.qkv.{part}"] = torch.cat([state[f"{_BLOCK}{i}.{t}.{part}"] for t in _PRODUCTS])
    return found


def _read(source: str | os.PathLike[str] | Mapping[str, Tensor]) -> tuple[str, Mapping[str, Tensor]]:
    if isinstance(source, Mapping):
        return "compat.load: source", source
    return os.fspath(source), checkpoints.load(source)


def _layers(
    where: str, state: Mapping[str, Tensor], student: nn.Module | RowLayout, names: Mapping[str, str]
) -> dict[str, Layer]:
    """Return the student's layer, a single weight, for every layer of the checkpoint, in the checkpoint's order."""
    of = student if isinstance(student, RowLayout) else layout_of(student)
    weights = {p.name: (p.shape, layer.kind) for layer in of.layers for p in layer.parameters}
    plain: dict[str, list[str]] = {}
    for name in weights:
        plain.setdefault(name.replace(".", ""), []).append(name)
    found: dict[str, Layer] = {}
    for entry in state:
        if not entry.startswith(_EMBEDDING) or not entry.endswith(".weight"):
            continue
        key = entry.removeprefix(_EMBEDDING).removesuffix(".weight")
        fits = [names[key]] if key in names else plain.get(key, [])
        if len(fits) != 1 or fits[0] not in weights:
            what = " or ".join(map(repr, fits)) if len(fits) > 1 else "no parameter of the student"
            raise CheckpointError(f"{where}: the layer {key!r} is {what}; say which it is with names={{{key!r}: ...}}")
        (name,) = fits
        shape, kind = weights[name]
        width = prod(shape[1:])
        if not shape or state[entry].shape[1:] != (width,):
            raise CheckpointError(
                f"{where}: {entry!r} has shape {tuple(state[entry].shape)}, but {name!r} has rows of {width} numbers;"
                " name the architecture it was trained for"
            )
        if twice := [other for other, layer in found.items() if layer.name == name]:
            raise CheckpointError(f"{where}: the layers {twice[0]!r} and {key!r} are both {name!r}; correct names=")
        found[key] = Layer(name, kind, shape[0], (Parameter(name, shape, 0, width),))
    if not found:
        raise CheckpointError(
            f"{where}: has no {_EMBEDDING}LAYER.weight; give a checkpoint of the public code's encoder, or read our own"
            " with Predictor.load or WeightFormer.from_pretrained"
        )
    if unused := [key for key in names if key not in found]:
        raise CheckpointError(f"{where}: names={{{unused[0]!r}: ...}} is no layer here; there are {', '.join(found)}")
    return found


def _blocks(state: Mapping[str, Tensor]) -> int:
    """Return the number of blocks, counted by their highest index."""
    found = (re.match(rf"{re.escape(_BLOCK)}(\d{{1,9}})\.", name) for name in state)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _check(where: str, state: Mapping[str, Tensor], layers: Sequence[str]) -> None:
    """Raise CheckpointError naming the first tensor that is missing, unexpected, of a wrong shape or not finite."""
    blocks = _blocks(state)
    parts = [f"{_EMBEDDING}{key}" for key in layers] + [f"{_OUTPUT}{key}" for key in layers]
    parts += [
        f"{_BLOCK}{i}.{name}" for i in range(min(blocks, len(state))) for name in (*_OF_BLOCKS.values(), *_PRODUCTS)
    ]
    needed = [*_WHOLE.values(), *(f"{part}.{end}" for part in parts for end in ("weight", "bias"))]
    missing = next((name for name in needed if name not in state), None)
    if missing is not None or not blocks:
        what = repr(missing) if missing is not None else f"'{_BLOCK}0'"
        raise CheckpointError(f"{where}: {what} is missing; give a whole checkpoint of the public code's encoder")
    known = {*needed, "embeddings.position_ids"}
    if extra := [name for name in state if name not in known]:
        mask = extra[0].startswith("learn_mask_attention")
        why = ": the public code's variant with a mask does not run, so nothing says what it computes" if mask else ""
        raise CheckpointError(f"{where}: {extra[0]!r} is not of the public code's encoder{why}; leave it out")
    for name in needed:
        if not state[name].is_floating_point() or not state[name].isfinite().all():
            raise CheckpointError(f"{where}: {name!r} holds NaN, Inf or whole numbers; give another checkpoint")


def _sequence(layer: Layer) -> Layer:
    """Return a layer with the rows of two teachers behind each other."""
    parameters = tuple(replace(p, shape=(TEACHERS * p.shape[0], *p.shape[1:])) for p in layer.parameters)
    return replace(layer, rows=TEACHERS * layer.rows, parameters=parameters)
