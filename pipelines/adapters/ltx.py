"""LTX-Video (diffusers ``LTXVideoTransformer3DModel``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from hasten.extend import (
    Adapter,
    AttentionTokens,
    FlowPath,
    FrameAxis,
    Path,
    Pipeline,
    Rotary,
    TiledDecoder,
    TokenLayout,
    UnsupportedError,
    VideoTokens,
    stock_class,
)

if TYPE_CHECKING:
    from torch import Tensor


class LTXLayout(TokenLayout):
    """One token per latent pixel; image to video has the clean first frame among them, at timestep 0."""

    even_sigmas = True

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow."""
        return FlowPath()


class LTXFrames(VideoTokens):
    """Full attention in ``transformer_blocks.*.attn1``; positions in seconds, rotary over all heads at once."""

    latents = FrameAxis(1)
    sample = FrameAxis(1)
    text = ("encoder_hidden_states", "encoder_attention_mask")
    scope = (6, 8)

    @override
    def trained_frames(self, pipe: Pipeline) -> int | None:
        """161 frames of video in the released models."""
        return 21

    @override
    def refusal(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> str | None:
        """Rescaled guidance needs the whole sample, and a given picture is the tokens of the first frame."""
        if stock_class(pipe).__name__ == "LTXImageToVideoPipeline":
            return "the tokens of its given picture are stepped apart from those of the other frames"
        return super().refusal(pipe, arguments)

    @override
    def clip_arguments(
        self, pipe: Pipeline, kwargs: Mapping[str, Any], clip: range, held: range, frames: int
    ) -> dict[str, Any]:
        """The number of frames is an argument."""
        changed = super().clip_arguments(pipe, kwargs, clip, held, frames)
        changed["num_frames"] = len(clip)
        return changed

    @override
    def rotary(self, module: Any, inner: Any, bound: Mapping[str, Any], frames: int) -> Rotary:
        """One call with one spatial position, one with one frame."""
        x, scale = bound["hidden_states"][:1], bound.get("rope_interpolation_scale")
        if bound.get("video_coords") is not None:
            raise UnsupportedError(
                "LTX with coordinates of its own (video_coords) cannot be divided by frames"
            )
        cos, sin = (t[0] for t in inner(x, frames, 1, 1, scale))
        spatial = inner(x, 1, bound["height"], bound["width"], scale)
        padding = cos.shape[1] % 6
        channels = (torch.arange(cos.shape[1], device=cos.device) - padding) % 6 < 2
        channels[:padding] = False
        return _Seconds(
            (cos, sin), (spatial[0][0], spatial[1][0]), channels, lambda p: _rows(inner, x, scale, p)
        )

    @override
    def as_argument(self, table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(1, T, D)."""
        return table[0][None], table[1][None]


class _Seconds(Rotary):
    """Angles grow by many turns per frame, so a position between two frames is computed by the module
    itself."""

    def __init__(self, *tables: Any) -> None:
        super().__init__(*tables[:3])
        self._between = tables[3]

    @override
    def rows(self, positions: Sequence[float]) -> tuple[Tensor, Tensor]:
        if all(
            position == int(position) and 0 <= position < len(self._temporal[0]) for position in positions
        ):
            return super().rows(positions)
        result: tuple[Tensor, Tensor] = self._between(positions)
        return result


def _rows(inner: Any, x: Tensor, scale: Any, positions: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Rows of the temporal table at any position, through the module's own way to take coordinates."""
    unit = 1.0 if scale is None else scale[0]
    coordinates = torch.zeros(1, 3, len(positions), device=x.device)
    coordinates[:, 0] = torch.tensor(positions, device=x.device) * unit
    cos, sin = inner(x, video_coords=coordinates)
    return cos[0], sin[0]


class LTXDecoder(TiledDecoder):
    """Tiles where ``use_framewise_decoding`` is set; not for autoencoders that take a noise level."""

    superfluous = slice(None, -1)

    @override
    def unpack(self, pipe: Pipeline, latents: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Tokens to (B, C, F, H, W)."""
        patches = pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size
        unpacked: Tensor = pipe._unpack_latents(latents, *size, *patches)
        return unpacked

    @override
    def scaled(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        """The autoencoder's own statistics."""
        vae = pipe.vae
        if vae.config.timestep_conditioning:
            raise UnsupportedError(
                "this LTX autoencoder denoises while it decodes; call the pipeline with output_type='latent' and "
                "decode with its own decode_timestep and decode_noise_scale"
            )
        scaled: Tensor = pipe._denormalize_latents(
            latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor
        )
        return scaled


ADAPTER = Adapter(
    family="ltx",
    pipelines=("LTXPipeline", "LTXImageToVideoPipeline"),
    capabilities=(LTXLayout(), AttentionTokens(r"transformer_blocks\.\d+\.attn1"), LTXFrames(), LTXDecoder()),
    refused={
        "LTXConditionPipeline": "its condition frames are extra tokens with strengths of their own",
        "LTXI2VLongMultiPromptPipeline": "its condition frames are extra tokens with strengths of their own",
    },
)
