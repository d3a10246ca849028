"""CLIP towers: image and text embeddings from any transformers CLIP model, safe for long prompts and for
version 5.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.eval.fingerprint import Fingerprint
from hasten.eval.functional.resize import CLIP_MEAN, CLIP_STD, crop_to_square, pil_uint8, short_side_then_crop
from hasten.eval.networks.features import FeatureNetwork
from hasten.eval.networks.network import Network, inference
from hasten.eval.pictures.images import check_images
from hasten.extend import ConfigError

#: ``crop``: shorter side to the input size, then the central square (CLIP's own). ``square``: the largest
#: central square first, then the resize (CMMD's).
Geometry = Literal["crop", "square"]

#: What becomes of a prompt with more tokens than the text tower has positions: cut it and keep the end token;
#: embed it in pieces and average their directions; or refuse it.
LongPrompt = Literal["truncate", "chunk_mean", "error"]


@dataclass(frozen=True)
class TextEmbeddings:
    """Embeddings of prompts.

    Attributes:
        embeddings: float32 ``[N, d]``, not normalised (unit length where a prompt was embedded in pieces).
        tokens: token count of each prompt, with both ends.
        too_long: indices of the prompts that did not fit.
    """

    embeddings: Tensor
    tokens: tuple[int, ...]
    too_long: tuple[int, ...]


def projected(output: Any) -> Tensor:
    """The projected embedding, from either return type of ``get_image_features`` and ``get_text_features``.

    They return a tensor up to transformers 4, from 5 on a model output with the tensor in ``pooler_output``.
    """
    return output if isinstance(output, Tensor) else output.pooler_output


class ClipNetwork(Network):
    """A CLIP model with its tokenizer and preprocessing.

    Args:
        model: transformers ``CLIPModel``.
        tokenizer: its tokenizer; only prompts need it.
        mean: pixel mean per channel in [0, 1].
        std: pixel standard deviation.
        geometry: how an image becomes square.
        long_prompt: what to do with prompts that don't fit.
        name: what the fingerprint calls the network.
        device: where to run; the model is moved there.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        *,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        geometry: Geometry = "crop",
        long_prompt: LongPrompt = "truncate",
        name: str = "clip",
        device: torch.device | str = "cpu",
    ) -> None:
        if geometry not in get_args(Geometry):
            raise ConfigError(f"geometry is one of {', '.join(get_args(Geometry))}, not {geometry!r}")
        if long_prompt not in get_args(LongPrompt):
            raise ConfigError(f"long_prompt is one of {', '.join(get_args(LongPrompt))}, not {long_prompt!r}")
        super().__init__(model, name, device)
        self.tokenizer = tokenizer
        self.geometry = geometry
        self.long_prompt = long_prompt
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        pixel_statistics: tuple[Sequence[float], Sequence[float]] | None = None,
        **settings: Any,
    ) -> ClipNetwork:
        """Load a model, its tokenizer and pixel statistics from a folder or a hub id.

        A path that exists is read locally and nothing else; anything else is taken for a hub id that the user
        named.

        Args:
            source: folder or hub id.
            revision: of the hub id.
            dtype: of the weights.
            pixel_statistics: mean and standard deviation per channel, for a folder without
                ``preprocessor_config.json``.
            settings: ``geometry``, ``long_prompt`` and ``device`` of the constructor.

        Raises:
            ConfigError: if it can't be loaded or nothing says how its pixels are normalised.
        """
        from transformers import AutoTokenizer, CLIPModel

        local = Path(source).exists()
        options: dict[str, Any] = {"local_files_only": local} | ({"revision": revision} if revision else {})
        try:
            model = CLIPModel.from_pretrained(str(source), dtype=dtype, **options)
            tokenizer = AutoTokenizer.from_pretrained(str(source), **options)
            mean, std = pixel_statistics or _pixel_statistics(str(source), options)
        except (OSError, ValueError) as error:
            raise ConfigError(f"no CLIP model can be loaded from {source}: {error}") from error
        name = (Path(source).name if local else str(source)) + (f"@{revision}" if revision else "")
        return cls(model, tokenizer, mean=mean, std=std, name=name, **settings)

    @property
    def image_size(self) -> int:
        """Input side in pixels."""
        return int(self.model.config.vision_config.image_size)

    @property
    def max_tokens(self) -> int:
        """Positions of the text tower."""
        return int(self.model.config.text_config.max_position_embeddings)

    def preprocess(self, images: Tensor) -> Tensor:
        """uint8 ``[N, 3, H, W]`` to the vision tower's input, float32 ``[N, 3, S, S]``."""
        check_images(images)
        if self.geometry == "square":
            pixels = pil_uint8(crop_to_square(images), (self.image_size, self.image_size), "bicubic")
        else:
            pixels = short_side_then_crop(images, self.image_size)
        mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (pixels / 255 - mean) / std

    def _input(self, images: Tensor) -> Tensor:
        return self.preprocess(images).to(self.device, self.model.dtype)

    def embed_images(self, images: Tensor) -> Tensor:
        """Embeddings of uint8 images ``[N, 3, H, W]``: float32 ``[N, d]`` on the CPU, not normalised."""
        with inference(self.model):
            output = projected(self.model.get_image_features(pixel_values=self._input(images)))
        return output.float().cpu().clone()

    def embed_texts(self, prompts: Sequence[str]) -> TextEmbeddings:
        """Embeddings of prompts. A cut prompt keeps its end token, where CLIP reads the result.

        Raises:
            ConfigError: without a tokenizer, or on a long prompt if ``long_prompt`` is ``"error"``.
        """
        if self.tokenizer is None:
            raise ConfigError(f"the CLIP network {self.name} has no tokenizer and can't embed prompts")
        ids = self.tokenizer(list(prompts), padding=False, truncation=False, verbose=False)["input_ids"]
        too_long = tuple(i for i, row in enumerate(ids) if len(row) > self.max_tokens)
        if too_long and self.long_prompt == "error":
            raise ConfigError(
                f"{len(too_long)} prompts exceed the {self.max_tokens} tokens of {self.name}, the first is "
                f"number "
                f"{too_long[0]} with {len(ids[too_long[0]])}"
            )
        pieces = [self._pieces(row) for row in ids]
        flat = self._embed_ids([piece for row in pieces for piece in row])
        rows = []
        for piece in flat.split([len(row) for row in pieces]):
            rows.append(
                piece[0] if len(piece) == 1 else F.normalize(F.normalize(piece, dim=1).mean(0), dim=0)
            )
        return TextEmbeddings(torch.stack(rows), tuple(len(row) for row in ids), too_long)

    def _pieces(self, ids: list[int]) -> list[list[int]]:
        """Token rows that fit, each with both ends."""
        if len(ids) <= self.max_tokens:
            return [ids]
        start, body, end = ids[:1], ids[1:-1], ids[-1:]
        room = self.max_tokens - 2
        if self.long_prompt == "truncate":
            return [start + body[:room] + end]
        return [start + body[i : i + room] + end for i in range(0, len(body), room)]

    def _embed_ids(self, rows: list[list[int]]) -> Tensor:
        longest = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        filler = rows[0][-1] if pad is None else pad
        ids = torch.tensor([row + [filler] * (longest - len(row)) for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.device)
        with inference(self.model):
            output = projected(self.model.get_text_features(input_ids=ids, attention_mask=mask))
        return output.float().cpu().clone()

    @property
    def preprocessing(self) -> str:
        """Name of the preprocessing for fingerprints."""
        return f"pil_uint8 bicubic {self.geometry} {self.image_size} mean={self.mean} std={self.std}"

    def fingerprint(self, metric: str, *, variant: str = "", **details: Any) -> Fingerprint:
        """What a figure of ``metric`` from these embeddings was made with."""
        details = {"dtype": str(self.model.dtype), **details}
        return Fingerprint(
            metric,
            variant=variant,
            network=self.name,
            weights=self.weights,
            preprocessing=self.preprocessing,
            details=details,
        )

    def as_feature_network(self) -> FeatureNetwork:
        """The vision tower as a feature network for set metrics."""
        return FeatureNetwork(
            _VisionTower(self.model),
            self._input,
            name=self.name,
            preprocessing=self.preprocessing,
            device=self.device,
        )


class _VisionTower(nn.Module):
    """The image embedding of a CLIP model as a plain module."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return projected(self.model.get_image_features(pixel_values=pixels))


def _pixel_statistics(source: str, options: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation from ``preprocessor_config.json``; there is no safe default for them."""
    from transformers.utils import cached_file

    found = cached_file(source, "preprocessor_config.json", **options)
    fields = json.loads(Path(str(found)).read_text(encoding="utf-8"))
    if "image_mean" not in fields or "image_std" not in fields:
        raise ConfigError(f"preprocessor_config.json of {source} must hold image_mean and image_std")
    return fields["image_mean"], fields["image_std"]


def as_clip(
    network: object, device: torch.device | str = "cpu", *, geometry: Geometry = "crop"
) -> ClipNetwork:
    """``network`` if it is a :class:`ClipNetwork` already, else the one at that folder or hub id.

    Raises:
        ConfigError: if it is neither, or can't be loaded.
    """
    if isinstance(network, ClipNetwork):
        return network
    if isinstance(network, str | Path):
        return ClipNetwork.load(network, device=device, geometry=geometry)
    raise ConfigError(f"a CLIP network is a folder, a hub id or a ClipNetwork, not {type(network).__name__}")
