"""A shipped miniature pipeline, apart from its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten_miniatures.evaluate import Row

__all__ = ["Product"]


@dataclass(frozen=True)
class Product:
    """A miniature pipeline for the exporter.

    Args:
        text: description and usage, for its README.
        runs: names of the runs of its parts, oldest first.
        call: recommended arguments of a call.
        assemble: builds the pipeline from the trained parts in a folder of runs.
        settings: returns further content of its ``hasten.json``, from a folder of runs.
        measure: ``measure(pipe, call, prompts, seed, progress)`` evaluates the pipeline.
        samples: number of samples that ``measure`` generates per prompt.
        trained: components that its run trains together; empty if only the denoiser is trained.
    """

    text: str
    runs: tuple[str, ...]
    call: Mapping[str, Any]
    assemble: Callable[[Path], Any]
    settings: Callable[[Path], Mapping[str, Any]]
    measure: Callable[[Any, Mapping[str, Any], int, int, Callable[[int], None]], list[Row]]
    samples: int
    trained: tuple[str, ...] = ()
