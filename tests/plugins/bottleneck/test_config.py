import json
import math

import pytest
from pydantic import ValidationError

from hasten import Config, ConfigError
from hasten._options import options_of
from hasten.plugins.bottleneck.config import BottleneckConfig, ContinuousConfig, Stage

OPTIONS = options_of(BottleneckConfig)

RESTART = {
    "mode": "restart",
    "stages": [{"steps": 4}, {"steps": 8, "scale": 0.5, "shift": 6.0}, {"steps": 4}],
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.75, "low_until": 0.6, "delta": 0.2, "taper": 4, "high_first": 1.0, "min_pixels": 1},
        {"scale": [0.5, 0.75], "low_until": [0.7, 0.5], "spectrum": [200.0, 1.9]},
        {"scale": [512, 768]},
        {"scale": [[256, 256], 0.75]},
        {"respect_expert_boundary": False},
        RESTART,
        {"mode": "restart", "preset": "flux", "resize": "bicubic", "mix": "strength", "seed": 3},
        {"mode": "restart", "switch": "x0", "noise": "shared"},
    ],
)
def test_round_trips_through_json(options):
    config = OPTIONS.validate(options)
    assert OPTIONS.validate(json.loads(config.model_dump_json())) == config


def test_one_scale_or_several():
    assert OPTIONS.validate({"scale": [0.5, 0.75]}).scales == (0.5, 0.75)
    assert OPTIONS.validate({"scale": [512, 768]}).scales == ((512, 768),)
    assert OPTIONS.validate({"scale": [[512, 768], [720, 1080]]}).scales == ((512, 768), (720, 1080))
    assert Stage(steps=3, scale=1.0).scale == 1


@pytest.mark.parametrize(
    ("options", "place", "message"),
    [
        ({"mode": "virtual"}, "mode", "'continuous' or 'restart'"),
        ({"scale": 1}, "scale", "between 0 and 1"),
        ({"scale": 0.0}, "scale", "between 0 and 1"),
        ({"scale": "half"}, "scale", "between 0 and 1"),
        ({"scale": []}, "scale", "between 0 and 1"),
        ({"scale": [512, 1]}, "scale", "between 0 and 1"),
        ({"scale": math.nan}, "scale", "between 0 and 1"),
        ({"scale": True}, "scale", "between 0 and 1"),
        ({"high_first": 1.1}, "high_first", "less than or equal to 1"),
        ({"high_first": math.nan}, "high_first", "finite"),
        ({"high_first": True}, "high_first", "valid number"),
        ({"low_until": 0.0}, "low_until", r"\(0, 1\]"),
        ({"low_until": "never"}, "low_until", "'auto'"),
        ({"low_until": True}, "low_until", "'auto'"),
        ({"low_until": math.inf}, "low_until", "'auto'"),
        ({"delta": 0.0}, "delta", "greater than 0"),
        ({"delta": 1.0}, "delta", "less than 1"),
        ({"delta": "small"}, "delta", "valid number"),
        ({"spectrum": [0.0, 1.0]}, "spectrum", "greater than 0"),
        ({"spectrum": [1.0]}, "spectrum", "required"),
        ({"spectrum": [math.inf, 1.0]}, "spectrum", "finite"),
        ({"taper": -1}, "taper", "greater than or equal to 0"),
        ({"taper": 1.5}, "taper", "integer"),
        ({"respect_expert_boundary": "yes"}, "respect_expert_boundary", "boolean"),
        ({"min_pixels": 0}, "min_pixels", "greater than or equal to 1"),
        ({"mode": "restart", "seed": -1}, "seed", "greater than or equal to 0"),
        ({"mode": "restart", "resize": "area"}, "resize", "'lanczos'"),
        ({"mode": "restart", "stages": [{"steps": 0}, {"steps": 1}]}, "steps", "greater than or equal to 1"),
        (
            {"mode": "restart", "stages": [{"steps": 2, "strength": 1.5}, {"steps": 1}]},
            "strength",
            "equal to 1",
        ),
        ({"mode": "restart", "stages": [{"steps": 2, "shift": 0}, {"steps": 1}]}, "shift", "greater than 0"),
        ({"mode": "restart", "stages": [{"steps": 2, "scale": 2}, {"steps": 1}]}, "scale", "must be 1"),
        ({"mode": "restart", "preset": "wan"}, "preset", "'flux'"),
    ],
)
def test_bad_values_are_named(options, place, message):
    with pytest.raises(ValidationError, match=message) as caught:
        OPTIONS.validate(options)
    assert any(place in map(str, error["loc"]) for error in caught.value.errors())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": "bicubic"}, "resize has no effect with mode='continuous'"),
        ({"stages": [{"steps": 1}, {"steps": 1}]}, "stages has no effect"),
        ({"mode": "restart", "delta": 0.1}, "delta has no effect with mode='restart'"),
        ({"mode": "restart", "scale": 0.75}, "scale has no effect"),
        ({"scale": [0.5, 0.75], "low_until": 0.7}, "one level for 2 entries"),
        ({"scale": [0.5, 0.75], "low_until": [0.7]}, "1 levels for 2 entries"),
        ({"scale": [0.5, 0.75], "low_until": [0.5, 0.7]}, "must fall"),
        ({**RESTART, "preset": "flux"}, "exclude each other"),
        ({"mode": "restart", "stages": [{"steps": 1}]}, "at least 2"),
        ({"mode": "restart", "stages": [{"steps": 1, "scale": 0.5}, {"steps": 1}]}, "stages.0.scale=0.5"),
        ({"mode": "restart", "stages": [{"steps": 1}, {"steps": 1, "scale": 0.5}]}, "stages.1.scale=0.5"),
    ],
)
def test_contradictions_are_explained(options, message):
    with pytest.raises(ValidationError, match=message):
        OPTIONS.validate(options)


def test_a_file_written_in_full_by_an_earlier_version_is_read():
    """Its options of the other mode are all at their defaults."""
    written = {
        "mode": "continuous",
        "high_first": 0.98,
        "stages": None,
        "resize": "lanczos",
        "noise": "fresh",
    }
    assert OPTIONS.validate(written) == OPTIONS.validate({"high_first": 0.98})


@pytest.mark.parametrize(
    ("options", "place", "message"),
    [
        ({"resize": "area"}, "resize", "mode='restart'"),
        ({"mode": "restart", "high_first": 0.98}, "high_first", "remove it, or set mode='continuous'"),
        ({"mode": "paper"}, "mode", "'continuous' or 'restart'"),
        ({"detla": 0.1}, "detla", "did you mean 'delta'"),
    ],
)
def test_a_file_is_told_the_place_and_the_remedy(options, place, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Config.of({"bottleneck": options})
    assert f"at techniques.bottleneck.{place}" in str(caught.value)


def test_the_defaults_are_those_of_the_flagship():
    config = OPTIONS.validate({})
    assert isinstance(config, ContinuousConfig)
    assert (config.high_first, config.delta) == (1.0, 0.2)


def test_unknown_options_are_refused():
    with pytest.raises(ValidationError, match="Extra inputs"):
        OPTIONS.validate({"scales": 0.5})
