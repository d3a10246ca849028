"""Cosmos Predict 1, 2, 2.5 and Transfer 2.5 (diffusers ``CosmosTransformer3DModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from hasten.extend import (
    Adapter,
    AttentionTokens,
    ControlNetwork,
    FlowPath,
    Guidance,
    LatentSize,
    LogSigmaPath,
    Path,
    RatioFlowPath,
    VideoLayout,
    resize_mask,
)
from hasten.pipelines.adapters.untried import RESIZING

if TYPE_CHECKING:
    from torch import Tensor


class CosmosLayout(VideoLayout):
    """Plain latents with a mask of given frames beside them; rotary positions follow the shape.

    The padding mask is resized by the denoiser itself.
    """

    resizing = RESIZING

    guidance = Guidance.SEQUENTIAL
    controls = ("block_controlnet_hidden_states",)

    @override
    def path(self, pipe: Any) -> Path:
        """Rectified flow told ``t``; the solver of Predict 2 keeps the ratio of noise to signal."""
        sigmas = pipe.scheduler.config.get("sigma_max")
        return RatioFlowPath(scale=1.0) if sigmas is not None and sigmas > 1.0 else FlowPath(scale=1.0)

    @override
    def sigmas(self, pipe: Any, steps: int) -> list[float] | None:
        """Predict 2 leaves the table to its scheduler's Karras rule, and gives it the two ends, cleanest first."""
        if not isinstance(self.path(pipe), RatioFlowPath):
            return None
        return [index / max(steps - 1, 1) for index in range(steps)]

    @override
    def positions(self, pipe: Any, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
        """The mask of given frames."""
        mask = kwargs.get("condition_mask")
        return {} if mask is None else {"condition_mask": resize_mask(mask, size)}

    @override
    def clean_frames(self, pipe: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
        """What the mask selects."""
        mask: Tensor | None = kwargs.get("condition_mask")
        if mask is None or mask.shape[2] != self.size(pipe, kwargs).frames:
            return None
        return (mask[:, 0, :, 0, 0] > 0.5).expand(len(kwargs[self.latents]), -1)

    @override
    def call_frames(self, pipe: Any, arguments: Mapping[str, Any]) -> int | None:
        """Pictures have one."""
        return super().call_frames(pipe, {**arguments, "num_frames": arguments.get("num_frames") or 1})


class Cosmos1Layout(CosmosLayout):
    """The denoiser predicts the negative of the velocity of its variance-preserving input."""

    @override
    def path(self, pipe: Any) -> Path:
        """EDM."""
        return LogSigmaPath(data=pipe.scheduler.config.sigma_data)

    @override
    def decode_output(self, pipe: Any, kwargs: Mapping[str, Any], sample: Any) -> Tensor:
        """Negated."""
        return -super().decode_output(pipe, kwargs, sample)

    @override
    def encode_output(self, pipe: Any, kwargs: Mapping[str, Any], latent: Tensor) -> Any:
        """Negated."""
        return super().encode_output(pipe, kwargs, -latent)


class CosmosControl(ControlNetwork):
    """The condition is the latents of another video."""

    latents = "latents"
    conditions = ("controls_latents",)


_TOKENS = AttentionTokens(r"transformer_blocks\.\d+\.attn1")

ADAPTERS = (
    Adapter(
        family="cosmos-1",
        pipelines=("CosmosTextToWorldPipeline", "CosmosVideoToWorldPipeline"),
        capabilities=(Cosmos1Layout(), _TOKENS),
    ),
    Adapter(
        family="cosmos-2",
        pipelines=(
            "Cosmos2TextToImagePipeline",
            "Cosmos2VideoToWorldPipeline",
            "Cosmos2_5_PredictBasePipeline",
            "Cosmos2_5_TransferPipeline",
        ),
        capabilities=(CosmosLayout(), CosmosControl(), _TOKENS),
        models=("CosmosTransformer3DModel",),
        refused={
            "Cosmos3OmniPipeline": "its denoiser takes text, pictures and sound as one list of packed tokens"
        },
    ),
)
