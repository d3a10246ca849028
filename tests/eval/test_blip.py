"""BLIP-2 and BLIP retrieval scores on tiny random models."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten._errors import ConfigError
from hasten.eval.metric import Batch
from hasten.eval.metrics.alignment import RETRIEVAL_METRICS, RetrievalScore
from hasten.eval.networks.blip import Blip2Network, BlipNetwork, clean_caption

PROMPTS = ("a red fox", "the blue cat on the mat", "dog")


@pytest.fixture
def blip2(blip2_model: nn.Module, word_tokenizer: object) -> Blip2Network:
    return Blip2Network(blip2_model, word_tokenizer, name="tiny")


@pytest.fixture
def blip(blip_model: nn.Module, word_tokenizer: object) -> BlipNetwork:
    return BlipNetwork(blip_model, word_tokenizer, name="tiny")


def scores(name: str, network: Any, images: Tensor, prompts: tuple[str, ...]) -> Tensor:
    metric = RetrievalScore(name, network)
    return metric.score(metric.embed(Batch(images, prompts)))


@pytest.mark.parametrize("name", RETRIEVAL_METRICS)
def test_batch_equals_one_by_one_whatever_the_padding(
    name: str, blip2: Blip2Network, blip: BlipNetwork, images: Tensor
) -> None:
    network = blip2 if name.startswith("blip2") else blip
    together = scores(name, network, images[:3], PROMPTS)
    single = torch.cat([scores(name, network, images[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, single, atol=1e-5)
    assert float(together.std()) > 1e-4  # the tiny models do tell the pairs apart


def test_itc_is_the_diagonal_of_the_models_own_scores(
    blip2: Blip2Network, blip: BlipNetwork, images: Tensor
) -> None:
    with torch.inference_mode():
        logits = blip2.model(**blip2._inputs(images[:3], PROMPTS)).logits_per_image
        tokens = blip.tokens(PROMPTS)
        own = blip.model(
            pixel_values=blip.pixels(images[:3]),
            input_ids=tokens.ids,
            attention_mask=tokens.mask,
            use_itm_head=False,
        ).itm_score
    assert torch.allclose(
        scores("blip2_t", blip2, images[:3], PROMPTS), logits.diagonal().double(), atol=1e-6
    )
    expected = own.diagonal().double()
    assert torch.allclose(scores("blip_t_classdiffusion", blip, images[:3], PROMPTS), expected, atol=1e-6)


def test_blip_itm_is_the_models_own(blip: BlipNetwork, images: Tensor) -> None:
    tokens = blip.tokens(PROMPTS)
    with torch.inference_mode():
        logits = blip.model(
            pixel_values=blip.pixels(images[:3]), input_ids=tokens.ids, attention_mask=tokens.mask
        ).itm_score
    assert torch.allclose(blip.itm(images[:3], PROMPTS), logits, atol=1e-6)


def test_image_tokens_are_inserted_only_where_the_model_strips_them(
    blip2: Blip2Network, blip2_model: nn.Module, word_tokenizer: object, images: Tensor
) -> None:
    marked = copy.deepcopy(blip2_model)
    marked.config.image_token_index = 15
    other = Blip2Network(marked, word_tokenizer, name="tiny")
    for name in ("blip2_t", "blip2_itm"):
        assert torch.equal(scores(name, blip2, images[:3], PROMPTS), scores(name, other, images[:3], PROMPTS))


def test_old_configuration_is_refused(blip2_model: nn.Module, word_tokenizer: object) -> None:
    old = copy.deepcopy(blip2_model)
    old.config.qformer_config.use_qformer_text_input = False
    with pytest.raises(ConfigError, match="use_qformer_text_input"):
        Blip2Network(old, word_tokenizer)


def test_long_prompts_are_cut_at_the_position_limit(blip2: Blip2Network, images: Tensor) -> None:
    tokens = blip2.tokens([" ".join(["red"] * 100), "dog"])
    assert tokens.ids.shape == (2, 40)
    assert tokens.ids[0, -1] == blip2.tokenizer.sep_token_id
    assert tokens.too_long == (0,)
    assert tokens.lengths == (102, 3)
    blip2.itc(images[:2], [" ".join(["red"] * 100), "dog"])


def test_lavis_text(blip2_model: nn.Module, word_tokenizer: object) -> None:
    assert clean_caption('A RED fox. (on; the "mat")!') == "a red fox on the mat"
    assert len(clean_caption("dog " * 80).split()) == 50
    lavis = Blip2Network(blip2_model, word_tokenizer, text_norm="lavis")
    assert lavis.tokens(["dog " * 80]).ids.shape == (1, 32)
    assert lavis.fingerprint("m", "itc") != Blip2Network(blip2_model, word_tokenizer).fingerprint("m", "itc")
    with pytest.raises(ConfigError, match="text_norm"):
        Blip2Network(blip2_model, word_tokenizer, text_norm="clip")


def test_names_and_networks_must_fit(blip: BlipNetwork, blip2: Blip2Network, images: Tensor) -> None:
    with pytest.raises(ConfigError, match="Blip2Network, not BlipNetwork"):
        RetrievalScore("blip2_t", blip)
    with pytest.raises(ConfigError, match="BLIP scores are"):
        RetrievalScore("blip3", blip)
    with pytest.raises(ConfigError, match="3 images for 2 prompts"):
        blip2.itc(images[:3], PROMPTS[:2])
    prints = {RetrievalScore(name, blip2).fingerprint().digest() for name in ("blip2_t", "blip2_itm")}
    assert len(prints) == 2


def test_probabilities_and_cosines_are_in_range(
    blip: BlipNetwork, blip2: Blip2Network, images: Tensor
) -> None:
    for name in RETRIEVAL_METRICS:
        values = scores(name, blip2 if name.startswith("blip2") else blip, images[:3], PROMPTS)
        low = 0 if name.endswith("itm") else -1
        assert bool(((values >= low) & (values <= 1)).all())
