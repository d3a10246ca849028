"""The miniatures that are installed: where they lie, how they are loaded and how they are meant to be called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.commands import find_model, host, load_saved, model_folder
from hasten.extend import Captions, Split, read_settings

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = [
    "captions",
    "load",
    "load_folder",
    "names",
    "path",
    "product_name",
    "prompts",
    "recommended_call",
]

_PREFIX = "mini/"


def names() -> list[str]:
    """Names of the miniatures that are installed, as :func:`load` and ``hasten.load`` take them."""
    return [name for name in host().registry.models if name.startswith(_PREFIX)]


def path(name: str) -> Path:
    """Folder of an installed miniature; ``name`` with or without its ``mini/``.

    Raises:
        UnsupportedError: the name is unknown, or the miniature is not installed.
        CheckpointError: the weights are missing.
    """
    return model_folder(_full(name))


def load(name: str, **options: Any) -> DiffusionPipeline:
    """Load a miniature from its installed folder, without the network.

    Args:
        name: one of :func:`names`.
        **options: passed on to ``from_pretrained``; ``dtype`` is float32 unless given.

    Raises:
        UnsupportedError: the name is unknown, or the miniature is not installed.
        CheckpointError: the weights are missing or damaged.
    """
    return load_folder(path(name), **options)


def load_folder(folder: Path, **options: Any) -> DiffusionPipeline:
    """Load an exported miniature, without the components that its ``hasten.json`` lists as absent.

    Raises:
        CheckpointError: a file is damaged, or the weights are not those of the model.
    """
    pipe: DiffusionPipeline = load_saved(folder, **options)
    return pipe


def recommended_call(name_or_path: str | Path) -> dict[str, Any]:
    """Arguments the pipeline of a name or folder is meant to be called with (steps, guidance, size).

    Raises:
        UnsupportedError: the name is unknown, or the miniature is not installed.
        CheckpointError: the folder says nothing about it.
    """
    return read_settings(_folder(name_or_path)).call


def product_name(name_or_path: str | Path) -> str:
    """Which miniature a name or an exported folder is, without the ``mini/``.

    Raises:
        UnsupportedError: the name is unknown, or the miniature is not installed.
        CheckpointError: the folder does not say.
    """
    return read_settings(_folder(name_or_path)).product


def prompts(n: int, seed: int = 0, split: Split = "train", model: str = "mini/t2i-dit") -> list[str]:
    """``n`` different captions of a miniature's data set.

    Args:
        n: how many.
        seed: which ones.
        split: combinations seen in training, or those held out of it.
        model: the miniature, a name of :func:`names` with or without its ``mini/``.

    Raises:
        ConfigError: the split has fewer captions.
        UnsupportedError: the model is unknown or not installed.
    """
    return captions(model).prompts(n, seed, split)


def captions(model: str) -> Captions:
    """The data set of a miniature.

    Raises:
        UnsupportedError: the model is unknown or not installed.
    """
    return find_model(_full(model)).captions


def _folder(name_or_path: str | Path) -> Path:
    folder = Path(name_or_path)
    return folder if folder.is_dir() else path(str(name_or_path))


def _full(name: str) -> str:
    return name if name.startswith(_PREFIX) else _PREFIX + name
