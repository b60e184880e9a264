"""Checkpoints of the public WeightFormer code: the architecture as described, in plain PyTorch, against our modules."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightformer import compat, rows
from weightformer.checkpoints import CheckpointError
from weightformer.compat import PublicWeightFormer
from weightformer.state import State


def student() -> nn.Sequential:
    """Layers of 6, 6 and 3 rows; the first two share their position codes."""
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1)),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(6, 3),
        )
    )


# The public code predicts some of the weights.
PREDICTED = ("features.0.weight", "fc.weight", "features.3.weight")


def teachers(count: int) -> list[State]:
    found = []
    for seed in range(count):
        torch.manual_seed(seed)
        state = student().double().state_dict()
        found.append({n: torch.randn_like(t) if t.is_floating_point() else t + seed for n, t in state.items()})
    return found


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.fc_q, self.fc_k, self.fc_v, self.fc_o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, masked: Tensor) -> Tensor:  # [tokens, d], [tokens]
        query, key, value = (
            f(x).unflatten(1, (self.heads, -1)).transpose(0, 1) for f in (self.fc_q, self.fc_k, self.fc_v)
        )
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        weights = scores.masked_fill(masked, -torch.inf).softmax(-1)
        return self.fc_o((weights @ value).transpose(0, 1).flatten(1))


class Encoder(nn.Module):
    """The public code's encoder from its description, in evaluation mode, for one layer of the student at a time."""

    def __init__(self, widths: dict[str, int], d: int, heads: int, blocks: int, hidden: int, tokens: int) -> None:
        super().__init__()
        self.fc_dict = nn.ModuleDict({name: nn.Linear(width, d) for name, width in widths.items()})
        self.inverse_fc_dict = nn.ModuleDict({name: nn.Linear(d, width) for name, width in widths.items()})
        self.embeddings = nn.Module()
        self.embeddings.position_embeddings = nn.Embedding(tokens, d)
        self.embeddings.segment_type_embedding = nn.Embedding(2, d)
        self.embeddings.register_buffer("position_ids", torch.arange(tokens)[None])
        self.layer_norm = nn.LayerNorm(d)
        self.transforms = nn.ModuleList()
        for _ in range(blocks):
            block = nn.Module()
            block.mhatt, block.pwff = nn.Module(), nn.Module()
            block.mhatt.attention, block.mhatt.layer_norm = Attention(d, heads), nn.LayerNorm(d)
            block.pwff.fc1, block.pwff.fc2, block.pwff.layer_norm = (
                nn.Linear(d, hidden), nn.Linear(hidden, d), nn.LayerNorm(d),
            )  # fmt: skip
            self.transforms.append(block)

    def tokens(self, x: Tensor, name: str, quirks: bool) -> Tensor:
        n = len(x) // 2
        place = torch.arange(2 * n)
        segment = (place > n if quirks else place >= n).long()
        codes = self.embeddings.segment_type_embedding(segment) + self.embeddings.position_embeddings(place)
        return self.layer_norm(F.relu(self.fc_dict[name](x)) + codes)

    def forward(self, x: Tensor, name: str, quirks: bool = False) -> Tensor:  # [2 n, r] -> [n, r]
        x = self.tokens(x, name, quirks)
        masked = x.sum(-1) == 0 if quirks else torch.zeros(len(x), dtype=torch.bool)
        for block in self.transforms:
            x = block.mhatt.layer_norm(x + block.mhatt.attention(x, masked))
            x = block.pwff.layer_norm(x + block.pwff.fc2(F.relu(block.pwff.fc1(x))))
        return self.inverse_fc_dict[name](x[: len(x) // 2])


def key(name: str) -> str:
    return name.replace(".", "")


def encoder(d: int = 8, heads: int = 2, blocks: int = 2, hidden: int = 10, tokens: int = 15) -> Encoder:
    torch.manual_seed(7)
    shapes = {name: tensor.shape for name, tensor in student().state_dict().items()}
    found = Encoder({key(n): shapes[n][1:].numel() for n in PREDICTED}, d, heads, blocks, hidden, tokens).double()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return found


def by_encoder(public: Encoder, group: list[State], quirks: bool = False) -> dict[str, Tensor]:
    """What the public code predicts from two teachers."""
    found = {}
    for name in PREDICTED:
        x = torch.cat([state[name].flatten(1) for state in group])
        found[name] = public(x, key(name), quirks).view(group[0][name].shape)
    return found


def with_padding(public: Encoder) -> Encoder:
    """The same with tokens that sum to exactly zero, at the even positions.

    LayerNorm lets only the first two channels through, with opposite signs, and these two are equal at even positions.
    """
    with torch.no_grad():
        public.layer_norm.weight.zero_()
        public.layer_norm.weight[:2] = torch.tensor([1.5, -1.5])
        public.layer_norm.bias.zero_()
        for module in public.fc_dict.values():
            module.weight[1], module.bias[1] = module.weight[0], module.bias[0]
        for table in (public.embeddings.position_embeddings.weight, public.embeddings.segment_type_embedding.weight):
            table[:, 1] = table[:, 0]
        public.embeddings.position_embeddings.weight[1::2, 1] += 0.5
    return public


# Small, with as few positions as there can be, and at full size.
SIZES: dict[str, Callable[[], Encoder]] = {
    "small": encoder,
    "one block": lambda: encoder(blocks=1),
    "just enough positions": lambda: encoder(tokens=12),
    "as published": lambda: encoder(512, 8, 6, 2048, 2048),
}


@pytest.mark.parametrize("quirks", [False, True], ids=["", "quirks"])
@pytest.mark.parametrize("size", SIZES)
def test_outputs_and_all_gradients_are_those_of_the_described_architecture(size: str, quirks: bool) -> None:
    public = SIZES[size]()
    compare(public, quirks, heads=public.transforms[0].mhatt.attention.heads)


def test_padding_is_masked_and_the_rest_is_as_described() -> None:
    public = with_padding(encoder())
    x = torch.cat([state["fc.weight"] for state in teachers(2)])
    found = public.tokens(x, "fcweight", quirks=True).sum(-1) == 0
    assert found.tolist() == [True, False, True, False, True, False]
    compare(public, quirks=True)


def compare(public: Encoder, quirks: bool, heads: int = 2) -> None:
    """Hold outputs and gradients for two groups of teachers against `public`."""
    pool = teachers(4)
    groups = [pool[:2], pool[2:]]
    model = compat.load(public.state_dict(), student(), heads=heads, strict_quirks=quirks)
    assert model.position.dtype == torch.float64 and not model.training
    for state in pool:
        for name in PREDICTED:
            state[name].requires_grad_()
    expected = [by_encoder(public, group, quirks) for group in groups]
    found = model(model.pack(groups), [2, 2])
    draws = [{name: torch.randn_like(tensor) for name, tensor in one.items()} for one in expected]
    inputs = [state[name] for state in pool for name in PREDICTED]

    def gradients(outputs: list[dict[str, Tensor]], module: nn.Module) -> tuple[dict[str, Tensor], list[Tensor]]:
        loss = sum((one[n] * draw[n]).sum() for one, draw in zip(outputs, draws, strict=True) for n in draw)
        names, parameters = zip(*module.named_parameters(), strict=True)
        got = torch.autograd.grad(loss, [*parameters, *inputs])
        return dict(zip(names, got, strict=False)), list(got[len(names) :])

    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in other:
            torch.testing.assert_close(one[name], other[name])
    ours, our_inputs = gradients(found, model)
    theirs, their_inputs = gradients(expected, public)
    renamed = compat.renamed(theirs, [key(name) for name in PREDICTED])
    assert ours.keys() == renamed.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], renamed[name], msg=lambda m, name=name: f"{name}: {m}")
    for one, other in zip(our_inputs, their_inputs, strict=True):
        torch.testing.assert_close(one, other)


