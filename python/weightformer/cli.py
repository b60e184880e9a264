"""The command line: demo, compare, predict."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from weightformer.compare.presets import Run

app = typer.Typer(
    name="weightformer",
    help="Turn an ensemble of trained networks into one network by predicting its weights.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

Seed = Annotated[int, typer.Option(help="Everything random follows from it; the same seed gives the same table.")]
Device = Annotated[str, typer.Option(help="Where to train and predict: cpu, cuda, cuda:1, ...")]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write every number measured here (a new file).")
]
Output = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Keep the teachers and the fitted weightformer.safetensors here; an interrupted run goes on from it.",
    ),
]


class UserError(Exception):
    """Something that the user can put right; the message is one line that says what to do."""


@app.command()
def demo(seed: Seed = 0, device: Device = "cpu", json: Json = None, output: Output = None) -> None:
    """Train teachers, fit a WeightFormer, predict students for unseen teachers and compare: the main job, measured."""
    from weightformer.compare.presets import PRESETS

    _compare(PRESETS["demo"].run, seed, device, json, output)


@app.command()
def compare(
    preset: Annotated[str, typer.Option(metavar="NAME", help="demo, independent, shared-init or specialists.")],
    seed: Seed = 0,
    device: Device = "cpu",
    json: Json = None,
    output: Output = None,
) -> None:
    """Run one comparison of every method and control; see docs/comparisons.md for what each preset is."""
    from weightformer.compare.presets import PRESETS

    if preset not in PRESETS:
        raise UserError(f"--preset: expected one of {', '.join(PRESETS)}, got {preset!r}{_nearest(preset, PRESETS)}")
    _compare(PRESETS[preset].run, seed, device, json, output)


@app.command()
def predict(
    teachers: Annotated[list[Path], typer.Argument(metavar="TEACHER...", help="Weight files of the teachers.")],
    arch: Annotated[str, typer.Option(metavar="NAME", help="Their architecture, as `weightformer.students` names it.")],
    weightformer: Annotated[Path, typer.Option(metavar="FILE", help="The fitted WeightFormer.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The student (a new file).")],
    seed: Seed = 0,
    device: Device = "cpu",
    json: Json = None,
) -> None:
    """Predict one student from the weights of several teachers and write it as safetensors."""
    import torch

    from weightformer import checkpoints, rows, students
    from weightformer.predictor import Predictor

    _check_device(device)
    _check_new(output, "--output")
    _check_new(json, "--json")
    if output.suffix != checkpoints.SUFFIX:
        raise UserError(f"--output: {output}: weights are written as safetensors; end the name in {checkpoints.SUFFIX}")
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
    checkpoints.save(student, output)
    numbers = sum(tensor.numel() for tensor in student.values())
    if json is not None:
        _write(json, {"teachers": list(states), "output": str(output), "tensors": len(student), "seconds": seconds})
    print(f"{output}: {len(student)} tensors, {numbers:,} numbers, from {len(states)} teachers in {seconds:.2f} s")


def _compare(run: Run, seed: int, device: str, json: Path | None, output: Path | None) -> None:
    import torch

    from weightformer import report

    _check_device(device)
    _check_new(json, "--json")
    target = None if output is None else output / "weightformer.safetensors"
    if output is not None:
        _check_new(target, "--output")
        output.mkdir(parents=True, exist_ok=True)
    # One thread: the table then does not depend on the number of cores, and two threads stall when a core is busy
    # (docs/decisions.md). Teachers train in processes of their own.
    torch.set_num_threads(1)
    start = time.perf_counter()
    comparison, predictor = run(seed, device, output)
    seconds = time.perf_counter() - start
    if target is not None:
        predictor.save(target)
    if json is not None:
        report.write_json(comparison, json, seconds)
    report.console().print(report.show(comparison, seconds))


def _write(path: Path, content: dict[str, object]) -> None:
    import json

    path.write_text(json.dumps(content, indent=1) + "\n")


def _check_new(path: Path | None, option: str) -> None:
    """Refuse a file that exists or cannot exist, before anything is computed."""
    if path is None:
        return
    if path.exists():
        raise UserError(f"{option}: {path} exists already; name a new file or remove it")
    parent = path.parent
    if option != "--output" and not parent.is_dir():
        raise UserError(f"{option}: the folder {parent} does not exist; create it first")


def _check_device(device: str) -> None:
    import torch

    try:
        found = torch.device(device)
    except RuntimeError:
        raise UserError(f"--device: {device!r} is no device; try cpu or cuda") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: this torch sees no CUDA device; use --device cpu")
    if found.type not in ("cpu", "cuda"):
        raise UserError(f"--device: expected cpu or cuda, got {device!r}")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def main() -> None:
    """Run the command line; whatever the user can put right ends in one line and exit code 2."""
    try:
        app()
    except (UserError, ValueError) as error:
        print(f"weightformer: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("weightformer: interrupted; run the same command with the same --output to go on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
