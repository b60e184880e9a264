"""The examples in docs/checkpoints.md run as they stand, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.weightformer.test_compat import Encoder
from weightformer import checkpoints

TEXT = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(examples) == TEXT.count("```") // 2 == 6
    monkeypatch.chdir(tmp_path)
    torch.save(Encoder({"conv1weight": 9}, d=16, heads=8, blocks=1, hidden=8, tokens=32).state_dict(), "public.pth")
    scope: dict[str, object] = {}
    for example in examples:
        exec(compile(example, "docs/checkpoints.md", "exec"), scope)
    # The message that the text shows, as far as it shows it.
    shown = next(line for line in TEXT.splitlines() if line.startswith("# teacher0.pth: ")).removeprefix("# ")
    assert capsys.readouterr().out.startswith(shown.removesuffix("..."))
    assert {path.name for path in (tmp_path / "wf").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    written, student = checkpoints.load("student.safetensors"), scope["student"]
    assert isinstance(student, dict) and written.keys() == student.keys()
    # What the public code's encoder predicts is what the file has layers for.
    first = checkpoints.load("teacher0.pth")
    assert [name for name in first if not torch.equal(first[name], student[name])] == ["conv1.weight"]
