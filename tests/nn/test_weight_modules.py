"""The weight modules hold what WeightFormer holds, under its names, and compute what it computes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.weightformer import tiny
from weightformer.config import Config
from weightformer.model import WeightFormer
from wfkernels import Block, Parameters, RowLayout, pack, predict, unpack
from wfkernels.layout import Layer, Parameter
from wfkernels.nn import WeightProjection, WeightTokenEmbedding

WIDTH = tiny.SMALL.width
GROUPS = (2, 1, 3)
FORMS: dict[str, Config] = {
    "plain": tiny.SMALL.but(cross_tokens=2),
    "plain, all tokens": tiny.SMALL.but(read="mean", cross_tokens=0, cross_layer="none", max_teachers=0, gate="none"),
    "anchor": tiny.SMALL.but(output="anchor", positions="layer", embedding_activation="gelu"),
    "mean": tiny.SMALL.but(output="mean", read="mean", share_projections=True, embedding_activation="relu"),
    "prior": tiny.SMALL.but(output="prior", cross_tokens=0, cross_layer="none", share_projections=True),
    "gated": tiny.SMALL.but(output="gated", read="mean", max_teachers=0, gate="none"),
}


def modules(config: Config, model: WeightFormer) -> tuple[WeightTokenEmbedding, WeightProjection]:
    """The two modules with the parameters of a WeightFormer, loaded strictly."""
    shared: dict[str, Any] = {
        "cross_tokens": config.cross_tokens,
        "share_projections": config.share_projections,
        "dtype": torch.float64,
    }
    embedding = WeightTokenEmbedding(
        model.layout,
        config.width,
        activation=config.embedding_activation,
        max_teachers=config.max_teachers,
        positions=config.positions,
        center=model.center,
        **shared,
    )
    projection = WeightProjection(
        model.layout, config.width, output=config.output, read=config.read, base=model.base, **shared
    )
    state = model.state_dict()
    for module in (embedding, projection):
        module.load_state_dict({name: state[name] for name in module.state_dict()}, strict=True)
    return embedding, projection


@pytest.mark.parametrize("form", FORMS)
def test_hold_the_parameters_of_a_weightformer(form: str) -> None:
    """Put together again they predict the same students; nothing of the model but its encoder and gate is left over."""
    config = FORMS[form]
    model = tiny.generic(config)
    embedding, projection = modules(config, model)
    names = {*embedding.state_dict(), *projection.state_dict()}
    rest = {name.split(".")[0] for name in model.state_dict() if name not in names}
    assert rest <= {"blocks", "gate", "final_norm"}

    parameters = replace(model.parameters_of(), **{**embedding.tensors(), **projection.tensors()})
    groups = [tiny.teachers(count) for count in GROUPS]
    rows = model.pack(groups)
    lookup = None if model.gate is None else model.gate.lookup
    layout = model.layout.tokens(GROUPS, config.cross_tokens)
    found = predict(rows, parameters, model.settings, layout=layout, gate_lookup=lookup)
    for student, wanted in zip(found, model(rows, GROUPS), strict=True):
        tiny.assert_same(unpack(student, model.layout), wanted)


def idle(size: int) -> Block:
    """An encoder block that adds nothing to its input."""
    d = (size,)
    shapes = [d, d, (3 * size, size), (3 * size,), (size, size), d, d, d, (12, size), (12,), (size, 12), d]
    return Block(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))


@pytest.mark.parametrize("form", FORMS)
def test_compute_what_a_weightformer_computes_around_its_blocks(form: str) -> None:
    """Students and the gradients of rows and parameters are those of `predict` with a block that does nothing."""
    config = FORMS[form]
    model = tiny.generic(config)
    embedding, projection = modules(config, model)
    rows = model.pack([tiny.teachers(count) for count in GROUPS]).requires_grad_()
    final = nn.LayerNorm(WIDTH, dtype=torch.float64)
    given = None if config.output == "plain" else rows
    found = projection(final(embedding(rows, GROUPS)), GROUPS, rows=given)

    parameters = Parameters(
        **{**embedding.tensors(), **projection.tensors()},
        blocks=[idle(WIDTH)],
        final_weight=final.weight,
        final_bias=final.bias,
    )
    layout = model.layout.tokens(GROUPS, config.cross_tokens)
    settings = replace(model.settings, norm="pre", cross_layer="none")
    wanted = predict(rows, parameters, settings, layout=layout)
    assert isinstance(wanted, Tensor) and found.shape == (len(GROUPS), model.layout.numel)
    leaves = [rows, *embedding.parameters(), *projection.parameters()]
    direction = torch.randn_like(found)
    both = [(x, *torch.autograd.grad(x, leaves, direction, materialize_grads=True)) for x in (found, wanted)]
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b)


def test_a_correction_starts_at_what_it_corrects() -> None:
    layout = tiny.layout()
    embedding, projection = WeightTokenEmbedding(layout, WIDTH), WeightProjection(layout, WIDTH, output="mean")
    pool = tiny.teachers(3)
    rows = pack([[state[p.name] for p in layout.parameters] for state in pool], layout)
    (student,) = projection(embedding(rows, [3]), [3], rows=rows)
    mean = {name: torch.stack([state[name] for state in pool]).mean(0) for name in (p.name for p in layout.parameters)}
    tiny.assert_same(unpack(student, layout), mean)


class Predictor(nn.Module):
    """A predictor from parts: embedding, torch's own encoder over all tokens, projection."""

    def __init__(self) -> None:
        super().__init__()
        layout = tiny.layout()
        self.embedding = WeightTokenEmbedding(layout, WIDTH, cross_tokens=1)
        self.encoder = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
        self.projection = WeightProjection(layout, WIDTH, cross_tokens=1)

    def forward(self, rows: Tensor) -> Tensor:
        tokens = self.embedding(rows, GROUPS)
        students: Tensor = self.projection(self.encoder(tokens[None])[0], GROUPS)
        return students


