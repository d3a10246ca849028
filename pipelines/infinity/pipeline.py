"""InfinityPipeline: text to image by next-scale prediction of bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.extend import ConfigError, KVCache
from hasten.pipelines.infinity.bsq_model import BSQAutoencoder
from hasten.pipelines.var.base import NextScalePipeline, ScaleCallback, check_output_type, check_steps
from hasten.pipelines.var.scheduler import Generators, NextScaleScheduler
from hasten.pipelines.var.text import encode_prompts
from hasten.pipelines.var.transformer import Conditioning, NextScaleTransformer
from hasten.schedules.scales import (
    INFINITY_PREFIX,
    INFINITY_RATIOS,
    Grid,
    Schedule,
    infinity_schedule,
    nearest_ratio,
)

__all__ = ["InfinityPipeline", "choose_schedule"]


def choose_schedule(height: int, width: int, patch: int = 16) -> tuple[Schedule, Grid]:
    """The published schedule nearest to a size in pixels, and the finest grid of its aspect ratio.

    Args:
        height: pixels.
        width: pixels.
        patch: pixels of one side of a token.
    """
    ratio = nearest_ratio(height, width)

    def distance(resolution: str) -> float:
        rows, columns = infinity_schedule(ratio, resolution)[-1]
        area = rows * columns * patch**2 / (height * width)
        return max(area, 1 / area)

    return infinity_schedule(ratio, min(INFINITY_PREFIX, key=distance)), INFINITY_RATIOS[ratio][-1]


class InfinityPipeline(NextScalePipeline):
    """Bitwise visual autoregressive generation from text (Han et al. 2024, arXiv 2412.04431).

    Args:
        transformer: predicts the bits of a scale.
        vae: the bitwise tokenizer.
        scheduler: guidance and sampling.
        text_encoder: a T5 encoder; may be ``None`` if every call passes ``prompt_embeds``.
        tokenizer: of the text encoder.
        resolution: resolution that the model was trained for, a key of ``INFINITY_PREFIX``; ``None`` for a model
            with its own schedule.
    """

    def __init__(
        self,
        transformer: NextScaleTransformer,
        vae: BSQAutoencoder,
        scheduler: NextScaleScheduler,
        text_encoder: Any = None,
        tokenizer: Any = None,
        resolution: str | None = "1M",
    ) -> None:
        super().__init__(transformer, vae, scheduler, text_encoder, tokenizer)
        self.register_to_config(resolution=resolution)

    @classmethod
    def from_original(cls, source: Any, variant: str = "2b", **options: Any) -> Self:
        """The published checkpoints; see :func:`hasten.pipelines.infinity.original.load_infinity`."""
        from hasten.pipelines.infinity.original import load_infinity

        pipe: Self = load_infinity(cls, source, variant, **options)
        return pipe

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        unguided_last_scales: int = 0,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        generator: Generators = None,
        prompt_embeds: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_scale_end: ScaleCallback | None = None,
        kv_cache: KVCache | None = None,
    ) -> Any:
        """Generate pictures.

        Args:
            prompt: one text or several.
            negative_prompt: replaces the learned null text in guidance; one for all prompts, or one for each.
            height: pixels; the nearest published aspect ratio and resolution are used.
            width: like ``height``.
            num_images_per_prompt: pictures for each prompt.
            num_inference_steps: the number of scales; no other value is possible.
            guidance_scale: ``g`` in ``g cond + (1 - g) uncond``; one number, or one per scale. 1 disables guidance.
            unguided_last_scales: number of scales at the end without guidance, which need half the rows.
            top_k: has no effect on bits.
            top_p: a bit takes its more likely value if the other has a probability of at most ``1 - top_p``.
            temperature: divisor of the logits.
            generator: a torch generator, or a list with one per picture, which makes a batch equal to single calls.
            prompt_embeds: states of the text encoder (B, tokens, width), instead of ``prompt``.
            prompt_mask: boolean (B, tokens), ``False`` for padding.
            output_type: ``"pil"``, ``"np"``, ``"pt"`` or ``"latent"``.
            return_dict: return an ``ImagePipelineOutput`` instead of a tuple.
            callback_on_scale_end: ``callback(pipe, end)`` is called after every scale, see :class:`ScaleEnd`. If it
                returns a tensor, this replaces the latent. ``pipe.interrupt = True`` stops after the scale.
            kv_cache: stores keys and values; by default a new :class:`DenseKVCache`.

        Raises:
            ConfigError: an argument is not valid for the model; the message names it.
        """
        check_output_type(output_type)
        schedule, last = self._schedule(height, width)
        check_steps(num_inference_steps, len(schedule))
        if (prompt is None) == (prompt_embeds is None):
            raise ConfigError("give either prompt or prompt_embeds")
        if prompt is not None:
            text, mask = encode_prompts(self, prompt, self.transformer.config["text_tokens"])
        else:
            text, mask = self._embedded(prompt_embeds, prompt_mask)
        text, mask = (part.repeat_interleave(num_images_per_prompt, 0) for part in (text, mask))
        count = len(text)
        weights = self.scheduler.guidance_weights(guidance_scale, len(schedule), unguided_last_scales)
        settings = self._settings(weights, top_k, top_p, temperature, generator, count)
        known = Conditioning(schedule, text=text, text_mask=mask, last_grid=last)
        if settings.guided:
            self._add_unconditional(known, negative_prompt, num_images_per_prompt)
        latent = self._generate(known, count, settings, kv_cache, callback_on_scale_end)
        return self._finish(latent, output_type, return_dict)

    def call_schedule(self, height: int | None = None, width: int | None = None) -> Schedule:
        """Token grids of a call of this size.

        Raises:
            ConfigError: the model generates only one size, and it is another.
        """
        return self._schedule(height, width)[0]

    def _schedule(self, height: int | None, width: int | None) -> tuple[Schedule, Grid]:
        own: Schedule = self.transformer.schedule
        patch = self.vae.patch
        side = tuple(sides * patch for sides in own[-1])
        wanted = (height or width or side[0], width or height or side[1])
        if self.config["resolution"] is not None:
            return choose_schedule(*wanted, patch) if (height or width) else (own, INFINITY_RATIOS[1.0][-1])
        if wanted != side:
            raise ConfigError(
                f"this model makes pictures of {side[0]}x{side[1]} pixels only, not {wanted[0]}x{wanted[1]}"
            )
        return own, own[-1]

    def _embedded(self, embeds: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        assert embeds is not None
        width = self.transformer.config["text_width"]
        if embeds.ndim != 3 or embeds.shape[-1] != width or not embeds.shape[1]:
            raise ConfigError(f"prompt_embeds are (batch, tokens, {width}), got {tuple(embeds.shape)}")
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        if mask.shape != embeds.shape[:2]:
            raise ConfigError(f"prompt_mask is {tuple(mask.shape)}, prompt_embeds {tuple(embeds.shape[:2])}")
        if embeds.shape[1] > self.transformer.config["text_tokens"]:
            raise ConfigError(
                f"prompt_embeds have {embeds.shape[1]} tokens, the model takes {self.transformer.config['text_tokens']}"
            )
        return embeds.to(self._execution_device), mask.to(self._execution_device)

    def _add_unconditional(
        self, known: Conditioning, negative: str | Sequence[str] | None, copies: int
    ) -> None:
        """Append the unconditional rows: null text as long as each prompt, or the negative prompt."""
        assert known.text is not None
        assert known.text_mask is not None
        count = len(known.text)
        if negative is None:
            known.unconditional = torch.arange(2 * count, device=known.text.device) >= count
            known.text = torch.cat([known.text, known.text])
            known.text_mask = torch.cat([known.text_mask, known.text_mask])
            return
        text, mask = encode_prompts(self, negative, self.transformer.config["text_tokens"], "negative prompt")
        rows = count if len(text) == 1 else copies
        text, mask = text.repeat_interleave(rows, 0), mask.repeat_interleave(rows, 0)
        if len(text) != count:
            raise ConfigError(f"{len(text) // copies} negative prompts for {count // copies} prompts")
        longest = max(text.shape[1], known.text.shape[1])
        known.text = torch.cat([_padded(known.text, longest), _padded(text.to(known.text.dtype), longest)])
        known.text_mask = torch.cat([_padded(known.text_mask, longest), _padded(mask, longest)])


def _padded(rows: Tensor, length: int) -> Tensor:
    """``rows`` padded with zeros (or ``False``) along dimension 1 to ``length``."""
    missing = length - rows.shape[1]
    return F.pad(rows, (0, 0, 0, missing) if rows.ndim == 3 else (0, missing))
