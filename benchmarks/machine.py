"""What the numbers of a run depend on: the machine, the versions, the load, and what products and copies reach."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.case import Call
from benchmarks.timing import Clock
from wfkernels.selftest.kept import machine

# Sizes at which a product is as fast as it gets, and buffers that no cache holds.
SIZES = {"cpu": (1024, 1 << 24), "cuda": (8192, 1 << 28)}
RUNS = 5


def facts(device: torch.device) -> dict[str, Any]:
    """Return the machine's name, threads, versions, commit, date and load as plain data."""
    found = machine(device)
    if device.type == "cuda":
        found["cpu"] = machine(torch.device("cpu"))["name"]
    return {
        **found,
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": list(os.getloadavg()),
    }


def commit() -> str | None:
    """Return the commit of this checkout, with a + behind it where files differ; None outside of one."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + "+" * bool(git("status", "--porcelain", "-uno"))
    except (OSError, subprocess.CalledProcessError):
        return None


def gemm_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the product that limits a case: a CPU computes everything in float32 or float64."""
    return dtype if device.type == "cuda" or dtype == torch.float64 else torch.float32


def gemm(device: torch.device, dtype: torch.dtype) -> tuple[Call, float]:
    """Return a matrix product as a call, and its operations."""
    n = SIZES[device.type][0]
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return Call(lambda _: a @ b), 2.0 * n**3


def copy(device: torch.device) -> tuple[Call, float]:
    """Return a copy as a call, and the bytes that it reads and writes."""
    source = torch.zeros(SIZES[device.type][1], device=device)
    target = torch.empty_like(source)
    return Call(lambda _: target.copy_(source)), 2.0 * source.nbytes


def rates(device: torch.device, clock: Clock) -> dict[str, float]:
    """Return the best of some products and copies, alone: GFLOP/s and GB/s."""
    found = {}
    for name, dtype in (("sgemm_gflops", torch.float32), ("bf16_gflops", torch.bfloat16)):
        product, flop = gemm(device, dtype)
        found[name] = 1e-9 * flop / _best(product, clock)
    copying, size = copy(device)
    found["copy_gigabytes_per_second"] = 1e-9 * size / _best(copying, clock)
    return found


def _best(call: Call, clock: Clock) -> float:
    clock(call)
    return min(clock(call) for _ in range(RUNS))
