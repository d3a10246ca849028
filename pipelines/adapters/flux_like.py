"""Families with FLUX.1's tokens and ids under other names: Bria, Bria FIBO, Ovis-Image, LongCat-Image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from hasten.extend import Adapter, FlowPath, Guidance, LatentSize, Path, Pipeline, unknown_size
from hasten.pipelines.adapters.flux import FluxLayout, FluxTokens
from hasten.pipelines.adapters.untried import RESIZING

_LAYERS = r"(single_)?transformer_blocks\.\d+\.attn"


class BriaLayout(FluxLayout):
    """Told ``1000 t``; one forward over both branches."""

    resizing = RESIZING

    guidance = Guidance.BATCHED

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow."""
        return FlowPath()

    @override
    def sigmas(self, pipe: Pipeline, steps: int) -> list[float] | None:
        """Without a dynamic shift, training timesteps; two solvers of diffusion keep their own."""
        name = type(pipe.scheduler).__name__
        if name == "FlowMatchEulerDiscreteScheduler" and pipe.scheduler.config.use_dynamic_shifting:
            return super().sigmas(pipe, steps)
        if name in ("DDIMScheduler", "EulerAncestralDiscreteScheduler"):
            return None
        from diffusers.pipelines.bria.pipeline_bria import get_original_sigmas

        trained: list[float] = get_original_sigmas(
            num_train_timesteps=pipe.scheduler.config.num_train_timesteps, num_inference_steps=steps
        ).tolist()
        return trained

    @override
    def scale(self, pipe: Pipeline) -> int:
        """The pipeline's factor counts packed tokens."""
        factor: int = pipe.vae_scale_factor // 2
        return factor

    @override
    def default_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """In tokens, too."""
        side: int = pipe.default_sample_size * pipe.vae_scale_factor
        return side, side


class FiboLayout(BriaLayout):
    """One token per latent pixel."""

    side = 1
    multiple = 1

    @override
    def sigmas(self, pipe: Pipeline, steps: int) -> list[float] | None:
        """Even ones, whatever the scheduler."""
        return FluxLayout.sigmas(self, pipe, steps)

    @override
    def scale(self, pipe: Pipeline) -> int:
        """As it is."""
        factor: int = pipe.vae_scale_factor
        return factor

    @override
    def call_size(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> LatentSize:
        """A picture to edit decides."""
        if arguments.get("image") is not None:
            raise unknown_size(pipe)
        return super().call_size(pipe, arguments)


class FiboTokens(FluxTokens):
    """One token per latent pixel."""

    @override
    def patch(self, denoiser: Any) -> tuple[int, int]:
        """Not packed."""
        return 1, 1


class OvisLayout(FluxLayout):
    """A forward for each branch."""

    resizing = RESIZING

    guidance = Guidance.SEQUENTIAL


class LongCatLayout(OvisLayout):
    """Latents are picture 1 and a reference is picture 2; rows and columns begin behind the text."""

    number = 1

    @override
    def call_size(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> LatentSize:
        """A picture to edit decides."""
        if arguments.get("image") is not None:
            raise unknown_size(pipe)
        return super().call_size(pipe, arguments)


ADAPTERS = (
    Adapter(
        family="bria",
        pipelines=("BriaPipeline",),
        capabilities=(BriaLayout(), FluxTokens(_LAYERS, "before")),
        models=("BriaTransformer2DModel",),
    ),
    Adapter(
        family="bria-fibo",
        pipelines=("BriaFiboPipeline", "BriaFiboEditPipeline"),
        capabilities=(FiboLayout(), FiboTokens(_LAYERS, "before")),
        models=("BriaFiboTransformer2DModel",),
    ),
    Adapter(
        family="ovis-image",
        pipelines=("OvisImagePipeline",),
        capabilities=(OvisLayout(), FluxTokens(_LAYERS, "before")),
        models=("OvisImageTransformer2DModel",),
    ),
    Adapter(
        family="longcat-image",
        pipelines=("LongCatImagePipeline", "LongCatImageEditPipeline"),
        capabilities=(LongCatLayout(), FluxTokens(_LAYERS, "before")),
        models=("LongCatImageTransformer2DModel",),
    ),
)
