"""The shift that a pipeline computes is planned by its own function, where that is one that is known."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from hasten import UnsupportedError
from hasten._timesteps import dynamic_shift
from hasten.extend import LatentSize


class Pipe:
    scheduler = SimpleNamespace(config={"base_shift": 0.25})


def planned(monkeypatch: pytest.MonkeyPatch, function: Any) -> float:
    monkeypatch.setattr(sys.modules[__name__], "calculate_shift", function, raising=False)
    layout = SimpleNamespace(shift_tokens=lambda _, size: size.height * size.width)
    target: Any = SimpleNamespace(pipe=Pipe(), layout=layout, name="Pipe")
    return dynamic_shift(target, LatentSize(8, 8), 4)


def test_the_common_function_gets_tokens_and_the_schedulers_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def function(image_seq_len: int, base: int, most: int, base_shift: float, max_shift: float) -> float:
        assert (image_seq_len, base, most, base_shift, max_shift) == (64, 256, 4096, 0.25, 1.15)
        return 0.5

    assert planned(monkeypatch, function) == 0.5


def test_a_function_of_another_shape_is_not_guessed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CogView4's, which would fail with a bare ``TypeError``."""

    def function(image_seq_len: int, base_seq_len: int, base_shift: float, max_shift: float) -> float:
        raise AssertionError

    with pytest.raises(UnsupportedError, match="it is not known how Pipe computes its shift"):
        planned(monkeypatch, function)
