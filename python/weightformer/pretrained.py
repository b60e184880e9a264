"""What is fitted, as a folder or as a repository of the Hugging Face hub.

A folder holds config.json (settings, layout and, of a Predictor, architecture), model.safetensors (the state dict of
the WeightFormer), of a Predictor predictor.safetensors (images and canonical teacher) and README.md, the model card.
Nothing in it is ever unpickled, and no model is allocated before the sizes in config.json have been held against the
weights.

huggingface_hub is imported when something is saved or downloaded, not before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from weightformer import checkpoints
from weightformer.checkpoints import CheckpointError
from weightformer.config import Config
from weightformer.state import State
from wfkernels.layout import Layer, Parameter, RowLayout

if TYPE_CHECKING:
    from weightformer.model import WeightFormer

Model = TypeVar("Model", bound="WeightFormer")

VERSION = "1"
CONFIG, WEIGHTS, EXTRAS = "config.json", "model.safetensors", "predictor.safetensors"


class Contents(NamedTuple):
    """What a folder holds: a description for config.json and the tensors of every weight file."""

    about: dict[str, Any]
    files: dict[str, State]

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return {**self.about, "files": list(self.files)}


class Pretrained:
    """Saves to and restores from a folder or a repository of the hub; subclasses bring `contents` and `restored`."""

    FILES: ClassVar[tuple[str, ...]] = (WEIGHTS,)

    def contents(self) -> Contents:
        """Return everything that `restored` needs."""
        raise NotImplementedError(f"{type(self).__name__}.contents")

    @classmethod
    def restored(cls, where: str, about: Mapping[str, Any], files: Mapping[str, State]) -> Self:
        """Return what was saved; raise CheckpointError, or ValueError and its like for settings that do not fit."""
        raise NotImplementedError(f"{cls.__name__}.restored")

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: Mapping[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write a folder that `from_pretrained` reads, and upload it where `push_to_hub` says so.

        As everywhere on the hub, weights and config.json of an earlier save are replaced; a README.md that is there is
        kept. config.json is removed first and written last, so that an interrupted save is not taken for a whole one.

        Args:
            model_card_kwargs: what only you know about the model: `teachers` (text), `metrics` (name -> value),
                `license` (of the weights, as the hub spells it) and `repo_id`. Nothing is claimed that is not given.
            repo_id: repository to upload to; the folder's name by default. push_to_hub_kwargs: as of `push_to_hub`.

        Returns the address of the commit, or None without upload. Raises CheckpointError where the folder cannot be
        written; the hub's own errors pass through.
        """
        from weightformer import hub

        return hub.save(
            self.contents(),
            Path(save_directory),
            repo_id=repo_id,
            push_to_hub=push_to_hub,
            model_card_kwargs=dict(model_card_kwargs or {}),
            **push_to_hub_kwargs,
        )

    def push_to_hub(self, repo_id: str, *, model_card_kwargs: Mapping[str, Any] | None = None, **options: Any) -> str:
        """Upload what `save_pretrained` writes as one commit and return its address.

        options: commit_message, private, token, branch, create_pr, allow_patterns, ignore_patterns, delete_patterns, as
        of huggingface_hub.ModelHubMixin.push_to_hub, whose errors pass through.
        """
        from weightformer import hub

        return hub.push(self.contents(), repo_id, model_card_kwargs=dict(model_card_kwargs or {}), **options)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Self:
        """Restore what `save_pretrained` or `push_to_hub` wrote, on the CPU and in evaluation mode.

        Args:
            pretrained_model_name_or_path: a folder or, where there is none of this name, a repository of the hub. The
                other arguments are for repositories: branch, tag or commit; access token; cache; download again; use
                what is in the cache only.

        Raises CheckpointError where files are missing, incomplete or do not fit together, or cannot be downloaded.
        """
        where = os.fspath(pretrained_model_name_or_path)
        if not Path(where).is_dir() and Path(where).exists():
            raise CheckpointError(f"{where}: is a file; give its folder, or read a single file with Predictor.load")

        def place(name: str) -> Path:
            if Path(where).is_dir():
                return Path(where, name)
            from weightformer import hub

            return hub.download(
                where,
                name,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
            )

        about = _about(place(CONFIG))
        files = {name: _tensors(place(name)) for name in cls.FILES if name in about["files"]}
        with naming(where):
            return cls.restored(where, about, files)


def _about(path: Path) -> dict[str, Any]:
    """Return the text of config.json."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent}: has no {path.name}; give a folder that save_pretrained wrote, or save it again"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({_line(error)}); copy or save the folder again") from error
    if not isinstance(about, dict) or not isinstance(about.get("files"), list) or WEIGHTS not in about["files"]:
        raise CheckpointError(f"{path}: describes no WeightFormer; give a folder that save_pretrained wrote")
    return about


def _tensors(path: Path) -> State:
    state = checkpoints.load(path)
    check_finite(path, state)
    return state


@contextmanager
def naming(where: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever goes wrong with a description and its tensors into one line that names `where`."""
    try:
        yield
    except CheckpointError:
        raise
    except (AttributeError, KeyError, OverflowError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: is a WeightFormer of another version or damaged ({_line(error)})") from error


def check_finite(where: str | os.PathLike[str], state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError naming the first tensor with NaN or Inf."""
    wrong = next((n for n, t in state.items() if t.is_floating_point() and not t.isfinite().all()), None)
    if wrong is not None:
        raise CheckpointError(f"{where}: {wrong!r} holds NaN or Inf; fit the WeightFormer again")


def describe(model: WeightFormer) -> dict[str, Any]:
    """Return what, beside its state dict, makes a model: plain values for JSON."""
    return {"version": VERSION, "config": asdict(model.config), "layout": asdict(model.layout)}


def restore(kind: type[Model], about: Mapping[str, Any], state: Mapping[str, Tensor]) -> Model:
    """Return the model that `describe` described, with this state dict, in its dtype and in evaluation mode.

    Raises KeyError, TypeError, ValueError or RuntimeError where description and tensors do not fit each other.
    """
    # Reads with pydantic, which takes a while to import.
    from weightformer.settings import changed

    if about["version"] != VERSION:
        raise ValueError(f"version {about['version']}, expected {VERSION}")
    config, layout = changed(Config(), about["config"]), _layout(about["layout"])
    if config.layers > len(state):
        raise ValueError(f"{config.layers} blocks, but only {len(state)} tensors")
    base = state.get("base")
    with torch.device("meta"):
        sizes = kind(layout, config, base=None if base is None else torch.empty(base.shape)).state_dict()
    for name in (*sizes, *state):
        found, wanted = (list(s[name].shape) if name in s else "none" for s in (state, sizes))
        if found != wanted:
            raise ValueError(f"{name!r}: expected {wanted}, got {found}")
    with torch.random.fork_rng(devices=[]):
        model = kind(layout, config, base=base).to(state["strength"].dtype)
    model.load_state_dict(state)
    return model.eval()


def _layout(about: Any) -> RowLayout:
    """Return a layout, which checks its sizes itself, from plain values."""
    layers = []
    for layer in about["layers"]:
        parameters = [Parameter(p["name"], tuple(p["shape"]), p["start"], p["width"]) for p in layer["parameters"]]
        layers.append(Layer(layer["name"], layer["kind"], layer["rows"], tuple(parameters)))
    return RowLayout(tuple(layers), tuple((alias, name) for alias, name in about["tied"]))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
