"""BLIP-2 and BLIP image-text retrieval models: contrastive (ITC) and matching (ITM) scores of pairs.

"BLIP2-T" in the literature means BLIP-2 by name and BLIP-1 by released code, so both are here, under their
own names. Images are stretched to a square (8-bit bicubic) and normalised with CLIP's pixel statistics, as
the models were trained.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.eval.fingerprint import Fingerprint
from hasten.eval.functional.resize import clip_normalize, pil_uint8
from hasten.eval.networks.network import Network, inference
from hasten.extend import ConfigError

#: ``hf``: the prompt as it is, cut only at the position limit. ``lavis``: LAVIS' caption cleaning and 32
#: tokens.
TextNorm = Literal["hf", "lavis"]

_LAVIS_TOKENS, _LAVIS_WORDS = 32, 50


def clean_caption(text: str) -> str:
    """Caption cleaning of LAVIS: lower case, ``. ! " ( ) * # : ; ~`` to spaces, at most 50 words."""
    text = re.sub(r'[.!"()*#:;~]', " ", text.lower())
    return " ".join(text.split()[:_LAVIS_WORDS])


@dataclass(frozen=True)
class TextTokens:
    """Token ids and mask ``[N, T]``, the length of each prompt before cutting, and the indices of those
    cut.
    """

    ids: Tensor
    mask: Tensor
    lengths: tuple[int, ...]
    too_long: tuple[int, ...]


class _Retrieval(Network):
    """What both models share: loading, preprocessing, tokens, fingerprint."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        text_norm: TextNorm = "hf",
        name: str = "blip",
        device: torch.device | str = "cpu",
    ) -> None:
        if text_norm not in get_args(TextNorm):
            raise ConfigError(f"text_norm is one of {', '.join(get_args(TextNorm))}, not {text_norm!r}")
        super().__init__(model, name, device)
        self.tokenizer = tokenizer
        self.text_norm = text_norm

    @staticmethod
    def _load(
        model_class: Any, source: str | Path, revision: str | None, dtype: torch.dtype
    ) -> tuple[Any, Any, str]:
        """Model, tokenizer and name from a folder that exists or a hub id."""
        from transformers import AutoTokenizer

        local = Path(source).exists()
        options: dict[str, Any] = {"local_files_only": local}
        if revision is not None:
            options["revision"] = revision
        try:
            model = model_class.from_pretrained(str(source), dtype=dtype, **options)
            tokenizer = AutoTokenizer.from_pretrained(str(source), **options)
        except (OSError, ValueError) as error:
            raise ConfigError(f"no {model_class.__name__} can be loaded from {source}: {error}") from error
        name = (Path(source).name if local else str(source)) + (f"@{revision}" if revision else "")
        return model, tokenizer, name

    @property
    def image_size(self) -> int:
        """Input side in pixels."""
        return int(self.model.config.vision_config.image_size)

    @property
    def max_tokens(self) -> int:
        """Most tokens of a prompt, its two ends included."""
        return _LAVIS_TOKENS if self.text_norm == "lavis" else self._positions()

    def _positions(self) -> int:
        raise NotImplementedError

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 ``[N, 3, H, W]`` to the vision tower's input."""
        square = pil_uint8(images, (self.image_size, self.image_size), "bicubic")
        return clip_normalize(square).to(self.device, self.model.vision_model.dtype)

    def tokens(self, prompts: Sequence[str]) -> TextTokens:
        """Token ids of prompts, cut to :attr:`max_tokens` with the end token kept, padded."""
        texts = [clean_caption(p) for p in prompts] if self.text_norm == "lavis" else list(prompts)
        rows = self.tokenizer(texts, padding=False, truncation=False, verbose=False)["input_ids"]
        lengths = tuple(map(len, rows))
        limit = self.max_tokens
        cut = [row if len(row) <= limit else row[: limit - 1] + row[-1:] for row in rows]
        longest = max(map(len, cut))
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in cut], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in cut], device=self.device)
        return TextTokens(ids, mask, lengths, tuple(i for i, n in enumerate(lengths) if n > limit))

    def _check(self, images: Tensor, prompts: Sequence[str]) -> None:
        if len(images) != len(prompts):
            raise ConfigError(f"there are {len(images)} images for {len(prompts)} prompts")

    def fingerprint(self, metric: str, head: str) -> Fingerprint:
        """What a figure was made with; half-precision loading leaves some modules in float32, so all are
        named.
        """
        dtypes = sorted({f"{n.split('.')[0]}:{p.dtype}" for n, p in self.model.named_parameters()})
        return Fingerprint(
            metric,
            variant=head,
            network=self.name,
            weights=self.weights,
            preprocessing=f"pil_uint8 bicubic stretch {self.image_size} clip statistics",
            details={"text_norm": self.text_norm, "max_tokens": self.max_tokens, "dtypes": dtypes},
        )


