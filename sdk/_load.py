"""`hasten.load`: a pipeline from a name."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten._document import parse_json
from hasten._errors import CheckpointError, ConfigError, HastenError, UnsupportedError
from hasten._models import Model, read_settings
from hasten._plugins import host
from hasten._text import read_text

__all__ = ["find_model", "load", "load_saved", "model_folder", "pipeline_class"]

_MINI = "mini/"
_MORE = ("mini/t2i-unet", "mini/t2v-dit", "mini/t2v-unet", "mini/var", "mini/infinity")
"""Models of the distribution ``hasten-miniatures``, which may not be installed."""
_INDEX = "model_index.json"
_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".onnx", ".json", ".zip")


def load(name_or_path: str | Path, **options: Any) -> Any:
    """Load a pipeline.

    Args:
        name_or_path: a bundled miniature (``"mini/..."``), a local folder, or a hub id (``"owner/name"``). Only a
            hub id uses the network.
        **options: passed on to the miniature's loader, or to ``DiffusionPipeline.from_pretrained``.

    Raises:
        UnsupportedError: nothing with this name can be loaded, or the class of the pipeline is unknown.
        CheckpointError: a saved pipeline is damaged or incomplete.
    """
    name = str(name_or_path)
    if name in host().registry.models or name.startswith(_MINI):
        return load_saved(model_folder(name), **options)
    folder = os.path.expanduser(name)
    if os.path.isdir(folder):
        return _load_folder(Path(folder), options)
    _refuse_all_but_hub_ids(name, isinstance(name_or_path, Path))
    from diffusers import DiffusionPipeline

    try:
        return DiffusionPipeline.from_pretrained(name, **options)
    except (HastenError, MemoryError):
        raise
    except Exception as error:  # of the network, the hub's client, or the files that came from there
        raise UnsupportedError(
            f"{name!r} is not a local folder and could not be downloaded from the hub: {error}. Without a "
            f"network, give the folder of a downloaded pipeline, or try a bundled miniature ({_MINI}...)."
        ) from error


def load_saved(folder: Path, **options: Any) -> Any:
    """Load a saved miniature, by default in single precision, without components that were not saved.

    Args:
        folder: holds the pipeline and its ``hasten.json``.
        **options: passed on to ``from_pretrained``.

    Raises:
        CheckpointError: a file is damaged, the weights do not match the model, or there is no ``hasten.json``.
    """
    import torch

    from hasten._pretrained import load_checked

    if "torch_dtype" not in options:
        options.setdefault("dtype", torch.float32)
    given = dict.fromkeys(read_settings(folder).absent) | options
    return load_checked(
        lambda: pipeline_class(folder).from_pretrained(folder, local_files_only=True, **given),
        folder,
        "reinstall it, or export the miniature again",
        replaced=given,
    )


def find_model(name: str) -> Model:
    """The model of that name.

    Raises:
        UnsupportedError: no plugin offers one.
    """
    models = host().registry.models
    if name in models:
        return models[name]
    if name in _MORE:
        raise UnsupportedError(
            f"{name!r} is in the package hasten-miniatures, which is not installed: run `pip install "
            "./examples/miniatures` in a checkout of hasten"
        )
    known = ", ".join(dict.fromkeys((*models, *_MORE)))
    raise UnsupportedError(f"unknown model {name!r}. Known: {known}")


def model_folder(name: str) -> Path:
    """Folder of the saved pipeline of a model.

    Raises:
        UnsupportedError: no plugin offers the model.
        CheckpointError: the weights are missing.
    """
    model = find_model(name)
    if not (model.folder / "model_index.json").is_file():
        short = name.rpartition("/")[2]
        raise CheckpointError(
            f"the weights of {name!r} are missing from {model.folder}; install the distribution again, or make them "
            f"with `hasten mini train {short}` and `hasten mini export {short} {model.folder}`"
        )
    return model.folder


def pipeline_class(folder: Path) -> Any:
    """The class of a saved pipeline, from hasten or diffusers.

    Raises:
        CheckpointError: the folder's index cannot be used.
        UnsupportedError: there is no pipeline of that class.
    """
    return _class(folder, _read_index(folder))


def _refuse_all_but_hub_ids(name: str, is_path: bool) -> None:
    """Names that the hub cannot know are not asked of it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if os.path.exists(os.path.expanduser(name)):
        raise UnsupportedError(
            f"{name!r} is a file; give the folder of a saved pipeline(it contains {_INDEX}). To use a "
            f"single file, load it with diffusers' `from_single_file`, save it with `save_pretrained` "
            f"and give that folder"
        )
    if is_path or name.startswith((".", "/", "~")) or "\\" in name or name.lower().endswith(_FILES):
        raise UnsupportedError(f"there is no folder {name!r} here; check the spelling")
    try:
        validate_repo_id(name)
        known = name.count("/") == 1
    except HFValidationError:
        known = False
    if not known:
        raise UnsupportedError(
            f"{name!r} is no folder here, no bundled miniature ({_MINI}...) and no hub id (owner/name); "
            f"check the spelling"
        )


