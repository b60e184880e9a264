"""The Triton implementation of projection on NVIDIA GPUs: when it can run, and its launches.

Nothing here imports triton before a call asks for it, and nothing waits for the device: grids follow from sizes. The
number of launches depends neither on the layers nor on the teachers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wfkernels import gpu
from wfkernels.gpu import Config
from wfkernels.projection import triton_tables as tables
from wfkernels.projection.triton_problem import Problem, blocks, launch, problem, tuned
from wfkernels.projection.triton_tables import Segment

# Programs without a product: rows, columns (of a layer, of sums), columns of d.
READ = Config(16, 0, 128, 4, 1)
ROWS = Config(8, 128, 0, 4, 1)
GATES = Config(ROWS.block_m, 0, 128, 4, 1)
FOLD = Config(32, 128, 0, 4, 1)
FOLD_NUMBERS = Config(512, 1, 0, 4, 1)
# Below the largest number of 16 bits, with room for what a product adds up.
LARGEST = 2.0**14


def why_not(tokens: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *rest: Any) -> str | None:
    """Return why the call cannot run in Triton, None where it can."""
    return gpu.why_not(tokens, *weights, *biases, *rest[:9])


def why_not_backward(grad: Tensor, *inputs: Any) -> str | None:
    """Return why the gradients cannot be computed in Triton, None where they can."""
    return gpu.why_not(grad) or why_not(*inputs)


def _read(p: Problem, averages: bool, gates: bool) -> tuple[Tensor | None, Tensor | None]:
    """Return the mean of every unit's tokens and what every teacher's row counts, where asked for."""
    means = p.tokens.new_empty(p.sizes.groups * sum(p.sizes.rows), p.sizes.d) if averages else None
    counts = p.tokens.new_empty(p.tokens.shape[0], dtype=torch.float32) if gates else None
    if not (averages or gates):
        return None, None
    from wfkernels.projection.triton_forward import _projection_read_kernel

    tiles, _, programs = tables.tiles(p.sizes, "units", READ.block_m, 1, p.device)
    launch(
        _projection_read_kernel,
        programs,
        READ,
        p.device,
        tokens=p.tokens,
        gate_weight=p.gate_weight if gates else None,
        gate_bias=p.gate_bias if gates else None,
        means=means,
        gates=counts,
        tiles=tiles,
        d=p.sizes.d,
        **p.scalars(),
        **blocks(READ),
    )
    return means, counts


def forward(*inputs: Any) -> Tensor:
    """Return the students as wfkernels.projection.reference does."""
    p = problem(*inputs)
    out = p.strength.new_empty(p.sizes.groups, sum(p.sizes.students))
    out.index_fill_(1, tables.padding(p.sizes, p.device), 0)
    reads_all = p.reads_all(out)
    means, gates = _read(p, p.averages and not reads_all, p.output == "gated")
    from wfkernels.projection.triton_forward import _projection_forward_kernel

    def step(config: Config) -> None:
        tiles, _, programs = tables.tiles(p.sizes, "students", config.block_m, config.block_n, p.device)
        launch(
            _projection_forward_kernel,
            programs,
            config,
            p.device,
            read=p.tokens if means is None else means,
            weight=p.weight,
            bias=p.bias,
            strength=p.strength,
            shift=p.shift,
            scale=p.scale,
            rows=p.rows,
            base=None if p.output in ("anchor", "mean") else p.base,
            prior=p.prior,
            blend=p.blend,
            gates=gates,
            students=out,
            tiles=tiles,
            d=p.sizes.d,
            joined=p.sizes.joined,
            FORM=p.form(reads_all),
            **p.scalars(),
            **p.students(),
            **blocks(config),
        )

    tuned("forward", p, step)
    return out


def backward(grad: Tensor, *inputs: Any) -> list[Tensor]:
    """Return the gradients as wfkernels.projection.reference does."""
    *given, wanted = inputs
    p, grad = problem(*given), grad.contiguous()
    weights = given[1]
    means, gates = _read(p, p.averages, p.output == "gated" and wanted)
    power = _power(p, grad)
    deltas, columns = _of_columns(p, grad, means, power, wanted)
    strength, shift, scale, biases = columns
    drows, base, prior, blend, gate_weight, gate_bias, over = _of_rows(p, grad, gates, wanted)
    tokens = _of_tokens(p, deltas, power, over)
    packed = _of_weights(p, deltas, power, p.tokens if means is None else means)
    lists = _apart(packed, [w.shape for w in weights]) + _apart(biases, [w.shape[1:] for w in weights])
    return [tokens, strength, prior, blend, gate_weight, gate_bias, shift, scale, drows, base, *_copied(lists)]


def _apart(packed: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Return the parts of a packed buffer as views."""
    parts = packed.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _copied(views: list[Tensor]) -> list[Tensor]:
    """Return tensors of their own, all copied at once: results of an op share no memory."""
    copies = [torch.empty_like(view) for view in views]
    torch._foreach_copy_(copies, views)
    return copies


