"""Bad input to the command line: one line that says what to do, exit code 2, and every file as it was."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from weightformer import cli, preset, rows, students, views
from weightformer.model import WeightFormer
from weightformer.predictor import Predictor
from weightformer.teachers import Teacher, TeacherPool

ARGUMENTS = {"classes": 10, "channels": 1, "size": 8}  # of scikit-learn's digits
FIRST = next(iter(students.create("mlp", seed=0).state_dict()))


class Attack:
    """A pickle that creates a file when somebody loads it."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch attacked",)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that a right command needs, and a file for everything that can be wrong."""
    folder = tmp_path_factory.mktemp("shop")
    states = [students.create("mlp", **ARGUMENTS, seed=i).state_dict() for i in range(6)]
    for i, state in enumerate(states):
        safetensors.torch.save_file(state, folder / f"t{i}.safetensors")
    torch.manual_seed(0)
    model = WeightFormer(rows.layout(students.create("mlp", **ARGUMENTS)), preset("shared-init"))
    model.set_statistics(states)
    Predictor(model, "mlp", ARGUMENTS).save(folder / "wf.safetensors")
    teachers = tuple(Teacher(f"train-{i}", "train", i, state) for i, state in enumerate(states))
    TeacherPool("independent", "mlp", ARGUMENTS, teachers).save(folder / "pool")
    (folder / "half").mkdir()
    text = (folder / "pool" / "pool.json").read_text()
    (folder / "half" / "pool.json").write_text(text.replace('"planned": 6', '"planned": 9'))
    (folder / "torn").mkdir()
    (folder / "torn" / "pool.json").write_text(text[: len(text) // 2])

    for label, value in (("nan", float("nan")), ("inf", float("inf"))):
        broken = {k: v.clone() for k, v in states[0].items()}
        broken[FIRST].view(-1)[3] = value
        safetensors.torch.save_file(broken, folder / f"{label}.safetensors")
    wider = {k: (torch.zeros(v.shape[0] + 1, *v.shape[1:]) if k == FIRST else v) for k, v in states[0].items()}
    safetensors.torch.save_file(wider, folder / "wider.safetensors")
    whole = (folder / "t0.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "text.pth").write_text("not weights\n")
    (folder / "code.pth").write_bytes(pickle.dumps(Attack()))
    (folder / "there.safetensors").write_bytes(b"precious")
    (folder / "beside.safetensors.yaml").write_text("precious: true\n")
    (folder / "there.json").write_text("precious")
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("precious")
    for name, command, result in (("done", "compare", "results.json"), ("begun", "compare", "half.checkpoint")):
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text(f"command: {command}\npreset: demo\nseed: 5\n")
        (folder / name / result).write_text("{}")
    for name, text in CONFIGS.items():
        (folder / name).write_text(text)
    (folder / "link.safetensors").symlink_to("t0.safetensors")
    (folder / "images.npy").write_bytes(b"precious")
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    return folder


CONFIGS = {
    "empty.yaml": "",
    "other.yaml": "command: fit\n",
    "broken.yaml": "a: [1, 2\n",
    "list.yaml": "- 1\n- 2\n",
    "typo.yaml": "preset: demo\nreciep:\n  steps: 3\n",
    "output.yaml": "preset: demo\noutput: elsewhere\n",
    "seed.yaml": "preset: demo\nseed: many\n",
    "section.yaml": "preset: demo\nrecipe: 3\n",
    "option.yaml": "arhc: mlp\n",
    "title.yaml": "title: mine\n",
}

PREDICT = "predict t0.safetensors t1.safetensors --arch mlp --weightformer wf.safetensors -o new.safetensors"
FIT = "fit pool --preset demo -o new --set arch=mlp --set data.name=digits"
TUNE = "finetune t0.safetensors --arch mlp -o new.safetensors --set data.name=digits"
JUDGE = "evaluate t0.safetensors --arch mlp --set data.name=digits"
TEACHERS = "teachers --preset demo -o new"
COMPARE = "compare --preset demo -o new"

# The command -> what the one line has to say.
BAD: dict[str, tuple[str, ...]] = {
    # what every command shares
    "predcit": ("predcit", "--help"),
    "demo --sede 1": ("--sede", "--seed", "demo --help"),
    "demo --seed one": ("--seed", "integer"),
    "demo --seed": ("--seed",),
    "demo --seed 99999999999999999999999": ("--seed", "9223372036854775807"),
    "demo --seed -1": ("--seed", "0"),
    "demo 3": ("3", "demo --help"),
    "demo --device gpu": ("--device", "gpu"),
    "demo --device meta": ("--device", "cpu or cuda"),
    "demo --device cuda": ("--device", "--device cpu"),
    "demo --json there.json": ("--json", "exists already", "--force"),
    "demo --json nowhere/a.json": ("--json", "nowhere", "does not exist"),
    "demo --json mine": ("--json", "is a folder"),
    "demo -o new --json new": ("--json", "new", "--output", "another"),
    "demo -o begun --resume --json begun/config.yaml --force": ("--json", "begun/config.yaml", "--output", "another"),
    # settings
    f"{COMPARE} --config nowhere.yaml": ("nowhere.yaml", "No such file"),
    f"{COMPARE} --config mine": ("mine", "cannot be read"),
    f"{COMPARE} --config binary.yaml": ("binary.yaml", "no text"),
    f"{COMPARE} --config broken.yaml": ("broken.yaml", "no YAML"),
    f"{COMPARE} --config list.yaml": ("list.yaml", "name: value"),
    f"{COMPARE} --config other.yaml": ("other.yaml", "weightformer fit", "compare"),
    f"{COMPARE} --config typo.yaml": ("reciep", "did you mean recipe?"),
    f"{COMPARE} --config output.yaml": ("output", "command line"),
    f"{COMPARE} --config seed.yaml": ("--seed", "integer"),
    f"{COMPARE} --config section.yaml": ("recipe", "settings of its own"),
    f"{PREDICT} --config option.yaml": ("arhc", "did you mean arch?"),
    f"{COMPARE} --set recipe.steps": ("recipe.steps", "KEY=VALUE"),
    f"{COMPARE} --set =3": ("KEY=VALUE",),
    f"{COMPARE} --set recipe.steps=[1": ("recipe.steps", "YAML"),
    f"{COMPARE} --set recipe=1 --set recipe.steps=2": ("recipe", "keep one"),
    f"{COMPARE} --set recipe.stpes=100": ("recipe.stpes", "did you mean steps?"),
    f"{COMPARE} --set recipe.steps=many": ("recipe.steps", "a whole number", "many"),
    f"{COMPARE} --set recipe.steps=-1": ("steps", "-1"),
    f"{COMPARE} --set recipe.steps=yes": ("recipe.steps", "a whole number", "True"),
    f"{COMPARE} --set recipe.learning_rate=.nan": ("learning_rate", "nan"),
    f"{COMPARE} --set recipe.alpha=2": ("alpha", "0 to 1"),
    f"{COMPARE} --set recipe.seed=2": ("recipe.seed", "--seed"),
    f"{COMPARE} --set model.heads=7": ("heads", "width"),
    f"{COMPARE} --set model.norm=middle": ("norm", "pre, post", "middle"),
    f"{COMPARE} --set model.dropout=1": ("dropout", "[0, 1)"),
    f"{COMPARE} --set sizes=[]": ("sizes", "at least one"),
    f"{COMPARE} --set sizes=[2,x]": ("sizes", "a list"),
    f"{COMPARE} --set sizes=[99]": ("sizes", "42", "99"),
    f"{COMPARE} --set group=9": ("group", "6", "9"),
    f"{COMPARE} --set regime.fast=0": ("fast", "at least one"),
    f"{COMPARE} --set regime.jitter.scale=-1": ("scale", "-1"),
    f"{COMPARE} --set regime.fast_schedule.steps=0": ("steps", "0"),
    f"{COMPARE} --set data.name=minst": ("name", "minst", "mnist"),
    f"{COMPARE} --set data.size=20": ("size", "14 or 28", "20"),
    f"{COMPARE} --set data.limit=0": ("limit", "0"),
    f"{COMPARE} --set data.name=cifar10": ("cifar10", "folder"),
    f"{COMPARE} --set data.name=cifar10 --set data.folder=nowhere": ("cifar10", "nowhere"),
    f"{COMPARE} --set data.name=digits --set data.size=14": ("data", "size", "digits"),
    f"{COMPARE} --set arch=vggg": ("vggg", "vgg"),
    "compare --preset specialists -o new --set data.name=digits": ("data: name", "mnist"),
    "compare --preset specialists -o new --set regime.kind=tile": ("regime.kind", "tiles", "tile"),
    "compare --preset specialists -o new --set regime.test=0": ("regime.test", "0"),
    f"{COMPARE} --config seed.yaml --json seed.yaml --force": ("--seed", "integer"),
    f"{COMPARE} --config title.yaml --json title.yaml --force": ("--json", "title.yaml", "reads"),
    f"{COMPARE} --set recipe.steps=10000000000": ("Recipe: steps", "at most 1000000000"),
    f"{COMPARE} --set model.width=100000000": ("width", "at most"),
    f"{COMPARE} --set regime.fast=1000000000": ("fast", "at most"),
    # outputs of long runs
    "compare -o new": ("--preset", "compare --help"),
    "compare --preset dmeo -o new": ("--preset", "did you mean demo?"),
    "compare --preset demo -o there.json": ("--output", "is a file"),
    "compare --preset demo -o mine": ("--output", "thesis.txt", "new or an empty folder"),
    "compare --preset demo -o mine --force": ("--output", "thesis.txt", "new or an empty folder"),
    "compare --preset demo -o done": ("--output", "complete run", "--force"),
    "compare --preset demo -o done --resume": ("--output", "complete run", "--force"),
    "compare --preset demo -o begun": ("--output", "interrupted", "--resume", "--force"),
    "compare --preset demo -o begun --resume": ("--resume", "begun/config.yaml", "--force"),
    "compare --preset demo -o there.json/new": ("--output", "there.json"),
    # teachers
    f"{TEACHERS} --workers 0": ("--workers", "1"),
    f"{TEACHERS} --set recipe.steps=3": ("recipe", "teachers", "regime"),
    f"{TEACHERS} --set regime.views=1000000000": ("views", "at most 10000", "1000000000"),
    f"{TEACHERS} --config title.yaml --json title.yaml --force": ("--json", "title.yaml", "reads"),
    "teachers --preset demo": ("--output", "teachers --help"),
    # fit
    "fit --preset demo -o new": ("TEACHER", "fit --help"),
    "fit mine --preset demo -o new": ("mine", "pool.json"),
    "fit half --preset demo -o new": ("half", "3 teachers"),
    "fit torn --preset demo -o new": ("torn", "no teacher pool"),
    "fit pool --preset specialists -o new": ("--preset", "specialists"),
    "fit t0.safetensors --preset specialists -o new": ("specialists", "folder of a pool"),
    f"{FIT} --set sizes=[7]": ("sizes", "6", "7"),
    f"{FIT} --set regime.fast=3": ("regime", "fit"),
    "fit t0.safetensors t1.safetensors wider.safetensors --preset demo -o new --set arch=mlp --set data.name=digits": (
        "wider.safetensors",
        FIRST,
    ),
    f"{FIT.replace('pool', 't0.safetensors t0.safetensors')}": ("t0.safetensors", "named twice"),
    f"{FIT.replace('pool', 't0.safetensors t1.safetensors')} --json t0.safetensors --force": (
        "t0.safetensors",
        "reads",
    ),
    f"{FIT} --json pool/pool.json --force": ("--json", "pool", "reads"),
    # predict
    PREDICT.replace("t1", "t0"): ("t0.safetensors", "named twice"),
    PREDICT.replace("t1", "./t0"): ("t0.safetensors", "named twice", "the same file"),
    PREDICT.replace("t1", "link"): ("link.safetensors", "named twice", "t0.safetensors"),
    PREDICT.replace("new", "t0") + " --force": ("--output", "t0.safetensors", "reads"),
    PREDICT.replace("new", "link") + " --force": ("--output", "t0.safetensors", "reads"),
    PREDICT.replace("new", "wf") + " --force": ("--output", "wf.safetensors", "reads"),
    PREDICT.replace("new", "new-00001-of-00002"): ("--output", "shards", "own"),
    f"{PREDICT} --json new.safetensors": ("--json", "new.safetensors", "--output", "another"),
    f"{PREDICT} --json ./new.safetensors --force": ("--json", "--output", "another"),
    f"{PREDICT} --json new.safetensors.yaml": ("--json", "settings", "another"),
    f"{PREDICT} --json t1.safetensors --force": ("--json", "t1.safetensors", "reads"),
    f"{PREDICT} --json wf.safetensors --force": ("--json", "wf.safetensors", "reads"),
    f"{PREDICT} --calibrate images.npy --json images.npy --force": ("--json", "images.npy", "reads"),
    f"{PREDICT} --config empty.yaml --json empty.yaml --force": ("--json", "empty.yaml", "reads"),
    PREDICT.replace("t1", "nowhere"): ("nowhere.safetensors", "no such file"),
    PREDICT.replace("t1.safetensors", "mine"): ("mine",),
    PREDICT.replace("t1", "truncated"): ("truncated.safetensors", "complete"),
    PREDICT.replace("t1", "empty"): ("empty.safetensors", "empty"),
    PREDICT.replace("t1.safetensors", "text.pth"): ("text.pth",),
    PREDICT.replace("t1.safetensors", "code.pth"): ("code.pth", "refused", "nothing was run"),
    PREDICT.replace("t1", "wider"): ("wider.safetensors", FIRST),
    PREDICT.replace("t1", "nan"): ("nan.safetensors", FIRST, "NaN"),
    PREDICT.replace("t1", "inf"): ("inf.safetensors", FIRST, "Inf"),
    PREDICT.replace("mlp", "mpl"): ("mpl", "mlp"),
    PREDICT.replace("mlp", "vgg"): ("--arch", "mlp", "vgg"),
    PREDICT.replace(" --arch mlp", ""): ("--arch", "predict --help"),
    PREDICT.replace("wf.safetensors", "nowhere.safetensors"): ("nowhere.safetensors", "no such file"),
    PREDICT.replace("wf.safetensors", "t0.safetensors"): ("t0.safetensors", "is no WeightFormer"),
    PREDICT.replace("wf.safetensors", "text.pth"): ("text.pth",),
    PREDICT.replace("new.safetensors", "there.safetensors"): ("--output", "exists already", "--force"),
    PREDICT.replace("new.safetensors", "beside.safetensors"): ("--output", "beside.safetensors.yaml", "--force"),
    PREDICT.replace("new.safetensors", "new.pth"): ("--output", ".safetensors"),
    PREDICT.replace("new.safetensors", "nowhere/new.safetensors"): ("nowhere", "create it first"),
    PREDICT.replace("new.safetensors", "mine"): ("--output", "is a folder"),
    # finetune, evaluate
    TUNE.replace("t0", "nowhere"): ("nowhere.safetensors", "no such file"),
    TUNE.replace("mlp", "vgg"): ("t0.safetensors", "another architecture"),
    f"{TUNE} --teacher wider.safetensors": ("wider.safetensors", FIRST),
    f"{TUNE} --set steps=-1": ("steps", "-1"),
    f"{TUNE} --set temperature=0": ("temperature", "positive"),
    f"{TUNE} --set stesp=1": ("stesp", "did you mean steps?"),
    TUNE.replace("new.safetensors", "there.safetensors"): ("--output", "exists already", "--force"),
    TUNE.replace("new", "t0") + " --force": ("--output", "t0.safetensors", "reads"),
    f"{TUNE} --teacher t1.safetensors --json t1.safetensors --force": ("--json", "t1.safetensors", "reads"),
    f"{TUNE} --teacher t1.safetensors --teacher t1.safetensors": ("t1.safetensors", "named twice"),
    f"{TUNE} --set views=100000": ("views", "at most 10000"),
    f"{JUDGE} --json t0.safetensors --force": ("--json", "t0.safetensors", "reads"),
    f"{JUDGE} --json beside.safetensors": ("--json", "beside.safetensors.yaml", "exists already"),
    JUDGE.replace("--arch", "t0.safetensors --arch"): ("t0.safetensors", "named twice"),
    JUDGE.replace("t0", "nan"): ("nan.safetensors", "NaN"),
    f"{JUDGE} --split tset": ("--split", "did you mean test?"),
    f"{JUDGE} --json there.json": ("--json", "exists already"),
    "evaluate --arch mlp": ("NETWORK", "evaluate --help"),
    # plan
    "plan": ("--arch", "plan --help"),
    "plan --arch resnet500": ("resnet500", "resnet50"),
    "plan --arch mlp --teachers 0": ("--teachers", "1"),
    "plan --arch mlp --preset papre": ("--preset", "did you mean paper?"),
    "plan --arch mlp --teachers 99": ("teachers", "max_teachers", "99"),
    "plan --arch mlp --set model.layers=0": ("layers", "0"),
    "plan --arch mlp --set model.layers=100000000": ("layers", "at most 200"),
    "plan --arch mlp --size 100000000": ("size", "at most 16384"),
    "plan --arch mlp --channels 100000000": ("channels", "at most 4096"),
    "plan --arch resnet50 --classes 99999999999999": ("classes", "at most 1000000"),
    "plan --arch resnet50 --teachers 1000 --groups 1000 --preset specialists": ("tokens", "fewer teachers"),
    "plan --arch mlp --teachers 1000000": ("--teachers", "1000"),
    "plan --arch mlp --device cuda": ("--device", "--device cpu"),
    "plan --arch mlp --config empty.yaml --json empty.yaml --force": ("--json", "empty.yaml", "reads"),
}


@pytest.fixture
def run(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[str], tuple[int, str, str]]]:
    def call(command: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["weightformer", *command.split()])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    monkeypatch.chdir(shop)
    threads = torch.get_num_threads()
    yield call
    torch.set_num_threads(threads)


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def test_there_are_enough_kinds() -> None:
    assert len(BAD) >= 60


@pytest.mark.parametrize("command", BAD)
def test_a_bad_command_ends_in_one_line_and_changes_nothing(
    command: str, shop: Path, run: Callable[[str], tuple[int, str, str]]
) -> None:
    before = contents(shop)
    code, out, err = run(command)
    assert (code, out) == (2, ""), err
    (line,) = err.strip().splitlines()
    assert line.startswith("weightformer: ")
    for words in BAD[command]:
        assert words in line
    assert contents(shop) == before


def test_a_student_that_training_ruined_is_not_written(shop: Path, run: Callable[[str], tuple[int, str, str]]) -> None:
    before = contents(shop)
    code, out, err = run(f"{TUNE} --set steps=3 --set views=1 --set learning_rate=1e30")
    *_, line = err.strip().splitlines()  # after the progress
    assert (code, out, contents(shop)) == (2, "", before)
    assert line.startswith(f"weightformer: finetune: {FIRST} is not finite after 3 steps, so nothing was written")
    assert "learning_rate=1e+30" in line


@pytest.mark.parametrize(
    "ask",
    [
        lambda *_: torch.empty(1 << 50, dtype=torch.uint8),
        lambda *_: torch.empty(1 << 40, 1 << 40, device="meta"),
        lambda *_: torch.zeros(1 << 62).numel(),
        lambda *_: bytearray(1 << 62),
        lambda *_: [0.0] * (10**30),
    ],
    ids=["memory", "meta", "storage", "python", "count"],
)
def test_what_takes_too_much_ends_in_one_line(
    ask: Callable[..., object], shop: Path, run: Callable[[str], tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(shop)
    monkeypatch.setattr(views, "bank", ask)
    code, out, err = run(TUNE)
    (line,) = err.strip().splitlines()
    assert (code, out, contents(shop)) == (2, "", before)
    assert line.startswith("weightformer: this takes more memory") and "views" in line


def test_a_fault_of_ours_is_not_blamed_on_memory(
    run: Callable[[str], tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(views, "bank", fail)
    with pytest.raises(RuntimeError, match="a fault"):
        run(TUNE)


def test_nothing_at_all_shows_the_help(run: Callable[[str], tuple[int, str, str]]) -> None:
    code, out, err = run("")
    assert code == 2
    assert "Usage" in out + err and "demo" in out + err
