"""Cosmos Predict 1, 2, 2.5 and Transfer 2.5 (diffusers ``CosmosTransformer3DModel``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from typing_extensions import override

from hasten.extend import (
    Adapter,
    AttentionTokens,
    ControlNetwork,
    FlowPath,
    FrameAxis,
    FrameLayer,
    FrameMixing,
    Guidance,
    LatentSize,
    LayerKind,
    LogSigmaPath,
    Path,
    Pipeline,
    RatioFlowPath,
    Rotary,
    VideoLayout,
    VideoTokens,
    resize_mask,
)
from hasten.pipelines.adapters.untried import RESIZING

if TYPE_CHECKING:
    from torch import Tensor, nn


class CosmosLayout(VideoLayout):
    """Plain latents with a mask of given frames beside them; rotary positions follow the shape.

    The padding mask is resized by the denoiser itself.
    """

    resizing = RESIZING

    guidance = Guidance.SEQUENTIAL
    controls = ("block_controlnet_hidden_states",)

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow told ``t``; the solver of Predict 2 keeps the ratio of noise to signal."""
        sigmas = pipe.scheduler.config.get("sigma_max")
        return RatioFlowPath(scale=1.0) if sigmas is not None and sigmas > 1.0 else FlowPath(scale=1.0)

    @override
    def sigmas(self, pipe: Pipeline, steps: int) -> list[float] | None:
        """Predict 2 leaves the table to its scheduler's Karras rule, and gives it the two ends, cleanest first."""
        if not isinstance(self.path(pipe), RatioFlowPath):
            return None
        return [index / max(steps - 1, 1) for index in range(steps)]

    @override
    def positions(self, pipe: Pipeline, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
        """The mask of given frames."""
        mask = kwargs.get("condition_mask")
        return {} if mask is None else {"condition_mask": resize_mask(mask, size)}

    @override
    def clean_frames(self, pipe: Pipeline, kwargs: Mapping[str, Any]) -> Tensor | None:
        """What the mask selects."""
        mask: Tensor | None = kwargs.get("condition_mask")
        if mask is None or mask.shape[2] != self.size(pipe, kwargs).frames:
            return None
        return (mask[:, 0, :, 0, 0] > 0.5).expand(len(kwargs[self.latents]), -1)

    @override
    def call_frames(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> int | None:
        """Pictures have one."""
        return super().call_frames(pipe, {**arguments, "num_frames": arguments.get("num_frames") or 1})


class Cosmos1Layout(CosmosLayout):
    """The denoiser predicts the negative of the velocity of its variance-preserving input."""

    @override
    def path(self, pipe: Pipeline) -> Path:
        """EDM."""
        return LogSigmaPath(data=pipe.scheduler.config.sigma_data)

    @override
    def decode_output(self, pipe: Pipeline, kwargs: Mapping[str, Any], sample: Any) -> Tensor:
        """Negated."""
        return -super().decode_output(pipe, kwargs, sample)

    @override
    def encode_output(self, pipe: Pipeline, kwargs: Mapping[str, Any], latent: Tensor) -> Any:
        """Negated."""
        return super().encode_output(pipe, kwargs, -latent)


class CosmosControl(ControlNetwork):
    """The condition is the latents of another video."""

    latents = "latents"
    conditions = ("controls_latents",)


class CosmosFrames(VideoTokens):
    """Rotary tables, and learned positions beside them in some models; a mask and a time for every frame."""

    text = ("encoder_hidden_states", "attention_mask")
    scope = (6, 8)
    along: ClassVar = {"timestep": FrameAxis(2), "condition_mask": FrameAxis(2)}

    @override
    def layers(self, root: nn.Module) -> Iterator[FrameLayer]:
        """Learned positions, too."""
        yield from super().layers(root)
        if getattr(root, "learnable_pos_embed", None) is not None:
            yield FrameLayer("learnable_pos_embed", LayerKind.POSITIONS)

    @override
    def trained_frames(self, pipe: Pipeline) -> int | None:
        """93 frames of video in the released models."""
        return 24

    @override
    def limit(self, pipe: Pipeline) -> int | None:
        """Learned positions, or rows of the rotary table."""
        sizes = pipe.transformer.config.max_size
        learned = pipe.transformer.config.extra_pos_embed_type is not None
        return int(sizes[0] if learned else max(sizes)) // self.patch(pipe)

    @override
    def refusal(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> str | None:
        """Learned positions cannot be continued beyond their last."""
        frames, limit = arguments.get("num_frames"), self.limit(pipe)
        if (
            frames is not None
            and limit is not None
            and pipe.transformer.config.extra_pos_embed_type is not None
        ):
            patches = ((frames - 1) // pipe.vae_scale_factor_temporal + 1) // self.patch(pipe)
            if patches > limit:
                return f"{patches} latent frames are more than its {limit} learned positions; ask for fewer frames"
        return super().refusal(pipe, arguments)

    @override
    def positions(self, module: nn.Module, bound: Mapping[str, Any], clip: range, frames: int) -> Any:
        """The clip's rows of the learned positions of the whole video."""
        x, each = bound["hidden_states"], module.patch_size[0]  # type: ignore[index]
        whole = type(module).forward(module, x[:, :, :1].expand(-1, -1, frames * each, -1, -1))
        return whole.unflatten(1, (frames, -1))[:, clip.start : clip.stop].flatten(1, 2)

    @override
    def patch_sizes(self, module: Any) -> tuple[int, int, int]:
        """``patch_size``."""
        sizes: tuple[int, int, int] = module.patch_size
        return sizes

    @override
    def joined(self, module: Any, temporal: tuple[Tensor, Tensor], spatial: tuple[Tensor, Tensor]) -> Rotary:
        """Temporal channels come first in both halves."""
        half = temporal[0].shape[1] // 2
        channels = torch.arange(2 * half, device=temporal[0].device) % half < module.dim_t // 2
        return Rotary(temporal, spatial, channels, halves=1)


class Cosmos1Frames(CosmosFrames):
    """The given frames get new noise in every step, and the solver is called for both branches and for the step."""

    scope = (4, 6)
    draws_in_loop = True
    resumable = False

    @override
    def trained_frames(self, pipe: Pipeline) -> int | None:
        """121 frames of video in the released models."""
        return 16


_TOKENS = AttentionTokens(r"transformer_blocks\.\d+\.attn1")

ADAPTERS = (
    Adapter(
        family="cosmos-1",
        pipelines=("CosmosTextToWorldPipeline", "CosmosVideoToWorldPipeline"),
        capabilities=(Cosmos1Layout(), _TOKENS, Cosmos1Frames()),
    ),
    Adapter(
        family="cosmos-2",
        pipelines=("Cosmos2VideoToWorldPipeline", "Cosmos2_5_PredictBasePipeline"),
        capabilities=(CosmosLayout(), _TOKENS, CosmosFrames()),
        models=("CosmosTransformer3DModel",),
        refused={
            "Cosmos3OmniPipeline": "its denoiser takes text, pictures and sound as one list of packed tokens"
        },
    ),
    Adapter(
        family="cosmos-2-image",
        pipelines=("Cosmos2TextToImagePipeline",),
        capabilities=(CosmosLayout(), _TOKENS),
        missing={FrameMixing: "it makes pictures, not videos"},
    ),
    Adapter(
        family="cosmos-transfer",
        pipelines=("Cosmos2_5_TransferPipeline",),
        capabilities=(CosmosLayout(), CosmosControl(), _TOKENS),
        missing={FrameMixing: "it makes its video chunk after chunk, each from the end of the one before"},
    ),
)