def _load_folder(folder: Path, options: Mapping[str, Any]) -> Any:
    index = _read_index(folder)
    kind = _class(folder, index)
    given = _absent_components(kind, index) | {"local_files_only": True} | dict(options)
    _check_components(folder, kind, index, given)
    try:
        return kind.from_pretrained(str(folder), **given)
    except (HastenError, MemoryError):
        raise
    except Exception as error:  # a file of any component may be damaged in any way
        raise CheckpointError(
            f"{folder} cannot be loaded as {kind.__name__}: {type(error).__name__}: {error}"
        ) from error


def _read_index(folder: Path) -> dict[str, Any]:
    file = folder / _INDEX
    if not file.is_file():
        raise UnsupportedError(f"folder {str(folder)!r} has no {_INDEX}: it is not a saved pipeline")
    try:
        index = parse_json(read_text(file, "index of the pipeline", largest=2**20), str(file))
    except ConfigError as error:
        raise CheckpointError(f"{error}; save the pipeline again") from error
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str | list):
        raise CheckpointError(
            f"{file} does not name the pipeline's class (`_class_name`); save the pipeline again"
        )
    return index


def _class(folder: Path, index: Mapping[str, Any]) -> Any:
    import diffusers

    name = index["_class_name"]
    if not isinstance(name, str):
        raise UnsupportedError(
            f"{folder} is a pipeline with custom code ({name}), which hasten does not run; load it with "
            f"diffusers and pass the object to hasten.accelerate"
        )
    adapter = host().registry.adapters.get(name)
    if adapter is not None and adapter.module != "diffusers":
        return getattr(importlib.import_module(adapter.module), name)
    found = getattr(diffusers, name, None)
    if not (inspect.isclass(found) and issubclass(found, diffusers.DiffusionPipeline)):
        raise UnsupportedError(
            f"{folder} was saved from a {name!r}, which is not a pipeline class of diffusers {diffusers.__version__}; "
            f"install the version it was saved with, or load it yourself and pass the object to "
            f"hasten.accelerate"
        )
    return found


def _required(kind: Any) -> list[str]:
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]


def _absent_components(kind: type, index: Mapping[str, Any]) -> dict[str, Any]:
    """Components that were ``None`` when the pipeline was saved.

    diffusers leaves them out of the index and later refuses to load without them (StableDiffusion3Pipeline without
    its T5 encoder), so they have to be passed as ``None``.
    """
    return {name: None for name in _required(kind) if index.get(name) in (None, [None, None])}


def _check_components(folder: Path, kind: type, index: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    listed = [name for name, value in index.items() if _is_component(value) and name not in given]
    odd = [name for name in _required(kind) if name not in given and name not in listed]
    if odd:
        raise CheckpointError(
            f"{folder / _INDEX} does not say what {odd[0]!r} is: a component is [library, class], not {index[odd[0]]!r}"
        )
    outside = [name for name in listed if name in ("", ".", "..") or "/" in name or "\\" in name]
    if outside:
        raise CheckpointError(f"{folder / _INDEX} names {outside[0]!r}, which is not a folder in it")
    missing = [name for name in listed if not (folder / name).is_dir()]
    if missing:
        raise CheckpointError(
            f"{folder} has no folder {', '.join(missing)}, which its {_INDEX} lists: copy the whole pipeline"
        )


def _is_component(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)
