"""What a computation consists of: every call of a library op or aten op, with the amounts its time depends on.

`trace` runs a function and takes notes. On meta tensors nothing is computed and no memory is used, so that a plan can
be made of a network that would not fit. On real tensors each call can be timed as well.

The time of a call is a sum of amounts (calls, floating-point operations, bytes moved, ...), each times a rate. Bytes
cost more outside the caches, so the bytes of a call are split between marks by the size of its largest buffer, linearly
in the logarithm of the size.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, register_flop_formula

import wfkernels.linear.ops  # noqa: F401  (registers the op whose products are counted below)
from wfkernels import dispatch
from wfkernels.attention.arguments import Arguments
from wfkernels.attention.blocks import BLOCK_PAIRS
from wfkernels.attention.bucket import BucketTable
from wfkernels.layout import TokenLayout
from wfkernels.predict.parameters import Settings

Amounts = dict[str, float]
# Sizes of a buffer, by the logarithm of their bytes, between which rates are interpolated.
MARKS = {"128 KB": 17, "4 MB": 22, "64 MB": 26}


@dataclass
class Piece:
    """One call. kind: the name of the library op or aten op. implementation: of a library op, None on meta tensors.

    temporary: bytes that the reference uses beside arguments and results.
    """

    kind: str
    amounts: Amounts
    implementation: str | None = None
    seconds: float = 0.0
    temporary: float = 0.0

    @property
    def flop(self) -> float:
        return self.amounts.get("flop", 0.0)


@dataclass
class Work:
    """All calls of a computation.

    held: the most bytes of tensors that it made and that lived at once; peak: with what the reference uses inside ops.
    """

    pieces: list[Piece] = field(default_factory=list)
    held: float = 0.0
    peak: float = 0.0

    @property
    def flop(self) -> float:
        """Floating-point operations that are executed."""
        return sum(piece.flop for piece in self.pieces)

    @property
    def bytes(self) -> float:
        """Bytes that are read and written, as far as caches do not spare it."""
        return sum(n for piece in self.pieces for name, n in piece.amounts.items() if name.startswith("bytes"))


def split(name: str, amount: float, size: float) -> Amounts:
    """Return an amount divided between the marks next to the size of a buffer (bytes)."""
    marks = list(MARKS.items())
    place = min(max(math.log2(max(size, 1.0)), marks[0][1]), marks[-1][1])
    for (low, a), (high, b) in zip(marks, marks[1:], strict=False):
        if place <= b:
            share = (place - a) / (b - a)
            return {f"{name} in {low}": amount * (1 - share), f"{name} in {high}": amount * share}
    raise AssertionError(place)


def added(*parts: Amounts) -> Amounts:
    """Return the sum of amounts, without those that are 0."""
    total: Amounts = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total.get(name, 0.0) + amount
    return {name: amount for name, amount in total.items() if amount}


# How many buffers of the size of the scores the reference has at once for what, in forward and in backward: measured.
BUFFERS = {
    "scores": (2.0, 3.5),
    "Tensor": (1.0, 2.0),
    "Parameter": (1.0, 2.0),
    "BucketTable": (2.0, 5.0),
    "dropout": (22.0, 22.0),
}

Lengths = Callable[[int, int], Sequence[int]]


def lengths_of(layout: TokenLayout, settings: Settings, return_cross: bool = False) -> Lengths:
    """Return how the tokens of a `predict` call are divided into sequences: all of them, or those of the last block."""
    head = layout.cross if return_cross else 0
    spans = [(n, t) for n in layout.layout.rows for t in layout.teachers]
    read = tuple(head + (n if settings.read == "anchor" else t * n) for n, t in spans)
    by_total = {sum(lengths): lengths for lengths in (read, layout.lengths)}
    return lambda tokens, sequences: by_total.get(tokens) or even(tokens, sequences)


def even(tokens: int, sequences: int) -> Sequence[int]:
    """Divide tokens into sequences of equal length."""
    return [tokens // sequences + (i < tokens % sequences) for i in range(sequences)] if sequences else []


def trace(function: Callable[[], object], lengths: Lengths = even, clock: Callable[[], float] | None = None) -> Work:
    """Run a function and return the work in it.

    lengths: gives (tokens, sequences) -> the lengths of a ragged call whose offsets hold no values (meta tensors);
    see `lengths_of`. clock: makes every call be timed.
    """
    tracer = _Tracer(lengths, clock)
    with tracer, tracer.naming():
        function()
    return tracer.work


class _Tracer(TorchDispatchMode):
    def __init__(self, lengths: Lengths, clock: Callable[[], float] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lengths, self.clock = lengths, clock
        self.work = Work()
        self.live = 0.0
        self.storages: set[int] = set()
        self.choices: list[dispatch.Choice] = []

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Take notes of which implementation each library op chooses."""
        with dispatch.recording() as self.choices:
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        clock = self.clock or time.perf_counter
        chosen = len(self.choices)
        start = clock()
        result = func(*args, **(kwargs or {}))
        seconds = clock() - start
        outputs = [x for x in _leaves(result) if isinstance(x, Tensor)]
        inputs = [x for x in _leaves((args, kwargs or {})) if isinstance(x, Tensor)]
        shared = {x.untyped_storage()._cdata for x in inputs}
        fresh = [x for x in outputs if x.untyped_storage()._cdata not in shared]
        name = func._schema.name.split("::")[1]
        writes = func._schema.is_mutable
        if fresh or writes:
            ours = func.namespace == "wfkernels" and name in _AMOUNTS
            amounts, temporary = (
                _AMOUNTS[name](args, self.lengths)
                if ours
                else _aten(func, args, [*inputs, *(outputs if writes else fresh)], result)
            )
            piece = Piece(name, amounts, None, seconds, temporary)
            if len(self.choices) > chosen:
                piece.implementation = self.choices[-1].runs
            self.work.pieces.append(piece)
            self._keep(fresh)
            self.work.held = max(self.work.held, self.live)
            self.work.peak = max(self.work.peak, self.live + temporary)
        return result

    def _keep(self, tensors: list[Tensor]) -> None:
        for x in tensors:
            storage = x.untyped_storage()
            if storage._cdata not in self.storages:
                self.storages.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self.storages.discard(key)
        self.live -= size


