"""The shipped folders: their size, that stock classes load them, and what the models can do."""

import json
import subprocess
import sys

import pytest
import torch

from hasten.pipelines import mini
from hasten.pipelines.mini.render import render_scenes
from hasten.pipelines.mini.scenes import sample_scene
from hasten.pipelines.mini.scoring import AttributeScorer, PixelParser
from hasten_miniatures.autoencoder import encode, psnr
from hasten_miniatures.batches import scene_batch
from hasten_miniatures.evaluate import evaluate, generate
from hasten_miniatures.training import step_generator

FOLDER = mini.path("mini/t2i-dit")
LIMITS = {
    "t2i-dit": 10,
    "t2i-dit-4096": 10.3,
    "t2i-unet": 6,
    "t2v-dit": 8,
    "t2v-unet": 5,
    "var": 6,
    "infinity": 6,
    "scorers": 3,
}
FOLDERS = [*map(mini.path, mini.names()), FOLDER.with_name("scorers")]


@pytest.fixture(scope="module")
def pipe():
    return mini.load("mini/t2i-dit")


@pytest.fixture(scope="module")
def scorer():
    return AttributeScorer()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_folders_keep_within_their_limit(folder):
    megabytes = LIMITS[folder.name]
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= megabytes * 1e6


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_weights_are_half_precision_safetensors_with_a_readme(folder):
    from safetensors import safe_open

    assert "## Training" in (folder / "README.md").read_text()
    assert not [file for file in folder.rglob("*") if file.suffix in {".bin", ".pt", ".ckpt"}]
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        assert kinds <= {"F16", "I64"}, file


@pytest.mark.parametrize("name", mini.names())
def test_every_component_is_a_stock_class(name):
    pipe = mini.load(name)
    scales = ("hasten.pipelines.var.", "hasten.pipelines.infinity.")
    own = scales if name in ("mini/var", "mini/infinity") else "diffusers."
    assert type(pipe).__module__.startswith(own)
    for name, part in pipe.components.items():
        stock = part is None or type(part).__module__.split(".")[0] in {"diffusers", "transformers"}
        assert stock or type(part).__module__.startswith(own), name
    denoiser = pipe.components.get("transformer") or pipe.unet
    assert next(denoiser.parameters()).dtype == torch.float32


@pytest.mark.parametrize("name", mini.names())
def test_a_fresh_process_loads_it(name):
    """Other tests import modules that a user's script does not."""
    code = f"import hasten; print(type(hasten.load({name!r})).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("Pipeline")


def test_both_text_slots_hold_the_same_tower(pipe):
    pairs = zip(pipe.text_encoder.state_dict().values(), pipe.text_encoder_2.state_dict().values())
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_classifier_is_right_on_real_pictures_of_both_sizes(pictures, scorer):
    scenes = [sample_scene(31, i, "train" if i % 2 else "held_out") for i in range(150)]
    for size in (64, 128):
        scores = scorer.score(pictures(scenes, size), [scene.caption() for scene in scenes])
        assert scores.mean >= 0.99, (size, scores.by_attribute())


def test_both_judges_are_right_on_pictures_from_the_autoencoder(pipe, scorer):
    scenes = [sample_scene(32, i) for i in range(24)]
    images = render_scenes(scenes, 0, 0, 128)
    with torch.no_grad():
        decoded = pipe.vae.decode(pipe.vae.encode(images).latent_dist.mode()).sample
    assert float(psnr(decoded, images).mean()) > 30
    shown = pipe.image_processor.postprocess(decoded)
    captions = [scene.caption() for scene in scenes]
    assert scorer.score(shown, captions).mean >= 0.99
    assert PixelParser().score(shown, captions).mean >= 0.99


def test_latents_are_normalised_and_their_spectrum_is_recorded(pipe):
    latents = encode(pipe.vae, scene_batch(24, 128, step_generator(9, 9))[1])
    assert float(latents.std()) == pytest.approx(1, abs=0.1)
    assert float(latents.mean()) == pytest.approx(0, abs=0.1)
    law = json.loads((FOLDER / "hasten.json").read_text())["spectrum"]
    assert law["A"] > 0
    assert law["beta"] > 0


@pytest.mark.parametrize(("side", "least"), [(256, 0.85), (128, 0.8)])
def test_a_small_sample_shows_what_it_is_asked_for(pipe, scorer, side, least):
    captions = mini.prompts(4, 3) + mini.prompts(2, 3, "held_out")
    call = mini.recommended_call("mini/t2i-dit") | {"height": side, "width": side, "num_inference_steps": 14}
    images = generate(pipe, captions, call)
    assert images[0].size == (side, side)
    for judge in (scorer, PixelParser()):
        assert judge.score(images, captions).mean >= least


def test_a_plain_call_with_its_zero_text_tokens_works(pipe):
    caption = "a large red circle in the centre on a white background"
    image = pipe(caption, generator=torch.Generator().manual_seed(0), num_inference_steps=8).images[0]
    assert image.size == (256, 256)
    assert PixelParser().score([image], [caption]).right[0] >= 5


@pytest.mark.slow
def test_the_bars_are_met(pipe, scorer):
    judges = {"classifier": scorer, "parser": PixelParser()}
    rows = evaluate(pipe, mini.recommended_call("mini/t2i-dit"), judges, 100, seed=1)
    assert not [row for row in rows if row.missed]


def test_pictures_have_1024_tokens(pipe):
    seen = []
    handle = pipe.transformer.pos_embed.register_forward_hook(lambda _, __, out: seen.append(out.shape[1]))
    call = mini.recommended_call("mini/t2i-dit") | {"num_inference_steps": 1, "output_type": "latent"}
    latents = pipe("a large red circle in the centre on a white background", **call).images
    handle.remove()
    assert latents.shape == (1, 4, 64, 64)
    assert set(seen) == {1024}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mini/var", "mini/infinity"])
def test_the_next_scale_miniatures_show_what_they_are_asked_for(scorer, name):
    captions = mini.prompts(12, 3)
    pipe = mini.load(name)
    images = generate(pipe, captions, mini.recommended_call(name))
    assert images[0].size == (64, 64)
    assert scorer.score(images, captions).mean >= 0.8
    assert PixelParser().score(images, captions).mean >= 0.65


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_no_file_names_a_path_of_the_machine_that_made_it(folder):
    assert not [f for f in folder.rglob("*.json") if json.loads(f.read_text("utf-8")).get("_name_or_path")]
