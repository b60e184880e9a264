"""A fitted WeightFormer with everything that prediction needs: architecture, alignment, data for running statistics."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

import torch
from torch import Tensor, nn

from weightformer import checkpoints, evaluate, students
from weightformer.align import Aligner
from weightformer.checkpoints import CheckpointError
from weightformer.config import Config
from weightformer.model import State, WeightFormer
from weightformer.rows import layout

FORMAT, VERSION = "weightformer", "1"


@dataclass(frozen=True, eq=False)
class Predictor:
    """Teachers' state dicts in, one student's state dict out.

    model: the fitted WeightFormer. architecture, arguments: of `students.create`. calibration: images [n, C, H, W] on
    which the student's running statistics are re-estimated; None leaves the first teacher's. anchor, views: the
    canonical teacher and the images [n, C, H, W] by which teachers of independent seeds are aligned; None for teachers
    that share their initialisation.
    """

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
        state = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.calibration is not None:
            state["calibration"] = self.calibration
        if self.anchor is not None and self.views is not None:
            state["views"] = self.views
            state.update({f"anchor.{name}": tensor for name, tensor in self.anchor.items()})
        about = {
            "version": VERSION,
            "architecture": self.architecture,
            "arguments": self.arguments,
            "config": asdict(self.model.config),
        }
        checkpoints.save(state, path, overwrite=overwrite, metadata={FORMAT: json.dumps(about)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Predictor:
        """Read a file that `save` wrote; CheckpointError says what is wrong with any other."""
        about = checkpoints.metadata(path).get(FORMAT)
        if about is None:
            raise CheckpointError(f"{path}: is no WeightFormer; give a file written by demo or compare --output")
        state = checkpoints.load(path)
        try:
            found = json.loads(about)
            if found["version"] != VERSION:
                raise ValueError(f"version {found['version']}, expected {VERSION}")
            architecture, arguments, settings = found["architecture"], found["arguments"], found["config"]
            unknown = set(settings) - {field.name for field in fields(Config)}
            if unknown:
                raise ValueError(f"unknown settings {', '.join(sorted(unknown))}")
            student = students.create(architecture, **arguments, seed=0)
            model = WeightFormer(layout(student), Config(**settings), base=state.get("model.base"))
            model.load_state_dict(_part(state, "model."))
            anchor = _part(state, "anchor.")
            if anchor:
                checkpoints.check_teachers({"anchor": anchor}, student)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path}: is a WeightFormer of another version or damaged ({reason})") from error
        wrong = next((n for n, t in state.items() if t.is_floating_point() and not t.isfinite().all()), None)
        if wrong is not None:
            raise CheckpointError(f"{path}: {wrong!r} holds NaN or Inf; fit the WeightFormer again")
        return cls(model.eval(), architecture, arguments, state.get("calibration"), anchor or None, state.get("views"))


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
