"""Measured rates: what they hold, where they are kept, and that they predict other computations within 25 %."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from wfkernels.__main__ import main
from wfkernels.allocator import settle
from wfkernels.selftest import command, kept, load, measure, rates, save
from wfkernels.selftest.steps import Step

SMALL = (
    Step(((8, 9), (5, 17)), d=16, heads=2, gate="bucketed", cross=1, dropout_p=0.1),
    Step(((30, 33),), d=32, heads=2, gate="dense", blocks=1, norm="post"),
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # Memory that the C library keeps for the rest of the session would count against tests of memory.
    monkeypatch.setattr(measure, "settle", lambda: None)
    monkeypatch.setattr(measure, "STEPS", SMALL)
    return tmp_path / "wfkernels" / "rates.json"


def test_rates_are_plain_data_about_every_op_of_a_step() -> None:
    told: list[tuple[int, int]] = []
    found = rates("cpu", progress=lambda done, total: told.append((done, total)))
    assert json.loads(json.dumps(found)) == found
    assert found["sgemm_gflops"] > 0.1 and found["copy_gigabytes_per_second"] > 0.1 and found["glue"] >= 0
    assert found["machine"]["device"] == "cpu" and found["key"] == kept.key("cpu")
    ops = ("attention_forward", "residual_norm", "embedding", "projection", "linear", "rows_pack")
    backward = ("attention_backward", "residual_norm_backward", "embedding_backward", "projection_backward")
    assert {f"{op}:reference" for op in (*ops, *backward)} | {"mm", "other"} <= set(found["kinds"])
    assert all(rate > 0 for of_kind in found["kinds"].values() for rate in of_kind.values())
    assert told[-1][0] == told[-1][1] == len(told)


def test_rates_are_kept_apart_by_machine(cache: Path) -> None:
    assert load("cpu") is None
    mine, other = {"key": kept.key("cpu"), "glue": 1.0}, {"key": "another", "glue": 2.0}
    assert save(other) == cache and save(mine) == cache
    assert load("cpu") == mine
    assert json.loads(cache.read_text()) == {"another": other, kept.key("cpu"): mine}
    save({**mine, "glue": 3.0})
    assert load("cpu") == {**mine, "glue": 3.0}


def test_the_key_changes_with_threads_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    before = kept.key("cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert kept.key("cpu") != before
    monkeypatch.undo()
    monkeypatch.setattr(kept, "__version__", "0.0.0")
    assert kept.key("cpu") != before


def test_rates_of_a_number_of_threads_are_measured_on_so_many_and_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def pretend(device: torch.device, progress: Any) -> dict[str, Any]:
        return {"key": kept.key(device), "machine": kept.machine(device)}

    monkeypatch.setattr(command, "rates", pretend)
    before = torch.get_num_threads()
    for threads in (1, 2):
        assert load("cpu", threads) is None
        assert main(["selftest", "--rates", "--device", "cpu", "--threads", str(threads), "--json"]) == 0
        found = load("cpu", threads)
        assert found is not None and found["machine"]["threads"] == threads
        assert torch.get_num_threads() == before


@pytest.mark.parametrize("wrong", [["--threads", "1"], ["--rates", "--threads", "0"], ["--rates", "--threads", "x"]])
def test_a_number_of_threads_that_says_nothing_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["selftest", "--device", "cpu", *wrong])
    assert stop.value.code == 2 and "--threads" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"key": 3}', "\xff"])
def test_a_file_that_cannot_be_read_counts_as_none(text: str, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text(text)
    assert load("cpu") is None
    save({"key": kept.key("cpu")})
    assert load("cpu") == {"key": kept.key("cpu")}


def test_an_interrupted_save_leaves_the_old_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save({"key": kept.key("cpu"), "glue": 1.0})

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save({"key": kept.key("cpu"), "glue": 2.0})
    assert load("cpu") == {"key": kept.key("cpu"), "glue": 1.0}
    assert [p.name for p in cache.parent.iterdir()] == [cache.name]


def test_the_command_line(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--rates", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.endswith(f"kept in {cache}\n")
    assert "GFLOP/s" in out and "GB/s, read plus written" in out and "attention_forward (reference): " in out
    first = load("cpu")
    assert main(["selftest", "--rates", "--device", "cpu", "--json"]) == 0
    (printed,) = json.loads(capsys.readouterr().out)
    assert printed == load("cpu") != first


def python(program: str) -> str:
    """What a fresh interpreter prints: what these programs do to the allocator must not outlive them."""
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, timeout=600, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is glibc's")
def test_a_settled_allocator_does_not_ask_for_memory_again() -> None:
    program = """
        import resource, torch
        from wfkernels.allocator import settle

        def faults():
            for _ in range(3):  # memory that it has not had before
                torch.ones(6 << 20, dtype=torch.uint8)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(10):
                torch.ones(6 << 20, dtype=torch.uint8)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        unsettled = faults()
        print(settle(), unsettled, faults())
    """
    done, unsettled, settled = python(program).split()
    if done == "False":
        pytest.skip("not glibc")
    assert int(settled) < 100
    assert int(unsettled) > 1000


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert settle() is False


ACCURACY = """
    import time
    import torch
    from statistics import median
    from wfkernels import predict
    from wfkernels.allocator import settle
    from wfkernels.selftest import lengths_of, rates, seconds, trace
    from wfkernels.selftest.steps import Step, model

    settle()
    clock = time.process_time  # one thread: what other processes take does not count
    torch.set_num_threads(1)
    measured = rates("cpu", clock)
    for step in (
        Step(((100, 100), (50, 300)), d=96, heads=6, depth=2, teachers=(5,), cross=1, gate="dense"),
        Step(((700, 65),), d=128, heads=4, blocks=1, teachers=(2,), gate="bucketed"),
        Step(((48, 433),), d=128, heads=8, depth=6, gate="bucketed", dropout_p=0.1, norm="post", output="plain"),
        Step(((64, 577), (128, 1153)), d=384, heads=8, gate="bucketed", cross=1),
        Step(((33, 129),), d=192, heads=8, depth=12, teachers=(2, 3), gate="dense", cross=2, recompute="none"),
    ):
        def calls(device):
            layout, parameters, settings, lookup = model(step, torch.device(device))
            rows = torch.randn(sum(step.teachers) * layout.layout.row_numel, device=device)
            def forward():
                with torch.no_grad():
                    predict(rows, parameters, settings, layout=layout, gate_lookup=lookup, impl=IMPL)
            def both():
                students = predict(rows, parameters, settings, layout=layout, gate_lookup=lookup, impl=IMPL)
                torch.autograd.backward(students, torch.ones_like(students))
            return forward, both, lengths_of(layout, settings)
        def timed(function):
            start = clock()
            function()
            return clock() - start
        *real, _ = calls("cpu")
        *planned, lengths = calls("meta")
        for function, plan in zip(real, planned):
            function()
            took = median(timed(function) for _ in range(5))
            print(sum(seconds(trace(plan, lengths), measured, IMPL).values()) / took)
"""


@pytest.mark.alone
@pytest.mark.timeout(900)
@pytest.mark.parametrize("impl", ["reference", "auto"])
def test_whole_predictions_take_what_the_rates_say_within_a_quarter(impl: str) -> None:
    ratios: list[float] = []
    for _ in range(3):  # a machine that is busy with something else may spoil one measurement
        ratios = [float(line) for line in python(ACCURACY.replace("IMPL", repr(impl))).split()]
        if all(0.75 <= ratio <= 1.25 for ratio in ratios):
            return
    raise AssertionError(f"expected over measured seconds, forward and forward with backward: {ratios}")
