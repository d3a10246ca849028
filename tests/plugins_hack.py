"""Caches of HACK driven by seeded tensors, without a model."""

import torch
from torch.nn import functional as F

from hasten.plugins.hack.calibration import Artefact
from hasten.plugins.hack.math import HeadStatistics
from hasten.schedules.scales import square_schedule

SCHEDULE = square_schedule((1, 2, 3, 4, 6))
LAYERS, HEADS, DIM = 3, 4, 8


def artefact(schedule, order=None):
    """Half of the heads contextual, unevenly over layers."""
    ratio = torch.tensor([[0.9, 0.1, 0.8, 0.2], [0.7, 0.9, 0.3, 0.8], [0.1, 0.2, 0.9, 0.3]])
    scales = len(schedule)
    generator = torch.Generator().manual_seed(0)
    mass = torch.rand(LAYERS, HEADS, scales, scales, generator=generator).tril()
    mass = mass / mass.sum(-1, keepdim=True)
    if order is not None:
        ratio, mass = ratio[:, order], mass[:, order]
    return Artefact("model", schedule, 1, HeadStatistics(ratio, ratio, 1 - ratio), mass)


def run(cache, rows=2, dtype=torch.float32, after=lambda scale: None, order=None, only=None, stop=None):
    """Outputs of every layer and scale, and the tokens held by every head at the end of the last scale but one."""
    cache.begin(SCHEDULE, LAYERS)
    outputs, lengths = [], []
    for scale, (height, width) in enumerate(SCHEDULE):
        for layer in range(LAYERS):
            generator = torch.Generator().manual_seed(100 * scale + layer)
            q, k, v = (torch.randn(rows, HEADS, height * width, DIM, generator=generator) for _ in range(3))
            q, k = 6 * F.normalize(q, dim=-1), F.normalize(k, dim=-1)
            if order is not None:
                q, k, v = q[:, order], k[:, order], v[:, order]
            if only is not None:
                q, k, v = q[only : only + 1], k[only : only + 1], v[only : only + 1]
            outputs.append(cache.attend(layer, scale, q.to(dtype), k.to(dtype), v.to(dtype)))
        after(scale)
        if scale == len(SCHEDULE) - 2 and hasattr(cache, "_kept"):
            for (index, number), kept in cache._kept.items():
                lengths += [kept.source.shape[2]] * len(cache.plan.layers[index][number].heads)
        if scale == stop:
            return outputs, lengths
    cache.reset()
    assert cache.nbytes == 0
    return outputs, lengths
