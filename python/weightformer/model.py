"""WeightFormer: the weights of an ensemble in, the weights of one network out (arXiv 2210.01973)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from weightformer import rows as module_rows
from weightformer.config import Config
from weightformer.gates import Gate
from weightformer.parts import Call
from weightformer.pretrained import WEIGHTS, Contents, Pretrained, describe, restore
from weightformer.state import State
from wfkernels import Block, Parameters, Settings, pack, predict, unpack
from wfkernels.layout import RowLayout


def statistics(rows: Tensor, layout: RowLayout, copies: int) -> tuple[Tensor, Tensor]:
    """Return shift and scale, column buffers [column_numel], from the rows of `copies` networks.

    The shift is the mean of every column over networks and rows; the scale is one standard deviation per parameter, so
    that the columns of one weight keep their proportions. A parameter that never varies has scale 1.
    """
    shift = torch.zeros(layout.column_numel, device=rows.device)
    scale = torch.ones_like(shift)
    shifts, scales = layout.column_blocks(shift), layout.column_blocks(scale)
    for layer, block, a, b in zip(layout.layers, layout.row_blocks(rows, copies), shifts, scales, strict=True):
        a.copy_(block.double().mean(0))
        for parameter in layer.parameters:
            columns = slice(parameter.start, parameter.start + parameter.width)
            deviation = (block[:, columns].double() - a[columns]).square().mean().sqrt()
            b[columns] = deviation if deviation > 0 else 1.0
    return shift, scale


class StudentModel(nn.Module):
    """Anything trained by `fit`: teachers' rows in, one student per group of teachers out.

    Holds the layout and the normalisation of a teacher pool as buffers; subclasses bring `forward`.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, layout: RowLayout) -> None:
        super().__init__()
        self.layout = layout
        self.register_buffer("shift", torch.zeros(layout.column_numel))
        self.register_buffer("scale", torch.ones(layout.column_numel))

    def pack(self, groups: Sequence[Sequence[State]]) -> Tensor:
        """Return the rows buffer [sum(T) * row_numel] of groups of teachers, on this model's device."""
        teachers = [module_rows.tensors(state, self.layout) for group in groups for state in group]
        return pack(teachers, self.layout, dtype=self.shift.dtype).to(self.shift.device)

    def forward(self, rows: Tensor, teachers: Sequence[int]) -> list[dict[str, Tensor]]:
        """Return every group's student by parameter name; rows as `pack` gives them, teachers: T of every group."""
        raise NotImplementedError(f"{type(self).__name__}.forward")

    def fast_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that learn at `Recipe.prior_rate` times the rate and without decay."""
        return []

    def penalty(self, rows: Tensor, teachers: Sequence[int], sparsity: float, shift: float) -> Tensor:
        """Return what `fit` adds to the loss of the students."""
        return self.shift.new_zeros(())

    @torch.no_grad()
    def predict(self, teachers: Sequence[State], **options: Any) -> dict[str, Tensor]:
        """Return the state dict of one student for T teachers: predicted parameters, the first teacher's buffers.

        Every tensor has the dtype and the device of the first teacher's; tied parameters stand under all of their
        names. Running statistics are those of the first teacher: re-estimate them with `evaluate.recalibrate`.
        options: those of `forward`. Raises ValueError where a predicted weight overflows the first teacher's dtype.
        """
        training = self.training
        self.eval()
        try:
            (student,) = self(self.pack([teachers]), [len(teachers)], **options)
        finally:
            self.train(training)
        first = dict(teachers[0])
        own = zip(self.layout.parameters, module_rows.tensors(first, self.layout), strict=True)
        first.update({parameter.name: tensor for parameter, tensor in own})
        first.update({alias: first[name] for alias, name in self.layout.tied})
        return {
            name: _cast(name, student[name], tensor) if name in student else tensor.clone()
            for name, tensor in first.items()
        }


class WeightFormer(StudentModel, Pretrained):
    """Predicts one student from T teachers; see Config for every form it takes.

    `save_pretrained`, `from_pretrained` and `push_to_hub` keep it in a folder or on the Hugging Face hub.

    Args:
        layout: the rows of the architecture, `weightformer.rows.layout(module)`.
        config: sizes and forms.
        base: rows [row_numel] of the network all teachers were fine-tuned from (`pack([tensors], layout)`): tokens are
            then task vectors, and output "gated" builds on it.
    """

    base: Tensor | None
    center: Tensor | None

    def __init__(self, layout: RowLayout, config: Config, *, base: Tensor | None = None) -> None:
        super().__init__(layout)
        if config.output == "gated" and base is None:
            raise ValueError("WeightFormer: base: expected the rows of the common base, because output is 'gated'")
        if base is not None and tuple(base.shape) != (layout.row_numel,):
            raise ValueError(f"WeightFormer: base: expected shape [{layout.row_numel}], got {list(base.shape)}")
        if config.head is not None and not 0 <= config.head < len(layout.layers):
            raise ValueError(f"WeightFormer: head: expected a layer below {len(layout.layers)}, got {config.head}")
        self.config = config
        d, layers = config.width, len(layout.layers)
        self.projections = self._groups()
        widths = [layout.widths[self.projections.index(g)] for g in range(max(self.projections) + 1)]
        per_layer = config.positions == "layer"
        self.positions = tuple(sum(layout.rows[:i]) if per_layer else 0 for i in range(layers))
        self.register_buffer("base", None if base is None else base.detach().clone())
        self.register_buffer("center", None if base is None else base.detach().clone())

        def code(*size: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*size) * 0.5)

        self.embeddings = nn.ModuleList(nn.Linear(w, d) for w in widths)
        self.position = code(sum(layout.rows) if per_layer else max(layout.rows), d)
        self.teacher = code(config.max_teachers + 1, d) if config.max_teachers else None
        self.layer = code(layers, d)
        self.cross = code(config.cross_tokens, d) if config.cross_tokens else None
        self.norm = nn.LayerNorm(d)
        self.blocks = nn.ModuleList(encoder_block(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(d) if config.norm == "pre" else None
        self.gate = None if config.gate == "none" else Gate(config, max(layout.rows))
        self.outputs = nn.ModuleList(nn.Linear(d, w) for w in widths)
        self.strength = nn.Parameter(torch.ones(layers))
        prior, gated = config.output == "prior", config.output == "gated"
        self.prior = nn.Parameter(torch.zeros(layout.row_numel)) if prior else None
        self.blend = nn.Parameter(torch.zeros(layers)) if prior else None
        self.gate_weight = nn.Parameter(torch.zeros(len(widths), d)) if gated else None
        self.gate_bias = nn.Parameter(torch.zeros(len(widths))) if gated else None
        if config.output != "plain":
            # A correction starts at nothing; the paper's plain output has nothing else to start from.
            for parameter in self.outputs.parameters():
                nn.init.zeros_(parameter)

    def _groups(self) -> tuple[int, ...]:
        """Return the projection group of every layer."""
        if not self.config.share_projections:
            return tuple(range(len(self.layout.layers)))
        seen: dict[tuple[str, int], int] = {}
        return tuple(seen.setdefault((layer.kind, layer.width), len(seen)) for layer in self.layout.layers)

    @torch.no_grad()
    def set_statistics(self, teachers: Sequence[State], head: int | None = None) -> None:
        """Take the normalisation from a pool of teachers.

        With a base, tokens are task vectors relative to the pool's mean of each weight, and columns are not shifted;
        the rows of the classifier layer `head` share one mean, because the order of the classes is not to be known.
        """
        pooled = self.pack([teachers])
        copies = len(teachers)
        if self.center is None:
            shift, scale = statistics(pooled, self.layout, copies)
            self.shift.copy_(shift)
        else:
            blocks, centers = self.layout.row_blocks(pooled, copies), self.layout.row_blocks(self.center, 1)
            for i, (block, center) in enumerate(zip(blocks, centers, strict=True)):
                mean = block.view(copies, len(center), -1).mean(0)
                center.copy_(mean.mean(0, keepdim=True).expand_as(mean) if i == head else mean)
                block.sub_(center.repeat(copies, 1))
            _, scale = statistics(pooled, self.layout, copies)
        self.scale.copy_(scale)

    @torch.no_grad()
    def set_prior(self, teacher: State, head: int) -> None:
        """Start the learned prior at one teacher's normalised rows with the classifier layer `head` left out.

        The classifier starts as the teachers' mean instead: the order of the classes cannot be known beforehand.
        """
        if self.prior is None or self.blend is None:
            raise ValueError(f"set_prior: output: expected 'prior', got {self.config.output!r}")
        self.prior.copy_(self.pack([[teacher]]))
        if self.base is not None:
            self.prior.sub_(self.base)
        shifts, scales = self.layout.column_blocks(self.shift), self.layout.column_blocks(self.scale)
        for block, shift, scale in zip(self.layout.row_blocks(self.prior, 1), shifts, scales, strict=True):
            block.sub_(shift).div_(scale)
        self.layout.row_blocks(self.prior, 1)[head].zero_()
        self.blend.zero_()
        self.blend[head] = 1.0

    def parameters_of(self) -> Parameters:
        """Return all tensors as `wfkernels.predict` takes them."""
        final, gate = self.final_norm, self.gate
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
            strength=self.strength,
            teacher=self.teacher,
            layer=self.layer,
            cross=self.cross,
            gate=None if gate is None else gate(),
            final_weight=None if final is None else final.weight,
            final_bias=None if final is None else final.bias,
            base=self.base,
            center=self.center,
            prior=self._prior_rows(),
            blend=self.blend,
            gate_weight=self.gate_weight,
            gate_bias=self.gate_bias,
        )

    @property
    def settings(self) -> Settings:
        """The settings of `wfkernels.predict`; dropout only while training."""
        c = self.config
        return Settings(
            heads=c.heads,
            norm=c.norm,
            activation=c.embedding_activation,
            feed_forward=c.activation,
            dropout_p=c.dropout if self.training else 0.0,
            cross_layer="parallel" if c.cross_layer == "parallel" else "none",
            read=c.read,
            output=c.output,
            projections=self.projections,
            positions=self.positions,
            recompute=c.recompute,
        )

    def forward(
        self, rows: Tensor, teachers: Sequence[int], *, built_on: Sequence[State] | None = None
    ) -> list[dict[str, Tensor]]:
        """Return every group's student as views of its predicted buffer, for `torch.func.functional_call`.

        rows: [sum(T) * row_numel] as `pack` gives it; teachers: T of every group. built_on: other networks whose rows
        the output builds on, while the tokens are those of `rows`; shows how much a student owes to its tokens.
        """
        most = self.config.max_teachers
        if most and max(teachers, default=0) > most:
            raise ValueError(f"WeightFormer: teachers: expected at most {most} (max_teachers), got {max(teachers)}")
        parameters = self.parameters_of()
        if built_on is not None:
            parameters = replace(parameters, built_on=self.pack([built_on]))
        return self._students(Call(self.layout, rows, tuple(teachers), parameters, self.settings))

    def _students(self, call: Call) -> list[dict[str, Tensor]]:
        """Return every group's student, or the part of it that the call is about."""
        lookup = None if self.gate is None else self.gate.lookup
        if self.config.cross_layer == "recurrent":
            return self._recurrent(call, lookup)
        tokens = call.layout.tokens(call.teachers, self.config.cross_tokens)
        buffers = predict(call.rows, call.parameters, call.settings, layout=tokens, gate_lookup=lookup)
        return [unpack(buffer, call.layout) for buffer in buffers]

    def _recurrent(self, call: Call, lookup: Tensor | None) -> list[dict[str, Tensor]]:
        """Predict layer after layer; the cross tokens that leave one layer enter the next."""
        students: list[dict[str, Tensor]] = [{} for _ in call.teachers]
        cross = call.parameters.cross
        for i in range(len(call.layout.layers)):
            one = call.part([i])
            buffers, cross = predict(
                one.rows,
                replace(one.parameters, cross=cross),
                one.settings,
                layout=one.layout.tokens(one.teachers, self.config.cross_tokens),
                gate_lookup=lookup,
                return_cross=True,
            )
            for student, buffer in zip(students, buffers, strict=True):
                student.update(unpack(buffer, one.layout))
        for student in students:
            student.update({alias: student[name] for alias, name in call.layout.tied})
        return students

    def _position_codes(self) -> Tensor:
        """Return the codes of all neurons; the rows of the head share the first of theirs."""
        head = self.config.head
        if head is None:
            return self.position
        start, n = self.positions[head], self.layout.rows[head]
        shared = self.position[start].expand(n, -1)
        return torch.cat([self.position[:start], shared, self.position[start + n :]])

    def _prior_rows(self) -> Tensor | None:
        """Return the learned prior; the rows of the head share their mean."""
        head = self.config.head
        if head is None or self.prior is None:
            return self.prior
        parts = list(self.prior.split([layer.rows * layer.stride for layer in self.layout.layers]))
        rows = parts[head].view(self.layout.rows[head], -1)
        parts[head] = rows.mean(0).expand(rows.shape).flatten()
        return torch.cat(parts)

    def contents(self) -> Contents:
        return Contents(describe(self), {WEIGHTS: self.state_dict()})

    @classmethod
    def restored(cls, where: str, about: Mapping[str, Any], files: Mapping[str, State]) -> Self:
        return restore(cls, about, files[WEIGHTS])

    def fast_parameters(self) -> list[nn.Parameter]:
        return [p for p in (self.prior, self.blend) if p is not None]

    def penalty(self, rows: Tensor, teachers: Sequence[int], sparsity: float, shift: float) -> Tensor:
        """Return sparsity * (mean openness of the gate) + shift * (disagreement of shifted windows)."""
        total = super().penalty(rows, teachers, sparsity, shift)
        if sparsity and self.gate is not None:
            total = total + sparsity * self.gate.openness(self.layout.tokens(teachers, self.config.cross_tokens))
        if shift:
            total = total + shift * self.shift_consistency(rows, teachers)
        return total

    def shift_consistency(self, rows: Tensor, teachers: Sequence[int], by: int = 1) -> Tensor:
        """Return how far students predicted from neurons 0 ... n-1-by and by ... n-1 disagree on those they share.

        Mean squared difference in the normalised domain; positions restart in both windows, and dropout is off. Layers
        of at most 2 * by neurons take no part.
        """
        kept = [i for i, layer in enumerate(self.layout.layers) if layer.rows > 2 * by]
        if not kept:
            return rows.new_zeros(())
        settings = replace(self.settings, dropout_p=0.0)
        call = Call(self.layout, rows, tuple(teachers), self.parameters_of(), settings)
        early, late = (call.part(kept, first, by) for first in (0, by))
        scales = early.layout.column_blocks(early.parameters.scale)
        total, count = rows.new_zeros(()), 0
        for first, second in zip(self._students(early), self._students(late), strict=True):
            for layer, scale in zip(early.layout.layers, scales, strict=True):
                for p in layer.parameters:
                    difference = (first[p.name][by:] - second[p.name][:-by]) / scale[p.start : p.start + p.width]
                    total, count = total + difference.square().sum(), count + difference.numel()
        return total / count


def _cast(name: str, weight: Tensor, like: Tensor) -> Tensor:
    """Return a copy of a predicted weight with the device and the dtype of `like`."""
    cast = weight.to(like.device, like.dtype, copy=True)
    # Back in the wider dtype, because not every float8 knows isfinite.
    if weight.isfinite().all() and not cast.to(weight.dtype).isfinite().all():
        raise ValueError(
            f"predict: {name!r} is too large for {like.dtype}, the first teacher's dtype; give the teachers in float32"
        )
    return cast


def encoder_block(config: Config) -> nn.ModuleDict:
    """Return the parameters of one block, named as in `wfkernels.Block`; the computation is `wfkernels.predict`'s."""
    d, hidden = config.width, config.feed_forward
    return nn.ModuleDict(
        {
            "norm1": nn.LayerNorm(d),
            "norm2": nn.LayerNorm(d),
            "qkv": nn.Linear(d, 3 * d),
            "out": nn.Linear(d, d),
            "up": nn.Linear(d, hidden),
            "down": nn.Linear(hidden, d),
        }
    )
