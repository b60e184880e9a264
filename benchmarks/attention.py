"""Attention with a learned bias or gate: dense and ragged, tables, and gates of which most is closed.

python benchmarks/attention.py --preset bar --json attention.json
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import peers, ragged, shapes
from benchmarks.case import (
    FORWARD,
    FULL,
    MODES,
    Case,
    Contender,
    Draw,
    Problem,
    Setting,
    Target,
    attention_executed,
    attention_flop,
    ours,
)
from benchmarks.harness import main
from benchmarks.peers import Form
from wfkernels import BucketTable, attention
from wfkernels.integrations.windows import from_index

HEADS, WIDTH = 8, 64
# Up to this length float64 takes a second; longer cases are judged at a length that is no multiple of a tile.
LONGEST_JUDGED, REDUCED = 1024, 509
# Tiles of the closed gates, and every how many of them in a row stays open.
TILE, OPEN = 128, 4
# Distance from which on T5 has one bucket, and its buckets.
REACH, BUCKETS = 128, 32

Forms = Callable[[Draw, int], Form]


def per_pair(draw: Draw, tokens: int, heads: int = 0, causal: bool = False) -> Form:
    """A bias [S, S], or with `heads` [H, S, S]."""
    leaf = draw.normal(*(heads,) * bool(heads), tokens, tokens)
    return Form(
        leaf,
        lambda leaf: {"bias": leaf, "is_causal": causal},
        lambda leaf: leaf,
        lambda leaf, h, i, j: leaf[h, i, j] if heads else leaf[i, j],
        causal=causal,
    )


def t5(draw: Draw, tokens: int) -> Form:
    """T5's table [buckets, H] over signed distances (arXiv 1910.10683), as wfkernels.integrations reads it."""
    lookup = t5_buckets().to(draw.device)
    places = torch.arange(tokens, device=draw.device)
    index = lookup[(places[:, None] - places).clamp(-REACH, REACH) + REACH]

    def options(leaf: Tensor) -> dict[str, Any]:
        return {"bias": BucketTable(leaf.mT[:, None, None, None], lookup)}

    return _table(draw.normal(BUCKETS, HEADS), index, options)


def t5_buckets() -> Tensor:
    """Return the bucket of every difference query - key from -REACH to REACH: exact up to 8, then logarithmic."""
    difference = torch.arange(-REACH, REACH + 1)
    side, exact = BUCKETS // 2, BUCKETS // 4
    distance = difference.abs()
    far = (distance.clamp(min=1) / exact).log() / torch.tensor(REACH / exact).log() * (side - exact)
    bucket = torch.where(distance < exact, distance, (exact + far.long()).clamp(max=side - 1))
    return bucket + side * (difference < 0)


def beit(draw: Draw, tokens: int) -> Form:
    """BEiT's table [(2 W - 1)^2 + 3, H] over the offsets of a window, with a class token."""
    from timm.layers.pos_embed_rel import gen_relative_position_index

    side = int(tokens**0.5)
    index = gen_relative_position_index((side, side), class_token=True).to(draw.device)

    def options(leaf: Tensor) -> dict[str, Any]:
        return {"bias": from_index(leaf.mT, index, class_token=True)}

    return _table(draw.normal((2 * side - 1) ** 2 + 3, HEADS), index, options)


def _table(leaf: Tensor, index: Tensor, options: Callable[[Tensor], dict[str, Any]]) -> Form:
    def dense(leaf: Tensor) -> Tensor:
        # Of all ways to gather, the one whose gradient is fastest on a CPU.
        entries: Tensor = leaf.mT
        return entries.index_select(1, index.flatten()).view(-1, *index.shape)

    return Form(leaf, options, dense, lambda leaf, h, i, j: leaf[index[i, j], h])


def gated(draw: Draw, tokens: int, learn: bool, tile: int, closed: bool = True) -> Form:
    """A gate [S, S] with 75 % of its tiles closed, those on the diagonal open; `learn` False has no gradient."""
    gate = draw.uniform(tokens, tokens)
    if closed:
        places = torch.arange(tokens) // tile
        gate = gate.masked_fill((places[:, None] - places) % OPEN != 0, 0.0)
    leaf = draw.leaf(gate, learn)
    return Form(leaf, lambda x: {"gate": x}, lambda x: x, lambda x, h, i, j: x[i, j], gate=True)


