import numpy as np
import pytest

from hasten._errors import ConfigError
from hasten_miniatures.motion import VideoClassifier, VideoParser, centred, motion_of, read_video
from hasten_miniatures.moving import MOTIONS, MovingScene, render_videos, sample_moving_scene


def videos_of(scenes, frames=7, seed=3):
    return ((render_videos(scenes, seed, 0, 64, frames).permute(0, 2, 3, 4, 1) + 1) / 2).numpy()


@pytest.fixture(scope="module")
def scenes():
    return [sample_moving_scene(21, i, "train" if i % 2 else "held_out") for i in range(24)]


@pytest.fixture(scope="module")
def videos(scenes):
    return videos_of(scenes)


def test_the_parser_reads_real_scenes_without_a_mistake(scenes, videos):
    scores = VideoParser().score(videos, [scene.caption() for scene in scenes])
    assert scores.mean == 1
    assert set(scores.by_attribute()) == {"motion", "background", "count", "size", "colour", "shape", "place"}


def test_so_does_the_classifier(scenes, videos):
    scores = VideoClassifier().score(videos, [scene.caption() for scene in scenes])
    assert scores.mean >= 0.99
    assert set(scores.by_attribute()) == {"background", "count", "size", "colour", "shape"}


@pytest.mark.parametrize("frames", [[0, 1, 2, 3], [3, 2, 1, 0]])
def test_a_video_played_backwards_moves_the_other_way(frames):
    scene = MovingScene("large", "red", "circle", "moving left", "white")
    (video,) = videos_of([scene], 4)
    asked = "moving left" if frames[0] == 0 else "moving right"
    assert read_video(video[frames]).motion == asked


def test_exactly_the_motion_is_wrong_when_another_is_asked_for():
    scene = MovingScene("large", "red", "circle", "moving up", "white")
    other = MovingScene("large", "red", "circle", "moving down", "white")
    (verdict,) = VideoParser().score(videos_of([scene]), [other.caption()]).verdicts
    assert [name for name, right in verdict.items() if not right] == ["motion 1"]


def test_shuffled_frames_are_no_motion():
    scene = MovingScene("large", "red", "circle", "moving right", "white")
    (video,) = videos_of([scene], 24)
    shuffled = video[[0, 12, 3, 18, 6, 20, 1, 14, 8, 22, 4, 10]]
    found = [read_video(shuffled).velocity[0], read_video(video).velocity[0]]
    assert abs(found[0]) > 2 * abs(found[1])


def test_a_video_that_stands_is_not_a_moving_one():
    scene = MovingScene("large", "red", "circle", "on the left", "white")
    moving = MovingScene("large", "red", "circle", "moving left", "white")
    (verdict,) = VideoParser().score(videos_of([scene]), [moving.caption()]).verdicts
    assert not verdict["motion 1"]
    (verdict,) = VideoParser().score(videos_of([moving]), [scene.caption()]).verdicts
    assert not verdict["motion 1"]
    assert not verdict["place 1"]


def test_an_attribute_has_to_be_right_in_most_frames():
    red, blue = (MovingScene("large", colour, "circle", "moving left", "white") for colour in ("red", "blue"))
    mixed = np.concatenate([videos_of([red])[0][:4], videos_of([blue])[0][4:]])
    (verdict,) = VideoParser().score([mixed], [red.caption()]).verdicts
    assert [name for name, right in verdict.items() if not right] == ["colour 1"]


def test_an_object_across_the_border_has_a_place():
    frame = np.ones((64, 64, 3))
    frame[:, :6] = frame[:, -6:] = (1, 0, 0)
    frame[:20] = frame[44:] = 1
    middle, x, y = centred(frame)
    assert min(x, 1 - x) < 0.01
    assert y == pytest.approx(0.5)
    assert (middle[32, 26:38] == (1, 0, 0)).all()


def test_an_empty_video_has_only_its_background():
    caption = MovingScene("large", "red", "circle", "moving left", "white").caption()
    (verdict,) = VideoParser().score([np.full((4, 64, 64, 3), 0.96)], [caption]).verdicts
    assert [name for name, right in verdict.items() if right] == ["background"]


def test_directions_have_names():
    assert {motion_of(0.04 * x, 0.04 * y) for x, y in MOTIONS.values()} == set(MOTIONS)
    assert motion_of(0.001, -0.002) == "still"
    assert motion_of(0.04, 0.03) is None
    assert motion_of(float("nan"), 0.0) is None


def test_bytes_and_pictures_are_videos_too(scenes, videos):
    from PIL import Image

    as_bytes = (videos[0] * 255).round().astype(np.uint8)
    reading = read_video(as_bytes)
    assert reading.frames == read_video([Image.fromarray(frame) for frame in as_bytes]).frames
    assert reading.motion == read_video(videos[0]).motion


def test_other_shapes_and_numbers_are_refused():
    with pytest.raises(ConfigError, match="square RGB"):
        read_video(np.zeros((4, 64, 32, 3)))
    with pytest.raises(ConfigError, match="one prompt per video"):
        VideoParser().score([], ["a"])
