"""Folders and repositories of the hub: what is saved is restored, and what does not fit together is refused."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
import yaml
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor, nn

from tests.weightformer import tiny
from tests.weightformer.test_predictor import ARGUMENTS, POOL, equal, made
from weightformer import WeightFormer, checkpoints, hub
from weightformer.checkpoints import CheckpointError
from weightformer.predictor import Predictor
from weightformer.pretrained import CONFIG, EXTRAS, WEIGHTS, Contents, Pretrained
from weightformer.rows import layout

NAMES = {CONFIG, WEIGHTS, EXTRAS, "README.md"}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a test wanted the network")

    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made().save_pretrained(tmp_path / "wf")
    return tmp_path / "wf"


# there and back


@pytest.mark.parametrize("kind", ["recipe", "specialists", "paper-small"])
@pytest.mark.parametrize(("calibrated", "aligned"), [(True, True), (False, False), (True, False), (False, True)])
def test_a_restored_predictor_gives_the_same_student_bit_by_bit(
    kind: str, calibrated: bool, aligned: bool, tmp_path: Path
) -> None:
    predictor = made(kind, calibrated, aligned)
    assert predictor.save_pretrained(tmp_path / "new" / "wf") is None
    expected = predictor(POOL[1:])
    for restored in (Predictor.from_pretrained(tmp_path / "new" / "wf"), Predictor.load(str(tmp_path / "new" / "wf"))):
        assert equal(restored(POOL[1:]), expected)
        assert (restored.architecture, restored.arguments) == ("vgg", ARGUMENTS)
        assert not restored.model.training
    assert {p.name for p in (tmp_path / "new" / "wf").iterdir()} == NAMES - (
        set() if calibrated or aligned else {EXTRAS}
    )


def test_the_model_alone_is_in_the_same_folder(folder: Path) -> None:
    model, expected = WeightFormer.from_pretrained(folder), made().model
    assert equal(model.state_dict(), expected.state_dict())
    assert (model.config, model.layout, model.training) == (expected.config, expected.layout, False)
    assert equal(model.predict(POOL), expected.predict(POOL))
    # Anybody reads it with safetensors alone.
    assert equal(safetensors.torch.load_file(folder / WEIGHTS), expected.state_dict())


class Tied(nn.Module):
    """No architecture that `students` knows."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.scale = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight


MODELS: dict[str, Callable[[], WeightFormer]] = {
    "default": lambda: tiny.generic(tiny.SMALL),
    "dense gate": lambda: tiny.generic(tiny.SMALL.but(gate="dense", gate_heads=True, hard=True)),
    "gated": lambda: tiny.generic(tiny.SMALL.but(output="gated", read="mean", max_teachers=0)),
    "prior and head": lambda: tiny.generic(tiny.SMALL.but(output="prior", positions="layer", head=tiny.HEAD)),
    "shared projections": lambda: tiny.generic(tiny.SMALL.but(share_projections=True, norm="pre", cross_tokens=2)),
    "tied": lambda: tiny.generic(tiny.SMALL, layout(Tied()), tiny.teachers(4, Tied())),
    "float32": lambda: tiny.generic(tiny.SMALL).float(),
    "bfloat16": lambda: tiny.generic(tiny.SMALL).bfloat16(),
}


@pytest.mark.parametrize("kind", MODELS)
def test_every_form_of_model_is_restored_bit_by_bit(kind: str, tmp_path: Path) -> None:
    model = MODELS[kind]()
    model.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    restored = WeightFormer.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(restored.state_dict(), model.state_dict())
    assert {n: t.dtype for n, t in restored.state_dict().items()} == {n: t.dtype for n, t in model.state_dict().items()}
    assert (restored.config, restored.layout) == (model.config, model.layout)
    if model.gate is not None and model.gate.lookup is not None:
        assert torch.equal(restored.gate.lookup, model.gate.lookup)


def test_a_subclass_is_restored_as_itself(tmp_path: Path) -> None:
    class Mine(WeightFormer):
        pass

    tiny.untouched(tiny.SMALL).save_pretrained(tmp_path)
    assert type(Mine.from_pretrained(tmp_path)) is Mine


def test_reading_a_folder_unpickles_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    Predictor.from_pretrained(folder)


