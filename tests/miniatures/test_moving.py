import numpy as np
import pytest
import torch

from hasten._errors import ConfigError, UnsupportedError
from hasten.pipelines import mini
from hasten.pipelines.mini.scenes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    PLACES,
    SHAPES,
    SIZES,
    is_scene_caption,
)
from hasten_miniatures.moving import (
    HELD_OUT_MOTIONS,
    MOTIONS,
    SPEEDS,
    MovingScene,
    is_moving_caption,
    parse_moving_caption,
    render_videos,
    sample_moving_scene,
    trajectory,
)

LEFT = MovingScene("large", "red", "circle", "moving left", "white")


def test_a_scene_is_a_function_of_seed_and_index():
    again = [sample_moving_scene(3, i) for i in range(50)]
    assert [sample_moving_scene(3, i) for i in range(50)] == again
    assert [sample_moving_scene(4, i) for i in range(50)] != again
    assert trajectory(LEFT, 3, 0, 5) == trajectory(LEFT, 3, 0, 5)
    assert trajectory(LEFT, 3, 0, 5) != trajectory(LEFT, 3, 1, 5)


def test_held_out_combinations_never_occur_in_training():
    for index in range(2000):
        scene = sample_moving_scene(11, index)
        assert not {(scene.shape, scene.colour), (scene.shape, scene.path)} & HELD_OUT
        assert (scene.shape, scene.path) not in HELD_OUT_MOTIONS
    assert all(sample_moving_scene(11, index, "held_out").held_out for index in range(500))


def test_training_still_shows_every_single_value():
    scenes = [sample_moving_scene(5, index) for index in range(1500)]
    assert {scene.shape for scene in scenes} == set(SHAPES)
    assert {scene.colour for scene in scenes} == set(COLOURS)
    assert {scene.size for scene in scenes} == set(SIZES)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {scene.path for scene in scenes} == {*MOTIONS, *PLACES}


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_captions_round_trip(split):
    for index in range(300):
        scene = sample_moving_scene(7, index, split)
        assert parse_moving_caption(scene.caption()) == scene
        assert is_moving_caption(scene.caption())
        assert is_scene_caption(scene.caption()) != scene.moves


@pytest.mark.parametrize(
    "text",
    ["", "a red fox", "two small red circles moving left on a white background", "a large red circle moving"],
)
def test_other_sentences_are_refused_with_an_example(text):
    assert not is_moving_caption(text)
    with pytest.raises(ConfigError, match="moving left on a white background"):
        parse_moving_caption(text)


def test_prompts_of_the_video_miniature_are_distinct_and_of_their_split():
    found = mini.prompts(32, 1, "held_out", "mini/t2v-dit")
    assert len(set(found)) == 32
    assert all(parse_moving_caption(text).held_out for text in found)
    assert not any(parse_moving_caption(text).held_out for text in mini.prompts(32, 1, model="t2v-dit"))
    with pytest.raises(UnsupportedError, match="mini/t2v-dit"):
        mini.prompts(1, model="mini/nothing")


@pytest.mark.parametrize("path", MOTIONS)
def test_the_object_moves_the_way_the_caption_says(path):
    objects, _ = trajectory(MovingScene("small", "red", "star", path, "grey"), 1, 2, 9)
    steps = np.diff([(item.x, item.y) for item in objects], axis=0)
    dx, dy = MOTIONS[path]
    speed = steps @ np.array([dx, dy])
    assert np.allclose(speed, speed[0])
    assert SPEEDS[0] <= speed[0] <= SPEEDS[1]
    assert np.allclose(steps @ np.array([dy, dx]), 0)


def test_a_longer_video_begins_like_a_shorter_one():
    scenes = [sample_moving_scene(2, i) for i in range(3)]
    long, short = render_videos(scenes, 2, 0, 32, 40), render_videos(scenes, 2, 0, 32, 5)
    assert long.shape == (3, 3, 40, 32, 32)
    assert long.abs().max() <= 1
    torch.testing.assert_close(long[:, :, :5], short, rtol=0, atol=0)
    torch.testing.assert_close(render_videos(scenes[1:2], 2, 1, 32, 5), short[1:2], rtol=0, atol=0)


def test_nothing_is_lost_at_the_borders():
    video = render_videos([LEFT], 0, 0, 64, 40)[0]
    background = video[:, :1, :1, :1]
    covered = ((video - background).abs().sum(0) > 0.5).float().mean((1, 2))
    assert covered.min() > 0.9 * covered.max() > 0


def test_what_leaves_at_one_border_comes_in_at_the_other():
    video = render_videos([LEFT], 0, 0, 64, 60)[0]
    both = ((video[:, :, :, 0] - video[:, :, :, -1]).abs().sum(0).amax(1) < 0.5) & (
        (video[:, :, :, 0] - video[:, :, :, 32]).abs().sum(0).amax(1) > 0.5
    )
    assert both.any()
