"""The Triton implementation of embedding on NVIDIA GPUs: when it can run, and its launches.

Nothing here imports triton before a call asks for it, and nothing waits for the device: grids follow from shapes. How
many launches there are does not depend on the layers, the teachers or their groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wfkernels import gpu
from wfkernels.embedding import triton_schedule as work
from wfkernels.embedding.reference import Shape
from wfkernels.gpu import Config

# A program that only adds up rows: members, columns, no depth, 4 warps, 2 stages.
SUMS = Config(32, 128, 0, 4, 2)
# Programs that walk over tiles, for every multiprocessor.
RESIDENT = 4


class Form(NamedTuple):
    """What a kernel is compiled for; no length is in it."""

    activation: str
    has_teacher: bool
    has_layer: bool
    is_narrow: bool  # products of bfloat16, else of float32
    precision: str  # of float32 products: ieee or tf32


@dataclass(frozen=True)
class Problem:
    """A call in the words of the kernels."""

    lengths: work.Lengths
    read: dict[str, Any]  # the arguments that every kernel takes under these names
    weights: Tensor  # [widths of all projection groups, d]
    biases: Tensor
    codes: Tensor  # [position + teacher + layer + cross, d]
    gamma: Tensor
    form: Form
    eps: float

    @property
    def d(self) -> int:
        return self.gamma.shape[0]

    @property
    def device(self) -> torch.device:
        return self.gamma.device

    @property
    def bits(self) -> int:
        """Of an element that is multiplied."""
        return 16 if self.form.is_narrow else 32

    @property
    def factors(self) -> torch.dtype:
        return torch.bfloat16 if self.form.is_narrow else torch.float32

    def tokens(self, config: Config) -> tuple[dict[str, Any], int]:
        """Return the arguments of a kernel that walks over tiles of tokens, and how many programs do."""
        found = work.of_tokens(self.lengths, config.block_m, self.device)
        slots = found.tiles.shape[0]
        every = found.tokens.shape[1]
        given: dict[str, Any] = found._asdict()
        given |= {"weights": self.weights, "biases": self.biases, "codes": self.codes, "gamma": self.gamma}
        given |= {"slots": slots, "every": every, "eps": self.eps}
        return given, min(slots, RESIDENT * _multiprocessors(self.device))


def why_not(rows: Tensor, weights: Sequence[Tensor], *rest: Any) -> str | None:
    """Return why the call cannot run in Triton, None where it can."""
    return gpu.why_not(rows, *weights, *rest[:10])


def why_not_backward(grad: Tensor, *inputs: Any) -> str | None:
    return gpu.why_not(grad) or why_not(*inputs)


def _problem(
    rows: Tensor,
    weights: Sequence[Tensor],
    biases: Tensor,
    base: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    position: Tensor,
    teacher: Tensor | None,
    layer: Tensor | None,
    cross: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    shape: Shape,
    activation: str,
    eps: float,
    inputs: bool = False,
) -> Problem:
    # Gradients of float32 rows are as exact as those, whatever the parameters are.
    exact = inputs and any(t is not None and t.dtype == torch.float32 for t in (rows, base, shift, scale))
    is_narrow = gamma.dtype == torch.bfloat16 and not exact
    # float16 has the digits of tf32, but normalised rows and gradients may lie outside its range.
    precision = "tf32" if gamma.dtype == torch.float16 and not exact else gpu.precision()
    form = Form(activation, teacher is not None, layer is not None, is_narrow, precision)
    codes = [position, teacher, layer, None if cross is None else cross.flatten(0, 1)]
    given = {"rows": rows, "base": base, "shift": shift, "scale": scale}
    read: dict[str, Any] = {name: None if t is None else t.contiguous() for name, t in given.items()}
    return Problem(
        lengths=work.lengths(shape, weights, position, teacher, layer, cross),
        read=read | {"d": gamma.shape[0], "FORM": form},
        # One pass over the parameters, so that one launch serves all layers.
        weights=torch.cat(list(weights)) if weights else gamma.new_empty(0, gamma.shape[0]),
        biases=biases.contiguous(),
        codes=torch.cat([code for code in codes if code is not None]),
        gamma=gamma.contiguous(),
        form=form,
        eps=eps,
    )


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _blocks(config: Config) -> dict[str, int]:
    return {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k}


def forward(*inputs: Any) -> Tensor:
    """Return the tokens as wfkernels.embedding.reference does."""
    p = _problem(*inputs)
    beta = inputs[11]
    out = p.gamma.new_empty(p.lengths.units + p.lengths.cross_tokens, p.d)
    if out.numel() == 0:
        return out
    from wfkernels.embedding.triton_forward import _embedding_forward_kernel

    def step(config: Config) -> None:
        tokens, programs = p.tokens(config)
        whole = p.d <= config.block_n
        columns = 0 if whole else -(-p.d // config.block_n) * config.block_n
        gpu.launch(
            _embedding_forward_kernel,
            programs,
            config,
            p.device,
            beta=beta.contiguous(),
            out=out,
            scratch=out.new_empty(programs * config.block_m * columns, dtype=torch.float32),
            WHOLE=whole,
            **tokens,
            **p.read,
            **_blocks(config),
        )

    gpu.tuned("embedding_forward", p.device, p.d, p.bits, step)
    return out


def backward(grad: Tensor, *inputs: Any) -> list[Tensor]:
    """Return the gradients as wfkernels.embedding.reference does."""
    p = _problem(*inputs)
    rows, weights, biases, base, shift, scale, *codes, gamma, beta = inputs[:12]
    wanted = inputs[-1]
    grad_sums, found = _of_tokens(p, grad.contiguous())
    of_biases, of_gamma, of_beta, *of_codes = found.split([len(weights), 1, 1, *p.lengths.codes])
    columns = [shift, scale] if wanted else [None, None]
    of_rows, of_base, *of_columns = _of_inputs(p, grad_sums, rows, base, shift, scale, wanted)
    likes = [*columns, biases, *codes, gamma, beta, *weights]
    sums = [*of_columns, of_biases, *of_codes, of_gamma, of_beta, *_of_weights(p, grad_sums)]
    # What is returned shares no memory: one copy for every dtype hands everything out.
    result = [gamma.new_empty(0, dtype=torch.float32) if t is None else t.new_empty(t.shape) for t in likes]
    pairs = [(g, total.view(g.shape)) for g, t, total in zip(result, likes, sums, strict=True) if t is not None]
    for dtype in dict.fromkeys(g.dtype for g, _ in pairs):
        own = [(g, total) for g, total in pairs if g.dtype == dtype]
        torch._foreach_copy_([g for g, _ in own], [total for _, total in own])
    if not wanted:
        result[:2] = shift.new_empty(0), scale.new_empty(0)
    return [of_rows, of_base, *result]


def _of_tokens(p: Problem, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of units before the activation, and those of [biases, gamma, beta, codes]."""
    n = p.lengths
    # Of the dtype of products: they are factors of two, and every other sum of them errs by less than it is rounded.
    grad_tokens = torch.empty(n.units + n.cross_tokens, p.d, dtype=p.factors, device=p.device)
    grad_sums = grad_tokens[: n.units]
    has_activation = p.form.activation != "none"
    if has_activation:
        grad_sums = torch.empty_like(grad_sums)

    def step(config: Config) -> Tensor:
        first, second = work.of_codes(n, config.block_m, p.device)
        tokens, programs = p.tokens(config)
        partial = grad.new_empty(3 * tokens["slots"] + first.targets.numel(), p.d, dtype=torch.float32)
        if programs and p.d:
            from wfkernels.embedding.triton_backward import _embedding_backward_kernel

            columns = -(-p.d // config.block_n) * config.block_n
            gpu.launch(
                _embedding_backward_kernel,
                programs,
                config,
                p.device,
                grad=grad,
                grad_tokens=grad_tokens,
                grad_sums=grad_sums if has_activation else None,
                partial=partial,
                units=n.units,
                scratch=grad.new_empty(programs * 2 * config.block_m * columns, dtype=torch.float32),
                **tokens,
                **p.read,
                **_blocks(config),
            )
        _add_up(grad_tokens, first, partial)
        found = grad.new_empty(second.targets.numel(), p.d, dtype=torch.float32)
        _add_up(partial, second, found, wide=True)
        return found

    return grad_sums, gpu.tuned("embedding_backward", p.device, p.d, p.bits, step)


def _of_weights(p: Problem, grad_sums: Tensor) -> tuple[Tensor, ...]:
    """Return the gradient of every weight, float32."""

    def step(config: Config) -> Tensor:
        split = work.of_weights(p.lengths, config.block_m, config.block_n, config.block_k, p.d, p.device)
        found = grad_sums.new_empty(split.rows, p.d, dtype=torch.float32)
        if split.blocks.shape[0] and p.d:
            from wfkernels.embedding.triton_backward import _embedding_backward_weights_kernel

            tokens = work.of_tokens(p.lengths, config.block_m, p.device)
            gpu.launch(
                _embedding_backward_weights_kernel,
                split.blocks.shape[0] * -(-p.d // config.block_n),
                config,
                p.device,
                grad_sums=grad_sums,
                grad_weights=found,
                layers=tokens.layers,
                tokens=tokens.tokens,
                blocks=split.blocks,
                runs=split.runs,
                every=tokens.tokens.shape[1],
                **p.read,
                **_blocks(config),
            )
        _add_up(found, split.sums, found, wide=True)
        return found

    found = gpu.tuned("embedding_weights", p.device, p.d, p.bits, step)
    widths = list(p.lengths.group_widths)
    return tuple(found[: sum(widths)].split(widths))


def _of_inputs(
    p: Problem, grad_sums: Tensor, rows: Tensor, base: Tensor | None, shift: Tensor, scale: Tensor, wanted: bool
) -> tuple[Tensor, ...]:
    """Return the gradients of rows, base, shift and scale, the last two in float32."""
    of_rows, of_base = (
        p.gamma.new_empty(0, dtype=torch.float32) if t is None else t.new_empty(t.shape if wanted else 0)
        for t in (rows, base)
    )
    if not wanted:
        return of_rows, of_base, shift, scale

    def step(config: Config) -> Tensor:
        split = work.of_inputs(p.lengths, config.block_m, config.block_n, p.device)
        tiles = split.blocks.shape[0]
        partial = grad_sums.new_empty(2 * tiles, config.block_n, dtype=torch.float32)
        if tiles:
            from wfkernels.embedding.triton_backward import _embedding_backward_inputs_kernel

            gpu.launch(
                _embedding_backward_inputs_kernel,
                tiles,
                config,
                p.device,
                grad_sums=grad_sums,
                weights=p.weights,
                grad_rows=of_rows,
                grad_base=None if base is None else of_base,
                partial=partial,
                layers=work.of_tokens(p.lengths, config.block_m, p.device).layers,
                blocks=split.blocks,
                copies=p.lengths.copies,
                **p.read,
                **_blocks(config),
            )
        sums = partial.new_empty(split.sums.targets.numel(), config.block_n)
        _add_up(partial, split.sums, sums, wide=True)
        return sums.flatten().index_select(0, split.places)

    of_shift, of_scale = gpu.tuned("embedding_inputs", p.device, p.d, p.bits, step).chunk(2)
    return of_rows, of_base, of_shift, of_scale


def _add_up(source: Tensor, sums: work.Sums, out: Tensor, wide: bool = False) -> None:
    """Write sums of rows of `source` into rows of `out`. wide: in float64, for many members."""
    count, columns = sums.targets.numel(), source.shape[1]
    if count * columns == 0:
        return
    from wfkernels.embedding.triton_backward import _embedding_sums_kernel

    gpu.launch(
        _embedding_sums_kernel,
        count * -(-columns // SUMS.block_n),
        SUMS,
        source.device,
        source=source,
        out=out,
        columns=columns,
        WIDE=wide,
        BLOCK_M=SUMS.block_m,
        BLOCK_N=SUMS.block_n,
        **sums._asdict(),
    )
