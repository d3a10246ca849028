"""CLIP towers on a tiny random model: prompts, preprocessing, folders, fingerprints."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from hasten._errors import ConfigError
from hasten.eval.functional.alignment import cosine
from hasten.eval.metric import Batch
from hasten.eval.metrics.alignment import ClipScore
from hasten.eval.metrics.fidelity import ImageCosine
from hasten.eval.networks.clip import ClipNetwork, projected
from hasten.eval.networks.features import load_feature_network

PROMPTS = ["a fox", "the red dog by a tree", "z"]


@pytest.fixture
def clip(clip_model: nn.Module, clip_tokenizer: object) -> ClipNetwork:
    return ClipNetwork(clip_model, clip_tokenizer)


@pytest.fixture
def folder(clip_model: nn.Module, clip_tokenizer: object, tmp_path: Path) -> Path:
    clip_model.save_pretrained(tmp_path)
    clip_tokenizer.save_pretrained(tmp_path)
    fields = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    return tmp_path


def long_prompt(letter: str) -> str:
    return " ".join([letter] * 200)


class TestTexts:
    def test_long_prompts_keep_their_end_and_their_meaning(self, clip: ClipNetwork) -> None:
        texts = clip.embed_texts([long_prompt("a"), long_prompt("b"), "a fox"])
        assert texts.too_long == (0, 1)
        assert texts.tokens[:2] == (202, 202)
        assert float(cosine(texts.embeddings[:1], texts.embeddings[1:2])) < 0.999
        ids = clip.tokenizer([long_prompt("a")], truncation=False)["input_ids"][0]
        (piece,) = clip._pieces(ids)
        assert len(piece) == 77
        assert piece[-1] == clip.tokenizer.eos_token_id

    def test_equals_the_tokenizers_own_truncation(self, clip: ClipNetwork) -> None:
        prompts = [long_prompt("a"), *PROMPTS]
        tokens = clip.tokenizer(prompts, padding=True, truncation=True, max_length=77, return_tensors="pt")
        with torch.inference_mode():
            expected = projected(clip.model.get_text_features(**tokens))
        assert torch.allclose(clip.embed_texts(prompts).embeddings, expected, atol=1e-5)

    def test_pieces(self, clip_model: nn.Module, clip_tokenizer: object) -> None:
        clip = ClipNetwork(clip_model, clip_tokenizer, long_prompt="chunk_mean")
        repeated = " ".join(["a"] * 75)  # exactly one full piece
        one, two = (clip.embed_texts([text]).embeddings for text in (repeated, f"{repeated} {repeated}"))
        assert float(cosine(one, two)) == pytest.approx(1, abs=1e-6)
        mixed = clip.embed_texts([f"{repeated} b c", long_prompt("b")])
        assert mixed.embeddings.norm(dim=1).tolist() == pytest.approx([1, 1])

    def test_refusal(self, clip_model: nn.Module, clip_tokenizer: object) -> None:
        clip = ClipNetwork(clip_model, clip_tokenizer, long_prompt="error")
        with pytest.raises(ConfigError, match="1 prompts exceed the 77 tokens"):
            clip.embed_texts(["a", long_prompt("a")])
        with pytest.raises(ConfigError, match="no tokenizer"):
            ClipNetwork(clip_model).embed_texts(["a"])
        with pytest.raises(ConfigError, match="long_prompt is one of"):
            ClipNetwork(clip_model, long_prompt="cut")

    def test_batching_does_not_matter(self, clip: ClipNetwork) -> None:
        together = clip.embed_texts(PROMPTS).embeddings
        for i, prompt in enumerate(PROMPTS):
            assert torch.allclose(clip.embed_texts([prompt]).embeddings[0], together[i], atol=1e-5)


class TestImages:
    def test_equals_the_vision_model_with_projection(
        self, clip: ClipNetwork, clip_model: nn.Module, images: Tensor
    ) -> None:
        from transformers import CLIPVisionModelWithProjection

        tower = CLIPVisionModelWithProjection(clip_model.config.vision_config).eval()
        tower.load_state_dict(clip_model.state_dict(), strict=False)
        with torch.inference_mode():
            expected = tower(pixel_values=clip.preprocess(images)).image_embeds
        assert torch.allclose(clip.embed_images(images), expected, atol=1e-6)

    def test_floats_are_refused(self, clip: ClipNetwork, images: Tensor) -> None:
        with pytest.raises(ConfigError, match="uint8"):
            clip.embed_images(images / 255)

    def test_both_return_types(self) -> None:
        vector = torch.ones(1, 2)
        assert projected(vector) is vector
        assert projected(SimpleNamespace(pooler_output=vector)) is vector

    def test_geometry(self, clip_model: nn.Module, images: Tensor) -> None:
        crop, square = ClipNetwork(clip_model), ClipNetwork(clip_model, geometry="square")
        assert crop.preprocess(images).shape == square.preprocess(images).shape == (8, 3, 32, 32)
        assert not torch.allclose(crop.preprocess(images), square.preprocess(images), atol=0.02)
        assert crop.fingerprint("m") != square.fingerprint("m")
        with pytest.raises(ConfigError, match="geometry"):
            ClipNetwork(clip_model, geometry="stretch")


class TestFolder:
    def test_round_trip(self, folder: Path, clip: ClipNetwork, images: Tensor) -> None:
        loaded = ClipNetwork.load(folder)
        assert loaded.mean == (0.5, 0.5, 0.5)
        assert loaded.weights == clip.weights
        assert torch.equal(loaded.embed_texts(PROMPTS).embeddings, clip.embed_texts(PROMPTS).embeddings)
        features = load_feature_network(folder)
        assert features.dimension == 16
        assert torch.equal(features(images), loaded.embed_images(images))

    def test_pixel_statistics_are_not_guessed(self, folder: Path) -> None:
        (folder / "preprocessor_config.json").write_text("{}")
        with pytest.raises(ConfigError, match="image_mean"):
            ClipNetwork.load(folder)
        (folder / "preprocessor_config.json").unlink()
        stated = ClipNetwork.load(folder, pixel_statistics=([0.5] * 3, [0.25] * 3))
        assert stated.std == (0.25, 0.25, 0.25)
        with pytest.raises(ConfigError, match=r"preprocessor_config\.json"):
            ClipNetwork.load(folder)

    def test_no_model(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no CLIP model can be loaded"):
            ClipNetwork.load(tmp_path)
        with pytest.raises(ConfigError, match="its own preprocessing"):
            load_feature_network(tmp_path, preset="clean")


class TestMetrics:
    def test_clip_score(self, clip: ClipNetwork, images: Tensor) -> None:
        metric = ClipScore(clip)
        prompts = ("a fox", long_prompt("b"))
        features = metric.embed(Batch(images[:2], prompts))
        expected = 100 * cosine(clip.embed_images(images[:2]), clip.embed_texts(prompts).embeddings)
        assert torch.allclose(metric.score(features), expected)
        assert metric.summarize(metric.score(features)) == pytest.approx(float(expected.mean()))
        assert metric.truncated == 1
        assert features["tokens"].tolist()[1] == 202

    def test_original_prefix_and_templates(self, clip: ClipNetwork, images: Tensor) -> None:
        def text(metric: ClipScore) -> Tensor:
            return metric.embed(Batch(images[:1], ("fox",)))["text"]

        assert torch.equal(
            text(ClipScore(clip, "original")), clip.embed_texts(["A photo depicts fox"]).embeddings
        )
        template = ClipScore(clip, template="a photo of a {}")
        assert torch.equal(text(template), clip.embed_texts(["a photo of a fox"]).embeddings)
        with pytest.raises(ConfigError, match="template"):
            ClipScore(clip, template="a photo")

    def test_fingerprints_tell_variants_apart(self, clip: ClipNetwork) -> None:
        prints = {
            ClipScore(clip, scale).fingerprint().digest() for scale in ("percent", "clamped", "original")
        }
        assert len(prints) == 3

    def test_prompts_are_needed(self, clip: ClipNetwork, images: Tensor) -> None:
        with pytest.raises(ConfigError, match="needs prompts"):
            ClipScore(clip).embed(Batch(images))

    def test_image_cosine(self, clip: ClipNetwork, images: Tensor) -> None:
        metric = ImageCosine(clip)
        same = metric.score(metric.embed(Batch(images, baseline=images)))
        assert same.tolist() == pytest.approx([1.0] * 8)
        other = metric.score(metric.embed(Batch(images, baseline=images.flip(0))))
        assert float(other.max()) < 1

    def test_not_a_network(self) -> None:
        with pytest.raises(ConfigError, match="ClipNetwork, not int"):
            ClipScore(3)
