"""The shipped video miniatures: that they load, make videos of any length, and move things where they are told to."""

import numpy as np
import pytest
import torch

import hasten
from hasten.pipelines import mini
from hasten_miniatures.motion import VideoClassifier, VideoParser
from hasten_miniatures.moving import render_videos, sample_moving_scene
from hasten_miniatures.provenance import read_chain, write_record
from hasten_miniatures.t2v_dit import TextToVideo, build_model
from hasten_miniatures.t2v_unet import make_recipe
from hasten_miniatures.video_autoencoder import encode, video_psnr
from hasten_miniatures.video_evaluate import generate_videos
from hasten_miniatures.warm_start import load_warm_start

NAMES = ("mini/t2v-dit", "mini/t2v-unet")
LATENTS = {"mini/t2v-dit": (1, 8, 9, 16, 16), "mini/t2v-unet": (1, 4, 16, 16, 16)}
PROMPT = "a large red circle moving left on a white background"
pytestmark = pytest.mark.skipif(not set(NAMES) <= set(mini.names()), reason="these weights are not installed")


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def pipe(name):
    return hasten.load(name)


@pytest.fixture(scope="module")
def wan():
    return hasten.load("mini/t2v-dit")


@pytest.fixture(scope="module")
def truth():
    scenes = [sample_moving_scene(33, i) for i in range(8)]
    return [scene.caption() for scene in scenes], render_videos(scenes, 33, 0, 64, 9)


def test_the_recommended_call_has_the_trained_length(pipe, name):
    call = mini.recommended_call(name) | {"num_inference_steps": 1, "output_type": "latent"}
    assert pipe(PROMPT, **call).frames.shape == LATENTS[name]


def test_the_autoencoder_keeps_what_matters(wan, truth):
    captions, videos = truth
    with torch.no_grad():
        latents = wan.vae.encode(videos).latent_dist.mode()
        decoded = wan.vae.decode(latents).sample
    assert float(video_psnr(decoded, videos).mean()) > 28
    shown = list((decoded.permute(0, 2, 3, 4, 1).numpy() + 1) / 2)
    assert VideoParser().score(shown, captions).by_attribute()["motion"] == 1
    assert VideoParser().score(shown, captions).mean >= 0.85
    assert VideoClassifier().score(shown, captions).mean >= 0.9


def test_latents_are_normalised(wan, truth):
    latents = encode(wan.vae, truth[1])
    assert float(latents.std()) == pytest.approx(1, abs=0.25)
    assert float(latents.mean()) == pytest.approx(0, abs=0.25)


def test_longer_and_larger_videos_than_it_was_trained_on_can_be_made(pipe, name):
    call = mini.recommended_call(name) | {
        "num_inference_steps": 1,
        "num_frames": 33,
        "height": 96,
        "width": 64,
    }
    video = pipe(PROMPT, **call).frames
    assert video.shape == (1, 33, 96, 64, 3)
    assert np.isfinite(video).all()


def test_a_plain_call_with_its_zero_text_tokens_works(wan):
    call = {"height": 64, "width": 64, "num_frames": 5, "num_inference_steps": 2}
    assert wan(PROMPT, **call).frames.shape[1] == 5


def test_a_small_sample_moves_as_it_is_asked_to(pipe, name):
    captions = [caption for caption in mini.prompts(12, 3, model=name) if "moving" in caption][:4]
    call = mini.recommended_call(name) | {"num_inference_steps": 10}
    scores = VideoParser().score(generate_videos(pipe, captions, call), captions).by_attribute()
    assert scores["motion"] >= 0.5
    assert scores["background"] >= 0.75


def test_a_run_can_go_on_from_it(wan, tmp_path):
    begun = load_warm_start("mini/t2v-dit")
    model = build_model()
    TextToVideo(wan.vae).inherit(model, begun.weights)
    given = wan.transformer.state_dict()
    assert torch.equal(model["transformer"].state_dict()["proj_out.weight"], given["proj_out.weight"].float())
    write_record(tmp_path, {"recipe": "t2v-dit", "command": "hasten mini train", "begun_with": begun.record})
    first, *_, last = read_chain(tmp_path)
    assert first["recipe"] == "t2v-dit"
    assert first["steps"] > 0
    assert last["command"] == "hasten mini train"


def test_a_run_can_go_on_from_the_unet(tmp_path):
    begun = load_warm_start("mini/t2v-unet")
    recipe = make_recipe(tmp_path, device="cpu", compiled=False)
    model = recipe.build()
    recipe.inherit(model, begun.weights)
    given = hasten.load("mini/t2v-unet").unet.state_dict()
    assert torch.equal(model["unet"].state_dict()["conv_out.weight"], given["conv_out.weight"].float())


@pytest.mark.slow
def test_the_bars_are_met(pipe, name):
    from hasten_miniatures.video_evaluate import evaluate_videos

    rows = evaluate_videos(pipe, mini.recommended_call(name), 24, 1, lambda _: None)
    assert not [row for row in rows if row.missed]
