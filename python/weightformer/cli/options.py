"""What the commands share: their common options, settings files, and outputs that are never lost by accident."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from json import dumps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from weightformer import settings

Plan = TypeVar("Plan")

# Options that say where a result goes and not what it is: a settings file does not hold them.
NOT_KEPT = ("output", "json", "force", "resume", "config", "assignments")
REST = "weightformer.settings"  # of the file: what is no option of the command
# Options that a settings file holds, but that cannot change a result: an interrupted run may go on with others.
FREE = ("workers",)


class UserError(Exception):
    """Something that the user can put right; the message is one line that says what to do."""


def _config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Make a file's entries the defaults of the command's options, and keep the rest for `settled`."""
    if path is None:
        return None
    content = settings.read(path)
    command = content.pop("command", ctx.info_name)
    if command != ctx.info_name:
        raise UserError(f"--config: {path} belongs to `weightformer {command}`, not to {ctx.info_name}")
    options = {p.name for p in ctx.command.params if p.name is not None}
    for name in sorted(options & content.keys() & set(NOT_KEPT)):
        raise UserError(f"--config: {path}: {name} is given on the command line only; remove it from the file")
    ctx.default_map = {name: value for name, value in content.items() if name in options}
    ctx.meta[REST] = {name: value for name, value in content.items() if name not in options}
    return path


def _architectures(incomplete: str) -> list[str]:
    from weightformer import students

    return [name for name in students.known() if name.startswith(incomplete)]


Arch = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Architecture of the networks: one of ours (vgg, resnet, vit, mlp), of torchvision or of timm.",
        autocompletion=_architectures,
    ),
]


def _seed(value: int) -> int:
    # A check of our own, because a range of 19 digits would fill the help. What a comparison adds still fits torch.
    if not 0 <= value < 2**63:
        raise typer.BadParameter(f"expected 0 to {2**63 - 1}, got {value}")
    return value


Seed = Annotated[
    int,
    typer.Option(callback=_seed, help="Everything random follows from it; the same seed gives the same numbers."),
]
Device = Annotated[str, typer.Option(help="Where to train and predict: cpu, cuda, cuda:1, ...")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write every number measured here.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run that the output holds.")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        is_eager=True,
        callback=_config,
        help="Read settings from a YAML file, such as one that an earlier run wrote next to its result.",
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, e.g. recipe.steps=100. May be repeated."),
]


def settled(
    ctx: typer.Context, default: Plan, assignments: Sequence[str] | None, only: Sequence[str] | None = None
) -> Plan:
    """Return the plan in force: the default, changed by the settings file, changed by --set.

    `only` names the settings of the plan that concern the command; others are refused.
    """
    changes = settings.merged(ctx.meta.get(REST, {}), settings.assigned(assignments or ()))
    for name in changes:
        if only is not None and name not in only:
            raise UserError(
                f"{name}: {ctx.info_name} has no such setting, it has {', '.join(only)}{settings.nearest(name, only)}"
            )
    for name, section in changes.items():
        if isinstance(section, Mapping) and "seed" in section:
            raise UserError(f"{name}.seed: it follows from --seed; leave it out")
    return settings.changed(default, changes)


def no_settings(ctx: typer.Context, assignments: Sequence[str] | None = None) -> None:
    """Refuse settings that a command without a plan does not have."""
    for name in settings.merged(ctx.meta.get(REST, {}), settings.assigned(assignments or ())):
        known = [p.name for p in ctx.command.params if p.name is not None and p.name not in NOT_KEPT]
        raise UserError(f"--config: {ctx.info_name} has no setting {name!r}{settings.nearest(name, known)}")


