"""The levels that are planned for a call are those that the pipeline sets its scheduler to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
from families import FAMILIES, VARIANTS
from plan_call import subject

from hasten._plugins import host
from hasten._target import Target
from hasten._timesteps import planned_levels, run_levels
from hasten.extend import LatentLayout


class _Reached(Exception):
    """The first forward: the scheduler is set."""


def levels(name: str, steps: int) -> tuple[list[float], list[float]]:
    """Planned, and those the stock pipeline has set when its first denoiser is called."""
    pipe, arguments = subject(name)
    arguments["num_inference_steps"] = steps
    target = Target.of(pipe)
    given = target.call_arguments(**arguments)
    planned = planned_levels(target, given, target.layout.call_size(pipe, given))

    def reached(*_: Any, **__: Any) -> None:
        raise _Reached

    for denoiser in target.denoisers.values():
        denoiser.register_forward_pre_hook(reached)
    with pytest.raises(_Reached):
        pipe(**arguments)
    run = run_levels(target, given, pipe.scheduler)
    return [level.time for level in planned], [level.time for level in run]


@pytest.mark.parametrize("name", FAMILIES)
def test_of_every_family(name: str) -> None:
    planned, run = levels(name, 5)
    assert planned == pytest.approx(run, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
def test_of_every_variant(name: str, steps: int) -> None:
    planned, run = levels(name, steps)
    assert planned == pytest.approx(run, abs=1e-5)


FLOW = diffusers.FlowMatchEulerDiscreteScheduler
EVEN = [1.0, 0.8, 0.6, 0.4, 0.2]


def ratios() -> Any:
    """The scheduler of Cosmos Predict 2, whose pipeline writes this into its configuration."""
    scheduler = FLOW(use_karras_sigmas=True)
    scheduler.register_to_config(sigma_max=80.0)
    return scheduler


@pytest.mark.parametrize(
    ("pipeline", "scheduler", "expected"),
    [
        ("BriaPipeline", FLOW(), [1.0, 0.751, 0.501, 0.251, 0.001]),
        ("BriaPipeline", FLOW(use_dynamic_shifting=True), EVEN),
        ("BriaPipeline", diffusers.DDIMScheduler(), None),
        ("BriaFiboPipeline", FLOW(), EVEN),
        ("OvisImagePipeline", FLOW(), EVEN),
        ("LongCatImagePipeline", FLOW(), EVEN),
        ("ChromaPipeline", FLOW(), EVEN),
        ("Flux2Pipeline", FLOW(), EVEN),
        ("Krea2Pipeline", FLOW(), EVEN),
        ("MotifVideoPipeline", FLOW(), EVEN),
        ("HunyuanImagePipeline", FLOW(), EVEN),
        ("HunyuanImageRefinerPipeline", FLOW(), EVEN),
        ("MochiPipeline", FLOW(), [1.0, 0.9875, 0.975, 0.858333, 0.533333]),
        ("CogView4ControlPipeline", FLOW(), [1.0, 0.75, 0.5, 0.25, 0.001]),
        ("Cosmos2TextToImagePipeline", ratios(), [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("Cosmos2_5_PredictBasePipeline", diffusers.UniPCMultistepScheduler(use_flow_sigmas=True), None),
        ("Kandinsky5T2VPipeline", FLOW(), None),
        ("HiDreamImagePipeline", FLOW(), None),
        ("LuminaPipeline", FLOW(), None),
    ],
)
def test_what_diffusers_gives_its_scheduler(
    pipeline: str, scheduler: Any, expected: list[float] | None
) -> None:
    """Values of five steps: of stock calls, or of the source (Bria, FIBO, LongCat, refiner, CogView4)."""
    layout = host().registry.adapters[pipeline].capability(LatentLayout)
    assert layout is not None
    found = layout.sigmas(SimpleNamespace(scheduler=scheduler), 5)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-6))
