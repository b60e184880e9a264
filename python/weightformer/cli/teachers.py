"""`weightformer teachers`: train a pool."""

from __future__ import annotations

import time
from json import loads
from pathlib import Path
from typing import Annotated

import typer

from weightformer.cli.compare import Preset
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
    write_json,
)

SETTINGS = ("regime", "arch", "data")  # of a comparison's plan
FILES = ("pool.json", "base.safetensors", *(f"{role}-*.safetensors" for role in ("train", "validation", "test")))


def teachers(
    ctx: typer.Context,
    preset: Preset,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="The pool: one safetensors file per teacher.")
    ],
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one per core.")] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    json: Json = None,
    config: Config = None,
    assignments: Assignments = None,
    force: Force = False,
    resume: Resume = False,
) -> None:
    """Train a pool of teachers as one of the comparisons has them, on data of your choice.

    --set regime.NAME=VALUE changes their number and training, --set arch=NAME the network, --set data.name=cifar10
    --set data.folder=FOLDER the data; --config shows every setting after a first run.
    """
    from weightformer import domains, regimes
    from weightformer.compare.presets import PRESETS
    from weightformer.progress import bar
    from weightformer.teachers import ROLES

    one_of("--preset", preset, PRESETS)
    check_device(device)
    check_apart({"--output": output}, json, config=config)
    check_new(json, "--json", force)
    plan = settled(ctx, PRESETS[preset].plan, assignments, only=SETTINGS)
    kept = in_force(ctx, plan, only=SETTINGS)
    special = isinstance(plan.regime, regimes.Specialists)
    data = domains.load(plan.data) if special else plan.data.load()
    folder = Folder(output, FILES, _complete)
    with folder.opened(kept, resume=resume, force=force):
        start = time.perf_counter()
        with bar("teachers") as tell:
            pool = regimes.train_teachers(
                data, plan.regime, architecture=plan.arch, seed=seed, folder=output, workers=workers, device=device,
                progress=tell,
            )  # fmt: skip
    seconds = time.perf_counter() - start
    roles = {role: len(pool.select(role)) for role in ROLES}
    if json is not None:
        write_json(json, {"output": str(output), "teachers": roles, "seconds": seconds})
    counts = ", ".join(f"{count} {role}" for role, count in roles.items())
    print(f"{output}: {len(pool)} teachers ({counts}) in {seconds:.0f} s")


def _complete(folder: Path) -> bool:
    """Return whether the pool's index lists every teacher that was planned."""
    try:
        index = loads((folder / "pool.json").read_text())
        return bool(len(index["teachers"]) >= index["planned"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