def test_a_file_of_the_first_release_is_read(tmp_path: Path) -> None:
    """It says no layout, because that of the architecture is meant."""
    predictor = made()
    predictor.save(tmp_path / "wf.safetensors")
    about = json.loads(checkpoints.metadata(tmp_path / "wf.safetensors")["weightformer"])
    assert set(about) == {"version", "config", "layout", "architecture", "arguments"}
    del about["layout"]
    state = checkpoints.load(tmp_path / "wf.safetensors")
    checkpoints.save(state, tmp_path / "old.safetensors", metadata={"weightformer": json.dumps(about)})
    assert equal(Predictor.load(tmp_path / "old.safetensors")(POOL), predictor(POOL))


# writing


def test_saving_again_replaces_the_model_and_keeps_the_card(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    made(calibrated=False, aligned=False).save_pretrained(folder)
    assert (folder / "README.md").read_text() == (folder / "notes.txt").read_text() == "mine"
    restored = Predictor.from_pretrained(folder)
    assert restored.calibration is None and restored.anchor is None  # although the old file still lies there


@pytest.mark.parametrize("after", [0, 1])
def test_an_interrupted_save_is_not_taken_for_a_whole_one(
    after: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = checkpoints.save, []

    def interrupted(*arguments: Any, **options: Any) -> None:
        if len(saved) == after:
            raise KeyboardInterrupt
        saved.append(arguments)
        save(*arguments, **options)

    monkeypatch.setattr(checkpoints, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made().save_pretrained(folder)
    for kind in (Predictor, WeightFormer):
        with pytest.raises(
            CheckpointError, match="has no config.json; give a folder that save_pretrained wrote, or save"
        ):
            kind.from_pretrained(folder)


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match=r"file: cannot be written: .*; choose another folder"):
        made().save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


# reading what does not fit


def refused(kind: type[Pretrained], where: str | Path, message: str) -> None:
    with pytest.raises(CheckpointError) as error:
        kind.from_pretrained(where)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(str(where))


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))


