"""Recipes of the next-scale miniatures: what they teach, and what a second run leaves alone."""

import pytest
import torch

from hasten.pipelines import mini
from hasten.pipelines.var.cache import DenseKVCache
from hasten.pipelines.var.transformer import Conditioning
from hasten_miniatures.infinity import TextToBits
from hasten_miniatures.infinity_tokenizer import InfinityTokenizer, build_bitwise_tokenizer
from hasten_miniatures.runs import load_autoencoder, load_text_tower
from hasten_miniatures.scale_tokens import SCHEDULE
from hasten_miniatures.training import step_generator
from hasten_miniatures.var import TextToScales
from hasten_miniatures.var_tokenizer import VarTokenizer


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    return load_text_tower(tmp_path_factory.mktemp("none"))


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    return load_autoencoder(tmp_path_factory.mktemp("none"))


def bitwise():
    torch.manual_seed(0)
    return build_bitwise_tokenizer().eval().requires_grad_(False)


def vector():
    return mini.load("mini/var").vae.eval().requires_grad_(False)


@pytest.mark.parametrize(("recipe", "tokenizer"), [(TextToScales, vector), (TextToBits, bitwise)])
def test_what_is_taught_without_mistakes_is_what_generation_sees(recipe, tokenizer, tower):
    """Teacher-forced logits of all scales equal those of the loop over scales with a cache."""
    made = recipe(tokenizer(), tower, images=4)
    made.most_replaced = 0.0
    model = made.build().eval()
    torch.nn.init.normal_(model.ada_shared.weight, std=0.05)
    latents, text, mask = made._scenes().batch(2, step_generator(0, 0))
    inputs, targets = made._teach(latents, len(SCHEDULE), step_generator(0, 1))
    expected, choices = made.vae.quantise(latents, SCHEDULE)
    assert torch.equal(torch.cat(choices, 1), targets)
    known = Conditioning(SCHEDULE, text=text, text_mask=mask)
    with torch.no_grad():
        forced = model.teacher_forced(inputs, Conditioning(SCHEDULE, text=text, text_mask=mask))
        cache, latent, start = DenseKVCache(), torch.zeros_like(latents), 0
        cache.begin(SCHEDULE, len(model.blocks))
        for scale, found in enumerate(choices):
            logits = model(
                made.vae.next_input(latent, scale, SCHEDULE), scale=scale, conditioning=known, cache=cache
            )
            end = start + logits.shape[1]
            assert torch.allclose(logits, forced[:, start:end], atol=2e-4)
            latent, start = made.vae.add_scale(latent, found, scale, SCHEDULE), end
    assert torch.allclose(latent, expected, atol=1e-6)


@pytest.mark.parametrize(("recipe", "tokenizer"), [(TextToScales, vector), (TextToBits, bitwise)])
def test_a_step_begins_at_chance_and_reaches_every_weight(recipe, tokenizer, tower):
    made = recipe(tokenizer(), tower, images=8)
    made.batch = made.coarse_batch = 4
    torch.manual_seed(0)
    model = made.build()
    chance = torch.log(torch.tensor(float(made.vae.classes)))
    for step, tokens in ((0, 91), (made.coarse_steps, 204)):
        loss, figures = made.loss(model, step, step_generator(0, step))
        assert float(loss.detach()) == pytest.approx(float(chance), rel=0.4)
        assert figures["tokens"] == tokens
    loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name != "null_text")


@pytest.mark.parametrize("recipe", [VarTokenizer, InfinityTokenizer])
def test_refining_a_tokenizer_leaves_codes_alone(recipe, autoencoder):
    made = recipe(autoencoder)
    made.batch = 2
    made.refine()
    torch.manual_seed(0)
    model = made.build()
    loss, figures = made.loss(model, 0, step_generator(0, 0))
    assert figures["psnr"] > 0
    loss.backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved
    assert all("decoder." in name or "post_quant_conv." in name for name in moved)


def test_a_bitwise_tokenizer_learns_its_decoder_and_the_last_layer_of_its_encoder(autoencoder):
    made = InfinityTokenizer(autoencoder)
    made.batch = 2
    torch.manual_seed(0)
    model = made.build()
    made.loss(model, 0, step_generator(0, 0))[0].backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {"encoder.conv_out.weight", "decoder.conv_in.weight"} <= moved
    assert not [name for name in moved if name.startswith("encoder.") and "conv_out" not in name]
