"""Wires, permutations that keep the function, and the activation matching that finds them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightformer import students
from weightformer.align import Aligner, Place, Wiring, align, permute, trace, unit_rows
from weightformer.evaluate import recalibrate, with_state


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Functional(nn.Module):
    """Functions and methods instead of modules, an average over positions, a gate per channel, a scaled sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.deep = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm = nn.BatchNorm2d(6)
        self.squeeze = nn.Conv2d(6, 3, 1)
        self.excite = nn.Conv2d(3, 6, 1)
        self.second = nn.Conv2d(6, 5, 3, padding=1)
        self.hidden = nn.Linear(5 * 49, 7)
        self.between = nn.LayerNorm(7)
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = x + 0.5 * self.norm(self.deep(x))
        x = x * torch.sigmoid(self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()))
        x = F.max_pool2d(F.gelu(self.second(x)), 2)
        return self.head(self.between(F.relu(self.hidden(torch.flatten(x, 1)))))


class Opaque(nn.Module):
    """Operations that mix channels or are not known: the wires that meet them must not be permuted."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.normed = nn.Conv2d(6, 6, 3, padding=1)
        self.group_norm = nn.GroupNorm(2, 6)
        self.free = nn.Conv2d(6, 8, 1)
        self.split = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(2 * 14, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.first(x))
        x = self.group_norm(self.normed(x))
        one, two = self.split(self.free(x).relu()).chunk(2, dim=1)
        return self.head((one * two).mean(3).flatten(1))


# Network, side of its images, sizes of the wires that may be permuted.
NETWORKS = {
    "vgg": (lambda: students.create("vgg"), 14, [16, 32, 64]),
    "resnet": (lambda: students.create("resnet"), 14, [16, 16, 32, 32, 64, 64]),
    "mlp": (lambda: students.create("mlp"), 8, [48, 48]),
    "vit": (lambda: students.create("vit"), 14, [96] * 4),
    "functional": (Functional, 14, [3, 5, 6, 7]),
    "opaque": (Opaque, 14, [8]),
}


def network(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Return a float64 network whose every parameter and statistic differs from channel to channel, and images."""
    build, size, _ = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build().double().eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, 0.1, 0.3)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)  # no channel is dead: dead ones are all alike
    images = torch.randn(30, 1, size, size, generator=generator(), dtype=torch.float64)
    return recalibrate(model, images + 0.2), images


def random_orders(wiring: Wiring, seed: int = 0) -> list[Tensor]:
    return [torch.randperm(wire.size, generator=generator(seed + i)) for i, wire in enumerate(wiring.wires)]


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images)


def assert_same_function(one: Tensor, other: Tensor) -> None:
    """Only the order of float64 sums may differ: far below 1e-10 of the largest value for these small networks."""
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10 * one.abs().max().item())


@pytest.mark.parametrize("name", NETWORKS)
def test_wires_are_the_hidden_channels_that_may_be_permuted(name: str) -> None:
    model, images = network(name)
    assert sorted(wire.size for wire in trace(model, images).wires) == sorted(NETWORKS[name][2])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_permuted_network_computes_the_same_function(name: str) -> None:
    model, images = network(name)
    wiring, state = trace(model, images), model.state_dict()
    before = {k: v.clone() for k, v in state.items()}
    permuted = permute(state, wiring, random_orders(wiring))
    assert_same_function(outputs(model, images), outputs(with_state(model, permuted), images))
    assert all(torch.equal(before[k], state[k]) for k in state)
    for wire in wiring.wires:
        assert all(not torch.equal(permuted[place.name], state[place.name]) for place in wire.places)


def test_activations_are_compared_where_there_are_any() -> None:
    def probes(name: str) -> list[str]:
        return [probe for wire in trace(*network(name)).wires for probe in wire.probes]

    assert probes("vgg") == ["relu1", "relu2", "relu3"]
    assert probes("opaque") == ["relu"]  # the method's node


def test_layers_that_are_added_up_share_one_wire_and_flatten_makes_blocks() -> None:
    model, images = network("resnet")
    stage = next(w for w in trace(model, images).wires if Place("block2.conv2.weight", 0) in w.places)
    assert {
        Place("block2.shortcut.conv.weight", 0),
        Place("block2.norm2.running_var", 0),
        Place("block3.conv1.weight", 1),
    } <= set(stage.places)
    model, images = network("vgg")
    assert any(Place("head.weight", 1, block=9) in w.places for w in trace(model, images).wires)


