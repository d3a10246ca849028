"""Loading a local folder in the layout of diffusers, with every file of it checked.

diffusers and transformers go on with random weights where a tensor is missing, pass over those they do not know, and
answer a damaged file with whatever error comes first. Here each is a :class:`CheckpointError` that names the file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hasten._errors import CheckpointError, HastenError
from hasten._files import check_file, inside, read_json
from hasten._weights import check_finite, check_fit, read_header

__all__ = ["load_checked"]


def load_checked(
    load: Callable[[], Any], folder: Path, remedy: str, *, replaced: Collection[str] = ()
) -> Any:
    """What ``load`` makes of a folder, with the folder's files compared with it.

    Args:
        load: loads a pipeline or a model from ``folder``.
        folder: local; of a pipeline with one folder for each component, or of one model.
        remedy: what the user can do, for messages.
        replaced: components that do not come from the folder.

    Raises:
        CheckpointError: a JSON file is damaged or no mapping, a file of weights is damaged, an index leads out of the
            folder, or the weights are not those of the model: a tensor is missing, left over, of another shape or kind,
            or not finite.
    """
    places = _places(folder, remedy)
    for place in places:
        for file in sorted(place.glob("*.json")):
            content = read_json(file, "its settings", remedy)
            if file.name.endswith(".index.json"):
                _check_index(file, content, remedy)
    headers = {place: _header(place, remedy) for place in places}
    try:
        loaded = load()
    except HastenError:
        raise
    # tokenizers raise plain Exceptions, and odd settings fail wherever they are first used.
    except Exception as error:
        raise CheckpointError(
            f"{folder} cannot be loaded, because its files or the given options do not match: "
            f"{type(error).__name__}: {error}; {remedy}"
        ) from error
    for place, header in headers.items():
        model = loaded if place == folder else getattr(loaded, place.name, None)
        if header and isinstance(model, nn.Module) and place.name not in replaced:
            _compare(model, header, place, remedy)
    return loaded


def _places(folder: Path, remedy: str) -> list[Path]:
    """Folders of the components of a pipeline, or the folder itself of a model."""
    index = folder / "model_index.json"
    if not index.is_file():
        return [folder]
    names = read_json(index, "the list of components", remedy)
    return [inside(folder, name, index, remedy) for name in names if name and (folder / name).is_dir()]


def _check_index(file: Path, content: dict[str, Any], remedy: str) -> None:
    table = content.get("weight_map")
    if not isinstance(table, dict):
        raise CheckpointError(f"{file}: weight_map is not a mapping from names to files; {remedy}")
    for name in sorted(set(map(str, table.values()))):
        check_file(inside(file.parent, name, file, remedy), remedy)


def _header(place: Path, remedy: str) -> dict[str, torch.Tensor]:
    """Names, shapes and types of the tensors in all safetensors files of a folder, on the meta device."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(place.glob("*.safetensors")):
        found |= read_header(file, remedy)
    return found


def _compare(model: nn.Module, header: dict[str, torch.Tensor], place: Path, remedy: str) -> None:
    from diffusers import ModelMixin

    state = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    if getattr(model, "hf_quantizer", None) is None:
        what = f"the {type(model).__name__} of its config.json"
        if isinstance(model, ModelMixin):
            check_fit(state, header, what, place, remedy)
        else:
            _compare_loosely(model, header, what, place, remedy)
    check_finite(state, place, remedy)


def _compare_loosely(
    model: nn.Module, header: dict[str, torch.Tensor], what: str, place: Path, remedy: str
) -> None:
    """For transformers, which renames tensors between its versions and stores tied ones once: by their number."""
    shared = {name: value for name, value in model.state_dict().items() if name in header}
    check_fit(shared, {name: header[name] for name in shared}, what, place, remedy)
    names = [name for name, _ in model.named_parameters()]  # tied ones come once
    if len(header) < len(names):
        missing = [name for name in names if name not in header] or names
        raise CheckpointError(
            f"{place} does not fit {what}: {len(header)} tensors are there, and it has {len(names)}; missing "
            f"{', '.join(missing[:3])}; {remedy}"
        )