class Blip2Network(_Retrieval):
    """``Blip2ForImageTextRetrieval`` with its tokenizer.

    Raises:
        ConfigError: if the checkpoint's configuration is of the old kind that the model can't run with.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, **options: Any) -> None:
        super().__init__(model, tokenizer, **options)
        if not getattr(self.model.config.qformer_config, "use_qformer_text_input", False):
            raise ConfigError(
                f"{self.name} has a Q-Former without text input (an old configuration says "
                f"qformer_text_input); set "
                "use_qformer_text_input to true in its qformer_config, or pin a newer revision"
            )

    @classmethod
    def load(
        cls,
        source: str | Path = "Salesforce/blip2-itm-vit-g",
        *,
        revision: str | None = None,
        text_norm: TextNorm = "hf",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Blip2Network:
        """Load from a folder or, if the user names one, a hub id."""
        from transformers import Blip2ForImageTextRetrieval

        model, tokenizer, name = cls._load(Blip2ForImageTextRetrieval, source, revision, dtype)
        return cls(model, tokenizer, text_norm=text_norm, name=name, device=device)

    def _positions(self) -> int:
        return int(self.model.config.qformer_config.max_position_embeddings)

    def _inputs(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Model inputs with exactly the image tokens this model's configuration strips."""
        self._check(images, prompts)
        tokens = self.tokens(prompts)
        ids, mask = tokens.ids, tokens.mask
        marker = self.model.config.image_token_index
        if marker is not None:
            count = self.model.config.num_query_tokens
            ids = torch.cat([ids.new_full((len(ids), count), marker), ids], dim=1)
            mask = torch.cat([mask.new_ones(len(mask), count), mask], dim=1)
        return {"pixel_values": self.pixels(images), "input_ids": ids, "attention_mask": mask}

    def itc(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Contrastive embeddings of pairs: queries float32 ``[N, Q, d]`` and texts ``[N, d]``, unit
        length.
        """
        with inference(self.model):
            output = self.model(**self._inputs(images, prompts), use_image_text_matching_head=False)
        return output.image_embeds.float().cpu().clone(), output.text_embeds.float().cpu().clone()

    def itm(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Matching logits of pairs, float32 ``[N, 2]``; the second is "match"."""
        with inference(self.model):
            output = self.model(**self._inputs(images, prompts), use_image_text_matching_head=True)
        logits: Tensor = output.logits_per_image
        return logits.float().cpu().clone()


class BlipNetwork(_Retrieval):
    """``BlipForImageTextRetrieval`` (BLIP-1) with its tokenizer.

    The heads are applied here to the towers' outputs, because the model's own forward puts an attention mask
    on the CPU wherever the model is.
    """

    @classmethod
    def load(
        cls,
        source: str | Path = "Salesforce/blip-itm-large-coco",
        *,
        revision: str | None = None,
        text_norm: TextNorm = "hf",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> BlipNetwork:
        """Load from a folder or, if the user names one, a hub id. The released ClassDiffusion code uses
        float16.
        """
        from transformers import BlipForImageTextRetrieval

        model, tokenizer, name = cls._load(BlipForImageTextRetrieval, source, revision, dtype)
        return cls(model, tokenizer, text_norm=text_norm, name=name, device=device)

    def _positions(self) -> int:
        return int(self.model.config.text_config.max_position_embeddings)

    def itc(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Contrastive embeddings of pairs: images float32 ``[N, d]`` and texts ``[N, d]``, unit length."""
        self._check(images, prompts)
        tokens = self.tokens(prompts)
        with inference(self.model):
            seen = self.model.vision_model(pixel_values=self.pixels(images)).last_hidden_state[:, 0]
            read = self.model.text_encoder(
                input_ids=tokens.ids, attention_mask=tokens.mask
            ).last_hidden_state[:, 0]
            image = F.normalize(self.model.vision_proj(seen), dim=-1)
            text = F.normalize(self.model.text_proj(read), dim=-1)
        return image.float().cpu().clone(), text.float().cpu().clone()

    def itm(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Matching logits of pairs, float32 ``[N, 2]``; the second is "match"."""
        self._check(images, prompts)
        tokens = self.tokens(prompts)
        with inference(self.model):
            seen = self.model.vision_model(pixel_values=self.pixels(images)).last_hidden_state
            fused = self.model.text_encoder(
                input_ids=tokens.ids,
                attention_mask=tokens.mask,
                encoder_hidden_states=seen,
                encoder_attention_mask=torch.ones(seen.shape[:-1], dtype=torch.long, device=seen.device),
            ).last_hidden_state
            logits: Tensor = self.model.itm_head(fused[:, 0])
        return logits.float().cpu().clone()
