"""The weights a run begins with, if not random ones: those of a finished run, or of a bundled model's denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hasten.pipelines.mini._models import path
from hasten.pipelines.mini.checkpoints import read_average
from hasten.pipelines.mini.provenance import read_record

__all__ = ["Beginning", "beginning"]


@dataclass(frozen=True)
class Beginning:
    """Weights to begin with and where they come from.

    Args:
        weights: a state dict.
        recipe: name of the recipe that made them.
        record: of the run that made them, or, with the key ``bundled``, the name of the shipped model.
    """

    weights: Mapping[str, Tensor]
    recipe: str
    record: Mapping[str, Any]


def beginning(source: str | Path) -> Beginning:
    """Read the weights that ``source`` stands for.

    Args:
        source: folder of a finished run, or the name of a bundled model (``"mini/..."``).

    Raises:
        CheckpointError: if the folder holds no finished run.
        UnsupportedError: for an unknown bundled model.
    """
    if Path(source).is_dir() or not str(source).startswith("mini/"):
        folder = Path(source)
        record = read_record(folder)
        return Beginning(read_average(folder), record["recipe"], record)
    from safetensors.torch import load_file

    name = str(source)
    folder = next(path(name) / part for part in ("transformer", "unet") if (path(name) / part).is_dir())
    (file,) = folder.glob("*.safetensors")
    weights = {key: value.float() for key, value in load_file(file).items()}
    return Beginning(weights, name.removeprefix("mini/"), {"bundled": name, "command": name})