def setting(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda about: about["config"].update({name: value})


def of_layout(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda about: change(about["layout"])


def in_first_layer(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda about: about["layout"]["layers"][0].update(values)


def in_first_parameter(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda about: about["layout"]["layers"][0]["parameters"][0].update(values)


DAMAGE = "is a WeightFormer of another version or damaged ("
ABOUT: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "version": (lambda a: a.update(version="2"), f"{DAMAGE}version 2, expected 1)"),
    "no version": (lambda a: a.pop("version"), f"{DAMAGE}'version')"),
    "no settings": (lambda a: a.pop("config"), f"{DAMAGE}'config')"),
    "settings that are none": (lambda a: a.update(config=3), DAMAGE),
    "unknown setting": (setting("colour", 3), f"{DAMAGE}colour: there is no such setting"),
    "setting of another type": (setting("width", "wide"), f"{DAMAGE}width: expected a whole number, got 'wide')"),
    "settings that contradict": (setting("heads", 3), "heads: expected a divisor of width=8, got 3)"),
    "another width": (setting("width", 16), "'position': expected [115, 16], got [115, 8])"),
    "a width for which there is no memory": (
        setting("width", 2**16),
        f"'position': expected [115, {2**16}], got [115, 8])",
    ),
    "blocks for which there is no memory": (setting("layers", 200), "200 blocks, but only "),
    "more blocks than anybody has": (setting("layers", 2**40), f"layers: expected at most 200, got {2**40})"),
    "another output": (setting("output", "plain"), "'blend': expected none, got [4])"),
    "another gate": (setting("gate", "bucketed"), "'gate.theta': expected [1, 2, 2, 2, 33], got none)"),
    "no layout": (lambda a: a.pop("layout"), DAMAGE),
    "a layout that is none": (lambda a: a.update(layout=[1]), DAMAGE),
    "a layout without layers": (of_layout(lambda x: x.update(layers=[])), DAMAGE),
    "a layer twice": (
        of_layout(lambda x: x["layers"].append(x["layers"][0])),
        "layers: expected every parameter once, got 'conv1.weight' tw",
    ),
    "a layer too few": (of_layout(lambda x: x["layers"].pop()), DAMAGE),
    "rows that do not fit": (
        in_first_layer(rows=17),
        "parameters[0].shape: expected 17 rows of 9 columns, got [16, 1, 3, 3])",
    ),
    "no rows": (in_first_layer(rows=0), "shape: expected 0 rows of 9 columns, got [16, 1, 3, 3])"),
    "rows of text": (in_first_layer(rows="many"), DAMAGE),
    "rows for which there is no memory": (
        lambda a: (in_first_layer(rows=2**40)(a), in_first_parameter(shape=[2**40, 1, 3, 3])(a)),
        DAMAGE,
    ),
    "a column that does not fit": (
        in_first_parameter(start=1),
        "start: expected 0, where the columns before it end, got 1)",
    ),
    "a shape that does not fit": (
        in_first_parameter(shape=[16, 1, 3, 4]),
        "shape: expected 16 rows of 9 columns, got [16, 1, 3, 4])",
    ),
    "tied to nothing": (
        of_layout(lambda x: x.update(tied=[["a", "b"]])),
        "expected 'a' to name a parameter of the layers, got 'b')",
    ),
    "no files": (lambda a: a.pop("files"), "config.json: describes no WeightFormer; give a folder that save_pretra"),
    "files without weights": (lambda a: a.update(files=[]), "describes no WeightFormer"),
    "files that are none": (lambda a: a.update(files=3), "describes no WeightFormer"),
}
ARCHITECTURE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no architecture": (
        lambda a: a.pop("architecture"),
        "is a WeightFormer without an architecture; read it with WeightFormer.from_pretrained",
    ),
    "unknown architecture": (
        lambda a: a.update(architecture="vggg"),
        f"{DAMAGE}create: name: no network is called 'vgg",
    ),
    "architecture that is none": (lambda a: a.update(architecture=3), DAMAGE),
    "other architecture": (
        lambda a: a.update(architecture="mlp"),
        "'mlp' has other weights here than those it was fitted for; install other versions of torchvision and timm)",
    ),
    "other classes": (
        lambda a: a["arguments"].update(classes=4),
        "'vgg' has other weights here than those it was fitted",
    ),
    "unknown argument": (lambda a: a["arguments"].update(depth=4), DAMAGE),
    "no arguments": (lambda a: a.pop("arguments"), f"{DAMAGE}'arguments')"),
}


@pytest.mark.parametrize("kind", [WeightFormer, Predictor])
@pytest.mark.parametrize("fault", ABOUT)
def test_a_description_that_does_not_fit_is_refused(kind: type[Pretrained], fault: str, folder: Path) -> None:
    change, message = ABOUT[fault]
    rewritten(folder / CONFIG, change)
    if kind is Predictor and fault == "no layout":
        Predictor.from_pretrained(folder)  # which knows that of its architecture
    else:
        refused(kind, folder, message)


@pytest.mark.parametrize("fault", ARCHITECTURE)
def test_an_architecture_that_does_not_fit_is_refused(fault: str, folder: Path) -> None:
    change, message = ARCHITECTURE[fault]
    rewritten(folder / CONFIG, change)
    refused(Predictor, folder, message)
    WeightFormer.from_pretrained(folder)  # which asks for none


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 200_000, '{"files": ["model.safetensors"'])
def test_text_that_is_no_description_is_refused(text: str, folder: Path) -> None:
    (folder / CONFIG).write_text(text)
    refused(WeightFormer, folder, f"{CONFIG}: ")


def test_bytes_that_are_no_text_are_refused(folder: Path) -> None:
    (folder / CONFIG).write_bytes(b"\xff\xfe\xfd")
    refused(WeightFormer, folder, f"{CONFIG}: cannot be read (")


def of_state(name: str, change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        state = checkpoints.load(folder / name)
        change(state)
        checkpoints.save(state, folder / name, overwrite=True)

    return apply


def truncated(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1]) and None


