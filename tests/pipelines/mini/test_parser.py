import numpy as np
import pytest
import torch
from PIL import Image

from hasten._errors import ConfigError
from hasten.pipelines.mini.parser import observe
from hasten.pipelines.mini.render import render_scenes
from hasten.pipelines.mini.scenes import ObjectGroup, Scene, sample_scene
from hasten.pipelines.mini.scoring import PixelParser


@pytest.mark.parametrize("size", [64, 128, 256])
def test_reads_real_scenes_without_a_mistake(pictures, size):
    scenes = [sample_scene(21, i, "train" if i % 2 else "held_out") for i in range(150 if size < 256 else 24)]
    scores = PixelParser().score(pictures(scenes, size), [scene.caption() for scene in scenes])
    assert scores.mean >= 0.998, [
        (s.caption(), [k for k, v in verdict.items() if not v])
        for s, verdict in zip(scenes, scores.verdicts)
        if not all(verdict.values())
    ]
    assert set(scores.by_attribute()) == {"background", "count", "size", "colour", "shape", "place"}


@pytest.mark.parametrize("noise", [0.02, 0.05])
def test_a_little_noise_does_not_matter(noise):
    scenes = [sample_scene(22, i) for i in range(40)]
    images = render_scenes(scenes, 0, 0, 128)
    images = images + noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).byte()
    noisy = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pixels]
    assert PixelParser().score(noisy, [scene.caption() for scene in scenes]).mean > 0.98


def asked(**changes):
    base = {"count": 1, "size": "large", "colour": "red", "shape": "circle", "place": "on the left"}
    return Scene((ObjectGroup(**(base | changes)),), "white").caption()


@pytest.mark.parametrize(
    ("wrong", "changes"),
    [
        ("colour 1", {"colour": "blue"}),
        ("shape 1", {"shape": "star"}),
        ("size 1", {"size": "small"}),
        ("place 1", {"place": "on the right"}),
    ],
)
def test_names_exactly_the_attribute_that_differs(pictures, wrong, changes):
    scene = Scene((ObjectGroup(1, "large", "red", "circle", "on the left"),), "white")
    (verdict,) = PixelParser().score(pictures([scene], 128), [asked(**changes)]).verdicts
    assert [name for name, right in verdict.items() if not right] == [wrong]


def test_swapped_objects_are_noticed(pictures):
    left, right = (
        ObjectGroup(1, "large", "red", "circle", "on the left"),
        ObjectGroup(1, "small", "blue", "star", "on the right"),
    )
    swapped = Scene(
        (
            ObjectGroup(1, "small", "blue", "star", "on the left"),
            ObjectGroup(1, "large", "red", "circle", "on the right"),
        ),
        "white",
    )
    scores = PixelParser().score(pictures([Scene((left, right), "white")], 128), [swapped.caption()])
    assert scores.asked == (11,)
    assert scores.right[0] < 11


def test_an_object_too_many_is_a_wrong_count(pictures):
    three = Scene((ObjectGroup(3, "small", "red", "circle", "at the top"),), "white")
    two = Scene((ObjectGroup(2, "small", "red", "circle", "at the top"),), "white")
    (verdict,) = PixelParser().score(pictures([three], 128), [two.caption()]).verdicts
    assert not verdict["count 1"]
    assert verdict["colour 1"]
    assert verdict["shape 1"]


def test_an_empty_picture_has_only_its_background():
    scores = PixelParser().score([Image.new("RGB", (64, 64), (245, 245, 245))], [asked()])
    assert [name for name, right in scores.verdicts[0].items() if right] == ["background"]
    assert (scores.asked, scores.right) == ((6,), (1,))


def test_noise_is_no_object_with_a_name():
    pixels = np.random.default_rng(0).random((64, 64, 3))
    assert all(item.shape is None for item in observe(pixels).objects)


def test_needs_one_prompt_per_image():
    with pytest.raises(ConfigError, match="one prompt per image"):
        PixelParser().score([], [asked()])
