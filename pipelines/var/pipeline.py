"""VARPipeline: next-scale generation from a class, or from text with a text-conditional model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from hasten.extend import ConfigError, KVCache
from hasten.pipelines.var.base import NextScalePipeline, ScaleCallback, check_output_type, check_steps
from hasten.pipelines.var.scheduler import Generators
from hasten.pipelines.var.text import encode_prompts
from hasten.pipelines.var.transformer import Conditioning
from hasten.pipelines.var.vq_model import MultiScaleVQModel
from hasten.schedules.scales import Schedule

__all__ = ["VARPipeline"]


class VARPipeline(NextScalePipeline):
    """Visual autoregressive generation, coarse to fine (Tian et al. 2024, arXiv 2404.02905).

    Components are those of :class:`NextScalePipeline`; the tokenizer is a :class:`MultiScaleVQModel`.
    """

    vae: MultiScaleVQModel  # diffusers can load only classes whose module is already imported

    @classmethod
    def from_original(cls, source: Any, variant: str = "d16", **options: Any) -> Self:
        """The published checkpoints; see :func:`hasten.pipelines.var.original.load_var`."""
        from hasten.pipelines.var.original import load_var

        pipe: Self = load_var(cls, source, variant, **options)
        return pipe

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        class_labels: int | Sequence[int] | Tensor | None = None,
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
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_scale_end: ScaleCallback | None = None,
        kv_cache: KVCache | None = None,
    ) -> Any:
        """Generate pictures.

        Args:
            prompt: texts, for a text-conditional model.
            class_labels: class numbers, for a class-conditional model.
            height: pixels; the model fixes it, accepted for compatibility with other pipelines.
            width: like ``height``.
            num_images_per_prompt: pictures for each prompt or label.
            num_inference_steps: the number of scales; no other value is possible.
            guidance_scale: strength of guidance, see :class:`NextScaleScheduler`; one number, or one per scale.
            unguided_last_scales: number of scales at the end without guidance, which need half the rows.
            top_k: sample from the k most likely codes.
            top_p: sample from the most likely codes up to this total probability.
            temperature: divisor of the logits.
            generator: a torch generator, or a list with one per picture, which makes a batch equal to single calls.
            output_type: ``"pil"``, ``"np"``, ``"pt"`` or ``"latent"``.
            return_dict: return an ``ImagePipelineOutput`` instead of a tuple.
            callback_on_scale_end: ``callback(pipe, end)`` is called after every scale, see :class:`ScaleEnd`. If it
                returns a tensor, this replaces the latent. ``pipe.interrupt = True`` stops after the scale.
            kv_cache: stores keys and values; by default a new :class:`DenseKVCache`.

        Raises:
            ConfigError: an argument is not valid for the model; the message names it.
        """
        check_output_type(output_type)
        schedule = self.call_schedule(height, width)
        check_steps(num_inference_steps, len(schedule))
        conditional = self.transformer.config["condition"]
        given = {"text": prompt, "class": class_labels}
        if given[conditional] is None or sum(value is not None for value in given.values()) != 1:
            names = {"text": "prompt", "class": "class_labels"}
            raise ConfigError(
                f"this model is conditioned on {conditional}: give {names[conditional]}, and only that"
            )
        count = self._count(prompt, class_labels) * num_images_per_prompt
        weights = self.scheduler.guidance_weights(guidance_scale, len(schedule), unguided_last_scales)
        settings = self._settings(weights, top_k, top_p, temperature, generator, count)
        if prompt is not None:
            known = self._text(prompt, num_images_per_prompt, settings.guided)
        else:
            known = self._labels(class_labels, num_images_per_prompt, settings.guided)
        latent = self._generate(known, count, settings, kv_cache, callback_on_scale_end)
        return self._finish(latent, output_type, return_dict)

    def call_schedule(self, height: int | None = None, width: int | None = None) -> Schedule:
        """Token grids of a call of this size.

        Raises:
            ConfigError: the model generates another size.
        """
        self._check_size(height, width)
        schedule: Schedule = self.transformer.schedule
        return schedule

    def _count(self, prompt: Any, labels: Any) -> int:
        value = prompt if prompt is not None else labels
        return 1 if isinstance(value, (str, int)) or getattr(value, "ndim", 1) == 0 else len(value)

    def _check_size(self, height: int | None, width: int | None) -> None:
        rows, columns = (side * self.vae.patch for side in self.transformer.schedule[-1])
        if (height or rows, width or columns) != (rows, columns):
            raise ConfigError(
                f"this model makes pictures of {rows}x{columns} pixels only, not {height or rows}x{width or columns}"
            )

    def _labels(self, labels: object, copies: int, guided: bool) -> Conditioning:
        rows = torch.as_tensor(labels).flatten()
        classes = self.transformer.config["num_classes"]
        if rows.is_floating_point() or rows.dtype == torch.bool:
            raise ConfigError(f"class_labels are class numbers, got {rows.dtype}")
        bad = [int(label) for label in rows if not 0 <= label < classes]
        if bad:
            raise ConfigError(f"class label {bad[0]} is out of range: this model knows 0 to {classes - 1}")
        rows = rows.repeat_interleave(copies)
        if guided:
            rows = torch.cat([rows, torch.full_like(rows, classes)])
        return Conditioning(self.transformer.schedule, labels=rows.to(self._execution_device))

    def _text(self, prompt: str | Sequence[str], copies: int, guided: bool) -> Conditioning:
        text, mask = encode_prompts(self, prompt, self.transformer.config["text_tokens"])
        text, mask = text.repeat_interleave(copies, 0), mask.repeat_interleave(copies, 0)
        unconditional = None
        if guided:
            unconditional = torch.arange(2 * len(text), device=text.device) >= len(text)
            text, mask = torch.cat([text, text]), torch.cat([mask, mask])
        return Conditioning(self.transformer.schedule, text=text, text_mask=mask, unconditional=unconditional)