FILES: dict[str, tuple[type[Pretrained], Callable[[Path], None], str]] = {
    "no weights": (WeightFormer, lambda f: (f / WEIGHTS).unlink(), f"{WEIGHTS}: no such file; check the path"),
    "weights cut off": (WeightFormer, truncated(WEIGHTS), f"{WEIGHTS}: is not a complete safetensors file ("),
    "no images": (Predictor, lambda f: (f / EXTRAS).unlink(), f"{EXTRAS}: no such file; check the path"),
    "images cut off": (Predictor, truncated(EXTRAS), f"{EXTRAS}: is not a complete safetensors file ("),
    "NaN": (
        WeightFormer,
        of_state(WEIGHTS, lambda s: s["strength"].fill_(torch.nan)),
        f"{WEIGHTS}: 'strength' holds NaN or Inf; fit the WeightFormer again",
    ),
    "Inf in images": (
        Predictor,
        of_state(EXTRAS, lambda s: s["views"].fill_(torch.inf)),
        f"{EXTRAS}: 'views' holds NaN",
    ),
    "a tensor too few": (WeightFormer, of_state(WEIGHTS, lambda s: s.pop("strength")), "'strength': expected [4], got"),
    "a tensor too many": (
        WeightFormer,
        of_state(WEIGHTS, lambda s: s.update(x=torch.ones(1))),
        "'x': expected none, got [1])",
    ),
    "an anchor that does not fit": (
        Predictor,
        of_state(EXTRAS, lambda s: s.pop("anchor.conv1.weight")),
        ": anchor: the weights are of another architecture (missing 'conv1.weight')",
    ),
    "a base that does not fit": (
        WeightFormer,
        of_state(WEIGHTS, lambda s: s.update(base=torch.ones(3))),
        "base: expected shape [",
    ),
}


@pytest.mark.parametrize("fault", FILES)
def test_weights_that_do_not_fit_are_refused(fault: str, folder: Path) -> None:
    kind, damage, message = FILES[fault]
    damage(folder)
    refused(kind, folder, message)


def test_a_bare_model_is_no_predictor(tmp_path: Path) -> None:
    tiny.untouched(tiny.SMALL).save_pretrained(tmp_path)
    refused(Predictor, tmp_path, "is a WeightFormer without an architecture; read it with WeightFormer.from_pretrained")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    made().save(tmp_path / "wf.safetensors")
    refused(Predictor, tmp_path / "wf.safetensors", "is a file; give its folder, or read a single file with Predictor.")


# the card


def card(folder: Path) -> tuple[dict[str, Any], str]:
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def test_the_card_says_what_it_is_and_claims_nothing(folder: Path) -> None:
    head, text = card(folder)
    assert head == {
        "library_name": "wfkernels",
        "tags": ["weightformer", "meta-ensemble-parameter-learning", "model_hub_mixin"],
    }
    for said in (
        "# WeightFormer for vgg\n",
        "| architecture of teachers and student | vgg, classes 3, size 8 |\n",
        "| predicted | 4 layers, 115 rows, 24,179 parameters |\n",
        "| teachers | up to 8, aligned with a canonical one",
        "| output | prior, from the first teacher's tokens |\n",
        'Predictor.from_pretrained("',
        "re-estimated on images",
        "Who saved the weights has not stated their licence.",
        "wfkernels: Apache-2.0",
        "2210.01973",
    ):
        assert said in text, said
    assert "Metrics" not in text and "## Teachers" not in text
    network = made().student()
    assert sum(parameter.numel() for parameter in network.parameters()) == 24_179


def test_the_card_says_what_it_is_told(tmp_path: Path) -> None:
    told = {
        "teachers": "Three networks, 150 steps each.",
        "metrics": {"accuracy | %": 97.5, "steps\nof fine-tuning": 0},
        "license": "cc-by-4.0",
        "repo_id": "someone/wf",
    }
    made("specialists", calibrated=False, aligned=False).save_pretrained(tmp_path, model_card_kwargs=told)
    head, text = card(tmp_path)
    assert head["license"] == "cc-by-4.0"
    for said in (
        "## Teachers\n\nThree networks, 150 steps each.\n",
        "| accuracy \\| % | 97.5 |\n| steps of fine-tuning | 0 |\n",
        "The weights: cc-by-4.0.",
        'Predictor.from_pretrained("someone/wf")',
        "| teachers | any number |\n",
        "from all teachers' tokens |\n",
    ):
        assert said in text, said
    assert "re-estimated" not in text


def test_the_card_of_a_bare_model_loads_a_bare_model(tmp_path: Path) -> None:
    tiny.untouched(tiny.SMALL).save_pretrained(tmp_path)
    text = card(tmp_path)[1]
    assert "# WeightFormer\n" in text and 'model = WeightFormer.from_pretrained("' in text
    assert "architecture of teachers" not in text and "Predictor" not in text


def test_an_unknown_thing_to_say_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="accuracy"):
        made().save_pretrained(tmp_path, model_card_kwargs={"accuracy": 99})


# the hub


