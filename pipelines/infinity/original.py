"""The published Infinity checkpoints: files, names of weights, and configurations derived from their shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.extend import ConfigError
from hasten.pipelines.infinity.bsq_model import BSQAutoencoder
from hasten.pipelines.var.checkpoints import fetch
from hasten.pipelines.var.original import check_depth, check_pair, level_widths, map_block, split_three
from hasten.pipelines.var.scheduler import NextScaleScheduler
from hasten.pipelines.var.transformer import NextScaleTransformer
from hasten.schedules.scales import infinity_schedule
from hasten.weights import built, put, read_weights, require

__all__ = ["VARIANTS", "Variant", "load_infinity", "map_tokenizer", "map_transformer"]


_BLOCK = re.compile(r"block_chunks\.(\d+)\.module\.(\d+)\.(.+)")
_IGNORED = ("quantizer.", "quantize.")
_RESIZING = ("downsample", "upsample")


@dataclass(frozen=True)
class Variant:
    """Files and defaults of one published model.

    Args:
        transformer: file or folder of the transformer.
        layers: number of its blocks.
        tokenizer: file of the tokenizer; others do not work, even if their shapes match.
        resolution: training resolution, a key of :data:`hasten.schedules.scales.INFINITY_PREFIX`.
        patch: latent positions of one side of a token.
        guidance_scale: recommended value.
        temperature: recommended value.
    """

    transformer: str
    layers: int
    tokenizer: str
    resolution: str
    patch: int = 1
    guidance_scale: float = 3.0
    temperature: float = 1.0


VARIANTS = {
    "2b": Variant("infinity_2b_reg.pth", 32, "infinity_vae_d32reg.pth", "1M", temperature=0.5),
    "8b": Variant("infinity_8b_weights", 40, "infinity_vae_d56_f8_14_patchify.pth", "1M", patch=2),
    "8b-512": Variant(
        "infinity_8b_512x512_weights", 40, "infinity_vae_d56_f8_14_patchify.pth", "0.25M", patch=2
    ),
    "125m": Variant("infinity_125M_256x256.pth", 12, "infinity_vae_d16.pth", "0.06M"),
}
_TEXT = "google/flan-t5-xl"
_LEVELS = 13


def load_infinity(
    cls: Any,
    source: str | Path,
    variant: str = "2b",
    *,
    text_encoder: Any = _TEXT,
    tokenizer: Any = None,
    dtype: torch.dtype | None = None,
    **hub: Any,
) -> Any:
    """A pipeline from published files.

    Args:
        cls: the pipeline's class.
        source: a folder with the files, or the hub repository that contains them (``"FoundationVision/Infinity"``).
        variant: a key of :data:`VARIANTS`.
        text_encoder: a T5 encoder, or its folder or hub repository; ``None`` for none (calls then need
            ``prompt_embeds``).
        tokenizer: tokenizer of the text encoder; by default from the same folder or repository.
        dtype: dtype of all weights; by default as stored.
        **hub: options of ``hf_hub_download`` (``revision``, ``token``, ``cache_dir``).

    Raises:
        ConfigError: there is no such variant.
        CheckpointError: a file is missing or not valid, or transformer and tokenizer do not belong together.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"there is no Infinity variant {variant!r}; there are {', '.join(VARIANTS)}")
    files = VARIANTS[variant]
    file = fetch(source, files.transformer, **hub)
    transformer = load_transformer(file, files.resolution)
    check_depth(transformer, files.layers, variant, file)
    vae = load_tokenizer(fetch(source, files.tokenizer, **hub), files.patch)
    check_pair(transformer, vae.choices, 2 * vae.choices)
    if dtype is not None:
        for model in (transformer, vae):
            torch.nn.Module.to(model, dtype)
    if isinstance(text_encoder, (str, Path)):
        text_encoder, tokenizer = _load_text_encoder(text_encoder, tokenizer, dtype)
    scheduler = NextScaleScheduler(
        guidance="constant",
        guidance_scale=files.guidance_scale,
        top_k=900,
        top_p=0.97,
        temperature=files.temperature,
    )
    return cls(transformer, vae, scheduler, text_encoder, tokenizer, resolution=files.resolution)


def _load_text_encoder(source: str | Path, tokenizer: Any, dtype: torch.dtype | None) -> tuple[Any, Any]:
    """Encoder and tokenizer; only the encoder is loaded if ``tokenizer`` is given."""
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(source) if tokenizer is None else tokenizer
    return T5EncoderModel.from_pretrained(source, dtype=dtype or "auto"), tokenizer


