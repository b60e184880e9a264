"""The whole model once more, written as directly as possible: one sequence at a time, gradients by autograd."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

from wfkernels import Parameters, Settings
from wfkernels.layout import TokenLayout

ACTIVATE = {"none": lambda x: x, "relu": torch.relu, "gelu": gelu}


def unpacked(buffer: Tensor, layout: TokenLayout) -> dict[tuple[int, int, int], Tensor]:
    """(layer, group, teacher) -> rows [n, r]."""
    student, rows = layout.layout, {}
    for i, block in enumerate(student.row_blocks(buffer, sum(layout.teachers))):
        n, start = student.layers[i].rows, 0
        for g, teachers in enumerate(layout.teachers):
            for t in range(teachers):
                rows[i, g, t] = block[start : start + n]
                start += n
    return rows


def sequence_gate(p: Parameters, lookup: Tensor | None, c: int, teachers: int, n: int) -> Tensor | None:
    """The gate of one sequence as a dense [H|1, S, S]."""
    size = c + teachers * n
    if p.gate is None or lookup is None:
        return None if p.gate is None else p.gate[:, :size, :size]
    reach = lookup.shape[0] // 2
    tokens = [(0, 0, k) for k in range(c)] + [(1, t, j) for t in range(1, teachers + 1) for j in range(n)]
    entries = []
    for i, (gi, si, pi) in enumerate(tokens):
        for j, (gj, sj, pj) in enumerate(tokens):
            bucket = int(lookup[max(-reach, min(reach, pi - pj)) + reach])
            entry = p.gate[:, gi, gj, int(si == sj), bucket]
            entries.append(torch.ones_like(entry) if i == j else entry)
    return torch.stack(entries, dim=1).view(-1, size, size)


def heads_of(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def naive_predict(
    rows: Tensor, p: Parameters, s: Settings, layout: TokenLayout, lookup: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    student, c = layout.layout, layout.cross
    d, layers, groups = p.gamma.shape[0], len(student.layers), layout.groups
    projections = s.projections or tuple(range(layers))
    positions = s.positions or (0,) * layers
    teachers_rows = unpacked(rows, layout)
    shift, scale = student.column_blocks(p.shift), student.column_blocks(p.scale)
    base = None if p.base is None else student.row_blocks(p.base, 1)
    prior = None if p.prior is None else student.row_blocks(p.prior, 1)

    x: dict[tuple[int, int, int], Tensor] = {}
    stream: dict[tuple[int, int], Tensor] = {}
    for i in range(layers):
        n = student.layers[i].rows
        for g, teachers in enumerate(layout.teachers):
            parts = []
            if c:
                start = p.cross[g] if p.cross.ndim == 3 else p.cross
                code = 0 if p.teacher is None else p.teacher[0]
                parts.append(start + code + (0 if p.layer is None else p.layer[i]))
            for t in range(teachers):
                raw = teachers_rows[i, g, t] - (0 if base is None else base[i])
                x[i, g, t] = (raw - shift[i]) / scale[i]
                u = x[i, g, t] @ p.embedding_weights[projections[i]] + p.embedding_biases[projections[i]]
                token = ACTIVATE[s.activation](u) + p.position[positions[i] : positions[i] + n]
                token = token + (0 if p.teacher is None else p.teacher[t + 1])
                parts.append(token + (0 if p.layer is None else p.layer[i]))
            stream[i, g] = layer_norm(torch.cat(parts), [d], p.gamma, p.beta, s.eps)

    for b, block in enumerate(p.blocks):
        last = b == len(p.blocks) - 1
        queries, keys, values, new = {}, {}, {}, {}
        for at, h in stream.items():
            y = layer_norm(h, [d], block.norm1_weight, block.norm1_bias, s.eps) if s.norm == "pre" else h
            q, k, v = linear(y, block.qkv_weight, block.qkv_bias).chunk(3, -1)
            queries[at], keys[at], values[at] = (heads_of(z, s.heads) for z in (q, k, v))
        for (i, g), h in stream.items():
            n, teachers = student.layers[i].rows, layout.teachers[g]
            score = queries[i, g] @ keys[i, g].mT / (d // s.heads) ** 0.5
            gate = sequence_gate(p, lookup, c, teachers, n)
            weight = score.exp() if gate is None else gate * score.exp()
            out = weight / weight.sum(-1, keepdim=True) @ values[i, g]
            if c and i and s.cross_layer == "parallel" and not last:
                k = torch.cat([keys[j, g][:, :c] for j in range(i)], 1)
                v = torch.cat([values[j, g][:, :c] for j in range(i)], 1)
                score = queries[i, g][:, :c] @ k.mT / (d // s.heads) ** 0.5
                across = score.softmax(-1) @ v
                out = torch.cat([out[:, :c] + across, out[:, c:]], 1)
            a = linear(out.transpose(0, 1).flatten(1), block.out_weight, block.out_bias)
            if s.norm == "pre":
                h = h + a
                y = layer_norm(h, [d], block.norm2_weight, block.norm2_bias, s.eps)
            else:
                h = y = layer_norm(h + a, [d], block.norm1_weight, block.norm1_bias, s.eps)
            hidden = ACTIVATE[s.feed_forward](linear(y, block.up_weight, block.up_bias))
            h = h + linear(hidden, block.down_weight, block.down_bias)
            if s.norm == "post":
                h = layer_norm(h, [d], block.norm2_weight, block.norm2_bias, s.eps)
            new[i, g] = h
        stream = new
    if s.norm == "pre":
        stream = {at: layer_norm(h, [d], p.final_weight, p.final_bias, s.eps) for at, h in stream.items()}

    students = torch.zeros(groups, student.numel, dtype=rows.dtype)
    pieces: list[list[Tensor]] = [[] for _ in range(groups)]
    for i, layer in enumerate(student.layers):
        g_index = projections[i]
        for g, teachers in enumerate(layout.teachers):
            z = stream[i, g][c:].view(teachers, layer.rows, d)
            read = z[0] if s.read == "anchor" else z.mean(0)
            value = p.strength[i] * (read @ p.projection_weights[g_index] + p.projection_biases[g_index])
            own = torch.stack([x[i, g, t] for t in range(teachers)])
            if s.output == "gated":
                w = 1 / teachers + z @ p.gate_weight[g_index] + p.gate_bias[g_index]
                task = torch.stack([teachers_rows[i, g, t] - base[i] for t in range(teachers)])
                raw = base[i] + (w[..., None] * task).sum(0) + scale[i] * value
            else:
                if s.output == "anchor":
                    value = value + own[0]
                if s.output == "mean":
                    value = value + own.mean(0)
                if s.output == "prior":
                    value = value + prior[i] + p.blend[i] * (own.mean(0) - prior[i])
                raw = scale[i] * value + shift[i] + (0 if base is None else base[i])
            for q in layer.parameters:
                flat = raw[:, q.start : q.start + q.width].reshape(-1)
                pieces[g].append(torch.nn.functional.pad(flat, (0, -len(flat) % 8)))
    students = torch.stack([torch.cat(piece) for piece in pieces])
    cross = torch.stack([stream[layers - 1, g][:c] for g in range(groups)]) if c else None
    return students, cross