def test_a_repository_is_read_from_the_hubs_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def give(repo_id: str, name: str, **options: Any) -> str:
        asked.append((repo_id, name, options))
        return str(folder / name)

    monkeypatch.setattr(hub, "hf_hub_download", give)
    options = {"revision": "v1", "token": "t", "cache_dir": "c", "force_download": True, "local_files_only": False}
    restored = Predictor.from_pretrained("someone/wf", **options)
    assert equal(restored(POOL), made()(POOL))
    assert asked == [("someone/wf", name, options) for name in (CONFIG, WEIGHTS, EXTRAS)]
    asked.clear()
    WeightFormer.from_pretrained("someone/wf")
    assert [name for _, name, _ in asked] == [CONFIG, WEIGHTS]


ERRORS: list[Exception] = [
    EntryNotFoundError("404\nno such file"),
    LocalEntryNotFoundError("not in the cache"),
    HFValidationError("no such name"),
    OSError("no space left"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_repository_that_cannot_be_had_is_refused(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(hub, "hf_hub_download", fail)
    refused(
        WeightFormer, "someone/wf", "is no folder here, and config.json of a repository of that name cannot be had ("
    )


@pytest.mark.parametrize("name", ["no/such/folder", "/no/such/folder", "no folder"])
def test_a_name_that_is_neither_folder_nor_repository_is_refused(name: str) -> None:
    refused(WeightFormer, name, "is no folder here, and config.json of a repository of that name cannot be had (")


RESPONSE: Any = type("Response", (), {"headers": {}, "request": None, "status_code": 403})()


class Hub:
    """What the hub's client does with a repository, without a network."""

    uploads: list[dict[str, Any]] = []

    def __init__(self, token: str | None = None) -> None:
        self.token = token

    def create_repo(self, repo_id: str, **_: Any) -> Any:
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, folder_path: Path, **options: Any) -> str:
        found = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        self.uploads.append({"token": self.token, "files": found, **options})
        return "https://huggingface.co/someone/wf/commit/1"


@pytest.mark.parametrize("how", ["push_to_hub", "save_pretrained"])
@pytest.mark.parametrize("of", [made, lambda: made().model], ids=["predictor", "model"])
def test_what_is_saved_is_uploaded(
    of: Callable[[], Pretrained], how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
    monkeypatch.setattr(Hub, "uploads", [])
    options = {"token": "t", "commit_message": "first", "private": True, "model_card_kwargs": {"license": "mit"}}
    saved = of()
    if how == "push_to_hub":
        address = saved.push_to_hub("someone/wf", **options)
    else:
        address = saved.save_pretrained(tmp_path / "kept", push_to_hub=True, repo_id="someone/wf", **options)
        assert (tmp_path / "kept" / CONFIG).is_file()
    assert address == "https://huggingface.co/someone/wf/commit/1"
    (upload,) = Hub.uploads
    assert (upload["token"], upload["repo_id"], upload["commit_message"]) == ("t", "someone/wf", "first")
    assert b"license: mit" in upload["files"]["README.md"]
    for name, content in upload["files"].items():
        (tmp_path / name).write_bytes(content)
    assert equal(WeightFormer.from_pretrained(tmp_path).predict(POOL), made().model.predict(POOL))
    assert (EXTRAS in upload["files"]) == isinstance(saved, Predictor)


def test_the_hubs_own_errors_pass_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise HfHubHTTPError("no", response=RESPONSE)

    monkeypatch.setattr(Hub, "create_repo", fail)
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
    with pytest.raises(HfHubHTTPError):
        made().save_pretrained(tmp_path, push_to_hub=True, repo_id="someone/wf")


def test_the_hubs_client_is_imported_only_when_it_is_needed() -> None:
    code = (
        "import sys; from weightformer import WeightFormer, Predictor; "
        "print([name for name in ('huggingface_hub', 'pydantic', 'jinja2') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": ""}
    )
    assert result.stdout == "[]\n"


def test_the_base_class_holds_nothing() -> None:
    with pytest.raises(NotImplementedError, match="Pretrained.contents"):
        Pretrained().contents()
    with pytest.raises(NotImplementedError, match="Pretrained.restored"):
        Pretrained.restored("", {}, {})
    assert Contents({"a": 1}, {WEIGHTS: {}}).config == {"a": 1, "files": [WEIGHTS]}
