"""Guidance and sampling over the scales of a generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from hasten.extend import ConfigError

__all__ = ["NextScaleScheduler", "filter_logits", "sample"]

Generators = torch.Generator | Sequence[torch.Generator] | None


class NextScaleScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """One step per scale: combines conditional and unconditional logits, filters them, and samples.

    Args:
        guidance: ``"ramp"``: ``(1 + t) cond - t uncond`` with ``t`` rising from 0 to ``guidance_scale`` (VAR);
            ``"constant"``: ``g cond + (1 - g) uncond`` (Infinity).
        guidance_scale: default of calls.
        top_k: keep this number of largest logits of each choice; 0 keeps all.
        top_p: then keep the most likely values up to this total probability; 1 keeps all.
        temperature: divisor of the logits.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        guidance: Literal["ramp", "constant"] = "ramp",  # noqa: ARG002
        guidance_scale: float = 1.5,  # noqa: ARG002
        top_k: int = 900,  # noqa: ARG002
        top_p: float = 0.96,  # noqa: ARG002
        temperature: float = 1.0,  # noqa: ARG002
    ) -> None:
        self.timesteps = torch.arange(0)

    def set_timesteps(self, num_scales: int, device: Any = None) -> None:
        """Use the indices of ``num_scales`` scales as timesteps."""
        self.timesteps = torch.arange(num_scales, device=device)

    def guidance_weights(
        self, guidance_scale: float | Sequence[float] | None, scales: int, unguided_last: int = 0
    ) -> list[float]:
        """The weight ``t`` of every scale in ``(1 + t) cond - t uncond``; 0 is no guidance.

        Args:
            guidance_scale: in the convention of the configuration; one number, or one per scale. ``None`` is the
                configured value.
            scales: number of scales.
            unguided_last: number of scales at the end without guidance.

        Raises:
            ConfigError: the list has another length, or ``unguided_last`` is out of range.
        """
        ramp = self.config["guidance"] == "ramp"
        if guidance_scale is None:
            guidance_scale = self.config["guidance_scale"]
        if isinstance(guidance_scale, (int, float)):
            given = [float(guidance_scale)] * scales
            weights = [g * k / max(1, scales - 1) if ramp else g - 1.0 for k, g in enumerate(given)]
        else:
            if len(guidance_scale) != scales:
                raise ConfigError(
                    f"guidance_scale has {len(guidance_scale)} entries for {scales} scales; give one for "
                    f"each, or one number"
                )
            weights = [float(g) if ramp else float(g) - 1.0 for g in guidance_scale]
        if not 0 <= unguided_last <= scales:
            raise ConfigError(f"unguided_last_scales={unguided_last} is not between 0 and {scales} scales")
        return [0.0 if k >= scales - unguided_last else w for k, w in enumerate(weights)]

    def step(
        self,
        logits: Tensor,
        classes: int,
        *,
        top_k: int,
        top_p: float,
        temperature: float,
        generator: Generators,
    ) -> Tensor:
        """Sample every choice of one scale.

        Args:
            logits: float32 (B, n, choices * classes), guidance applied.
            classes: number of values of one choice.
            top_k: see the class.
            top_p: see the class.
            temperature: see the class.
            generator: one for the batch, or one per picture, which makes a batch equal to single calls.

        Returns:
            int64 (B, n * choices).
        """
        logits = logits.reshape(len(logits), -1, classes) / temperature
        return sample(filter_logits(logits, top_k, top_p), generator)


def filter_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set logits (..., V) that must not be sampled to minus infinity.

    These are first all below the k-th largest, and then the least likely values whose total probability is at most
    ``1 - top_p``. The most likely value is always kept.
    """
    classes = logits.shape[-1]
    if 0 < top_k < classes:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if 0.0 < top_p < 1.0:
        ordered, order = logits.sort(dim=-1)
        dropped = ordered.softmax(-1).cumsum(-1) <= 1.0 - top_p
        dropped[..., -1] = False
        logits = logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -torch.inf)
    return logits


def sample(logits: Tensor, generator: Generators) -> Tensor:
    """Sample each row of (B, n, V): int64 (B, n).

    The result equals ``torch.multinomial`` on the device of the generator: the largest ``p / q`` with exponential
    ``q``.
    """
    chances = logits.softmax(-1)
    if generator is None or isinstance(generator, torch.Generator):
        noise = _exponential(chances, generator)
    else:
        noise = torch.cat([_exponential(row, g) for row, g in zip(chances.split(1), generator, strict=True)])
    return (chances / noise).argmax(-1)


def _exponential(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    noise = torch.empty(like.shape, dtype=like.dtype, device=device)
    return noise.exponential_(generator=generator).to(like.device)
