from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F
from torchvision import datasets

from weightformer import data
from weightformer.data import Dataset, Images
from weightformer.views import Jitter, bank, moved


@pytest.fixture(scope="module")
def mnist() -> Dataset:
    return data.mnist()


def pixels_of(dataset: Dataset, images: Images) -> Tensor:
    """Undo the standardisation of the images at full size, [n, C, H, W] in [0, 1]."""
    full = images.images if images.source is None else images.source
    shape = (1, -1, 1, 1)
    return full * torch.tensor(dataset.std).view(shape) + torch.tensor(dataset.mean).view(shape)


def positions(dataset: Dataset, images: Images, raw: Tensor) -> set[int]:
    """Return which of the raw images these are, by their grey values."""
    lookup = {tuple(x.tolist()): i for i, x in enumerate((raw * 255).round().int().flatten(1))}
    return {lookup[tuple(x.tolist())] for x in (pixels_of(dataset, images) * 255).round().int().flatten(1)}


class TestMnist:
    def test_has_the_sizes_of_the_recipe(self, mnist: Dataset) -> None:
        assert [len(s) for s in (mnist.train, mnist.extra, mnist.validation, mnist.test)] == [300, 700, 500, 3500]
        assert (mnist.classes, mnist.channels, mnist.size) == (10, 1, 14)

    @pytest.mark.parametrize("split, count", [("train", 30), ("extra", 70), ("validation", 50), ("test", 350)])
    def test_every_split_is_balanced(self, mnist: Dataset, split: str, count: int) -> None:
        assert getattr(mnist, split).labels.bincount().tolist() == [count] * 10

    def test_splits_share_no_image_and_cover_all(self, mnist: Dataset) -> None:
        raw, _ = data.mnist_pixels()
        parts = [positions(mnist, s, raw) for s in (mnist.train, mnist.extra, mnist.validation, mnist.test)]
        assert sum(len(p) for p in parts) == 5000
        assert set.union(*parts) == set(range(5000))

    def test_splits_are_scikit_learns(self, mnist: Dataset) -> None:
        raw, labels = data.mnist_pixels()
        thousand, rest = train_test_split(np.arange(5000), train_size=1000, random_state=0, stratify=labels)
        validation, _ = train_test_split(rest, train_size=500, random_state=0, stratify=labels[rest])
        first = [[i for i in thousand if labels[i] == c][:30] for c in range(10)]
        assert positions(mnist, mnist.train, raw) == {int(i) for own in first for i in own}
        assert positions(mnist, mnist.validation, raw) == set(validation.tolist())

    def test_does_not_depend_on_the_number_of_threads(self, mnist: Dataset) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(3)
        other = data.mnist()
        torch.set_num_threads(threads)
        assert torch.equal(mnist.train.images, other.train.images)
        assert (mnist.mean, mnist.std) == (other.mean, other.std)

    @pytest.mark.parametrize("size", [14, 28])
    def test_is_standardised_by_the_thousand(self, size: int) -> None:
        dataset = data.mnist(size=size)
        thousand = torch.cat([dataset.train.images, dataset.extra.images])
        assert thousand.shape == (1000, 1, size, size)
        assert thousand.dtype == torch.float32 and dataset.train.labels.dtype == torch.int64
        std, mean = torch.std_mean(thousand.double())
        assert mean.abs() < 1e-5 and abs(std - 1) < 1e-5

    def test_small_images_are_the_large_ones_pooled(self, mnist: Dataset) -> None:
        assert mnist.test.source is not None
        torch.testing.assert_close(mnist.test.images, F.avg_pool2d(mnist.test.source, 2))
        assert data.mnist(size=28).test.source is None

    def test_per_class_moves_images_between_train_and_extra(self) -> None:
        dataset = data.mnist(per_class=100)
        assert (len(dataset.train), len(dataset.extra)) == (1000, 0)


def test_digits() -> None:
    dataset = data.digits()
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test, dataset.extra)] == [200, 300, 1297, 0]
    assert dataset.train.images.shape == (200, 1, 8, 8)
    assert abs(float(dataset.train.images.mean())) < 1e-5


def test_images_are_indexed_with_their_labels_and_sources(mnist: Dataset) -> None:
    index = torch.tensor([5, 3])
    part = mnist.train[index]
    assert part.source is not None and mnist.train.source is not None
    assert torch.equal(part.images, mnist.train.images[index])
    assert torch.equal(part.labels, mnist.train.labels[index])
    assert torch.equal(part.source, mnist.train.source[index])
    assert len(mnist.train[:7]) == 7


