"""`weightformer predict`: one student from the weights of several teachers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from weightformer.cli.options import (
    Config,
    Device,
    Force,
    Json,
    Seed,
    UserError,
    check_device,
    check_weights,
    in_force,
    no_settings,
    record_beside,
    write_json,
)


def predict(
    ctx: typer.Context,
    teachers: Annotated[list[Path], typer.Argument(metavar="TEACHER...", help="Weight files of the teachers.")],
    arch: Annotated[str, typer.Option(metavar="NAME", help="Their architecture, as `weightformer.students` names it.")],
    weightformer: Annotated[Path, typer.Option(metavar="FILE", help="The fitted WeightFormer.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The student.")],
    seed: Seed = 0,
    device: Device = "cpu",
    json: Json = None,
    config: Config = None,
    force: Force = False,
) -> None:
    """Predict one student from the weights of several teachers and write it as safetensors."""
    import torch

    from weightformer import checkpoints, rows, students
    from weightformer.predictor import Predictor

    no_settings(ctx)
    check_device(device)
    check_weights(output, json, force)
    students.create(arch)  # names the nearest where there is none of this name
    torch.manual_seed(seed)
    predictor = Predictor.load(weightformer).to(device)
    if rows.layout(students.create(arch, **predictor.arguments)) != predictor.model.layout:
        raise UserError(
            f"--arch: {weightformer} predicts {predictor.architecture}, not {arch}; name {predictor.architecture}, or"
            f" give a WeightFormer that was fitted for {arch}"
        )
    states = {str(path): checkpoints.load(path) for path in teachers}
    checkpoints.check_teachers(states, predictor.student())
    start = time.perf_counter()
    student = predictor(list(states.values()))
    seconds = time.perf_counter() - start
    checkpoints.save(student, output, overwrite=force)
    record_beside(output, in_force(ctx))
    numbers = sum(tensor.numel() for tensor in student.values())
    if json is not None:
        write_json(json, {"teachers": list(states), "output": str(output), "tensors": len(student), "seconds": seconds})
    print(f"{output}: {len(student)} tensors, {numbers:,} numbers, from {len(states)} teachers in {seconds:.2f} s")