def outputs(quirks: bool, public: Encoder) -> dict[str, Tensor]:
    with torch.no_grad():
        return by_encoder(public, teachers(2), quirks)


def test_each_quirk_matters() -> None:
    """So that the tests above could fail: a quirk that changed nothing would agree with anything."""
    for public in (encoder(), with_padding(encoder())):
        one, other = outputs(False, public), outputs(True, public)
        assert not any(torch.allclose(one[name], other[name]) for name in PREDICTED)
    plain = with_padding(encoder())
    first = plain.embeddings.segment_type_embedding.weight
    with torch.no_grad():
        first[1] = first[0]  # leaves the mask alone as the difference
    assert not torch.allclose(outputs(True, plain)["fc.weight"], outputs(False, plain)["fc.weight"])
    compare(plain, quirks=True)


def test_where_all_is_padding_nothing_is_attended_to() -> None:
    public = encoder()
    with torch.no_grad():
        public.layer_norm.weight.zero_()
        public.layer_norm.bias.zero_()
    model = compat.load(public.state_dict(), student(), heads=2, strict_quirks=True)
    assert outputs(True, public)["fc.weight"].isnan().all()
    assert model.predict(teachers(2))["fc.weight"].isfinite().all()


# the model


@pytest.fixture(scope="module")
def model() -> PublicWeightFormer:
    return compat.load(encoder().state_dict(), student(), heads=2)


