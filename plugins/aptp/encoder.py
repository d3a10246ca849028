"""Prompt encoders of the router: the pipeline's own text encoder, or a sentence model of transformers."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from hasten.extend import UnsupportedError

__all__ = ["Encoder", "PipelineEncoder", "SentenceEncoder", "make_encoder"]


class Encoder(Protocol):
    """Text to a vector, one prompt at a time: what shares a batch with a prompt must not move its vector."""

    def encode(self, prompt: str) -> Tensor:
        """(D,), float32 on the CPU."""

    def too_long(self, prompt: str) -> bool:
        """Whether the encoder would not see all of it."""


class PipelineEncoder:
    """A text encoder of the pipeline: its pooled output, or the mean of its token states where it has none.

    Args:
        pipe: the pipeline.
        component: attribute name of the encoder (``"text_encoder"``); its tokenizer is named alike.

    Raises:
        UnsupportedError: the pipeline has none of this name.
    """

    def __init__(self, pipe: Any, component: str) -> None:
        self._pipe, self._component = pipe, component
        self._tokenizer_name = component.replace("text_encoder", "tokenizer")
        for name in (component, self._tokenizer_name):
            if getattr(pipe, name, None) is None:
                raise UnsupportedError(
                    f"the router needs the pipeline's {name!r}, which this {type(pipe).__name__} does not "
                    f"have; load the pipeline with it, or use a bundle with a sentence model"
                )

    @torch.no_grad()
    def encode(self, prompt: str) -> Tensor:
        """See :class:`Encoder`."""
        encoder, tokenizer = getattr(self._pipe, self._component), getattr(self._pipe, self._tokenizer_name)
        limit = self._limit()
        tokens = tokenizer(
            prompt, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
        )
        device = next(encoder.parameters()).device
        out = encoder(tokens.input_ids.to(device))
        pooled = getattr(out, "text_embeds", None)
        pooled = getattr(out, "pooler_output", None) if pooled is None else pooled
        if pooled is None:
            mask = tokens.attention_mask.to(device)[..., None]
            pooled = (out.last_hidden_state * mask).sum(1) / mask.sum(1).clamp_min(1)
        return pooled[0].float().cpu()

    def too_long(self, prompt: str) -> bool:
        """See :class:`Encoder`."""
        return (
            len(getattr(self._pipe, self._tokenizer_name)(prompt, truncation=False).input_ids) > self._limit()
        )

    def _limit(self) -> int:
        return min(int(getattr(self._pipe, self._tokenizer_name).model_max_length), 512)


class SentenceEncoder:
    """A sentence model by name or folder: mean over tokens, not normalised, as in the paper's code.

    Args:
        model: what ``transformers.AutoModel.from_pretrained`` takes (``"sentence-transformers/all-mpnet-base-v2"``).

    Raises:
        UnsupportedError: it cannot be loaded.
    """

    def __init__(self, model: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model)
            self._model = AutoModel.from_pretrained(model).eval()
        except (OSError, ValueError) as error:
            raise UnsupportedError(
                f"the router's sentence model {model!r} cannot be loaded: {error}. Download it and set its "
                f"folder as router.model of aptp.json, or use a bundle that routes by the pipeline's own text encoder"
            ) from error

    @torch.no_grad()
    def encode(self, prompt: str) -> Tensor:
        """See :class:`Encoder`."""
        tokens = self._tokenizer(prompt, truncation=True, max_length=self._limit(), return_tensors="pt")
        states = self._model(**tokens).last_hidden_state
        mask = tokens.attention_mask[..., None]
        return ((states * mask).sum(1) / mask.sum(1).clamp_min(1))[0].float()

    def too_long(self, prompt: str) -> bool:
        """See :class:`Encoder`."""
        return len(self._tokenizer(prompt, truncation=False).input_ids) > self._limit()

    def _limit(self) -> int:
        return min(int(self._tokenizer.model_max_length), 512)


def make_encoder(kind: str, model: str, pipe: Any) -> Encoder:
    """The encoder a bundle asks for.

    Args:
        kind: ``"pipeline"`` or ``"sentence"``.
        model: component name, or name of the sentence model.
        pipe: the pipeline.
    """
    return PipelineEncoder(pipe, model) if kind == "pipeline" else SentenceEncoder(model)
