"""Weight files as training scripts and hubs leave them: wrappers, averages, shards, and teachers of many dtypes."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tests.weightformer import tiny
from tests.weightformer.test_predictor import POOL, made
from weightformer.checkpoints import CheckpointError, check_teachers, load, metadata
from weightformer.config import Config
from weightformer.rows import layout
from weightformer.state import State


def network() -> nn.Sequential:
    return tiny.network()


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def refusal(path: Path, action: Callable[[], object], named: Path | None = None) -> str:
    """Return the message with which `action` refuses, after checking its form: one line that names the file."""
    with pytest.raises(CheckpointError) as caught:
        action()
    message = str(caught.value)
    assert message.startswith(f"{named or path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{named or path}: ")


STATE = dict(tiny.teachers(1)[0])
OTHER = {name: tensor + 1 for name, tensor in STATE.items()}
LIGHTNING = {"pytorch-lightning_version": "2.5.0", "epoch": 3, "loops": {}, "hyper_parameters": {"rate": 0.1}}

# wrappers


def averaged(wrap: Callable[[nn.Module], nn.Module] = lambda module: module) -> Mapping[str, Tensor]:
    module = network()
    module.load_state_dict(STATE)
    return AveragedModel(wrap(module), use_buffers=True).state_dict()


def both(average: State, online: State) -> State:
    """What ema_pytorch.EMA calls its state."""
    counters = {"initted": torch.tensor(True), "step": torch.tensor(7)}
    return prefixed("online_model.", online) | prefixed("ema_model.", average) | counters


WRAPPED: dict[str, Any] = {
    "torchvision": {"model": STATE, "optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
    "torchvision, averaged": {
        "model": OTHER,
        "model_ema": prefixed("module.", STATE) | {"n_averaged": torch.tensor(7)},
    },
    "timm": {"state_dict": OTHER, "state_dict_ema": STATE, "arch": "vgg", "metric": 71.5, "version": 2},
    "timm, average not kept": {"state_dict": STATE, "state_dict_ema": None},
    "BasicSR": {"params": OTHER, "params_ema": prefixed("module.", STATE)},
    "BasicSR, average not kept": {"params": STATE},
    "ema": {"model": OTHER, "ema": STATE, "opt": {"state": {}}, "args": argparse.Namespace(lr=0.1)},
    "ema_model": {"model": OTHER, "ema_model": prefixed("module.", STATE), "step": 7},
    "ema_state_dict": {"state_dict": OTHER, "ema_state_dict": STATE, "epoch": 3},
    "ema, a state dict in it": {"model": OTHER, "ema": {"decay": 0.999, "state_dict": STATE}},
    "ema without names, as torch_ema's": {"model": STATE, "ema": {"decay": 0.9, "shadow_params": list(OTHER.values())}},
    "ema, settings only": {"state_dict": STATE, "ema": {"decay": 0.999, "every": 10}},
    "ema-pytorch": {"model": OTHER, "ema": both(STATE, OTHER), "step": 7, "version": "1.0"},
    "ema-pytorch, without the other network": {"model": OTHER, "ema": both(STATE, {})},
    "ema-pytorch, the wrapper alone": both(STATE, OTHER),
    "net, as small scripts say": {"net": prefixed("module.", STATE), "acc": 95.1, "epoch": 199},
    "AveragedModel": averaged(),
    "AveragedModel of DataParallel": averaged(nn.DataParallel),
    "AveragedModel in DataParallel": prefixed("module.", averaged()),
    "AveragedModel, compiled": prefixed("_orig_mod.", averaged()),
    "AveragedModel of a compiled network": prefixed("module._orig_mod.", STATE) | {"n_averaged": torch.tensor(2)},
    "compiled and DataParallel": prefixed("_orig_mod.module._orig_mod.module.", STATE),
    "Lightning, model": {"state_dict": prefixed("model.", STATE), **LIGHTNING},
    "Lightning, net": {"state_dict": prefixed("net.", STATE), **LIGHTNING},
    "Lightning, compiled": {"state_dict": prefixed("model._orig_mod.", STATE), **LIGHTNING},
    "Lightning, DataParallel": {"state_dict": prefixed("net.module.", STATE), **LIGHTNING},
    "Lightning, the network itself": {"state_dict": STATE, **LIGHTNING},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_the_networks_own_state_is_found(kind: str, tmp_path: Path) -> None:
    torch.save(WRAPPED[kind], tmp_path / "w.pth")
    state = load(tmp_path / "w.pth")
    assert equal(state, STATE)
    check_teachers({"w.pth": state}, network())


LAST = ["torchvision, averaged", "timm", "BasicSR", "ema", "ema_model", "ema_state_dict", "ema-pytorch"]


@pytest.mark.parametrize("kind", [*LAST, "ema-pytorch, the wrapper alone"])
def test_the_last_weights_are_there_for_who_does_not_want_their_average(kind: str, tmp_path: Path) -> None:
    torch.save(WRAPPED[kind], tmp_path / "w.pth")
    assert equal(load(tmp_path / "w.pth", ema=False), OTHER)


@pytest.mark.parametrize("kind", ["AveragedModel", "compiled and DataParallel"])
def test_prefixes_are_taken_off_in_safetensors_too(kind: str, tmp_path: Path) -> None:
    safetensors.torch.save_file(dict(WRAPPED[kind]), tmp_path / "w.safetensors")
    assert equal(load(tmp_path / "w.safetensors"), STATE)


def test_a_dict_that_holds_itself_is_refused(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["model"] = endless["ema"] = endless["net"] = endless
    torch.save(endless, tmp_path / "w.pth")
    assert "holds no dict of tensors" in refusal(tmp_path / "w.pth", lambda: load(tmp_path / "w.pth"))


KEPT: dict[str, tuple[Any, list[str]]] = {
    "model., not of Lightning": ({"state_dict": {"model.w": torch.ones(2)}}, ["model.w"]),
    "Lightning, two parts": ({"state_dict": {"model.w": torch.ones(2), "loss.w": torch.ones(2)}, **LIGHTNING}, []),
    "n_averaged of another shape": ({"module.w": torch.ones(2), "n_averaged": torch.ones(2)}, []),
    "n_averaged beside other names": ({"w": torch.ones(2), "n_averaged": torch.tensor(2)}, []),
    "n_averaged alone": ({"n_averaged": torch.tensor(2)}, []),
    "ema_model., not of ema-pytorch": ({"ema_model.w": torch.ones(2), "head.w": torch.ones(2)}, []),
}


@pytest.mark.parametrize("kind", KEPT)
def test_names_that_may_be_the_networks_own_are_kept(kind: str, tmp_path: Path) -> None:
    content, names = KEPT[kind]
    torch.save(content, tmp_path / "w.pth")
    assert list(load(tmp_path / "w.pth")) == (names or list(content.get("state_dict", content)))


class Harmless:
    """An object of the script's own."""


