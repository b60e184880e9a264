from __future__ import annotations

import os
from io import StringIO

import pytest
import torch
from rich.console import Console

from weightformer import progress, workers
from weightformer.state import State


def square(material: State, job: int) -> State:
    if job == 13:
        raise ValueError("thirteen")
    if job == 66:
        os._exit(1)
    return {
        "value": material["offset"] + job**2,
        "threads": torch.tensor(torch.get_num_threads()),
        "process": torch.tensor(os.getpid()),
    }


def results(count: int, **options: int | None) -> list[State]:
    found = dict(workers.run(square, {"offset": torch.tensor(0.5)}, range(count), **options))
    assert sorted(found) == list(range(count))
    return [found[i] for i in range(count)]


@pytest.mark.parametrize("count", [1, 2])
def test_every_job_runs_once_on_one_thread(count: int) -> None:
    found = results(9, workers=count)
    assert [float(s["value"]) for s in found] == [i**2 + 0.5 for i in range(9)]
    assert {int(s["threads"]) for s in found} == {1}
    assert (int(found[0]["process"]) == os.getpid()) == (count == 1)


def test_errors_of_a_job_arrive_and_stop_the_others() -> None:
    with pytest.raises(ValueError, match="thirteen"):
        list(workers.run(square, {"offset": torch.zeros(())}, [13, *range(100)], workers=2))


def test_few_jobs_stay_in_this_process() -> None:
    assert {int(s["process"]) for s in results(3)} == {os.getpid()}


def test_a_dead_worker_is_reported() -> None:
    with pytest.raises(RuntimeError, match="run: a worker process died"):
        list(workers.run(square, {"offset": torch.zeros(())}, [66, 66], workers=2))


def test_no_worker_is_an_error() -> None:
    with pytest.raises(ValueError, match="run: workers: expected at least one, got 0"):
        list(workers.run(square, {}, [1], workers=0))


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), workers.one_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before


class TestProgress:
    def test_terminals_see_a_bar_with_rate_and_estimate(self) -> None:
        screen = StringIO()
        with progress.bar("teachers", Console(file=screen, force_terminal=True, width=100)) as tell:
            for i in range(4):
                tell(i, 3)
        assert "teachers" in screen.getvalue() and "3/3" in screen.getvalue() and "/s" in screen.getvalue()

    def test_logs_see_a_line_now_and_then(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = iter([0.0, 1.0, 2.0, 6.0, 7.0, 12.0])
        monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
        screen = StringIO()
        with progress.bar("teachers", Console(file=screen, width=100)) as tell:
            for done in (4, 5, 7, 8, 10):  # 4 were there already
                tell(done, 10)
        assert screen.getvalue().splitlines() == ["teachers: 7/10, 0.5/s, 6 s left", "teachers: 10/10, 0.5/s"]
