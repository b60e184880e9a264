"""Teachers: training one, and pools of them on disk."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightformer import bounds, checkpoints, students
from weightformer.domains import Domain
from weightformer.state import State

ROLES = ("train", "validation", "test")
FORMAT, VERSION = "weightformer teacher pool", 1


@dataclass(frozen=True)
class Schedule:
    """How a network is trained: AdamW, learning rate falling to zero along a cosine."""

    steps: int
    lr: float
    batch_size: int = 64
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        bounds.check(self, {"steps": 1, "lr": 0, "batch_size": 2, "weight_decay": 0})


FAST = Schedule(steps=150, lr=3e-3)
SLOW = Schedule(steps=400, lr=2e-3)


def batches(
    bank: Tensor,  # [n, views, C, H, W]
    labels: Tensor,  # [n]
    schedule: Schedule,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one batch for each step: images without repetition in a batch while there are enough, one view of each."""
    n, views = bank.shape[:2]
    for _ in range(schedule.steps):
        if n >= schedule.batch_size:
            image = torch.randperm(n, generator=generator)[: schedule.batch_size]
        else:
            image = torch.randint(n, (schedule.batch_size,), generator=generator)
        view = torch.randint(views, (schedule.batch_size,), generator=generator)
        image, view = image.to(bank.device), view.to(bank.device)
        yield bank[image, view], labels[image]


def train(model: nn.Module, examples: Iterable[tuple[Tensor, Tensor]], schedule: Schedule) -> nn.Module:
    """Train `model` in place by cross-entropy, one step for each pair of images and labels, and leave it in eval mode.

    `examples` brings at least `schedule.steps` pairs; see `batches`. Returns `model`.

    Raises FloatingPointError where a weight is not finite at the end.
    """
    # Measured for the small VGG (150 steps of 64 images of 14x14, one core of an EPYC 9004): contiguous 0.90 s,
    # channels_last 0.56 s; torch.compile 0.85 s after 25 s of compilation; vmap over 4 to 24 teachers 1.05 to 1.3 s and
    # grouped convolutions over 8 teachers 0.52 s for each teacher, too little to give up independent teachers for.
    model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay, fused=True)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, schedule.steps)
    for _, (images, labels) in zip(range(schedule.steps), examples, strict=False):
        optimizer.zero_grad()
        scores = model(images.contiguous(memory_format=torch.channels_last))
        F.cross_entropy(scores, labels).backward()
        optimizer.step()
        cosine.step()
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise FloatingPointError(
                f"train: {name} is not finite after {schedule.steps} steps; lower the learning rate ({schedule.lr:g})"
            )
    return model.eval().to(memory_format=torch.contiguous_format)