def test_a_namespace_opens_the_door_to_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"model": STATE, "args": argparse.Namespace(what=Harmless())}, path)
    assert "Harmless, which could run code" in refusal(path, lambda: load(path))
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


EXTRA: dict[str, tuple[State, str]] = {
    "an optimizer's state": (
        prefixed("optimizer.0.", {"exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}),
        "(unexpected 'optimizer.0.exp_avg', 'optimizer.0.exp_avg_sq'); name the one they were trained with, or save"
        " model.state_dict() alone",
    ),
    "another head": (prefixed("fc.", {"weight": torch.ones(2, 4)}), "(unexpected 'fc.weight'); "),
    "many": ({f"x{i}": torch.ones(1) for i in range(9)}, "(unexpected 'x0', 'x1', 'x2' and 6 more); "),
}


@pytest.mark.parametrize("kind", EXTRA)
def test_what_the_architecture_has_not_is_named(kind: str) -> None:
    extra, message = EXTRA[kind]
    assert message in refusal(Path("w.pth"), lambda: check_teachers({"w.pth": {**STATE, **extra}}, network()))


# shards


def written(folder: Path, suffix: str = "safetensors", **changes: Any) -> Path:
    """Write STATE as two shards and their index; changes: of the index by name, of the shards by "one" and "two"."""
    names = list(STATE)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    files = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    parts = {file: {n: STATE[n] for n in names[i::2]} for i, file in enumerate(files)}
    places = {name: file for file, part in parts.items() for name in part}
    for which, file in zip(("one", "two"), files, strict=True):
        parts[file] |= changes.pop(which, {})
    for file, part in parts.items():
        if suffix == "safetensors":
            safetensors.torch.save_file(part, folder / file, metadata={"format": "pt"})
        else:
            torch.save(part, folder / file)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places | changes}))
    return index


