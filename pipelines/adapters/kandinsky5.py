"""Kandinsky 5 (diffusers ``Kandinsky5Transformer3DModel``): pictures and videos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from hasten.extend import (
    Adapter,
    AttentionTokens,
    Channels,
    FlowPath,
    Guidance,
    LatentSize,
    Path,
    VideoLayout,
)
from hasten.pipelines.adapters.untried import RESIZING

if TYPE_CHECKING:
    from torch import Tensor


class Kandinsky5Layout(VideoLayout):
    """Latents as (B, F, H, W, C): noisy ones, clean ones of a picture, a mask of the given frames."""

    resizing = RESIZING

    guidance = Guidance.SEQUENTIAL

    @override
    def path(self, pipe: Any) -> Path:
        """Rectified flow."""
        return FlowPath()

    @override
    def channels(self, pipe: Any, count: int) -> Channels:
        """The mask comes last."""
        noisy: int = pipe.transformer.config.out_visual_dim
        return Channels.leading(noisy, slice(2 * noisy, max(2 * noisy, count)))

    @override
    def unpack(self, pipe: Any, kwargs: Mapping[str, Any], packed: Any) -> Tensor:
        """Channels before frames."""
        result: Tensor = packed.movedim(-1, 1)
        return result

    @override
    def arrange(self, latent: Tensor) -> Tensor:
        """Channels last."""
        return latent.movedim(1, -1)

    @override
    def clean_frames(self, pipe: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
        """Where the mask is set."""
        whole, noisy = kwargs[self.latents], pipe.transformer.config.out_visual_dim
        return (whole[:, :, 0, 0, -1] > 0.5) if whole.shape[-1] == 2 * noisy + 1 else None

    @override
    def positions(self, pipe: Any, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
        """Rows and columns; the scale of positions is that of a small call."""
        frames, *_ = kwargs["visual_rope_pos"]
        patch = pipe.transformer.config.patch_size
        rows = torch.arange(size.height // patch[1], device=frames.device)
        columns = torch.arange(size.width // patch[2], device=frames.device)
        changed: dict[str, Any] = {"visual_rope_pos": [frames, rows, columns]}
        if hasattr(pipe, "_get_scale_factor"):
            changed["scale_factor"] = pipe._get_scale_factor(*self.pixels(pipe, size))
        return changed

    @override
    def refusal(self, pipe: Any) -> str | None:
        """Block-sparse models have masks for one size."""
        if pipe.transformer.config.attention_type != "regular":
            return "its sparse attention has masks for one size"
        return super().refusal(pipe)

    @override
    def call_frames(self, pipe: Any, arguments: Mapping[str, Any]) -> int | None:
        """Pictures have one."""
        frames = arguments.get("num_frames")
        return 1 if frames is None else super().call_frames(pipe, arguments)


ADAPTER = Adapter(
    family="kandinsky5",
    pipelines=(
        "Kandinsky5T2VPipeline",
        "Kandinsky5I2VPipeline",
        "Kandinsky5T2IPipeline",
        "Kandinsky5I2IPipeline",
    ),
    capabilities=(
        Kandinsky5Layout(),
        AttentionTokens(r"visual_transformer_blocks\.\d+\.self_attention"),
    ),
    models=("Kandinsky5Transformer3DModel",),
)
