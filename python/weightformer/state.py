"""The one type that every part hands on: a network's parameters and buffers by name."""

from __future__ import annotations

from torch import Tensor

State = dict[str, Tensor]