@pytest.mark.parametrize("name", ["vgg", "resnet", "functional"])
def test_unit_rows_have_length_one_and_keep_the_function(name: str) -> None:
    model, images = network(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0  # the scale divides out exactly only without it
    wiring = trace(model, images)
    scaled = unit_rows(model.state_dict(), wiring)
    assert wiring.normed
    for layer, _ in wiring.normed:
        lengths = scaled[f"{layer}.weight"].flatten(1).norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths))
    assert_same_function(outputs(model, images), outputs(with_state(model, scaled), images))


def test_a_row_of_zeros_stays() -> None:
    model, images = network("vgg")
    model.conv2.weight.data[3] = 0
    scaled = unit_rows(model.state_dict(), trace(model, images))
    assert all(t.isfinite().all() for t in scaled.values() if t.is_floating_point())
    assert scaled["conv2.weight"][3].abs().max() == 0


@pytest.mark.parametrize("name", ["vgg", "resnet", "mlp", "vit", "functional"])
def test_a_shuffled_copy_of_the_anchor_is_brought_back(name: str) -> None:
    model, images = network(name)
    aligner = Aligner(model, images)
    orders = random_orders(aligner.wiring)
    shuffled = permute(model.state_dict(), aligner.wiring, orders)
    for order, found in zip(orders, aligner.permutations(shuffled), strict=True):
        assert torch.equal(order[found], torch.arange(len(order)))
    expected, aligned = aligner(model), aligner(shuffled)
    assert all(torch.equal(expected[k], aligned[k]) for k in expected)


def test_scale_and_stale_statistics_of_a_network_do_not_matter() -> None:
    model, images = network("vgg")
    aligner = Aligner(model, images)
    other = {k: v.clone() for k, v in network("vgg", seed=1)[0].state_dict().items()}
    expected = aligner.permutations(other)
    other["conv1.weight"] *= 5
    other["norm2.running_mean"] += 3
    other["norm3.running_var"] *= 7
    assert all(torch.equal(a, b) for a, b in zip(expected, aligner.permutations(other), strict=True))


@pytest.mark.parametrize("seed", [0, 3, 5])  # 3 and 5: uncentred products or covariances prefer other orders
def test_the_assignment_maximises_the_correlation_with_the_anchor(seed: int) -> None:
    """On a network of one hidden layer the claim can be checked against all orders."""
    from itertools import permutations

    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.Sigmoid(), nn.Linear(5, 2)).double()

    with torch.random.fork_rng():
        anchor, other = build(2 * seed), build(2 * seed + 1)
    images = torch.randn(50, 1, 3, 3, generator=generator(), dtype=torch.float64)
    correlation = torch.corrcoef(torch.cat([anchor[:3](images), other[:3](images)], 1).T)[:5, 5:]
    best = max(permutations(range(5)), key=lambda order: sum(correlation[i, j] for i, j in enumerate(order)))
    (found,) = Aligner(anchor, images).permutations(other.state_dict())
    assert found.tolist() == list(best)


def test_align_takes_modules_and_states_and_changes_neither_them_nor_the_anchor() -> None:
    (anchor, images), (other, _) = network("vgg"), network("vgg", seed=1)
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (anchor, other)]
    from_module, from_state = align([other, other.state_dict()], anchor, images)
    assert all(torch.equal(from_module[k], from_state[k]) for k in from_module)
    for model, state in zip((anchor, other), before, strict=True):
        assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    changed = Aligner(anchor, images, unit=False)(other)
    assert_same_function(outputs(other, images), outputs(with_state(other, changed), images))


def test_a_model_that_cannot_be_traced_is_refused_in_one_line() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="align: model: Branching cannot be traced") as error:
        trace(Branching(), torch.zeros(1, 1, 2, 2))
    assert "\n" not in str(error.value)


def test_tied_parameters_are_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[3].weight = model[1].weight
    with pytest.raises(ValueError, match=r"align: model: .* tied"):
        trace(model, torch.zeros(1, 1, 2, 2))


def test_a_norm_over_tokens_says_nothing_about_the_rows_of_a_linear_layer() -> None:
    model = nn.Sequential(nn.Flatten(2), nn.Linear(4, 3), nn.BatchNorm1d(5), nn.Flatten(), nn.Linear(15, 2))
    assert trace(model, torch.zeros(2, 5, 2, 2)).normed == ()


def test_a_layer_that_runs_twice_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x))

    with pytest.raises(ValueError, match="align: model: conv runs more than once"):
        trace(Twice(), torch.zeros(1, 1, 2, 2))