class TestBank:
    def test_view_zero_is_clean_and_the_others_differ(self, mnist: Dataset) -> None:
        views = bank(mnist.train, 4)
        assert views.shape == (300, 4, 1, 14, 14)
        assert torch.equal(views[:, 0], mnist.train.images)
        for one in range(4):
            for other in range(one):
                assert (views[:, one] != views[:, other]).flatten(1).any(1).all()

    def test_seed_decides(self, mnist: Dataset) -> None:
        few = mnist.train[:20]
        assert torch.equal(bank(few, 3), bank(few, 3))
        assert not torch.equal(bank(few, 3), bank(few, 3, seed=1))

    def test_without_movement_every_view_is_the_image(self, mnist: Dataset) -> None:
        views = bank(mnist.train[:20], 3, jitter=Jitter(rotation=0, scale=0, shift=0))
        torch.testing.assert_close(views, views[:, :1].expand_as(views), atol=1e-5, rtol=0)

    def test_default_views_stay_close_to_their_image(self, mnist: Dataset) -> None:
        views = bank(mnist.train, 10)
        own = F.cosine_similarity(views[:, 1:].flatten(2), views[:, :1].flatten(2), dim=2)
        foreign = F.cosine_similarity(views[:, 1:].flatten(2), views.roll(1, 0)[:, :1].flatten(2), dim=2)
        assert own.mean() > 0.8 > 2 * foreign.mean()

    def test_shift_is_measured_in_sides(self) -> None:
        """Nothing farther than shift * side + 1 pixels (bilinear) from a dot is touched, and some dot does move."""
        dots = torch.zeros(200, 1, 28, 28)
        dots[:, :, 14, 14] = 1
        seen = moved(dots, Jitter(rotation=0, scale=0, shift=3 / 28), torch.Generator().manual_seed(0))
        rows, columns = seen[:, 0].nonzero()[:, 1:].sub(14).abs().amax(0).tolist()
        assert 3 <= rows <= 4 and 3 <= columns <= 4

    def test_borders_repeat(self) -> None:
        flat = torch.full((5, 3, 16, 16), 0.7)
        seen = moved(flat, Jitter(rotation=45, scale=0.3, shift=0.5), torch.Generator().manual_seed(0))
        torch.testing.assert_close(seen, flat)

    def test_flip_mirrors_about_half(self) -> None:
        ramp = torch.linspace(-1, 1, 8).expand(400, 1, 8, 8)
        still = Jitter(rotation=0, scale=0, shift=0, flip=True)
        left_bright = (moved(ramp, still, torch.Generator().manual_seed(0))[:, 0, 0, 0] > 0).sum()
        assert 150 < left_bright < 250  # five standard deviations of 400 fair coins

    def test_no_view_is_an_error(self, mnist: Dataset) -> None:
        with pytest.raises(ValueError, match=r"bank: views: expected at least one, got 0"):
            bank(mnist.train, 0)


