"""Kandinsky 5 (diffusers ``Kandinsky5Transformer3DModel``): pictures and videos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from typing_extensions import override

from hasten.extend import (
    Adapter,
    AttentionTokens,
    Channels,
    FlowPath,
    FrameAxis,
    FrameMixing,
    Guidance,
    LatentSize,
    Path,
    Pipeline,
    Rotary,
    TiledDecoder,
    VideoLayout,
    VideoTokens,
    separable,
)
from hasten.pipelines.adapters.untried import RESIZING

if TYPE_CHECKING:
    from torch import Tensor


class Kandinsky5Layout(VideoLayout):
    """Latents as (B, F, H, W, C): noisy ones, clean ones of a picture, a mask of the given frames."""

    resizing = RESIZING

    guidance = Guidance.SEQUENTIAL

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow."""
        return FlowPath()

    @override
    def channels(self, pipe: Pipeline, count: int) -> Channels:
        """The mask comes last."""
        noisy: int = pipe.transformer.config.out_visual_dim
        return Channels.leading(noisy, slice(2 * noisy, max(2 * noisy, count)))

    @override
    def unpack(self, pipe: Pipeline, kwargs: Mapping[str, Any], packed: Any) -> Tensor:
        """Channels before frames."""
        result: Tensor = packed.movedim(-1, 1)
        return result

    @override
    def arrange(self, latent: Tensor) -> Tensor:
        """Channels last."""
        return latent.movedim(1, -1)

    @override
    def clean_frames(self, pipe: Pipeline, kwargs: Mapping[str, Any]) -> Tensor | None:
        """Where the mask is set."""
        whole, noisy = kwargs[self.latents], pipe.transformer.config.out_visual_dim
        return (whole[:, :, 0, 0, -1] > 0.5) if whole.shape[-1] == 2 * noisy + 1 else None

    @override
    def positions(self, pipe: Pipeline, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
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
    def refusal(self, pipe: Pipeline) -> str | None:
        """Block-sparse models have masks for one size."""
        if pipe.transformer.config.attention_type != "regular":
            return "its sparse attention has masks for one size"
        return super().refusal(pipe)

    @override
    def call_frames(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> int | None:
        """Pictures have one."""
        frames = arguments.get("num_frames")
        return 1 if frames is None else super().call_frames(pipe, arguments)


class Kandinsky5Frames(VideoTokens):
    """Attention to text is apart; rotary embeddings are matrices."""

    latents = FrameAxis(1)
    sample = FrameAxis(1)
    text = ("encoder_hidden_states", "pooled_projections", "text_rope_pos")
    scope = (10, 12)
    blocks: ClassVar = {"visual_transformer_blocks": "self_attention"}
    rope = "visual_rope_embeddings"
    elsewhere = r"^text_transformer_blocks\.|\.cross_attention$"
    rotary_argument = "rotary_emb"

    @override
    def trained_frames(self, pipe: Pipeline) -> int | None:
        """121 frames of video in the released models."""
        return 31

    @override
    def limit(self, pipe: Pipeline) -> int | None:
        """Rows of the temporal table."""
        rows: int = pipe.transformer.visual_rope_embeddings.max_pos[0]
        return rows

    @override
    def refusal(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> str | None:
        """Block-sparse models have masks over all frames."""
        if pipe.transformer.config.attention_type != "regular":
            return "its sparse attention has masks over the tokens of all frames"
        return super().refusal(pipe, arguments)

    @override
    def clip_arguments(
        self, pipe: Pipeline, kwargs: Mapping[str, Any], clip: range, held: range, frames: int
    ) -> dict[str, Any]:
        """Positions are an argument; the rotary module gets the right ones later."""
        changed = super().clip_arguments(pipe, kwargs, clip, held, frames)
        positions, *sides = kwargs["visual_rope_pos"]
        changed["visual_rope_pos"] = [positions[: len(clip)], *sides]
        return changed

    @override
    def rotary(self, module: Any, inner: Any, bound: Mapping[str, Any], frames: int) -> Rotary:
        """One call with one spatial position, one with one frame."""
        rows, columns = bound["pos"][1:]
        numbers = torch.arange(frames, device=rows.device)
        scale = bound.get("scale_factor", (1.0, 1.0, 1.0))
        temporal = inner((1, frames, 1, 1), [numbers, rows[:1], columns[:1]], scale)
        spatial = inner((1, 1, len(rows), len(columns)), [numbers[:1], rows, columns], scale)
        return separable(_rows(temporal), _rows(spatial), 2 * module.args_0.shape[1])

    @override
    def as_argument(self, table: tuple[Tensor, Tensor]) -> Tensor:
        """(1, T, 1, D/2, 2, 2)."""
        cos, sin = (t[:, ::2] for t in table)
        turns: Tensor = torch.stack([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2))[None, :, None]
        return turns

    @override
    def as_output(self, table: tuple[Tensor, Tensor], bound: Mapping[str, Any]) -> Tensor:
        """(B, F, H, W, 1, D/2, 2, 2)."""
        batch, *grid = bound["shape"]
        turns: Tensor = self.as_argument(table).unflatten(1, grid)
        return turns.expand(batch, *(-1,) * 7)


def _rows(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine (T, D) of matrices (1, F, H, W, 1, D/2, 2, 2)."""
    flat = matrices[0].flatten(0, 2)[:, 0].repeat_interleave(2, 1)
    return flat[..., 0, 0], flat[..., 1, 0]


class Kandinsky5Decoder(TiledDecoder):
    """HunyuanVideo's autoencoder."""

    @override
    def unpack(self, pipe: Pipeline, latents: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Channels before frames."""
        return latents.movedim(-1, 1)


_TOKENS = AttentionTokens(r"visual_transformer_blocks\.\d+\.self_attention")

ADAPTERS = (
    Adapter(
        family="kandinsky5",
        pipelines=("Kandinsky5T2VPipeline",),
        capabilities=(Kandinsky5Layout(), _TOKENS, Kandinsky5Frames(), Kandinsky5Decoder()),
        models=("Kandinsky5Transformer3DModel",),
    ),
    Adapter(
        family="kandinsky5-picture",
        pipelines=("Kandinsky5I2VPipeline",),
        capabilities=(Kandinsky5Layout(), _TOKENS),
        missing={
            FrameMixing: "its given picture is a frame that is not stepped, and is matched to all others"
        },
    ),
    Adapter(
        family="kandinsky5-image",
        pipelines=("Kandinsky5T2IPipeline", "Kandinsky5I2IPipeline"),
        capabilities=(Kandinsky5Layout(), _TOKENS),
        missing={FrameMixing: "it makes pictures, not videos"},
    ),
)
