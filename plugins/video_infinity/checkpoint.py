"""Checkpoints of a run, one file per clip and step: latents, the state of the solver and of the generator.

A file is complete or absent. Its checksum covers its content, run, step and clip. A step is complete if all clips have
it; the last two are kept. Since files belong to clips, a run may be resumed with another number of processes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.extend import CheckpointError
from hasten.files import read_sealed, seal
from hasten.weights import checksum

__all__ = ["Checkpoints", "ClipState", "read_identity", "write_identity"]

_RUN = "run.json"


@dataclass(frozen=True)
class ClipState:
    """The state of one clip after one step.

    Args:
        tensors: tensors by name; those with a frame axis hold the frames of the clip.
        facts: JSON values.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


class Checkpoints:
    """The checkpoint folder of one run.

    Args:
        folder: the folder. On several nodes it must be shared, or the nodes must compute the same clips as before.
        run: digest of what the run computes, stored in every file.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder = folder
        self._run = run

    def steps(self, clips: range) -> set[int]:
        """Numbers of completed steps for which all of ``clips`` have a file here."""
        found: set[int] | None = None
        for clip in clips:
            mine = {step for step, folder in step_folders(self.folder) if (folder / _file(clip)).exists()}
            found = mine if found is None else found & mine
        return found or set()

    def save(self, step: int, clip: int, saved: ClipState) -> None:
        """Write one clip's checkpoint.

        Raises:
            CheckpointError: the file cannot be written; older checkpoints are kept.
        """
        from safetensors.torch import save

        # Copies, because safetensors refuses shared memory, and solvers keep views of their timesteps.
        tensors = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in saved.tensors.items()
        }
        path = self._path(step, clip)
        facts = json.dumps(dict(saved.facts))
        digest = self._digest(step, clip, facts, tensors)
        write_whole(path, save(tensors, {"facts": facts, "run": self._run, "sha256": digest}))

    def load(self, step: int, clip: int) -> ClipState:
        """Read one clip's checkpoint.

        Raises:
            CheckpointError: it is damaged, or belongs to another run, step or clip.
        """
        from safetensors import SafetensorError, safe_open

        path = self._path(step, clip)
        try:
            with safe_open(path, "pt") as file:
                noted = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                saved = ClipState(tensors, json.loads(noted["facts"]))
                run = noted["run"]
                if run == self._run and noted["sha256"] != self._digest(step, clip, noted["facts"], tensors):
                    raise ValueError("what it holds does not match its checksum")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"checkpoint {path} cannot be read ({error}); delete {path.parent} to resume earlier"
            ) from error
        if run != self._run:
            raise CheckpointError(
                f"checkpoint {path} is of another run than {self.folder / _RUN} tells of; choose another folder"
            )
        return saved

    def prune(self, keep: set[int], clips: range) -> None:
        """Delete the files of ``clips`` at all steps except ``keep``, and folders that become empty."""
        for step, folder in step_folders(self.folder):
            if step in keep:
                continue
            for clip in clips:
                for file in folder.glob(f"{_file(clip)}*"):  # also partial files of killed processes
                    file.unlink(missing_ok=True)
            with suppress(OSError):  # other ranks have files in it or removed it already
                folder.rmdir()

    def _digest(self, step: int, clip: int, facts: str, tensors: Mapping[str, Tensor]) -> str:
        return checksum(json.dumps([self._run, step, clip, facts]), tensors)

    def _path(self, step: int, clip: int) -> Path:
        return self.folder / f"step-{step:05d}" / _file(clip)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: it is complete or absent, even if the machine stops.

    Raises:
        CheckpointError: it cannot be written; names the file and the reason.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror or error}); what was written before is kept. Free "
            "some space or choose another folder, and run the same command again"
        ) from error


def read_identity(folder: Path) -> dict[str, Any] | None:
    """What the run in ``folder`` computes; ``None`` if there is no run yet.

    Raises:
        CheckpointError: the file is damaged.
    """
    return read_sealed(folder / _RUN, "choose another checkpoint folder", old=False)


def write_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Record what the run in ``folder`` computes."""
    write_whole(folder / _RUN, seal(identity))


def step_folders(folder: Path) -> Iterator[tuple[int, Path]]:
    """Steps and the folders of their checkpoints; other content of ``folder`` is ignored."""
    for path in sorted(folder.glob("step-*")):
        if re.fullmatch(r"step-\d{5,}", path.name) and path.is_dir():
            yield int(path.name[5:]), path


def _file(clip: int) -> str:
    return f"clip-{clip:04d}.safetensors"


def collect(
    value: object, name: str, frames: Callable[[Tensor], Tensor | None], tensors: dict[str, Tensor]
) -> dict[str, Any]:
    """A JSON description of a solver attribute.

    Args:
        value: the attribute.
        name: its name.
        frames: ``frames(tensor)`` is the clip's part of a tensor that has the shape of the sample, ``None`` otherwise.
        tensors: receives the tensors of the attribute.

    Raises:
        TypeError: the attribute need not be stored (tables, configuration).
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    if isinstance(value, Tensor):
        part = frames(value)
        if part is None and value.numel() > 4:
            raise TypeError(name)
        tensors[name] = value if part is None else part
        return {"tensor": name, "frames": part is not None}
    if isinstance(value, (list, tuple)):
        return {
            "list": [collect(item, f"{name}.{index}", frames, tensors) for index, item in enumerate(value)]
        }
    raise TypeError(name)


def rebuild(
    described: Mapping[str, Any],
    parts: list[Mapping[str, Tensor]],
    join: Callable[[list[Tensor]], Tensor],
    device: torch.device,
) -> Any:
    """Inverse of :func:`collect` over several clips.

    Args:
        described: the description.
        parts: tensors of every clip of this rank.
        join: concatenates the parts of all clips.
        device: device of tensors with frames.
    """
    if "list" in described:
        return [rebuild(item, parts, join, device) for item in described["list"]]
    if "tensor" not in described:
        return described["value"]
    found = [part[described["tensor"]] for part in parts]
    return join(found).to(device) if described["frames"] else found[0]
