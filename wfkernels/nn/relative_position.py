"""Relative position bias: a learned table that pairs of tokens look up by the difference of their positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from wfkernels.attention.bucket import BucketTable
from wfkernels.attention.dense import entries

OP = "RelativePositionBias"


@dataclass(frozen=True)
class Distances:
    """T5's buckets of distances in a sequence (Raffel et al. 2020, arXiv 1910.10683, section 2.1)."""

    buckets: int
    max_distance: int
    bidirectional: bool

    # An nn.Embedding in T5, so that a table called `relative_attention_bias` finds its weight in T5's checkpoints.
    name: ClassVar[str] = "weight"
    tokens: ClassVar[int | None] = None  # any number

    def __post_init__(self) -> None:
        if self.side < 2:
            least = 4 if self.bidirectional else 2
            raise ValueError(f"{OP}.t5: buckets: expected at least {least}, got {self.buckets}")
        if self.max_distance <= self.exact:
            raise ValueError(
                f"{OP}.t5: max_distance: expected more than {self.exact}, the distances with a bucket each, got"
                f" {self.max_distance}"
            )

    @property
    def entries(self) -> int:
        return self.buckets

    @property
    def side(self) -> int:
        """Buckets for keys on one side of the query."""
        return self.buckets // 2 if self.bidirectional else self.buckets

    @property
    def exact(self) -> int:
        """Distances below this have a bucket each."""
        return self.side // 2

    def lookup(self) -> Tensor:
        """Return the bucket of every difference of positions (query's minus key's): int64 [2 * max_distance + 1]."""
        difference = torch.arange(-self.max_distance, self.max_distance + 1)
        distance = difference.abs() if self.bidirectional else difference.clamp(min=0)
        # In float32 as T5 does it: a distance on the border of two buckets falls to the side that rounding decides.
        through = (distance.float() / self.exact).log() / math.log(self.max_distance / self.exact)
        shared = self.exact + (through * (self.side - self.exact)).clamp(min=0).long()
        bucket = torch.where(distance < self.exact, distance, shared.clamp(max=self.side - 1))
        # Keys behind the query have the second half of the buckets.
        return bucket + self.side * (difference < 0) if self.bidirectional else bucket

    def position(self) -> None:
        """T5's positions are 0, 1, 2, ..."""
        return None

    def group(self) -> None:
        """T5's tokens are all alike."""
        return None

    def table(self, weight: Tensor) -> Tensor:
        """Return a weight [entries, H] as a BucketTable's table [H, 1, 1, 1, entries]."""
        return weight.T[:, None, None, None]


@dataclass(frozen=True)
class Window:
    """The 2-D differences of Swin (Liu et al. 2021, arXiv 2103.14030, eq. 4), with BEiT's class token or without.

    Tokens: the class token, then the window row by row. Entries: (y, x) differences row by row from the most negative
    on; with a class token three more: class to patch, patch to class, class to class (BEiT, arXiv 2106.08254).
    """

    height: int
    width: int
    cls_token: bool

    name: ClassVar[str] = "relative_position_bias_table"

    def __post_init__(self) -> None:
        if not isinstance(self.height, int) or not isinstance(self.width, int):
            raise TypeError(f"{OP}: window: expected int or two of them, got {self.height!r} and {self.width!r}")
        if self.height < 1 or self.width < 1:
            raise ValueError(f"{OP}: window: expected at least 1 x 1, got {self.height} x {self.width}")

    @property
    def differences(self) -> int:
        return (2 * self.height - 1) * (2 * self.width - 1)

    @property
    def entries(self) -> int:
        return self.differences + 3 * self.cls_token

    @property
    def tokens(self) -> int:
        return self.height * self.width + self.cls_token

    def lookup(self) -> Tensor:
        """Every difference has its own entry: int64 [differences]."""
        return torch.arange(self.differences)

    def position(self) -> Tensor:
        """Return y * (2 * width - 1) + x of every token, the class token at 0: int64 [tokens]."""
        y, x = torch.meshgrid(torch.arange(self.height), torch.arange(self.width), indexing="ij")
        patches = (y * (2 * self.width - 1) + x).flatten()
        return torch.cat([patches[:1], patches]) if self.cls_token else patches

    def group(self) -> Tensor | None:
        """Return 1 for the class token and 0 for patches: int64 [tokens]."""
        return (torch.arange(self.tokens) == 0).long() if self.cls_token else None

    def table(self, weight: Tensor) -> Tensor:
        """Return a weight [entries, H] as a BucketTable's table [H, G, G, 1, differences]."""
        heads = weight.shape[1]
        if not self.cls_token:
            return weight.T.reshape(heads, 1, 1, 1, -1)
        patches, others = weight.T.split([self.differences, 3], 1)
        # By group of query and key: patch to patch, patch to class, class to patch, class to class.
        others = others[:, [1, 0, 2]].unsqueeze(-1).expand(-1, -1, self.differences)
        return torch.cat([patches.unsqueeze(1), others], 1).view(heads, 2, 2, 1, -1)


