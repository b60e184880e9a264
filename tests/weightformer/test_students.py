from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from weightformer import students


@pytest.mark.parametrize("name", students.names())
@pytest.mark.parametrize("size, channels, classes", [(14, 1, 10), (28, 1, 10), (32, 3, 100), (8, 1, 3)])
def test_ours_take_images_of_any_usual_size(name: str, size: int, channels: int, classes: int) -> None:
    model = students.create(name, classes=classes, channels=channels, size=size)
    assert model(torch.randn(2, channels, size, size)).shape == (2, classes)


@pytest.mark.parametrize(
    "name, size, count",
    # vgg: 9*16 + 9*16*32 + 9*32*64 weights, 2*(16+32+64) of the norms, 577 * 10 of the head on 3x3 positions.
    [("vgg", 14, 29_178), ("vgg", 28, 54_778), ("mlp", 8, 64 * 48 + 48 + 48 * 48 + 48 + 48 * 10 + 10)],
)
def test_sizes_are_the_recipes(name: str, size: int, count: int) -> None:
    assert sum(p.numel() for p in students.create(name, size=size).parameters()) == count


def test_vgg_has_no_convolution_bias() -> None:
    assert [n for n, _ in students.create("vgg").named_parameters() if n.startswith("conv")] == [
        "conv1.weight",
        "conv2.weight",
        "conv3.weight",
    ]


@pytest.mark.parametrize("name, norm", [("vgg", True), ("resnet", True), ("vit", False), ("mlp", False)])
def test_which_have_batch_norm(name: str, norm: bool) -> None:
    assert any(isinstance(m, nn.BatchNorm2d) for m in students.create(name).modules()) == norm


def test_resnet_adds_its_input_back() -> None:
    block = students.Block(8, 8, 1).eval()
    nn.init.zeros_(block.norm2.weight)
    x = torch.rand(2, 8, 6, 6)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    "name, kind",
    [
        ("resnet18", "torchvision.models.resnet"),
        ("torchvision:resnet18", "torchvision.models.resnet"),
        ("timm:resnet18", "timm.models.resnet"),
        ("resnet10t", "timm.models.resnet"),
        ("vit", "timm.models.vision_transformer"),
        ("resnet", "torch.nn.modules.container"),
    ],
)
def test_plain_names_are_ours_then_torchvisions_then_timms(name: str, kind: str) -> None:
    assert type(students.create(name)).__module__ == kind


@pytest.mark.parametrize(
    "name, channels, size",
    [("timm:resnet10t", 1, 64), ("timm:vit_tiny_patch16_224", 1, 64), ("torchvision:vit_b_32", None, 64)],
)
def test_library_networks_take_classes_channels_and_size(name: str, channels: int | None, size: int) -> None:
    model = students.create(name, classes=7, channels=channels, size=size).eval()
    assert model(torch.randn(2, channels or 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", ["vgg", "vit", "timm:resnet10t"])
def test_seed_decides_and_leaves_the_global_generator_alone(name: str) -> None:
    before = torch.get_rng_state()
    one, two, other = (students.create(name, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize(
    "name, head",
    [
        ("vgg", "head"),
        ("resnet", "head"),
        ("vit", "head"),
        ("mlp", "head"),
        ("resnet18", "fc"),
        ("vgg11", "classifier.6"),
    ],
)
def test_head_is_the_last_linear_layer(name: str, head: str) -> None:
    with torch.device("meta"):
        assert students.head(students.create(name)) == head


def test_a_network_without_linear_layer_has_no_head() -> None:
    with pytest.raises(ValueError, match="head: model: Conv2d has no linear layer"):
        students.head(nn.Conv2d(1, 1, 1))


@pytest.mark.parametrize(
    "name, suggestion",
    [
        ("vgf", "vgg"),
        ("resnet5O", "resnet50"),
        ("timm:vit_tiny", "vit_tiny_patch16_224"),
        ("torchvision:convnext_huge", "convnext_large"),
        ("", "vgg"),
        ("vgg:vgg", "vgg"),
    ],
)
def test_unknown_names_suggest_the_nearest(name: str, suggestion: str) -> None:
    with pytest.raises(ValueError, match=f"no network is called {name!r}; nearest: .*{suggestion}") as caught:
        students.create(name)
    assert "\n" not in str(caught.value)


def test_suggestions_come_from_the_library_named() -> None:
    with pytest.raises(ValueError) as caught:
        students.create("torchvision:resnet5O")
    assert "resnet51q" not in str(caught.value)  # timm's


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "vgg", "size": 3}, "create: size: expected at least 4 pixels for 'vgg', got 3"),
        ({"name": "vgg", "classes": 0}, "create: classes: expected a positive number, got 0"),
        ({"name": "vit", "size": 15}, "create: size: 'vit' cuts patches of 2 pixels, so 15 does not fit; try 14"),
        ({"name": "torchvision:resnet18", "channels": 1}, "create: channels: torchvision's 'resnet18' takes 3, got 1"),
        ({"name": "torchvision:vit_b_32", "size": 33}, "create: 'vit_b_32' cannot be built .*indivisible"),
    ],
)
def test_impossible_requests_are_one_line(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        students.create(**arguments)
    assert "\n" not in str(caught.value)


def test_our_convolutions_need_neither_torchvision_nor_timm() -> None:
    """Worker processes import this module; two seconds each would be lost on libraries they do not use."""
    code = (
        "import sys; from weightformer import students; students.create('vgg'); "
        "print([m for m in ('timm', 'torchvision') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
