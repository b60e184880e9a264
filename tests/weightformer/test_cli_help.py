"""What helps a stranger at the command line: `--help` names every option, and a shell completes names."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import typer

from tests.weightformer.test_cli import Outcome, call
from weightformer import cli, students

COMMANDS = [command.callback.__name__ for command in cli.app.registered_commands if command.callback is not None]
SHARED = {"--device", "--json", "--config", "--force", "--help"}
# What else a command shares with others.
MORE = {
    "demo": {"--seed", "--set", "--resume", "--output"},
    "compare": {"--seed", "--set", "--resume", "--output", "--preset"},
    "teachers": {"--seed", "--set", "--resume", "--output", "--preset"},
    "fit": {"--seed", "--set", "--resume", "--output", "--preset"},
    "predict": {"--seed", "--output", "--arch"},
    "finetune": {"--seed", "--set", "--output", "--arch"},
    "evaluate": {"--seed", "--set", "--arch"},
    "plan": {"--set", "--arch", "--preset"},  # nothing in a plan is random
}

Run = Callable[[str], Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda command: call(command, capsys)


def test_the_help_names_every_command(run: Run) -> None:
    outcome = run("--help")
    assert outcome.code == 0
    assert set(COMMANDS) == set(MORE) <= set(outcome.out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_fits_and_names_every_option(name: str, run: Run) -> None:
    outcome = run(f"{name} --help")
    assert outcome.code == 0
    assert f"Usage: weightformer {name} " in outcome.out
    shown = set(outcome.out.split())
    assert SHARED | MORE[name] <= shown
    command = typer.main.get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    assert {option for parameter in command.params for option in parameter.opts if option.startswith("--")} <= shown
    assert "…" not in outcome.out  # nothing was cut


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("pre", ["predict"]),
        ("f", ["fit", "finetune"]),
        ("plan --ar", ["--arch"]),
        ("plan --arch resnet15", ["resnet152", "resnet152c", "resnet152d", "resnet152s"]),
        ("predict --arch vi", ["vit"]),
        ("evaluate --arch ml", ["mlp"]),
        ("finetune --arch vg", ["vgg", "vgg11", "vgg19_bn"]),
        ("fit --preset sh", ["shared-init"]),
    ],
)
def test_a_shell_completes_commands_options_and_names(
    words: str, expected: list[str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"weightformer {words}"
    monkeypatch.setenv("_WEIGHTFORMER_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    outcome = run("")
    assert outcome.code == 0
    offered = outcome.out.split()
    assert set(expected) <= set(offered)
    assert all(name.startswith(line.split()[-1]) for name in offered)


def test_every_architecture_that_can_be_asked_for_is_offered() -> None:
    known = students.known()
    assert {*students.names(), "resnet50", "vit_base_patch16_224"} <= set(known)
    assert len(known) == len(set(known))
