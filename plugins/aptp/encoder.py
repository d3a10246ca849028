"""Prompt encoders of the router: the pipeline's own text encoder, or a sentence model of transformers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import override

from hasten.extend import UnsupportedError

if TYPE_CHECKING:
    from hasten.extend import Pipeline

__all__ = ["Encoder", "PipelineEncoder", "SentenceEncoder", "make_encoder"]

_MOST_TOKENS = 512


class Encoder(ABC):
    """Maps one prompt to a vector, which depends on this prompt alone and not on others in a batch."""

    @abstractmethod
    def encode(self, prompt: str) -> Tensor:
        """The vector (D,), float32 on the CPU."""

    def too_long(self, prompt: str) -> bool:
        """Whether the prompt has more tokens than the encoder reads."""
        return len(self._tokenizer(prompt, truncation=False).input_ids) > self._limit()

    @property
    @abstractmethod
    def _tokenizer(self) -> Any:
        """Tokenizer of transformers."""

    def _limit(self) -> int:
        return min(int(self._tokenizer.model_max_length), _MOST_TOKENS)


class PipelineEncoder(Encoder):
    """A text encoder of the pipeline: its pooled output, or the mean of its token states where it has none.

    Args:
        pipe: the pipeline.
        component: attribute name of the encoder (``"text_encoder"``); its tokenizer is named alike.

    Raises:
        UnsupportedError: the pipeline has no such encoder or tokenizer.
    """

    def __init__(self, pipe: Pipeline, component: str) -> None:
        self._pipe, self._component = pipe, component
        self._tokenizer_name = component.replace("text_encoder", "tokenizer")
        for name in (component, self._tokenizer_name):
            if getattr(pipe, name, None) is None:
                raise UnsupportedError(
                    f"the router needs the pipeline's {name!r}, which this {type(pipe).__name__} does not "
                    f"have; load the pipeline with it, or use a bundle with a sentence model"
                )

    @override
    @torch.no_grad()
    def encode(self, prompt: str) -> Tensor:
        encoder = getattr(self._pipe, self._component)
        tokens = self._tokenizer(
            prompt, padding="max_length", max_length=self._limit(), truncation=True, return_tensors="pt"
        )
        device = next(encoder.parameters()).device
        out = encoder(tokens.input_ids.to(device))
        pooled: Tensor | None = getattr(out, "text_embeds", None)
        pooled = getattr(out, "pooler_output", None) if pooled is None else pooled
        if pooled is None:
            pooled = _mean(out.last_hidden_state, tokens.attention_mask.to(device))
        return pooled[0].float().cpu()

    @property
    @override
    def _tokenizer(self) -> Any:
        return getattr(self._pipe, self._tokenizer_name)


class SentenceEncoder(Encoder):
    """A sentence model by name or folder: mean over tokens, not normalised, as in the paper's code.

    Args:
        model: what ``transformers.AutoModel.from_pretrained`` takes (``"sentence-transformers/all-mpnet-base-v2"``).

    Raises:
        UnsupportedError: it cannot be loaded.
    """

    def __init__(self, model: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        try:
            self._loaded_tokenizer = AutoTokenizer.from_pretrained(model)
            self._model = AutoModel.from_pretrained(model).eval()
        except (OSError, ValueError) as error:
            raise UnsupportedError(
                f"the router's sentence model {model!r} cannot be loaded: {error}. Download it and set its "
                f"folder as router.model of aptp.json, or use a bundle that routes by the pipeline's own text encoder"
            ) from error

    @override
    @torch.no_grad()
    def encode(self, prompt: str) -> Tensor:
        tokens = self._tokenizer(prompt, truncation=True, max_length=self._limit(), return_tensors="pt")
        return _mean(self._model(**tokens).last_hidden_state, tokens.attention_mask)[0].float()

    @property
    @override
    def _tokenizer(self) -> Any:
        return self._loaded_tokenizer


def make_encoder(kind: str, model: str, pipe: Pipeline) -> Encoder:
    """The encoder a bundle asks for.

    Args:
        kind: ``"pipeline"`` or ``"sentence"``.
        model: component name, or name of the sentence model.
        pipe: the pipeline.
    """
    return PipelineEncoder(pipe, model) if kind == "pipeline" else SentenceEncoder(model)


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean (B, D) of token states (B, N, D) where ``mask`` (B, N) is 1."""
    weights = mask[..., None]
    return (states * weights).sum(1) / weights.sum(1).clamp_min(1)
