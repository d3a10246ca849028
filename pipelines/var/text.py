"""Encodes prompts, padded to the longest, with a mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.extend import ConfigError, Pipeline

__all__ = ["encode_prompts"]


@torch.no_grad()
def encode_prompts(
    pipe: Pipeline, prompt: str | Sequence[str], limit: int, what: str = "prompt"
) -> tuple[Tensor, Tensor]:
    """States (B, tokens, width) of ``pipe.text_encoder``, and a boolean mask (B, tokens), ``False`` for padding.

    Args:
        pipe: a pipeline with ``text_encoder`` and ``tokenizer``.
        prompt: one text or several.
        limit: largest number of tokens of the model.
        what: name of the argument, for error messages.

    Raises:
        ConfigError: a prompt is empty or too long, or the pipeline has no text encoder.
    """
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    if pipe.text_encoder is None or pipe.tokenizer is None:
        raise ConfigError("this pipeline has no text encoder; pass prompt_embeds, or load it with one")
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"{what} {number} is empty; say what it is about, or leave {what} out")
    limit = min(limit, pipe.tokenizer.model_max_length)
    found = pipe.tokenizer(texts, padding="longest", return_tensors="pt")
    lengths = found.attention_mask.sum(1)
    if int(lengths.max()) > limit:
        number = int(lengths.argmax())
        raise ConfigError(
            f"{what} {number} has {int(lengths[number])} tokens, the model takes {limit}; shorten "
            f"{texts[number][:60]!r}..."
        )
    device = pipe._execution_device
    encoder = pipe.text_encoder
    # CLIP needs no mask, since its attention is causal; T5 does.
    takes_mask = (
        {}
        if encoder.config.model_type.startswith("clip")
        else {"attention_mask": found.attention_mask.to(device)}
    )
    states: Tensor = encoder(found.input_ids.to(device), **takes_mask).last_hidden_state
    return states, found.attention_mask.bool().to(device)
