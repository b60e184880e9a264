"""One of the teachers as it is: what a user has without any method."""

from __future__ import annotations

from weightformer.baselines import Result, Setting, Teachers


def single(teachers: Teachers, setting: Setting, *, index: int = 0) -> Result:
    """Return teacher `index` as a result. Nothing trained, one pass."""
    return setting.result(f"teacher {index + 1}", teachers[index])
