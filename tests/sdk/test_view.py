"""Views: accelerated copies over the same weights, each callable from its own thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from families import FAMILIES, baseline

import hasten

LOW = {"low_until": 0.5, "high_first": 1.0, "min_pixels": 1}


def test_views_share_weights_and_differ_in_settings() -> None:
    pipe = FAMILIES["sd3"]()
    plain = baseline(pipe, "sd3")
    with hasten.accelerate(pipe, {"bottleneck": LOW}) as accel:
        low = baseline(pipe, "sd3")
        same, other = accel.view(), accel.view({})
        assert same.transformer is other.transformer is pipe.transformer
        with ThreadPoolExecutor(3) as threads:
            made = list(threads.map(lambda one: baseline(one, "sd3"), (pipe, same, other)))
    assert [torch.equal(one, low) for one in made] == [True, True, False]
    assert torch.equal(made[2], plain)
    assert torch.equal(baseline(same, "sd3"), low)  # restoring the original leaves a view alone
    handle = hasten.acceleration_of(same)
    assert handle is not None
    assert len(handle.report().steps) == 3
    handle.restore()
    assert torch.equal(baseline(same, "sd3"), plain)


def test_a_view_has_its_own_tokenizers() -> None:
    pipe = hasten.load("mini/t2i-dit")
    with hasten.accelerate(pipe, {}) as accel:
        view = accel.view()
    assert view.tokenizer is not pipe.tokenizer
    assert view.text_encoder is pipe.text_encoder


def test_a_technique_that_edits_the_shared_weights_is_refused() -> None:
    pipe = hasten.load("mini/t2i-unet")
    options = {"aptp": {"route": "static", "expert": 0}}
    with (
        hasten.accelerate(pipe, options) as accel,
        pytest.raises(hasten.UnsupportedError, match="aptp edits the weights"),
    ):
        accel.view()


def test_the_message_about_two_threads_names_views() -> None:
    pipe = FAMILIES["sd3"]()
    with hasten.accelerate(pipe, {"bottleneck": LOW}):

        def again(*_: Any) -> dict[str, Any]:
            with ThreadPoolExecutor(1) as threads:
                threads.submit(baseline, pipe, "sd3").result()
            return {}

        with pytest.raises(hasten.ConflictError, match=r"acceleration_of\(pipe\)\.view\(\)"):
            baseline(pipe, "sd3", callback_on_step_end=again)
