"""projection in plain PyTorch: the definition of correct."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wfkernels.layout import aligned, column_blocks, row_blocks
from wfkernels.precision import accumulator

READS = ("anchor", "mean")
OUTPUTS = ("plain", "anchor", "mean", "prior", "gated")


@dataclass(frozen=True)
class Shape:
    """The integers of one call. `parameters[l]` are the widths of the tensors that share layer l's columns.

    Per layer, rows and tokens stand as [copies, n, ...]: group by group, teacher by teacher.
    """

    rows: Sequence[int]
    parameters: Sequence[Sequence[int]]
    projections: Sequence[int]
    teachers: Sequence[int]
    read: str
    output: str

    @property
    def widths(self) -> list[int]:
        return [sum(p) for p in self.parameters]

    @property
    def sizes(self) -> list[int]:
        """Elements that each parameter takes in one student's buffer, padding included."""
        return [aligned(n * w) for n, widths in zip(self.rows, self.parameters, strict=True) for w in widths]

    def networks(
        self, rows: Tensor | None, base: Tensor | None, prior: Tensor | None
    ) -> tuple[list[Tensor] | None, list[Tensor] | None, list[Tensor] | None]:
        """Return views of each layer's rows: of the teachers [copies, n_l, r_l], of base and prior [1, n_l, r_l]."""

        def blocks(buffer: Tensor | None, copies: int) -> list[Tensor] | None:
            if buffer is None:
                return None
            found = row_blocks(buffer, self.rows, self.widths, copies)
            return [block.unflatten(0, (copies, n)) for block, n in zip(found, self.rows, strict=True)]

        return blocks(rows, sum(self.teachers)), blocks(base, 1), blocks(prior, 1)

    def read_tokens(self, tokens: Tensor) -> list[Tensor]:
        """Return each layer's tokens [copies read, n_l, d], as views."""
        copies = sum(self.teachers) if self.read == "mean" else len(self.teachers)
        blocks = tokens.split([copies * n for n in self.rows])
        return [block.unflatten(0, (copies, n)) for block, n in zip(blocks, self.rows, strict=True)]

    def student_blocks(self, students: Tensor) -> list[list[Tensor]]:
        """Return each layer's parameters [groups, n_l, width] in the students' buffers, as views."""
        pieces = iter(students.split(self.sizes, dim=1))
        return [
            [next(pieces)[:, : n * width].unflatten(1, (n, width)) for width in widths]
            for n, widths in zip(self.rows, self.parameters, strict=True)
        ]

    def anchors(self, x: Tensor) -> Tensor:
        """Take the first teacher of every group: [copies, ...] -> [groups, ...]."""
        return torch.stack([part[0] for part in x.split(list(self.teachers))])

    def summed(self, x: Tensor) -> Tensor:
        """Add up the teachers of every group: [copies, ...] -> [groups, ...]."""
        return torch.stack([part.sum(0) for part in x.split(list(self.teachers))])

    def spread(self, x: Tensor) -> Tensor:
        """Give every teacher what its group has: [groups, ...] -> [copies, ...]; the adjoint of `summed`."""
        return torch.cat([part.expand(t, *x.shape[1:]) for t, part in zip(self.teachers, x.split(1), strict=True)])

    def counts(self, kind: str, like: Tensor) -> Tensor:
        """Return what every teacher counts in its group, [copies, 1, 1]: 1/T for "mean", 1 or 0 for "anchor"."""
        counts = [1 / t if kind == "mean" else float(i == 0) for t in self.teachers for i in range(t)]
        return torch.tensor(counts, dtype=like.dtype, device=like.device)[:, None, None]