class RelativePositionBias(nn.Module):
    """A learned relative position bias; calling it gives what `wfkernels.attention(bias=...)` takes.

    Build it with `t5`, `beit` or `swin`. Its one parameter has the name and the shape [entries, heads] that the table
    has in those models, so their checkpoints load. No tokens x tokens tensor is built, in neither direction.

    Args:
        scheme: which entry a pair of tokens looks up.
        heads: attention heads.
    """

    lookup: Tensor
    position: Tensor | None
    group: Tensor | None

    def __init__(
        self,
        scheme: Distances | Window,
        heads: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if heads < 1:
            raise ValueError(f"{OP}: heads: expected at least 1, got {heads}")
        self.scheme, self.heads = scheme, heads
        weight = nn.Parameter(torch.empty(scheme.entries, heads, device=device, dtype=dtype))
        self.register_parameter(scheme.name, weight)
        # Not saved: they follow from the scheme.
        for name in ("lookup", "position", "group"):
            integers: Tensor | None = getattr(scheme, name)()
            self.register_buffer(name, None if integers is None else integers.to(weight.device), persistent=False)
        self.reset_parameters()

    @classmethod
    def t5(
        cls,
        heads: int,
        buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> RelativePositionBias:
        """T5's: sequences of any length, parameter `weight` [buckets, heads]. T5 calls attention with scale=1.

        bidirectional=False is that of a decoder, in which all keys behind the query share entry 0.
        """
        return cls(Distances(buckets, max_distance, bidirectional), heads, device=device, dtype=dtype)

    @classmethod
    def beit(
        cls,
        heads: int,
        window: int | tuple[int, int],
        cls_token: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> RelativePositionBias:
        """BEiT's, over a window of patches (height, width) behind a class token, and timm's `RelPosBias`.

        Parameter `relative_position_bias_table` [(2 height - 1) (2 width - 1) + 3, heads], without class token 3 less.
        """
        height, width = window if isinstance(window, (tuple, list)) and len(window) == 2 else (window, window)
        return cls(Window(height, width, cls_token), heads, device=device, dtype=dtype)

    @classmethod
    def swin(
        cls,
        heads: int,
        window: int | tuple[int, int],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> RelativePositionBias:
        """Swin's (version 1): `beit` without a class token."""
        return cls.beit(heads, window, False, device=device, dtype=dtype)

    @property
    def weight_name(self) -> str:
        """Name of the parameter: "weight" or "relative_position_bias_table"."""
        return self.scheme.name

    def reset_parameters(self) -> None:
        """Draw the table as BEiT and Swin do, and fill the index tensors again (for modules made on "meta")."""
        nn.init.trunc_normal_(self.get_parameter(self.scheme.name), std=0.02)
        for name in ("lookup", "position", "group"):
            held: Tensor | None = getattr(self, name)
            if held is not None:
                held.copy_(getattr(self.scheme, name)())

    def forward(self, sequences: int = 1) -> BucketTable:
        """Return the bias of a dense call (sequences=1, shared by its batch) or of a ragged one of so many windows."""
        table = self.scheme.table(self.get_parameter(self.scheme.name))
        group, position = self.group, self.position
        if sequences > 1:
            group, position = (None if tokens is None else tokens.repeat(sequences) for tokens in (group, position))
        return BucketTable(table, self.lookup, group=group, position=position)

    def dense(self, queries: int | None = None, keys: int | None = None, *, start: int = 0) -> Tensor:
        """Return the bias as a tensor [heads, queries, keys] with its gradient: for checking, and for other attention.

        queries and keys default to the window's tokens, keys to queries; start: row of the first query.
        """
        queries = self.scheme.tokens if queries is None else queries
        if queries is None:
            raise ValueError(f"{OP}.dense: queries: expected a number of tokens, because T5's bias has none of its own")
        keys = queries if keys is None else keys
        most = self.scheme.tokens
        if most is not None and (keys > most or start + queries > most):
            raise ValueError(
                f"{OP}.dense: queries, keys: expected at most {most} rows and keys, the window's tokens, got rows"
                f" {start} to {start + queries - 1} and {keys} keys"
            )
        return entries(self(), queries, keys, start=start)

    def extra_repr(self) -> str:
        return f"{self.scheme}, heads={self.heads}"
