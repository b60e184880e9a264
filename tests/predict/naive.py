"""The whole model once more, written as directly as possible: one sequence at a time, gradients by autograd."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from tests.embedding.cases import ACTIVATE, Sequences
from tests.embedding.cases import naive as naive_embedding
from tests.projection.cases import naive as naive_projection
from wfkernels import Block, Parameters, Settings
from wfkernels.layout import TokenLayout
from wfkernels.philox import keep_mask


@dataclass(frozen=True)
class Dropout:
    """The factors 0 and 1 / (1 - p) by which dropout multiplies, all 1 for p = 0."""

    p: float
    seed: Tensor | None

    def factors(self, site: int, sequence: int, heads: int, rows: Tensor, columns: int) -> Tensor:
        """[heads, rows, columns]"""
        if self.p == 0.0:
            return torch.ones(heads, rows.shape[0], columns)
        assert self.seed is not None
        places = (torch.tensor(sequence), torch.arange(heads)[:, None, None], rows[:, None], torch.arange(columns))
        return keep_mask(self.seed, site, *places, self.p).double() / (1 - self.p)


def sequence_gate(p: Parameters, lookup: Tensor | None, c: int, teachers: int, n: int) -> Tensor | None:
    """The gate of one sequence as a dense [H|1, S, S]."""
    size = c + teachers * n
    if p.gate is None or lookup is None:
        return None if p.gate is None else p.gate[:, :size, :size]
    reach = lookup.shape[0] // 2
    tokens = [(0, 0, k) for k in range(c)] + [(1, t, j) for t in range(1, teachers + 1) for j in range(n)]
    group, teacher, place = torch.tensor(tokens, dtype=torch.int64).view(size, 3).unbind(1)
    same = (teacher[:, None] == teacher).long()
    bucket = lookup[(place[:, None] - place).clamp(-reach, reach) + reach].long()
    own = torch.eye(size, dtype=torch.bool)
    return p.gate[:, group[:, None], group, same, bucket].masked_fill(own, 1.0)


def heads_of(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def attention(
    block: Block,
    inputs: Sequences,
    p: Parameters,
    s: Settings,
    layout: TokenLayout,
    lookup: Tensor | None,
    dropout: Dropout,
    b: int,
) -> Sequences:
    """Attention of block b up to its output product."""
    c, groups, d = layout.cross, layout.groups, p.gamma.shape[0]
    queries, keys, values = {}, {}, {}
    for at, y in inputs.items():
        q, k, v = linear(y, block.qkv_weight, block.qkv_bias).chunk(3, -1)
        queries[at], keys[at], values[at] = (heads_of(z, s.heads) for z in (q, k, v))
    outputs = {}
    for (i, g), q in queries.items():
        size = q.shape[1]
        score = q @ keys[i, g].mT / (d // s.heads) ** 0.5
        gate = sequence_gate(p, lookup, c, layout.teachers[g], layout.layout.layers[i].rows)
        highest = score.detach().amax(-1, keepdim=True) if size else 0.0  # torch knows no maximum of nothing
        weight = (score - highest).exp()
        weight = weight if gate is None else gate * weight
        weight = weight / weight.sum(-1, keepdim=True)
        factors = dropout.factors(3 * b, i * groups + g, s.heads, torch.arange(size), size)
        out = weight * factors.to(weight) @ values[i, g]
        if c and i and s.cross_layer == "parallel" and b < len(p.blocks) - 1:
            k = torch.cat([keys[j, g][:, :c] for j in range(i)], 1)
            v = torch.cat([values[j, g][:, :c] for j in range(i)], 1)
            weight = (q[:, :c] @ k.mT / (d // s.heads) ** 0.5).softmax(-1)
            factors = dropout.factors(-1 - b, g, s.heads, torch.arange(i * c, i * c + c), i * c)
            out = torch.cat([out[:, :c] + weight * factors.to(weight) @ v, out[:, c:]], 1)
        outputs[i, g] = linear(out.transpose(0, 1).flatten(1), block.out_weight, block.out_bias)
    return outputs


def read_tokens(s: Settings, layout: TokenLayout, i: int, g: int, return_cross: bool) -> list[int]:
    """Which tokens of a sequence the last block computes."""
    n, teachers = layout.layout.layers[i].rows, layout.teachers[g]
    rows = range(layout.cross, layout.cross + (n if s.read == "anchor" else teachers * n))
    return [*(range(layout.cross) if return_cross else ()), *rows]


def naive_predict(
    rows: Tensor,
    p: Parameters,
    s: Settings,
    layout: TokenLayout,
    lookup: Tensor | None = None,
    *,
    seed: Tensor | None = None,
    return_cross: bool = False,
) -> tuple[Tensor, Tensor | None]:
    student, c, d = layout.layout, layout.cross, p.gamma.shape[0]
    layers, groups = len(student.layers), layout.groups
    cross = None
    if p.cross is not None:
        start = p.cross if p.cross.ndim == 3 else p.cross[None].expand(groups, c, d)
        cross = start.repeat(layers, 1, 1)
    leaves = {
        **{name: getattr(p, name) for name in ("shift", "scale", "position", "gamma", "beta", "teacher", "layer")},
        "rows": rows,
        "biases": p.embedding_biases,
        "base": p.base if p.center is None else p.center,
        "cross": cross,
    }
    stream = naive_embedding(leaves, p.embedding_weights, layout, s.projections, s.positions, s.activation, s.eps)
    dropout = Dropout(s.dropout_p, seed)

    def branch(x: Sequences, site: int, last: bool) -> Sequences:
        """Dropout of a residual branch; its rows are counted over the tokens that the block computes."""
        found, first = {}, 0
        for (i, g), y in x.items():
            kept = read_tokens(s, layout, i, g, return_cross) if last else list(range(y.shape[0]))
            factors = torch.ones_like(y)
            factors[kept] = dropout.factors(site, 0, 1, torch.arange(first, first + len(kept)), d)[0].to(y)
            found[i, g], first = y * factors, first + len(kept)
        return found

    for b, block in enumerate(p.blocks):
        last = b == len(p.blocks) - 1
        norm1, norm2 = (block.norm1_weight, block.norm1_bias), (block.norm2_weight, block.norm2_bias)
        inputs = stream
        if s.norm == "pre":
            inputs = {at: layer_norm(h, [d], *norm1, s.eps) for at, h in stream.items()}
        joined = branch(attention(block, inputs, p, s, layout, lookup, dropout, b), 3 * b + 1, last)
        stream = {at: h + joined[at] for at, h in stream.items()}
        if s.norm == "post":
            stream = {at: layer_norm(h, [d], *norm1, s.eps) for at, h in stream.items()}
        hidden = {}
        for at, h in stream.items():
            y = layer_norm(h, [d], *norm2, s.eps) if s.norm == "pre" else h
            up = ACTIVATE[s.feed_forward](linear(y, block.up_weight, block.up_bias))
            hidden[at] = linear(up, block.down_weight, block.down_bias)
        hidden = branch(hidden, 3 * b + 2, last)
        stream = {at: h + hidden[at] for at, h in stream.items()}
        if s.norm == "post":
            stream = {at: layer_norm(h, [d], *norm2, s.eps) for at, h in stream.items()}
    if s.norm == "pre":
        assert p.final_weight is not None and p.final_bias is not None
        stream = {at: layer_norm(h, [d], p.final_weight, p.final_bias, s.eps) for at, h in stream.items()}

    read = {}
    for (i, g), y in stream.items():
        z = y[c:].unflatten(0, (layout.teachers[g], student.layers[i].rows))
        read[i, g] = z[:1] if s.read == "anchor" else z
    names = ("strength", "shift", "scale", "base", "prior", "blend", "gate_weight", "gate_bias")
    leaves = {name: getattr(p, name) for name in names} | {"rows": rows if p.built_on is None else p.built_on}
    lists = (p.projection_weights, p.projection_biases)
    students = naive_projection(leaves, read, *lists, layout, s.projections, s.output)
    return students, torch.stack([stream[layers - 1, g][:c] for g in range(groups)]) if return_cross else None
