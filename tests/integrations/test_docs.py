"""The examples of docs/integrations.md run as they stand, and what it says about them is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(REPORT,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("example, printed", list(zip(EXAMPLES, [REPORT, "torch.Size([32, 4])\n"], strict=True)))
def test_an_example_runs(example: str, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(example, "integrations.md", "exec"), {})
    assert printed in capsys.readouterr().out
