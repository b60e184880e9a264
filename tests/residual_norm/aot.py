"""The calls of residual_norm that `make aot` compiles for GPUs that are not here."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from tests.aot import Launch, recording
from tests.residual_norm.cases import SEED
from wfkernels.residual_norm import triton_launch

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WIDTHS = (64, 256, 512, 1000, 1024, 4096, 8192)
DROPOUT = (0.0, 0.1)


def launches(capability: int, width: int, dtype: torch.dtype, dropout_p: float, rows: int = 128) -> list[Launch]:
    """Return the launches of a forward and a backward pass."""
    x, weight = torch.ones(rows, width, dtype=dtype), torch.ones(width, dtype=dtype)
    rest = (dropout_p, SEED, 0)
    with recording(capability) as found:
        h, y, mean, rstd = triton_launch.forward(x, x, weight, weight, 1e-5, *rest)
        triton_launch.backward(h, y, h, mean, rstd, weight, *rest)
    return found


def name(width: int, dtype: torch.dtype, dropout_p: float) -> str:
    return f"{'dropout, ' if dropout_p else ''}{str(dtype).removeprefix('torch.')}, d={width}"


def matrix(capability: int) -> Iterator[tuple[str, Launch, dict[str, bool]]]:
    for width, dtype, dropout_p in product(WIDTHS, DTYPES, DROPOUT):
        for launch in launches(capability, width, dtype, dropout_p):
            yield name(width, dtype, dropout_p), launch, {}