def state_of(model: nn.Module) -> State:
    """Return a detached, contiguous copy of the model's state dict."""
    state = model.state_dict()
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained network and where it comes from."""

    key: str
    role: str  # one of ROLES
    seed: int
    state: State
    group: int | None = None  # teachers that see the same domain
    domain: Domain | None = None
    indices: tuple[int, ...] = ()  # its private images; empty: all training images
    class_counts: tuple[int, ...] = ()  # images of each class it was trained on


@dataclass(frozen=True, eq=False)
class TeacherPool:
    """Teachers of one architecture. `base`, where there is one, is the network that all of them started from."""

    regime: str
    architecture: str
    arguments: dict[str, int]  # of students.create
    teachers: tuple[Teacher, ...]
    base: State | None = None
    configuration: dict[str, Any] = field(default_factory=dict)  # how the teachers were trained

    def __len__(self) -> int:
        return len(self.teachers)

    @property
    def states(self) -> list[State]:
        return [teacher.state for teacher in self.teachers]

    def create(self, seed: int | None = None) -> nn.Module:
        """Return an untrained network of the pool's architecture."""
        return students.create(self.architecture, **self.arguments, seed=seed)

    def select(self, role: str) -> TeacherPool:
        """Return the pool of the teachers with this role: train, validation or test."""
        if role not in ROLES:
            raise ValueError(f"select: role: expected one of {', '.join(ROLES)}, got {role!r}")
        return replace(self, teachers=tuple(t for t in self.teachers if t.role == role))

    def groups(self, size: int = 3) -> list[tuple[int, ...]]:
        """Return fixed groups of `size` teachers (positions in `teachers`) to report on.

        Where teachers belong to groups, the first `size` of each group; else as many as there are teachers, each
        beginning one further (0 1 2, 1 2 3, ... and round the end), so they overlap.
        """
        members = self._members(size)
        if len(members) > 1 or self.teachers[0].group is not None:
            return [tuple(m[:size]) for m in members]
        n = len(self)
        return [tuple((first + i) % n for i in range(size)) for first in range(n if n > size else 1)]

    def sample(self, size: int, generator: torch.Generator) -> tuple[int, ...]:
        """Return `size` different teachers drawn at random, from one random group where teachers belong to groups."""
        members = self._members(size)
        chosen = members[int(torch.randint(len(members), (), generator=generator))]
        return tuple(chosen[i] for i in torch.randperm(len(chosen), generator=generator)[:size].tolist())

    def _members(self, size: int) -> list[list[int]]:
        """Return the positions of each group's teachers, in the order in which the groups first appear."""
        by_group: dict[int | None, list[int]] = {}
        for position, teacher in enumerate(self.teachers):
            by_group.setdefault(teacher.group, []).append(position)
        smallest = min((len(m) for m in by_group.values()), default=0)
        if not 1 <= size <= smallest:
            raise ValueError(f"groups: size: expected 1 to {smallest}, as many as the smallest group has, got {size}")
        return list(by_group.values())

    def save(self, folder: str | Path) -> None:
        """Write one safetensors file for each teacher, base.safetensors and pool.json; existing ones are replaced.

        Every file is written whole or not at all, pool.json last.
        """
        self.save_base(folder)
        for teacher in self.teachers:
            self.save_teacher(folder, teacher)
        self.save_index(folder)

    def save_base(self, folder: str | Path) -> None:
        """Write base.safetensors, if the pool has a base."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        if self.base is not None:
            checkpoints.save(self.base, Path(folder) / "base.safetensors", overwrite=True)

    def save_teacher(self, folder: str | Path, teacher: Teacher) -> None:
        """Write one teacher's file; `save_index` must list it afterwards."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        checkpoints.save(teacher.state, Path(folder) / f"{teacher.key}.safetensors", overwrite=True)

    def save_index(self, folder: str | Path, planned: int | None = None) -> None:
        """Write pool.json; `planned` says how many teachers there will be, if more than now."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        index = {
            "format": FORMAT,
            "version": VERSION,
            "regime": self.regime,
            "architecture": self.architecture,
            "arguments": self.arguments,
            "configuration": self.configuration,
            "base": self.base is not None,
            "planned": len(self) if planned is None else planned,
            "teachers": [_entry(teacher) for teacher in self.teachers],
        }
        temporary = path / f".pool.json.{os.getpid()}"
        temporary.write_text(json.dumps(index))
        os.replace(temporary, path / "pool.json")

    @staticmethod
    def load(folder: str | Path, *, partial: bool = False) -> TeacherPool:
        """Read a pool that `save` or a training function wrote; `partial` also one whose training was interrupted.

        Raises ValueError, in one line, where a file is missing, damaged or does not fit the architecture.
        """
        path = Path(folder) / "pool.json"
        if not path.is_file():
            raise ValueError(f"TeacherPool.load: folder: no pool.json in {folder}; pass the folder of a trained pool")
        try:
            index = json.loads(path.read_text())
            if (index["format"], index["version"]) != (FORMAT, VERSION):
                raise ValueError(f"expected format {FORMAT!r} version {VERSION}")
            pool = TeacherPool(
                str(index["regime"]), str(index["architecture"]), {k: int(v) for k, v in index["arguments"].items()},
                tuple(_teacher(entry) for entry in index["teachers"]),
                {} if index["base"] else None, dict(index["configuration"]),
            )  # fmt: skip
            missing = int(index["planned"]) - len(pool)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"TeacherPool.load: {path} is no teacher pool ({reason}); train it again") from error
        if missing > 0 and not partial:
            raise ValueError(
                f"TeacherPool.load: {folder} lacks {missing} teachers of an interrupted training; "
                "train the pool again with the same settings, it goes on where it stopped"
            )
        return pool._with_states(Path(folder))

    def _with_states(self, folder: Path) -> TeacherPool:
        files = {t.key: folder / f"{t.key}.safetensors" for t in self.teachers}
        states = {key: checkpoints.load(file) for key, file in files.items()}
        base = None if self.base is None else checkpoints.load(folder / "base.safetensors")
        read = {str(files[key]): state for key, state in states.items()}
        if base is not None:
            read[str(folder / "base.safetensors")] = base
        checkpoints.check_teachers(read, self.create())
        teachers = tuple(replace(t, state=states[t.key]) for t in self.teachers)
        return replace(self, teachers=teachers, base=base)


def _entry(teacher: Teacher) -> dict[str, Any]:
    """Return a teacher's entry of pool.json: everything but its weights."""
    entry = asdict(replace(teacher, state={}))
    del entry["state"]
    return entry


def _teacher(entry: Mapping[str, Any]) -> Teacher:
    """Return the teacher of one entry of pool.json, still without its weights."""
    key, role, domain = entry["key"], entry["role"], entry["domain"]
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", key) or role not in ROLES:
        raise ValueError(f"teacher {key!r} with role {role!r}")
    if domain is not None:
        domain = Domain(**{**domain, "tiles": tuple(domain["tiles"])})
    return Teacher(
        key, role, int(entry["seed"]), {}, entry["group"], domain,
        tuple(entry["indices"]), tuple(entry["class_counts"]),
    )  # fmt: skip
