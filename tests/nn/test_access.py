"""`wfkernels.nn` is there without being imported by name, and not before it is used."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, wfkernels
assert "wfkernels.nn" not in sys.modules and "torch" not in sys.modules
assert {"nn", "scaled_dot_product_attention"} <= set(dir(wfkernels))
assert wfkernels.nn.MultiheadAttention.__module__ == "wfkernels.nn.multihead_attention"
assert wfkernels.nn is sys.modules["wfkernels.nn"]
assert callable(wfkernels.scaled_dot_product_attention)
"""


def test_is_loaded_when_first_used() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
