"""The shipped video miniature: that it loads, makes videos of any length, and moves things where it is told to."""

import numpy as np
import pytest
import torch

import hasten
from hasten.pipelines import mini
from hasten.pipelines.mini.beginnings import beginning
from hasten.pipelines.mini.motion import VideoClassifier, VideoParser
from hasten.pipelines.mini.moving import render_videos, sample_moving_scene
from hasten.pipelines.mini.provenance import read_chain, write_record
from hasten.pipelines.mini.t2v_dit import TextToVideo, build_model
from hasten.pipelines.mini.video_autoencoder import encode, video_psnr
from hasten.pipelines.mini.video_evaluate import generate_videos

NAME = "mini/t2v-dit"
pytestmark = pytest.mark.skipif(NAME not in mini.names(), reason="these weights are not installed")


@pytest.fixture(scope="module")
def pipe():
    return hasten.load(NAME)


@pytest.fixture(scope="module")
def truth():
    scenes = [sample_moving_scene(33, i) for i in range(8)]
    return [scene.caption() for scene in scenes], render_videos(scenes, 33, 0, 64, 9)


def test_the_trained_length_is_nine_latent_frames(pipe):
    call = mini.recommended_call(NAME) | {"num_inference_steps": 1, "output_type": "latent"}
    latents = pipe("a large red circle moving left on a white background", **call).frames
    assert latents.shape == (1, 8, 9, 16, 16)


def test_the_autoencoder_keeps_what_matters(pipe, truth):
    captions, videos = truth
    with torch.no_grad():
        latents = pipe.vae.encode(videos).latent_dist.mode()
        decoded = pipe.vae.decode(latents).sample
    assert float(video_psnr(decoded, videos).mean()) > 28
    shown = list((decoded.permute(0, 2, 3, 4, 1).numpy() + 1) / 2)
    assert VideoParser().score(shown, captions).by_attribute()["motion"] == 1
    assert VideoParser().score(shown, captions).mean >= 0.85
    assert VideoClassifier().score(shown, captions).mean >= 0.9


def test_latents_are_normalised(pipe, truth):
    latents = encode(pipe.vae, truth[1])
    assert float(latents.std()) == pytest.approx(1, abs=0.25)
    assert float(latents.mean()) == pytest.approx(0, abs=0.25)


def test_longer_and_larger_videos_than_it_was_trained_on_can_be_made(pipe):
    call = mini.recommended_call(NAME) | {
        "num_inference_steps": 1,
        "num_frames": 33,
        "height": 96,
        "width": 64,
    }
    video = pipe("a large red circle moving left on a white background", **call).frames
    assert video.shape == (1, 33, 96, 64, 3)
    assert np.isfinite(video).all()


def test_a_plain_call_with_its_zero_text_tokens_works(pipe):
    call = {"height": 64, "width": 64, "num_frames": 5, "num_inference_steps": 2}
    assert pipe("a large red circle moving left on a white background", **call).frames.shape[1] == 5


def test_a_small_sample_moves_as_it_is_asked_to(pipe):
    captions = [caption for caption in mini.prompts(12, 3, model=NAME) if "moving" in caption][:4]
    call = mini.recommended_call(NAME) | {"num_inference_steps": 10}
    scores = VideoParser().score(generate_videos(pipe, captions, call), captions).by_attribute()
    assert scores["motion"] >= 0.5
    assert scores["background"] >= 0.75


def test_a_run_can_go_on_from_it(pipe, tmp_path):
    begun = beginning(NAME)
    model = build_model()
    TextToVideo(pipe.vae).inherit(model, begun.weights)
    given = pipe.transformer.state_dict()
    assert torch.equal(model["transformer"].state_dict()["proj_out.weight"], given["proj_out.weight"].float())
    write_record(tmp_path, {"recipe": "t2v-dit", "command": "hasten mini train", "begun_with": begun.record})
    first, *_, last = read_chain(tmp_path)
    assert first["recipe"] == "t2v-dit"
    assert first["steps"] > 0
    assert last["command"] == "hasten mini train"


@pytest.mark.slow
def test_the_bars_are_met(pipe):
    from hasten.pipelines.mini.video_evaluate import evaluate_videos

    rows = evaluate_videos(pipe, mini.recommended_call(NAME), 24, 1, lambda _: None)
    assert not [row for row in rows if row.missed]
