"""Every scheduler that a pipeline accepts stock works with low steps, or is refused by the plan."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
from families import FAMILIES, baseline

import hasten

LOW = {"bottleneck": {"low_until": 0.05, "high_first": 1.0, "min_pixels": 1}}
SCHEDULERS = sorted(
    name
    for name in dir(diffusers)
    if name.endswith("Scheduler")
    and "dummy" not in getattr(diffusers, name).__module__  # it needs a library that is not installed
    and hasattr(getattr(diffusers, name), "set_timesteps")
)


def swapped(family: str, name: str) -> Any:
    """The tiny pipeline with a scheduler made of the configuration of its own, and what it makes stock."""
    pipe = FAMILIES[family]()
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    return pipe, baseline(pipe, family)


def check(family: str, name: str) -> str:
    """``"works"``, or why the plan refuses.

    Raises:
        pytest.skip.Exception: the stock pipeline does not run with it.
    """
    try:
        pipe, stock = swapped(family, name)
    except Exception as error:  # whatever a pipeline says to a scheduler it was not made for
        pytest.skip(f"stock: {type(error).__name__}: {error}")
    if not bool(stock.isfinite().all()):
        pytest.skip("stock: not finite")
    try:
        hasten.plan(pipe, LOW)
    except hasten.UnsupportedError as error:
        return str(error)
    with hasten.accelerate(pipe, LOW) as accel:
        low = baseline(pipe, family)
        assert any(step.resolution != step.size for step in accel.report().steps)
    assert low.isfinite().all()
    return "works"


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("family", ["sd15", "flux", "wan", "cogvideox-rope", "sana", "lumina2"])
def test_it_works_or_is_refused(family: str, name: str) -> None:
    told = check(family, name)
    assert told == "works" or "scheduler" in told


@pytest.mark.parametrize(
    ("family", "name", "told"),
    [
        ("sd15", "EulerDiscreteScheduler", "works"),
        ("sd15", "DPMSolverMultistepScheduler", "works"),
        ("sd15", "EDMEulerScheduler", "has no table of noise levels"),
        ("sd15", "DDIMInverseScheduler", "goes from clean to noisy"),
    ],
)
def test_of_the_sd_family(family: str, name: str, told: str) -> None:
    assert told in check(family, name)


def test_sample_prediction_is_refused() -> None:
    pipe = FAMILIES["sd15"]()
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="sample")
    with pytest.raises(hasten.UnsupportedError, match="prediction_type='sample'"):
        hasten.plan(pipe, LOW)


def test_every_scheduler_is_there() -> None:
    assert len(SCHEDULERS) > 40
    assert all(inspect.isclass(getattr(diffusers, name)) for name in SCHEDULERS)
