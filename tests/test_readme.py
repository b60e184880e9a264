"""The README's examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_is_an_example_of_the_kernels_and_one_of_the_model() -> None:
    assert ["wfkernels.attention" in example for example in EXAMPLES] == [True, False]
    assert "WeightFormer(" in EXAMPLES[1]


@pytest.mark.parametrize("example", EXAMPLES, ids=["kernels", "model"])
def test_an_example_runs(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), scope)
    if "model" in scope:
        assert all(parameter.grad is not None for parameter in scope["model"].parameters())  # type: ignore[attr-defined]
    else:
        assert "attention" in capsys.readouterr().out
