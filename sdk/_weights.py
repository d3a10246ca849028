"""Reading files of tensors: weights only, no code, sizes checked against the file, and every value finite."""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError

from hasten._errors import CheckpointError
from hasten._files import check_file, inside, problems, read_json
from hasten._records import write_atomically

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "REMEDY",
    "built",
    "check_finite",
    "check_fit",
    "checksum",
    "fingerprint",
    "put",
    "read_header",
    "read_sealed_tensors",
    "read_tensors",
    "read_torch",
    "read_weights",
    "require",
    "save_sealed_tensors",
]

ModelT = TypeVar("ModelT", bound="nn.Module")
NotedT = TypeVar("NotedT", bound=BaseModel)

REMEDY = "download it again from its publisher"
_SEAL = "sha256"
_PROBED = 4096


def read_tensors(path: Path, remedy: str = REMEDY, *, ignored: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Args:
        path: the file.
        remedy: what the user can do, for messages.
        ignored: beginnings of names that are left out, whatever they hold.

    Raises:
        CheckpointError: see :func:`hasten._files.check_file`; or it is no safetensors file, is cut off, or holds NaN or
            infinity; the message names the tensor.
    """
    with _opened(path, remedy) as file:
        names = [name for name in file.keys() if not name.startswith(ignored)]  # noqa: SIM118
        tensors = {name: file.get_tensor(name) for name in names}
    check_finite(tensors, path, remedy)
    return tensors


def save_sealed_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> str:
    """Write a safetensors file, complete or not at all, with a checksum of all of it in its header.

    Args:
        path: the file.
        tensors: what it holds, on any device.
        notes: texts for its header.

    Returns:
        The checksum.

    Raises:
        HastenError: the disk refuses.
    """
    from safetensors.torch import save

    # Copies, because the format refuses memory that is shared.
    own = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    digest = checksum(json.dumps(dict(notes), sort_keys=True), own)
    write_atomically(path, save(own, {**notes, _SEAL: digest}))
    return digest


def read_sealed_tensors(
    path: Path, kind: type[NotedT], remedy: str = REMEDY
) -> tuple[NotedT, dict[str, Tensor]]:
    """Notes, as a model, and tensors of what :func:`save_sealed_tensors` wrote; a missing checksum is accepted.

    Raises:
        CheckpointError: see :func:`read_tensors`; a note is missing or wrong, or it is another file than was written.
    """
    with _opened(path, remedy) as file:
        notes = file.metadata() or {}
    found = notes.pop(_SEAL, None)
    try:
        noted = kind.model_validate_strings(notes)
    except ValidationError as error:
        raise CheckpointError(f"{path}: {problems(error)} in its header; {remedy}") from error
    tensors = read_tensors(path, remedy)
    if found is not None and found != checksum(json.dumps(notes, sort_keys=True), tensors):
        raise CheckpointError(f"{path} is damaged or was edited (its checksum does not match); {remedy}")
    return noted, tensors


def checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a text and of names, types, shapes and bytes of dense tensors on the CPU, in hexadecimal digits."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_header(path: Path, remedy: str = REMEDY) -> dict[str, Tensor]:
    """Names, shapes and types of the tensors in a safetensors file, as tensors on the meta device.

    Raises:
        CheckpointError: see :func:`read_tensors`.
    """
    with _opened(path, remedy) as file:
        return {name: file.get_tensor(name).to("meta") for name in file.keys()}  # noqa: SIM118


@contextmanager
def _opened(path: Path, remedy: str) -> Iterator[Any]:
    """A safetensors file; the library compares its header with its length before anything else is read."""
    from safetensors import SafetensorError, safe_open

    check_file(path, remedy)
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a safetensors file: {_first_line(error)}; {remedy}"
        ) from error


def read_weights(
    path: Path,
    remedy: str = REMEDY,
    *,
    within: Collection[tuple[str, ...]] = (),
    ignored: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """The state dict of a torch file, a safetensors file, or a folder of shards with an index.

    Args:
        path: file or folder.
        remedy: what the user can do, for messages.
        within: keys under which a torch file may keep the state dict, tried in turn; else it is the whole content.
        ignored: beginnings of names that are left out, whatever they hold.

    Raises:
        CheckpointError: it holds anything but tensors and plain values (nothing of it is executed), or is damaged; the
            message names file and key.
    """
    if path.is_dir():
        return _read_shards(path, remedy, ignored)
    if path.suffix == ".safetensors":
        return read_tensors(path, remedy, ignored=ignored)
    content: Any = read_torch(path, remedy)
    place = str(path)
    for keys in within:
        if keys[0] in content:
            for key in keys:
                place += f"[{key!r}]"
                content = content.get(key) if isinstance(content, Mapping) else None
            break
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{place} is not a dictionary of weights; {remedy}")
    tensors = {str(name): value for name, value in content.items() if not str(name).startswith(ignored)}
    _check_tensors(tensors, place, path.stat().st_size, remedy)
    check_finite(tensors, place, remedy)
    return tensors


def read_torch(path: Path, remedy: str = REMEDY) -> dict[str, Any]:
    """The mapping in a torch file: tensors and plain values, on the CPU; values are not looked at.

    Raises:
        CheckpointError: it holds anything else (nothing of it is executed), or is damaged.
    """
    size = check_file(path, remedy)
    zipped = zipfile.is_zipfile(path)
    if zipped:
        _check_archive(path, size, remedy)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} can't be read as weights: it contains other objects and was refused; nothing in it was "
            f"executed; {remedy}. ({_first_line(error)})"
        ) from error
    # A damaged stream of pickle operations fails in any way: it pops from an empty stack, or calls with odd arguments.
    except Exception as error:
        raise CheckpointError(
            f"{path} can't be read as a torch checkpoint: {_first_line(error)}; {remedy}"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not a dictionary of weights; {remedy}"
        )
    return dict(content)


def _check_archive(path: Path, size: int, remedy: str) -> None:
    """torch stores without compression; what would unpack to more than the file has was not written by it."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} can't be read as a torch checkpoint: {error}; {remedy}") from error
    if sum(member.file_size for member in members) > size:
        raise CheckpointError(f"{path} is a compressed archive, not a torch checkpoint; {remedy}")