def load_transformer(path: Path, resolution: str = "1M") -> NextScaleTransformer:
    """The transformer of a published file or folder; its configuration is derived from the shapes of the weights.

    Raises:
        CheckpointError: it is not an Infinity checkpoint.
    """
    state = read_weights(path, within=[("trainer", "gpt_fsdp")])  # a checkpoint of the training code
    what = "an Infinity transformer"
    query = require(state, "text_proj_for_sos.ca.mat_q", what, ndim=3, place=path)
    blocks = {block.group(1, 2) for key in state if (block := _BLOCK.fullmatch(key))}
    null = require(state, "cfg_uncond", what, ndim=2, place=path)
    width, channels = require(state, "word_embed.weight", what, ndim=2, place=path).shape
    scale = "block_chunks.0.module.0.sa.scale_mul_1H11"
    config = {
        "num_layers": len(blocks),
        "hidden_size": width,
        "num_heads": require(state, scale, what, place=path).numel(),
        "token_dim": channels,
        "num_outputs": require(state, "head.weight", what, ndim=2, place=path).shape[0],
        "schedule": infinity_schedule(1.0, resolution),
        "num_levels": require(state, "lvl_embed.weight", what, ndim=2, place=path).shape[0],
        "condition": "text",
        "text_width": null.shape[1],
        "text_tokens": null.shape[0],
        "pool_heads": query.shape[1],
        "shared_modulation": True,
        "rotary": True,
    }
    model: NextScaleTransformer = built(NextScaleTransformer, config, path)
    put(model, dict(map_transformer(state)), path, state)
    model.eval()
    return model


def map_transformer(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a published Infinity state dict in the layout of :class:`NextScaleTransformer`."""
    renamed = {
        "cfg_uncond": "null_text",
        "pos_start": "start_pos",
        "text_norm.weight": "text_norm",
        "lvl_embed.weight": "level_embed.weight",
        "text_proj_for_sos.ca.mat_q": "text_pool.query",
        "text_proj_for_sos.ca.v_bias": "text_pool.to_v.bias",
    }
    prefixes = {
        "word_embed.": "token_embed.",
        "head_nm.ada_lin.1.": "head_norm.",
        "head.": "proj_out.",
        "shared_ada_lin.1.": "ada_shared.",
        "text_proj_for_ca.": "text_proj.",
        "text_proj_for_sos.ca.proj.": "text_pool.to_out.",
    }
    blocks: dict[tuple[int, int], dict[str, Tensor]] = {}
    for key, value in state.items():
        if block := _BLOCK.fullmatch(key):
            blocks.setdefault((int(block[1]), int(block[2])), {})[block[3]] = value
        elif key == "text_proj_for_sos.ca.mat_kv.weight":
            for name, part in split_three(value, ("to_k", "to_v")):
                yield f"text_pool.{name}", part
        elif key != "text_proj_for_sos.ca.zero_k_bias":
            prefix = next((p for p in prefixes if key.startswith(p)), None)
            yield (
                renamed.get(key, key if prefix is None else prefixes[prefix] + key.removeprefix(prefix)),
                value,
            )
    for index, place in enumerate(sorted(blocks)):
        for name, value in map_block(blocks[place], "sa."):
            yield f"blocks.{index}.{name}", value


def load_tokenizer(file: Path, patch: int = 1) -> BSQAutoencoder:
    """The tokenizer of a published file.

    Raises:
        CheckpointError: it is not such a tokenizer.
    """
    what = "a bitwise tokenizer"
    stored = read_weights(file, within=[("vae",)], ignored=_IGNORED)
    state = dict(map_tokenizer(stored))
    config = {
        "block_out_channels": level_widths(state, what, file),
        "layers_per_block": len(
            {key.split(".")[4] for key in state if key.startswith("encoder.down.0.block.")}
        ),
        "bits": require(state, "decoder.conv_in.weight", what, ndim=4, place=file).shape[1],
        "token_patch": patch,
    }
    model: BSQAutoencoder = built(BSQAutoencoder, config, file)
    put(model, state, file, stored)
    model.eval()
    return model


def map_tokenizer(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a published tokenizer, whose layers are one level deeper (``.conv``, ``.norm``)."""
    for key, value in state.items():
        if key.startswith(_IGNORED):
            continue
        parts = key.split(".")
        wrapped = len(parts) > 2 and parts[-2] in ("conv", "norm") and parts[-3] not in _RESIZING
        yield ".".join([*parts[:-2], parts[-1]] if wrapped else parts), value
