"""Weight files at the door: what is read, what is refused (in one line, and never run), and how files are written."""

from __future__ import annotations

import io
import os
import pickle
import stat
import tarfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from weightformer.checkpoints import CheckpointError, check_teachers, load, metadata, save
from weightformer.rows import layout
from weightformer.state import State


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


@pytest.fixture
def state() -> State:
    torch.manual_seed(0)
    return dict(network().state_dict())


def equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def refusal(path: Path, action: Callable[[], object]) -> str:
    """Return the message with which `action` refuses, after checking its form: one line that names the file."""
    with pytest.raises(CheckpointError) as caught:
        action()
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


# reading


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights"])
def test_torch_files_are_read(tmp_path: Path, state: State, name: str, zipped: bool) -> None:
    torch.save(OrderedDict(state), tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert equal(load(tmp_path / name), state)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin"])
def test_safetensors_files_are_read_whatever_their_name(tmp_path: Path, state: State, name: str) -> None:
    safetensors.torch.save_file(state, tmp_path / name)
    assert equal(load(tmp_path / name), state)
    assert equal(load(str(tmp_path / name)), state)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"state": {}}},
        lambda state: {"model_state_dict": state},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {f"module.{n}": t for n, t in state.items()},
        lambda state: {f"_orig_mod.{n}": t for n, t in state.items()},
        lambda state: {f"module._orig_mod.{n}": t for n, t in state.items()},
        lambda state: {f"_orig_mod.module.{n}": t for n, t in state.items()},
        lambda state: {n.replace(".", "._orig_mod."): t for n, t in state.items()},
        lambda state: {"state_dict": {f"module.{n}": t for n, t in state.items()}},
        lambda state: {n: nn.Parameter(t) if t.is_floating_point() else t for n, t in state.items()},
    ],
)
def test_wrapped_states_are_unwrapped(tmp_path: Path, state: State, wrap: Callable[[State], Any]) -> None:
    torch.save(wrap(state), tmp_path / "weights.pt")
    loaded = load(tmp_path / "weights.pt")
    assert equal(loaded, state)
    assert not any(t.requires_grad for t in loaded.values())


def test_a_prefix_that_only_some_names_have_belongs_to_the_network(tmp_path: Path) -> None:
    state = {"module.weight": torch.ones(2), "head": torch.ones(3)}
    save(state, tmp_path / "w.safetensors")
    assert equal(load(tmp_path / "w.safetensors"), state)


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.pt"
    assert refusal(path, lambda: load(path)) == "no such file; check the path"


def test_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path, lambda: load(tmp_path)).startswith("is a folder without model.safetensors, ")
    assert refusal(tmp_path, lambda: metadata(tmp_path)).startswith("is a folder without model.safetensors, ")


def test_neither_file_nor_folder() -> None:
    path = Path("/dev/null")
    assert refusal(path, lambda: load(path)) == "is not a file; name the weight file itself"


def test_name_that_no_file_can_have(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)
    assert "cannot be read: " in refusal(path, lambda: load(path))


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.touch()
    assert refusal(path, lambda: load(path)) == "is empty; copy or save it again"


def bytes_of(state: State, kind: str) -> bytes:
    if kind == "safetensors":
        return safetensors.torch.save(state)
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=kind == "torch")
    return buffer.getvalue()