def test_what_is_not_predicted_is_the_first_teachers(model: PublicWeightFormer) -> None:
    group = teachers(2)
    found = model.predict(group)
    student().double().load_state_dict(found)
    expected = outputs(False, encoder())
    for name, tensor in found.items():
        if name in PREDICTED:
            torch.testing.assert_close(tensor, expected[name])
        else:
            assert torch.equal(tensor, group[0][name])


@pytest.mark.parametrize("counts", [[1], [3], [2, 3]])
def test_exactly_two_teachers(model: PublicWeightFormer, counts: list[int]) -> None:
    pool = teachers(sum(counts))
    groups = [pool[sum(counts[:i]) : sum(counts[: i + 1])] for i in range(len(counts))]
    with pytest.raises(
        ValueError, match=r"teachers: expected exactly 2 in every group, got [13]; the public code reads"
    ):
        model(model.pack(groups), counts)


def test_position_codes_bound_the_rows() -> None:
    message = (
        r"'features.0.weight' has 6 rows, 12 for two teachers, but there are position codes for 11 \(the public code"
    )
    with pytest.raises(CheckpointError, match=message) as caught:
        compat.load(encoder(tokens=11).state_dict(), student(), heads=2)
    assert "at most 2048 tokens" in str(caught.value)


def test_a_file_is_read_with_what_trainers_put_around_it(tmp_path: Path) -> None:
    public = encoder().float()
    state = {f"module.{name}": tensor for name, tensor in public.state_dict().items()}
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "w.pth")
    found = compat.load(tmp_path / "w.pth", rows.layout(student()), heads=2)
    assert found.norm.weight.dtype == torch.float32
    expected = compat.load(public.state_dict(), student(), heads=2).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())


def test_it_can_be_fitted_further(model: PublicWeightFormer) -> None:
    """A StudentModel like any other: the student's loss reaches every parameter, and there is nothing to penalise."""
    (weights,) = model(model.pack([teachers(2)]), [2])
    scores = torch.func.functional_call(student().double(), weights, (torch.randn(4, 2, 5, 5).double(),))
    loss = scores.square().mean() + model.penalty(model.pack([teachers(2)]), [2], 1.0, 1.0)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.fast_parameters() == []


# names


