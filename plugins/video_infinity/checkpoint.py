"""Checkpoints of a run, one file per clip and step: latents, the solver's memory and the state of the generator.

A file is complete or absent, and has a checksum of what it holds, and of which run, step and clip. A step counts once
every clip has it; the last two are kept. Clips are the unit, so a run may go on with another number of processes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.extend import CheckpointError
from hasten.files import read_sealed, seal
from hasten.weights import checksum

__all__ = ["Checkpoints", "Saved", "read_identity", "write_identity"]

_RUN = "run.json"


@dataclass(frozen=True)
class Saved:
    """What one clip keeps of one step.

    Args:
        tensors: by name; those with frames hold the clip's.
        facts: JSON values.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


class Checkpoints:
    """The checkpoint folder of one run.

    Args:
        folder: where it is; on several nodes one that all of them see, or the same assignment of clips as before.
        run: digest of what the run computes, kept in every file.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder = folder
        self._run = run

    def steps(self, clips: range) -> set[int]:
        """Steps (how many are done) that all of ``clips`` have here."""
        found: set[int] | None = None
        for clip in clips:
            mine = {step for step, folder in step_folders(self.folder) if (folder / _file(clip)).exists()}
            found = mine if found is None else found & mine
        return found or set()

    def save(self, step: int, clip: int, saved: Saved) -> None:
        """Write one clip's checkpoint.

        Raises:
            CheckpointError: the disk refuses; older checkpoints are untouched.
        """
        from safetensors.torch import save

        # Copies, because the format refuses memory that is shared: solvers keep views of their own timesteps.
        tensors = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in saved.tensors.items()
        }
        path = self._path(step, clip)
        facts = json.dumps(dict(saved.facts))
        digest = self._digest(step, clip, facts, tensors)
        write_whole(path, save(tensors, {"facts": facts, "run": self._run, "sha256": digest}))

    def load(self, step: int, clip: int) -> Saved:
        """Read one clip's checkpoint.

        Raises:
            CheckpointError: it is damaged, or of another run, step or clip.
        """
        from safetensors import SafetensorError, safe_open

        path = self._path(step, clip)
        try:
            with safe_open(path, "pt") as file:
                noted = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                saved = Saved(tensors, json.loads(noted["facts"]))
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
        """Delete the files of ``clips`` at all steps but ``keep``, and folders that are empty then."""
        for step, folder in step_folders(self.folder):
            if step in keep:
                continue
            for clip in clips:
                for file in folder.glob(f"{_file(clip)}*"):  # also what a killed process left half written
                    file.unlink(missing_ok=True)
            with suppress(OSError):  # other ranks have files in it, or were quicker
                folder.rmdir()

    def _digest(self, step: int, clip: int, facts: str, tensors: Mapping[str, Tensor]) -> str:
        return checksum(json.dumps([self._run, step, clip, facts]), tensors)

    def _path(self, step: int, clip: int) -> Path:
        return self.folder / f"step-{step:05d}" / _file(clip)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is complete or absent, even if the machine stops.

    Raises:
        CheckpointError: naming the file and the operating system's reason.
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
    """What the run in ``folder`` computes, ``None`` if there is none yet.

    Raises:
        CheckpointError: the file is damaged.
    """
    return read_sealed(folder / _RUN, "choose another checkpoint folder", old=False)


def write_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Note what the run in ``folder`` computes."""
    write_whole(folder / _RUN, seal(identity))


def step_folders(folder: Path) -> Iterator[tuple[int, Path]]:
    """Steps and where their checkpoints lie; other things in ``folder`` are not ours."""
    for path in sorted(folder.glob("step-*")):
        if re.fullmatch(r"step-\d{5,}", path.name) and path.is_dir():
            yield int(path.name[5:]), path


def _file(clip: int) -> str:
    return f"clip-{clip:04d}.safetensors"


def collect(value: Any, name: str, frames: Any, tensors: dict[str, Tensor]) -> Any:
    """A JSON description of a solver attribute; its tensors go into ``tensors``.

    Args:
        value: the attribute.
        name: its name.
        frames: ``frames(tensor) -> Tensor or None``: the clip's part of a tensor that has the sample's shape.
        tensors: where tensors go.

    Raises:
        TypeError: it is of a kind that need not be kept (tables, configuration).
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
    described: Mapping[str, Any], parts: list[Mapping[str, Tensor]], join: Any, device: torch.device
) -> Any:
    """Inverse of :func:`collect` over several clips.

    Args:
        described: the description.
        parts: tensors of every clip of this rank.
        join: ``join(tensors) -> Tensor``: one tensor from the clips' parts.
        device: where tensors with frames go.
    """
    if "list" in described:
        return [rebuild(item, parts, join, device) for item in described["list"]]
    if "tensor" not in described:
        return described["value"]
    found = [part[described["tensor"]] for part in parts]
    return join(found).to(device) if described["frames"] else found[0]
