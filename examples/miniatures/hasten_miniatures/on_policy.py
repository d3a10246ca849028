"""Training on the states that a denoiser itself arrives at, against the exact mean of what the caption allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hasten_miniatures.references import References

__all__ = ["Denoise", "own_way_loss"]

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Latents (B, C, F, H, W), timesteps (B, F), token ids (B, L) -> velocity."""
_STEPS = (15, 26)
"""Range of the steps of a way from noise to a clip, the upper one excluded."""
_LEAST = 750
"""Timestep at which a way ends: below, everything is decided, and shifted clips are too coarse as a target."""


def own_way_loss(
    denoise: Denoise,
    references: References,
    scheduler: Any,
    empty: Tensor,
    *,
    count: int,
    guidance: float,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the velocity along guided ways from pure noise, all states of which count.

    On real clips a denoiser never sees what its own earlier errors lead to: evidence for an object here in some frames
    and there in others. The exact mean, of which every clip has one object on one way, decides for one of them. As the
    denoiser decides on the states (DAgger, Ross et al. 2011) and the mean needs no clean clip, there is no data but the
    references. A mean over clips instead of one of them as the target: Xu et al. 2023 (stable target field).

    Args:
        denoise: the model that learns.
        references: what captions allow.
        scheduler: a DDIMScheduler of a model that predicts velocities.
        empty: token ids (1, L) of the empty caption.
        count: ways.
        guidance: scale of the guidance that the ways are made with.
        generator: of captions, noise and the number of steps.

    Returns:
        A scalar that carries gradients of the captioned predictions; the states carry none.
    """
    from diffusers import DDIMScheduler

    captions = torch.randint(len(references.ids), (count,), generator=generator)
    steps = int(torch.randint(*_STEPS, (1,), generator=generator))
    state = torch.randn((count, *references.clips.shape[2:]), generator=generator)
    ids = references.ids[captions]
    posteriors = [references.posterior(caption) for caption in captions.tolist()]
    ways: Any = DDIMScheduler.from_config(scheduler.config)
    ways.set_timesteps(steps)
    losses = []
    for time in ways.timesteps[ways.timesteps >= _LEAST]:
        times, alpha = time.expand(count, state.shape[2]), float(ways.alphas_cumprod[time])
        mean = torch.stack([known.mean(x, alpha) for known, x in zip(posteriors, state, strict=True)])
        velocity = denoise(state, times, ids)
        losses.append((velocity - (alpha**0.5 * state - mean) / (1 - alpha) ** 0.5).square().mean())
        with torch.no_grad():
            unguided = denoise(state, times, empty.expand_as(ids))
            guided = unguided + guidance * (velocity.detach() - unguided)
            state = ways.step(guided, time, state).prev_sample
    return torch.stack(losses).mean()
