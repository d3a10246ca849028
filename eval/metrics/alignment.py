"""Agreement of an image with its prompt: CLIP score and the BLIP retrieval heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hasten.eval.fingerprint import Fingerprint
from hasten.eval.functional.alignment import (
    ClipScale,
    cosine,
    match_probability,
    max_query_cosine,
    mean_score,
    scale_cosines,
)
from hasten.eval.metric import Batch, Features, Need, SampleMetric
from hasten.eval.networks.blip import Blip2Network, BlipNetwork, TextNorm
from hasten.eval.networks.clip import as_clip
from hasten.extend import ConfigError

_TEXT: frozenset[Need] = frozenset({"image", "prompt"})

#: Networks by short name; hub ids, loaded only when the user names one.
CLIP_MODELS = {
    "l14": "openai/clip-vit-large-patch14",
    "l14-336": "openai/clip-vit-large-patch14-336",
    "b32": "openai/clip-vit-base-patch32",
    "g14": "laion/CLIP-ViT-g-14-laion2B-s34B-b88K",
}

#: What the original CLIPScore puts before every text.
_ORIGINAL_PREFIX = "A photo depicts "


class ClipScore(SampleMetric):
    """CLIP score in one of its published forms.

    A prompt with more tokens than the text tower has positions (77 in OpenAI's models) is cut and keeps its end token,
    from which CLIP reads the embedding; a network with ``long_prompt="chunk_mean"`` embeds it in pieces instead, with
    ``"error"`` it is refused. So the ``torchmetrics`` scale does *not* reproduce ``torchmetrics.multimodal.CLIPScore``
    on such prompts: that one (up to 1.9) cuts the end token away too, CLIP then reads the start token, whose embedding
    is the same for every text, and the score says nothing about the prompt. On shorter prompts the two agree.

    Args:
        network: short name of :data:`CLIP_MODELS`, folder, hub id, or a ready network.
        scale: see :data:`~hasten.eval.functional.alignment.ClipScale`.
        template: how a prompt becomes the text, with ``{}`` for the prompt (``"a photo of a {}"`` for class
            labels). Default is the prompt itself, on the ``original`` scale after "A photo depicts".
        device: where to run.
        options: of ``torchmetrics.Metric``.
    """

    name = "clip_score"
    needs = _TEXT
    higher_is_better = True

    def __init__(
        self,
        network: object = "l14",
        scale: ClipScale = "percent",
        *,
        template: str | None = None,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> None:
        super().__init__(scale, **options)
        scale_cosines(torch.zeros(1), scale)  # refuses an unknown scale before a model is loaded
        self.scale: ClipScale = scale
        self._template = template or (f"{_ORIGINAL_PREFIX}{{}}" if scale == "original" else "{}")
        if "{}" not in self._template:
            raise ConfigError(f"a template holds {{}} where the prompt goes; {template!r} does not")
        if isinstance(network, str):
            network = CLIP_MODELS.get(network, network)
        self._clip = as_clip(network, device)
        self.unit = "points" if scale in ("percent", "torchmetrics", "clamped") else ""
        #: Prompts cut so far for being too long.
        self.truncated = 0

    def embed(self, batch: Batch) -> Features:
        """``{"image": [N, d], "text": [N, d], "tokens": [N]}``."""
        self._require(batch)
        assert batch.prompts is not None
        text = self._clip.embed_texts([self._template.replace("{}", prompt) for prompt in batch.prompts])
        self.truncated += len(text.too_long)
        return {
            "image": self._clip.embed_images(batch.images),
            "text": text.embeddings,
            "tokens": torch.tensor(text.tokens),
        }

    def score(self, features: Features) -> Tensor:
        """Per-sample scores on the chosen scale."""
        return scale_cosines(cosine(features["image"], features["text"]), self.scale)

    def summarize(self, scores: Tensor) -> float:
        """Mean; the torchmetrics scale clamps it at 0."""
        return mean_score(scores, self.scale)

    def fingerprint(self) -> Fingerprint:
        """Network, scale, text handling."""
        return self._clip.fingerprint(
            self.name, variant=self.scale, template=self._template, long_prompt=self._clip.long_prompt
        )


class RetrievalScore(SampleMetric):
    """BLIP-2 or BLIP image-text score.

    Args:
        name: which of :data:`RETRIEVAL_METRICS`.
        network: folder or hub id (default the published checkpoint), or a ready network.
        text_norm: text handling, ``"hf"`` or ``"lavis"``.
        dtype: of the weights; the released ClassDiffusion code uses float16.
        device: where to run.
        options: of ``torchmetrics.Metric``.
    """

    needs = _TEXT
    higher_is_better = True

    def __init__(
        self,
        name: str = "blip2_t",
        network: str | Path | Blip2Network | BlipNetwork | None = None,
        *,
        text_norm: TextNorm = "hf",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> None:
        if name not in RETRIEVAL_METRICS:
            raise ConfigError(f"BLIP scores are {', '.join(RETRIEVAL_METRICS)}, not {name!r}")
        self.name = name
        super().__init__(**options)
        network_class, self._head, checkpoint = RETRIEVAL_METRICS[name]
        if isinstance(network, network_class):
            self._network: Blip2Network | BlipNetwork = network
        elif isinstance(network, Blip2Network | BlipNetwork):
            raise ConfigError(
                f"{name} is computed by a {network_class.__name__}, not {type(network).__name__}"
            )
        else:
            self._network = network_class.load(
                network or checkpoint, text_norm=text_norm, dtype=dtype, device=device
            )

    def embed(self, batch: Batch) -> Features:
        """ITC: ``{"image": [N, d] or [N, Q, d], "text": [N, d]}``; ITM: ``{"logits": [N, 2]}``."""
        self._require(batch)
        assert batch.prompts is not None
        if self._head == "itm":
            return {"logits": self._network.itm(batch.images, batch.prompts)}
        image, text = self._network.itc(batch.images, batch.prompts)
        return {"image": image, "text": text}

    def score(self, features: Features) -> Tensor:
        """ITC: cosine (of the best query) in [-1, 1]; ITM: probability of a match."""
        if self._head == "itm":
            return match_probability(features["logits"])
        pair = max_query_cosine if features["image"].ndim == 3 else cosine
        return pair(features["image"], features["text"])

    def fingerprint(self) -> Fingerprint:
        """Network, head, text handling and the dtype of every part."""
        return self._network.fingerprint(self.name, self._head)


#: Name -> network, head, published checkpoint. ITC and ITM live on different scales and are never mixed.
RETRIEVAL_METRICS: dict[str, tuple[type[Any], Literal["itc", "itm"], str]] = {
    "blip2_t": (Blip2Network, "itc", "Salesforce/blip2-itm-vit-g"),
    "blip2_itm": (Blip2Network, "itm", "Salesforce/blip2-itm-vit-g"),
    "blip_t_classdiffusion": (BlipNetwork, "itc", "Salesforce/blip-itm-large-coco"),
    "blip_itm": (BlipNetwork, "itm", "Salesforce/blip-itm-large-coco"),
}
