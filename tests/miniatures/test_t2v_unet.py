"""The U-Net video miniature before it has learned motion: its size, what it takes over, and the stock pipeline."""

from pathlib import Path

import pytest
import torch

from hasten_miniatures import references
from hasten_miniatures.contrastive import WIDTH
from hasten_miniatures.moving import parse_moving_caption
from hasten_miniatures.moving_pools import ClipPools, caption_ids, video_tokenizer
from hasten_miniatures.runs import load_text_tower
from hasten_miniatures.t2i_unet import build_unet as build_picture_unet
from hasten_miniatures.t2v_unet import (
    CALL,
    FRAMES,
    assemble,
    build_text_encoder,
    encode_text,
    make_recipe,
)
from hasten_miniatures.text import build_tokenizer
from hasten_miniatures.training import step_generator
from hasten_miniatures.training_attention import matmul_attention
from hasten_miniatures.unet3d import inflate, levels_by_frame, pictures_of

NOWHERE = Path("/nonexistent")


@pytest.fixture(scope="module")
def recipe():
    made = make_recipe(NOWHERE, device="cpu", compiled=False)
    made.pools = ClipPools(made.pools.encode, {1: 32, FRAMES: 16}, cache=None)
    return made


@pytest.fixture(scope="module")
def model(recipe):
    torch.manual_seed(0)
    built = recipe.build().eval()
    inflate(built["unet"], build_picture_unet().state_dict())
    return built


def test_it_fits_into_its_folder(recipe, model):
    parts = (*model.values(), recipe.vae)
    assert sum(2 * p.numel() for part in parts for p in part.parameters()) <= 4.95e6


def test_everything_that_is_not_temporal_comes_from_the_pictures():
    fresh = make_recipe(NOWHERE, device="cpu", compiled=False).build()["unet"]
    known = set(inflate(fresh, build_picture_unet().state_dict()))
    rest = set(fresh.state_dict()) - known
    assert all("temp" in name or "transformer_in" in name for name in rest)


@torch.no_grad()
def test_without_motion_every_frame_is_a_picture_of_its_own(model):
    pictures = pictures_of(model["unet"]).eval()
    noise = torch.randn(1, 4, 3, 16, 16, generator=step_generator(0, 0))
    words = torch.randn(1, 16, WIDTH, generator=step_generator(0, 1))
    video = model["unet"](noise, 500, words).sample
    for frame in range(3):
        expected = pictures(noise[:, :, frame], 500, words).sample
        torch.testing.assert_close(video[:, :, frame], expected, atol=1e-5, rtol=1e-4)


def test_the_model_of_pictures_has_no_weights_of_its_own(model):
    own = {id(parameter) for parameter in model["unet"].parameters()}
    assert {id(parameter) for parameter in pictures_of(model["unet"]).parameters()} < own


def test_words_of_still_scenes_are_those_of_the_tower():
    tower = load_text_tower(NOWHERE)
    encoder = build_text_encoder(tower)
    new, old = video_tokenizer().get_vocab(), build_tokenizer().get_vocab()
    here, there = (part.get_input_embeddings().weight for part in (encoder, tower))
    for word in ("red", "left", "circle", "<end>"):
        assert torch.equal(here[new[word]], there[old[word]])
    assert "moving" not in old
    assert encoder.config.eos_token_id == new["<end>"]


@torch.no_grad()
def test_training_reads_a_text_as_a_call_does(model):
    ids = caption_ids(video_tokenizer(), ["a large red circle moving up on a white background"])
    with matmul_attention():
        learned = encode_text(model["text_encoder"], ids)
    assert torch.equal(learned, model["text_encoder"](ids)[0])


def test_an_untrained_denoiser_sees_windows_of_growing_length(recipe):
    torch.manual_seed(0)
    fresh = recipe.build()
    loss, figures = recipe.loss(fresh, 0, step_generator(0, 0))
    assert figures == {"frames": 1.0}
    assert torch.isfinite(loss)
    begin = 0.0
    for end, lengths in recipe.phases:
        step = int((begin + end) / 2 * recipe.schedule.steps)
        assert {recipe._length(step, step_generator(0, seed)) for seed in range(60)} == set(lengths)
        begin = end
    assert [max(lengths) for _, lengths in recipe.phases] == [1, 2, 4, 8, 16, 16]


def test_a_refinement_goes_on_from_a_run_of_its_own_with_long_clips_alone(model):
    refined = make_recipe(NOWHERE, device="cpu", compiled=False)
    refined.refine()
    assert {refined._length(0, step_generator(0, seed)) for seed in range(40)} == {4, 16}
    fresh = refined.build()
    refined.inherit(fresh, model.state_dict())
    assert all(torch.equal(new, old) for new, old in zip(fresh.parameters(), model.parameters()))


