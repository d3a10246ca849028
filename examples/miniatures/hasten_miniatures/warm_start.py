"""Initial weights from a finished run or a bundled model."""

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

__all__ = ["WarmStart", "load_warm_start"]


@dataclass(frozen=True)
class WarmStart:
    """Initial weights and their origin.

    Args:
        weights: a state dict; for a bundled model, the part that its run trained, usually the denoiser.
        recipe: name of the recipe of these weights.
        record: record of their run. For a bundled model, its name (``bundled``) and the records of its runs
            (``chain``), if they are shipped.
    """

    weights: Mapping[str, Tensor]
    recipe: str
    record: Mapping[str, Any]


def load_warm_start(source: str | Path) -> WarmStart:
    """Load the weights of a finished run or of a bundled model.

    Args:
        source: folder of the run, or the name of the model (``"mini/..."``).

    Raises:
        CheckpointError: the folder contains no finished run.
        UnsupportedError: the bundled model is unknown.
    """
    if Path(source).is_dir() or not str(source).startswith("mini/"):
        folder = Path(source)
        record = read_record(folder)
        return WarmStart(read_average(folder), record["recipe"], record)
    return _bundled(str(source))


def _bundled(name: str) -> WarmStart:
    from hasten_miniatures.export import product

    folder, made = path(name), product(name.removeprefix("mini/"))
    recipe, parts = made.runs[-1], made.trained
    if parts:
        weights = {f"{part}.{key}": value for part in parts for key, value in _part(folder / part).items()}
    else:
        weights = _part(next(folder / part for part in ("transformer", "unet") if (folder / part).is_dir()))
    return WarmStart(weights, recipe, {"bundled": name, "command": name, "chain": read_shipped_chain(folder)})


def _part(folder: Path) -> dict[str, Tensor]:
    files = list(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise CheckpointError(f"{folder} holds {len(files)} files of weights, not one; reinstall hasten")
    return {key: value.float() for key, value in read_tensors(files[0], "reinstall hasten").items()}
