"""`weightformer predict`: one student from the weights of several teachers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from weightformer.cli.options import (
    Arch,
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
    tell,
    write_json,
)
from weightformer.cli.reading import read_images, read_weights


def predict(
    ctx: typer.Context,
    teachers: Annotated[list[Path], typer.Argument(metavar="TEACHER...", help="Weight files of the teachers.")],
    arch: Arch,
    weightformer: Annotated[Path, typer.Option(metavar="FILE", help="The fitted WeightFormer.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The student.")],
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Re-estimate running statistics of BatchNorm on the images in this .npy or .safetensors file.",
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    json: Json = None,
    config: Config = None,
    force: Force = False,
) -> None:
    """Predict one student from the weights of several teachers and write it as safetensors.

    Running statistics of BatchNorm are re-estimated on the images that the WeightFormer was saved with (that of
    specialists has none: each group has images of its own), or on those of --calibrate: one array of n x channels x
    height x width in floating point, prepared as the teachers' training images were.
    """
    import torch

    from weightformer import checkpoints, rows, students
    from weightformer.predictor import Predictor

    no_settings(ctx)
    check_device(device)
    check_weights(output, json, force, inputs=[*teachers, weightformer, calibrate], config=config)
    students.create(arch)  # names the nearest where there is none of this name
    torch.manual_seed(seed)
    predictor = Predictor.load(weightformer).to(device)
    if rows.layout(students.create(arch, **predictor.arguments)) != predictor.model.layout:
        raise UserError(
            f"--arch: {weightformer} predicts {predictor.architecture}, not {arch}; name {predictor.architecture}, or"
            f" give a WeightFormer that was fitted for {arch}"
        )
    if calibrate is not None:
        images = read_images(calibrate)
        try:
            predictor = predictor.calibrated(images)
        except ValueError as error:
            raise UserError(f"--calibrate: {calibrate}: {error}") from error
    states = read_weights(teachers)
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
    if predictor.calibration is None and predictor.has_running_statistics():
        tell(
            f"{output}: its BatchNorm layers have the first teacher's running statistics, because {weightformer} holds"
            " no images to re-estimate them on; give images that the student is meant for with --calibrate FILE"
        )
