"""What every part of this package raises."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A weight file cannot be used. The message is one line: the file, what is wrong with it, and what to do."""


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line of bounded length."""
    return " ".join(str(error).split())[:200] or type(error).__name__
