"""The kernels under the oldest Triton that we promise, interpreted and compiled; all other tests run the installed one.

`make setup` puts it into build/triton-3.6, with the last NumPy that its interpreter knows.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERSION = "3.6"
FOLDER = ROOT / "build" / f"triton-{VERSION}"
INTERPRETED = {
    "attention": ("dense bias and gate", "dense rich tables", "ragged pruned table", "closed tiles, ragged terms"),
    "embedding": ("gelu", "cross tokens, float16", "sums that are split"),
    "projection": ("gated", "prior, mean, base, float16", "rows that are not needed"),
    "residual_norm": ("dropout, 17 x 127", "wider than a tile, float16"),
    "rows": ("convolution, mixed", "torch.float32 to torch.float16"),
}


def run(*command: str, **environment: str) -> str:
    """Run a module under the other Triton and return what it printed; fail where it failed."""
    if not (FOLDER / "triton").is_dir():
        what = f"there is no {FOLDER}; `make setup` installs it"
        if os.environ.get("CI"):
            pytest.fail(f"{what}; CI is set, so it must be tried")
        pytest.skip(what)
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=os.environ | environment | {"PYTHONPATH": str(FOLDER)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-5000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.parametrize("room", INTERPRETED)
def test_calls_are_no_worse_than_eager(room: str) -> None:
    names = INTERPRETED[room]
    said = run(f"tests.{room}.interpreted", *names, TRITON_INTERPRET="1", WFKERNELS_IMPL="triton")
    assert said.count("as the reference") == len(names)


def test_kernels_compile() -> None:
    said = run("tests.other_triton")
    print(said)
    assert said.startswith(f"{VERSION}.")


@pytest.mark.parametrize("value", ["", "1"])
def test_without_it_the_tests_are_skipped_unless_ci_is_set(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "FOLDER", tmp_path)
    monkeypatch.setenv("CI", value)
    with pytest.raises(pytest.fail.Exception if value else pytest.skip.Exception, match="`make setup` installs it"):
        run("tests.other_triton")