class Ambiguous(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(OrderedDict(b1=nn.Linear(4, 3)))
        self.a_ = nn.Linear(4, 3)
        self.ab1 = nn.Linear(4, 3)


def renamed_layer(old: str, new: str) -> State:
    return {name.replace(f"dict.{old}.", f"dict.{new}."): t for name, t in encoder().state_dict().items()}


def test_layers_of_other_names_are_said_with_names() -> None:
    state = renamed_layer("fcweight", "head")
    with pytest.raises(CheckpointError, match=r"the layer 'head' is no parameter of the student; say which it is with"):
        compat.load(state, student(), heads=2)
    found = compat.load(state, student(), heads=2, names={"head": "fc.weight"})
    assert [layer.name for layer in found.layout.layers] == list(PREDICTED)


def test_names_that_fit_twice_have_to_be_said() -> None:
    state = {n.replace("dict.fcweight.", "dict.ab1weight."): t for n, t in encoder().state_dict().items()}
    state = {n: t for n, t in state.items() if "features" not in n}
    state |= {
        "fc_dict.ab1weight.weight": torch.zeros(8, 4),
        "inverse_fc_dict.ab1weight.weight": torch.zeros(4, 8),
        "inverse_fc_dict.ab1weight.bias": torch.zeros(4),
    }
    with pytest.raises(
        CheckpointError, match=r"the layer 'ab1weight' is 'a.b1.weight' or 'ab1.weight'; say which it is"
    ):
        compat.load(state, Ambiguous(), heads=2)
    found = compat.load(state, Ambiguous(), heads=2, names={"ab1weight": "a.b1.weight"})
    assert found.layout.layers[0].name == "a.b1.weight"


def changed(**tensors: Tensor | None) -> State:
    """The checkpoint with some tensors replaced; `a__b` means `a.b`, None leaves it out."""
    state = dict(encoder().state_dict())
    for name, tensor in tensors.items():
        state[name.replace("__", ".")] = tensor  # type: ignore[assignment]
    return {name: tensor for name, tensor in state.items() if tensor is not None}


LINEAR = {"weight": torch.zeros(2, 2)}
REFUSED: dict[str, tuple[Callable[[], State], dict[str, Any], str]] = {
    "of another kind": (lambda: dict(student().state_dict()), {}, "has no fc_dict.LAYER.weight; give a checkpoint of"),
    "our own": (
        lambda: dict(compat.load(encoder().state_dict(), student(), heads=2).state_dict()),
        {},
        "has no fc_dict",
    ),
    "no LayerNorm": (lambda: changed(layer_norm__weight=None), {}, "'layer_norm.weight' is missing; give a whole"),
    "no codes": (
        lambda: changed(embeddings__position_embeddings__weight=None),
        {},
        "position_embeddings.weight' is miss",
    ),
    "no output": (
        lambda: changed(inverse_fc_dict__fcweight__bias=None),
        {},
        "'inverse_fc_dict.fcweight.bias' is missing",
    ),
    "no embedder's bias": (lambda: changed(fc_dict__fcweight__bias=None), {}, "'fc_dict.fcweight.bias' is missing"),
    "no blocks": (
        lambda: {n: t for n, t in encoder().state_dict().items() if not n.startswith("transforms.")},
        {},
        "'transforms.0' is missing",
    ),
    "a block too few": (
        lambda: {n: t for n, t in encoder().state_dict().items() if not n.startswith("transforms.0.")},
        {},
        "'transforms.0.mhatt.layer_norm.weight' is missing",
    ),
    "a block far away": (
        lambda: changed(transforms__999999999__x=torch.zeros(1)),
        {},
        "transforms.2.mhatt.layer_norm.wei",
    ),
    "a mask": (
        lambda: changed(learn_mask_attention__weight=torch.zeros(4)),
        {},
        "the public code's variant with a mask",
    ),
    "another tensor": (
        lambda: changed(extra=torch.zeros(1)),
        {},
        "'extra' is not of the public code's encoder; leave it",
    ),
    "NaN": (
        lambda: changed(layer_norm__bias=torch.full((8,), torch.nan)),
        {},
        "'layer_norm.bias' holds NaN, Inf or whole",
    ),
    "whole numbers": (
        lambda: changed(layer_norm__bias=torch.ones(8, dtype=torch.int64)),
        {},
        "holds NaN, Inf or whole",
    ),
    "rows of another width": (
        lambda: changed(fc_dict__fcweight__weight=torch.zeros(8, 7)),
        {},
        "'fc_dict.fcweight.weight' has shape (8, 7), but 'fc.weight' has rows of 6 numbers; name the architecture",
    ),
    "an embedder without a shape": (
        lambda: changed(fc_dict__fcweight__weight=torch.zeros(())),
        {},
        "has shape (), but",
    ),
    "a LayerNorm without a shape": (lambda: changed(layer_norm__weight=torch.zeros(())), {}, "index"),
    "shapes that do not fit": (lambda: changed(layer_norm__bias=torch.zeros(9)), {}, "size mismatch for norm.bias"),
    "products of two widths": (
        lambda: changed(transforms__0__mhatt__attention__fc_q__weight=torch.zeros(8, 9)),
        {},
        "Sizes of tensors must match",
    ),
    "heads": (lambda: changed(), {"heads": 3}, "heads: expected a divisor of width=8, got 3"),
    "a name too many": (
        lambda: changed(),
        {"names": {"x": "fc.weight"}},
        "names={'x': ...} is no layer here; there are features0weight, fcweight, features3weight",
    ),
    "a name of nothing": (
        lambda: changed(),
        {"names": {"fcweight": "fc.wait"}},
        "'fcweight' is no parameter of the stud",
    ),
    "two names for one": (
        lambda: changed(),
        {"names": {"fcweight": "features.3.weight"}},
        "the layers 'fcweight' and 'features3weight' are both 'features.3.weight'; correct names=",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_checkpoints_are_refused_in_one_line(kind: str) -> None:
    state, options, message = REFUSED[kind]
    with pytest.raises(CheckpointError) as caught:
        compat.load(state(), student(), **{"heads": 2, **options})
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith("compat.load: source: ")
