"""How far a command is, on the error stream: a bar in a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hasten._console import Console

__all__ = ["PERIOD", "Tell", "showing_progress"]

Tell = Callable[[str, int, int], None]
"""``tell("generating", 3, 40)``: what is being done, how much of it is done, and all there is to do."""

PERIOD = 10.0
"""Seconds between two lines of progress in a log."""


@contextmanager
def showing_progress(*, quiet: bool = False, console: Console | None = None) -> Iterator[Tell]:
    """Shows what it is told: in a terminal as a bar; elsewhere in lines, the first, the last and one every few seconds.

    Args:
        quiet: show nothing.
        console: where to; the error stream unless given.
    """
    console = console or Console(stderr=True)
    if quiet:
        yield lambda *_: None
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("starting", total=None)

            def show(what: str, done: int, total: int) -> None:
                bar.update(task, description=what, completed=done, total=total)

            yield show
    else:
        yield _Lines(console)


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._what, self._shown, self._began = "", 0.0, time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what == self._what and done < total and now - self._shown < PERIOD:
            return
        self._what, self._shown = what, now
        text = f"{what}: {done} of {total}, {now - self._began:.0f} s"
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
