"""What a run will cost, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hasten._clock import expected_batch
from hasten._errors import UnsupportedError
from hasten._technique import Forecast, StepForecast
from hasten.pipelines.adapters._base import Guidance, LatentSize
from hasten.plugins.bottleneck.config import BottleneckConfig
from hasten.plugins.bottleneck.flops import Tokens, forward_flops
from hasten.plugins.bottleneck.levels import call_size, resolve, spectrum_for
from hasten.plugins.bottleneck.timesteps import dynamic_shift, planned_levels
from hasten.schedules.noise import NoiseLevel

if TYPE_CHECKING:
    from hasten._target import Target

__all__ = ["forecast"]

_CLIP_TEXT = 77


def forecast(config: BottleneckConfig, target: Target, arguments: Mapping[str, Any]) -> Forecast | None:
    """Size and FLOPs of every step of a call; ``None`` where its size or steps are not known ahead.

    Raises:
        ConfigError: the call's size is refused by the options.
    """
    size = call_size(target, arguments)
    if size is None:
        return None
    try:
        levels = planned_levels(target, arguments, size)
    except UnsupportedError:
        return None
    cost = _Cost(target, arguments, size)
    full = (size.height, size.width)
    if config.mode == "restart":
        steps = [
            (level, at, f"stage {stage}")
            for level, at, stage in _restart_steps(config, target, arguments, size)
        ]
        facts: dict[str, Any] = {}
    else:
        resolutions = resolve(config, target, size)
        prediction = target.layout.prediction(target.pipe)
        sizes = [resolutions.low_at(level, prediction) for level in levels]
        steps = [(level, low or full, "low" if low else "") for level, low in zip(levels, sizes)]
        facts = {"low_until": [round(low.until, 4) for low in resolutions.lows]}
        if config.low_until == "auto":
            facts["spectrum"] = spectrum_for(config, target.pipe)[1] or "unknown: bound for unit variance"
        if sizes and sizes[-1] is not None:
            facts["caution"] = "the last step is low, so the picture will lack detail: raise low_until"
    rows = tuple(
        StepForecast(i, level.time, at, cost.of(at), note) for i, (level, at, note) in enumerate(steps)
    )
    facts.update(cost.facts(dict.fromkeys(at for _, at, _ in steps)))
    return Forecast(rows, len(levels) * cost.of(full), facts)


class _Cost:
    """FLOPs of one step of a call, per latent size."""

    def __init__(self, target: Target, arguments: Mapping[str, Any], size: LatentSize) -> None:
        self._target = target
        self._frames = size.frames
        self._text = _text_tokens(target, arguments)
        self._samples = (expected_batch(arguments) or 1) * _branches(target, arguments)
        self._denoiser = next(iter(target.denoisers.values()))
        self._known: dict[tuple[int, int], float] = {}
        self._full = (size.height, size.width)

    def of(self, at: tuple[int, int]) -> float:
        """FLOPs of a step whose forwards have latents of height and width ``at``."""
        if at not in self._known:
            unet = hasattr(self._denoiser, "down_blocks") and hasattr(self._denoiser, "up_blocks")
            multiple = 1 if unet else self._target.layout.multiple
            tokens = Tokens.of(LatentSize(*at, self._frames), multiple, self._text)
            self._known[at] = self._samples * forward_flops(self._denoiser, tokens)
        return self._known[at]

    def facts(self, sizes: Mapping[tuple[int, int], None]) -> dict[str, Any]:
        """What each low size costs of a full step, and what the count is based on."""
        if self.of(self._full) == 0.0:
            return {"flops_from": "nothing: no layer of the denoiser is of a known kind"}
        ratios = {f"{h}x{w}": round(self.of((h, w)) / self.of(self._full), 3) for h, w in sizes}
        ratios.pop(f"{self._full[0]}x{self._full[1]}", None)
        return {"cost_of_full_step": ratios, "flops_from": f"layer shapes, {self._text} text tokens"}


def _text_tokens(target: Target, arguments: Mapping[str, Any]) -> int:
    """Text tokens of one sample: those of given embeddings, else the call's maximum."""
    embeds = arguments.get("prompt_embeds")
    if embeds is not None:
        return len(embeds[0])
    longest = arguments.get("max_sequence_length")
    if longest is not None and target.adapter.family != "stable-diffusion-3":
        return int(longest)
    # StableDiffusion3Pipeline appends its T5 tokens to the CLIP ones.
    return int(longest or 0) + int(getattr(target.pipe, "tokenizer_max_length", _CLIP_TEXT))


def _branches(target: Target, arguments: Mapping[str, Any]) -> int:
    """Samples per latent: two where guidance is on."""
    scale = arguments.get("guidance_scale")
    guided = target.layout.guidance is not Guidance.EMBEDDED and isinstance(scale, (int, float)) and scale > 1
    return 2 if guided else 1


def _restart_steps(
    config: BottleneckConfig, target: Target, arguments: Mapping[str, Any], size: LatentSize
) -> list[tuple[NoiseLevel, tuple[int, int], int]]:
    """Level, latent size and stage number of every step of a restart."""
    from hasten.plugins.bottleneck.restart import planned_run

    dynamic = target.pipe.scheduler.config.get("use_dynamic_shifting", False)
    mu = dynamic_shift(target, size, arguments["num_inference_steps"]) if dynamic else None
    run = planned_run(config, target, target.pipe.scheduler, size)
    run.prepare(None, mu)
    return [
        (level, planned.size, number)
        for number, (planned, levels) in enumerate(zip(run.planned, run.levels(target)), 1)
        for level in levels
    ]
