"""Configs of Triton kernels: their table, the search for better ones, and the commands; with a made-up clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wfkernels import autotune, env, gpu, tuning
from wfkernels.__main__ import ROOMS, main
from wfkernels.autotune import Found
from wfkernels.gpu import Config, Kind
from wfkernels.selftest.steps import STEPS

KIND = Kind("attention_forward", 90, 64, 16)
SHIPPED = gpu.configs()[KIND]
GPU = torch.device("cuda")


class Clock:
    """Says how long a step takes: it has to run, and what cannot run fails."""

    def __init__(self, times: dict[Config, float], broken: tuple[Config, ...] = ()) -> None:
        self.times, self.broken, self.ran = times, broken, list[Config]()

    def step(self, config: Config) -> Config:
        if config in self.broken:
            raise RuntimeError("out of resource: shared memory")
        self.ran.append(config)
        return config

    def milliseconds(self, run: Callable[[], object]) -> float:
        run()
        return self.times.get(self.ran[-1], 2.0)


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An H100 on which nothing was found yet."""
    monkeypatch.setattr(autotune, "found", {})
    monkeypatch.setattr(gpu, "capability", lambda device: 90 if device.type == "cuda" else 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setenv(env.AUTOTUNE.name, "1")
    yield
    gpu.forget()


def tuned(clock: Clock, device: torch.device = GPU, width: int = 64) -> Config:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autotune, "milliseconds", clock.milliseconds)
        return gpu.tuned(KIND.kernel, device, width, 16, clock.step)


def test_candidates_are_the_neighbours_and_the_shipped_config_is_the_first() -> None:
    found = autotune.candidates(Config(32, 16, 0, 8, 2))
    shapes = {(32, 16, 0), (16, 16, 0), (64, 16, 0), (32, 32, 0)}  # the tensor cores take no side of 8
    assert found[0] == Config(32, 16, 0, 8, 2)
    assert sorted(found) == sorted(Config(*s, w, n) for s in shapes for w in (4, 8) for n in (1, 2, 3, 4))
    assert {c.block_m for c in autotune.candidates(Config(1, 4096, 0, 8, 1))} == {1, 2}
    assert {c.block_m for c in autotune.candidates(Config(8, 4096, 0, 4, 1))} == {4, 8, 16}


def test_the_fastest_is_searched_for_once() -> None:
    fast = SHIPPED._replace(block_m=SHIPPED.block_m // 2, warps=4)
    clock = Clock({fast: 1.0})
    assert tuned(clock) == fast
    assert set(autotune.candidates(SHIPPED)) == set(clock.ran)
    clock.ran.clear()
    assert tuned(clock) == fast and tuned(clock, width=40) == fast  # which has the same row
    assert clock.ran == [fast, fast]
    assert autotune.found == {KIND: Found(fast, 1.0, 2.0)}


def test_what_cannot_run_is_left_out_and_equals_change_nothing() -> None:
    broken = SHIPPED._replace(stages=4)
    assert tuned(Clock({broken: 1.0}, (broken,))) == SHIPPED


def test_a_shipped_config_that_cannot_run_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="out of resource"):
        tuned(Clock({}, (SHIPPED,)))


def test_nothing_is_measured_without_the_switch_in_the_interpreter_or_in_a_capture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fast = SHIPPED._replace(stages=1)
    clock = Clock({fast: 1.0})
    with env.AUTOTUNE.holding("0"):
        assert tuned(clock) == SHIPPED
    assert tuned(clock, torch.device("cpu")) == gpu.config(KIND.kernel, 0, 64, 16)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert tuned(clock) == SHIPPED
    assert len(clock.ran) == 3
    autotune.found[KIND] = Found(fast, 1.0, 2.0)
    assert tuned(clock) == fast


def test_only_the_kernels_asked_for_are_searched() -> None:
    clock = Clock({})
    with autotune.only("rows_"):
        assert tuned(clock) == SHIPPED
    assert clock.ran == [SHIPPED] and not autotune.found


def test_the_shipped_table_stays_as_it_is_when_its_rows_are_written_again() -> None:
    text = gpu.TABLE.read_text()
    assert tuning.rewritten(text, gpu.configs()) == text


