"""CogVideoX 2B, 5B and 1.5 (diffusers ``CogVideoXTransformer3DModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from typing_extensions import override

from hasten.pipelines.adapters._base import Adapter, LatentSize
from hasten.pipelines.adapters._layouts import VideoLayout
from hasten.pipelines.adapters._paths import Path, VariancePreservingPath
from hasten.pipelines.adapters._tokens import JointTokens
from hasten.pipelines.adapters.stable_diffusion import CONCATENATES


class CogVideoXLayout(VideoLayout):
    """Latents as (B, F, C, H, W).

    Sine positions follow the shape, rotary ones are an argument, learned ones are fixed.
    """

    @override
    def path(self, pipe: Any) -> Path:
        """The scheduler's ``alphas_cumprod``, which ends at zero signal."""
        return VariancePreservingPath()

    @override
    def unpack(self, pipe: Any, kwargs: Mapping[str, Any], packed: Any) -> Tensor:
        """Channels before frames."""
        result: Tensor = packed.transpose(1, 2)
        return result

    @override
    def arrange(self, latent: Tensor) -> Tensor:
        """Frames before channels."""
        return latent.transpose(1, 2)

    @override
    def positions(self, pipe: Any, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
        """The pipeline's own maker of rotary embeddings: 1.0 and 1.5 differ."""
        if kwargs.get("image_rotary_emb") is None:
            return {}
        height, width = self.pixels(pipe, size)
        device = kwargs[self.latents].device
        rotary = pipe._prepare_rotary_positional_embeddings(height, width, size.frames, device)
        return {"image_rotary_emb": rotary}

    @override
    def given_size(self, latents: Tensor) -> LatentSize:
        """(B, F, C, H, W)."""
        return LatentSize(latents.shape[3], latents.shape[4], latents.shape[1])

    @override
    def default_pixels(self, pipe: Any, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """``sample_height`` and ``sample_width`` of the transformer."""
        config, factor = pipe.transformer.config, pipe.vae_scale_factor_spatial
        return config.sample_height * factor, config.sample_width * factor

    @override
    def call_frames(self, pipe: Any, arguments: Mapping[str, Any]) -> int | None:
        """1.5 adds latent frames until its temporal patches are full."""
        config = pipe.transformer.config
        given = arguments.get("num_frames")
        if given is None and "video" not in arguments:
            given = config.sample_frames
        frames = super().call_frames(pipe, {**arguments, "num_frames": given}) or 1
        patch = config.patch_size_t or 1
        return -(-frames // patch) * patch

    @override
    def refusal(self, pipe: Any) -> str | None:
        """The transformer raises for another extent if its positions were learned."""
        if pipe.transformer.config.use_learned_positional_embeddings:
            return "its position embeddings are learned for one latent size"
        return super().refusal(pipe)


ADAPTER = Adapter(
    family="cogvideox",
    pipelines=("CogVideoXPipeline", "CogVideoXVideoToVideoPipeline"),
    capabilities=(CogVideoXLayout(), JointTokens(r"transformer_blocks\.\d+\.attn1", "before")),
    refused={"CogVideoXImageToVideoPipeline": CONCATENATES, "CogVideoXFunControlPipeline": CONCATENATES},
)
