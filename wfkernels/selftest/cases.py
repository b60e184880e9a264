"""The calls that the self-test makes: small, odd-sized, and every form that an argument may take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wfkernels.attention.api import attention
from wfkernels.attention.bucket import BucketTable
from wfkernels.embedding.api import embedding
from wfkernels.layout import Layer, Parameter, RowLayout, TokenLayout
from wfkernels.predict.api import predict
from wfkernels.predict.parameters import Block, Parameters, Settings
from wfkernels.projection.api import projection
from wfkernels.residual_norm.api import residual_norm
from wfkernels.rows.api import pack, unpack

Call = Callable[[], Tensor | tuple[Tensor, ...]]


@dataclass
class Draw:
    """Random tensors of one device and dtype, the same numbers for every dtype; float ones are kept in `leaves`.

    smooth: no gate is closed and nothing is rounded, so that every result has a two-sided derivative by every leaf.
    """

    device: torch.device
    dtype: torch.dtype
    smooth: bool = False

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.leaves: list[Tensor] = []

    def normal(self, *shape: int, scale: float = 1.0, offset: float = 0.0) -> Tensor:
        return self.leaf(torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale + offset)

    def gate(self, *shape: int) -> Tensor:
        """Return entries in [0, 1], a quarter of them 0, or all of them open."""
        x = torch.rand(shape, generator=self.generator, dtype=torch.float64) * 0.7 + 0.2
        closed = torch.rand(shape, generator=self.generator) < 0.25
        return self.leaf(x if self.smooth else x.masked_fill(closed, 0.0))

    def bias(self, *shape: int) -> Tensor:
        """Return entries of which a quarter is -inf."""
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return self.leaf(x.masked_fill(torch.rand(shape, generator=self.generator) < 0.25, float("-inf")))

    def integers(self, end: int, *shape: int) -> Tensor:
        return torch.randint(end, shape, generator=self.generator).to(self.device)

    def offsets(self, *lengths: int) -> Tensor:
        return torch.tensor([0, *lengths], device=self.device).cumsum(0)

    def seed(self) -> Tensor:
        return torch.tensor([(3 << 32) + 5], device=self.device)

    def table(self, heads: int, tokens: int, gate: bool) -> BucketTable:
        """Return a table with groups, segments and positions."""
        shape = (heads, 2, 2, 2, 3)
        entries = self.gate(*shape) if gate else self.normal(*shape)
        lookup = torch.tensor([2, 1, 0, 0, 1], device=self.device)
        group, segment, position = (self.integers(end, tokens) for end in (2, 3, 9))
        return BucketTable(entries, lookup, group, segment, position, diagonal_open=True)

    def leaf(self, x: Tensor) -> Tensor:
        self.leaves.append(x.to(self.device, self.dtype).requires_grad_())
        return self.leaves[-1]


def _dense(draw: Draw, *lead: int, heads: int = 4, key_heads: int = 4, value_width: int = 8) -> tuple[Tensor, ...]:
    shapes = ((heads, 17, 8), (key_heads, 19, 8), (key_heads, 19, value_width))
    return tuple(draw.normal(*lead, *shape) for shape in shapes)


def _ragged(draw: Draw, tokens: int, keys: int | None = None) -> tuple[Tensor, ...]:
    keys = tokens if keys is None else keys
    return tuple(draw.normal(n, 4, 8) for n in (tokens, keys, keys))


LENGTHS = (3, 0, 17, 1, 9)  # 30 tokens


def dense_plain(draw: Draw) -> Call:
    tensors = _dense(draw, 2)
    return lambda: attention(*tensors, return_lse=True)


def dense_bias(draw: Draw) -> Call:
    tensors, bias = _dense(draw, 2), draw.bias(4, 17, 19)
    return lambda: attention(*tensors, bias=bias, return_lse=True)


def dense_gate(draw: Draw) -> Call:
    tensors, gate = _dense(draw, 2), draw.gate(17, 19)
    return lambda: attention(*tensors, gate=gate, return_lse=True)


def grouped_heads(draw: Draw) -> Call:
    tensors, bias, gate = _dense(draw, key_heads=2, value_width=5), draw.bias(4, 17, 19), draw.gate(19)
    return lambda: attention(*tensors, bias=bias, gate=gate, is_causal=True, scale=0.3)


def pair_bias(draw: Draw) -> Call:
    tensors, bias = _dense(draw, 2, 3), draw.normal(2, 1, 4, 17, 19)
    return lambda: attention(*tensors, bias=bias)


def dense_dropout(draw: Draw) -> Call:
    tensors, gate, seed = _dense(draw, 2), draw.gate(4, 17, 19), draw.seed()
    return lambda: attention(*tensors, gate=gate, dropout_p=0.3, seed=seed)


def nothing_open(draw: Draw) -> Call:
    tensors, bias = _dense(draw), torch.zeros(17, 19, dtype=torch.float64)
    bias[3], bias[:, 5] = float("-inf"), float("-inf")
    leaf = draw.leaf(bias)
    return lambda: attention(*tensors, bias=leaf)


def ragged(draw: Draw) -> Call:
    tensors, offsets = _ragged(draw, 30), draw.offsets(*LENGTHS)
    return lambda: attention(*tensors, offsets=offsets, max_length=17, is_causal=True)


def ragged_terms(draw: Draw) -> Call:
    tensors, offsets = _ragged(draw, 30), draw.offsets(*LENGTHS)
    bias, gate = draw.bias(4, 17, 17), draw.gate(1, 20, 20)
    return lambda: attention(*tensors, bias=bias, gate=gate, offsets=offsets, max_length=17)


def ragged_tables(draw: Draw) -> Call:
    tensors, offsets = _ragged(draw, 30), draw.offsets(*LENGTHS)
    bias, gate = draw.table(1, 30, gate=False), draw.table(4, 30, gate=True)
    return lambda: attention(*tensors, bias=bias, gate=gate, offsets=offsets, max_length=17)


def pruned(draw: Draw) -> Call:
    """The last queries of every sequence only."""
    tensors, offsets, keys = _ragged(draw, 8, 30), draw.offsets(1, 0, 4, 1, 2), draw.offsets(*LENGTHS)
    start, gate, seed = torch.tensor([2, 0, 13, 0, 7], device=draw.device), draw.table(4, 30, gate=True), draw.seed()
    options: dict[str, Any] = {
        "offsets": offsets,
        "key_offsets": keys,
        "query_start": start,
        "max_length": 17,
        "seed": seed,
    }
    return lambda: attention(*tensors, gate=gate, dropout_p=0.2, **options)


def no_keys(draw: Draw) -> Call:
    tensors, offsets, keys = _ragged(draw, 5, 3), draw.offsets(2, 3), draw.offsets(0, 3)
    return lambda: attention(*tensors, offsets=offsets, key_offsets=keys, max_length=3)


def norm(draw: Draw) -> Call:
    x, residual = (draw.normal(3, 5, 33) for _ in range(2))
    weight, bias, seed = draw.normal(33), draw.normal(33), draw.seed()
    return lambda: residual_norm(x, residual, weight, bias, dropout_p=0.3, seed=seed)


def narrow_norm(draw: Draw) -> Call:
    x, residual, weight, bias = draw.normal(9, 3), draw.normal(9, 3), draw.normal(3), draw.normal(3)
    return lambda: residual_norm(x, residual, weight, bias, eps=0.1)


def layout() -> RowLayout:
    """Three layers of odd widths, the first with two parameters side by side, the last two of equal width."""
    return RowLayout(
        (
            Layer("conv", "conv", 3, (Parameter("conv.weight", (3, 1, 3, 3), 0, 9), Parameter("bn", (3,), 9, 1))),
            Layer("one", "linear", 1, (Parameter("one.weight", (1, 5), 0, 5),)),
            Layer("head", "linear", 7, (Parameter("head.weight", (7, 5), 0, 5),)),
        )
    )


def _embedding(draw: Draw, tokens: TokenLayout, d: int, activation: str, codes: bool) -> Call:
    student = tokens.layout
    layers = len(student.layers)
    named: dict[str, Any] = {
        "rows": draw.normal(sum(tokens.teachers) * student.row_numel),
        "biases": draw.normal(layers, d),
        "shift": draw.normal(student.column_numel),
        "scale": draw.normal(student.column_numel, scale=0.1, offset=1.0),
        "position": draw.normal(8, d),
        "gamma": draw.normal(d),
        "beta": draw.normal(d),
    }
    if codes:
        sizes = {"teacher": (5, d), "layer": (layers, d), "base": (student.row_numel,)}
        named |= {name: draw.normal(*size) for name, size in sizes.items()}
    if tokens.cross:
        named["cross"] = draw.normal(layers * tokens.groups, tokens.cross, d)
    weights = [draw.normal(r, d, scale=r**-0.5) for r in student.widths]
    return lambda: embedding(**named, weights=weights, layout=tokens, activation=activation)


def tokens_with_codes(draw: Draw) -> Call:
    return _embedding(draw, layout().tokens((2, 3), 2), 17, "gelu", codes=True)


def tokens_without_codes(draw: Draw) -> Call:
    return _embedding(draw, layout().tokens((1,)), 8, "none", codes=False)


def _projection(draw: Draw, output: str, read: str) -> Call:
    tokens, d = layout().tokens((2, 3)), 9
    student = tokens.layout
    layers, copies = len(student.layers), sum(tokens.teachers)
    sizes = {
        "tokens": ((copies if read == "mean" else 2) * sum(student.rows), d),
        "strength": (layers,),
        "shift": (student.column_numel,),
        "scale": (student.column_numel,),
        "rows": (copies * student.row_numel,),
        "base": (student.row_numel,),
        "prior": (student.row_numel,),
        "blend": (layers,),
        "gate_weight": (layers, d),
        "gate_bias": (layers,),
    }
    named: dict[str, Any] = {name: draw.normal(*size) for name, size in sizes.items()}
    weights, biases = [draw.normal(d, r) for r in student.widths], [draw.normal(r) for r in student.widths]
    named |= {"layout": tokens, "read": read, "output": output}
    return lambda: projection(**named, weights=weights, biases=biases)


def plain(draw: Draw) -> Call:
    return _projection(draw, "plain", "anchor")


def anchor(draw: Draw) -> Call:
    return _projection(draw, "anchor", "anchor")


def mean(draw: Draw) -> Call:
    return _projection(draw, "mean", "mean")


def prior(draw: Draw) -> Call:
    return _projection(draw, "prior", "mean")


def gated(draw: Draw) -> Call:
    return _projection(draw, "gated", "mean")


def packed(draw: Draw) -> Call:
    """Strided tensors, as they are and rounded to bfloat16 (which has no slope)."""
    student = layout()
    teachers = [[draw.normal(*p.shape, 2).select(-1, 1) for p in student.parameters] for _ in range(3)]
    half = None if draw.smooth else torch.bfloat16
    return lambda: (pack(teachers, student), pack(teachers[:2], student, dtype=half))


def whole_model(draw: Draw) -> Call:
    """Two pre-norm blocks over bucketed gates and cross tokens, in parallel mode, with dropout."""
    tokens, d, ffn = layout().tokens((2, 1), 2), 8, 12
    student = tokens.layout

    def matrix(outputs: int, inputs: int) -> Tensor:
        return draw.normal(outputs, inputs, scale=inputs**-0.5)

    def block() -> Block:
        norms = [(draw.normal(d, scale=0.1, offset=1.0), draw.normal(d)) for _ in range(2)]
        attention = (matrix(3 * d, d), draw.normal(3 * d), matrix(d, d), draw.normal(d))
        return Block(*norms[0], *attention, *norms[1], matrix(ffn, d), draw.normal(ffn), matrix(d, ffn), draw.normal(d))

    parameters = Parameters(
        embedding_weights=[matrix(r, d) for r in student.widths],
        embedding_biases=draw.normal(3, d),
        shift=draw.normal(student.column_numel),
        scale=draw.normal(student.column_numel, scale=0.1, offset=1.0),
        position=draw.normal(8, d),
        gamma=draw.normal(d),
        beta=draw.normal(d),
        blocks=[block(), block()],
        projection_weights=[matrix(d, r) for r in student.widths],
        projection_biases=[draw.normal(r) for r in student.widths],
        strength=draw.normal(3),
        teacher=draw.normal(3, d),
        cross=draw.normal(2, d),
        gate=draw.gate(2, 2, 2, 2, 5),
        final_weight=draw.normal(d),
        final_bias=draw.normal(d),
    )
    rows, lookup, seed = draw.normal(3 * student.row_numel), torch.arange(5, device=draw.device), draw.seed()
    settings = Settings(heads=2, norm="pre", activation="relu", feed_forward="gelu", dropout_p=0.2, output="mean")
    options: dict[str, Any] = {"layout": tokens, "gate_lookup": lookup, "seed": seed}

    def call() -> Tensor:
        buffer = predict(rows, parameters, settings, **options)
        assert isinstance(buffer, Tensor)
        return torch.cat([view.flatten() for view in unpack(buffer, student).values()])

    return call


CASES: Sequence[Callable[[Draw], Call]] = (
    dense_plain,
    dense_bias,
    dense_gate,
    grouped_heads,
    pair_bias,
    dense_dropout,
    nothing_open,
    ragged,
    ragged_terms,
    ragged_tables,
    pruned,
    no_keys,
    norm,
    narrow_norm,
    tokens_with_codes,
    tokens_without_codes,
    plain,
    anchor,
    mean,
    prior,
    gated,
    packed,
    whole_model,
)
