"""Importance of units: the second-order Taylor estimate of the loss without them."""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.plugins.aptp.gates import gated
from hasten.plugins.aptp.make.context import TrainingContext

__all__ = ["importance"]


def importance(context: TrainingContext, batches: int, batch: int, seed: int = 0) -> Tensor:
    """Mean squared gradient of the denoising loss for each gate (size,), the Fisher estimate of its curvature.

    Gradients are taken for each sample: their mean over a batch would be near zero.

    Args:
        context: pipeline and data.
        batches: number of batches.
        batch: samples in a batch.
        seed: of data and noise.
    """
    total = torch.zeros(context.gates.size)
    for number in range(batches):
        generator = torch.Generator().manual_seed(seed + number)
        noisy = context.noisy(context.data.batch(batch, generator, drop=0.1), generator)
        gates = torch.ones(len(noisy.truth), context.gates.size, requires_grad=True)
        with gated(context.denoiser, context.structure, *context.gates.split(gates)):
            prediction = context.predict(context.denoiser, noisy)
        (prediction - noisy.truth).square().flatten(1).mean(1).sum().backward()
        assert gates.grad is not None
        total += gates.grad.square().mean(0)
    return total / batches
