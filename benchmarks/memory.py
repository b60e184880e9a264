"""The memory that a call takes beyond what was there before it: results, and all that it needs on the way.

On a CPU that is how far the resident memory of the process rises above where it stood. So it counts what torch
allocates and what compiled kernels and other libraries allocate on their own, page by page, wherever a page was
written; torch's profiler would see the first kind only. Memory that was freed before is given back first, and the end
of the heap, which cannot be given back where something else has grown behind it, is taken out of use. What libraries
keep from one call to the next (packing buffers of the matrix product) is there before and does not count.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from benchmarks.case import Call

MB = float(1 << 20)


def peak_mb(call: Call, device: torch.device) -> float | None:
    """Return the most a call takes, in MB of 2^20 bytes; None where the system does not say. Run the call once before.

    A backward pass alone does not count what its forward pass saved.
    """
    with call.around():
        state = call.prepare()
        if device.type == "cuda":
            return _cuda(call, state, device)
        return _resident(call, state)


def _cuda(call: Call, state: object, device: torch.device) -> float:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call.run(state)
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    del result
    return (peak - before) / MB


def _resident(call: Call, state: object) -> float | None:
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):  # not glibc, or one before 2.33
        return None
    gc.collect()
    with _no_freed_pages():
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # proc(5): resets the peak to what is resident now
        except OSError:
            return None
        before = _status("VmRSS")
        result = call.run(state)
        peak = _status("VmHWM")
        del result
    return max(0.0, peak - before) / MB


class _Heap(ctypes.Structure):
    """What mallinfo2(3) returns; keepcost are the free bytes at the end of the heap."""

    _fields_ = [("others", ctypes.c_size_t * 9), ("keepcost", ctypes.c_size_t)]


@contextmanager
def _no_freed_pages() -> Iterator[None]:
    """Let no call write to resident pages that were freed before it: they would not count."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype, libc.malloc.restype, libc.malloc.argtypes = _Heap, ctypes.c_void_p, [ctypes.c_size_t]
    libc.malloc_trim(0)
    spare, held = 64 << 10, []  # the spare stays for Python's own small objects
    for _ in range(100):  # blocks may come from elsewhere first, in a thread of its own always
        if (end := libc.mallinfo2().keepcost) <= 2 * spare:
            break
        held.append(ctypes.c_void_p(libc.malloc(end - spare)))
    try:
        yield
    finally:
        for block in held:
            libc.free(block)


def _status(name: str) -> float:
    """Return a field of /proc/self/status, in bytes."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(f"{name}:"))
    return 1024.0 * int(line.split()[1])
