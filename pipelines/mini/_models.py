"""The bundled miniatures: where they lie, how they are loaded and how they are meant to be called."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten._errors import CheckpointError, ConfigError, UnsupportedError
from hasten._load import pipeline_class
from hasten.pipelines.mini.moving import MovingScene, sample_moving_scene
from hasten.pipelines.mini.scenes import Scene, Split, sample_scene

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["load", "load_folder", "names", "path", "product_name", "prompts", "recommended_call"]

_PREFIX = "mini/"
_MODELS: dict[str, Callable[[int, int, Split], Scene | MovingScene]] = {
    "t2i-dit": sample_scene,
    "t2i-dit-1024": sample_scene,
    "t2i-unet": sample_scene,
    "t2v-dit": sample_moving_scene,
    "t2v-unet": sample_moving_scene,
    "var": sample_scene,
    "infinity": sample_scene,
}
"""Model -> the sampler of the data set it was trained on."""
_WEIGHTS = Path(__file__).with_name("weights")
_PROMPT_STREAM = 2**41
"""Prompts come from streams of scenes that no training run draws from."""


def names() -> list[str]:
    """Names of the pipelines whose weights are bundled, as :func:`load` and ``hasten.load`` take them."""
    return [_PREFIX + model for model in _MODELS if (_WEIGHTS / model / "model_index.json").is_file()]


def path(name: str) -> Path:
    """Folder of a bundled pipeline; ``name`` with or without its ``mini/``.

    Raises:
        UnsupportedError: for an unknown name.
        CheckpointError: if the weights are not installed.
    """
    model = _known(name)
    folder = _WEIGHTS / model
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(
            f"the weights of {name!r} are missing from {folder}; reinstall hasten, or make them with "
            f"`hasten mini train {model}` and `hasten mini export {model} {folder}`"
        )
    return folder


def load(name: str, **options: Any) -> DiffusionPipeline:
    """Load a bundled pipeline from its packaged folder; the network is never asked.

    Args:
        name: one of :func:`names`.
        **options: passed on to ``from_pretrained``; ``dtype`` is float32 unless given.

    Raises:
        UnsupportedError: for an unknown name.
        CheckpointError: if the weights are not installed.
    """
    return load_folder(path(name), **options)


def load_folder(folder: Path, **options: Any) -> DiffusionPipeline:
    """Load an exported pipeline, leaving out the components that its ``hasten.json`` says it has not."""
    import torch

    if "torch_dtype" not in options:
        options.setdefault("dtype", torch.float32)
    absent = dict.fromkeys(_settings(folder).get("absent", ()))
    pipe: DiffusionPipeline = pipeline_class(folder).from_pretrained(
        folder, local_files_only=True, **absent | options
    )
    return pipe


def recommended_call(name_or_path: str | Path) -> dict[str, Any]:
    """Arguments the pipeline of a name or folder is meant to be called with (steps, guidance, size).

    Raises:
        UnsupportedError: for an unknown name.
        CheckpointError: if the folder says nothing about it.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        folder = path(str(name_or_path))
    call: dict[str, Any] = _settings(folder)["call"]
    return call


def product_name(name_or_path: str | Path) -> str:
    """Which miniature a name or an exported folder is: a key of ``export.PRODUCTS``.

    Raises:
        UnsupportedError: for an unknown name.
        CheckpointError: if the folder does not say.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        return _known(str(name_or_path))
    product: str = _settings(folder)["product"]
    return product


def _known(name: str) -> str:
    model = name.removeprefix(_PREFIX)
    if model not in _MODELS:
        known = ", ".join(_PREFIX + model for model in _MODELS)
        raise UnsupportedError(f"no bundled miniature is called {name!r}; there are {known}")
    return model


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "hasten.json"
    if not file.is_file():
        raise CheckpointError(f"{folder} has no hasten.json, which would hold the recommended call")
    settings: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return settings


def prompts(n: int, seed: int = 0, split: Split = "train", model: str = "mini/t2i-dit") -> list[str]:
    """``n`` different captions of a miniature's data set.

    Args:
        n: how many.
        seed: which ones.
        split: combinations seen in training, or those held out of it.
        model: the miniature, a name of :func:`names` with or without its ``mini/``.

    Raises:
        ConfigError: if the split has not so many captions.
        UnsupportedError: for an unknown model.
    """
    sample = _MODELS[_known(model)]
    found: dict[str, None] = {}
    for index in range(200 * n + 1000):
        if len(found) == n:
            break
        found[sample(_PROMPT_STREAM + seed, index, split).caption()] = None
    else:
        raise ConfigError(f"the {split!r} split has no {n} different captions; ask for fewer")
    return list(found)
