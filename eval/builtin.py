"""Registers the metrics that come with hasten. A metric's module is imported when the metric is made."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from hasten.extend import hookimpl

__all__ = ["METRICS", "Factory"]

#: Name -> (module, class, fixed options, one line).
METRICS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "psnr": ("fidelity", "Psnr", {}, "dB against the baseline's image, per image"),
    "ssim": ("fidelity", "Ssim", {}, "structural similarity to the baseline's image"),
    "ms_ssim": ("fidelity", "Ssim", {"multi_scale": True}, "structural similarity over five scales"),
    "lpips": (
        "fidelity",
        "LpipsMetric",
        {},
        "perceptual distance to the baseline's image (AlexNet weights by path)",
    ),
    "frame_consistency": ("fidelity", "FrameConsistency", {}, "videos: PSNR between consecutive frames"),
    "clip_i": ("fidelity", "ImageCosine", {}, "cosine of CLIP image embeddings, candidate against baseline"),
    "clip_score": ("alignment", "ClipScore", {}, "image-prompt cosine by CLIP, on a published scale"),
    "blip2_t": (
        "alignment",
        "RetrievalScore",
        {"name": "blip2_t"},
        "BLIP-2 contrastive image-prompt score (ITC)",
    ),
    "blip2_itm": (
        "alignment",
        "RetrievalScore",
        {"name": "blip2_itm"},
        "BLIP-2 probability of a match (ITM)",
    ),
    "blip_t_classdiffusion": (
        "alignment",
        "RetrievalScore",
        {"name": "blip_t_classdiffusion"},
        "BLIP-1 contrastive score, as in the released ClassDiffusion code",
    ),
    "blip_itm": ("alignment", "RetrievalScore", {"name": "blip_itm"}, "BLIP-1 probability of a match (ITM)"),
    "fid": ("sets", "Fid", {}, "Frechet distance of features to a reference set"),
    "kid": ("sets", "Kid", {}, "unbiased kernel distance of features to a reference set"),
    "cmmd": ("sets", "Cmmd", {}, "CLIP maximum mean discrepancy to a reference set, as published"),
    "mmd_clip_median": ("sets", "Cmmd", {"sigma": None}, "the same at the bandwidth of the data, unbiased"),
    "mini_classifier": (
        "miniature",
        "Classifier",
        {},
        "miniature: share of the prompted attributes, by a trained classifier",
    ),
    "mini_parser": (
        "miniature",
        "Parser",
        {},
        "miniature: share of the prompted attributes, by a parser without training",
    ),
    "mini_text_image": (
        "miniature",
        "TextImage",
        {},
        "miniature: image-prompt cosine of the miniature contrastive model",
    ),
    "mini_frechet": (
        "miniature",
        "Frechet",
        {},
        "miniature: Frechet distance of its features to true renders (not FID)",
    ),
    "mini_mmd": (
        "miniature",
        "Mmd",
        {},
        "miniature: kernel distance of its features to true renders (not CMMD)",
    ),
}


@dataclass(frozen=True)
class Factory:
    """Makes a metric whose module is imported when the metric is made, not before.

    Args:
        module: full name of the module.
        name: of the metric's class.
        fixed: options of the class that are not the user's to choose.
    """

    module: str
    name: str
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, **options: Any) -> Any:
        """The metric."""
        return self._metric(**self.fixed, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._metric)

    @property
    def _metric(self) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(import_module(self.module), self.name)
        return found


@hookimpl
def hasten_register_metrics(register: Callable[[str, Callable[..., Any], str], None]) -> None:
    """Offer every metric of :data:`METRICS`."""
    for name, (module, class_name, fixed, summary) in METRICS.items():
        register(name, Factory(f"hasten.eval.metrics.{module}", class_name, fixed), summary)
