"""Reading published checkpoint files: weights only, no code, exact about every key and shape."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten._errors import CheckpointError

__all__ = ["fetch", "load_exactly", "read_state", "require"]

State = dict[str, Tensor]


def fetch(source: str | Path, name: str, **options: Any) -> Path:
    """The file or folder ``name`` of a local folder, or of a hub repository, fetched by its name.

    Raises:
        CheckpointError: it is not there.
    """
    folder = Path(source)
    if folder.is_dir():
        found = folder / name
        if not found.exists():
            raise CheckpointError(
                f"{folder} has no {name}; the files of this variant keep their published names"
            )
        return found
    if isinstance(source, Path) or str(source).count("/") != 1:
        raise CheckpointError(f"{source} is no folder here and no hub repository (owner/name)")
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        if Path(name).suffix:
            return Path(hf_hub_download(str(source), name, **options))
        return Path(snapshot_download(str(source), allow_patterns=f"{name}/*", **options)) / name
    except Exception as error:
        raise CheckpointError(f"{name} could not be fetched from {source}: {error}") from error


def read_state(path: Path) -> dict[str, Any]:
    """The content of a checkpoint: a torch file, a safetensors file, or a folder of shards with an index.

    Raises:
        CheckpointError: it holds anything but tensors and plain values (nothing of it is executed), or cannot be read.
    """
    if path.is_dir():
        return _read_shards(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds something other than weights and was refused; nothing in it was executed. "
            f"Get the file from its publisher. ({str(error).splitlines()[0]})"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} is no readable torch checkpoint: {error}") from error
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a dictionary of weights")
    return dict(state)


def _read_shards(folder: Path) -> dict[str, Any]:
    for index in sorted(folder.glob("*.index.json")):
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{folder} lacks {missing[0]}, which {index.name} names")
        return {key: value for name in names for key, value in read_state(folder / name).items()}
    raise CheckpointError(f"{folder} has no *.index.json that lists its shards")


def require(state: Mapping[str, Any], key: str, what: str) -> Tensor:
    """The tensor ``key`` of a checkpoint.

    Raises:
        CheckpointError: it is missing; ``what`` says what kind of checkpoint was expected.
    """
    if key not in state:
        raise CheckpointError(f"the checkpoint has no {key!r}, so it is not {what}")
    tensor: Tensor = state[key]
    return tensor


def load_exactly(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Put ``state`` (our names) into ``model``, which may be on the meta device.

    Raises:
        CheckpointError: a key is missing, left over, or has another shape; all of them are named.
    """
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    problems = [f"missing {name} {wanted[name]}" for name in wanted if name not in given]
    problems += [f"unexpected {name} {given[name]}" for name in given if name not in wanted]
    problems += [
        f"{name} has shape {given[name]} instead of {wanted[name]}"
        for name in wanted
        if name in given and given[name] != wanted[name]
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise CheckpointError(
            f"{source} does not fit a {type(model).__name__} of this configuration: {shown}"
        )
    own = {name: value.clone() if value.is_floating_point() else value for name, value in state.items()}
    model.load_state_dict(own, assign=True)
