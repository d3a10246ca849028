"""Figures of videos: image metrics frame by frame, and how smoothly a video changes beside its baseline."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hasten.eval.functional.pixel import psnr
from hasten.eval.pictures.images import check_images
from hasten.extend import ConfigError

#: Compares two batches of images, ``[F, 3, H, W]`` each, to ``[F]``.
PairMetric = Callable[[Tensor, Tensor], Tensor]


def consistency_curve(frames: Tensor, metric: PairMetric = psnr) -> Tensor:
    """The metric between each frame and the next: ``[F, 3, H, W] -> [F - 1]``. High PSNR means little
    changes.

    Raises:
        ConfigError: with fewer than two frames.
    """
    check_images(frames, name="frames")
    if len(frames) < 2:
        raise ConfigError("consistency over time needs at least two frames")
    return metric(frames[:-1], frames[1:])
