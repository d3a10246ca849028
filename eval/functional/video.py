"""Figures of videos: image metrics frame by frame, and how smoothly a video changes beside its baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.eval.functional.pixel import capped, psnr
from hasten.eval.pictures.images import check_images
from hasten.extend import ConfigError

#: Compares two batches of images, ``[F, 3, H, W]`` each, to ``[F]``.
PairMetric = Callable[[Tensor, Tensor], Tensor]


def _check(base: Tensor, candidate: Tensor) -> None:
    check_images(base, name="the baseline's frames")
    check_images(candidate, name="the candidate's frames")
    if len(base) != len(candidate):
        raise ConfigError(
            f"The videos have {len(base)} and {len(candidate)} frames; cutting the longer one would hide "
            f"what is "
            "missing."
        )


def frame_curve(base: Tensor, candidate: Tensor, metric: PairMetric = psnr) -> Tensor:
    """An image metric of corresponding frames.

    Args:
        base: uint8 ``[F, 3, H, W]``.
        candidate: the same shape.
        metric: any per-image pair metric of :mod:`hasten.eval.functional`.

    Returns:
        float64 ``[F]``. A video's figure is the mean of its curve (PSNR capped first), a set's the mean over
        videos.

    Raises:
        ConfigError: if the numbers of frames differ.
    """
    _check(base, candidate)
    return metric(base, candidate)


def video_score(curves: Sequence[Tensor]) -> Tensor:
    """Mean over frames of each video: curves ``[F_v] -> [videos]``. Frames are not pooled over videos.

    Infinite PSNR (identical frames) counts as the cap, as everywhere in means.
    """
    return torch.stack([capped(curve.to(torch.float64)).mean() for curve in curves])


def consistency_curve(frames: Tensor, metric: PairMetric = psnr) -> Tensor:
    """The metric between each frame and the next: ``[F, 3, H, W] -> [F - 1]``. High PSNR means little
    changes.

    Raises:
        ConfigError: with fewer than two frames.
    """
    check_images(frames, name="frames")
    if len(frames) < 2:
        raise ConfigError("Consistency over time needs at least two frames.")
    return metric(frames[:-1], frames[1:])


@dataclass(frozen=True)
class TemporalConsistency:
    """Frame-to-frame change of a candidate beside its baseline.

    Attributes:
        base: ``[F - 1]`` metric between consecutive frames of the baseline.
        candidate: the same for the candidate.
        difference: mean of candidate minus base. For PSNR below zero where the candidate flickers more.
        seams: mean difference at the seams only; ``None`` without seams.
        seam_excess: ``seams`` minus the mean difference elsewhere; ``None`` without seams or without other
            frames.
    """

    base: Tensor
    candidate: Tensor
    difference: float
    seams: float | None = None
    seam_excess: float | None = None


def temporal_consistency(
    base: Tensor, candidate: Tensor, metric: PairMetric = psnr, *, seams: Sequence[int] = ()
) -> TemporalConsistency:
    """Compare how smoothly two videos of one prompt and seed run.

    Args:
        base: uint8 ``[F, 3, H, W]``.
        candidate: the same number of frames.
        metric: per-image pair metric.
        seams: indices of frames that begin a clip (clip-parallel methods): the change into frame ``s`` is a
            seam.

    Raises:
        ConfigError: if the numbers of frames differ or a seam lies outside.
    """
    _check(base, candidate)
    outside = [s for s in seams if not 1 <= s < len(base)]
    if outside:
        raise ConfigError(f"Seams must lie between frame 1 and {len(base) - 1}; {outside} do not.")
    a, b = capped(consistency_curve(base, metric)), capped(consistency_curve(candidate, metric))
    change = b - a
    at_seam = torch.zeros(len(change), dtype=torch.bool)
    at_seam[[s - 1 for s in seams]] = True
    seam_mean = float(change[at_seam].mean()) if seams else None
    excess = None
    if seam_mean is not None and not bool(at_seam.all()):
        excess = seam_mean - float(change[~at_seam].mean())
    return TemporalConsistency(a, b, float(change.mean()), seam_mean, excess)
