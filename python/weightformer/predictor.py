"""A fitted WeightFormer with everything that prediction needs: architecture, alignment, data for running statistics."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from weightformer import checkpoints, evaluate, students
from weightformer.align import Aligner
from weightformer.checkpoints import CheckpointError
from weightformer.checkpoints.error import one_line
from weightformer.model import WeightFormer
from weightformer.pretrained import EXTRAS, WEIGHTS, Contents, Pretrained, check_finite, describe, naming, restore
from weightformer.rows import layout
from weightformer.state import State

FORMAT = "weightformer"


@dataclass(frozen=True, eq=False)
class Predictor(Pretrained):
    """Teachers' state dicts in, one student's state dict out.

    `save` and `load` keep it in one file; `save_pretrained`, `from_pretrained` and `push_to_hub` in a folder or on the
    Hugging Face hub, from which WeightFormer.from_pretrained reads the model alone.

    model: the fitted WeightFormer. architecture, arguments: of `students.create`. calibration: images [n, C, H, W] on
    which the student's running statistics are re-estimated; None leaves the first teacher's, see `calibrated`. anchor,
    views: the canonical teacher and the images [n, C, H, W] by which teachers of independent seeds are aligned; None
    for teachers that share their initialisation.
    """

    FILES: ClassVar[tuple[str, ...]] = (WEIGHTS, EXTRAS)

    model: WeightFormer
    architecture: str
    arguments: dict[str, int]
    calibration: Tensor | None = None
    anchor: State | None = None
    views: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.model.shift.device

    def to(self, device: torch.device | str) -> Predictor:
        """Return this predictor with its model (the same one) and images on `device`."""
        calibration, views = (None if t is None else t.to(device) for t in (self.calibration, self.views))
        return replace(self, model=self.model.to(device), calibration=calibration, views=views)

    def calibrated(self, images: Tensor) -> Predictor:  # [n, C, H, W]
        """Return this predictor with other images for the running statistics: such as the student is meant for.

        Raises ValueError where the images are not finite floating-point numbers, the architecture cannot take them, or
        it has no running statistics.
        """
        channels, size = self.arguments.get("channels"), self.arguments.get("size")
        known, given = (channels, size, size), list(images.shape)
        shape = ", ".join(str(length or letter) for length, letter in zip(known, "CHW", strict=True))
        expected = f"expected images [n, {shape}]"
        if len(given) != 4 or not given[0] or any(a not in (None, b) for a, b in zip(known, given[1:], strict=True)):
            raise ValueError(f"{expected} for {self.architecture}, got {given}")
        if not images.is_floating_point():
            raise ValueError(f"{expected} in floating point, prepared as for the teachers, got {images.dtype}")
        images = images.to(self.device, torch.float32)
        if not images.isfinite().all():
            raise ValueError(f"{expected} without NaN or Inf; leave out the images that hold one")
        if not self.has_running_statistics():
            raise ValueError(f"{self.architecture} has no BatchNorm with running statistics; it needs no images")
        try:
            evaluate.logits(self.student(), images[:1])
        except (AssertionError, RuntimeError) as error:  # timm asserts; torch's own layers raise the other
            raise ValueError(f"{self.architecture} takes no images {given} ({one_line(error)})") from error
        return replace(self, calibration=images)

    def has_running_statistics(self) -> bool:
        """Return whether networks of the architecture have BatchNorm layers with running statistics."""
        return any(isinstance(m, _BatchNorm) and m.running_mean is not None for m in self.student().modules())

    def student(self) -> nn.Module:
        """Return an untrained network of the architecture, on the model's device."""
        return students.create(self.architecture, **self.arguments, seed=0).to(self.device)

    def prepare(self, teachers: Sequence[State]) -> list[State]:
        """Return the teachers as the model reads them: aligned with the anchor where there is one."""
        if self.anchor is None or self.views is None:
            return list(teachers)
        aligner = Aligner(evaluate.with_state(self.student(), self.anchor), self.views)
        return [aligner(teacher) for teacher in teachers]

    def __call__(self, teachers: Sequence[State]) -> dict[str, Tensor]:
        """Return the student for these teachers, with running statistics re-estimated on the calibration images.

        Every tensor has the dtype and the device of the first teacher's.

        Raises CheckpointError where a teacher is of another architecture or not finite.
        """
        checkpoints.check_teachers({f"teacher {i}": t for i, t in enumerate(teachers)}, self.student())
        state = self.model.predict(self.prepare(teachers))
        if self.calibration is not None:
            network = evaluate.recalibrate(evaluate.with_state(self.student(), state), self.calibration)
            state.update({name: tensor for name, tensor in network.named_buffers() if name in state})
        like = {**state, **teachers[0]}
        return {name: tensor.to(like[name].device, like[name].dtype) for name, tensor in state.items()}

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write everything into one safetensors file; see `checkpoints.save` for the errors."""
        about, files = self.contents()
        state = {f"model.{name}": tensor for name, tensor in files[WEIGHTS].items()} | files.get(EXTRAS, {})
        checkpoints.save(state, path, overwrite=overwrite, metadata={FORMAT: json.dumps(about)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Predictor:
        """Read a file that `save` or a folder that `save_pretrained` wrote; CheckpointError says what is wrong."""
        if Path(path).is_dir():
            return cls.from_pretrained(path)
        text = checkpoints.metadata(path).get(FORMAT)
        if text is None:
            raise CheckpointError(f"{path}: is no WeightFormer; give a file written by demo or compare --output")
        state = checkpoints.load(path)
        check_finite(path, state)
        with naming(path):
            extras = {name: tensor for name, tensor in state.items() if not name.startswith("model.")}
            return cls.restored(os.fspath(path), json.loads(text), {WEIGHTS: _part(state, "model."), EXTRAS: extras})

    def contents(self) -> Contents:
        extras = {} if self.calibration is None else {"calibration": self.calibration}
        if self.anchor is not None and self.views is not None:
            extras |= {"views": self.views, **{f"anchor.{name}": tensor for name, tensor in self.anchor.items()}}
        about = describe(self.model) | {"architecture": self.architecture, "arguments": self.arguments}
        return Contents(about, {WEIGHTS: self.model.state_dict()} | ({EXTRAS: extras} if extras else {}))

    @classmethod
    def restored(cls, where: str, about: Mapping[str, Any], files: Mapping[str, State]) -> Predictor:
        if "layout" in about and "architecture" not in about:
            raise CheckpointError(
                f"{where}: is a WeightFormer without an architecture; read it with WeightFormer.from_pretrained"
            )
        architecture, arguments, extras = about["architecture"], about["arguments"], files.get(EXTRAS, {})
        student = students.create(architecture, **arguments, seed=0)
        expected = layout(student)
        # Files of the first release have no layout beside the architecture.
        model = restore(WeightFormer, {"layout": asdict(expected), **about}, files[WEIGHTS])
        if model.layout != expected:
            raise ValueError(
                f"{architecture!r} has other weights here than those it was fitted for; install other versions of"
                " torchvision and timm"
            )
        anchor = _part(extras, "anchor.")
        if anchor:
            checkpoints.check_teachers({f"{where}: anchor": anchor}, student)
        return cls(model, architecture, arguments, extras.get("calibration"), anchor or None, extras.get("views"))


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
