"""Closeness to the unaccelerated image of the same prompt and seed.

These metrics measure quality only if the technique follows the same trajectory: a different picture of equal
quality has a low score.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.eval.fingerprint import Fingerprint
from hasten.eval.functional.alignment import cosine
from hasten.eval.functional.pixel import PSNR_CAP, capped, psnr
from hasten.eval.functional.ssim import Variant, ms_ssim, ssim
from hasten.eval.functional.video import consistency_curve
from hasten.eval.metric import Batch, Features, Need, SampleMetric
from hasten.extend import ConfigError

_PAIRED: frozenset[Need] = frozenset({"image", "baseline"})


class _Pixels(SampleMetric):
    """A function of two image batches; nothing is kept but its scores."""

    needs = _PAIRED
    higher_is_better = True
    _function: Callable[[Tensor, Tensor], Tensor]

    def embed(self, batch: Batch) -> Features:
        """``{"score": float64 [N]}``."""
        self._require(batch)
        assert batch.baseline is not None
        return {"score": self._function(batch.baseline, batch.images).cpu()}

    def score(self, features: Features) -> Tensor:
        """The scores kept."""
        return features["score"]


class Psnr(_Pixels):
    """Peak signal-to-noise ratio in decibels, per image; identical pairs count as 100 dB in means.

    Args:
        channel: ``"rgb"`` or ``"y"``.
        options: of ``torchmetrics.Metric``.
    """

    name = "psnr"
    unit = "dB"

    def __init__(self, channel: str = "rgb", **options: Any) -> None:
        if channel not in ("rgb", "y"):
            raise ConfigError(f"channel is 'rgb' or 'y', not {channel!r}")
        super().__init__(channel, **options)
        self._channel = channel
        self._function = partial(psnr, channel=channel)

    def averaged(self, scores: Tensor) -> Tensor:
        """Capped at 100 dB."""
        return capped(scores)

    def fingerprint(self) -> Fingerprint:
        """Channel and cap."""
        return Fingerprint(self.name, self.version, variant=self._channel, details={"cap_db": PSNR_CAP})


class Ssim(_Pixels):
    """Structural similarity, Gaussian window.

    Args:
        variant: ``"valid"`` or ``"torchmetrics"`` borders.
        multi_scale: the five-scale form.
        options: of ``torchmetrics.Metric``.
    """

    name = "ssim"
    perfect = 1.0

    def __init__(self, variant: Variant = "valid", *, multi_scale: bool = False, **options: Any) -> None:
        if variant not in ("valid", "torchmetrics"):
            raise ConfigError(f"variant is 'valid' or 'torchmetrics', not {variant!r}")
        self.name = "ms_ssim" if multi_scale else "ssim"
        super().__init__(variant, **options)
        self._variant = variant
        function = ms_ssim if multi_scale else ssim
        self._function = partial(function, variant=variant)

    def fingerprint(self) -> Fingerprint:
        """Treatment of the borders."""
        return Fingerprint(self.name, self.version, variant=self._variant)


class LpipsMetric(_Pixels):
    """LPIPS v0.1 (AlexNet) at the images' own size; lower is closer.

    Args:
        weights: torchvision's AlexNet weights file.
        heads: LPIPS heads; default is torchmetrics' copy.
        device: where to run.
        options: of ``torchmetrics.Metric``.
    """

    name = "lpips"
    higher_is_better = False
    perfect = 0.0

    def __init__(
        self,
        weights: str | Path,
        heads: str | Path | None = None,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> None:
        from hasten.eval.networks.alexnet import load_lpips

        super().__init__(**options)
        self._network = load_lpips(weights, heads, device=device)
        self._function = self._network

    def fingerprint(self) -> Fingerprint:
        """Network and weights."""
        return self._network.fingerprint()


class ImageCosine(SampleMetric):
    """Cosine of the image embeddings of baseline and candidate ("CLIP-I").

    Args:
        network: a CLIP folder or hub id, or a ready :class:`~hasten.eval.networks.clip.ClipNetwork`.
        device: where to run.
        options: of ``torchmetrics.Metric``.
    """

    name = "clip_i"
    needs = _PAIRED
    higher_is_better = True
    perfect = 1.0

    def __init__(self, network: object, device: torch.device | str = "cpu", **options: Any) -> None:
        from hasten.eval.networks.clip import as_clip

        super().__init__(**options)
        self._clip = as_clip(network, device)

    def embed(self, batch: Batch) -> Features:
        """``{"image": [N, d], "baseline": [N, d]}``."""
        self._require(batch)
        assert batch.baseline is not None
        return {
            "image": self._clip.embed_images(batch.images),
            "baseline": self._clip.embed_images(batch.baseline),
        }

    def score(self, features: Features) -> Tensor:
        """Cosine of each pair."""
        return cosine(features["image"], features["baseline"])

    def fingerprint(self) -> Fingerprint:
        """Network and preprocessing."""
        return self._clip.fingerprint(self.name)


class FrameConsistency(SampleMetric):
    """PSNR between each frame of a video and the next, averaged: smoothness of the motion.

    Read its change against the baseline: lower flickers more. A still picture has the highest value, so that higher is
    not better without end.
    """

    name = "frame_consistency"
    unit = "dB"
    needs: frozenset[Need] = frozenset({"image", "video"})
    higher_is_better = True

    def embed(self, batch: Batch) -> Features:
        """``{"score": float64 [videos]}``."""
        self._require(batch)
        videos = batch.images.unflatten(0, (-1, batch.frames))
        return {"score": torch.stack([capped(consistency_curve(video)).mean() for video in videos]).cpu()}

    def score(self, features: Features) -> Tensor:
        """The scores kept."""
        return features["score"]

    def fingerprint(self) -> Fingerprint:
        """Cap of identical frames."""
        return Fingerprint(self.name, self.version, details={"cap_db": PSNR_CAP})
