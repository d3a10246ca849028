"""The ControlNet of the flagship: its condition, its untrained state, and the shipped weights in a stock pipeline."""

from pathlib import Path

import pytest
import torch

import hasten
from hasten.pipelines.mini.render import render_scenes
from hasten.pipelines.mini.scenes import sample_scene
from hasten_miniatures.outlines import agreement, outlines, to_tensor
from hasten_miniatures.t2i_outlines import CALL, WEIGHTS, load, make_recipe
from hasten_miniatures.training import step_generator


def pictures(count: int, size: int) -> torch.Tensor:
    return render_scenes([sample_scene(7, index) for index in range(count)], 7, 0, size)


def test_outlines_lie_where_the_colour_changes() -> None:
    image = torch.ones(1, 3, 8, 8)
    image[:, 1, :, 4:] = -1
    lines = outlines(image)
    assert lines.shape == image.shape
    assert set(lines.unique().tolist()) == {-1.0, 1.0}
    assert (lines[0, 0] > 0).nonzero()[:, 1].unique().tolist() == [3]


def test_agreement_is_one_for_the_scene_itself_and_falls_with_distance() -> None:
    images = pictures(4, 64)
    condition = outlines(images)
    assert agreement(images, condition).tolist() == pytest.approx([1.0] * 4)
    near, far = (agreement(images.roll(shift, -1), condition).mean() for shift in (2, 8))
    assert far < 0.7 < near
    assert agreement(torch.zeros_like(images), condition).tolist() == [0.0] * 4


def test_an_untrained_network_changes_nothing() -> None:
    recipe = make_recipe(Path("/nonexistent"), device="cpu", compiled=False)
    recipe.images, recipe.cache, recipe.low_batch = 32, None, 2
    torch.manual_seed(0)
    model = recipe.build()
    loss, figures = recipe.loss(model, 1, step_generator(0, 1))
    assert figures == {"image_tokens": 256.0}
    loss.backward()
    assert all(not block.weight.any() for block in model.controlnet_blocks)
    assert any(block.weight.grad.any() for block in model.controlnet_blocks)
    assert not any(parameter.requires_grad for parameter in recipe.transformer.parameters())


def test_pictures_follow_the_outlines_with_bottleneck_too() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) <= 3e6
    pipe = load()
    pipe.set_progress_bar_config(disable=True)
    condition = outlines(pictures(2, 128))[1:]
    call = {**CALL, "num_inference_steps": 6, "height": 128, "width": 128, "control_image": condition}

    def follows() -> float:
        torch.manual_seed(0)
        images = pipe(sample_scene(7, 1).caption(), generator=torch.Generator().manual_seed(0), **call).images
        return float(agreement(to_tensor(images), condition))

    assert follows() > 0.6
    with hasten.accelerate(pipe, {"bottleneck": {"min_pixels": 1}}) as accel:
        assert follows() > 0.3
        assert any(step.facts["bottleneck"].get("control") == "low" for step in accel.report().steps)
