"""`weightformer fit`: meta-train a WeightFormer on teachers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightformer.cli.compare import CHECKPOINTS, FITTED, Preset
from weightformer.cli.options import (
    Assignments,
    Config,
    Device,
    Folder,
    Force,
    Json,
    Resume,
    Seed,
    UserError,
    check_apart,
    check_device,
    check_new,
    in_force,
    one_of,
    settled,
    steady,
    write_json,
)
from weightformer.cli.reading import read_weights, shape_of

if TYPE_CHECKING:
    from weightformer.compare.presets import Plan
    from weightformer.teachers import TeacherPool

# Of a comparison's plan.
SETTINGS = ("model", "recipe", "arch", "data", "aligned", "group", "sizes", "batch_size", "views")


def fit(
    ctx: typer.Context,
    teachers: Annotated[
        list[Path],
        typer.Argument(metavar="TEACHER...", help="The folder of a pool, or the weight files of your own teachers."),
    ],
    preset: Preset,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help=f"Where {FITTED} goes, and what a resumed run needs."),
    ],
    seed: Seed = 0,
    device: Device = "cpu",
    json: Json = None,
    config: Config = None,
    assignments: Assignments = None,
    force: Force = False,
    resume: Resume = False,
) -> None:
    """Fit a WeightFormer on teachers: the student's own loss trains it, on the data that the teachers learned from.

    The preset brings the settings that were measured to work for its kind of teachers; --set recipe.NAME=VALUE and
    --set model.NAME=VALUE change them. Files of your own also need --set arch=NAME and --set data.name=NAME.
    """
    from weightformer.compare import same_task, specialists
    from weightformer.compare.presets import PRESETS

    one_of("--preset", preset, PRESETS)
    check_device(device)
    check_apart({"--output": output}, json, inputs=teachers, config=config)
    check_new(json, "--json", force)
    default = PRESETS[preset].plan
    only = tuple(name for name in SETTINGS if hasattr(default, name))
    plan = settled(ctx, default, assignments, only=only)
    kept = in_force(ctx, plan, only=only)
    pool = _pool(teachers, plan, preset)
    # Before the folder is touched: what does not fit together is refused here.
    bench: specialists.Bench | same_task.Bench
    if isinstance(plan, specialists.Plan):
        bench = specialists.Bench(plan, seed, device, output, pool)
    else:
        bench = same_task.Bench(plan, seed, device, output, pool)
    folder = Folder(output, (FITTED, CHECKPOINTS), lambda path: (path / FITTED).exists())
    with folder.opened(kept, resume=resume, force=force):
        steady()
        predictor, seconds = bench.fitted_predictor()
        predictor.save(output / FITTED, overwrite=True)
        folder.clear(CHECKPOINTS)
    if json is not None:
        write_json(json, {"output": str(output), "teachers": len(pool), "seconds": seconds, "settings": kept})
    print(f"{output / FITTED}: fitted on {len(pool.select('train'))} teachers in {seconds:.1f} s")


def _pool(paths: list[Path], plan: Plan, preset: str) -> TeacherPool:
    """Return the pool of a folder, or one made of files."""
    from weightformer.compare import specialists
    from weightformer.teachers import TeacherPool

    special = isinstance(plan, specialists.Plan)
    if len(paths) == 1 and paths[0].is_dir():
        pool = TeacherPool.load(paths[0])
        if (pool.regime == "specialists") != special:
            raise UserError(
                f"--preset: {paths[0]} holds teachers of the regime {pool.regime}, {preset} is for others; name the"
                " preset that the pool was trained by"
            )
        return pool
    if special:
        raise UserError("TEACHER: specialists need their domains and their base; give the folder of a pool")
    return _from_files(paths, plan)


def _from_files(paths: list[Path], plan: Plan) -> TeacherPool:
    from weightformer import checkpoints
    from weightformer.teachers import Teacher, TeacherPool

    data = plan.data.load()
    arguments = shape_of(data)
    states = read_weights(paths)
    empty = TeacherPool("files", plan.arch, arguments, ())
    checkpoints.check_teachers(states, empty.create(0))
    teachers = (Teacher(f"file-{i}", "train", i, state) for i, state in enumerate(states.values()))
    return TeacherPool("files", plan.arch, arguments, tuple(teachers))
