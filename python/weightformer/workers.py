"""Many small independent computations on all cores, with the same results for any number of workers."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import safetensors.torch
import torch
from torch import Tensor

from weightformer.state import State

Job = TypeVar("Job")

# A worker needs two to three seconds to import torch; below this many jobs for each it is not worth starting.
JOBS_PER_WORKER = 4

_material: State = {}


def run(
    work: Callable[[State, Job], State],
    material: Mapping[str, Tensor],
    jobs: Sequence[Job],
    *,
    workers: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[int, State]]:
    """Yield (index, work(material, jobs[index])) as the jobs finish, in any order.

    Each job runs on one thread, so its result does not depend on where it runs. `work` is a function of a module and
    jobs are plain values: other processes must be able to unpickle both. A script that calls this with more than one
    worker needs the usual `if __name__ == "__main__":`.

    Args:
        workers: processes; 1 runs in this one. None means one for each usable core and every four jobs.
        device: where `material` lies; anything but the CPU runs in this process.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"run: workers: expected at least one, got {workers}")
    count = workers or min(usable_cores(), len(jobs) // JOBS_PER_WORKER)
    if count <= 1 or len(jobs) <= 1 or torch.device(device).type != "cpu":
        here = {name: tensor.to(device) for name, tensor in material.items()}
        for index, job in enumerate(jobs):
            with one_thread():
                result = work(here, job)
            yield index, {name: tensor.cpu() for name, tensor in result.items()}
        return
    with tempfile.TemporaryDirectory(prefix="weightformer-") as folder:
        # A file that every worker maps needs no shared memory segment, which containers often limit to 64 MB.
        path = Path(folder) / "material.safetensors"
        safetensors.torch.save_file({n: t.contiguous() for n, t in material.items()}, path)
        pool = ProcessPoolExecutor(min(count, len(jobs)), get_context("spawn"), _start, (str(path),))
        try:
            waiting: dict[Future[bytes], int] = {pool.submit(_run, work, job): i for i, job in enumerate(jobs)}
            for future in as_completed(waiting):
                yield waiting[future], safetensors.torch.load(future.result())
        except BrokenProcessPool as error:
            raise RuntimeError("run: a worker process died, perhaps out of memory; try fewer workers") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread, as the workers do: sums are then taken in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _start(path: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and stops the workers
    torch.set_num_threads(1)
    _material.update(safetensors.torch.load_file(path))


def _run(work: Callable[[State, Job], State], job: Job) -> bytes:
    return safetensors.torch.save(work(_material, job))
