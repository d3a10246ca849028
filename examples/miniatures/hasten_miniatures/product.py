"""A shipped miniature pipeline, apart from its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten_miniatures.evaluate import Row

__all__ = ["Product", "usage"]

_PICTURE = (
    "image",
    "images",
    "a large red circle on the left and a small blue star on the right on a white background",
)
_VIDEO = ("frames", "frames", "a large red circle moving left on a white background")


def usage(name: str, *, video: bool = False) -> str:
    """Code for a README that generates one picture or video with the miniature ``name``."""
    variable, field, prompt = _VIDEO if video else _PICTURE
    return f"""```python
pipe = hasten.load("mini/{name}")
{variable} = pipe(
    "{prompt}",
    **hasten.pipelines.mini.recommended_call("mini/{name}"),
).{field}[0]
```"""


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
