"""What a call computes outside of the denoiser, counted before anything runs: text encoders, and the decoder.

A decoder is run once on the meta device, where tensors have shapes and no values.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from hasten._adapters.base import LatentLayout
from hasten._clock import expected_batch
from hasten._cost import ENDLESS, branches, call_size, prompts_of, text_tokens

if TYPE_CHECKING:
    from hasten._target import Target

__all__ = ["Part", "parts_of"]

_log = logging.getLogger("hasten")
_UNUSED = ("visual", "vision")
"""Beginnings of names in a multimodal text encoder that a prompt alone does not pass through."""


@dataclass(frozen=True)
class Part:
    """Something that a pipeline call computes outside of the denoiser.

    Args:
        name: ``"text encoders"`` or ``"decoder"``.
        flops: floating-point operations in one call, ``None`` where they could not be counted.
    """

    name: str
    flops: float | None


def parts_of(target: Target, arguments: Mapping[str, Any]) -> tuple[Part, ...]:
    """The parts of a call with these arguments that take any operations."""
    parts = [Part("text encoders", _encoding(target, arguments))]
    if arguments.get("output_type") != "latent":
        parts.append(Part("decoder", _decoding(target, arguments)))
    return tuple(part for part in parts if part.flops != 0.0)


def _encoding(target: Target, arguments: Mapping[str, Any]) -> float:
    """Every matrix with the tokens of every prompt, and attention over all pairs of them."""
    negative = target.adapter.capability(LatentLayout) is not None and branches(target, arguments) == 2
    texts = prompts_of(arguments) * (2 if negative else 1)
    total = 0.0
    for name in getattr(target.pipe, "components", {}):
        encoder = getattr(target.pipe, name, None)
        if name.startswith("text_encoder") and isinstance(encoder, torch.nn.Module):
            tokens = _prompt_length(target, name, arguments)
            total += texts * _encoder_flops(encoder, tokens)
    return total


def _encoder_flops(encoder: Any, tokens: int) -> float:
    weights = sum(
        module.weight.numel()
        for name, module in encoder.named_modules()
        if isinstance(module, torch.nn.Linear) and not any(part in name for part in _UNUSED)
    )
    config = getattr(encoder.config, "text_config", encoder.config)
    layers: Any = getattr(config, "num_hidden_layers", None) or getattr(config, "num_layers", 0)
    width: Any = getattr(config, "hidden_size", None) or getattr(config, "d_model", 0)
    mixing: float = 4.0 * layers * width * tokens**2
    return 2.0 * weights * tokens + mixing


def _prompt_length(target: Target, name: str, arguments: Mapping[str, Any]) -> int:
    """Tokens that a prompt is padded to for this encoder; without padding, those of the prompt."""
    tokenizer = getattr(target.pipe, name.replace("text_encoder", "tokenizer"), None)
    most = int(getattr(tokenizer, "model_max_length", 0))
    encoder = type(getattr(target.pipe, name)).__name__
    given = arguments.get("max_sequence_length")
    if given is not None and "CLIP" not in encoder:
        return int(given)
    return most if 0 < most < ENDLESS else text_tokens(target, arguments)


def _decoding(target: Target, arguments: Mapping[str, Any]) -> float | None:
    """Operations of decoding the samples of a call, ``None`` where a copy of the decoder cannot be run on shapes."""
    vae = getattr(target.pipe, "vae", None)
    if vae is None:
        return 0.0
    try:
        shape, pixels = _latents(target, vae, arguments)
        flops, found = _decode(_Decoder(vae), shape)
        if pixels is not None and found[-1] != pixels[1] and pixels[1] % found[-1] == 0:
            times = pixels[1] // found[-1]  # latents that are packed once more than the decoder knows
            flops, _ = _decode(_Decoder(vae), (*shape[:-2], shape[-2] * times, shape[-1] * times))
    except Exception as error:  # other people's code, on tensors that it never expected
        _log.debug("FLOPs of the decoder of %s could not be counted: %s", target.name, error)
        return None
    return flops * (expected_batch(arguments) or 1)


class _Decoder:
    """An autoencoder's class and configuration, equal to another's where both are."""

    def __init__(self, vae: Any) -> None:
        self.made_of = type(vae), dict(vae.config)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Decoder) and self.made_of == other.made_of

    def __hash__(self) -> int:
        return hash((self.made_of[0], json.dumps(self.made_of[1], sort_keys=True, default=str)))


def _latents(
    target: Target, vae: Any, arguments: Mapping[str, Any]
) -> tuple[tuple[int, ...], tuple[int, int] | None]:
    """Shape of one sample's latents as the decoder takes them, and the pixels they stand for."""
    shape = target.moments.decoder_input(target.pipe, arguments)
    if shape is not None:
        return shape, None
    layout = target.capability(LatentLayout)
    size = call_size(target, arguments)
    if size is None:
        raise LookupError("the size of the call is not known in advance")
    whole = any(isinstance(module, torch.nn.Conv3d) for module in vae.modules())
    frames = size.frames or 1
    lead = (1, _channels(vae), frames) if whole else (frames, _channels(vae))  # else picture by picture
    return (*lead, size.height, size.width), layout.pixels(target.pipe, size)


def _channels(vae: Any) -> int:
    known = (vae.config.get(name) for name in ("latent_channels", "z_dim"))
    return int(next(count for count in known if count is not None))


@lru_cache(maxsize=32)
def _decode(decoder: _Decoder, shape: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
    """Operations of decoding latents of this shape, and the shape of what comes out."""
    cls, config = decoder.made_of
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode  # loads triton

    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad():
        twin = cls.from_config(config).eval()
        # Written-out attention: the fused operators of some devices have no formula in torch's counter.
        with counter, sdpa_kernel(SDPBackend.MATH):
            decoded = twin.decode(torch.empty(shape))
    picture = decoded if isinstance(decoded, torch.Tensor) else decoded[0]
    return float(counter.get_total_flops()), tuple(picture.shape)
