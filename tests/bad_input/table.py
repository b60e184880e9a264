"""What an entry of the tables of bad input is, and the mistakes that every tensor argument may suffer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Bad:
    """One mistake. The message has to be "<op>: <argument>: expected <expected, a regex> ... got ...", on one line.

    change: makes the mistake in the arguments of a call that is right. `op`: who complains, the function itself if "".
    """

    name: str
    change: Callable[[Arguments], None]
    error: type[Exception]
    argument: str
    expected: str
    op: str = ""


@dataclass(frozen=True)
class Table:
    """The mistakes of one function. `good` returns fresh arguments of a call that is right."""

    op: str
    run: Callable[..., object]
    good: Callable[[], Arguments]
    entries: tuple[Bad, ...]


def put(**changes: Any) -> Callable[[Arguments], None]:
    """Change some arguments of a call."""
    return lambda call: call.update(changes)


def wrong_tensors(
    argument: str,
    like: Tensor,
    given: Callable[[Any], Callable[[Arguments], None]] | None = None,
    *,
    optional: bool = False,
    kinds: str = "",
    but: str = "",
) -> Iterator[Bad]:
    """Yield everything that is not a dense tensor of a float dtype that ops compute with, in place of an argument.

    given: makes the change for a value, by default that of the argument itself. kinds: names of those wanted,
    by default all, without those named `but`.
    """
    given = given or (lambda value: put(**{argument: value}))
    anything = "a (torch.Tensor|BucketTable).*"
    values: Mapping[str, tuple[Any, type[Exception], str]] = {
        "None": (None, TypeError, anything),
        "a number": (1.5, TypeError, anything),
        "a list": (like.tolist(), TypeError, anything),
        "a numpy array": (numpy.zeros(tuple(like.shape), dtype=numpy.float32), TypeError, anything),
        "text": ("zeros", TypeError, anything),
        "bools": (torch.zeros(like.shape, dtype=torch.bool), TypeError, "a floating-point tensor"),
        "integers": (torch.zeros(like.shape, dtype=torch.int64), TypeError, "a floating-point tensor"),
        "complex numbers": (torch.zeros(like.shape, dtype=torch.complex64), TypeError, "a floating-point tensor"),
        "float8": (torch.zeros(like.shape).to(torch.float8_e4m3fn), TypeError, "float64, float32, bfloat16 or float16"),
        "quantized": (quantized(like), TypeError, "a floating-point tensor"),
        "sparse": (torch.zeros(like.shape).to_sparse(), TypeError, "a dense tensor"),
        "on another device": (torch.zeros(like.shape, device="meta"), ValueError, "a tensor on cpu"),
    }
    for name, (value, error, expected) in values.items():
        wanted = name not in but.split(", ") and (not kinds or name in kinds.split(", "))
        if wanted and not (optional and name == "None"):
            yield Bad(f"{argument} is {name}", given(value), error, argument, expected)


def quantized(like: Tensor) -> Tensor:
    """Return a quantized tensor of a shape; torch warns that it will not make them for ever."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.zeros(like.shape), 0.1, 0, torch.qint8)


def nested() -> Tensor:
    """Return a nested tensor of the older kind, which cannot say its shape; torch warns that it may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield every tensor inside a call's arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))


def snapshot(call: Arguments) -> list[tuple[object, ...]]:
    """Return what must not change: which tensors there are, their versions and, where they have any, their bits."""
    return [(id(t), t.dtype, t.layout, t._version, _bits(t)) for t in tensors(call)]


def _bits(tensor: Tensor) -> bytes | None:
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta:
        return None
    return bytes(tensor.detach().contiguous().flatten().view(torch.uint8).tolist())
