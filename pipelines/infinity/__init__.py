"""Infinity: text to image by next-scale prediction of bits, as a diffusers pipeline.

``InfinityPipeline.from_original`` loads the published checkpoints, ``from_pretrained`` a folder in diffusers layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasten.pipelines.infinity.bsq_model import BSQAutoencoder
    from hasten.pipelines.infinity.pipeline import InfinityPipeline

__all__ = ["BSQAutoencoder", "InfinityPipeline"]

_HOMES = {"BSQAutoencoder": "bsq_model", "InfinityPipeline": "pipeline"}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
