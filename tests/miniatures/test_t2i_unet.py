"""The U-Net miniature before it has learned anything: its size, its loss, and the stock pipeline around it."""

from pathlib import Path

import pytest
import torch

from hasten_miniatures.runs import load_text_tower
from hasten_miniatures.t2i_unet import CALL, assemble, build_text_encoder, make_recipe
from hasten_miniatures.training import step_generator

NOWHERE = Path("/nonexistent")


@pytest.fixture(scope="module")
def recipe():
    made = make_recipe(NOWHERE, device="cpu", compiled=False)
    made.images, made.cache = 32, None
    return made


def test_it_fits_into_its_folder(recipe):
    parts = (recipe.build(), recipe.vae, recipe.encoder)
    assert sum(2 * p.numel() for part in parts for p in part.parameters()) <= 5.9e6


def test_an_untrained_denoiser_predicts_nothing(recipe):
    torch.manual_seed(0)
    loss, _ = recipe.loss(recipe.build(), 0, step_generator(0, 0))
    assert float(loss) == pytest.approx(1, abs=0.15)  # latents and noise both have unit variance


def test_the_text_encoder_is_the_shared_tower(recipe):
    tower = load_text_tower(NOWHERE)
    ids = torch.randint(3, 39, (2, 24), generator=torch.Generator().manual_seed(0))
    assert torch.equal(tower(ids).last_hidden_state, recipe.encoder(ids).last_hidden_state)
    assert build_text_encoder(tower).config.hidden_size == 96


def test_latents_are_those_the_pipeline_decodes(recipe):
    """StableDiffusionPipeline knows a scale but no shift."""
    latents, tokens = recipe.draw(16, step_generator(0, 1))
    assert latents.shape == (16, 4, 16, 16)
    assert tokens.shape == (16, 24, 96)
    with torch.no_grad():
        picture = recipe.vae.decode(latents / recipe.vae.config.scaling_factor).sample
    assert -1.2 < float(picture.min()) < float(picture.max()) < 1.2


def test_the_stock_pipeline_runs_with_its_recommended_call(recipe):
    pipe = assemble(recipe.vae, recipe.encoder, recipe.build().eval())
    pipe.set_progress_bar_config(disable=True)
    image = pipe(
        "a large red circle in the centre on a white background", **{**CALL, "num_inference_steps": 2}
    ).images[0]
    assert image.size == (64, 64)
    assert pipe.scheduler.config.rescale_betas_zero_snr
    assert int(pipe.scheduler.timesteps[0]) == 999
