"""The compiled parts: loaded when asked for, and honest about why not."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from wfkernels import compiled


def test_missing_parts_say_how_to_build_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(compiled, "TOOLKIT_FOLDER", str(tmp_path))
    missing = compiled.why_not(compiled.Part("C++", "_no_such_part.so"))
    assert missing is not None and missing.startswith("_no_such_part.so was not built")
    assert "install g++" in missing and "nvcc" not in missing
    assert missing.endswith(f"run {compiled.BUILD_COMMAND} in a checkout")
    obstacles = " ".join(compiled._obstacles(compiled.CUDA))
    assert "install g++" in obstacles and "install the CUDA toolkit" in obstacles and "without CUDA" in obstacles


def test_a_damaged_part_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "_C.abi3.so"
    damaged.write_bytes(b"\x7fELF and nothing more")
    monkeypatch.setattr(compiled, "__file__", str(tmp_path / "compiled.py"))
    reason = compiled.why_not(compiled.Part("C++, damaged", "_C.abi3.so"))
    assert reason is not None and "does not load" in reason and compiled.BUILD_COMMAND in reason


@pytest.mark.parametrize("first", ["library", "schemas"])
def test_library_and_schemas_may_load_in_either_order(first: str) -> None:
    if reason := compiled.why_not(compiled.CPP):
        pytest.skip(reason)
    load = f"torch.ops.load_library({str(compiled.CPP.path)!r})"
    schemas = "from wfkernels.rows import ops"
    program = f"""
        import torch
        {load if first == "library" else schemas}
        {schemas if first == "library" else load}
        arguments = ([torch.randn(3, 5), torch.randn(3)], [3], [2], [5, 1], torch.float32)
        torch.library.opcheck(ops.rows_pack, (*arguments, "cpp"))
        torch.library.opcheck(torch.ops.wfkernels_cpp.rows_pack.default, arguments)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=120)
