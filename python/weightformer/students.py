"""Student and teacher networks by name: four small ones of our own, every one of torchvision and timm.

torchvision and timm are imported when one of their networks is asked for, so that worker processes start fast.
"""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from weightformer import bounds


def vgg(classes: int, channels: int, size: int) -> nn.Sequential:
    """A small VGG with BatchNorm: three 3x3 convolutions (16, 32, 64) without bias, two poolings, one linear layer."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (fan_in, width) in enumerate(pairwise((channels, 16, 32, 64)), start=1):
        layers[f"conv{i}"] = nn.Conv2d(fan_in, width, 3, padding=1, bias=False)
        layers[f"norm{i}"] = nn.BatchNorm2d(width)
        layers[f"relu{i}"] = nn.ReLU()
        if i < 3:
            layers[f"pool{i}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(64 * (size // 4) ** 2, classes)
    return nn.Sequential(layers)


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a shortcut (arXiv 1512.03385, figure 2)."""

    def __init__(self, fan_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if fan_in != width or stride != 1:
            self.shortcut = nn.Sequential(
                OrderedDict(conv=nn.Conv2d(fan_in, width, 1, stride, bias=False), norm=nn.BatchNorm2d(width))
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet(classes: int, channels: int, size: int) -> nn.Sequential:
    """A small residual network: a 3x3 stem, one block each of 16, 32 and 64 channels, global average pooling."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(channels, 16, 3, padding=1, bias=False),
            norm=nn.BatchNorm2d(16),
            relu=nn.ReLU(),
            block1=Block(16, 16, 1),
            block2=Block(16, 32, 2),
            block3=Block(32, 64, 2),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            head=nn.Linear(64, classes),
        )
    )


def vit(classes: int, channels: int, size: int) -> nn.Module:
    """A small vision transformer: width 48, four blocks of four heads, patches of about a seventh of the side."""
    from timm.models.vision_transformer import VisionTransformer

    patch = max(1, size // 7)
    if size % patch:
        fits = size // patch * patch
        raise ValueError(f"create: size: 'vit' cuts patches of {patch} pixels, so {size} does not fit; try {fits}")
    return VisionTransformer(
        img_size=size, patch_size=patch, in_chans=channels, num_classes=classes,
        embed_dim=48, depth=4, num_heads=4, mlp_ratio=2.0,
    )  # fmt: skip


def mlp(classes: int, channels: int, size: int) -> nn.Sequential:
    """Two hidden layers of 48 units, no normalisation."""
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            linear1=nn.Linear(channels * size**2, 48),
            relu1=nn.ReLU(),
            linear2=nn.Linear(48, 48),
            relu2=nn.ReLU(),
            head=nn.Linear(48, classes),
        )
    )


# Name -> builder and the side of the images it is made for when the caller names none.
_OURS: dict[str, tuple[Callable[[int, int, int], nn.Module], int]] = {
    "vgg": (vgg, 14),
    "resnet": (resnet, 14),
    "vit": (vit, 14),
    "mlp": (mlp, 8),
}


def names() -> tuple[str, ...]:
    """Return the names of our own small networks."""
    return tuple(_OURS)


def known() -> list[str]:
    """Return every name that `create` takes, without the library in front of it."""
    return list(dict.fromkeys([*_OURS, *_torchvision_names(), *_timm_names()]))


def create(
    name: str,
    *,
    classes: int = 10,
    channels: int | None = None,
    size: int | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Return a freshly initialised network.

    Args:
        name: one of `names()`, "torchvision:NAME", "timm:NAME", or a plain NAME, looked up in that order.
        classes: outputs of the last layer.
        channels: input channels; None means 1 for ours and 3 for the libraries'.
        size: side of the square input images; None means the network's own default.
        seed: seed of the initial weights; None draws from torch's global generator.

    Raises:
        ValueError: unknown name (the nearest ones are suggested), or a size or channel count the network cannot take.
    """
    if seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return create(name, classes=classes, channels=channels, size=size)
    for what, value in (("classes", classes), ("channels", channels), ("size", size)):
        if value is not None and value < 1:
            raise ValueError(f"create: {what}: expected a positive number, got {value}")
        bounds.check_most("create", what, value or 0)
    library, _, plain = name.rpartition(":")
    if plain in _OURS and not library:
        build, default = _OURS[plain]
        side = default if size is None else size
        if side < 4:
            raise ValueError(f"create: size: expected at least 4 pixels for {name!r}, got {side}")
        return build(classes, 1 if channels is None else channels, side)
    if library in ("", "torchvision") and plain in _torchvision_names():
        return _torchvision(plain, classes, channels, size)
    if library in ("", "timm") and plain in _timm_names():
        return _timm(plain, classes, channels, size)
    raise ValueError(f"create: name: no network is called {name!r}; nearest: {', '.join(_nearest(library, plain))}")


def head(model: nn.Module) -> str:
    """Return the name of the module that gives the class scores: the last linear layer.

    Raises ValueError for a network without one.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"head: model: {type(model).__name__} has no linear layer that could be the head")
    last: str = linear[-1]
    return last


def _nearest(library: str, name: str) -> list[str]:
    """Return up to three known names, of that library if there is such a one, that begin alike or else look alike."""
    of = {"torchvision": _torchvision_names, "timm": _timm_names}.get(library, known)()
    begin = [n for n in of if name and n.startswith(name)][:3]
    return begin or difflib.get_close_matches(name, of, n=3, cutoff=0.5) or list(_OURS)


def _torchvision_names() -> list[str]:
    from torchvision import models

    return list(models.list_models(module=models))


def _torchvision(name: str, classes: int, channels: int | None, size: int | None) -> nn.Module:
    from torchvision import models

    if channels not in (None, 3):
        raise ValueError(
            f"create: channels: torchvision's {name!r} takes 3, got {channels}; timm's networks take any number"
        )
    options: dict[str, Any] = {} if size is None or not name.startswith("vit_") else {"image_size": size}
    return _built(name, lambda: models.get_model(name, weights=None, num_classes=classes, **options))


def _timm_names() -> list[str]:
    import timm

    return list(timm.list_models())


def _timm(name: str, classes: int, channels: int | None, size: int | None) -> nn.Module:
    import timm

    options: dict[str, Any] = {"num_classes": classes, "in_chans": 3 if channels is None else channels}
    config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    if size is not None and config is not None and config.fixed_input_size:
        options["img_size"] = size
    return _built(name, lambda: timm.create_model(name, pretrained=False, **options))


def _built(name: str, build: Callable[[], Any]) -> nn.Module:
    try:
        model = build()
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"create: {name!r} cannot be built with these classes, channels and size: {reason}") from error
    assert isinstance(model, nn.Module)
    return model
