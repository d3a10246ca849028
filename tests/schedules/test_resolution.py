import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.schedules.noise import NoiseLevel
from hasten.schedules.resolution import (
    amplitude_ratio,
    aspect_deviation,
    critical_time,
    lower_time,
    raise_time,
    shift_level,
    shift_time,
    snap_size,
    stage_times,
)
from hasten.schedules.spectrum import Spectrum

FLUX = Spectrum(203.615097, 1.915461)

times = st.floats(0.0, 1.0)
ratios = st.floats(1.0, 8.0)


@given(times, ratios)
def test_down_then_up_returns_to_the_level(time, ratio):
    assert raise_time(lower_time(time, ratio), ratio) == pytest.approx(time, abs=1e-12)
    assert lower_time(time, ratio) <= time + 1e-12


@given(times, ratios)
def test_closed_forms(time, ratio):
    """The two formulas as SPEED writes them, with the scale ``c`` of the state."""
    c = 1 / ((1 - time) * ratio + time)
    assert lower_time(time, ratio) == pytest.approx(time * c, abs=1e-12)
    assert raise_time(time, ratio) == pytest.approx(ratio * time / (1 + (ratio - 1) * time), abs=1e-12)


@given(times, ratios)
def test_flow_level_equals_the_variance_preserving_route(time, ratio):
    flow = shift_level(NoiseLevel.flow(time), 1 / ratio, "flow")
    norm = math.hypot(1 - time, time)
    vp = shift_level(NoiseLevel((1 - time) / norm, time / norm), 1 / ratio, "vp")
    assert flow.time == pytest.approx(vp.time, abs=1e-12)
    assert flow.alpha + flow.sigma == pytest.approx(1)
    assert vp.alpha**2 + vp.sigma**2 == pytest.approx(1)
    assert flow.time == pytest.approx(lower_time(time, ratio), abs=1e-12)


@pytest.mark.parametrize(("full", "low"), [(0.9, 0.818), (0.718, 0.560), (0.544, 0.374), (0.481, 0.317)])
def test_published_pairs_for_halving(full, low):
    assert lower_time(full, 2.0) == pytest.approx(low, abs=1e-3)


def test_amplitude_ratio():
    assert amplitude_ratio((128, 128), (64, 64)) == 2.0
    assert amplitude_ratio((90, 160), (68, 120)) == pytest.approx(math.sqrt(90 * 160 / (68 * 120)))


@pytest.mark.parametrize(
    ("delta", "expected"), [(0.01, 0.853), (0.05, 0.718), (0.1, 0.638), (0.2, 0.544), (0.3, 0.481)]
)
def test_critical_time_of_flux_at_1024(delta, expected):
    assert critical_time(FLUX, 32, delta) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("delta", "expected"), [(0.01, 0.711), (0.05, 0.519)])
def test_critical_time_of_wan_480_to_720(delta, expected):
    wan = Spectrum(219.484718, 2.422687)
    assert critical_time(wan, 2 / 3 * 90 / 2, delta) == pytest.approx(expected, abs=2e-3)


@given(st.floats(4, 64), st.floats(0.01, 0.5))
def test_larger_grids_may_be_used_for_longer(edge, delta):
    assert critical_time(FLUX, 2 * edge, delta) < critical_time(FLUX, edge, delta)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, math.nan])
def test_delta_out_of_range(delta):
    with pytest.raises(ValueError, match="delta must be in"):
        critical_time(FLUX, 32, delta)


STAGES = [
    ((6, 1.0, 9.0), [1, 0.978, 0.947, 0.900, 0.818, 0.643, 0]),
    (
        (20, 0.8, 6.0),
        [
            0.96,
            0.947,
            0.933,
            0.918,
            0.9,
            0.88,
            0.857,
            0.831,
            0.8,
            0.764,
            0.72,
            0.667,
            0.6,
            0.514,
            0.4,
            0.24,
            0,
        ],
    ),
    ((8, 0.6, 9.0), [0.9375, 0.900, 0.844, 0.750, 0.5625, 0]),
    ((4, 1.0, 7.0), [1, 0.955, 0.875, 0.700, 0]),
    (
        (16, 0.7, 9.0),
        [0.964, 0.952, 0.938, 0.921, 0.900, 0.875, 0.844, 0.804, 0.750, 0.675, 0.5625, 0.375, 0],
    ),
]


@pytest.mark.parametrize(("stage", "expected"), STAGES)
def test_stage_tables_of_the_paper(stage, expected):
    assert stage_times(*stage) == pytest.approx(expected, abs=6e-4)


def test_hunyuan_low_stage():
    times = stage_times(24, 0.8, 9.0)
    assert len(times) - 1 == 20
    assert (times[0], times[-2]) == pytest.approx((0.978, 0.281), abs=6e-4)


@given(st.integers(1, 60), st.floats(0.01, 1.0), st.floats(0.5, 12.0))
def test_stage_times_descend_to_zero(steps, strength, shift):
    times = stage_times(steps, strength, shift)
    assert all(a > b for a, b in itertools.pairwise(times))
    assert times[-1] == 0.0
    assert 1 <= len(times) - 1 <= steps
    assert len(times) - 1 == math.ceil(round(steps * strength, 9)) or steps * strength % 1 < 1e-9


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ((0, 1.0, 3.0), "steps"),
        ((4, 0.0, 3.0), "strength"),
        ((4, 1.1, 3.0), "strength"),
        ((4, 1.0, 0.0), "shift"),
    ],
)
def test_bad_stages_are_named(stage, name):
    with pytest.raises(ValueError, match=name):
        stage_times(*stage)


@given(times, st.floats(0.1, 12))
def test_shift_multiplies_the_noise_to_signal_ratio(time, shift):
    if 0.001 < time < 0.999:
        shifted = shift_time(time, shift)
        assert shifted / (1 - shifted) == pytest.approx(shift * time / (1 - time), rel=1e-9)


@pytest.mark.parametrize(
    ("full", "scale", "multiple", "expected"),
    [
        ((128, 128), 0.5, 2, (64, 64)),
        ((90, 160), 0.5, 2, (46, 80)),
        ((90, 160), 0.75, 2, (68, 120)),
        ((60, 104), 0.5, 2, (30, 52)),
        ((45, 45), 0.5, 1, (23, 23)),
        ((4, 64), 0.5, 2, (2, 32)),
    ],
)
def test_snapping(full, scale, multiple, expected):
    assert snap_size(full, scale, multiple) == expected


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.05, 0.95), st.sampled_from([1, 2, 4]))
def test_snapped_sizes_are_legal(height, width, scale, multiple):
    full = (height * multiple, width * multiple)
    try:
        low = snap_size(full, scale, multiple)
    except ValueError:
        assert all(side * scale > side - multiple for side in full)  # the only neighbour is the full size
        return
    assert low != full
    for side, limit in zip(low, full):
        assert multiple <= side <= limit
        assert side % multiple == 0


def test_large_latents_keep_their_aspect():
    for scale in (0.5, 0.6, 0.75):
        assert aspect_deviation((90, 160), snap_size((90, 160), scale, 2)) < 0.025


def test_a_size_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="2 x 2 cannot be scaled by"):
        snap_size((2, 2), 0.5, 2)


@pytest.mark.parametrize("scale", [0.0, 1.0, -0.5, math.nan])
def test_scale_out_of_range(scale):
    with pytest.raises(ValueError, match="scale must be in"):
        snap_size((64, 64), scale, 2)