def _leaves(values: Any) -> Iterator[Any]:
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, (list, tuple)):
        for value in values:
            yield from _leaves(value)
    else:
        yield values


def _size(*tensors: Tensor | None) -> float:
    return float(sum(t.numel() * t.element_size() for t in tensors if t is not None))


def _aten(func: Any, args: Any, touched: list[Tensor], result: Any) -> tuple[Amounts, float]:
    """Return the amounts of an aten op: what it reads and writes, and the operations of a product."""
    count = flop_registry.get(func._overloadpacket)
    flop = float(count(*args, out_val=result)) if count else 0.0
    sizes = [_size(x) for x in touched]
    largest = max(sizes, default=0.0)
    return added({"calls": 1.0, "flop": flop}, split("bytes", sum(sizes), largest)), 0.0


def _blocks(query: Tensor, key: Tensor, arguments: Arguments, lengths: Lengths) -> Iterator[tuple[int, int, int]]:
    """Yield (sequences, queries, keys) of the runs of like sequences that the reference computes side by side."""
    if arguments.offsets is None:
        yield math.prod(query.shape[:-3]), query.shape[-2], key.shape[-2]
        return
    pairs = []
    for offsets, tokens in ((arguments.offsets, query), (arguments.key_offsets, key)):
        if offsets is not None:
            known = not offsets.is_meta
            pairs.append(offsets.diff().tolist() if known else lengths(tokens.shape[0], offsets.shape[0] - 1))
    for (queries, keys), run in groupby(zip(pairs[0], pairs[-1], strict=True)):
        count = len(list(run))
        if queries * keys:
            most = max(1, BLOCK_PAIRS // (query.shape[1] * queries * keys))
            for first in range(0, count, most):
                yield min(most, count - first), queries, keys


def _attention(args: Sequence[Any], lengths: Lengths, backward: bool = False) -> tuple[Amounts, float]:
    query, key, value, *rest = (*args[3:6], *args[8:]) if backward else args
    arguments = Arguments.unflatten(rest)
    heads = query.shape[1] if arguments.offsets is not None else query.shape[-3]
    shared = key.shape[1] if arguments.offsets is not None else key.shape[-3]
    size = 8 if query.dtype == torch.float64 else 4
    products = 5 if backward else 2  # scores and out; scores, dv, dp, dq, dk
    parts: list[Amounts] = [{"calls": 1.0}]
    temporary = 0.0
    for count, queries, keys in _blocks(query, key, arguments, lengths):
        pairs = float(count * queries * keys * heads)
        flop = pairs * (query.shape[-1] + value.shape[-1]) * products
        tokens = size * float(count * (queries * heads + keys * shared) * (query.shape[-1] + value.shape[-1]))
        parts += [{"blocks": 1.0, "matrices": float(count * shared), "flop": flop}, split("bytes", tokens, tokens)]
        buffer = pairs * size
        parts.append(split("bytes of scores", buffer, buffer))
        for term in (arguments.bias, arguments.gate):
            if isinstance(term, BucketTable):
                index = float(count * queries * keys)
                parts.append({"bytes of buckets": buffer, "bytes of index": 8 * index, "blocks with buckets": 1.0})
            elif term is not None:
                parts += [split("bytes of terms", buffer, buffer), {"blocks with terms": 1.0}]
        if arguments.dropout_p > 0:
            parts.append({"bytes of dropout": buffer})
        kinds = {"scores", *(type(t).__name__ for t in (arguments.bias, arguments.gate) if t is not None)}
        kinds |= {"dropout"} if arguments.dropout_p > 0 else set()
        temporary = max(temporary, buffer * sum(BUFFERS[kind][backward] for kind in kinds))
    return added(*parts), temporary


def _attention_backward(args: Sequence[Any], lengths: Lengths) -> tuple[Amounts, float]:
    return _attention(args, lengths, backward=True)


def _residual_norm(args: Sequence[Any], lengths: Lengths) -> tuple[Amounts, float]:
    size = _size(args[0])
    kept = {"bytes of dropout": size} if args[5] > 0 else {}
    return added({"calls": 1.0}, split("bytes", 4 * size, size), kept), 2 * size


def _residual_norm_backward(args: Sequence[Any], lengths: Lengths) -> tuple[Amounts, float]:
    size = _size(args[2])
    kept = {"bytes of dropout": size} if args[6] > 0 else {}
    return added({"calls": 1.0}, split("bytes", 5 * size, size), kept), 3 * size


def _rows(
    args: Sequence[Any], rows: Sequence[int], widths: Sequence[int], d: int, copies: int, products: int
) -> tuple[Amounts, float]:
    """Return the amounts of an op over `copies` times the rows of all layers, of these widths."""
    flop = float(sum(2 * copies * n * r * d * products for n, r in zip(rows, widths, strict=True)))
    size = _size(*(x for x in _leaves(args) if isinstance(x, Tensor)))
    tokens = 4.0 * copies * sum(rows) * d
    largest = 4.0 * copies * max((n * max(r, d) for n, r in zip(rows, widths, strict=True)), default=0)
    amounts = added({"calls": 1.0, "layers": float(len(rows)), "flop": flop}, split("bytes", size + tokens, largest))
    held = 4.0 * copies * sum(n * r for n, r in zip(rows, widths, strict=True))
    return amounts, 2 * tokens + held


def _embedding(args: Sequence[Any], lengths: Lengths, products: int = 1) -> tuple[Amounts, float]:
    gamma, rows, widths, teachers = args[10], args[12], args[13], args[16]
    return _rows(args, rows, widths, gamma.shape[0], sum(teachers), products)


def _embedding_backward(args: Sequence[Any], lengths: Lengths) -> tuple[Amounts, float]:
    return _embedding(args[1:], lengths, products=2 + bool(args[-2]))


def _projection(args: Sequence[Any], lengths: Lengths, products: int = 1) -> tuple[Amounts, float]:
    rows, widths, counts, teachers = args[12], args[13], args[14], args[16]
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    whole = [sum(widths[end - count : end]) for end, count in zip(ends, counts, strict=True)]
    return _rows(args, rows, whole, args[0].shape[1], len(teachers), products)


def _projection_backward(args: Sequence[Any], lengths: Lengths) -> tuple[Amounts, float]:
    return _projection(args[1:], lengths, products=3)


@register_flop_formula(torch.ops.wfkernels.linear)
def _linear_flop(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


def _linear(args: Sequence[Any], lengths: Lengths) -> tuple[Amounts, float]:
    x, weight, _, activation, *_ = args
    size, result = _size(x), x.shape[0] * weight.shape[0] * x.element_size()
    amounts = {"calls": 1.0, "flop": float(_linear_flop(x.shape, weight.shape)), "bytes of weights": _size(weight)}
    return added(amounts, split("bytes", size + result, max(size, result))), 0.0 if activation == "none" else size


def _pack(args: Sequence[Any], lengths: Lengths) -> tuple[Amounts, float]:
    size = _size(*args[0])
    return added({"calls": 1.0, "tensors": float(len(args[0]))}, split("bytes", 2 * size, size)), 0.0


_AMOUNTS: dict[str, Callable[[Sequence[Any], Lengths], tuple[Amounts, float]]] = {
    "attention_forward": _attention,
    "attention_backward": _attention_backward,
    "residual_norm": _residual_norm,
    "residual_norm_backward": _residual_norm_backward,
    "embedding": _embedding,
    "embedding_backward": _embedding_backward,
    "projection": _projection,
    "projection_backward": _projection_backward,
    "linear": _linear,
    "rows_pack": _pack,
}