def _power(p: Problem, grad: Tensor) -> Tensor | None:
    """Return by what gradients of products are divided so that float16 holds them; None for dtypes that need none."""
    if p.tokens.dtype != torch.float16 or 0 in (grad.numel(), p.scale.numel(), p.strength.numel()):
        return None
    parts = (torch.linalg.vector_norm(t, float("inf"), dtype=torch.float32) for t in (grad, p.scale, p.strength))
    bound = torch.stack(list(parts)).prod(0, keepdim=True) / LARGEST
    # Gradients that are not finite stay what they are, whatever the others are divided by.
    return bound.nan_to_num_(nan=1.0).clamp_(2.0**-100, 2.0**100)


def _of_columns(
    p: Problem, grad: Tensor, means: Tensor | None, power: Tensor | None, wanted: bool
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Return the gradients of products [groups * row_numel], and those of strength, shift, scale and packed biases."""
    from wfkernels.projection.triton_backward import _projection_backward_delta_kernel
    from wfkernels.projection.triton_sums import _projection_fold_columns_kernel

    deltas = p.tokens.new_empty(p.sizes.groups * p.sizes.row_numel)
    reads_all = p.reads_all(p.strength, *((p.scale,) if wanted else ()))
    kinds = 3 if p.output == "prior" else 2

    def step(config: Config) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tiles, slots, programs = tables.tiles(p.sizes, "students", config.block_m, config.block_n, p.device)
        sums = p.tokens.new_empty((programs, kinds, config.block_n), dtype=torch.float32)
        strengths = p.tokens.new_empty(programs, dtype=torch.float32)
        launch(
            _projection_backward_delta_kernel,
            programs,
            config,
            p.device,
            grad=grad,
            read=p.tokens if means is None or reads_all else means,
            weight=p.weight,
            bias=p.bias,
            strength=p.strength,
            scale=p.scale,
            prior=p.prior,
            power=power,
            deltas=deltas,
            sums=sums,
            strengths=strengths,
            tiles=tiles,
            d=p.sizes.d,
            joined=p.sizes.joined,
            FORM=p.form(reads_all),
            **p.scalars(),
            **p.students(),
            **blocks(config),
        )
        shift, scale = (t.new_empty(t.shape if wanted else 0) for t in (p.shift, p.scale))
        biases = p.bias.new_empty(sum(p.sizes.breadths))
        folds, programs = tables.folds(p.sizes, config.block_n, p.device)
        launch(
            _projection_fold_columns_kernel,
            programs,
            FOLD,
            p.device,
            sums=sums,
            strength=p.strength,
            scale=p.scale,
            blend=p.blend,
            grad_shift=shift if wanted else None,
            grad_scale=scale if wanted else None,
            grad_biases=biases,
            folds=folds,
            layers=tables.layers(p.sizes, p.device),
            slots=slots,
            FORM=p.form(),
            BLOCK_M=FOLD.block_m,
            BLOCK_N=config.block_n,
        )
        by_layer = tables.by_layer(p.sizes, "students", config.block_m, config.block_n)
        return _folded(strengths, p.strength, by_layer, FOLD_NUMBERS), shift, scale, biases

    return deltas, tuned("delta", p, step)


def _folded(sums: Tensor, like: Tensor, segments: tuple[Segment, ...], config: Config) -> Tensor:
    """Return a tensor like `like` that is the sum of the segments' parts."""
    out = like.new_empty(like.shape)
    _fold(sums, out, segments, config)
    return out


def _fold(sums: Tensor, out: Tensor, segments: tuple[Segment, ...], config: Config) -> None:
    from wfkernels.projection.triton_sums import _projection_fold_kernel

    found, programs = tables.segments(segments, config.block_n, out.device)
    launch(_projection_fold_kernel, programs, config, out.device, sums=sums, out=out, segments=found, **blocks(config))


def _of_rows(
    p: Problem, grad: Tensor, gates: Tensor | None, wanted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of rows, base, prior, blend, gate_weight and gate_bias, and those of gates."""
    is_prior, is_gated = p.output == "prior", p.output == "gated"
    of_rows = wanted and p.rows is not None and p.output != "plain"
    of_base = wanted and p.base is not None and p.output not in ("anchor", "mean")

    def empty(like: Tensor | None, wanted: bool, written: bool) -> Tensor:
        if like is None:
            return p.tokens.new_empty(0, dtype=torch.float32)
        return (like.new_empty if written or not wanted else like.new_zeros)(like.shape if wanted else 0)

    drows, base = empty(p.rows, wanted, of_rows), empty(p.base, wanted, of_base)
    prior, blend = empty(p.prior, True, is_prior), empty(p.blend, True, False)
    gate_weight, gate_bias = empty(p.gate_weight, True, is_gated), empty(p.gate_bias, True, is_gated)
    if not (is_prior or is_gated or of_rows or of_base):
        return drows, base, prior, blend, gate_weight, gate_bias, None
    from wfkernels.projection.triton_rows import _projection_backward_rows_kernel

    tiles, slots, programs = tables.tiles(p.sizes, "networks", ROWS.block_m, ROWS.block_n, p.device)
    sums = p.tokens.new_empty((programs, p.sizes.copies * ROWS.block_m if is_gated else 1), dtype=torch.float32)
    launch(
        _projection_backward_rows_kernel,
        programs,
        ROWS,
        p.device,
        grad=grad,
        shift=p.shift,
        scale=p.scale,
        rows=p.rows,
        base=p.base,
        prior=p.prior,
        blend=p.blend,
        gates=gates,
        grad_rows=drows if of_rows else None,
        grad_base=base if of_base else None,
        grad_prior=prior if is_prior else None,
        overs=sums if is_gated else None,
        blends=sums if is_prior else None,
        tiles=tiles,
        FORM=p.form(),
        **p.scalars(),
        **p.students(),
        **blocks(ROWS),
    )
    over = None
    if is_prior:
        assert p.blend is not None
        by_layer = tables.by_layer(p.sizes, "networks", ROWS.block_m, ROWS.block_n)
        blend = _folded(sums, p.blend, by_layer, FOLD_NUMBERS)
    if is_gated:
        over, gate_weight, gate_bias = _of_gates(p, sums, slots, gate_weight, gate_bias)
    return drows, base, prior, blend, gate_weight, gate_bias, over


def _of_gates(
    p: Problem, overs: Tensor, slots: tables.Slots, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of gates [copies * rows], of gate_weight and of gate_bias."""
    from wfkernels.projection.triton_rows import _projection_backward_gates_kernel

    size = p.sizes.d + 1
    tiles, _, programs = tables.tiles(p.sizes, "copies", GATES.block_m, 1, p.device)
    whole = overs.new_empty(p.tokens.shape[0])
    sums = overs.new_empty(programs, size)
    launch(
        _projection_backward_gates_kernel,
        programs,
        GATES,
        p.device,
        tokens=p.tokens,
        overs=overs,
        whole=whole,
        sums=sums,
        tiles=tiles,
        layers=tables.layers(p.sizes, p.device),
        slots=slots,
        d=p.sizes.d,
        copies=p.sizes.copies,
        **blocks(GATES),
    )
    both = weight.new_empty(len(p.sizes.breadths), size)
    _fold(sums, both, tables.by_projection(p.sizes, "copies", GATES.block_m, 1, size), FOLD)
    return whole, weight.copy_(both[:, :-1]), bias.copy_(both[:, -1])


def _of_tokens(p: Problem, deltas: Tensor, power: Tensor | None, over: Tensor | None) -> Tensor:
    from wfkernels.projection.triton_backward import _projection_backward_tokens_kernel

    tokens = torch.empty_like(p.tokens)

    def step(config: Config) -> None:
        tiles, _, programs = tables.tiles(p.sizes, "tokens", config.block_m, config.block_n, p.device)
        launch(
            _projection_backward_tokens_kernel,
            programs,
            config,
            p.device,
            deltas=deltas,
            weight=p.weight,
            power=power,
            gate_weight=p.gate_weight if p.output == "gated" else None,
            overs=over,
            grad_tokens=tokens,
            tiles=tiles,
            d=p.sizes.d,
            joined=p.sizes.joined,
            FORM=p.form(),
            **p.scalars(),
            **blocks(config),
        )

    tuned("tokens", p, step)
    return tokens


def _of_weights(p: Problem, deltas: Tensor, power: Tensor | None, read: Tensor) -> Tensor:
    """Return the gradients of all weights [d, r], one after the other."""
    from wfkernels.projection.triton_backward import _projection_backward_weights_kernel

    packed = p.weight.new_empty(p.sizes.d * sum(p.sizes.breadths))

    def step(config: Config) -> None:
        products, programs, partial, segments = tables.products(p.sizes, config.block_m, config.block_n, p.device)
        partials = packed.new_empty(partial, dtype=torch.float32)
        launch(
            _projection_backward_weights_kernel,
            programs,
            config,
            p.device,
            read=read,
            deltas=deltas,
            power=power,
            packed=packed,
            partials=partials,
            units=tables.units(p.sizes, p.device),
            products=products,
            d=p.sizes.d,
            FORM=p.form(),
            **blocks(config),
        )
        if segments:
            _fold(partials, packed, segments, FOLD)

    tuned("weights", p, step)
    return packed
