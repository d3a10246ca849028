"""Options: what is refused, and what the message says."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from hasten.plugins.rettention.config import RettentionConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_ratio": 0.0}, "greater than 0"),
        ({"keep_ratio": 1.5}, "less than or equal to 1"),
        ({"keep_ratio": "some"}, "valid number"),
        ({"period": 0}, "greater than or equal to 1"),
        ({"refresh": [5], "period": 7}, "refresh and period exclude each other"),
        ({"refresh": [5], "drift": 0.1}, "refresh lists fixed steps"),
        ({"layers": []}, "layers is empty"),
        ({"correction": "none", "ramp": 0.1}, "ramp has no effect with correction='none'"),
        ({"correction": "residual", "clamp_rho": True}, "clamp_rho has no effect with correction='residual'"),
        ({"correction": "none", "cache_budget": "1GB"}, "cache_budget has no effect with correction='none'"),
        ({"samples": 8}, "samples has no effect without drift or ramp='measured'"),
        ({"ramp": "measured", "clamp_rho": True}, "clamp_rho has no effect with ramp='measured'"),
        ({"ramp": "measured", "ramp_text": True}, "ramp_text has no effect with ramp='measured'"),
        ({"cache_budget": "some"}, "must be a number of bytes above 0, or one with KB, MB or GB, not 'some'"),
        ({"cache_budget": "300"}, "must be a number of bytes above 0, or one with KB, MB or GB, not '300'"),
        ({"cache_budget": True}, "valid integer"),
        ({"cache_budget": 0}, "must be a number of bytes above 0"),
        ({"kernel": "cuda"}, "'gather', 'varlen', 'flex', 'triton'"),
        ({"keep": 0.1}, "Extra inputs"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValidationError, match=message):
        RettentionConfig(**options)


@pytest.mark.parametrize(("text", "count"), [("4GB", 4 * 10**9), ("1.5 mb", 1_500_000), (12, 12)])
def test_budgets(text, count):
    assert RettentionConfig(cache_budget=text).budget == count


@pytest.mark.parametrize(
    "options",
    [
        {"tile": (4, 8), "warmup": 0.25, "refresh": (5, 9), "ramp": "measured", "mask": "tile2d"},
        {"correction": "none"},
        {"correction": "residual", "cache_budget": "4GB", "warmup": 3},
    ],
)
def test_options_survive_json(options):
    config = RettentionConfig(**options)
    assert RettentionConfig(**config.model_dump(mode="json")) == config
    assert RettentionConfig.model_validate_json(config.model_dump_json()) == config
