"""Tiny random models that behave like the published ones, built without a download."""

from __future__ import annotations

import string

import pytest
import torch
from torch import Tensor, nn


def perturb(model: nn.Module, scale: float = 0.3) -> nn.Module:
    """Random weights large enough that different inputs give visibly different embeddings."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="session")
def images() -> Tensor:
    """Eight smooth, different uint8 pictures, 48 x 64."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(8, 3, 6, 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, (48, 64), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().to(torch.uint8)


@pytest.fixture(scope="session")
def clip_model() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    text = {
        "vocab_size": 54,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "bos_token_id": 52,
        "eos_token_id": 53,
        "pad_token_id": 53,
    }
    vision = {
        "image_size": 32,
        "patch_size": 8,
        "projection_dim": 16,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    return perturb(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)))


@pytest.fixture(scope="session")
def clip_tokenizer() -> object:
    from transformers import CLIPTokenizer

    letters = [*string.ascii_lowercase, *(f"{c}</w>" for c in string.ascii_lowercase)]
    vocabulary = {symbol: i for i, symbol in enumerate(letters)}
    vocabulary |= {"<|startoftext|>": 52, "<|endoftext|>": 53}
    return CLIPTokenizer(vocab=vocabulary, merges=[])


@pytest.fixture(scope="session")
def word_tokenizer() -> object:
    from transformers import BertTokenizer

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *["a", "red", "blue", "fox", "cat", "dog", "on", "the", "mat", "tree"],
    ]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)})


@pytest.fixture(scope="session")
def blip2_model() -> nn.Module:
    from transformers import Blip2Config, Blip2ForImageTextRetrieval

    config = Blip2Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
            "initializer_range": 0.5,
        },
        qformer_config={
            "vocab_size": 16,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "encoder_hidden_size": 32,
            "max_position_embeddings": 40,
            "use_qformer_text_input": True,
        },
        num_query_tokens=4,
        image_text_hidden_size=16,
        image_token_index=None,
    )
    config.image_token_index = None
    return perturb(Blip2ForImageTextRetrieval(config))


@pytest.fixture(scope="session")
def blip_model() -> nn.Module:
    from transformers import BlipConfig, BlipForImageTextRetrieval

    config = BlipConfig(
        text_config={
            "vocab_size": 16,
            "hidden_size": 32,
            "encoder_hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 40,
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "sep_token_id": 3,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
        image_text_hidden_size=16,
    )
    return perturb(BlipForImageTextRetrieval(config))


class ConvFeatures(nn.Module):
    """A small feature network on uint8 images: ``[N, 3, H, W] -> [N, 12]``."""

    num_features = 12

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.weight = nn.Parameter(torch.randn(12, 3, 5, 5, generator=generator) / 8)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x.float() / 255, self.weight).tanh().mean((2, 3))


@pytest.fixture(scope="session")
def conv_features() -> nn.Module:
    return ConvFeatures()
