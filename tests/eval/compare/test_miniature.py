"""The miniature metrics against the scorers they stand for, here with untrained weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from hasten._errors import CheckpointError
from hasten.eval.commands.options import default_metrics, make_metric
from hasten.eval.functional.frechet import frechet_distance_of_features
from hasten.eval.metric import Batch
from hasten.eval.metrics.miniature import (
    RENDERS_PER_PROMPT,
    Classifier,
    Frechet,
    Mmd,
    TextImage,
    true_renders,
)
from hasten.pipelines import mini
from hasten.pipelines.mini.judge import Judge, load_judge
from hasten.pipelines.mini.plugin import SCENES
from hasten.pipelines.mini.scoring import AttributeScorer
from hasten_miniatures.contrastive import build_clip, export_clip
from hasten_miniatures.judge import export_judge
from hasten_miniatures.text import MAX_TOKENS, build_tokenizer

PROMPTS = tuple(mini.prompts(5))


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scorers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        export_clip(build_clip(), folder / "clip")
        export_judge(Judge(), folder / "judge")
    return folder


@pytest.fixture(scope="module")
def images() -> Tensor:
    return true_renders(PROMPTS, 128)[::RENDERS_PER_PROMPT]


def test_text_image_is_the_models_own_cosine(scorers: Path, images: Tensor) -> None:
    from transformers import CLIPModel

    metric = TextImage(scorers / "clip")
    found = metric.score(metric.embed(Batch(images, PROMPTS)))
    model = CLIPModel.from_pretrained(scorers / "clip", dtype=torch.float32).eval()
    tokens = build_tokenizer()(
        list(PROMPTS), padding="max_length", max_length=MAX_TOKENS, return_tensors="pt"
    ).input_ids
    pixels = F.avg_pool2d(images.float() / 127.5 - 1, 2)
    with torch.no_grad():
        out = model(input_ids=tokens, pixel_values=pixels)
    assert torch.allclose(found.float(), (out.image_embeds * out.text_embeds).sum(1), atol=1e-4)
    assert metric.fingerprint().metric == "mini_text_image"


def test_the_classifier_is_the_scorer_of_the_miniatures(scorers: Path, images: Tensor) -> None:
    metric = Classifier(scorers / "judge")
    features = metric.embed(Batch(images, PROMPTS))
    pictures = [Image.fromarray(pixels) for pixels in images.permute(0, 2, 3, 1).numpy()]
    expected = AttributeScorer(load_judge(scorers / "judge")).score(pictures, PROMPTS)
    assert features["right"].tolist() == list(expected.right)
    assert features["asked"].tolist() == list(expected.asked)


def test_set_metrics_use_the_contrastive_features_and_say_so(scorers: Path, images: Tensor) -> None:
    frechet, mmd = Frechet(scorers / "clip"), Mmd(scorers / "clip")
    real = frechet.embed(Batch(true_renders(PROMPTS, 128)))
    found = frechet.embed(Batch(images))
    expected = frechet_distance_of_features(found["features"], real["features"]).value
    assert frechet.value(found, real) == pytest.approx(expected, rel=1e-6)
    names = {frechet.fingerprint().metric, mmd.fingerprint().metric}
    assert names == {"mini_frechet", "mini_mmd"}
    assert frechet.fingerprint().network == "miniature contrastive model"


def test_true_renders_show_what_is_asked_in_several_jitters() -> None:
    renders = true_renders(PROMPTS, 64)
    assert renders.shape == (5 * RENDERS_PER_PROMPT, 3, 64, 64)
    metric = make_metric("mini_parser", {})
    repeated = tuple(prompt for prompt in PROMPTS for _ in range(RENDERS_PER_PROMPT))
    features = metric.embed(Batch(renders, repeated))
    assert features["right"].sum() >= 0.98 * features["asked"].sum()
    assert len({render.numpy().tobytes() for render in renders}) == len(renders)


def test_missing_weights_are_an_error_and_never_another_metric(tmp_path: Path) -> None:
    for make in (TextImage, Frechet, Mmd, Classifier):
        with pytest.raises(CheckpointError, match="hasten mini"):
            make(tmp_path / "nothing")


def test_the_default_follows_from_the_prompts() -> None:
    assert default_metrics(PROMPTS) == SCENES.metrics
    assert default_metrics((*PROMPTS, "a red fox")) == ("psnr", "ssim")
