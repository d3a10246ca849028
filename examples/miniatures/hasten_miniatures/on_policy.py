"""Training on states that the denoiser itself reaches, with the exact mean of what the caption allows as the target.

On real clips a denoiser never sees the consequences of its own earlier errors, such as evidence for an object in
different places in different frames. The exact mean, of which every clip has one object on one trajectory, resolves
them. The denoiser chooses the states (DAgger, Ross et al. 2011), and the mean needs no clean clip, so the references
are the only data. A mean over clips as the target: Xu et al. 2023 (stable target field).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hasten.extend import Scheduler
from hasten_miniatures.references import References

__all__ = ["Denoise", "on_policy_loss"]

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Latents (B, C, F, H, W), timesteps (B, F), token ids (B, L) -> velocity."""
_STEPS = (15, 26)
"""Range of the number of steps from noise to a clip, upper bound excluded."""
_LEAST = 750
"""Last timestep of a trajectory: below it, the layout is settled, and shifted clips are too coarse as a target."""


def on_policy_loss(
    denoise: Denoise,
    references: References,
    scheduler: Scheduler,
    empty: Tensor,
    *,
    count: int,
    guidance: float,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the velocity along guided trajectories that start from pure noise.

    Args:
        denoise: the model to train.
        references: the clips that each caption allows.
        scheduler: a DDIMScheduler of a model that predicts velocities.
        empty: token ids (1, L) of the empty caption.
        count: number of trajectories.
        guidance: guidance scale of the trajectories.
        generator: draws captions, noise and the number of steps.

    Returns:
        A scalar with gradients through the captioned predictions, but not through the states.
    """
    captions = torch.randint(len(references.ids), (count,), generator=generator)
    solver = _solver(scheduler, int(torch.randint(*_STEPS, (1,), generator=generator)))
    state = torch.randn((count, *references.clips.shape[2:]), generator=generator)
    ids = references.ids[captions]
    posteriors = [references.posterior(caption) for caption in captions.tolist()]
    losses = []
    for time in solver.timesteps[solver.timesteps >= _LEAST]:
        times, alpha = time.expand(count, state.shape[2]), float(solver.alphas_cumprod[time])
        mean = torch.stack([known.mean(x, alpha) for known, x in zip(posteriors, state, strict=True)])
        velocity = denoise(state, times, ids)
        losses.append((velocity - (alpha**0.5 * state - mean) / (1 - alpha) ** 0.5).square().mean())
        with torch.no_grad():
            unguided = denoise(state, times, empty.expand_as(ids))
            guided = unguided + guidance * (velocity.detach() - unguided)
            state = solver.step(guided, time, state).prev_sample
    return torch.stack(losses).mean()


def _solver(scheduler: Scheduler, steps: int) -> Any:
    from diffusers import DDIMScheduler

    solver: Any = DDIMScheduler.from_config(scheduler.config)
    solver.set_timesteps(steps)
    return solver
