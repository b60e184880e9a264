"""The memory that a call takes, measured in processes of their own.

What other tests have freed, and how they have set the allocator (wfkernels.allocator), would decide what is counted.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.case import Call
from benchmarks.memory import peak_mb

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def what_torch_does_not_see() -> None:
    libc = ctypes.CDLL(None)
    libc.aligned_alloc.restype = ctypes.c_void_p
    libc.aligned_alloc.argtypes, libc.free.argtypes = [ctypes.c_size_t] * 2, [ctypes.c_void_p]
    size = 48 << 20

    def scratch(_: Any) -> None:
        buffer = libc.aligned_alloc(64, size)
        ctypes.memset(buffer, 1, size)
        libc.free(buffer)

    def tensors(_: Any) -> tuple[Tensor, Tensor]:
        return torch.ones(16 << 18), torch.ones(32 << 18)

    for run in (scratch, tensors):
        # What is there before does not count, and what was freed before is not used again unseen.
        found = peak_mb(Call(run, lambda: torch.ones(100 << 18)), CPU)
        assert found is not None and 47.0 < found < 56.0, found


def the_end_of_a_heap_that_cannot_shrink() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes, libc.sbrk.argtypes = [ctypes.c_void_p], [ctypes.c_ssize_t]
    torch.ones(31 << 18)  # once such a block was freed, smaller ones come from the heap
    block = libc.malloc(24 << 20)
    ctypes.memset(block, 1, 24 << 20)
    libc.sbrk(4096)  # somebody else grows the heap: its end can no longer be given back
    libc.free(block)
    found = peak_mb(Call(lambda _: torch.ones(16 << 18), lambda: None), CPU)
    assert found is not None and 15.0 < found < 20.0, found


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not say how much is resident")
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="not glibc 2.33 or newer")
@pytest.mark.parametrize("case", [what_torch_does_not_see, the_end_of_a_heap_that_cannot_shrink])
def test_memory_counts(case: Any) -> None:
    code = f"from tests.benchmarks import test_memory; test_memory.{case.__name__}()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
