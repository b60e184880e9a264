"""Memory that was used once stays with the process."""

from __future__ import annotations

import ctypes

# malloc.h of glibc.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def settle() -> bool:
    """Keep the C library from giving the memory of freed CPU tensors back, only to get it anew page by page.

    glibc returns large blocks to the system when they are freed; which ones, depends on all that a program has freed
    before (mallopt(3)). Every page that is asked for again costs a fault: predictions on a CPU took 1.5 times as long,
    and not twice the same. For a program that trains or predicts on the CPU; in exchange its memory stays at the most
    it ever took. Nothing in this library calls it but the measurement of rates.

    Returns whether anything was done: False under another C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
