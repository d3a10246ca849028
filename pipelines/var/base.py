"""The generation loop that VAR and Infinity pipelines share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor

from hasten.extend import ConfigError, KVCache
from hasten.pipelines.var.cache import DenseKVCache
from hasten.pipelines.var.scheduler import Generators, NextScaleScheduler
from hasten.pipelines.var.tokenizer import ScaleTokenizer
from hasten.pipelines.var.transformer import Conditioning, NextScaleTransformer
from hasten.weights import REMEDY, load_checked

__all__ = ["NextScalePipeline", "SamplingSettings", "ScaleEnd"]

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class SamplingSettings:
    """Sampling options of one call.

    Args:
        weights: guidance weight ``t`` of every scale, see :meth:`NextScaleScheduler.guidance_weights`.
        top_k: see :class:`NextScaleScheduler`.
        top_p: see :class:`NextScaleScheduler`.
        temperature: see :class:`NextScaleScheduler`.
        generator: one generator, one per picture, or ``None``.
    """

    weights: Sequence[float]
    top_k: int
    top_p: float
    temperature: float
    generator: Generators

    @property
    def guided(self) -> bool:
        """Whether any scale needs the unconditional rows."""
        return any(self.weights)

    def guided_from(self, scale: int) -> bool:
        """Whether ``scale`` or a later one needs the unconditional rows."""
        return any(self.weights[scale:])


@dataclass(frozen=True)
class ScaleEnd:
    """Argument of ``callback_on_scale_end``: the scale, its grid, and the latent so far, float32 (B, C, h, w)."""

    scale: int
    grid: tuple[int, int]
    latent: Tensor


ScaleCallback = Callable[[Any, ScaleEnd], "Tensor | None"]


class NextScalePipeline(DiffusionPipeline):
    """Base class of pipelines that generate scale by scale.

    Args:
        transformer: predicts the tokens of a scale.
        vae: the multi-scale tokenizer.
        scheduler: guidance and sampling.
        text_encoder: of a text-conditional model.
        tokenizer: of the text encoder.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"  # type: ignore[assignment]
    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012
    interrupt: bool = False
    """Set by a callback to stop after the scale in progress."""
    transformer: Any
    vae: Any
    scheduler: Any

    def __init__(
        self,
        transformer: NextScaleTransformer,
        vae: ScaleTokenizer,
        scheduler: NextScaleScheduler,
        text_encoder: Any = None,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            vae=vae,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )

    @property
    def image_processor(self) -> VaeImageProcessor:
        """Converts decoded pictures to the requested output type."""
        processor: VaeImageProcessor = VaeImageProcessor(vae_scale_factor=self.vae.patch)
        return processor

    def enable_vae_slicing(self) -> None:
        """Decode one picture at a time."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Decode the whole batch at once."""
        self.vae.disable_slicing()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> Self:
        """Load a folder or a hub repository in diffusers layout.

        Takes the options of ``DiffusionPipeline.from_pretrained``.

        Raises:
            CheckpointError: a file is damaged, or the weights do not match the model.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            names = ("revision", "cache_dir", "token", "local_files_only")
            given = {name: options.pop(name) for name in names if name in options}
            folder = Path(snapshot_download(str(pretrained_model_name_or_path), **given))
        load = super().from_pretrained
        pipe: Self = load_checked(lambda: load(folder, **options), folder, REMEDY, replaced=options)
        return pipe

    @torch.no_grad()
    def _generate(
        self,
        conditioning: Conditioning,
        batch: int,
        settings: SamplingSettings,
        cache: KVCache | None,
        callback: ScaleCallback | None,
    ) -> Tensor:
        """The latent (B, C, h, w) of ``batch`` pictures; with guidance, ``conditioning`` has twice as many rows."""
        cache = DenseKVCache() if cache is None else cache
        schedule = conditioning.schedule
        cache.begin(schedule, self.transformer.config["num_layers"])
        self.scheduler.set_timesteps(len(schedule))
        latent: Tensor = self.vae.empty_latent(batch, schedule).to(self._execution_device)
        inputs = latent.new_zeros(batch, 1, self.transformer.config["token_dim"])
        doubled, self.interrupt = settings.guided, False
        try:
            with self.progress_bar(total=len(schedule)) as progress:
                for scale, grid in enumerate(schedule):
                    if doubled and not settings.guided_from(scale):
                        doubled = False
                        cache.keep_rows(batch)
                        conditioning.keep_rows(batch)
                    logits = self._predict(
                        inputs, scale, conditioning, cache, settings.weights[scale], doubled
                    )
                    latent = self._draw(logits, latent, scale, conditioning, settings)
                    if callback is not None:
                        changed = callback(self, ScaleEnd(scale, grid, latent))
                        latent = latent if changed is None else changed
                    progress.update()
                    if self.interrupt or scale == len(schedule) - 1:
                        break
                    inputs = self.vae.next_input(latent, scale + 1, schedule)
        finally:
            cache.reset()
        return latent

    def _predict(
        self,
        inputs: Tensor,
        scale: int,
        conditioning: Conditioning,
        cache: KVCache,
        weight: float,
        doubled: bool,
    ) -> Tensor:
        """Guided logits (B, n, outputs) of one scale."""
        rows = torch.cat([inputs, inputs]) if doubled else inputs
        logits: Tensor = self.transformer(rows, scale=scale, conditioning=conditioning, cache=cache)
        if not doubled:
            return logits
        cond, uncond = logits.chunk(2)
        return (1 + weight) * cond - weight * uncond

    def _draw(
        self,
        logits: Tensor,
        latent: Tensor,
        scale: int,
        conditioning: Conditioning,
        settings: SamplingSettings,
    ) -> Tensor:
        choices = self.scheduler.step(
            logits,
            self.vae.classes,
            top_k=settings.top_k,
            top_p=settings.top_p,
            temperature=settings.temperature,
            generator=settings.generator,
        )
        added: Tensor = self.vae.add_scale(latent, choices, scale, conditioning.schedule)
        return added

    @torch.no_grad()
    def _finish(self, latent: Tensor, output_type: str, return_dict: bool) -> Any:
        images: Any = latent
        if output_type != "latent":
            decoded = self.vae.decode(latent).float().clamp(-1, 1)
            images = self.image_processor.postprocess(decoded, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _settings(
        self,
        weights: Sequence[float],
        top_k: int | None,
        top_p: float | None,
        temperature: float | None,
        generator: Generators,
        batch: int,
    ) -> SamplingSettings:
        """Checked options of a call, with the defaults of the scheduler.

        Raises:
            ConfigError: a value is out of range, or there are several generators and not one per picture.
        """
        known = self.scheduler.config
        top_k = known["top_k"] if top_k is None else top_k
        top_p = known["top_p"] if top_p is None else top_p
        temperature = known["temperature"] if temperature is None else temperature
        if top_k < 0:
            raise ConfigError(f"top_k={top_k} is negative; 0 keeps all values")
        if not 0.0 <= top_p <= 1.0:
            raise ConfigError(f"top_p={top_p} is not between 0 and 1")
        if temperature <= 0:
            raise ConfigError(f"temperature={temperature} is not positive")
        if isinstance(generator, (list, tuple)) and len(generator) != batch:
            raise ConfigError(f"{len(generator)} generators for {batch} pictures; give one, or one for each")
        return SamplingSettings(weights, top_k, top_p, temperature, generator)


def check_output_type(output_type: str) -> None:
    """Check the output type of a call.

    Raises:
        ConfigError: it is unknown; the message lists the output types.
    """
    if output_type not in OUTPUT_TYPES:
        raise ConfigError(f"output_type={output_type!r}; there are {', '.join(OUTPUT_TYPES)}")


def check_steps(num_inference_steps: int | None, scales: int) -> None:
    """Check that the number of steps is the number of scales, which the schedule fixes.

    Raises:
        ConfigError: it is another number; the message gives both.
    """
    if num_inference_steps is not None and num_inference_steps != scales:
        raise ConfigError(
            f"num_inference_steps={num_inference_steps}, but this model generates {scales} scales, one step each; "
            "leave it out"
        )
