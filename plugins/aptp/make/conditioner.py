"""Arguments of a denoiser forward, captured from a real call of the pipeline: every family trains in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hasten.extend import (
    Guidance,
    ImageLayout,
    LatentSize,
    NoiseLevel,
    Prediction,
    Target,
    UnsupportedError,
    parameter_names,
    unwrapped,
)

__all__ = ["Conditioner", "target_of"]


class _CapturedError(Exception):
    """Carries the arguments of a forward out of the pipeline's loop."""

    def __init__(self, kwargs: dict[str, Any]) -> None:
        super().__init__("captured")
        self.kwargs = kwargs


@dataclass(frozen=True)
class Conditioner:
    """Builds arguments for a pipeline's denoiser from noisy latents and stored conditions.

    Args:
        target: the pipeline.
        size: latent extent.
        template: captured arguments for one empty prompt; nested dictionaries are flattened to ``outer/inner``.
        batched: names of the arguments with one row for each sample.
    """

    target: Target
    size: LatentSize
    template: Mapping[str, Any]
    batched: tuple[str, ...]

    @classmethod
    def of(cls, target: Target, size: LatentSize) -> Conditioner:
        """Capture the arguments of a pipeline at a latent extent.

        Raises:
            UnsupportedError: the pipeline makes pictures without a forward of its denoiser.
        """
        one, two = _capture(target, [""], size), _capture(target, ["", ""], size)
        rows = [n for n, v in one.items() if isinstance(v, Tensor) and v.ndim and len(two[n]) == 2 * len(v)]
        return cls(target, size, one, tuple(rows))

    @property
    def denoiser(self) -> nn.Module:
        """The pipeline's denoiser, without a compiled wrapper."""
        return unwrapped(next(iter(self.target.denoisers.values())))

    @property
    def layout(self) -> ImageLayout:
        """The family's latent layout."""
        return self.target.capability(ImageLayout)

    def conditions(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Arguments that come from the prompts, by name, one row for each prompt."""
        captured = _capture(self.target, list(prompts), self.size)
        ours = (self.layout.latents, self.layout.timestep)
        return {name: captured[name] for name in self.batched if name not in ours}

    def forward_arguments(
        self, latents: Tensor, conditions: Mapping[str, Tensor], levels: Sequence[NoiseLevel]
    ) -> dict[str, Any]:
        """Arguments of one forward over noisy latents.

        Args:
            latents: (B, C, h, w), in as many equal parts as there are levels.
            conditions: from :meth:`conditions`, B rows each.
            levels: noise level of each part.
        """
        layout = self.layout
        parts = []
        chunk = len(latents) // len(levels)
        for number, level in enumerate(levels):
            rows = slice(number * chunk, (number + 1) * chunk)
            given = dict(self.template) | {name: value[rows] for name, value in conditions.items()}
            example = self.template[layout.latents]
            given[layout.latents] = example[:1].expand(chunk, *example.shape[1:])
            changed = layout.encode(self.target.pipe, given, latents[rows], level)
            timestep = torch.as_tensor(changed[layout.timestep]).flatten()[:1].expand(chunk)
            parts.append({**changed, layout.timestep: timestep})
        joined = dict(parts[0])
        for name in {layout.latents, layout.timestep, *conditions}:
            joined[name] = _like(torch.cat([part[name] for part in parts]), self.template[name])
        return _nested(joined)

    def prediction(self, output: Any, channels: int) -> Tensor:
        """The prediction (B, channels, h, w) in what a forward returned."""
        sample = output[0] if isinstance(output, tuple) else output
        unpacked = self.target.layout.decode_output(self.target.pipe, self.template, sample)
        return unpacked[:, :channels]

    def segment_bounds(self, segments: int) -> tuple[float, ...]:
        """Descending flow times in (0, 1) that divide the training levels into ``segments`` equal shares."""
        times = [level.time for level in self.draw_levels(4096, torch.Generator().manual_seed(0))]
        return tuple(sorted(times, reverse=True)[len(times) * i // segments] for i in range(1, segments))

    def draw_between(
        self, count: int, generator: torch.Generator, low: float, high: float
    ) -> list[NoiseLevel]:
        """``count`` training levels whose flow time lies in [low, high)."""
        found: list[NoiseLevel] = []
        while len(found) < count:
            found += [level for level in self.draw_levels(64, generator) if low <= level.time < high]
        return found[:count]

    def draw_levels(self, count: int, generator: torch.Generator) -> list[NoiseLevel]:
        """``count`` training levels: uniform timesteps for diffusion, logit-normal times for flow matching."""
        scheduler = self.target.pipe.scheduler
        kept = getattr(scheduler, "alphas_cumprod", None)
        if kept is not None:
            chosen = torch.randint(len(kept), (count,), generator=generator)
            return [NoiseLevel.vp(float(kept[i])) for i in chosen]
        times = torch.sigmoid(torch.randn(count, generator=generator))
        shift = float(getattr(scheduler.config, "shift", 1.0) or 1.0)
        return [NoiseLevel.flow(float(shift * t / (1 + (shift - 1) * t))) for t in times]


def _like(value: Tensor, captured: object) -> Tensor:
    """In the number format in which the pipeline itself passes it."""
    if isinstance(captured, Tensor) and captured.is_floating_point() and value.is_floating_point():
        return value.to(captured.dtype)
    return value


def target_of(kind: Prediction, clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What a perfect denoiser predicts (B, C, h, w) for ``alpha * clean + sigma * noise``."""
    if kind is Prediction.EPSILON:
        return noise
    if kind is Prediction.VP_VELOCITY:
        return alpha * noise - sigma * clean
    return noise - clean if kind is Prediction.VELOCITY else clean - noise


@torch.no_grad()
def _capture(target: Target, prompts: list[str], size: LatentSize) -> dict[str, Any]:
    """Arguments of the first forward of a call, by name."""
    pipe: Any = target.pipe
    denoiser = unwrapped(next(iter(target.denoisers.values())))
    names = parameter_names(denoiser)

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _CapturedError(dict(zip(names, args)) | kwargs)

    height, width = target.layout.pixels(target.pipe, size)
    call = {"height": height, "width": width, "num_inference_steps": 2, "output_type": "latent"}
    if target.layout.guidance is not Guidance.EMBEDDED:
        call["guidance_scale"] = 1.0
    if "use_resolution_binning" in target.call_arguments():
        call["use_resolution_binning"] = False
    with denoiser.register_forward_pre_hook(stop, with_kwargs=True):
        try:
            pipe(prompt=prompts, generator=torch.Generator().manual_seed(0), **call)
        except _CapturedError as found:
            return _flat({name: value for name, value in found.kwargs.items() if name != "return_dict"})
    raise UnsupportedError(f"{target.name} generated a picture without a forward of its denoiser")


def _flat(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in kwargs.items():
        if isinstance(value, dict):
            flat |= {f"{name}/{key}": inner for key, inner in _flat(value).items()}
        else:
            flat[name] = value.cpu() if isinstance(value, Tensor) else value
    return flat


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        outer, _, inner = name.partition("/")
        if inner:
            nested.setdefault(outer, {})[inner] = value
        else:
            nested[name] = value
    return nested
