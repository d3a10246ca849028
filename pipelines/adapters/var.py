"""VAR and Infinity, the pipelines of hasten itself that generate scale by scale."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from hasten.extend import (
    Adapter,
    BlockUnit,
    Cut,
    Grain,
    LatentSize,
    Pipeline,
    ScaleCost,
    ScaleSchedule,
    ScannedUnits,
    UnitGroup,
    expected_batch,
)
from hasten.schedules.noise import NoiseLevel
from hasten.schedules.scales import Schedule, token_ends

if TYPE_CHECKING:
    from torch import Tensor, nn


class NextScaleSchedule(ScaleSchedule):
    """One forward of the transformer per scale; the level is the share of the scales that are still to come."""

    @override
    def scales(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> Schedule:
        """The grids that the pipeline's own method chooses for a call."""
        schedule: Schedule = pipe.call_schedule(arguments.get("height"), arguments.get("width"))
        return schedule

    @override
    def scale(self, kwargs: Mapping[str, Any]) -> int:
        """The transformer is told."""
        return int(kwargs["scale"])

    @override
    def level(self, pipe: Pipeline, kwargs: Mapping[str, Any]) -> NoiseLevel:
        """From 1 at the first scale down to one scale's share at the last."""
        return NoiseLevel.flow(1.0 - kwargs["scale"] / len(kwargs["conditioning"].schedule))

    @override
    def size(self, pipe: Pipeline, kwargs: Mapping[str, Any]) -> LatentSize:
        """The grid of the scale."""
        return LatentSize(*kwargs["conditioning"].schedule[kwargs["scale"]])

    @override
    def costs(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[ScaleCost, ...]:
        """Counted from the shapes of the layers; the text is as long as the prompts, or as the model takes."""
        schedule, config = self.scales(pipe, arguments), pipe.transformer.config
        rows, text = _rows(pipe, arguments, len(schedule)), _text_tokens(pipe, arguments)
        fixed, once = _layer_flops(pipe.transformer, text)
        heads, width = config["num_layers"] * config["num_heads"], config["hidden_size"]
        found = []
        for scale, (grid, end) in enumerate(zip(schedule, token_ends(schedule))):
            tokens = rows[scale] * grid[0] * grid[1]
            rest = tokens * fixed + (0.0 if scale else rows[0] * once)
            if scale == 0:
                rest -= tokens * 2.0 * pipe.transformer.token_embed.weight.numel()
            found.append(ScaleCost(grid, rest, 4.0 * tokens * width / config["num_heads"], heads * end))
        return tuple(found)

    @override
    def decoder_input(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, ...]:
        """The latent that all scales add up to."""
        return tuple(pipe.vae.empty_latent(1, self.scales(pipe, arguments)).shape)


def _rows(pipe: Pipeline, arguments: Mapping[str, Any], scales: int) -> list[int]:
    """Rows of the batch at every scale: twice as many while guidance, at this scale or a later one, needs them."""
    given = arguments.get("guidance_scale")
    scale = pipe.scheduler.config["guidance_scale"] if given is None else given
    last = arguments.get("unguided_last_scales") or 0
    weights = pipe.scheduler.guidance_weights(scale, scales, last)
    pictures = expected_batch(arguments) or 1
    return [pictures * (2 if any(weights[k:]) else 1) for k in range(scales)]


def _text_tokens(pipe: Pipeline, arguments: Mapping[str, Any]) -> int:
    if pipe.transformer.config["condition"] != "text":
        return 0
    embeds, prompt = arguments.get("prompt_embeds"), arguments.get("prompt")
    if embeds is not None:
        return int(embeds.shape[1])
    if prompt is None or pipe.tokenizer is None:
        return int(pipe.transformer.config["text_tokens"])
    return max(map(len, pipe.tokenizer([prompt] if isinstance(prompt, str) else list(prompt)).input_ids))


def _layer_flops(transformer: nn.Module, text: int) -> tuple[float, float]:
    """Operations of the layers for one token of the picture, and those that one row takes once."""
    each = once = 0.0
    for name, module in transformer.named_modules():
        if type(module).__name__ == "CrossAttention":
            each += 4.0 * module.to_q.out_features * text
        if type(module).__name__ == "TextPool":
            once += 4.0 * module.to_k.out_features * text
        if not isinstance(module, torch.nn.Linear):
            continue
        flops = 2.0 * module.weight.numel()
        if _PER_TEXT.search(name):
            once += text * flops
        elif _PER_ROW.search(name):
            once += flops
        else:
            each += flops
    return each, once


_PER_TEXT = re.compile(r"cross_attn\.to_[kv]|text_proj|text_pool\.to_[kv]")
_PER_ROW = re.compile(r"norm|ada_shared|text_pool")


class NextScaleUnits(ScannedUnits):
    """Heads of self and cross attention, and feed-forward channels; blocks stay, since caches count them.

    Costs and times are those of a whole picture, since every scale has another size.
    """

    @override
    def groups(self, path: str, module: Any, grain: Grain) -> Iterator[UnitGroup]:
        """Those of one module."""
        name = type(module).__name__
        if name in ("SelfAttention", "CrossAttention"):
            yield _heads(path, module)
        elif name == "FeedForward":
            size = grain.ffn_size(module.fc2.in_features)
            cuts = (Cut(f"{path}.fc1", "out", size), Cut(f"{path}.fc2", "in", size))
            yield UnitGroup(f"{path}:ffn", "ffn", module.fc2.in_features // size, cuts)

    @override
    def blocks(self, denoiser: nn.Module) -> Iterator[BlockUnit]:
        """None may go."""
        return iter(())

    @override
    def inputs(self, denoiser: Any, size: LatentSize, text: int, batch: int = 1) -> dict[str, Any]:
        """Tokens of all scales up to the grid ``size``, and a condition."""
        from hasten.pipelines.var.transformer import Conditioning
        from hasten.schedules.scales import token_ends

        config, weight = denoiser.config, denoiser.proj_out.weight
        grids = [tuple(grid) for grid in denoiser.schedule]
        schedule = tuple(grids[: grids.index((size.height, size.width)) + 1])
        like = {"device": weight.device, "dtype": weight.dtype}
        if config.condition == "class":
            known = Conditioning(schedule, labels=torch.zeros(batch, dtype=torch.long, device=weight.device))
        else:
            known = Conditioning(schedule, text=torch.ones(batch, text, config.text_width, **like))
        tokens = torch.zeros(batch, token_ends(schedule)[-1], config.token_dim, **like)
        return {"hidden_states": tokens, "conditioning": known}

    @override
    def forward(self, denoiser: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Logits of all scales (B, T, outputs), scale by scale over a cache."""
        from hasten.pipelines.var.cache import DenseKVCache

        known = replace(inputs["conditioning"], parts=[], text_kv=[], rotary={})
        cache = DenseKVCache()
        cache.begin(known.schedule, len(denoiser.blocks))
        widths = [rows * columns for rows, columns in known.schedule]
        parts = inputs["hidden_states"].split(widths, dim=1)
        return torch.cat([denoiser(part, scale, known, cache) for scale, part in enumerate(parts)], dim=1)


def _heads(path: str, module: Any) -> UnitGroup:
    dim = module.to_q.out_features // module.heads
    cuts = [Cut(f"{path}.{name}", "out", dim) for name in ("to_q", "to_k", "to_v")]
    if hasattr(module, "logit_scale"):
        cuts.append(Cut(path, "out", 1, parameter="logit_scale"))
    cuts.append(Cut(f"{path}.to_out", "in", dim))
    return UnitGroup(f"{path}:heads", "heads", module.heads, tuple(cuts), 1, ((path, "heads", 1),))


ADAPTER = Adapter(
    family="next_scale",
    pipelines=("VARPipeline", "InfinityPipeline"),
    module="hasten.pipelines",
    capabilities=(NextScaleSchedule(), NextScaleUnits()),
)
