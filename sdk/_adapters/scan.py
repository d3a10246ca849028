"""Finds the prunable units of a live diffusers denoiser by the classes of its modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from hasten._adapters.units import (
    BlockUnit,
    Cut,
    Grain,
    PrunableUnits,
    Structure,
    UnitGroup,
)
from hasten._errors import UnsupportedError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ScannedUnits", "UNetUnits"]

_JOINT = {
    "FluxTransformerBlock",
    "FluxSingleTransformerBlock",
    "QwenImageTransformerBlock",
    "JointTransformerBlock",
}


class ScannedUnits(PrunableUnits):
    """Heads and feed-forward channels of every block, and the blocks themselves."""

    def structure(self, denoiser: nn.Module, grain: Grain) -> Structure:
        """See :meth:`PrunableUnits.structure`."""
        groups: dict[str, UnitGroup] = {}
        for path, module in denoiser.named_modules():
            for group in self.groups(path, module, grain):
                groups[group.id] = group
        cuts = (cut for group in groups.values() for cut in group.cuts)
        touched = {cut.module for cut in cuts if cut.parameter == "weight"}
        for path in touched:
            _check_layer(path, denoiser.get_submodule(path))
        return Structure(groups, {block.id: block for block in self.blocks(denoiser)}, grain)

    def groups(self, path: str, module: nn.Module, grain: Grain) -> Iterator[UnitGroup]:
        """The groups that one module holds, its children left aside."""
        return _groups(path, module, grain)

    def blocks(self, denoiser: nn.Module) -> Iterator[BlockUnit]:
        """Blocks of a transformer."""
        from hasten._adapters.skips import SkipJoint, SkipTensor

        for path, module in denoiser.named_modules():
            name = type(module).__name__
            if name in _JOINT:
                last = "its text stream ends here" if getattr(module, "context_pre_only", False) else None
                yield BlockUnit(path, lambda _: SkipJoint(), last)
            elif name == "BasicTransformerBlock":
                yield BlockUnit(path, lambda _: SkipTensor())


class UNetUnits(ScannedUnits):
    """The U-Net of Stable Diffusion: also the norm groups of its resnets; resnets and transformers are its blocks."""

    def blocks(self, denoiser: Any) -> Iterator[BlockUnit]:
        """Resnets whose hidden input is as wide as their output, and transformers."""
        from hasten._adapters.skips import SkipTransformer2D

        hidden = denoiser.conv_in.out_channels
        parts = [(f"down_blocks.{i}", block, False) for i, block in enumerate(denoiser.down_blocks)]
        if denoiser.mid_block is not None:
            parts.append(("mid_block", denoiser.mid_block, False))
        parts += [(f"up_blocks.{i}", block, True) for i, block in enumerate(denoiser.up_blocks)]
        for place, block, _ in parts:
            for number, resnet in enumerate(block.resnets):
                yield _resnet_block(f"{place}.resnets.{number}", resnet, hidden)
                hidden = resnet.out_channels
            for number, attention in enumerate(getattr(block, "attentions", ())):
                if type(attention).__name__ == "Transformer2DModel":
                    yield BlockUnit(f"{place}.attentions.{number}", lambda _: SkipTransformer2D())

    def inputs(self, denoiser: Any, size: Any, text: int, batch: int = 1) -> dict[str, Any]:
        """See :meth:`PrunableUnits.inputs`."""
        config, weight = denoiser.config, denoiser.conv_in.weight
        like = {"device": weight.device, "dtype": weight.dtype}
        width = config.cross_attention_dim
        width = width[0] if isinstance(width, (list, tuple)) else width
        given: dict[str, Any] = {
            "sample": torch.zeros(batch, config.in_channels, size.height, size.width, **like),
            "timestep": torch.full((batch,), 500, device=weight.device),
            "encoder_hidden_states": torch.zeros(batch, text, width, **like),
        }
        if config.addition_embed_type == "text_time":
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            given["added_cond_kwargs"] = {
                "text_embeds": torch.zeros(batch, pooled, **like),
                "time_ids": torch.zeros(batch, 6, **like),
            }
        if config.time_cond_proj_dim is not None:
            given["timestep_cond"] = torch.zeros(batch, config.time_cond_proj_dim, **like)
        return given


def _resnet_block(path: str, resnet: Any, hidden: int) -> BlockUnit:
    from hasten._adapters.skips import SkipResnet

    refusal = None
    if hidden != resnet.out_channels:
        refusal = f"it changes the width from {hidden} to {resnet.out_channels} channels"
    elif getattr(resnet, "up", False) or getattr(resnet, "down", False):
        refusal = "it changes the resolution"
    return BlockUnit(path, lambda module: SkipResnet(int(module.out_channels)), refusal)  # type: ignore[arg-type]


def _groups(path: str, module: Any, grain: Grain) -> Iterator[UnitGroup]:
    name = type(module).__name__
    if name == "ResnetBlock2D":
        yield _resnet(path, module, grain)
    elif isinstance(getattr(module, "to_q", None), torch.nn.Module) and hasattr(module, "heads"):
        yield _heads(path, module)
    elif name == "FeedForward":
        yield _feed_forward(path, module, grain)
    elif name == "FluxSingleTransformerBlock":
        yield _single_mlp(path, module, grain)


def _resnet(path: str, module: Any, grain: Grain) -> UnitGroup:
    norm = module.norm2
    refusal = None
    if not isinstance(norm, torch.nn.GroupNorm):
        return UnitGroup(f"{path}:resnet", "resnet", 1, (), refusal=f"its norm is a {type(norm).__name__}")
    units, size = norm.num_groups, norm.num_channels // norm.num_groups
    cuts = [Cut(f"{path}.conv1", "out", size), Cut(f"{path}.norm2", "out", size)]
    if module.time_emb_proj is not None:
        cuts.append(Cut(f"{path}.time_emb_proj", "out", size))
        if module.time_embedding_norm == "scale_shift":
            cuts.append(Cut(f"{path}.time_emb_proj", "out", size, norm.num_channels))
    cuts.append(Cut(f"{path}.conv2", "in", size))
    attributes = ((f"{path}.norm2", "num_groups", 1), (f"{path}.norm2", "num_channels", size))
    step = grain.resnet_step(units, size)
    return UnitGroup(f"{path}:resnet", "resnet", units, tuple(cuts), step, attributes, refusal)


def _heads(path: str, module: Any) -> UnitGroup:
    """A unit is a key-value head with the query heads that share it (one, without grouped queries)."""
    if getattr(module, "fused_projections", False):
        raise UnsupportedError(
            f"attention layer {path!r} has fused projections, whose rows can't be distinguished; call "
            f"unfuse_qkv_projections() first"
        )
    heads = int(module.heads)
    dim = module.to_q.out_features // heads
    units = module.to_k.out_features // dim
    queries = dim * heads // units
    cuts = [Cut(f"{path}.to_q", "out", queries)]
    names = {"add_q_proj": queries, "to_k": dim, "to_v": dim, "add_k_proj": dim, "add_v_proj": dim}
    cuts += [
        Cut(f"{path}.{n}", "out", size) for n, size in names.items() if getattr(module, n, None) is not None
    ]
    for name in ("to_k_ip", "to_v_ip"):
        layers = getattr(getattr(module, "processor", None), name, None)
        if isinstance(layers, (torch.nn.ModuleList, list)):
            cuts += [Cut(f"{path}.processor.{name}.{i}", "out", dim) for i in range(len(layers))]
    if getattr(module, "to_out", None) is not None:
        cuts.append(Cut(f"{path}.to_out.0", "in", queries))
    elif getattr(module, "pre_only", False):
        cuts.append(Cut(f"{path.rpartition('.')[0]}.proj_out", "in", queries))
    if getattr(module, "to_add_out", None) is not None:
        cuts.append(Cut(f"{path}.to_add_out", "in", queries))
    values = {"heads": heads // units, "inner_dim": queries, "inner_kv_dim": dim}
    values["sliceable_head_dim"] = heads // units
    attributes = tuple((path, name, value) for name, value in values.items() if hasattr(module, name))
    return UnitGroup(f"{path}:heads", "heads", units, tuple(cuts), 1, attributes, _heads_refusal(module, dim))


def _heads_refusal(module: Any, dim: int) -> str | None:
    for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        weight = getattr(getattr(module, name, None), "weight", None)
        if weight is not None and weight.numel() != dim:
            return f"{name} normalises across heads, so removing one head would change the others"
    if getattr(module, "to_out", None) is None and not getattr(module, "pre_only", False):
        return "its output layer is unknown"
    return None


def _feed_forward(path: str, module: Any, grain: Grain) -> UnitGroup:
    first, last = module.net[0].proj, module.net[2]
    inner = last.in_features
    size = grain.ffn_size(inner)
    gated = first.out_features == 2 * inner
    cuts = [Cut(f"{path}.net.0.proj", "out", size)]
    if gated:
        cuts.append(Cut(f"{path}.net.0.proj", "out", size, inner))
    cuts.append(Cut(f"{path}.net.2", "in", size))
    return UnitGroup(f"{path}:ffn", "ffn", inner // size, tuple(cuts))


def _single_mlp(path: str, module: Any, grain: Grain) -> UnitGroup:
    inner = module.mlp_hidden_dim
    size = grain.ffn_size(inner)
    width = module.proj_out.in_features - inner
    cuts = (Cut(f"{path}.proj_mlp", "out", size), Cut(f"{path}.proj_out", "in", size, width))
    return UnitGroup(f"{path}:ffn", "ffn", inner // size, cuts, 1, ((path, "mlp_hidden_dim", size),))


def _check_layer(path: str, module: nn.Module) -> None:
    """Only plain layers can be cut."""
    if hasattr(module, "base_layer"):
        raise UnsupportedError(
            f"layer {path!r} carries an active adapter ({type(module).__name__}); call pipe.fuse_lora() and "
            f"pipe.unload_lora_weights() first, or give the LoRA to hasten.plugins.aptp.lora.slice_lora"
        )
    weight: Any = getattr(module, "weight", None)
    plain = isinstance(module, (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm))
    if not plain or type(weight) is not torch.nn.Parameter or not weight.is_floating_point():
        raise UnsupportedError(
            f"layer {path!r} ({type(module).__name__}) is quantised, sharded or of an unknown kind and can't be cut; "
            f"load the denoiser in a plain floating-point type"
        )
