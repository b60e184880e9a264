"""Train the teachers of a pool that a folder does not hold yet, in worker processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from weightformer import students, workers
from weightformer.data import Images
from weightformer.domains import Domain
from weightformer.progress import Progress
from weightformer.state import State
from weightformer.teachers import Schedule, Teacher, TeacherPool

# Settings that say how many teachers there are, not how each is trained: a pool may grow.
COUNTS = {
    f"settings.{name}" for name in ("fast", "slow", "train", "validation", "test", "teachers", "held_out_teachers")
}
BASE = "base/"  # before the names of the base's tensors among a worker's material


@dataclass(frozen=True)
class Job:
    """One teacher to train: everything but the images and the network's architecture."""

    key: str
    role: str
    seed: int
    schedule: Schedule
    class_counts: tuple[int, ...] = ()
    indices: tuple[int, ...] = ()  # its private images
    group: int | None = None
    domain: Domain | None = None


@dataclass(frozen=True)
class Run:
    """What is asked for, in terms that the three regimes share."""

    regime: str
    architecture: str
    arguments: dict[str, int]
    seed: int
    folder: str | Path | None
    workers: int | None
    device: torch.device | str
    progress: Progress | None


def seed_of(*parts: object) -> int:
    """Return a seed of 32 bits that depends on all parts, so that equal numbers in other places do not meet."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big")


def digest_of(*splits: Images) -> str:
    """Return a short mark of the data: shapes and labels in order, not pixels, whose last bit may differ by machine."""
    mark = hashlib.sha256()
    for split in splits:
        mark.update(str(list(split.images.shape)).encode() + split.labels.numpy().tobytes())
    return mark.hexdigest()[:16]


def train_pool(
    run: Run,
    settings: Any,
    digest: str,
    work: Callable[[State, Job], State],
    material: State,
    jobs: Sequence[Job],
    base: Callable[[], State] | None = None,
) -> TeacherPool:
    """Train the jobs that `run.folder` does not hold yet, in worker processes, and return the whole pool."""
    students.create(run.architecture, **run.arguments, seed=0)  # refuses a wrong name before anything is written
    # Through JSON, as it will be read from a file: tuples become lists.
    configuration = json.loads(json.dumps({"seed": run.seed, "data": digest, "settings": asdict(settings)}))
    found = _found(run, configuration)
    start = None if found is None else found.base
    if base is not None and start is None:
        with workers.one_thread():
            start = base()
    if start is not None:
        material = {**material, **{BASE + name: tensor for name, tensor in start.items()}}
    old = {} if found is None else {teacher.key: teacher for teacher in found.teachers}
    # The group's number alone depends on how many others there are.
    done = {job.key: replace(old[job.key], group=job.group) for job in jobs if job.key in old}
    pool = TeacherPool(run.regime, run.architecture, run.arguments, (), start, configuration)

    def so_far() -> TeacherPool:
        return replace(pool, teachers=tuple(done[job.key] for job in jobs if job.key in done))

    def tell() -> None:
        if run.progress is not None:
            run.progress(len(done), len(jobs))

    open_jobs = [job for job in jobs if job.key not in done]
    if run.folder is not None and open_jobs:
        pool.save_base(run.folder)
    tell()
    for i, state in workers.run(work, material, open_jobs, workers=run.workers, device=run.device):
        job = open_jobs[i]
        about = (job.group, job.domain, job.indices, job.class_counts)
        done[job.key] = Teacher(job.key, job.role, job.seed, state, *about)
        if run.folder is not None:
            pool.save_teacher(run.folder, done[job.key])
            so_far().save_index(run.folder, planned=len(jobs))
        tell()
    if run.folder is not None:
        so_far().save_index(run.folder)
    return so_far()


def _found(run: Run, configuration: dict[str, Any]) -> TeacherPool | None:
    """Return the pool that `run.folder` holds so far; ValueError where its teachers were trained differently."""
    if run.folder is None or not (Path(run.folder) / "pool.json").exists():
        return None
    found = TeacherPool.load(run.folder, partial=True)
    network = {"regime": run.regime, "architecture": run.architecture, "arguments": run.arguments}
    here = _flat({**network, **configuration})
    there = _flat({**{name: getattr(found, name) for name in network}, **found.configuration})
    for name in sorted({*here, *there}):
        old, new = there.get(name), here.get(name)
        if name not in COUNTS and old != new:
            raise ValueError(
                f"{run.regime}: folder: {run.folder} holds other teachers ({name} is {old} there, {new} here); "
                "pass another folder or remove that one"
            )
    return found


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested dictionary as one level, keys joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
