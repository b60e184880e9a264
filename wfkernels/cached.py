"""What is computed once: a property that torch.compile can trace, and tables on a device."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar

import torch

T = TypeVar("T")
P = ParamSpec("P")


class cached_property(Generic[T]):
    """functools.cached_property without the lock that it takes on Python 3.11, which torch.compile cannot enter."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute = compute

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> T:
        value = self.compute(instance)
        instance.__dict__[self.name] = value
        return value


class Kept(Generic[P, T]):
    """A function that returns tensors on a device, with its last results: functools.lru_cache, and one thing more.

    A CUDA graph reads their memory again whenever it is replayed. So what is asked for while one is captured stays.
    """

    def __init__(self, build: Callable[P, T], most: int) -> None:
        self._last = lru_cache(most)(build)
        self._captured: dict[int, T] = {}
        update_wrapper(self, build)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        found: T = self._last(*args, **kwargs)  # type: ignore[arg-type]  # they are hashable
        # A torch for GPUs raises on a machine without a driver where it is asked about streams first.
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            self._captured[id(found)] = found
        return found

    def forget(self) -> None:
        """Drop all results but those that a captured graph reads."""
        self._last.cache_clear()


def kept(most: int) -> Callable[[Callable[P, T]], Kept[P, T]]:
    """Keep the last `most` results of a function that returns tensors on a device; see `Kept`."""
    return lambda build: Kept(build, most)