def _check_tensors(tensors: Mapping[str, Any], place: str, size: int, remedy: str) -> None:
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{place}: {name} is a {type(value).__name__} where a tensor is expected; {remedy}"
            )
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise CheckpointError(f"{place}: {name} is not a plain dense tensor; {remedy}")
        if value.numel() * value.element_size() > size:  # a view that repeats the same bytes
            raise CheckpointError(
                f"{place}: {name} has the shape {tuple(value.shape)}, larger than the whole file; {remedy}"
            )


def _read_shards(folder: Path, remedy: str, ignored: tuple[str, ...]) -> dict[str, Tensor]:
    index = next(iter(sorted(folder.glob("*.index.json"))), None)
    if index is None:
        raise CheckpointError(f"{folder} has no *.index.json that lists its shards; {remedy}")
    table = read_json(index, "the list of shards", remedy).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(n, str) for n in table.values()):
        raise CheckpointError(f"{index}: weight_map is not a mapping from names to files; {remedy}")
    found: dict[str, Tensor] = {}
    for name in sorted(set(table.values())):
        shard = inside(folder, name, index, remedy)
        if not shard.is_file():
            raise CheckpointError(f"{folder} lacks {name}, which {index.name} names; {remedy}")
        tensors = read_weights(shard, remedy, ignored=ignored)
        listed = {key for key, file in table.items() if file == name and not key.startswith(ignored)}
        if odd := sorted(listed ^ set(tensors)):
            where = "is missing from" if odd[0] in listed else f"is not listed in {index.name} for"
            raise CheckpointError(
                f"{odd[0]} {where} {shard} ({len(odd)} keys differ from the index); {remedy}"
            )
        found |= tensors
    return found


def require(
    state: Mapping[str, Tensor],
    key: str,
    what: str,
    *,
    ndim: int | None = None,
    place: object = "the checkpoint",
) -> Tensor:
    """The tensor ``key`` of a checkpoint.

    Args:
        state: the checkpoint.
        key: its name.
        what: kind of checkpoint that was expected, for the message.
        ndim: dimensions it has to have.
        place: where ``state`` comes from, for the message.

    Raises:
        CheckpointError: it is missing, or has other dimensions or an empty one.
    """
    if key not in state:
        raise CheckpointError(f"{place} has no {key!r}, so it is not {what}")
    tensor = state[key]
    if (ndim is not None and tensor.ndim != ndim) or not tensor.numel():
        raise CheckpointError(f"{place}: {key} has shape {tuple(tensor.shape)}, which {what} cannot have")
    return tensor


