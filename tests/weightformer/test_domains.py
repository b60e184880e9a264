from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from weightformer import data
from weightformer.domains import Domain, SpecialistData, draw, mnist_specialists
from weightformer.views import Jitter


@pytest.fixture(scope="module")
def specialists() -> SpecialistData:
    return mnist_specialists()


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(5, 3, 28, 28, generator=torch.Generator().manual_seed(0))


def test_tiles_move_as_the_permutation_says(pixels: torch.Tensor) -> None:
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1)).tolist()
    seen = Domain(tiles=tuple(order)).apply(pixels)
    for new, old in enumerate(order):
        to, of = ((7 * (i // 4), 7 * (i % 4)) for i in (new, old))
        assert torch.equal(
            seen[:, :, to[0] : to[0] + 7, to[1] : to[1] + 7], pixels[:, :, of[0] : of[0] + 7, of[1] : of[1] + 7]
        )


def test_inversion_is_its_own_inverse(pixels: torch.Tensor) -> None:
    invert = Domain(invert=True)
    assert torch.equal(invert.apply(pixels), 1 - pixels)
    torch.testing.assert_close(invert.apply(invert.apply(pixels)), pixels)


@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_quarter_turns_and_mirrors_are_exact(pixels: torch.Tensor, quarter: int, flip: bool) -> None:
    seen = Domain(rotation=90.0 * quarter, flip=flip).apply(pixels)
    turned = pixels.rot90(quarter, (2, 3))
    torch.testing.assert_close(seen, turned.flip(3) if flip else turned, atol=1e-4, rtol=0)


def test_the_identity_changes_nothing(pixels: torch.Tensor) -> None:
    assert torch.equal(Domain().apply(pixels), pixels)


@pytest.mark.parametrize("kind", ["rotations", "tiles"])
def test_drawn_domains_depend_on_the_seed_alone(kind: str) -> None:
    drawn = [draw(kind, seed) for seed in range(40)]
    assert drawn == [draw(kind, seed) for seed in range(40)]
    assert len(set(drawn)) == 40
    assert {d.invert for d in drawn} == {True, False}
    if kind == "tiles":
        assert all(sorted(d.tiles) == list(range(16)) for d in drawn)
    else:
        assert {d.flip for d in drawn} == {True, False}
        assert max(d.rotation for d in drawn) > 270 and min(d.rotation for d in drawn) < 90


def test_the_identity_kind_draws_no_domain() -> None:
    assert draw("identity", 3) == Domain()


def test_unknown_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="draw: kind: expected one of identity, rotations, tiles, got 'tile'"):
        draw("tile", 0)


def test_tiles_must_divide_the_image() -> None:
    with pytest.raises(ValueError, match="4x4 tiles do not divide images of 14x14 pixels"):
        draw("tiles", 0).apply(torch.zeros(1, 1, 14, 14))


class TestSpecialists:
    @pytest.mark.parametrize(
        "split, each",
        [("warm", 10), ("proxy", 30), ("validation", 50), ("private", 160), ("private_held_out", 100), ("test", 150)],
    )
    def test_splits_are_balanced_and_so_is_their_beginning(
        self, specialists: SpecialistData, split: str, each: int
    ) -> None:
        images = getattr(specialists, split)
        assert images.labels.bincount().tolist() == [each] * 10
        assert images[:100].labels.bincount().tolist() == [10] * 10

    def test_no_image_is_in_two_splits(self, specialists: SpecialistData) -> None:
        names = ("warm", "proxy", "validation", "private", "private_held_out", "test")
        images = torch.cat([getattr(specialists, n).images for n in names]).flatten(1)
        assert len(images) == 5000 == len(images.unique(dim=0))

    def test_render_inverts_before_it_standardises(self, specialists: SpecialistData) -> None:
        raw = specialists.proxy[:10]
        seen = specialists.render(raw, Domain(invert=True))
        standard = specialists.standard
        expected = (F.avg_pool2d(1 - raw.images, 2) - standard.mean) / standard.std
        assert torch.equal(seen.images, expected) and torch.equal(seen.labels, raw.labels)

    def test_private_images_are_standardised(self, specialists: SpecialistData) -> None:
        seen = specialists.render(specialists.private, Domain()).images
        assert seen.shape == (1600, 1, 14, 14)
        assert seen.mean().abs() < 1e-4 and abs(seen.std() - 1) < 1e-4

    def test_full_size(self) -> None:
        full = mnist_specialists(size=28)
        assert full.render(full.proxy[:2], Domain()).images.shape == (2, 1, 28, 28)
        with pytest.raises(ValueError, match="mnist_specialists: size: expected 14 or 28, got 7"):
            mnist_specialists(size=7)

    def test_jitter_follows_its_generator(self, specialists: SpecialistData) -> None:
        raw, domain, jitter = specialists.proxy[:10], draw("tiles", 0), Jitter(8, 0.06)
        one, two = (
            specialists.render(raw, domain, jitter=jitter, generator=torch.Generator().manual_seed(s)).images
            for s in (0, 0)
        )
        assert torch.equal(one, two)
        assert not torch.equal(one, specialists.render(raw, domain).images)
        with pytest.raises(ValueError, match="render: generator"):
            specialists.render(raw, domain, jitter=jitter)

    def test_raw_images_stay_as_they_are(self, specialists: SpecialistData) -> None:
        before = specialists.proxy.images.clone()
        specialists.render(specialists.proxy, Domain(invert=True, tiles=draw("tiles", 1).tiles))
        assert torch.equal(before, specialists.proxy.images)
        assert data.mnist_pixels()[0].min() == 0
