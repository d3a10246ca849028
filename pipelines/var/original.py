"""The published VAR checkpoints: files, names of weights, and configurations derived from their shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from hasten.extend import CheckpointError, ConfigError
from hasten.pipelines.var.checkpoints import fetch
from hasten.pipelines.var.scheduler import NextScaleScheduler
from hasten.pipelines.var.transformer import NextScaleTransformer
from hasten.pipelines.var.vq_model import MultiScaleVQModel
from hasten.schedules.scales import VAR_SCHEDULES, Schedule, check_schedule, token_ends
from hasten.weights import built, put, read_weights, require

__all__ = ["VARIANTS", "load_var", "map_block", "map_tokenizer", "map_transformer", "split_three"]

PipelineT = TypeVar("PipelineT")

VARIANTS = {f"d{depth}": f"var_d{depth}.pth" for depth in (16, 20, 24, 30, 36)}
"""File of the transformer of each variant. All variants share one tokenizer."""
_HITS = "quantize.ema_vocab_hit_SV"
_REFINED = "quantize.quant_resi.qresi_ls."
TOKENIZER_FILE = "vae_ch160v4096z32.pth"
_IGNORED = ("lvl_1L", "attn_bias_for_masking")
"""Training masks; the second contains minus infinity."""
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


def load_var(
    cls: Any,
    source: str | Path,
    variant: str = "d16",
    *,
    schedule: Sequence[Sequence[int]] | None = None,
    dtype: torch.dtype | None = None,
    **hub: Any,
) -> Any:
    """A pipeline from published files.

    Args:
        cls: the pipeline's class.
        source: a folder with the files, or the hub repository that contains them (``"FoundationVision/var"``).
        variant: a key of :data:`VARIANTS`.
        schedule: token grids, for a checkpoint trained on others than the published ones.
        dtype: dtype of the weights; by default as stored.
        **hub: options of ``hf_hub_download`` (``revision``, ``token``, ``cache_dir``).

    Raises:
        ConfigError: there is no such variant.
        CheckpointError: a file is missing or not valid, or transformer and tokenizer do not belong together.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"there is no VAR variant {variant!r}; there are {', '.join(VARIANTS)}")
    file = fetch(source, VARIANTS[variant], **hub)
    transformer = load_transformer(file, schedule)
    check_depth(transformer, int(variant[1:]), variant, file)
    vae = load_tokenizer(fetch(source, TOKENIZER_FILE, **hub))
    check_pair(transformer, vae.config["latent_channels"], vae.config["codebook_size"])
    if dtype is not None:
        for model in (transformer, vae):
            torch.nn.Module.to(model, dtype)
    return cls(transformer, vae, NextScaleScheduler())


def check_depth(transformer: NextScaleTransformer, layers: int, variant: str, file: Path) -> None:
    """Check that a checkpoint has the depth of the variant.

    Raises:
        CheckpointError: it has another; the message gives both.
    """
    depth = transformer.config["num_layers"]
    if depth != layers:
        raise CheckpointError(
            f"{file} holds a model of depth {depth}, not {layers} as variant={variant!r} says"
        )


def check_pair(transformer: NextScaleTransformer, channels: int, outputs: int) -> None:
    """Check that the transformer was trained with the tokenizer.

    Raises:
        CheckpointError: token channels or number of outputs differ.
    """
    config = transformer.config
    if (config["token_dim"], config["num_outputs"]) != (channels, outputs):
        raise CheckpointError(
            f"transformer and tokenizer do not belong together: the transformer reads {config['token_dim']} "
            f"channels and predicts {config['num_outputs']} values, the tokenizer has {channels} and {outputs}"
        )


def load_transformer(file: Path, schedule: Sequence[Sequence[int]] | None = None) -> NextScaleTransformer:
    """The transformer of a published file; its configuration is derived from the shapes of the weights.

    Raises:
        CheckpointError: it is not a VAR checkpoint, or its number of tokens matches no known schedule.
    """
    state = read_weights(file, ignored=_IGNORED)
    model: NextScaleTransformer = built(NextScaleTransformer, _config(state, schedule, file), file)
    put(model, dict(map_transformer(state)), file, state)
    model.eval()
    return model


def _config(
    state: Mapping[str, Tensor], schedule: Sequence[Sequence[int]] | None, file: Path
) -> dict[str, Any]:
    what = "a VAR transformer"
    classes, width = require(state, "class_emb.weight", what, ndim=2, place=file).shape
    layers = len({block[1] for key in state if (block := _BLOCK.fullmatch(key))})
    tokens = require(state, "pos_1LC", what, ndim=3, place=file).shape[1]
    scales = require(state, "lvl_embed.weight", what, ndim=2, place=file).shape[0]
    return {
        "num_layers": layers,
        "hidden_size": width,
        "num_heads": require(state, "blocks.0.attn.scale_mul_1H11", what, place=file).numel(),
        "token_dim": require(state, "word_embed.weight", what, ndim=2, place=file).shape[1],
        "num_outputs": require(state, "head.weight", what, ndim=2, place=file).shape[0],
        "schedule": _schedule(tokens, scales, schedule, file),
        "num_levels": scales,
        "num_classes": classes - 1,
        "shared_modulation": "shared_ada_lin.1.weight" in state,
    }


