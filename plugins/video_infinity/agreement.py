"""What a run computes, in comparable form: between its processes, and between it and its checkpoints."""

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
    Saved,
    read_identity,
    step_folders,
    write_identity,
)
from hasten.plugins.video_infinity.config import VideoInfinityConfig
from hasten.plugins.video_infinity.processes import Processes, first_difference
from hasten.plugins.video_infinity.session import Session

__all__ = ["Resumed", "agree", "begin_checkpoints", "resume", "run_facts"]

_OF_ONE_RANK = {"checkpoint", "timeout_s", "join_timeout_s", "backend", "checkpoint_every"}
"""Options that change nothing about the video."""
_CLIPS, _SEED = "clips", "seed"


@dataclass(frozen=True)
class Resumed:
    """What a checkpoint folder says beside what its run computes.

    Args:
        clips: number of clips.
        seed: drawn for a call without a generator.
    """

    clips: int | None = None
    seed: int | None = None


def run_facts(target: Target, technique: str, config: VideoInfinityConfig, call: RunCall) -> dict[str, Any]:
    """Everything the video depends on, as short JSON values.

    Args:
        target: the pipeline.
        technique: this technique's name.
        config: its options.
        call: the call, before anything is filled in.
    """
    import diffusers

    import hasten

    scheduler = target.pipe.scheduler
    settings = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    options = {k: v for k, v in config.model_dump(mode="json").items() if k not in _OF_ONE_RANK}
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


def agree(facts: Mapping[str, Any], config: VideoInfinityConfig, processes: Processes) -> None:
    """Make sure that all processes are about to compute the same, before they exchange anything else.

    Raises:
        RankError: they are not; the same message on all of them.
    """
    processes.agree({**facts, "checkpoint_every": config.checkpoint_every})


def resume(folder: Path | None, facts: Mapping[str, Any], processes: Processes) -> Resumed:
    """What the checkpoints in ``folder`` say of the run to go on with, nothing for a new one.

    Raises:
        CheckpointError: the folder holds another run, on any rank.
    """
    if folder is None:
        return Resumed()
    problem, found = None, Resumed()
    try:
        before = read_identity(folder)
        if before is not None:
            found = Resumed(before.pop(_CLIPS, None), before.pop(_SEED, None))
            problem = _difference(before, facts, folder)
        elif any(step_folders(folder)):
            problem = f"checkpoint folder {folder} has steps but no run.json, which says what they are: choose another"
    except CheckpointError as error:
        problem = str(error)
    answers = processes.gather((problem, found))
    problems = [problem for problem, _ in answers if problem is not None]
    if problems:
        raise CheckpointError(problems[0])
    return next((found for _, found in answers if found.clips is not None), Resumed())


def begin_checkpoints(session: Session, folder: Path, facts: Mapping[str, Any], seed: int | None) -> None:
    """Find the newest step that every clip has, read it, and note what the run computes.

    Raises:
        CheckpointError: a checkpoint is damaged, on any rank; the same message on all of them.
        ConfigError: several generators, of which one state would be kept.
    """
    processes, clips = session.processes, session.places.here
    generators = facts["arguments"]["generator"]
    if isinstance(generators, list) and len(generators) > 1:
        raise ConfigError(
            "checkpoint keeps the state of one generator; call with one video and one generator"
        )
    identity = {**facts, _CLIPS: len(session.places.clips), _SEED: seed}
    store = Checkpoints(folder, _digest(json.dumps(identity, sort_keys=True).encode()))
    steps = set.intersection(*processes.gather(store.steps(clips)))
    session.checkpoints = store
    session.resume_at = max(steps, default=0)
    session.saved = _read(store, session.resume_at, clips, processes) if session.resume_at else []
    if read_identity(folder) is None:  # on every rank: machines may have disks of their own
        write_identity(folder, identity)


def _read(store: Checkpoints, step: int, clips: range, processes: Processes) -> list[Saved]:
    """The checkpoints of this rank's clips, before any rank goes on from its own."""
    problem, saved = None, []
    try:
        saved = [store.load(step, clip) for clip in clips]
    except CheckpointError as error:
        problem = str(error)
    problems = [other for other in processes.gather(problem) if other is not None]
    if problems:
        raise CheckpointError(problems[0])
    return saved


def _difference(before: Mapping[str, Any], facts: Mapping[str, Any], folder: Path) -> str | None:
    found = first_difference(before, facts)
    if found is None:
        return None
    name, old, value = found
    return (
        f"checkpoint folder {folder} holds a run with another {name} ({old!r} there, {value!r} now): repeat "
        "that run's command to resume it, or choose another folder"
    )


def _short(value: Any) -> Any:
    """A JSON value that is equal for equal arguments."""
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
    """Digest of name, shape and sixteen numbers of every parameter: enough to tell checkpoints apart, and fast."""
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        row = parameter.detach().flatten()[:16].float().cpu()
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode() + row.numpy().tobytes())
    return digest.hexdigest()[:16]


@cache
def _code() -> str:
    """Digest of all source files: a version number does not change with every edit."""
    import hasten

    digest = hashlib.sha256()
    root = Path(hasten.__file__).parent
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