def problem(
    setting: Setting, forms: Forms, tokens: int, width: int = WIDTH, batch: int = 1, dtype: torch.dtype = torch.float32
) -> Problem:
    """Return dense attention [batch, HEADS, tokens, width] with its peers."""
    draw = Draw(setting.device, dtype)
    size = (batch, HEADS, tokens, width)
    query, key, value = (draw.normal(*size) for _ in range(3))
    grad = draw.normal(*size, learn=False)
    form = forms(draw, tokens)

    def run(query: Tensor, key: Tensor, value: Tensor, leaf: Tensor, impl: str) -> Tensor:
        out: Tensor = attention(query, key, value, **form.options(leaf), impl=impl)
        return out

    found = ours(setting, run, executed=attention_executed(batch * tokens**2, HEADS * width, True))
    found |= peers.contenders(form, setting, tokens, flex=setting.preset != "quick" or setting.cuda)
    parts = {3: {"open": form.leaf != 0, "closed": form.leaf == 0}} if form.gate else {}
    tensors = (query, key, value, form.leaf)
    return Problem(tensors, (grad,), partial(run, impl="reference"), found, parts=parts)


def dense(setting: Setting, name: str, forms: Forms, tokens: int, **options: Any) -> Case:
    """Return a case of `problem`; options: those of `_case` and of `problem`."""
    of_case = {k: options.pop(k) for k in ("targets", "modes", "reduced") if k in options}
    work = attention_flop(options.get("batch", 1) * tokens**2, HEADS * options.get("width", WIDTH))
    found = _case(name, partial(problem, setting, forms, **options), tokens, work, **of_case)
    return replace(found, dtype=options.get("dtype", torch.float32))


def _case(
    name: str,
    build: Callable[[int], Problem],
    tokens: int,
    work: Mapping[str, float],
    targets: Sequence[Target] = (),
    modes: Sequence[str] = (FORWARD, FULL),
    reduced: int = REDUCED,
) -> Case:
    """Return a case judged at its own length, or where that is too long for float64 at `reduced` tokens."""
    judged = (f"S={reduced}", partial(build, reduced)) if tokens > LONGEST_JUDGED else None
    return Case(f"{name}, S={tokens}", partial(build, tokens), work, modes=modes, judged=judged, targets=targets)


