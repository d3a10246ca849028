"""What one step of a pipeline call will cost, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hasten._adapters.base import Guidance, LatentLayout, LatentSize, ScaleSchedule
from hasten._clock import expected_batch
from hasten._errors import UnsupportedError
from hasten._flops import Tokens, forward_flops
from hasten._pipeline import Pipeline
from hasten._technique import Forecast, StepForecast
from hasten._timesteps import by_step, planned_levels
from hasten.schedules.noise import NoiseLevel

if TYPE_CHECKING:
    from hasten._target import Target

__all__ = [
    "ENDLESS",
    "StepCost",
    "branches",
    "call_size",
    "plain_forecast",
    "planned_steps",
    "prompts_of",
    "text_tokens",
    "third_branch",
]

_CLIP_TEXT = 77
ENDLESS = 10_000
"""Tokenizers without a limit name a huge number."""


def call_size(target: Target, arguments: Mapping[str, Any]) -> LatentSize | None:
    """Latent size of a call, ``None`` where it comes from something that a plan has not been given (a picture)."""
    try:
        return target.layout.call_size(target.pipe, arguments)
    except (UnsupportedError, ValueError, TypeError, KeyError, AttributeError):
        return None


def planned_steps(
    target: Target, arguments: Mapping[str, Any]
) -> tuple[LatentSize, list[tuple[NoiseLevel, int]]] | None:
    """Latent size of a call, and its levels by step with the number of forwards; ``None`` where either is not known."""
    size = call_size(target, arguments)
    if size is None:
        return None
    try:
        return size, by_step(planned_levels(target, arguments, size))
    except UnsupportedError:
        return None


def plain_forecast(target: Target, arguments: Mapping[str, Any]) -> Forecast | None:
    """The denoiser's steps in a call without any technique; ``None`` where its size or steps are not known ahead."""
    schedule = target.adapter.capability(ScaleSchedule)
    if schedule is not None:
        return _scales(target, schedule, arguments)
    if target.adapter.capability(LatentLayout) is None or not target.denoisers:
        return None
    planned = planned_steps(target, arguments)
    if planned is None:
        return None
    size, levels = planned
    full = (size.height, size.width)
    each = StepCost(target, arguments, size).of(full)
    steps = tuple(
        StepForecast(i, level.time, full, forwards * each, forwards=forwards)
        for i, (level, forwards) in enumerate(levels)
    )
    return Forecast(steps, sum(step.flops for step in steps))


def _scales(target: Target, schedule: ScaleSchedule, arguments: Mapping[str, Any]) -> Forecast | None:
    """One step for each scale, over an exact cache of keys and values."""
    costs = schedule.costs(target.pipe, arguments)
    if costs is None:
        return None
    steps = tuple(
        StepForecast(i, 1.0 - i / len(costs), cost.grid, cost.flops(cost.keys))
        for i, cost in enumerate(costs)
    )
    return Forecast(steps, sum(step.flops for step in steps))


class StepCost:
    """FLOPs of one step of a call, per latent size."""

    def __init__(self, target: Target, arguments: Mapping[str, Any], size: LatentSize) -> None:
        self._target = target
        self._frames = size.frames
        self.text = text_tokens(target, arguments)
        each = branches(target, arguments) + target.layout.further_forwards(target.pipe, arguments)
        self.samples = (expected_batch(arguments) or 1) * each
        self._denoiser = next(iter(target.denoisers.values()))
        self._known: dict[tuple[int, int], float] = {}
        self._full = (size.height, size.width)

    def of(self, at: tuple[int, int]) -> float:
        """FLOPs of a step whose forwards have latents of height and width ``at``."""
        if at not in self._known:
            unet = hasattr(self._denoiser, "down_blocks") and hasattr(self._denoiser, "up_blocks")
            multiple = 1 if unet else self._target.layout.multiple
            tokens = Tokens.of(LatentSize(*at, self._frames), multiple, self.text)
            self._known[at] = self.samples * forward_flops(self._denoiser, tokens)
        return self._known[at]

    def facts(self, sizes: Mapping[tuple[int, int], None]) -> dict[str, Any]:
        """What each low size costs of a full step, and what the count is based on."""
        if self.of(self._full) == 0.0:
            return {"flops_from": "nothing: the denoiser has no layer of a known type"}
        ratios = {f"{h}x{w}": round(self.of((h, w)) / self.of(self._full), 3) for h, w in sizes}
        ratios.pop(f"{self._full[0]}x{self._full[1]}", None)
        return {"cost_of_full_step": ratios, "flops_from": f"layer shapes, {self.text} text tokens"}


def prompts_of(arguments: Mapping[str, Any]) -> int:
    """How many prompts a call encodes; 0 where it gets their embeddings."""
    prompt = arguments.get("prompt")
    if prompt is None:
        return 0 if arguments.get("prompt_embeds") is not None else 1
    return 1 if isinstance(prompt, str) else len(prompt)


def text_tokens(target: Target, arguments: Mapping[str, Any]) -> int:
    """Text tokens of one sample: those of given embeddings, else the call's maximum; with what joins them."""
    layout = target.adapter.capability(LatentLayout)
    further = 0 if layout is None else layout.further_text(target.pipe, arguments)
    embeds = arguments.get("prompt_embeds")
    if embeds is not None:
        return len(embeds[0]) + further
    longest = arguments.get("max_sequence_length")
    if longest is not None and not (layout is not None and layout.joins_text):
        return int(longest) + further
    return int(longest or 0) + _clip_tokens(target.pipe) + further


def _clip_tokens(pipe: Pipeline) -> int:
    """Tokens that a CLIP tokenizer pads to."""
    most = getattr(getattr(pipe, "tokenizer", None), "model_max_length", _CLIP_TEXT)
    return int(getattr(pipe, "tokenizer_max_length", most if 0 < most < ENDLESS else _CLIP_TEXT))


def third_branch(arguments: Mapping[str, Any]) -> str | None:
    """What makes a call compute a branch beside the conditional and the unconditional one, ``None`` if nothing does."""
    perturbed = arguments.get("pag_scale")
    if isinstance(perturbed, (int, float)) and perturbed > 0:
        return "perturbed-attention guidance (pag_scale)"
    if isinstance(arguments.get("image_guidance_scale"), (int, float)):
        return "guidance by the picture (image_guidance_scale)"
    return None


def branches(target: Target, arguments: Mapping[str, Any]) -> int:
    """Samples per latent: two where guidance is on."""
    true_scale = arguments.get("true_cfg_scale")
    if isinstance(true_scale, (int, float)):
        negative = any(
            arguments.get(name) is not None for name in ("negative_prompt", "negative_prompt_embeds")
        )
        return 2 if true_scale > 1 and negative else 1
    guider = getattr(target.pipe, "guider", None)
    if guider is not None:
        return int(guider.num_conditions)
    scale = arguments.get("guidance_scale")
    guided = target.layout.guidance is not Guidance.EMBEDDED and isinstance(scale, (int, float)) and scale > 1
    return 2 if guided else 1
