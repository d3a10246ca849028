"""The run clock decides by level, not by counting."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hasten._adapters.base import Guidance, LatentSize
from hasten._clock import Clock, Step, expected_batch
from hasten.schedules.noise import NoiseLevel

SIZE = LatentSize(8, 8)


def ticks(clock: Clock, *moments: tuple[float, int]) -> list[tuple[int, str]]:
    steps = [clock.tick(NoiseLevel.flow(time), SIZE, batch) for time, batch in moments]
    assert all(isinstance(step, Step) and step.size is SIZE for step in steps)
    return [(step.index, step.branch) for step in steps]


def test_sequential_branches() -> None:
    clock = Clock(Guidance.SEQUENTIAL, 1, True)
    assert ticks(clock, (1.0, 1), (1.0, 1), (0.5, 1), (0.5, 1)) == [
        (0, "cond"),
        (0, "uncond"),
        (1, "cond"),
        (1, "uncond"),
    ]


def test_sequential_without_guidance_is_conditional() -> None:
    assert ticks(Clock(Guidance.SEQUENTIAL, 1, False), (1.0, 1), (0.5, 1)) == [(0, "cond"), (1, "cond")]


def test_batched_branches_and_a_layer_skipping_third_forward() -> None:
    clock = Clock(Guidance.BATCHED, 2, True)
    assert ticks(clock, (1.0, 4), (1.0, 2), (0.5, 4)) == [(0, "both"), (0, "only"), (1, "both")]


def test_further_forwards_with_other_switches_have_names_of_their_own() -> None:
    whole, skipping = {"skip_layers": None, "isolate": False}, {"skip_layers": [7], "isolate": False}
    apart = {"skip_layers": None, "isolate": True}
    clock = Clock(Guidance.BATCHED, 1, True)
    forwards = [(2, whole), (1, skipping), (1, apart)] * 2
    branches = [clock.tick(NoiseLevel.flow(1.0), SIZE, *forward).branch for forward in forwards]
    assert branches == ["both", "extra 1", "extra 2"] * 2


def test_a_second_order_solver_repeats_the_branches() -> None:
    clock = Clock(Guidance.SEQUENTIAL, 1, True)
    branches = [clock.tick(NoiseLevel.flow(1.0), SIZE, 1, {"return_dict": False}).branch for _ in range(4)]
    assert branches == ["cond", "uncond"] * 2


@pytest.mark.parametrize("doubled", [False, True])
def test_batched_without_known_batch_trusts_the_pipeline(doubled: bool) -> None:
    expected = "both" if doubled else "only"
    assert ticks(Clock(Guidance.BATCHED, None, doubled), (1.0, 2)) == [(0, expected)]


def test_true_guidance_on_a_distilled_model() -> None:
    clock = Clock(Guidance.EMBEDDED, 1, False)
    assert ticks(clock, (1.0, 1), (1.0, 1), (0.5, 1)) == [(0, "only"), (0, "uncond"), (1, "only")]


def test_rising_level_begins_a_new_sub_run() -> None:
    clock = Clock(Guidance.EMBEDDED, 1, False)
    assert ticks(clock, (0.9, 1), (0.4, 1), (0.7, 1), (0.1, 1)) == [
        (0, "only"),
        (1, "only"),
        (0, "only"),
        (1, "only"),
    ]
    assert clock.restarts == 1


@pytest.mark.parametrize(
    ("arguments", "batch"),
    [
        ({"prompt": "a fox"}, 1),
        ({"prompt": ["a", "b"], "num_images_per_prompt": 3}, 6),
        ({"prompt": None, "prompt_embeds": torch.zeros(2, 7, 4), "num_videos_per_prompt": None}, 2),
        ({"class_labels": [1, 2, 3]}, 3),
        ({"height": 64}, None),
    ],
)
def test_expected_batch(arguments: dict[str, Any], batch: int | None) -> None:
    assert expected_batch(arguments) == batch


def test_deferred_nan_check_raises_when_the_next_forward_begins() -> None:
    from hasten import NumericalError
    from hasten._numerics import Watch
    from hasten._recorder import Row

    class Deferred(Watch):
        """As on a device that computes asynchronously: ``observe`` must not read the flag."""

        def settle(self) -> None:
            if self.next_forward:
                super().settle()

        next_forward = False

    watch, step = Deferred(), Clock(Guidance.EMBEDDED, 1, False).tick(NoiseLevel.flow(0.5), SIZE, 1)
    bad = torch.tensor([1.0, float("inf"), float("-inf")])
    watch.observe(Row(0, "transformer", step), bad, [(None, torch.ones(1)), ("mine", (bad,))])
    watch.next_forward = True
    with pytest.raises(
        NumericalError, match=r"'mine' returned NaN or infinity at step 0 \(level 0.5000, only\)"
    ):
        watch.settle()
    watch.settle()
