"""What all seams together cost beside a full step: calls of Python, and time."""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import pytest
import torch

import hasten

EXACT: dict[str, dict[str, Any]] = {
    "layers skipped": {
        "bottleneck": {"low_until": 1.0, "min_pixels": 1},
        "guidance_interval": {"stop": 0.0},
        "cache": {"threshold": 0.0},
    },
    "sparse attention": {
        "bottleneck": {"low_until": 1.0, "min_pixels": 1},
        "guidance_interval": {"stop": 0.0},
        "rettention": {"keep_ratio": 1.0, "warmup": 0, "min_tokens": 1},
    },
}
"""All techniques of the flagship at settings that change nothing; `cache` and `rettention` exclude each other."""
MOST = 0.03
"""Share of a full step that all seams together may cost."""
ROUNDS = 12


def call(pipe: Any, steps: int, size: int = 256) -> None:
    pipe(
        "a large red circle on a white background",
        num_inference_steps=steps,
        height=size,
        width=size,
        max_sequence_length=0,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    )


@pytest.fixture(scope="module")
def pipe() -> Any:
    made = hasten.load("mini/t2i-dit")
    made.set_progress_bar_config(disable=True)
    return made


def calls_of_python(pipe: Any, steps: int) -> int:
    """Python functions that a call of the pipeline enters."""
    count = 0

    def note(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        call(pipe, steps, 64)
    finally:
        sys.setprofile(None)
    return count


def per_step(pipe: Any) -> float:
    """The same for one step, without what a call does once."""
    calls_of_python(pipe, 2)
    return (calls_of_python(pipe, 6) - calls_of_python(pipe, 2)) / 4


@pytest.mark.parametrize(("name", "most"), [("layers skipped", 600), ("sparse attention", 1_500)])
def test_a_step_enters_few_more_functions(name: str, most: int, pipe: Any) -> None:
    stock = per_step(pipe)
    with hasten.accelerate(pipe, EXACT[name]):
        more = per_step(pipe) - stock
    assert 0 < more < most


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_all_seams_cost_at_most_three_percent(name: str, pipe: Any) -> None:
    """Calls of one thread, with and without techniques in turn: the median of the ratios of neighbours."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def seconds() -> float:
        start = time.perf_counter()
        call(pipe, 4)
        return time.perf_counter() - start

    try:
        with hasten.accelerate(pipe, EXACT[name]) as accel:
            seconds()
            ratios = []
            for turn in range(ROUNDS):
                pair = {}
                for paused in (False, True) if turn % 2 else (True, False):
                    if paused:
                        with accel.paused():
                            pair[paused] = seconds()
                    else:
                        pair[paused] = seconds()
                ratios.append(pair[False] / pair[True])
    finally:
        torch.set_num_threads(threads)
    found = statistics.median(ratios)
    told = f"{name}: {found:.4f} of stock's time ({min(ratios):.3f} to {max(ratios):.3f} in {ROUNDS} pairs)"
    sys.stdout.write(f"{told}\n")  # shown by pytest -s
    assert found <= 1 + MOST, told