def test_every_other_step_of_a_refinement_is_on_ways_of_its_own(recipe, model, monkeypatch):
    caption = "a large red circle moving up on a white background"
    monkeypatch.setattr(references, "_moving_scenes", lambda: [parse_moving_caption(caption)])
    refined = make_recipe(NOWHERE, device="cpu", compiled=False)
    refined.pools = recipe.pools
    refined.refine()
    seen = []
    hook = model["unet"].register_forward_pre_hook(lambda _, args: seen.append(args))
    for step in range(2):
        with torch.no_grad():
            loss, figures = refined.loss(model, step, step_generator(0, step))
        assert torch.isfinite(loss)
        assert figures["frames"] in (4, FRAMES)
    hook.remove()
    own = seen[1:]
    assert len(own) >= 8, "several states, with and without the caption"
    assert {args[0].shape for args in own} == {(2, 4, FRAMES, 16, 16)}
    assert [int(args[1][0]) for args in own[:2]] == [999, 999]
    torch.testing.assert_close(own[0][0], own[1][0], msg="guidance looks at the same state")


def test_levels_of_frames(recipe, model, monkeypatch):
    """In windows longer than two every fourth step has a level for each frame, every fourth a clear first frame."""
    monkeypatch.setattr(recipe, "phases", ((1.0, (4,)),))
    clean, _ = recipe._batch(4, _after_length(step_generator(0, 7)))
    seen = {}
    hook = model["unet"].register_forward_pre_hook(lambda _, args: seen.update({step: args}))
    for step in range(4):
        with torch.no_grad():
            recipe.loss(model, step, step_generator(0, 7))
    hook.remove()
    own, shared, told, again = (recipe._times(8, 4, step, step_generator(0, 7)) for step in range(4))
    assert len(set(own[0][0].tolist())) > 1
    assert (shared[0] == shared[0][:, :1]).all()
    assert torch.equal(shared[0], again[0])
    assert (told[0][:, 0] == 0).all()
    assert (told[0][:, 1:] >= 500).all()
    assert [known for _, known in (own, shared, told, again)] == [0, 0, 1, 0]
    torch.testing.assert_close(seen[2][0][:, :, :1], clean[:, :, :1])
    assert not torch.allclose(seen[1][0][:, :, :1], clean[:, :, :1])
    assert recipe._times(8, 1, 2, step_generator(0, 7))[1] == 0, "a single frame has nothing beside it"


def test_whole_clips_end_at_the_levels_where_motion_is_decided(recipe):
    before = int(recipe.decisive * recipe.schedule.steps) - 3
    for step in range(before + 3, before + 12):
        times, known = recipe._times(8, FRAMES, step, step_generator(0, step))
        assert known == 0
        assert (times == times[:, :1]).all()
        assert (times >= (700 if step % 2 else 400)).all()
    assert {recipe._times(8, FRAMES, before + i, step_generator(0, 0))[1] for i in range(3)} == {0, 1}
    assert (recipe._times(64, 4, before + 12, step_generator(0, 0))[0] < 700).any()


def test_pairs_always_have_a_clear_frame_and_a_noisy_one(recipe):
    for step in range(4):
        times, known = recipe._times(8, 2, step, step_generator(0, step))
        assert known == 1
        assert (times[:, 0] == 0).all()
        assert (times[:, 1] >= 500).all()


@torch.no_grad()
def test_own_levels_are_those_of_frames_by_themselves(model):
    """Without motion every frame is computed alone, so that its level may be compared."""
    noise = torch.randn(2, 4, 3, 16, 16, generator=step_generator(0, 0))
    words = torch.randn(2, 16, WIDTH, generator=step_generator(0, 1))
    times = torch.tensor([[10, 500, 900], [999, 0, 300]])
    with levels_by_frame(model["unet"], times):
        video = model["unet"](noise, times[:, 0], words).sample
    for frame in range(3):
        alone = model["unet"](noise[:, :, frame : frame + 1], times[:, frame], words).sample
        torch.testing.assert_close(video[:, :, frame : frame + 1], alone, atol=1e-5, rtol=1e-4)
    assert not any(module._forward_pre_hooks for module in model["unet"].modules())


def _after_length(generator):
    """``generator`` after the draw that chooses a length."""
    torch.randint(4, (1,), generator=generator)
    return generator


def test_the_stock_pipeline_runs_with_its_recommended_call(recipe, model):
    pipe = assemble(recipe.vae, model["text_encoder"], model["unet"])
    pipe.set_progress_bar_config(disable=True)
    call = {**CALL, "num_inference_steps": 1, "num_frames": 3, "output_type": "np"}
    assert pipe("a large red circle moving up on a white background", **call).frames.shape == (
        1,
        3,
        64,
        64,
        3,
    )