@pytest.mark.parametrize("part", [0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["safetensors", "torch", "old torch"])
def test_truncated_file(tmp_path: Path, state: State, kind: str, part: float) -> None:
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    content = bytes_of(state, kind)
    path.write_bytes(content[: int(len(content) * part)])
    message = refusal(path, lambda: load(path))
    # Where an old file ends inside a name, the name that is left may be any.
    assert message.endswith("copy or save it again") or (kind == "old torch" and message.startswith("refused"))


@pytest.mark.parametrize(
    "content",
    [
        b"\x05\x00\x00\x00\x00\x00\x00\x00{nope",
        b"\xff\xff\xff\xff\xff\xff\xff\xff{}",
        b"\x02\x00\x00\x00\x00\x00\x00\x00[]",
        b"no",
        b'\x3b\x00\x00\x00\x00\x00\x00\x00{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,999999]}}',
        b'\x36\x00\x00\x00\x00\x00\x00\x00{"a":{"dtype":"F9","shape":[2],"data_offsets":[0,8]}}' + b"\0" * 8,
    ],
)
def test_safetensors_with_a_broken_header(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    message = refusal(path, lambda: load(path))
    assert message.startswith("is not a complete safetensors file (")
    assert message.endswith("); copy or save it again")


@pytest.mark.parametrize(
    "content", [b"hello, world\n" * 9, b"\0" * 99, b"\x80\x02", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n"]
)
def test_file_that_holds_something_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(content)
    refusal(path, lambda: load(path))


class Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def write_attack(path: Path, attack: Attack, how: str) -> None:
    if how == "torch":
        torch.save({"weight": torch.ones(2), "extra": attack}, path)
    elif how == "old torch":
        torch.save({"weight": attack}, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(attack, protocol=int(how)))


@pytest.mark.parametrize("name", ["w.pt", "w.pkl", "w.bin"])
@pytest.mark.parametrize("how", ["torch", "old torch", "0", "2", "4", "5"])
def test_a_pickle_that_runs_code_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, name: str
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # must not open the door
    trace, path = tmp_path / "trace", tmp_path / name
    write_attack(path, Attack(trace), how)
    message = refusal(path, lambda: load(path))
    assert not trace.exists()
    assert message.startswith("refused, and nothing was run: its pickle ")
    assert "convert it to safetensors" in message
    if how in ("torch", "old torch", "0", "2"):
        assert f"{os.system.__module__}.system" in message


def test_the_attack_would_work_where_files_are_trusted(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(Attack(trace)))
    assert trace.exists()


@pytest.mark.parametrize("content", [nn.Linear(2, 2), {"state_dict": nn.Linear(2, 2)}, {"w": Path("x")}])
def test_pickled_objects_are_refused_by_name(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "w.pt"
    torch.save(content, path)
    message = refusal(path, lambda: load(path))
    assert "names torch.nn.modules.linear.Linear," in message or "names pathlib." in message


def test_torchscript_and_old_tar_files_are_refused(tmp_path: Path) -> None:
    path, inner = tmp_path / "w.tar", tmp_path / "inner"
    inner.touch()
    with tarfile.open(path, "w") as archive:
        archive.add(inner, "inner")
    assert refusal(path, lambda: load(path)).startswith("is a TorchScript or old tar file")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no dict of tensors"),
        ([torch.ones(2)], "holds no dict of tensors"),
        (torch.ones(2), "holds no dict of tensors"),
        ({"epoch": 3, "name": "x"}, "holds no dict of tensors"),
        ({"state_dict": {}}, "holds no dict of tensors"),
        ({"weight": torch.ones(2), "epoch": 3}, "entry 'epoch' is int, not a named tensor"),
        ({"weight": torch.ones(2), 1: torch.ones(2)}, "entry 1 is Tensor, not a named tensor"),
        ({"weight": torch.ones(2, 2).to_sparse()}, "tensor 'weight' is sparse"),
        ({"weight": torch.ones(2, device="meta")}, "tensor 'weight' is meta"),
        ({"a": torch.ones(2), "_orig_mod.a": torch.ones(2)}, "'a' and '_orig_mod.a' both mean 'a'"),
    ],
)
def test_torch_files_that_are_no_dict_of_tensors(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "w.pt"
    torch.save(content, path)
    assert message in refusal(path, lambda: load(path))


def test_safetensors_without_a_tensor(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({}, path)
    assert "holds no dict of tensors" in refusal(path, lambda: load(path))


# checking teachers


@pytest.mark.parametrize("expected", [network(), layout(network()), network().to("meta")])
def test_teachers_of_the_architecture_pass(state: State, expected: Any) -> None:
    assert check_teachers({"a": state, "b": dict(network().state_dict())}, expected) is None


def test_no_teacher_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected at least one teacher"):
        check_teachers({}, network())


def without(*names: str) -> Callable[[State], State]:
    return lambda state: {n: t for n, t in state.items() if n not in names}


def changed(name: str, **change: Any) -> Callable[[State], State]:
    def apply(state: State) -> State:
        tensor = state[name].clone() if name in state else torch.zeros(2)
        if "value" in change:
            tensor.view(-1)[-1] = change["value"]
        return {**state, name: tensor.reshape(change["shape"]) if "shape" in change else tensor.to(change.get("dtype"))}

    return apply


FAULTS: list[tuple[Callable[[State], State], str]] = [
    (without("0.bias", "3.bias"), "another architecture (missing '0.bias', '3.bias')"),
    (lambda _: {"x": torch.ones(2)}, "another architecture (missing '0.weight', '0.bias', '1.weight' and "),
    (changed("0.weight", shape=(4, 9)), "'0.weight' has shape (4, 9), expected (4, 1, 3, 3)"),
    (changed("3.bias", dtype=torch.int8), "'3.bias' is torch.int8, expected floating point"),
    (changed("3.weight", value=torch.nan), "'3.weight' holds NaN"),
    (changed("3.weight", value=torch.inf), "'3.weight' holds Inf"),
    (changed("1.bias", value=-torch.inf), "'1.bias' holds Inf"),
    (changed("1.running_var", value=torch.nan), "'1.running_var' holds NaN"),
]
FAULTS_OF_BUFFERS: list[tuple[Callable[[State], State], str]] = [
    (without("1.running_mean"), "another architecture (missing '1.running_mean')"),
    (changed("9.weight"), "another architecture (unexpected '9.weight'); name the one they were trained with, or save"),
    (lambda state: {f"net.{n}": t for n, t in state.items()}, "unexpected 'net.0.weight', 'net.0.bias', "),
    (lambda state: {f"a.b.{n}": t for n, t in state.items()}, "its names stand behind 'a.b.': save the state dict of"),
    (changed("1.running_mean", shape=(2, 2)), "'1.running_mean' has shape (2, 2), expected (4,)"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS)
@pytest.mark.parametrize("expected", [network(), layout(network())], ids=["module", "layout"])
def test_a_teacher_with_a_fault_is_named(
    state: State, expected: Any, fault: Callable[[State], State], message: str
) -> None:
    path = Path("teachers/b.safetensors")
    assert message in refusal(path, lambda: check_teachers({"a": state, str(path): fault(state)}, expected))


@pytest.mark.parametrize(("fault", "message"), FAULTS_OF_BUFFERS)
def test_a_module_also_knows_its_buffers(state: State, fault: Callable[[State], State], message: str) -> None:
    assert message in refusal(Path("b"), lambda: check_teachers({"a": state, "b": fault(state)}, network()))


def test_the_first_parameter_that_differs_is_named(state: State) -> None:
    wide = dict(nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 3)).state_dict())
    assert "'0.weight' has shape (8, 1, 3, 3), expected (4, 1, 3, 3)" in refusal(
        Path("b"), lambda: check_teachers({"a": state, "b": wide}, network())
    )


def test_faults_that_are_none(state: State) -> None:
    expected = network()
    expected.register_buffer("mask", torch.zeros(2))
    state = without("1.num_batches_tracked")(state) | {"mask": torch.tensor([0.0, -torch.inf])}
    check_teachers({"a": state, "b": {n: t.to(torch.float8_e5m2) for n, t in state.items()}}, expected)
    check_teachers({"a": {n: t.to(torch.float8_e4m3fn) for n, t in network().state_dict().items()}}, network())


def test_float8_weights_are_checked_too(state: State) -> None:
    bad = {**state, "3.bias": torch.tensor([0.0, 0.0, torch.nan]).to(torch.float8_e4m3fn)}
    assert "'3.bias' holds NaN" in refusal(Path("b"), lambda: check_teachers({"b": bad}, network()))


def test_tied_parameters_may_stand_under_one_name_or_equal_under_two() -> None:
    state = dict(Tied().state_dict())
    for names in ((), ("head.weight",), ("embedding.weight",)):
        check_teachers({"a": without(*names)(state)}, Tied())
    misshapen = {"head.weight": torch.zeros(3, 5)}
    assert "'head.weight' has shape (3, 5), expected (5, 3)" in refusal(
        Path("a"), lambda: check_teachers({"a": misshapen}, Tied())
    )
    unequal = {**state, "head.weight": state["head.weight"] + 1}
    assert "'head.weight' and 'embedding.weight' are one tied parameter" in refusal(
        Path("a"), lambda: check_teachers({"a": unequal}, layout(Tied()))
    )


# writing


def test_what_is_saved_is_loaded(tmp_path: Path, state: State) -> None:
    save(state, tmp_path / "w.safetensors")
    assert equal(load(tmp_path / "w.safetensors"), state)
    assert os.listdir(tmp_path) == ["w.safetensors"]
    assert safetensors.safe_open(tmp_path / "w.safetensors", "pt").metadata() == {"format": "pt"}


def test_text_is_saved_beside_the_tensors(tmp_path: Path, state: State) -> None:
    save(state, tmp_path / "w.safetensors", metadata={"about": "a, b\nc"})
    assert metadata(tmp_path / "w.safetensors") == {"format": "pt", "about": "a, b\nc"}
    assert equal(load(tmp_path / "w.safetensors"), state)


def test_files_without_text_have_none(tmp_path: Path, state: State) -> None:
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    assert metadata(tmp_path / "w.safetensors") == metadata(tmp_path / "w.pt") == {}


def test_text_of_a_broken_file_is_refused(tmp_path: Path, state: State) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(bytes_of(state, "safetensors")[:40])
    assert refusal(path, lambda: metadata(path)).startswith("is not a complete safetensors file (")
    path.unlink()
    assert refusal(path, lambda: metadata(path)) == "no such file; check the path"


def test_tensors_that_share_memory_are_saved_under_every_name(tmp_path: Path) -> None:
    buffer = torch.arange(12.0)
    state = {
        "whole": buffer,
        "view": buffer[2:8].view(2, 3),
        "transposed": buffer.view(3, 4).t(),
        "expanded": buffer[:1].expand(5),
        "parameter": nn.Parameter(buffer),
        "tied": buffer,
        "empty": torch.zeros(0, 3),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    save(state, tmp_path / "w.safetensors")
    loaded = load(tmp_path / "w.safetensors")
    assert equal(loaded, {n: t.detach() for n, t in state.items()})
    assert torch.equal(buffer, torch.arange(12.0))


def test_a_tied_network_survives_the_round_trip(tmp_path: Path) -> None:
    first, second = Tied(), Tied()
    save(first.state_dict(), tmp_path / "w.safetensors")
    second.load_state_dict(load(tmp_path / "w.safetensors"))
    assert torch.equal(first.head.weight, second.embedding.weight)


def test_files_get_the_rights_that_the_user_gives_new_files(tmp_path: Path) -> None:
    save({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    (tmp_path / "other").touch()
    assert stat.S_IMODE((tmp_path / "w.safetensors").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "other").stat().st_mode
    )


def test_an_existing_file_is_kept_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    old, new = {"a": torch.zeros(2)}, {"a": torch.ones(3)}
    save(old, path)
    assert "exists already" in refusal(path, lambda: save(new, path))
    assert equal(load(path), old)
    save(new, path, overwrite=True)
    assert equal(load(path), new)


@pytest.mark.parametrize(
    ("name", "message"),
    [("w.pt", "choose a name that ends in .safetensors"), ("none/w.safetensors", "does not exist; create it first")],
)
def test_places_where_nothing_can_be_written(tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / name
    assert message in refusal(path, lambda: save({"a": torch.ones(2)}, path))
    assert os.listdir(tmp_path) == []


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.mkdir()
    assert "is a folder" in refusal(path, lambda: save({"a": torch.ones(2)}, path, overwrite=True))


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_failure_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "w.safetensors"
    old = {"a": torch.zeros(2)}
    save(old, path)

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, fail)
        message = refusal(path, lambda: save({"a": torch.ones(2)}, path, overwrite=True))
    assert message == "cannot be written: No space left on device; nothing was changed"
    assert os.listdir(tmp_path) == ["w.safetensors"]
    assert equal(load(path), old)


@pytest.mark.parametrize("tensor", [torch.ones(2, 2).to_sparse(), torch.ones(2, device="meta")], ids=["sparse", "meta"])
def test_tensors_without_plain_data_are_refused(tmp_path: Path, tensor: Tensor) -> None:
    path = tmp_path / "w.safetensors"
    assert "cannot be written" in refusal(path, lambda: save({"a": tensor}, path))
    assert os.listdir(tmp_path) == []


def test_only_tensors_are_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="save: state: expected tensors only, but 'epoch' is int"):
        save({"a": torch.ones(2), "epoch": 3}, tmp_path / "w.safetensors")  # type: ignore[dict-item]
    assert os.listdir(tmp_path) == []
