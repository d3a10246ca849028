"""VAR and Infinity, the pipelines of hasten itself that generate scale by scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from hasten.extend import Adapter, BlockUnit, Cut, Grain, LatentSize, ScaleSchedule, ScannedUnits, UnitGroup
from hasten.schedules.noise import NoiseLevel
from hasten.schedules.scales import Schedule

if TYPE_CHECKING:
    from torch import Tensor, nn


class NextScaleSchedule(ScaleSchedule):
    """One forward of the transformer per scale; the level is the share of the scales that are still to come."""

    @override
    def scales(self, pipe: Any, arguments: Mapping[str, Any]) -> Schedule:
        """The grids that the pipeline's own method chooses for a call."""
        schedule: Schedule = pipe.call_schedule(arguments.get("height"), arguments.get("width"))
        return schedule

    @override
    def scale(self, kwargs: Mapping[str, Any]) -> int:
        """The transformer is told."""
        return int(kwargs["scale"])

    @override
    def level(self, pipe: Any, kwargs: Mapping[str, Any]) -> NoiseLevel:
        """From 1 at the first scale down to one scale's share at the last."""
        return NoiseLevel.flow(1.0 - kwargs["scale"] / len(kwargs["conditioning"].schedule))

    @override
    def size(self, pipe: Any, kwargs: Mapping[str, Any]) -> LatentSize:
        """The grid of the scale."""
        return LatentSize(*kwargs["conditioning"].schedule[kwargs["scale"]])


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
    capabilities=(NextScaleSchedule(), NextScaleUnits()),
)
