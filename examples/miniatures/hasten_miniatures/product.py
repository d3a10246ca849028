"""What is shipped of a trained pipeline, besides its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten_miniatures.evaluate import Row

__all__ = ["Product"]


@dataclass(frozen=True)
class Product:
    """A miniature pipeline as the exporter sees it.

    Args:
        text: what it is and how it is called, for its README.
        runs: names of the runs that made its parts, oldest first.
        call: recommended arguments of a call.
        assemble: the pipeline made of the trained parts in a folder of runs.
        settings: further content of its ``hasten.json``, from the folder of runs.
        measure: ``measure(pipe, call, prompts, seed, progress)``: how often the pipeline does what it is asked for.
        samples: samples that ``measure`` makes for each of its prompts.
        trained: folders of what its run trains, by the names they have there; none for a denoiser alone.
    """

    text: str
    runs: tuple[str, ...]
    call: Mapping[str, Any]
    assemble: Callable[[Path], Any]
    settings: Callable[[Path], Mapping[str, Any]]
    measure: Callable[[Any, Mapping[str, Any], int, int, Callable[[int], None]], list[Row]]
    samples: int
    trained: tuple[str, ...] = ()
