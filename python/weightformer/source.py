"""Which data a run uses, as plain values. Needs no torch, so that a command line can offer it at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weightformer.data import Dataset

# What each data set takes beside folder and download.
OPTIONS: dict[str, tuple[str, ...]] = {
    "mnist": ("size", "per_class"),
    "digits": (),
    "cifar10": ("per_class",),
    "cifar100": ("per_class",),
    "imagenet": ("size", "per_class"),
}


@dataclass(frozen=True)
class Source:
    """A data set by its name and options, as plain values that stand in a settings file.

    folder, download: see `weightformer.data.load`. size: side of the images; per_class: training images kept of each
    class; None for what the data set's own function does. limit: images kept of validation and test each, for a quick
    look.
    """

    name: str = "mnist"
    folder: str | None = None
    download: bool = False
    size: int | None = None
    per_class: int | None = None
    limit: int | None = None

    def load(self) -> Dataset:
        """Return the data set; ValueError where it has no such option."""
        from weightformer import data

        options = {"size": self.size, "per_class": self.per_class}
        options = {name: value for name, value in options.items() if value is not None}
        for name in options:
            if name not in OPTIONS.get(self.name, tuple(options)):
                known = ", ".join(OPTIONS[self.name]) or "none"
                raise ValueError(f"data: {name}: {self.name} has no such option, it has {known}; leave it out")
        dataset = data.load(self.name, self.folder, download=self.download, **options)
        if self.limit is None:
            return dataset
        kept = slice(check_limit(self.limit))
        return replace(dataset, validation=dataset.validation[kept], test=dataset.test[kept])


def check_limit(limit: int) -> int:
    """Return `limit`; ValueError unless it leaves an image."""
    if limit < 1:
        raise ValueError(f"data: limit: expected at least 1 image, got {limit}")
    return limit
