"""The README's examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from weightformer import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
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


def commands() -> list[str]:
    """Return every call of the command line in README and docs, continued lines joined."""
    texts = [
        path.read_text().replace("\\\n", " ") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    ]
    return [line for text in texts for line in re.findall(r"^ {4}weightformer (.*)$", text, re.MULTILINE)]


@pytest.mark.parametrize("command", commands())
def test_a_command_in_the_documents_exists_with_its_options(command: str) -> None:
    words = command.split("#")[0].split()
    known = {str(c.callback.__name__): c.callback for c in cli.app.registered_commands if c.callback is not None}
    if words[0].startswith("--"):
        assert words[0] in ("--install-completion", "--help")
        return
    params = typer.main.get_command(cli.app).commands[words[0]].params  # type: ignore[attr-defined]
    options = {option for param in params for option in param.opts}
    assert words[0] in known
    for word in words[1:]:
        assert not word.startswith("-") or word in options
    for setting in (word.partition("=")[0] for word in words if "=" in word):
        assert setting.partition(".")[0] in ("arch", "data", "recipe", "model", "regime")
