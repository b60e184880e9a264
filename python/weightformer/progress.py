"""Progress of long work: a bar with rate and estimate on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

Progress = Callable[[int, int], None]  # done, total

# Without a terminal: seconds between two lines.
INTERVAL = 5.0


class _Rate(ProgressColumn):
    """How many are done in a second, since the start of this run."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")


@contextmanager
def bar(title: str, console: Console | None = None) -> Iterator[Progress]:
    """Show the progress of one piece of work on stderr; yields the callback to tell it (done, total)."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _lines(title, console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with RichProgress(*columns, console=console) as shown:
        task = shown.add_task(title, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


def _lines(title: str, console: Console) -> Progress:
    begin = last = time.monotonic()
    first: int | None = None

    def tell(done: int, total: int) -> None:
        nonlocal last, first
        now = time.monotonic()
        first = done if first is None else first
        if done < total and now - last < INTERVAL:
            return
        last, rate = now, (done - first) / max(now - begin, 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
        console.print(f"{title}: {done}/{total}, {rate:.1f}/s{left}", highlight=False)

    return tell
