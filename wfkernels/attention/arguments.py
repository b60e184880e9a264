"""What an attention call takes besides query, key and value, and how it passes through the library ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from wfkernels.attention.bucket import BucketTable

Term = Tensor | BucketTable | None
TERM_FIELDS = len(BucketTable._fields)


class Arguments(NamedTuple):
    """The arguments of an attention call behind query, key and value; gradients reach `bias` and `gate` only."""

    bias: Term = None  # dense [..., H|1, Sq|1, Sk|1], ragged [H|1, M, M], or a table
    gate: Term = None  # likewise
    offsets: Tensor | None = None  # [N + 1], int32 or int64; None: a dense call
    key_offsets: Tensor | None = None  # [N + 1]; None: the same as offsets
    query_start: Tensor | None = None  # [N], int32 or int64; None: 0
    seed: Tensor | None = None  # [] or [1], int64; needed where dropout_p > 0
    max_length: int = 0  # at least the longest ragged sequence of queries or keys
    is_causal: bool = False
    scale: float | None = None  # None: 1 / sqrt(D)
    dropout_p: float = 0.0
    site: int = 0  # tells apart calls that share a seed, so that they drop independently
    impl: str = "auto"

    def flatten(self) -> tuple[Any, ...]:
        """Return the positional arguments of the library ops, in the order of the schema."""
        return *_flatten(self.bias), *_flatten(self.gate), *self[2:]

    @classmethod
    def unflatten(cls, values: Sequence[Any]) -> Arguments:
        """Return the arguments that `flatten` made these values of."""
        bias, gate = values[:TERM_FIELDS], values[TERM_FIELDS : 2 * TERM_FIELDS]
        return cls(_unflatten(bias), _unflatten(gate), *values[2 * TERM_FIELDS :])


def _flatten(term: Term) -> tuple[Any, ...]:
    return tuple(term) if isinstance(term, BucketTable) else (term, *(None,) * (TERM_FIELDS - 2), False)


def _unflatten(values: Sequence[Any]) -> Term:
    tensor, lookup, *_ = values
    return tensor if lookup is None else BucketTable(*values)