def closed_gate(setting: Setting, tokens: int, learn: bool, targets: Sequence[Target] = (), tile: int = TILE) -> Case:
    """Return a case of a gate that is mostly closed; "all open" is the default of ours with nothing closed."""

    def build(tokens: int) -> Problem:
        found = problem(setting, partial(gated, learn=learn, tile=tile), tokens)
        leaf = gated(Draw(setting.device, seed=1), tokens, learn, tile, closed=False).leaf

        def run(query: Tensor, key: Tensor, value: Tensor, _: Tensor) -> Tensor:
            return attention(query, key, value, gate=leaf)

        def full(tensors: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
            inputs = [*tensors[:3], leaf]
            out = run(*inputs)
            return [out.detach(), *torch.autograd.grad(out, [t for t in inputs if t.requires_grad], grads)]

        others = {"all open": Contender(run, full=full, unlike="another gate")}
        return replace(found, contenders={**found.contenders, **others})

    name = f"gate, 75 % of the tiles closed, {'with' if learn else 'without'} its gradient"
    return _case(name, build, tokens, attention_flop(tokens**2, HEADS * WIDTH), targets, (FULL,))


def faster(bound: float, than: str = "eager") -> tuple[Target, ...]:
    return (Target(FULL, "time", bound, than),)


LONG = (
    *(*faster(3.0), *faster(2.0, "compile"), Target(FULL, "gemm", 0.6), Target(FULL, "memory", 8.0, "eager")),
    *(Target(FORWARD, "time", 4.0, "eager"), Target(FORWARD, "time", 1.2, "sdpa"), Target(FORWARD, "gemm", 0.7)),
)


def quick(setting: Setting) -> list[Case]:
    return [
        dense(setting, "bias [S, S]", per_pair, 256, modes=MODES),
        closed_gate(setting, 512, True, tile=64),
        ragged.case(setting, "ragged", ragged.small(), 64, 4),
    ]


def bar(setting: Setting) -> list[Case]:
    at_least = {512: 1.3, 1024: 2.0, 2048: 2.0}
    return [
        dense(setting, "bias [S, S]", per_pair, 4096, targets=LONG),
        *(dense(setting, "bias [S, S]", per_pair, n, targets=faster(x)) for n, x in at_least.items()),
        ragged.case(setting, "ragged, ResNet-50, T=2", ragged.resnet50(), targets=faster(2.0)),
        closed_gate(setting, 4096, False, faster(3.0, "all open")),
        closed_gate(setting, 4096, True, faster(1.7, "all open")),
    ]


def full(setting: Setting) -> list[Case]:
    half = {"dtype": torch.bfloat16}
    batch = {"batch": 4} if setting.cuda else {}
    return [
        *(dense(setting, "bias [S, S]", per_pair, n, modes=MODES) for n in (256, 512, 1024, 2048, 4096, 8192)),
        *(dense(setting, "bias [S, S], D=128", per_pair, n, width=128) for n in (512, 2048)),
        *(dense(setting, "bias [H, S, S]", partial(per_pair, heads=HEADS), n) for n in (512, 2048)),
        *(dense(setting, "bias [S, S], causal", partial(per_pair, causal=True), n) for n in (512, 2048)),
        *(dense(setting, "bias [S, S], bfloat16", per_pair, n, **half, **batch) for n in (512, 1024, 2048, 4096)),
        *(dense(setting, "T5's table", t5, n) for n in (512, 1024, 4096)),
        *(dense(setting, "BEiT's table", beit, n * n + 1, reduced=22 * 22 + 1, batch=8) for n in (14, 24)),
        *(closed_gate(setting, 4096, learn) for learn in (False, True)),
        ragged.case(setting, "ragged, VGG-11, T=2", ragged.vgg11(), modes=(FORWARD, FULL), compile=True),
        ragged.case(setting, "ragged, ResNet-50, T=2", ragged.resnet50(), modes=(FORWARD, FULL), compile=True),
    ]


# At most 1.4 times the time of attention without any bias.
GPU_LONG = (
    Target(FORWARD, "time", 1.5, "flex"),
    Target(FORWARD, "time", 1 / 1.4, "sdpa cudnn, no bias"),
    Target(FULL, "time", 3.0, "flex"),
)
NEVER_SLOWER = (Target(FORWARD, "time", 1.0, "flex"), Target(FULL, "time", 1.0, "flex"))
WHICHEVER_IS_FASTER = tuple(Target(FULL, "time", 2.0, f"flex, {how}") for how in ("document mask", "padded"))


def gpu(setting: Setting) -> list[Case]:
    """Return what a GPU has to reach; the curves over S come first, from the case that everybody asks for."""
    options: dict[str, Any] = {"dtype": setting.half, "batch": 2 if setting.quick else 4}
    lengths, windows = (512, 1024, 2048, 4096, 8192, 16384), (14, 24)
    layouts = {f"ResNet-50, T={t}": shapes.resnet50().tokens((t,), ragged.CROSS) for t in (2, 5)}
    per_head = partial(per_pair, heads=HEADS)
    targets = {4096: GPU_LONG}
    if setting.quick:
        return [
            *(dense(setting, "bias [S, S]", per_pair, n, targets=NEVER_SLOWER, **options) for n in (64, 128)),
            dense(setting, "T5's table", t5, 100, targets=NEVER_SLOWER, **options),
            ragged.case(setting, "ragged, small", ragged.small(), 64, 4, (FORWARD, FULL), dtype=setting.half),
        ]
    return [
        *(dense(setting, "bias [S, S]", per_pair, n, targets=targets.get(n, NEVER_SLOWER), **options) for n in lengths),
        *(
            dense(setting, "bias [S, S], D=128", per_pair, n, width=128, targets=NEVER_SLOWER, **options)
            for n in lengths
        ),
        *(dense(setting, "bias [H, S, S]", per_head, n, targets=NEVER_SLOWER, **options) for n in lengths),
        *(dense(setting, "T5's table", t5, n, targets=NEVER_SLOWER, **options) for n in lengths),
        *(
            dense(setting, "BEiT's table", beit, n * n + 1, reduced=22 * 22 + 1, targets=NEVER_SLOWER, **options)
            for n in windows
        ),
        *(
            ragged.case(
                setting,
                f"ragged, {name}",
                layout,
                modes=(FORWARD, FULL),
                targets=WHICHEVER_IS_FASTER,
                dtype=setting.half,
            )
            for name, layout in layouts.items()
        ),
    ]


def cases(setting: Setting) -> Sequence[Case]:
    return {"quick": quick, "bar": bar, "full": full, "gpu": gpu, "gpu-quick": gpu}[setting.preset](setting)


if __name__ == "__main__":
    sys.exit(main("attention", cases))
