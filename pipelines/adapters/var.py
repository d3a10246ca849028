"""VAR and Infinity, the pipelines of hasten itself that generate scale by scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from hasten.pipelines.adapters._base import Adapter, LatentSize, ScaleSchedule
from hasten.schedules.noise import NoiseLevel
from hasten.schedules.scales import Schedule


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


ADAPTER = Adapter(
    family="next_scale",
    pipelines=("VARPipeline", "InfinityPipeline"),
    capabilities=(NextScaleSchedule(),),
)