def check_fit(
    wanted: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    what: str,
    source: object,
    remedy: str = "",
    *,
    origins: Mapping[str, Tensor] | None = None,
) -> None:
    """Refuse tensors that are not those of a model.

    Args:
        wanted: of the model, perhaps on the meta device.
        state: given.
        what: the model, for the message.
        source: where ``state`` comes from, for the message.
        remedy: what the user can do, for the message.
        origins: the tensors of the file that ``state`` was made of, by their names there.

    Raises:
        CheckpointError: a name is missing, left over, or has another shape, or whole numbers where floating-point ones
            belong; up to eight are named.
    """
    odd = [f"missing {name} {tuple(value.shape)}" for name, value in wanted.items() if name not in state]
    for name, given in state.items():
        there, value = _origin(name, given, origins or {}), wanted.get(name)
        if value is None:
            odd.append(f"unexpected {name} {tuple(given.shape)}{there}")
        elif given.shape != value.shape:
            odd.append(f"{name} has shape {tuple(given.shape)} instead of {tuple(value.shape)}{there}")
        elif (given.is_floating_point(), given.is_complex()) != (
            value.is_floating_point(),
            value.is_complex(),
        ):
            odd.append(f"{name} has numbers of type {given.dtype} instead of {value.dtype}{there}")
    if odd:
        shown = "; ".join(odd[:8]) + (f"; and {len(odd) - 8} more" if len(odd) > 8 else "")
        raise CheckpointError(f"{source} does not fit {what}: {shown}" + (f"; {remedy}" if remedy else ""))


def _origin(name: str, given: Tensor, origins: Mapping[str, Tensor]) -> str:
    """What a tensor, or the one it is a part of, is called in the file, where it has another name there."""
    for key, value in origins.items():
        if key != name and (given is value or given._base is value):
            return f" ({key} there)"
    return ""


def built(kind: Callable[..., ModelT], config: Mapping[str, Any], source: object) -> ModelT:
    """A model on the meta device, of a configuration that was read off a checkpoint's shapes.

    Raises:
        CheckpointError: there is no such model.
    """
    try:
        with torch.device("meta"):
            return kind(**config)
    # Shapes that belong to no model fail wherever its constructor first divides or compares them.
    except Exception as error:
        name = getattr(kind, "__name__", kind)
        raise CheckpointError(
            f"{source} has shapes that do not describe a {name} ({_first_line(error)}); {REMEDY}"
        ) from error


def put(model: nn.Module, state: Mapping[str, Tensor], source: object, origins: Mapping[str, Tensor]) -> None:
    """Put ``state`` (our names) into ``model``, which may be on the meta device; ``origins`` as for :func:`check_fit`.

    Raises:
        CheckpointError: see :func:`check_fit`.
    """
    what = f"a {type(model).__name__} of this configuration"
    check_fit(model.state_dict(), state, what, source, origins=origins)
    own = {name: value.clone() if value.is_floating_point() else value for name, value in state.items()}
    model.load_state_dict(own, assign=True)


def check_finite(tensors: Mapping[str, Tensor], place: object, remedy: str = REMEDY) -> None:
    """Refuse NaN and infinity.

    Raises:
        CheckpointError: names the first tensor that has one.
    """
    for name, value in tensors.items():
        if value.is_meta or not value.numel() or not (value.is_floating_point() or value.is_complex()):
            continue
        parts = torch.view_as_real(value) if value.is_complex() else value
        # Least and greatest instead of isfinite, which would take a mask as large as the tensor.
        low, high = (parts.float() if parts.element_size() == 1 else parts).aminmax()
        if not (low.isfinite() and high.isfinite()):
            raise CheckpointError(f"{place}: {name} contains NaN or infinity; {remedy}")


def fingerprint(config: Mapping[str, Any], tensors: Iterable[Tensor]) -> str:
    """A digest of a model: of its configuration without private keys, and of the first values of some of its weights.

    Args:
        config: values that have a text; private keys begin with an underscore.
        tensors: floating point, of any shape and device; their number formats count.

    Returns:
        32 hexadecimal digits.
    """
    public = {key: value for key, value in config.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(public, sort_keys=True, default=str).encode())
    for tensor in tensors:
        values = tensor.detach().flatten()[:_PROBED]
        digest.update(f"{values.dtype}".encode() + values.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
