"""How far a command is, and how long the rest takes, in a log."""

from __future__ import annotations

import io

import pytest

from hasten._cli import _progress
from hasten._cli._progress import showing_progress
from hasten.commands import Console


def test_lines_tell_the_time_left_at_the_pace_of_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    with showing_progress(console=Console(file=stream)) as tell:
        for seconds, what, done in (
            (100.0, "loading", 0),
            (100.0, "drawing", 4),  # what is there already says nothing about the pace
            (104.0, "drawing", 5),
            (112.0, "drawing", 6),
            (140.0, "drawing", 10),
        ):
            clock[0] = seconds
            tell(what, done, 10)
    assert stream.getvalue().splitlines() == [
        "loading: 0 of 10, 100 s",
        "drawing: 4 of 10, 100 s",
        "drawing: 6 of 10, 112 s, about 24 s left",
        "drawing: 10 of 10, 140 s",
    ]


def test_a_terminal_shows_a_bar_that_starts_anew_with_each_stage() -> None:
    stream = io.StringIO()
    with showing_progress(console=Console(file=stream, force_terminal=True, width=100)) as tell:
        tell("loading", 1, 1)
        tell("drawing", 1, 4)
    assert "drawing" in stream.getvalue()
    assert "1/4" in stream.getvalue()
