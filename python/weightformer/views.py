"""Fixed banks of randomly moved views of images, drawn once and shared by everyone who trains on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from weightformer import bounds
from weightformer.data import Images


@dataclass(frozen=True)
class Jitter:
    """How far a view may be moved: uniform in +- each value; `flip` mirrors half of the views."""

    rotation: float = 6.0  # degrees
    scale: float = 0.05
    shift: float = 1.5 / 28  # of the image's side
    flip: bool = False

    def __post_init__(self) -> None:
        bounds.check(self, {"rotation": 0, "scale": 0, "shift": 0})


def bank(images: Images, views: int = 30, *, jitter: Jitter | None = None, seed: int = 0) -> Tensor:
    """Return `views` fixed views of every image, [n, views, C, H, W]: view 0 clean, the others moved at random.

    Views are drawn from `images.source` where there is one, then average-pooled to the size of `images.images`.
    The same seed gives the same bank.
    """
    if views < 1:
        raise ValueError(f"bank: views: expected at least one, got {views}")
    source = images.images if images.source is None else images.source
    generator = torch.Generator().manual_seed(seed)
    result = images.images[:, None].repeat(1, views, 1, 1, 1)
    for view in range(1, views):
        result[:, view] = shrink(moved(source, jitter or Jitter(), generator), images.images.shape[-1])
    return result


def shrink(images: Tensor, size: int) -> Tensor:
    """Average-pool [n, C, k*size, k*size] to [n, C, size, size]."""
    return images if images.shape[-1] == size else F.avg_pool2d(images, images.shape[-1] // size)


def moved(images: Tensor, jitter: Jitter, generator: torch.Generator) -> Tensor:
    """Return each image rotated, scaled and shifted at random, [n, C, H, W]; pixels from outside repeat the border."""
    # Drawn on the CPU, so that every device moves the images alike.
    angle, scale, right, down, mirror = (2 * torch.rand(5, len(images), generator=generator) - 1).to(images.device)
    angle = torch.deg2rad(angle * jitter.rotation)
    zoom = 1 + scale * jitter.scale
    sign = torch.where(mirror < 0, -1.0, 1.0) if jitter.flip else torch.ones_like(mirror)
    # affine_grid's coordinates run from -1 to 1, so a side is 2 long.
    return affine(images, angle, zoom, 2 * jitter.shift * torch.stack([right, down], 1), sign)


def affine(
    images: Tensor,  # [n, C, H, W]
    angle: Tensor,  # [n] radians
    zoom: Tensor,  # [n]
    shift: Tensor,  # [n, 2] in half sides, right and down
    sign: Tensor,  # [n] -1 mirrors left and right
) -> Tensor:
    """Return the images sampled bilinearly at moved positions, [n, C, H, W]."""
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    matrix = torch.stack([sign * cosine, -sine, sign * sine, cosine], 1).view(-1, 2, 2)
    grid = F.affine_grid(torch.cat([matrix, shift[:, :, None]], 2), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
