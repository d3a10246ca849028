"""Every family's layout against a real run of its stock pipeline."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from families import LATENT, call_kwargs
from observation import Observation, observe
from torch import Tensor

from hasten.extend import LatentSize, Prediction, Target, planned_levels
from hasten.schedules.dct import dct_truncate
from hasten.schedules.noise import NoiseLevel

HALF = (LATENT[0] // 2, LATENT[1] // 2)
"""Latent height and width of a low-resolution forward."""


def same(left: Any, right: Any) -> bool:
    """Whether two arguments are equal, bit by bit."""
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def low_level(level: NoiseLevel, ratio: float) -> NoiseLevel:
    """The level of equal kind whose noise-to-signal ratio is ``ratio`` times smaller."""
    if abs(level.alpha + level.sigma - 1) < 1e-6:
        return NoiseLevel.flow(level.time / (ratio - (ratio - 1) * level.time))
    variance = level.sigma**2 / (level.sigma**2 + (level.alpha * ratio) ** 2)
    return NoiseLevel.vp(1 - variance)


def test_level_is_the_schedulers(observed: Observation) -> None:
    layout, pipe = observed.layout, observed.pipe
    for forward in observed.forwards:
        level, expected = layout.level(pipe, forward.kwargs), observed.levels[forward.step]
        assert level.alpha == pytest.approx(expected.alpha, abs=1e-6)
        assert level.sigma == pytest.approx(expected.sigma, abs=1e-6)


def test_levels_of_a_call_are_known_before_it(observed: Observation) -> None:
    """Also where the pipeline gives its scheduler sigmas, or a shift that depends on the size."""
    target = Target.of(observed.pipe)
    arguments = target.call_arguments(**observed.arguments)
    planned = planned_levels(target, arguments, observed.layout.call_size(observed.pipe, arguments))
    assert [level.time for level in planned] == pytest.approx(
        [level.time for level in observed.levels], abs=1e-5
    )


def test_size_is_what_the_call_asked_for(observed: Observation) -> None:
    sizes = {observed.layout.size(observed.pipe, forward.kwargs) for forward in observed.forwards}
    assert len(sizes) == 1
    (size,) = sizes
    assert (size.height, size.width) == LATENT
    assert observed.layout.call_size(observed.pipe, observed.arguments) == size
    height, width = observed.arguments.get("height"), observed.arguments.get("width")
    if height is not None:
        assert observed.layout.pixels(observed.pipe, size) == (height, width)


def test_decoding_and_encoding_at_the_same_size_changes_no_bit(observed: Observation) -> None:
    layout, pipe = observed.layout, observed.pipe
    for forward in observed.forwards:
        latent = layout.decode(pipe, forward.kwargs)
        assert latent.shape[-2:] == LATENT
        encoded = layout.encode(pipe, forward.kwargs, latent, layout.level(pipe, forward.kwargs))
        assert same(encoded, forward.kwargs)


def test_output_round_trip(observed: Observation) -> None:
    layout, pipe = observed.layout, observed.pipe
    forward = observed.forwards[0]
    decoded = layout.decode_output(pipe, forward.kwargs, forward.sample)
    latent = layout.decode(pipe, forward.kwargs)
    assert decoded.shape[2:] == latent.shape[2:]
    assert decoded.shape[1] in (latent.shape[1], 2 * latent.shape[1])
    packed = layout.encode_output(pipe, forward.kwargs, decoded)
    assert same(layout.decode_output(pipe, forward.kwargs, packed), decoded)
    shapes = [[part.shape for part in parts] for parts in (packed, forward.sample)]
    assert shapes[0] == shapes[1]


def test_half_size_runs_through_the_real_denoiser(observed: Observation) -> None:
    layout, pipe = observed.layout, observed.pipe
    forward = observed.forwards[0]
    level = low_level(layout.level(pipe, forward.kwargs), 2.0)
    small = dct_truncate(layout.decode(pipe, forward.kwargs), *HALF)
    kwargs = layout.encode(pipe, forward.kwargs, small, level)
    assert layout.size(pipe, kwargs) == dataclasses.replace(
        layout.size(pipe, forward.kwargs), height=HALF[0], width=HALF[1]
    )
    assert layout.level(pipe, kwargs).time == pytest.approx(level.time, abs=2e-4)
    with torch.no_grad():
        output = forward.module(**kwargs)
    decoded = layout.decode_output(pipe, kwargs, output[0])
    assert decoded.shape[2:] == small.shape[2:]
    assert decoded.isfinite().all()


MICRO_CONDITIONS = {"sdxl": "added_cond_kwargs", "hunyuan-dit": "image_meta_size"}
"""Arguments that name the size of the picture and stay on purpose."""


def test_positions_are_those_of_a_small_call(family: str, observed: Observation) -> None:
    if "height" not in call_kwargs(family):
        pytest.skip("the image decides the size, and the arguments don't depend on it")
    height, width = observed.arguments["height"] // 2, observed.arguments["width"] // 2
    area = {"max_area": height * width} if "max_area" in observed.arguments else {}
    native = observe(family, height=height, width=width, **area).forwards[0].kwargs
    layout, pipe = observed.layout, observed.pipe
    large = observed.forwards[0].kwargs
    small = dct_truncate(layout.decode(pipe, large), *HALF)
    encoded = layout.encode(pipe, large, small, layout.level(pipe, large))
    skipped = {
        layout.latents,
        layout.timestep,
        "sigma",
        "audio_timestep",
        "audio_sigma",
        "audio_hidden_states",
        MICRO_CONDITIONS.get(family),
    }
    different = [key for key in native if key not in skipped and not same(encoded[key], native[key])]
    assert different == []
    assert encoded[layout.timestep].shape == native[layout.timestep].shape


def test_prediction_leads_to_the_picture(family: str) -> None:
    """A denoiser that knows the picture leads the solver there, unless a sign or the time is reversed."""
    known: dict[str, Tensor] = {}

    def answer(seen: Observation, kwargs: dict[str, Any]) -> Any:
        layout, pipe = seen.layout, seen.pipe
        state = layout.decode(pipe, kwargs)
        picture = known.setdefault(
            "x0", torch.rand(state[:1].shape, generator=torch.Generator().manual_seed(5)) - 0.5
        )
        level = layout.level(pipe, kwargs)
        noise = (state - level.alpha * picture) / level.sigma
        target = {
            Prediction.VELOCITY: noise - picture,
            Prediction.NEGATIVE_VELOCITY: picture - noise,
            Prediction.EPSILON: noise,
            Prediction.VP_VELOCITY: level.alpha * noise - level.sigma * picture,
        }[layout.prediction(pipe)]
        if getattr(pipe, "transformer", None) is not None and family.startswith(("pixart", "hunyuan-dit")):
            target = torch.cat([target, torch.zeros_like(target)], dim=1)
        return layout.encode_output(pipe, kwargs, target)

    seen = observe(family, answer)
    kwargs = seen.forwards[-1].kwargs
    expected = seen.layout.encode_output(seen.pipe, kwargs, known["x0"])
    final = seen.states[-1]
    if isinstance(expected, list):
        expected = torch.stack(expected).squeeze(2)
    if family == "ltx-i2v":
        expected = known["x0"][:, :, 1:]
    if family == "flux-kontext":
        expected = expected[:, : final.shape[1]]
    if family == "wan22-ti2v-i2v":  # the first frame is given
        expected, final = expected[:, :, 1:], final[:, :, 1:]
    if family == "text-to-video":  # the pipeline folds frames into the batch before it steps
        expected = expected.transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(final, expected, atol=2e-3, rtol=0)


def test_layout_accepts_its_stock_pipeline(observed: Observation) -> None:
    assert observed.layout.refusal(observed.pipe) is None
    assert observed.layout.multiple in (1, 2)
    assert isinstance(observed.layout.size(observed.pipe, observed.forwards[0].kwargs), LatentSize)
