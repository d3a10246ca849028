"""LTX-2 (diffusers ``LTX2VideoTransformer3DModel``): video and audio in one denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from hasten.extend import (
    Adapter,
    AttentionTokens,
    FlowPath,
    FrameMixing,
    LatentSize,
    Path,
    Pipeline,
    TokenLayout,
)
from hasten.schedules.noise import NoiseLevel

if TYPE_CHECKING:
    from torch import Tensor

_CONDITIONED = "its conditions are tokens with timesteps of their own, beside those of the audio"


class LTX2Layout(TokenLayout):
    """LTX's tokens with explicit coordinates, in pixels and seconds. The audio keeps its level."""

    even_sigmas = True

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow."""
        return FlowPath()

    @override
    def resizing_refusal(self, pipe: Pipeline) -> str | None:
        """Sound and picture have to stay in step."""
        return "it steps the sound with a copy of the same scheduler"

    @override
    def encode(
        self, pipe: Pipeline, kwargs: Mapping[str, Any], latent: Tensor, level: NoiseLevel
    ) -> dict[str, Any]:
        """Where the audio would take over the video's timestep and sigma, it is told the old ones."""
        changed = super().encode(pipe, kwargs, latent, level)
        if changed["timestep"] is kwargs["timestep"]:
            return changed
        for name, audio in (("timestep", "audio_timestep"), ("sigma", "audio_sigma")):
            changed[audio] = kwargs[name] if kwargs.get(audio) is None else kwargs[audio]
        if kwargs.get("sigma") is not None:
            changed["sigma"] = self.retime(kwargs["sigma"], self.path(pipe).timestep(pipe, level))
        return changed

    @override
    def positions(self, pipe: Pipeline, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
        """Extent, and coordinates where they are given."""
        changed = super().positions(pipe, kwargs, size)
        old: Tensor | None = kwargs.get("video_coords")
        if old is not None:
            changed["video_coords"] = pipe.transformer.rope.prepare_video_coords(
                len(old), size.frames, size.height, size.width, old.device, fps=kwargs["fps"]
            )
        return changed

    @override
    def further_forwards(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> int:
        """One with blocks left out and one with sound and picture apart, where their guidance is on."""
        skipping, apart = (
            max(arguments.get(name) or 0.0, arguments.get(f"audio_{name}") or 0.0)
            for name in ("stg_scale", "modality_scale")
        )
        return (skipping > 0) + (apart > 1)

    @override
    def call_frames(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> int | None:
        """Without ``num_frames`` the pipeline makes 121 frames."""
        return super().call_frames(pipe, {**arguments, "num_frames": arguments.get("num_frames") or 121})


ADAPTER = Adapter(
    family="ltx2",
    pipelines=("LTX2Pipeline",),
    capabilities=(LTX2Layout(), AttentionTokens(r"transformer_blocks\.\d+\.attn1")),
    missing={FrameMixing: "its frames attend to the sound, and the sound to all frames"},
    refused=dict.fromkeys(
        (
            "LTX2ImageToVideoPipeline",
            "LTX2ConditionPipeline",
            "LTX2InContextPipeline",
            "LTX2HDRPipeline",
            "LTX2DFRPipeline",
            "LTX2DFRTemporalRefinePipeline",
        ),
        _CONDITIONED,
    ),
)