def in_force(ctx: typer.Context, plan: Any = None, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Return everything that decides the result of this command, as its settings file holds it; `only`: as above."""
    kept: dict[str, Any] = {"command": ctx.info_name}
    kept |= {name: _text(value) for name, value in ctx.params.items() if name not in NOT_KEPT}
    if plan is not None:
        kept |= {name: value for name, value in settings.plain(plan).items() if only is None or name in only}
        for section in kept.values():
            if isinstance(section, dict):
                section.pop("seed", None)
    return kept


def _text(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_text(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def record(path: Path, kept: Mapping[str, Any]) -> None:
    """Write the settings in force next to a result."""
    import torch

    import wfkernels

    versions = f"wfkernels {wfkernels.__version__}, torch {torch.__version__}"
    settings.write(path, kept, f"{versions}; run again with: weightformer {kept['command']} --config THIS_FILE")


def check_new(path: Path | None, option: str, force: bool = False) -> None:
    """Refuse a file that exists (without `force`) or cannot exist, before anything is computed."""
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"{option}: {path} is a folder; name a file")
    if path.exists() and not force:
        raise UserError(f"{option}: {path} exists already; add --force to replace it, or name a new file")
    if not path.parent.is_dir():
        raise UserError(f"{option}: the folder {path.parent} does not exist; create it first")


class Folder:
    """The folder of a long run: its settings from the beginning, the result in the end.

    A run that was interrupted is gone on with only when asked, and only under the same settings. One that is complete
    is replaced only when asked, and files that no run wrote are never touched.
    """

    CONFIG = "config.yaml"

    def __init__(self, path: Path, ours: Sequence[str], complete: Callable[[Path], bool]) -> None:
        """`ours`: patterns of the names that a run writes there; `complete`: whether the folder holds a whole run."""
        self.path, self.ours, self.complete = path, (*ours, self.CONFIG), complete

    @contextmanager
    def opened(self, kept: Mapping[str, Any], *, resume: bool, force: bool) -> Iterator[None]:
        """Hold the folder ready for the run that `kept` describes, or say why it is not.

        A new run that is refused before it computed anything leaves no folder behind.
        """
        self._open(kept, resume=resume, force=force)
        try:
            yield
        except Exception:
            if self._entries() == [self.CONFIG]:
                (self.path / self.CONFIG).unlink()
                self.path.rmdir()
            raise

    def clear(self, pattern: str) -> None:
        """Remove the files that a complete run has no use for."""
        for path in self.path.glob(pattern):
            path.unlink()

    def _open(self, kept: Mapping[str, Any], *, resume: bool, force: bool) -> None:
        path = self.path
        if path.exists() and not path.is_dir():
            raise UserError(f"--output: {path} is a file; name a folder")
        found = self._entries()
        foreign = [name for name in found if self.CONFIG not in found or not self._is_ours(name)]
        if foreign:
            raise UserError(f"--output: {path} holds {foreign[0]}, which is of no run; name a new or an empty folder")
        if found and self.complete(path) and not force:
            raise UserError(f"--output: {path} holds a complete run; add --force to replace it, or name a new folder")
        if found and resume and not self.complete(path):
            check_same(path / self.CONFIG, kept)
            return
        if found and not force:
            raise UserError(
                f"--output: {path} holds an interrupted run; add --resume to go on with it, or --force to start anew"
            )
        try:
            for name in found:
                self._remove(name)
            path.mkdir(parents=True, exist_ok=True)
            record(path / self.CONFIG, kept)
        except OSError as error:
            raise UserError(f"--output: {path} cannot be written: {error.strerror}; name another folder") from error

    def _entries(self) -> list[str]:
        """Return what lies there, the settings last; without the hidden files that a killed run may have left."""
        names = [entry.name for entry in self.path.iterdir()] if self.path.is_dir() else []
        return sorted(
            (name for name in names if not name.startswith(".")), key=lambda name: (name == self.CONFIG, name)
        )

    def _is_ours(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self.ours)

    def _remove(self, name: str) -> None:
        entry = self.path / name
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def check_same(path: Path, kept: Mapping[str, Any]) -> None:
    """Refuse to go on with a run whose settings, in the file `path`, are others."""
    old, new = _flat(settings.read(path)), _flat(kept)
    for name in sorted((old.keys() | new.keys()) - set(FREE)):
        if old.get(name) != new.get(name):
            raise UserError(
                f"--resume: the run was begun with {name}: {old.get(name)}, now it is {new.get(name)}; run with"
                f" --config {path}, or add --force instead of --resume to start anew"
            )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def check_device(device: str) -> None:
    """Refuse a device that torch does not have here."""
    import torch

    try:
        found = torch.device(device)
    except RuntimeError:
        raise UserError(f"--device: {device!r} is no device; try cpu or cuda") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: this torch sees no CUDA device; use --device cpu")
    if found.type not in ("cpu", "cuda"):
        raise UserError(f"--device: expected cpu or cuda, got {device!r}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device: there is no {device}; the last is cuda:{torch.cuda.device_count() - 1}")


def one_of(option: str, value: str, known: Iterable[str]) -> None:
    """Refuse a name that is not known, with the nearest that is."""
    known = list(known)
    if value not in known:
        raise UserError(f"{option}: expected one of {', '.join(known)}, got {value!r}{settings.nearest(value, known)}")


def steady() -> None:
    """Compute on one thread, and keep memory that was used once.

    A result then does not depend on the number of cores, and two threads stall when a core is busy (docs/decisions.md).
    Teachers train in processes of their own.
    """
    import torch

    from wfkernels.allocator import settle

    torch.set_num_threads(1)
    settle()


def tell(text: str) -> None:
    """Print a remark beside the result."""
    print(text, file=sys.stderr)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, the whole or none."""
    settings.write_text(path, dumps(content, indent=1) + "\n")


def check_weights(
    output: Path, json: Path | None, force: bool, *, inputs: Sequence[Path | None], config: Path | None
) -> None:
    """Refuse outputs that cannot become weights, their settings and numbers, before anything is computed."""
    from weightformer.checkpoints import SUFFIX
    from weightformer.checkpoints.shards import is_one_of_several

    check_apart({"--output": output}, json, inputs=inputs, config=config, beside=settings_of(output))
    check_new(output, "--output", force)
    check_new(settings_of(output), "--output", force)
    check_new(json, "--json", force)
    if output.suffix != SUFFIX:
        raise UserError(f"--output: {output}: weights are written as safetensors; end the name in {SUFFIX}")
    if is_one_of_several(output):
        raise UserError(f"--output: {output} is named like one of several shards; name a file of its own")


def check_numbers(json: Path | None, force: bool, *, inputs: Sequence[Path | None], config: Path | None) -> None:
    """Refuse a file of numbers with its settings beside it that cannot be written, before anything is computed."""
    if json is None:
        return
    check_apart({}, json, inputs=inputs, config=config, beside=settings_of(json))
    check_new(json, "--json", force)
    check_new(settings_of(json), "--json", force)


def check_apart(
    outputs: Mapping[str, Path],
    json: Path | None,
    *,
    inputs: Sequence[Path | None] = (),
    config: Path | None = None,
    beside: Path | None = None,
) -> None:
    """Refuse a place that is an input or another output of the same command, whatever --force says.

    outputs: by option. A folder among inputs or outputs stands for all that lies in it. beside: the settings file next
    to the result; it alone may replace `config`, because a run may be repeated in its place.
    """
    read = {_place(path): path for path in inputs if path is not None}
    written: dict[str, str] = {}
    for what, path in (*outputs.items(), ("the settings next to the result", beside), ("--json", json)):
        if path is None:
            continue
        places = [_place(path), *map(str, Path(_place(path)).parents)]
        of = next((read[place] for place in places if place in read), None)
        if of is None and path is not beside and config is not None and _place(config) == places[0]:
            of = config
        if of is not None:
            raise UserError(f"{what}: {path} would change {of}, which this command reads; name another place")
        taken = next((written[place] for place in places if place in written), None)
        if taken is not None:
            raise UserError(f"{what}: {path} is the place of {taken}; name another one")
        written[places[0]] = what


def _place(path: Path) -> str:
    """Return where a path leads, by whatever name and link."""
    return os.path.realpath(path)


def settings_of(output: Path) -> Path:
    """Return the settings file that stands next to a file of weights or of numbers."""
    return output.with_name(f"{output.name}.yaml")


def record_beside(output: Path, kept: Mapping[str, Any]) -> None:
    """Write the settings in force next to a file of weights or of numbers."""
    record(settings_of(output), kept)
