"""`weightformer finetune`: some more steps for a student, towards its teachers' ensemble or on labels alone."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightformer import bounds
from weightformer.cli.options import (
    Arch,
    Assignments,
    Config,
    Device,
    Force,
    Json,
    Seed,
    UserError,
    check_device,
    check_weights,
    in_force,
    record_beside,
    settled,
    steady,
    write_json,
)
from weightformer.cli.reading import Inputs, read_networks, shape_of

if TYPE_CHECKING:
    from weightformer.state import State


@dataclass(frozen=True)
class Tuning(Inputs):
    """The settings: those of `weightformer.finetune.finetune`, the views of each training image, and the data."""

    steps: int = 25
    learning_rate: float = 1e-3
    batch_size: int = 64
    alpha: float = 0.7
    temperature: float = 2.0
    weight_decay: float = 0.0
    views: int = 30

    def __post_init__(self) -> None:
        least = {"steps": 0, "learning_rate": 0, "batch_size": 2, "alpha": 0, "weight_decay": 0, "views": 1}
        bounds.check(self, least, "finetune")
        if self.alpha > 1:
            raise ValueError(f"finetune: alpha: expected a share from 0 to 1, got {self.alpha}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"finetune: temperature: expected a finite positive number, got {self.temperature}")


def finetune(
    ctx: typer.Context,
    student: Annotated[Path, typer.Argument(metavar="STUDENT", help="Weight file of the student to begin with.")],
    arch: Arch,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The student afterwards.")],
    teachers: Annotated[
        list[Path] | None,
        typer.Option("--teacher", metavar="FILE", help="Weight file of a teacher; repeat for each. None: labels only."),
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    json: Json = None,
    config: Config = None,
    assignments: Assignments = None,
    force: Force = False,
) -> None:
    """Train a student for a few steps: by distillation from its teachers, or on labels alone where none are given.

    --set steps=100, learning_rate, batch_size, alpha (weight of the teachers), temperature, weight_decay, views;
    --set data.name=NAME for the data. Running statistics of BatchNorm are re-estimated at the end.
    """
    import torch

    from weightformer import checkpoints, evaluate, students, views
    from weightformer import finetune as method
    from weightformer.compare.device import on
    from weightformer.progress import bar

    check_device(device)
    check_weights(output, json, force, inputs=[student, *(teachers or ())], config=config)
    plan = settled(ctx, Tuning(), assignments)
    data = on(plan.data.load(), device)
    create = partial(students.create, arch, **shape_of(data), seed=0)
    (start,) = read_networks([student], arch, data, device).values()
    states = list(read_networks(teachers, arch, data, device).values()) if teachers else []
    steady()
    began = time.perf_counter()
    bank = views.bank(data.train, plan.views)
    targets = None
    if states:
        outputs = [method.bank_logits(evaluate.with_state(create(), state), bank) for state in states]
        targets = method.soft_targets(torch.stack(outputs), plan.temperature)
    options = asdict(plan)
    for name in ("data", "views"):
        del options[name]
    with bar("fine-tuning") as tell:
        steps = count()
        found = method.finetune(
            create(), bank, data.train.labels, targets, start=start, seed=seed,
            progress=lambda loss: tell(next(steps) + 1, plan.steps), **options,
        )  # fmt: skip
    network = evaluate.recalibrate(evaluate.with_state(create(), found), bank[:, :2].flatten(0, 1))
    seconds = time.perf_counter() - began
    _check_finite(network.state_dict(), start, plan)
    checkpoints.save(network.state_dict(), output, overwrite=force)
    record_beside(output, in_force(ctx, plan))
    if json is not None:
        write_json(json, {"student": str(student), "output": str(output), "steps": plan.steps, "seconds": seconds})
    print(f"{output}: {student} after {plan.steps} steps, in {seconds:.1f} s")


def _check_finite(found: State, start: State, plan: Tuning) -> None:
    """Refuse a student that training has ruined; buffers that were infinite before (masks) may be so afterwards."""
    for name, tensor in found.items():
        if not tensor.isfinite().all() and start.get(name, tensor.new_zeros(())).isfinite().all():
            raise UserError(
                f"finetune: {name} is not finite after {plan.steps} steps, so nothing was written; lower"
                f" --set learning_rate={plan.learning_rate:g} or raise --set temperature={plan.temperature:g}"
            )