def _schedule(tokens: int, scales: int, given: Sequence[Sequence[int]] | None, file: Path) -> Schedule:
    """The schedule that matches the table of positions."""
    if given is not None:
        chosen = check_schedule(given)
        if (len(chosen), token_ends(chosen)[-1]) != (scales, tokens):
            raise CheckpointError(
                f"{file} was trained on {scales} scales with {tokens} tokens; the schedule given has "
                f"{len(chosen)} with "
                f"{token_ends(chosen)[-1]}"
            )
        return chosen
    for known in VAR_SCHEDULES.values():
        if (len(known), token_ends(known)[-1]) == (scales, tokens):
            return known
    raise CheckpointError(
        f"{file} has positions for {tokens} tokens in {scales} scales, which is no published schedule; pass "
        f"schedule=..."
    )


def map_transformer(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a published VAR state dict in the layout of :class:`NextScaleTransformer`."""
    renamed = {
        "pos_start": "start_pos",
        "pos_1LC": "pos_embed",
        "lvl_embed.weight": "level_embed.weight",
        "class_emb.weight": "class_embed.weight",
    }
    prefixes = {
        "word_embed.": "token_embed.",
        "head_nm.ada_lin.1.": "head_norm.",
        "head.": "proj_out.",
        "shared_ada_lin.1.": "ada_shared.",
    }
    blocks: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key in _IGNORED:
            continue
        if block := _BLOCK.fullmatch(key):
            blocks.setdefault(f"blocks.{block[1]}.", {})[block[2]] = value
            continue
        prefix = next((p for p in prefixes if key.startswith(p)), None)
        yield renamed.get(key, key if prefix is None else prefixes[prefix] + key.removeprefix(prefix)), value
    for place, tensors in blocks.items():
        for key, value in map_block(tensors, "attn."):
            yield place + key, value


def map_block(block: Mapping[str, Tensor], attention: str) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of one published block, converted; ``attention`` is the prefix of its self-attention."""
    renamed = {"ada_gss": "norm.table"}
    prefixes = {"ada_lin.1.": "norm.linear.", "ffn.": "ff.", "ca_norm.": "cross_norm."}
    for key, value in block.items():
        if key.startswith((attention, "ca.")):
            own = attention if key.startswith(attention) else "ca."
            part = "attn." if own == attention else "cross_attn."
            for name, tensor in _map_attention(key.removeprefix(own), value):
                yield part + name, tensor
            continue
        prefix = next((p for p in prefixes if key.startswith(p)), None)
        yield renamed.get(key, key if prefix is None else prefixes[prefix] + key.removeprefix(prefix)), value


def _map_attention(key: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    if key == "zero_k_bias":
        return
    if key == "mat_qkv.weight":
        yield from split_three(value, ("to_q", "to_k", "to_v"))
    elif key == "mat_kv.weight":
        yield from split_three(value, ("to_k", "to_v"))
    elif key == "scale_mul_1H11":
        # Some files were built for another kernel and have (1, 1, H, 1).
        yield "logit_scale", value.reshape(-1)
    else:
        renamed = {"q_bias": "to_q.bias", "v_bias": "to_v.bias"}
        renamed |= {f"proj.{kind}": f"to_out.{kind}" for kind in ("weight", "bias")}
        renamed |= {f"mat_q.{kind}": f"to_q.{kind}" for kind in ("weight", "bias")}
        yield renamed.get(key, key), value


def split_three(weight: Tensor, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """The projections that are stacked in ``weight``, in order of their rows."""
    for name, part in zip(names, weight.reshape(-1, *weight.shape[1:]).chunk(len(names))):
        yield f"{name}.weight", part


def load_tokenizer(file: Path) -> MultiScaleVQModel:
    """The tokenizer of a published file.

    Raises:
        CheckpointError: it is not such a tokenizer.
    """
    state = read_weights(file, ignored=(_HITS,))
    what = "a multi-scale VQ tokenizer"
    book = require(state, "quantize.embedding.weight", what, ndim=2, place=file)
    config = {
        "block_out_channels": level_widths(state, what, file),
        "layers_per_block": len(
            {key.split(".")[4] for key in state if key.startswith("encoder.down.0.block.")}
        ),
        "latent_channels": book.shape[1],
        "codebook_size": book.shape[0],
        "refinements": len({key.split(".")[3] for key in state if key.startswith(_REFINED)}),
        "norm_groups": 32,
    }
    model: MultiScaleVQModel = built(MultiScaleVQModel, config, file)
    put(model, dict(map_tokenizer(state)), file, state)
    model.eval()
    return model


def level_widths(state: Mapping[str, Tensor], what: str, file: Path) -> list[int]:
    """Channels of each level of a published tokenizer, from the finest."""
    levels = len({key.split(".")[2] for key in state if key.startswith("encoder.down.")})
    return [
        require(state, f"encoder.down.{i}.block.0.conv1.weight", what, ndim=4, place=file).shape[0]
        for i in range(max(1, levels))
    ]


def map_tokenizer(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a published tokenizer in the layout of :class:`MultiScaleVQModel`."""
    for key, value in state.items():
        if key != _HITS:
            yield key.replace(_REFINED, "quantize.refine."), value
