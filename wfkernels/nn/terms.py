"""Bias and gate of one dense call, brought together from masks, from what a module has learned and from the caller.

`attention` takes one bias and one gate. What is added goes into the bias; a boolean mask goes wherever there is room,
so that as little as possible is expanded: pairs that it shuts weigh nothing either way.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from wfkernels.attention.bucket import BucketTable
from wfkernels.attention.dense import entries

Term = Tensor | BucketTable | None


class Terms(NamedTuple):
    """Bias and gate as `attention` takes them; tensors broadcast against [N, H, queries, keys]."""

    queries: int
    keys: int
    bias: Term = None
    gate: Term = None

    def add(self, bias: Term) -> Terms:
        """Add to the bias."""
        if bias is None or self.bias is None:
            return self if bias is None else self._replace(bias=bias)
        return self._replace(bias=self._dense(self.bias, 0.0) + self._dense(bias, 0.0))

    def multiply(self, gate: Term) -> Terms:
        """Multiply the gate."""
        if gate is None or self.gate is None:
            return self if gate is None else self._replace(gate=gate)
        return self._replace(gate=self._dense(self.gate, 1.0) * self._dense(gate, 1.0))

    def mask(self, *masks: Tensor | None, dtype: torch.dtype) -> Terms:
        """Add floating masks and shut the pairs where bool ones are True, as torch.nn.MultiheadAttention means it."""
        terms = self
        given = [mask for mask in masks if mask is not None]
        # Sums first: they need the bias, where a bool mask may find it free.
        for mask in given:
            terms = terms.add(mask) if mask.is_floating_point() else terms
        for mask in given:
            terms = terms.allow(~mask, dtype) if mask.dtype == torch.bool else terms
        return terms

    def allow(self, allowed: Tensor, dtype: torch.dtype) -> Terms:
        """Shut the pairs where `allowed`, a bool tensor that broadcasts like a term, is False."""
        if self.bias is None:
            return self._replace(bias=torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, float("-inf")))
        if self.gate is None:
            return self._replace(gate=allowed.to(dtype))
        if isinstance(self.gate, Tensor) and isinstance(self.bias, BucketTable):
            return self._replace(gate=torch.where(allowed, self.gate, 0.0))
        return self._replace(bias=torch.where(allowed, self._dense(self.bias, 0.0), float("-inf")))

    def widen(self, extra: int) -> Terms:
        """Put `extra` keys behind the others, which every query sees, without bias."""
        if not extra:
            return self
        bias, gate = (
            None if term is None else pad(self._over_keys(self._dense(term, neutral)), (0, extra), value=neutral)
            for term, neutral in ((self.bias, 0.0), (self.gate, 1.0))
        )
        return Terms(self.queries, self.keys + extra, bias, gate)

    def _dense(self, term: Tensor | BucketTable, neutral: float) -> Tensor:
        """Return a term as a tensor."""
        return entries(term, self.queries, self.keys, neutral=neutral) if isinstance(term, BucketTable) else term

    def _over_keys(self, term: Tensor) -> Tensor:
        """Return a tensor with an entry for every key."""
        return term.expand(*term.shape[:-1], self.keys)
