"""Every environment switch of wfkernels: its name, what it may hold and what it does.

Switches are read when they are needed, never at import, so a test or a notebook can set one at any time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

IMPLEMENTATIONS = ("reference", "cpp", "triton", "cuda")


@dataclass(frozen=True)
class Switch:
    """One environment variable. `choices` empty means free text; `build` means read by setup.py only."""

    name: str
    default: str
    choices: tuple[str, ...]
    help: str
    build: bool = False

    def read(self) -> str:
        """Return the value in force (empty means the default); raise ValueError where it is none of the choices."""
        value = os.environ.get(self.name) or self.default
        if self.choices and value not in self.choices:
            raise ValueError(f"{self.name}={value!r}: expected one of {', '.join(self.choices)}")
        return value

    @contextmanager
    def holding(self, value: str) -> Iterator[None]:
        """Let the switch hold a value inside the block, for the whole process."""
        before = os.environ.get(self.name)
        os.environ[self.name] = value
        try:
            yield
        finally:
            if before is None:
                del os.environ[self.name]
            else:
                os.environ[self.name] = before


IMPL = Switch(
    "WFKERNELS_IMPL",
    "auto",
    ("auto", *IMPLEMENTATIONS),
    'the implementation that impl="auto" means; a call that names one is not affected',
)
CHECK = Switch(
    "WFKERNELS_CHECK",
    "0",
    ("0", "1"),
    "1: check values on every device, and compare every kernel call with the reference; slow, for looking for a fault",
)
CPU_ISA = Switch(
    "WFKERNELS_CPU_ISA",
    "best",
    ("best", "portable", "avx2", "avx512"),
    "the instruction set of compiled CPU kernels; one that this machine lacks is an error",
)
TF32 = Switch(
    "WFKERNELS_TF32",
    "0",
    ("0", "1"),
    "1: Triton kernels multiply float32 in tf32, with 10 bits of mantissa instead of 23; faster, and far less exact",
)
AUTOTUNE = Switch(
    "WFKERNELS_AUTOTUNE",
    "0",
    ("0", "1"),
    "1: the first call of a Triton kernel tries other tile sizes and keeps the fastest; takes minutes, and waits",
)
CONFIGS = Switch(
    "WFKERNELS_CONFIGS",
    "",
    (),
    "a file of configs of Triton kernels that go before those shipped; `python -m wfkernels tune --save` writes it",
)
SKIP_CPP_BUILD = Switch("WFKERNELS_SKIP_CPP_BUILD", "0", ("0", "1"), "1: build no C++ extension", build=True)
SKIP_CUDA_BUILD = Switch(
    "WFKERNELS_SKIP_CUDA_BUILD", "0", ("0", "1"), "1: build no CUDA extension, even where nvcc is found", build=True
)

SWITCHES = (IMPL, CHECK, CPU_ISA, TF32, AUTOTUNE, CONFIGS, SKIP_CPP_BUILD, SKIP_CUDA_BUILD)
