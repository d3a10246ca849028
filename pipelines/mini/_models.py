"""Installed miniatures: their folders, loading, captions and recommended calls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.commands import find_model, host, load_saved, model_folder
from hasten.extend import Captions, Split, read_settings

if TYPE_CHECKING:
    from hasten.extend import Pipeline

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
    """Names of the installed miniatures, for :func:`load` and ``hasten.load``."""
    return [name for name in host().registry.models if name.startswith(_PREFIX)]


def path(name: str) -> Path:
    """Folder of an installed miniature; ``name`` with or without its ``mini/``.

    Raises:
        UnsupportedError: the name is unknown, or the miniature is not installed.
        CheckpointError: the weights are missing.
    """
    return model_folder(_full(name))


def load(name: str, **options: Any) -> Pipeline:
    """Load a miniature from its installed folder, without the network.

    Args:
        name: one of :func:`names`.
        **options: passed on to ``from_pretrained``; ``dtype`` is float32 unless given.

    Raises:
        UnsupportedError: the name is unknown, or the miniature is not installed.
        CheckpointError: the weights are missing or damaged.
    """
    return load_folder(path(name), **options)


def load_folder(folder: Path, **options: Any) -> Pipeline:
    """Load an exported miniature, without the components that its ``hasten.json`` lists as absent.

    Raises:
        CheckpointError: a file is damaged, or the weights do not match the model.
    """
    pipe: Pipeline = load_saved(folder, **options)
    return pipe


def recommended_call(name_or_path: str | Path) -> dict[str, Any]:
    """Recommended call arguments of a miniature (steps, guidance, size), by name or folder.

    Raises:
        UnsupportedError: the name is unknown, or the miniature is not installed.
        CheckpointError: the folder has no such information.
    """
    return read_settings(_folder(name_or_path)).call


def product_name(name_or_path: str | Path) -> str:
    """Name of the miniature without ``mini/``, by name or exported folder.

    Raises:
        UnsupportedError: the name is unknown, or the miniature is not installed.
        CheckpointError: the folder has no such information.
    """
    return read_settings(_folder(name_or_path)).product


def prompts(n: int, seed: int = 0, split: Split = "train", model: str = "mini/t2i-dit") -> list[str]:
    """``n`` different captions of the data set of a miniature.

    Args:
        n: number of captions.
        seed: seed of the selection.
        split: combinations that occur in training, or held-out ones.
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
