"""The weights a run begins with, if not random ones: those of a finished run, or of a bundled model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hasten import CheckpointError
from hasten.pipelines.mini import path
from hasten.weights import read_tensors
from hasten_miniatures.checkpoints import read_average
from hasten_miniatures.provenance import read_record, read_shipped_chain

__all__ = ["Beginning", "beginning"]


@dataclass(frozen=True)
class Beginning:
    """Weights to begin with and where they come from.

    Args:
        weights: a state dict; of a bundled model what its run trained, mostly the denoiser.
        recipe: name of the recipe that made them.
        record: of the run that made them, or, with the key ``bundled``, the name of the shipped model; with it the
            records of its runs as ``chain``, where they are shipped.
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
    return _bundled(str(source))


def _bundled(name: str) -> Beginning:
    from hasten_miniatures.export import product

    folder, made = path(name), product(name.removeprefix("mini/"))
    recipe, parts = made.runs[-1], made.trained
    if parts:
        weights = {f"{part}.{key}": value for part in parts for key, value in _part(folder / part).items()}
    else:
        weights = _part(next(folder / part for part in ("transformer", "unet") if (folder / part).is_dir()))
    return Beginning(weights, recipe, {"bundled": name, "command": name, "chain": read_shipped_chain(folder)})


def _part(folder: Path) -> dict[str, Tensor]:
    files = list(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise CheckpointError(f"{folder} holds {len(files)} files of weights, not one; reinstall hasten")
    return {key: value.float() for key, value in read_tensors(files[0], "reinstall hasten").items()}