def test_rows_are_replaced_in_place_or_added(tmp_path: Path) -> None:
    path = tuning.target(str(tmp_path / "mine"))
    path.write_text("# mine\n" + path.read_text())
    first, other = Config(32, 32, 0, 4, 1), Config(64, 32, 0, 4, 3)
    tuning.save(path, {KIND: first, KIND._replace(family=89): first})
    tuning.save(path, {KIND: other})
    assert gpu.configs(path) == {KIND: other, KIND._replace(family=89): first}
    assert path.read_text().startswith(f"# mine\n{tuning.HEADER}\n{tuning.line(KIND, other)}\n")


def test_own_rows_go_first_and_leave_the_other_widths_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Config(32, 32, 0, 4, 1)
    tuning.save(tuning.target(str(tmp_path / "mine")), {KIND._replace(family=89): mine})
    before = {width: gpu.config(KIND.kernel, 89, width, 16) for width in (64, 65, 256, 300)}
    monkeypatch.setenv(env.CONFIGS.name, str(tmp_path / "mine"))
    assert {width: gpu.config(KIND.kernel, 89, width, 16) for width in before} == before | {64: mine}
    assert gpu.config(KIND.kernel, 86, 64, 16) == before[64]


def test_a_table_that_is_missing_or_broken_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine"
    monkeypatch.setenv(env.CONFIGS.name, str(path))
    with pytest.raises(ValueError, match=r"WFKERNELS_CONFIGS: there is no .*mine; `python -m wfkernels tune --save"):
        gpu.config("rows_pack", 90, 0, 16)
    path.write_text("sm_90 rows_pack 0 16 256 0 0 4\n")
    with pytest.raises(ValueError, match="mine: expected a family, a kernel and seven numbers, got 'sm_90 rows_pack"):
        gpu.config("rows_pack", 90, 0, 16)


def test_the_command_shows_what_a_gpu_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "--sm", "90"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == tuning.HEADER and tuning.line(KIND, SHIPPED) in lines
    assert len(lines) == 1 + len({kind[:1] + kind[2:] for kind in gpu.configs()})


@pytest.mark.parametrize("capability", ["75", "-5"])
def test_the_command_knows_no_gpu_that_the_kernels_refuse(capability: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["configs", f"--sm={capability}"])
    assert f"--sm: expected at least 80, the oldest that kernels run on, got {capability}" in capsys.readouterr().err


def test_the_command_tunes_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = SHIPPED._replace(stages=1)
    clock = Clock({fast: 1.0})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tuning, "calls", lambda *_: [lambda: tuned(clock)])
    assert main(["tune", "--op", "attention", "--save", str(tmp_path / "mine")]) == 0
    assert f"{tuning.line(KIND, fast)}  1.000 ms, was 2.000 ms\n1 rows written" in capsys.readouterr().out
    assert gpu.configs(tmp_path / "mine") == {KIND: fast}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--op", "rows"), "tune: needs a GPU that torch can use"),
        (("--op", "attention", "--width", "300"), "--width: expected a multiple of 16 up to 256"),
        (("--op", "rows", "--save", "/no/such/folder/mine"), "--save: /no/such/folder/mine cannot be written"),
    ],
)
def test_what_the_command_refuses(
    options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        main(["tune", *options])
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("op", ROOMS)
def test_the_calls_launch_every_kernel_of_an_op(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from tests.aot import recording

    asked: set[str] = set()
    found = gpu.tuned

    def asking(kernel: str, *rest: object) -> object:
        asked.add(kernel)
        return found(kernel, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(gpu, "tuned", asking)
    monkeypatch.setattr(gpu, "interpreted", lambda: True)
    monkeypatch.setenv(env.IMPL.name, "triton")
    with recording(90):
        for call in tuning.calls(op, torch.bfloat16, 32, torch.device("cpu"), replace(STEPS[0], depth=1), tokens=32):
            call()
    known = {kind.kernel for kind in gpu.configs() if kind.kernel.startswith(f"{op}_")}
    assert known and known <= asked
