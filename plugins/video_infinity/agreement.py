"""Descriptions of a run that can be compared, between its processes and with its checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hasten.extend import CheckpointError, ConfigError, RunCall, Target
from hasten.plugins.video_infinity.checkpoint import (
    Checkpoints,
    read_identity,
    step_folders,
    write_identity,
)
from hasten.plugins.video_infinity.config import VideoInfinityConfig
from hasten.plugins.video_infinity.process_mesh import ProcessMesh, first_difference
from hasten.plugins.video_infinity.session import Session

__all__ = ["Resumed", "agree", "begin_checkpoints", "resume", "run_facts"]

_NOT_COMPARED = {"checkpoint", "timeout_s", "join_timeout_s", "backend", "checkpoint_every"}
"""Options that do not affect the video."""
_CLIPS, _SEED = "clips", "seed"


@dataclass(frozen=True)
class Resumed:
    """What a resumed run takes from its checkpoint folder.

    Args:
        clips: number of clips; ``None`` for a new run.
        seed: the seed that was drawn, if the call has no generator.
    """

    clips: int | None = None
    seed: int | None = None


def run_facts(target: Target, technique: str, config: VideoInfinityConfig, call: RunCall) -> dict[str, Any]:
    """Everything the video depends on, as short JSON values.

    Args:
        target: the pipeline.
        technique: name of this technique.
        config: options of this technique.
        call: the call as the user made it.
    """
    import diffusers

    import hasten

    scheduler = target.pipe.scheduler
    settings = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    options = {k: v for k, v in config.model_dump(mode="json").items() if k not in _NOT_COMPARED}
    arguments = {name: _short(value) for name, value in call.arguments.items() if name != "output_type"}
    return {
        "version of hasten": hasten.__version__,
        "code of hasten": _code(),
        "version of torch": torch.__version__,
        "version of diffusers": diffusers.__version__,
        "pipeline": target.name,
        "options": options,
        "other techniques": {
            other: dict(given) for other, given in call.options.items() if other != technique
        },
        "arguments": arguments,
        "scheduler": [type(scheduler).__name__, _digest(repr(sorted(settings.items())).encode())],
        "weights": {
            name: _weights(part)
            for name, part in target.pipe.components.items()
            if isinstance(part, nn.Module)
        },
    }


def agree(facts: Mapping[str, Any], config: VideoInfinityConfig, processes: ProcessMesh) -> None:
    """Check that all processes are about to compute the same video, before they exchange anything else.

    Raises:
        RankError: they are not; all processes raise the same message.
    """
    processes.agree({**facts, "checkpoint_every": config.checkpoint_every})


def resume(folder: Path | None, facts: Mapping[str, Any], processes: ProcessMesh) -> Resumed:
    """Number of clips and seed of the run whose checkpoints are in ``folder``.

    Raises:
        CheckpointError: on any rank, the folder holds another run.
    """
    if folder is None:
        return Resumed()
    mine = processes.all_or_none(lambda: _earlier_run(folder, facts), CheckpointError)
    return next((found for found in processes.gather(mine) if found.clips is not None), Resumed())


def begin_checkpoints(session: Session, folder: Path, facts: Mapping[str, Any], seed: int | None) -> None:
    """Read the newest step that all clips have, and record what the run computes.

    Raises:
        CheckpointError: a checkpoint is damaged on any rank; all ranks raise the same message.
        ConfigError: the call has several generators; a checkpoint stores the state of one.
    """
    processes, clips = session.processes, session.assignment.here
    generators = facts["arguments"]["generator"]
    if isinstance(generators, list) and len(generators) > 1:
        raise ConfigError(
            "checkpoint keeps the state of one generator; call with one video and one generator"
        )
    identity = {**facts, _CLIPS: len(session.assignment.clips), _SEED: seed}
    store = Checkpoints(folder, _digest(json.dumps(identity, sort_keys=True).encode()))
    steps = set.intersection(*processes.gather(store.steps(clips)))
    session.checkpoints = store
    session.resume_at = max(steps, default=0)
    if step := session.resume_at:
        # All ranks read before any of them continues.
        session.saved = processes.all_or_none(
            lambda: [store.load(step, clip) for clip in clips], CheckpointError
        )
    if read_identity(folder) is None:  # on every rank: machines may have separate disks
        write_identity(folder, identity)


def _earlier_run(folder: Path, facts: Mapping[str, Any]) -> Resumed:
    """What ``folder`` on this rank says of an earlier run.

    Raises:
        CheckpointError: it is another run, or the folder is damaged.
    """
    before = read_identity(folder)
    if before is None:
        if any(step_folders(folder)):
            raise CheckpointError(
                f"checkpoint folder {folder} has steps but no run.json, which says what they are: choose another"
            )
        return Resumed()
    found = Resumed(before.pop(_CLIPS, None), before.pop(_SEED, None))
    if difference := first_difference(before, facts):
        name, old, value = difference
        raise CheckpointError(
            f"checkpoint folder {folder} holds a run with another {name} ({old!r} there, {value!r} now): repeat "
            "that run's command to resume it, or choose another folder"
        )
    return found


def _short(value: object) -> Any:
    """A short JSON value; equal arguments have equal values."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Generator):
        return _digest(value.get_state().numpy().tobytes())
    if isinstance(value, Tensor):
        return _digest(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    if isinstance(value, (np.ndarray, Image.Image)):
        pixels = np.ascontiguousarray(value)
        return _digest(f"{pixels.shape}".encode() + pixels.tobytes())
    if isinstance(value, (list, tuple)):
        return [_short(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _short(item) for key, item in value.items()}
    return getattr(value, "__qualname__", type(value).__qualname__)


def _weights(module: nn.Module) -> str:
    """Digest of the name, shape and first sixteen values of every parameter: fast, and tells checkpoints apart."""
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        row = parameter.detach().flatten()[:16].float().cpu()
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode() + row.numpy().tobytes())
    return digest.hexdigest()[:16]


@cache
def _code() -> str:
    """Digest of all source files, since not every edit changes the version number."""
    import hasten

    digest = hashlib.sha256()
    root = Path(hasten.__file__).parent
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
