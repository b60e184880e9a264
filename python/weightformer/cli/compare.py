"""`weightformer demo` and `weightformer compare`: every method and control on held-out teachers."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightformer.cli.options import (
    Assignments,
    Config,
    Device,
    Folder,
    Force,
    Json,
    Resume,
    Seed,
    check_apart,
    check_device,
    check_new,
    in_force,
    one_of,
    settled,
    steady,
)

if TYPE_CHECKING:
    from weightformer.compare.presets import Plan

Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        help="Where report.html, results.json, the teachers and the fitted weightformer.safetensors go."
        " Default: runs/NAME.",
    ),
]

# What a run leaves in its folder, whole or interrupted.
RESULT, REPORT, FITTED = "results.json", "report.html", "weightformer.safetensors"
# What only a resumed run would read.
CHECKPOINTS = "*.checkpoint"


def preset_names() -> list[str]:
    from weightformer.compare.presets import PRESETS

    return list(PRESETS)


Preset = Annotated[
    str,
    typer.Option(metavar="NAME", help="demo, independent, shared-init or specialists.", autocompletion=preset_names),
]


def demo(
    ctx: typer.Context,
    output: Output = None,
    seed: Seed = 0,
    device: Device = "cpu",
    json: Json = None,
    config: Config = None,
    assignments: Assignments = None,
    force: Force = False,
    resume: Resume = False,
) -> None:
    """Train teachers, fit a WeightFormer, predict students for unseen teachers and compare: the main job, measured."""
    from weightformer.compare.presets import PRESETS

    plan = settled(ctx, PRESETS["demo"].plan, assignments)
    _compare(ctx, plan, output or Path("runs/demo"), seed, device, json, force, resume)


def compare(
    ctx: typer.Context,
    preset: Preset,
    output: Output = None,
    seed: Seed = 0,
    device: Device = "cpu",
    json: Json = None,
    config: Config = None,
    assignments: Assignments = None,
    force: Force = False,
    resume: Resume = False,
) -> None:
    """Run one comparison of every method and control; see docs/comparisons.md for what each preset is."""
    from weightformer.compare.presets import PRESETS

    one_of("--preset", preset, PRESETS)
    plan = settled(ctx, PRESETS[preset].plan, assignments)
    _compare(ctx, plan, output or Path(f"runs/{preset}"), seed, device, json, force, resume)


def _compare(
    ctx: typer.Context,
    plan: Plan,
    output: Path,
    seed: int,
    device: str,
    json: Path | None,
    force: bool,
    resume: bool,
) -> None:
    from weightformer import report
    from weightformer.compare.presets import run

    check_device(device)
    check_apart({"--output": output}, json, config=ctx.params["config"])
    check_new(json, "--json", force)
    plan.check_teachers()
    kept = in_force(ctx, plan)
    folder = Folder(output, ("teachers", FITTED, REPORT, RESULT, CHECKPOINTS), lambda path: (path / RESULT).exists())
    with folder.opened(kept, resume=resume, force=force):
        steady()
        start = time.perf_counter()
        comparison, predictor = run(plan, seed, device, output)
        seconds = time.perf_counter() - start
        predictor.save(output / FITTED, overwrite=True)
        command = shlex.join(["weightformer", *sys.argv[1:]])
        report.write_html(comparison, output / REPORT, seconds, command=command)
        # Last: its presence says that the run is complete.
        for path in (output / RESULT, json):
            if path is not None:
                report.write_json(comparison, path, seconds, command=command)
        folder.clear(CHECKPOINTS)
    report.console().print(report.show(comparison, seconds))
    print(f"{output / REPORT}: the same with pictures")