@pytest.mark.parametrize("given", ["index", "folder"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_put_together(suffix: str, given: str, tmp_path: Path) -> None:
    index = written(tmp_path, suffix)
    path = index if given == "index" else tmp_path
    assert equal(load(path), STATE)
    assert set(load(str(path))) == set(STATE)
    assert metadata(path) == {}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_with_one_weight_file_is_read(name: str, tmp_path: Path) -> None:
    if name.endswith("bin"):
        torch.save(STATE, tmp_path / name)
    else:
        safetensors.torch.save_file(STATE, tmp_path / name, metadata={"about": "x"})
    assert equal(load(tmp_path), STATE)
    assert metadata(tmp_path) == ({} if name.endswith("bin") else {"about": "x"})


def test_shards_in_the_hubs_cache_are_links(tmp_path: Path) -> None:
    """The cache keeps blobs apart from the snapshot in which their names stand."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots"
    for folder in (blobs, snapshot):
        folder.mkdir()
    written(blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("..", "blobs", file.name))
    assert equal(load(snapshot), STATE)


def test_prefixes_of_shards_are_taken_off(tmp_path: Path) -> None:
    index = written(tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        safetensors.torch.save_file(prefixed("module.", safetensors.torch.load_file(file)), file)
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {f"module.{name}": file for name, file in places.items()}}))
    assert equal(load(index), STATE)


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
NAME = next(iter(STATE))  # in the first shard


def replaced(text: str) -> Callable[[Path], None]:
    return lambda index: None if index.write_text(text) else None


def removed(*files: str) -> Callable[[Path], None]:
    return lambda index: [(index.parent / file).unlink() for file in files] and None


def overwritten(content: bytes) -> Callable[[Path], None]:
    return lambda index: None if (index.parent / SECOND).write_bytes(content) else None


# What is wrong with the index: further arguments of `written`, what is done to the files then, and the message.
FAULTS: dict[str, tuple[dict[str, Any], Callable[[Path], None] | None, str]] = {
    "a shard is missing": ({}, removed(SECOND), f"the shard '{SECOND}' is missing; copy all shards beside the index"),
    "all are missing": ({}, removed(FIRST, SECOND), f"the shard '{FIRST}' and 1 more is missing; "),
    "a tensor is in no shard": (
        {"x": SECOND},
        None,
        f"'x' is listed in '{SECOND}', which does not hold it; copy or save",
    ),
    "a tensor is in two shards": (
        {"two": {NAME: STATE[NAME]}},
        None,
        f"'{NAME}' stands in '{SECOND}', but is listed in '{FIRST}'; copy or save index and shards again",
    ),
    "a tensor is listed nowhere": (
        {"one": {"x": torch.ones(1)}},
        None,
        f"'x' stands in '{FIRST}', but is listed now",
    ),
    "a tensor is listed twice": (
        {},
        replaced('{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}'),
        "cannot be read as an index of shards: 'a' is listed twice; ",
    ),
    "a place above": ({"x": "../w.safetensors"}, None, "refused, and no shard was read: '../w.safetensors' leads out"),
    "a place below and above": ({"x": "a/../../w.safetensors"}, None, "refused, and no shard was read: "),
    "an absolute place": ({"x": "/etc/passwd"}, None, "refused, and no shard was read: '/etc/passwd' leads out"),
    "no place": ({"x": ""}, None, "is no index of shards, "),
    "a place that is a number": ({"x": 3}, None, "is no index of shards, "),
    "a place that no file can have": ({"x": "x" * 300}, None, "is missing; "),
    "a place with a zero": ({"x": "x\0"}, None, "is missing; "),
    "a place that is a folder": ({"x": "."}, None, "is missing; "),
    "no map": ({}, replaced("{}"), "is no index of shards, which has a 'weight_map'"),
    "an empty map": ({}, replaced('{"weight_map": {}}'), "is no index of shards, "),
    "a map that is a list": ({}, replaced('{"weight_map": ["a"]}'), "is no index of shards, "),
    "a list": ({}, replaced("[1]"), "is no index of shards, "),
    "no JSON": ({}, replaced("weights"), "cannot be read as an index of shards: "),
    "an empty file": ({}, replaced(""), "cannot be read as an index of shards: "),
    "deep JSON": ({}, replaced("[" * 200_000), "cannot be read as an index of shards: "),
    "no text": ({}, lambda index: None if index.write_bytes(b"\xff\xfe\xfd") else None, "cannot be read as an index"),
}


@pytest.mark.parametrize("given", ["index", "folder"])
@pytest.mark.parametrize("fault", FAULTS)
def test_an_index_that_does_not_fit_its_shards_is_refused(fault: str, given: str, tmp_path: Path) -> None:
    changes, then, message = FAULTS[fault]
    index = written(tmp_path, **changes)
    if then is not None:
        then(index)
    path = index if given == "index" else tmp_path
    assert message in refusal(path, lambda: load(path), index)


SHARDS: dict[str, tuple[bytes, str]] = {
    "truncated": (safetensors.torch.save(STATE)[:200], "is not a complete safetensors file ("),
    "empty": (b"", "is empty; copy or save it again"),
    "no tensors": (safetensors.torch.save({}), "holds no dict of tensors; "),
}


@pytest.mark.parametrize("fault", SHARDS)
def test_a_shard_that_cannot_be_read_is_named(fault: str, tmp_path: Path) -> None:
    content, message = SHARDS[fault]
    index = written(tmp_path)
    overwritten(content)(index)
    assert refusal(index, lambda: load(index), tmp_path / SECOND).startswith(message)


def test_a_shard_that_could_run_code_is_refused(tmp_path: Path) -> None:
    index = written(tmp_path, "bin", two={"x": Harmless()})
    message = refusal(index, lambda: load(index), tmp_path / "pytorch_model-00002-of-00002.bin")
    assert message.startswith("refused, and nothing was run: ")


def test_one_shard_of_several_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    written(tmp_path)
    message = refusal(tmp_path / FIRST, lambda: load(tmp_path / FIRST))
    assert message == "is one of several shards; give their index (*.index.json) or the folder"
    only = tmp_path / "model-00001-of-00001.safetensors"
    safetensors.torch.save_file(STATE, only)
    assert equal(load(only), STATE)


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_an_index_that_is_no_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    if kind == "folder":
        (path / "inside").mkdir(parents=True)
    message = refusal(path, lambda: load(path))
    assert message.startswith("is a folder without" if kind == "folder" else "no such file; check the path")


# what is inside: dtypes, counters, tied weights


def cast(state: State, dtype: torch.dtype) -> State:
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def flagged() -> nn.Sequential:
    """The network with a buffer of flags and one of integers."""
    module = network()
    module.register_buffer("flags", torch.tensor([True, False]))
    module.register_buffer("order", torch.arange(3, dtype=torch.int16))
    return module


SMALL = Config(width=8, heads=2, layers=1, feed_forward=8, output="mean")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("first", DTYPES)
def test_teachers_of_several_dtypes_give_a_student_of_the_firsts(first: torch.dtype, tmp_path: Path) -> None:
    module = flagged()
    # Eighths up to some units, and a quarter of their sum, are exact in every dtype.
    pool = [
        {name: (tensor * 8).round() / 8 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        for state in tiny.teachers(4, module)
    ]
    group = [cast(state, dtype) for state, dtype in zip(pool, [first, *(d for d in DTYPES if d != first)], strict=True)]
    group[0]["head.bias"] = group[0]["head.bias"].double()  # mixed inside one teacher, too
    for i, state in enumerate(group):
        torch.save(state, tmp_path / f"{i}.pth")
    read = [load(tmp_path / f"{i}.pth") for i in range(4)]
    check_teachers({str(i): state for i, state in enumerate(read)}, module)
    model = tiny.untouched(SMALL, layout(module), pool).float()
    student = model.predict(read)
    assert {name: tensor.dtype for name, tensor in student.items()} == {n: t.dtype for n, t in group[0].items()}
    for name in ("flags", "order", "norm.num_batches_tracked"):
        assert torch.equal(student[name], group[0][name])
    # An untouched model's output is the teachers' mean.
    for name in ("conv.weight", "norm.bias", "head.bias"):
        assert torch.equal(student[name].float(), torch.stack([state[name].float() for state in group]).mean(0))


def test_teachers_of_several_dtypes_are_aligned_and_their_student_calibrated() -> None:
    group = [cast(state, dtype) for state, dtype in zip(POOL, DTYPES, strict=True)]
    student = made()(group)
    assert {name: tensor.dtype for name, tensor in student.items()} == {n: t.dtype for n, t in group[0].items()}
    assert all(tensor.isfinite().all() for tensor in student.values())


def test_a_student_too_large_for_the_firsts_dtype_is_refused() -> None:
    pool = [cast(state, torch.float64) for state in tiny.teachers(4)]
    model = tiny.untouched(SMALL, pool=pool)
    with torch.no_grad():
        model.outputs[tiny.HEAD].bias.fill_(1e6)
    assert model.predict(pool)["head.weight"].isfinite().all()
    message = "predict: 'head.weight' is too large for torch.float16, the first teacher's dtype; give the teachers in"
    with pytest.raises(ValueError, match=message):
        model.predict([cast(pool[0], torch.float16), *pool[1:]])
    model.predict([*pool[1:], cast(pool[0], torch.float16)])


@pytest.mark.parametrize("without", [(0,), (1, 2), (0, 1, 2)])
def test_counters_that_old_files_lack_are_not_needed(without: tuple[int, ...]) -> None:
    group = tiny.teachers(3)
    for i in without:
        del group[i]["norm.num_batches_tracked"]
    check_teachers({str(i): state for i, state in enumerate(group)}, network())
    student = tiny.untouched(SMALL, pool=tiny.teachers(4)).predict(group)
    assert ("norm.num_batches_tracked" in student) == (0 not in without)
    network().load_state_dict(student)


def test_a_counter_that_the_architecture_has_not_is_named() -> None:
    plain = tiny.network(norm=False)
    state = {**plain.state_dict(), "norm.num_batches_tracked": torch.tensor(3)}
    message = refusal(Path("w"), lambda: check_teachers({"w": state}, plain))
    assert "(unexpected 'norm.num_batches_tracked')" in message


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize("kept", ["embedding.weight", "head.weight", "both"])
def test_tied_weights_are_read_under_any_name_and_written_under_all(kept: str, tmp_path: Path) -> None:
    """safetensors.torch.save_model and the hub's libraries write a tied weight once."""
    pool = []
    for i in range(3):
        torch.manual_seed(i)
        path, module = tmp_path / f"{i}.safetensors", Tied()
        if kept == "both":
            torch.save(module.state_dict(), path.with_suffix(".pth"))
            pool.append(load(path.with_suffix(".pth")))
            continue
        dropped = {"embedding.weight", "head.weight"} - {kept}
        safetensors.torch.save_file({n: t for n, t in module.state_dict().items() if n not in dropped}, path)
        pool.append(load(path))
    check_teachers({str(i): state for i, state in enumerate(pool)}, Tied())
    student = tiny.untouched(SMALL, layout(Tied()), pool).predict(pool)
    Tied().load_state_dict(student)
    assert torch.equal(student["head.weight"], student["embedding.weight"])


def test_safetensors_own_way_with_tied_weights_is_read(tmp_path: Path) -> None:
    module = Tied()
    safetensors.torch.save_model(module, str(tmp_path / "w.safetensors"))
    state = load(tmp_path / "w.safetensors")
    assert len(state) == len(OrderedDict(module.named_parameters()))
    check_teachers({"w": state}, module)