def _delta(z: Tensor, average: Tensor, weight: Tensor, bias: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """Return the learned correction of one layer [groups, n, r] and the tokens [groups * n, d] it is made of."""
    read = z if shape.read == "anchor" else shape.summed(average * z)
    flat = read.flatten(0, 1)
    return torch.addmm(bias.to(z.dtype), flat, weight.to(z.dtype)).unflatten(0, read.shape[:2]), flat


def _gates(z: Tensor, average: Tensor, gate_weight: Tensor, gate_bias: Tensor, g: int) -> Tensor:
    """Return 1/T + z . gate_weight + gate_bias, what every row of every teacher counts, [copies, n, 1]."""
    return average + (z @ gate_weight[g].to(z.dtype) + gate_bias[g].to(z.dtype))[..., None]


def forward(
    tokens: Tensor,  # [tokens read, d]
    weights: Sequence[Tensor],  # one [d, r] per projection group
    biases: Sequence[Tensor],  # one [r] per projection group
    strength: Tensor,  # [layers]
    shift: Tensor,  # [column_numel]
    scale: Tensor,  # [column_numel]
    rows: Tensor | None,  # [sum(teachers) * row_numel]
    base: Tensor | None,  # [row_numel]
    prior: Tensor | None,  # [row_numel]
    blend: Tensor | None,  # [layers]
    gate_weight: Tensor | None,  # [projection groups, d]
    gate_bias: Tensor | None,  # [projection groups]
    shape: Shape,
) -> Tensor:  # [groups, numel]
    wide = accumulator(tokens, strength)
    shifts, scales = (column_blocks(columns.to(wide), shape.widths) for columns in (shift, scale))
    teachers, bases, priors = shape.networks(rows, base, prior)
    average = shape.counts("mean", like=shift.to(wide))
    out = torch.zeros(len(shape.teachers), sum(shape.sizes), dtype=strength.dtype, device=tokens.device)
    students = shape.student_blocks(out)
    for i, z in enumerate(shape.read_tokens(tokens)):
        z, g = z.to(wide), shape.projections[i]
        correction = strength[i].to(wide) * _delta(z, average, weights[g], biases[g], shape)[0]
        origin = shifts[i] if bases is None else shifts[i] + bases[i].to(wide)
        if shape.output == "plain":
            value = origin + scales[i] * correction
        elif shape.output == "gated":
            assert teachers is not None and bases is not None and gate_weight is not None and gate_bias is not None
            common = bases[i].to(wide)
            tasks = _gates(z, average, gate_weight, gate_bias, g) * (teachers[i].to(wide) - common)
            value = common + shape.summed(tasks) + scales[i] * correction
        else:
            assert teachers is not None
            x = teachers[i].to(wide)
            value = shape.anchors(x) if shape.output == "anchor" else shape.summed(average * x)
            if shape.output == "prior":
                assert priors is not None and blend is not None
                b = blend[i].to(wide)
                value, correction = torch.lerp(origin, value, b), correction + (1 - b) * priors[i].to(wide)
            value = value + scales[i] * correction
        for student, piece in zip(students[i], value.split(list(shape.parameters[i]), dim=2), strict=True):
            student.copy_(piece)
    return out


def backward(
    grad: Tensor,  # [groups, numel]
    tokens: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    strength: Tensor,
    shift: Tensor,
    scale: Tensor,
    rows: Tensor | None,
    base: Tensor | None,
    prior: Tensor | None,
    blend: Tensor | None,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    shape: Shape,
    inputs: bool,
) -> list[Tensor]:
    """Return the gradients of tokens, strength, prior, blend, gate_weight, gate_bias, then shift, scale, rows, base
    (0 elements unless `inputs`), then of every weight and every bias; an argument that was None has 0 elements."""
    wide = accumulator(tokens, strength)
    shifts, scales = (column_blocks(columns.to(wide), shape.widths) for columns in (shift, scale))
    teachers, bases, priors = shape.networks(rows, base, prior)
    average = shape.counts("mean", like=shift.to(wide))
    counts = shape.counts("anchor", like=average) if shape.output == "anchor" else average

    def zeros(like: Tensor | None, wanted: bool = True) -> Tensor:
        size = like.shape if like is not None and wanted else (0,)
        return torch.zeros(size, dtype=wide, device=tokens.device)

    dtokens, dstrength, dprior, dblend = map(zeros, (tokens, strength, prior, blend))
    dgate_weight, dgate_bias = map(zeros, (gate_weight, gate_bias))
    dshift, dscale, drows, dbase = (zeros(t, inputs) for t in (shift, scale, rows, base))
    dweights, dbiases = [zeros(w) for w in weights], [zeros(b) for b in biases]
    token_grads = shape.read_tokens(dtokens)
    row_grads, base_grads, prior_grads = shape.networks(
        drows if inputs and rows is not None else None,
        dbase if inputs and base is not None else None,
        None if prior is None else dprior,
    )
    shift_grads, scale_grads = (column_blocks(columns, shape.widths) if inputs else [] for columns in (dshift, dscale))

    students = shape.student_blocks(grad)
    for i, z in enumerate(shape.read_tokens(tokens)):
        z, g, over = z.to(wide), shape.projections[i], counts
        d = torch.cat([student.to(wide) for student in students[i]], dim=2)  # [groups, n, r]
        dcorrection = d * scales[i]
        delta, flat = _delta(z, average, weights[g], biases[g], shape)
        correction = strength[i].to(wide) * delta
        dstrength[i] = (dcorrection * delta).sum()
        ddelta = (dcorrection * strength[i].to(wide)).flatten(0, 1)
        dweights[g].addmm_(flat.T, ddelta)
        dbiases[g] += ddelta.sum(0)
        dz = (ddelta @ weights[g].to(wide).T).unflatten(0, d.shape[:2])
        token_grads[i].copy_(dz if shape.read == "anchor" else average * shape.spread(dz))

        # Gradients of the teachers' rows added up, and of the origin shift + base or base.
        dsum, dorigin = d, torch.zeros_like(d)
        if shape.output == "plain":
            dorigin = d
        elif shape.output == "gated":
            assert teachers is not None and bases is not None and gate_weight is not None and gate_bias is not None
            over = _gates(z, average, gate_weight, gate_bias, g)
            dover = (shape.spread(d) * (teachers[i].to(wide) - bases[i].to(wide))).sum(2)  # [copies, n]
            dgate_weight[g] += (dover[..., None] * z).sum((0, 1))
            dgate_bias[g] += dover.sum()
            token_grads[i].add_(dover[..., None] * gate_weight[g].to(wide))
        elif shape.output == "prior":
            assert teachers is not None and priors is not None and prior_grads is not None and blend is not None
            b, learned = blend[i].to(wide), priors[i].to(wide)
            origin = shifts[i] if bases is None else shifts[i] + bases[i].to(wide)
            mean = shape.summed(average * teachers[i].to(wide))
            dblend[i] = (d * (mean - origin) - dcorrection * learned).sum()
            prior_grads[i].copy_(((1 - b) * dcorrection).sum(0, keepdim=True))
            correction = correction + (1 - b) * learned
            dsum, dorigin = b * d, (1 - b) * d
        if not inputs:
            continue

        scale_grads[i].copy_((d * correction).sum((0, 1)))
        shift_grads[i].copy_(dorigin.sum((0, 1)))
        drow = None if shape.output == "plain" else over * shape.spread(dsum)  # [copies, n, r]
        if row_grads is not None and drow is not None:
            row_grads[i].copy_(drow)
        if base_grads is not None:
            if shape.output == "gated" and drow is not None:
                dorigin = d - shape.summed(drow)
            base_grads[i].copy_(dorigin.sum(0, keepdim=True))
    given = (tokens, strength, prior, blend, gate_weight, gate_bias, shift, scale, rows, base, *weights, *biases)
    found = (dtokens, dstrength, dprior, dblend, dgate_weight, dgate_bias, dshift, dscale, drows, dbase)
    return [g if t is None else g.to(t.dtype) for g, t in zip((*found, *dweights, *dbiases), given, strict=True)]
