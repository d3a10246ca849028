"""VAR: class- or text-conditional next-scale generation as a diffusers pipeline.

``VARPipeline.from_original`` loads the published checkpoints, ``from_pretrained`` a folder in diffusers layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasten.extend import KVCache
    from hasten.pipelines.var.cache import DenseKVCache
    from hasten.pipelines.var.pipeline import VARPipeline
    from hasten.pipelines.var.scheduler import NextScaleScheduler
    from hasten.pipelines.var.transformer import NextScaleTransformer
    from hasten.pipelines.var.vq_model import MultiScaleVQModel

__all__ = [
    "DenseKVCache",
    "KVCache",
    "MultiScaleVQModel",
    "NextScaleScheduler",
    "NextScaleTransformer",
    "VARPipeline",
]

_HOMES = {
    "DenseKVCache": "cache",
    "KVCache": "cache",
    "MultiScaleVQModel": "vq_model",
    "NextScaleScheduler": "scheduler",
    "NextScaleTransformer": "transformer",
    "VARPipeline": "pipeline",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
