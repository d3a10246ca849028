"""How far a command is, on the error stream: a bar in a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

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
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
        )
        with Progress(*columns, console=console) as bar:
            yield _Bar(bar)
    else:
        yield _Lines(console)


class _Bar:
    def __init__(self, bar: Progress) -> None:
        self._bar, self._what, self._task = bar, "", bar.add_task("starting", total=None)

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._what:  # what was fast before says nothing about how long this takes
            self._what = what
            self._bar.reset(self._task, description=what, completed=done, total=total)
        self._bar.update(self._task, completed=done, total=total)


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._what, self._shown, self._began = "", 0.0, time.monotonic()
        self._since, self._start = self._began, 0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self._what:
            self._since, self._start = now, done
        elif done < total and now - self._shown < PERIOD:
            return
        self._what, self._shown = what, now
        text = f"{what}: {done} of {total}, {now - self._began:.0f} s{self._left(now, done, total)}"
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _left(self, now: float, done: int, total: int) -> str:
        """At the pace of this stage; nothing before there is one."""
        made = done - self._start
        if made <= 0 or done >= total:
            return ""
        return f", about {(now - self._since) / made * (total - done):.0f} s left"
