"""Metrics of moving scenes on true renders, whose answers are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hasten._errors import ConfigError
from hasten.eval.commands.options import default_metrics, make_metric
from hasten.eval.metric import Batch
from hasten.pipelines import mini
from hasten_miniatures.moving import render_videos, sample_moving_scene
from hasten_miniatures.plugin import MOVING_SCENES

FRAMES = 9
SCENES = [
    scene
    for scene in (sample_moving_scene(11, i) for i in range(40))
    if scene.moves and scene.size == "large"
]
CAPTIONS = tuple(scene.caption() for scene in SCENES for _ in range(FRAMES))


def batch(videos: Any, captions: tuple[str, ...] = CAPTIONS) -> Batch:
    """A batch of (B, 3, frames, H, W) in [-1, 1]."""
    frames = videos.transpose(1, 2).flatten(0, 1)
    return Batch(((frames + 1) * 127.5).round().to(torch.uint8), captions, None, FRAMES)


@pytest.fixture(scope="module")
def videos() -> Any:
    return render_videos(SCENES, 11, 0, 64, FRAMES)


def share(name: str, given: Batch) -> float:
    features = make_metric(name, {}).embed(given)
    assert len(features["right"]) == len(SCENES)
    return float(features["right"].sum() / features["asked"].sum())


@pytest.mark.parametrize(
    ("name", "least"), [("mini_motion", 1), ("mini_video_parser", 0.99), ("mini_video_classifier", 0.95)]
)
def test_true_renders_are_right(videos: Any, name: str, least: float) -> None:
    assert share(name, batch(videos)) >= least


def test_a_video_played_backwards_moves_the_wrong_way_and_shows_the_same(videos: Any) -> None:
    backwards = batch(videos.flip(2))
    assert share("mini_motion", backwards) == 0
    assert share("mini_video_parser", backwards) == share("mini_video_parser", batch(videos))


def test_other_captions_are_wrong(videos: Any) -> None:
    swapped = tuple(caption.replace("large", "small") for caption in CAPTIONS)
    assert share("mini_video_parser", batch(videos, swapped)) == pytest.approx(0.8, abs=0.03)


def test_pictures_are_refused(videos: Any) -> None:
    pictures = batch(videos)
    with pytest.raises(ConfigError, match="needs videos"):
        make_metric("mini_motion", {}).embed(Batch(pictures.images, pictures.prompts))


def test_moving_captions_are_measured_as_videos() -> None:
    assert default_metrics(CAPTIONS) == MOVING_SCENES.metrics
    assert "mini_motion" not in default_metrics(tuple(mini.prompts(2)))
