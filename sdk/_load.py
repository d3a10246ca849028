"""`hasten.load`: a pipeline from a name."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

from hasten._errors import UnsupportedError

__all__ = ["load", "pipeline_class"]

_MINI = "mini/"
_OWN = {
    "VARPipeline": "hasten.pipelines.var.pipeline",
    "InfinityPipeline": "hasten.pipelines.infinity.pipeline",
}
"""Pipelines that diffusers does not have, by class name."""


def load(name_or_path: str | Path, **options: Any) -> Any:
    """Load a pipeline.

    Args:
        name_or_path: a bundled miniature (``"mini/..."``), a local folder, or a hub id (``"owner/name"``), which is
            the only thing that uses the network.
        **options: passed on to the miniature's loader, or to ``DiffusionPipeline.from_pretrained``.

    Raises:
        UnsupportedError: nothing of that name can be loaded.
    """
    name = str(name_or_path)
    if name.startswith(_MINI):
        from hasten.pipelines import mini

        return mini.load(name, **options)
    from diffusers import DiffusionPipeline

    if Path(name).is_dir():
        if not (Path(name) / DiffusionPipeline.config_name).is_file():
            raise UnsupportedError(
                f"folder {name!r} holds no {DiffusionPipeline.config_name}: it is no saved pipeline"
            )
        return pipeline_class(Path(name)).from_pretrained(name, **(_absent_components(Path(name)) | options))
    if isinstance(name_or_path, Path) or name.count("/") != 1:
        raise UnsupportedError(
            f"{name!r} is no folder here, no bundled miniature ({_MINI}...) and no hub id (owner/name); "
            f"check the spelling"
        )
    try:
        return DiffusionPipeline.from_pretrained(name, **options)
    except OSError as error:
        raise UnsupportedError(
            f"{name!r} is no local folder and could not be fetched from the hub: {error}. Without a network, give the "
            f"folder of a downloaded pipeline, or try a bundled miniature ({_MINI}...)."
        ) from error


def pipeline_class(folder: Path) -> Any:
    """Whose ``from_pretrained`` loads a saved pipeline: one of ours, or the one of diffusers that finds its class."""
    from diffusers import DiffusionPipeline

    name = json.loads((folder / DiffusionPipeline.config_name).read_text("utf-8")).get("_class_name")
    return getattr(importlib.import_module(_OWN[name]), name) if name in _OWN else DiffusionPipeline


def _absent_components(folder: Path) -> dict[str, None]:
    """Components that were ``None`` when the pipeline was saved.

    diffusers leaves them out of the index and later refuses to load without them (StableDiffusion3Pipeline without
    its T5 encoder), so they have to be passed as ``None``.
    """
    import diffusers

    index = json.loads((folder / diffusers.DiffusionPipeline.config_name).read_text("utf-8"))
    cls = getattr(diffusers, index.get("_class_name", ""), None)
    if cls is None:
        return {}
    parameters = inspect.signature(cls.__init__).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return {name: None for name in required if name != "self" and index.get(name) in (None, [None, None])}
