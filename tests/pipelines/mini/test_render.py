import math

import pytest
import torch
from torch.nn import functional as F

from hasten.pipelines.mini.render import render, render_scenes, signed_distance
from hasten.pipelines.mini.scenes import SHAPES, Placed, sample_scene
from hasten_miniatures.batches import scene_batch
from hasten_miniatures.training import step_generator


def test_range_shape_and_determinism():
    scenes, images = scene_batch(6, 64, step_generator(0, 1))
    assert images.shape == (6, 3, 64, 64)
    assert images.dtype == torch.float32
    assert images.abs().max() <= 1
    assert len(scenes) == 6
    torch.testing.assert_close(scene_batch(6, 64, step_generator(0, 1))[1], images, rtol=0, atol=0)


def test_resolutions_show_the_same_scene():
    scenes = [sample_scene(2, i) for i in range(8)]
    small, large = render_scenes(scenes, 2, 0, 64), render_scenes(scenes, 2, 0, 256)
    assert (F.avg_pool2d(large, 4) - small).abs().mean() < 0.01


def test_a_picture_does_not_depend_on_its_batch():
    scenes = [sample_scene(2, i) for i in range(5)]
    together = render_scenes(scenes, 2, 0, 64)
    alone = render_scenes(scenes[3:4], 2, 3, 64)
    torch.testing.assert_close(together[3:4], alone, rtol=0, atol=0)
    torch.testing.assert_close(scenes[0].render(64, seed=2), together[0], rtol=0, atol=0)


def test_the_circle_covers_pi_r_squared():
    image = render([[Placed("circle", (1, 1, 1), 0.5, 0.5, 0.3, 0.0)]], [(0, 0, 0)], 128)
    assert float((image[0, 0] + 1).mean() / 2) == pytest.approx(math.pi * 0.3**2, rel=5e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_solid_around_their_centre_and_end_near_the_unit_circle(shape):
    angle = torch.linspace(0, 2 * math.pi, 90, dtype=torch.float64)
    assert (signed_distance(shape, 0.2 * angle.cos(), 0.2 * angle.sin()) < 0).all()
    assert (signed_distance(shape, 1.3 * angle.cos(), 1.3 * angle.sin()) > 0).all()


def test_later_objects_lie_on_top():
    red = Placed("square", (1, 0, 0), 0.5, 0.5, 0.2, 0.0)
    blue = Placed("circle", (0, 0, 1), 0.5, 0.5, 0.1, 0.0)
    image = render([[red, blue]], [(1, 1, 1)], 64)
    assert image[0, :, 32, 32].tolist() == [-1, -1, 1]
    assert image[0, :, 32, 22].tolist() == [1, -1, -1]