def test_compile_in_one_graph_between_other_modules() -> None:
    model = Predictor().eval()
    rows = torch.randn(sum(GROUPS) * model.embedding.layout.row_numel)
    both = []
    for run in (torch.compile(model, fullgraph=True, backend="aot_eager"), model):
        students = run(rows)
        both.append((students, *torch.autograd.grad(students.sin().sum(), list(model.parameters()))))
    torch.testing.assert_close(*both)
    assert "cross_tokens=1" in repr(model.embedding) and "output='plain'" in repr(model.projection)


EMPTY = RowLayout(())
ONE = RowLayout((Layer("a", "linear", 2, (Parameter("a.weight", (2, 3), 0, 3),)),))
WRONG: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: WeightTokenEmbedding([], 8), TypeError, "WeightTokenEmbedding: layout: expected a RowLayout, got list"),
    (lambda: WeightTokenEmbedding(EMPTY, 8), ValueError, "WeightTokenEmbedding: layout: expected at least one layer"),
    (lambda: WeightTokenEmbedding(ONE, 0), ValueError, "WeightTokenEmbedding: width: expected at least 1, got 0"),
    (lambda: WeightTokenEmbedding(ONE, 8.0), TypeError, "WeightTokenEmbedding: width: expected int, got float"),
    (lambda: WeightTokenEmbedding(ONE, 8, cross_tokens=-1), ValueError, "cross_tokens: expected at least 0, got -1"),
    (lambda: WeightTokenEmbedding(ONE, 8, max_teachers=-1), ValueError, "max_teachers: expected at least 0, got -1"),
    (
        lambda: WeightTokenEmbedding(ONE, 8, activation="tanh"),
        ValueError,
        "activation: expected one of none, relu, gelu",
    ),
    (lambda: WeightTokenEmbedding(ONE, 8, positions="all"), ValueError, "positions: expected one of shared, layer"),
    (lambda: WeightTokenEmbedding(ONE, 8, center=torch.zeros(5)), ValueError, "center: expected shape [16], got [5]"),
    (
        lambda: WeightTokenEmbedding(ONE, 8, max_teachers=2)(torch.zeros(48), [3]),
        ValueError,
        "teachers: expected at most 2 (max_teachers), got 3",
    ),
    (lambda: WeightTokenEmbedding(ONE, 8)(torch.zeros(48), [2]), ValueError, "rows: expected shape [32], got [48]"),
    (lambda: WeightProjection(None, 8), TypeError, "WeightProjection: layout: expected a RowLayout, got NoneType"),
    (lambda: WeightProjection(ONE, 8, output="best"), ValueError, "WeightProjection: output: expected one of plain"),
    (lambda: WeightProjection(ONE, 8, read="last"), ValueError, "WeightProjection: read: expected one of anchor, mean"),
    (lambda: WeightProjection(ONE, 8, output="gated"), ValueError, "read: expected 'mean', because output='gated'"),
    (
        lambda: WeightProjection(ONE, 8, output="gated", read="mean"),
        ValueError,
        "base: expected a tensor, because output='gated' builds on it, got None",
    ),
    (lambda: WeightProjection(ONE, 8, base=torch.zeros(5)), ValueError, "base: expected shape [16], got [5]"),
    (lambda: WeightProjection(ONE, 8)(torch.zeros(3, 8), [2]), ValueError, "tokens: expected shape [4, width]"),
    (lambda: WeightProjection(ONE, 8)(torch.zeros(4, 7), [2]), ValueError, "weights[0]: expected shape [7, r]"),
    (lambda: WeightProjection(ONE, 8, output="mean")(torch.zeros(4, 8), [2]), ValueError, "rows: expected a tensor"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_a_wrong_call_says_what_to_do(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value) and re.match(r"(Weight\w+|embedding|projection): ", str(caught.value))