def write_cifar(folder: Path, classes: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[int]]:
    """Write a tiny CIFAR in its own format, make torchvision expect its checksums; return pixels, labels."""
    generator = np.random.RandomState(0)
    reader, sub, key, names = {
        10: (datasets.CIFAR10, "cifar-10-batches-py", "labels", "label_names"),
        100: (datasets.CIFAR100, "cifar-100-python", "fine_labels", "fine_label_names"),
    }[classes]
    root = folder / sub
    root.mkdir()

    def write(name: str, content: dict[str, Any]) -> list[str]:
        (root / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((root / name).read_bytes()).hexdigest()]

    per_file = 4 * classes
    pixels, labels = [], []
    for attribute in ("train_list", "test_list"):
        listed = []
        for name, _ in getattr(reader, attribute):
            rows = generator.randint(0, 256, (per_file, 3072)).astype(np.uint8)
            own = [i % classes for i in range(per_file)]
            listed.append(write(name, {"data": rows, key: own}))
            pixels.append(rows.reshape(-1, 3, 32, 32))
            labels.extend(own)
        monkeypatch.setattr(reader, attribute, listed)
    name, checksum = write(reader.meta["filename"], {names: [str(c) for c in range(classes)]})
    monkeypatch.setattr(reader, "meta", {"filename": name, "key": names, "md5": checksum})
    return np.concatenate(pixels), labels


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_is_read_from_its_own_format(classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = write_cifar(tmp_path, classes, monkeypatch)
    dataset = data.load(f"cifar{classes}", tmp_path, validation=classes, per_class=2)
    tests = 4 * classes
    count = len(labels) - tests
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [2 * classes, classes, tests]
    assert len(dataset.train) + len(dataset.extra) + len(dataset.validation) == count
    assert dataset.train.labels.bincount().tolist() == [2] * classes
    raw = torch.from_numpy(pixels) / 255
    torch.testing.assert_close(pixels_of(dataset, dataset.test), raw[count:], atol=1e-5, rtol=0)
    assert dataset.test.labels.tolist() == labels[count:]
    seen = [positions(dataset, s, raw) for s in (dataset.train, dataset.extra, dataset.validation)]
    assert set.union(*seen) == set(range(count)) and sum(map(len, seen)) == count


def test_changed_cifar_files_are_refused_before_they_are_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path, 10, monkeypatch)
    ran = tmp_path / "ran"

    class Harm:
        def __reduce__(self) -> Any:
            return (Path.touch, (ran,))

    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(ValueError, match=r"cifar10: folder: .* no complete copy .* download=True"):
        data.load("cifar10", tmp_path)
    assert not ran.exists()


class TestImageNet:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Three classes, six training and two test images of different shapes; every image has its class's grey."""
        for split, count in (("train", 6), ("val", 2)):
            for c in range(3):
                own = tmp_path / split / f"n0000000{c}"
                own.mkdir(parents=True)
                for i in range(count):
                    Image.new("RGB", (60 + 10 * i, 80), (80 * c,) * 3).save(own / f"{i}.JPEG")
        return tmp_path

    def test_reads_folders_of_classes(self, folder: Path) -> None:
        dataset = data.load("imagenet", folder, size=32, per_class=4, validation_per_class=2, test_per_class=1)
        assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [12, 6, 3]
        assert dataset.train.images.shape == (12, 3, 32, 32)
        for split in (dataset.train, dataset.validation, dataset.test):
            grey = (pixels_of(dataset, split) * 255).mean((1, 2, 3))
            torch.testing.assert_close(grey, split.labels * 80.0, atol=2, rtol=0)

    @pytest.mark.parametrize(
        "damage, message",
        [
            (lambda root: (root / "val").rename(root / "test"), r"imagenet: folder: expected .*val/CLASS/\*\.JPEG"),
            (lambda root: (root / "val/n00000001").rename(root / "val/x"), r"same classes; 'n00000001' is in one only"),
        ],
        ids=["no val", "other class"],
    )
    def test_incomplete_folders_are_refused(self, folder: Path, damage: Any, message: str) -> None:
        damage(folder)
        with pytest.raises(ValueError, match=message):
            data.load("imagenet", folder)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "minst"}, "load: name: expected mnist, digits, cifar10, cifar100 or imagenet, got 'minst'"),
        ({"name": "cifar10"}, "cifar10: folder: expected the folder that holds the data, got None"),
        ({"name": "cifar100", "folder": "/no/such"}, "cifar100: folder: /no/such is no folder"),
        ({"name": "imagenet"}, "imagenet: folder: expected the folder"),
        ({"name": "imagenet", "folder": ".", "download": True}, "imagenet: download: .* image-net.org"),
        ({"name": "mnist", "size": 15}, "mnist: size: expected 14 or 28, got 15"),
    ],
)
def test_errors_say_what_to_pass(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        data.load(**arguments)
    assert "\n" not in str(caught.value)


def test_nothing_is_downloaded_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("tried to download")

    monkeypatch.setattr(datasets.CIFAR10, "download", refuse)
    with pytest.raises(ValueError, match="no complete copy"):
        data.load("cifar10", tmp_path)
    with pytest.raises(AssertionError, match="tried to download"):
        data.load("cifar10", tmp_path, download=True)


def test_images_and_labels_must_fit() -> None:
    with pytest.raises(
        ValueError, match=r"Images: images: expected \[2, C, H, W\] like the 2 labels, got \[3, 1, 4, 4\]"
    ):
        Images(torch.zeros(3, 1, 4, 4), torch.zeros(2, dtype=torch.int64))
