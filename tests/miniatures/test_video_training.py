"""The video recipes: what they start from, that they resume to the bit, and that training sees what a call sees."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from hasten_miniatures.moving import render_videos, sample_moving_scene
from hasten_miniatures.moving_pools import MAX_TOKENS, training_scene, video_tokenizer
from hasten_miniatures.schedule import Schedule
from hasten_miniatures.t2v_dit import CALL, TextToVideo, assemble, encode_text
from hasten_miniatures.training import Cadence, step_generator, train
from hasten_miniatures.training_attention import matmul_attention
from hasten_miniatures.video_autoencoder import (
    VideoAutoencoder,
    _decode_unclamped,
    build_video_autoencoder,
    calibrate,
    encode,
    start_frame_by_frame,
)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return start_frame_by_frame(build_video_autoencoder()).eval().requires_grad_(False)


class TinyAutoencoder(VideoAutoencoder):
    schedule = Schedule(steps=4, learning_rate=1e-3)
    crops, wholes = 1, 1
    singles = 0.5

    def preview(self, model, folder, step):
        return {}


class TinyVideo(TextToVideo):
    schedule = Schedule(steps=4, learning_rate=1e-3)
    batches = {1: 2, 3: 2, 5: 1, 9: 1, 17: 1}  # noqa: RUF012
    singles, short = 0.5, 0.75

    def preview(self, model, folder, step):
        return {}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def test_the_autoencoder_starts_blind_to_time(vae):
    frames = torch.rand(1, 3, 1, 32, 32) * 2 - 1
    latents = vae.encode(frames.expand(-1, -1, 5, -1, -1)).latent_dist.mode()
    assert latents.shape == (1, 8, 3, 8, 8)
    torch.testing.assert_close(latents[:, :, 1:], latents[:, :, :1].expand(-1, -1, 2, -1, -1))
    decoded = vae.decode(latents).sample
    assert decoded.shape == (1, 3, 5, 32, 32)
    torch.testing.assert_close(decoded, decoded[:, :, :1].expand(-1, -1, 5, -1, -1))


def test_training_decodes_as_the_model_does_but_for_the_clamp(vae):
    latents = torch.randn(1, 8, 3, 8, 8, generator=step_generator(0, 0))
    torch.testing.assert_close(_decode_unclamped(vae, latents).clamp(-1, 1), vae.decode(latents).sample)


def test_latents_are_normalised_by_channel(vae):
    calibrate(vae, scenes=2)
    scenes = [sample_moving_scene(8, i) for i in range(6)]
    latents = encode(vae, render_videos(scenes, 8, 0, 64, 5))
    assert latents.shape == (6, 8, 3, 16, 16)
    assert latents.std((0, 2, 3, 4)).max() < 2.5


def test_the_autoencoder_recipe_resumes_to_the_bit(tmp_path):
    whole = train(TinyAutoencoder(), tmp_path / "whole")
    train(TinyAutoencoder(), tmp_path / "parts", cadence=Cadence(stop_after=3))
    assert same(whole, train(TinyAutoencoder(), tmp_path / "parts"))


def test_an_autoencoder_begins_with_the_encoder_of_one_whose_decoder_is_narrower():
    model = TinyAutoencoder().build()
    weights = {key: value + 1 for key, value in model.state_dict().items()}
    own = weights.pop("decoder.conv_in.weight")
    weights["decoder.conv_in.weight"] = own[:1]
    before = model.decoder.conv_in.weight.clone()
    TinyAutoencoder().inherit(model, weights)
    assert torch.equal(model.decoder.conv_in.weight, before)
    assert torch.equal(model.encoder.conv_in.weight, weights["encoder.conv_in.weight"])


def test_refining_the_autoencoder_leaves_its_latents_alone():
    recipe = TinyAutoencoder()
    recipe.refine()
    torch.manual_seed(0)
    model = recipe.build().train()
    loss, _ = recipe.loss(model, 1, step_generator(0, 1))
    loss.backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert any(parameter.grad is not None for parameter in model.decoder.parameters())


def test_the_video_recipe_resumes_to_the_bit_and_grows(tmp_path, vae):
    def recipe():
        return TinyVideo(vae, videos=dict.fromkeys((1, 5, 9, 17, 33), 16), cache=tmp_path / "cache")

    whole = train(recipe(), tmp_path / "whole")
    train(recipe(), tmp_path / "parts", cadence=Cadence(stop_after=2))
    assert same(whole, train(recipe(), tmp_path / "parts"))
    lengths = [recipe()._length(step, step_generator(0, step)) for step in range(4)]
    assert lengths[:3] == [1, 1, 3]
    later = {recipe()._length(3, step_generator(0, seed)) for seed in range(60)}
    assert later == {3, 5, 9, 17}
    refined = recipe()
    refined.refine()
    assert {refined._length(0, step_generator(0, seed)) for seed in range(60)} == later


def test_training_shows_the_denoiser_what_the_pipeline_shows_it(vae):
    torch.manual_seed(0)
    model = TinyVideo(vae).build().eval()
    pipe = assemble(vae, model["text_encoder"], model["transformer"])
    captions = ["a large red circle moving left on a white background", ""]
    ids = pipe.tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids
    for length in (MAX_TOKENS, 40):
        given, _ = pipe.encode_prompt(captions, do_classifier_free_guidance=False, max_sequence_length=length)
        trained = F.pad(encode_text(model["text_encoder"], ids), (0, 0, 0, length - MAX_TOKENS))
        torch.testing.assert_close(given, trained)


def test_noise_levels_are_shared_in_odd_steps_and_the_first_frame_is_clear_in_a_quarter_of_all(vae):
    recipe = TinyVideo(vae)
    shared, own, clear = (recipe._times(3, 5, step, step_generator(0, step)) for step in (1, 4, 6))
    assert torch.equal(shared, shared[:, :1].expand(3, 5))
    assert all(len(levels.unique()) == 5 for levels in own)
    assert (clear[:, 0] <= 0.05).all()
    assert torch.equal(clear[:, 1:], clear[:, 1:2].expand(3, 4))
    single = torch.cat([recipe._times(64, 1, step, step_generator(0, step)) for step in (4, 6)])
    assert single.median() > 0.3  # a single frame is not shown clear, with nothing to learn from it


def test_the_same_level_told_frame_by_frame_is_the_same_to_the_denoiser(vae):
    recipe = TinyVideo(vae)
    model = recipe.build().eval()
    torch.nn.init.normal_(model["transformer"].proj_out.weight)
    latents, text = torch.randn(2, 8, 3, 16, 16), torch.randn(2, MAX_TOKENS, 96)
    time = torch.tensor([300.0, 800.0])
    whole = model["transformer"](latents, time, text, return_dict=False)[0]
    told = time[:, None].expand(2, 3).repeat_interleave(64, 1)
    torch.testing.assert_close(model["transformer"](latents, told, text, return_dict=False)[0], whole)


def test_half_of_the_single_frames_stand_still_and_clips_are_as_the_data_set_has_them():
    still = [not training_scene(1, index).moves for index in range(200)]
    assert all(still[1::2])
    assert sum(still[::2]) < 40
    assert all(training_scene(5, index) == sample_moving_scene(5, index) for index in range(20))


def test_every_caption_fits_and_every_word_is_known():
    tokenizer = video_tokenizer()
    for index, split in itertools.product(range(200), ("train", "held_out")):
        ids = tokenizer(sample_moving_scene(1, index, split).caption()).input_ids
        assert len(ids) <= MAX_TOKENS
        assert tokenizer.unk_token_id not in ids


def test_attention_as_two_products_is_attention():
    query, key, value = torch.randn(3, 2, 4, 9, 8, generator=step_generator(0, 0))
    expected = F.scaled_dot_product_attention(query, key, value)
    with matmul_attention():
        torch.testing.assert_close(F.scaled_dot_product_attention(query, key, value), expected)
        mask = torch.ones(9, 9, dtype=torch.bool).tril()
        masked = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        by_position = F.scaled_dot_product_attention(query, key, value, mask)
        causal = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        scaled = F.scaled_dot_product_attention(query, key, value, scale=0.5)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    for found in (masked, by_position, causal):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(scaled, F.scaled_dot_product_attention(query, key, value, scale=0.5))


def test_the_pipeline_makes_videos_of_any_length(vae):
    torch.manual_seed(0)
    model = TinyVideo(vae).build().eval()
    pipe = assemble(vae, model["text_encoder"], model["transformer"])
    pipe.set_progress_bar_config(disable=True)
    call = {**CALL, "num_inference_steps": 2, "height": 32, "width": 32}
    for frames in (1, 5, 41):
        video = pipe(
            "a small blue star at the top on a pink background", **call | {"num_frames": frames}
        ).frames
        assert video.shape == (1, frames, 32, 32, 3)
