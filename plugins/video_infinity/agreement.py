"""What a run computes, in comparable form: between its processes, and between it and its checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten._errors import CheckpointError
from hasten._run import RunCall
from hasten._target import Target
from hasten.plugins.video_infinity.checkpoint import Checkpoints, read_identity, write_identity
from hasten.plugins.video_infinity.config import VideoInfinityConfig
from hasten.plugins.video_infinity.processes import Processes, first_difference
from hasten.plugins.video_infinity.session import Session

__all__ = ["begin_checkpoints", "resolve_checkpoint", "run_facts"]

_OF_ONE_RANK = {"checkpoint", "timeout_s", "join_timeout_s", "backend", "checkpoint_every"}
"""Options that change nothing about the video."""
_CLIPS = "clips"


def run_facts(target: Target, config: VideoInfinityConfig, call: RunCall) -> dict[str, Any]:
    """Everything the video depends on, as short JSON values."""
    import diffusers

    import hasten

    scheduler = target.pipe.scheduler
    settings = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    options = {k: v for k, v in config.model_dump(mode="json").items() if k not in _OF_ONE_RANK}
    arguments = {name: _short(value) for name, value in call.arguments.items() if name != "output_type"}
    return {
        "version of hasten": hasten.__version__,
        "code of video_infinity": _code(),
        "version of torch": torch.__version__,
        "version of diffusers": diffusers.__version__,
        "pipeline": target.name,
        "options": options,
        "arguments": arguments,
        "scheduler": [type(scheduler).__name__, _digest(repr(sorted(settings.items())).encode())],
        "weights": {name: _weights(module) for name, module in target.denoisers.items()},
    }


def resolve_checkpoint(folder: Path | None, facts: Mapping[str, Any], processes: Processes) -> int | None:
    """Number of clips of the run whose checkpoints are in ``folder``, ``None`` for a new one.

    Raises:
        CheckpointError: the folder holds another run, on any rank.
    """
    if folder is None:
        return None
    problem, clips = None, None
    try:
        before = read_identity(folder)
        if before is not None:
            clips = before.pop(_CLIPS, None)
            problem = _difference(before, facts, folder)
    except CheckpointError as error:
        problem = str(error)
    answers = processes.gather((problem, clips))
    problems = [problem for problem, _ in answers if problem is not None]
    if problems:
        raise CheckpointError(problems[0])
    return next((clips for _, clips in answers if clips is not None), None)


def begin_checkpoints(session: Session, folder: Path, facts: Mapping[str, Any]) -> None:
    """Find the newest step that every clip has, and note what the run computes."""
    processes, clips = session.processes, session.places.here
    store = Checkpoints(folder)
    steps = set.intersection(*processes.gather(store.steps(clips)))
    session.checkpoints = store
    session.resume_at = max(steps, default=0)
    if processes.rank == 0 and read_identity(folder) is None:
        write_identity(folder, {**facts, _CLIPS: len(session.places.clips)})


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
    if isinstance(value, (list, tuple)):
        return [_short(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _short(item) for key, item in value.items()}
    return getattr(value, "__qualname__", type(value).__qualname__)


def _weights(module: torch.nn.Module) -> str:
    """Digest of names, shapes and one row of every parameter: enough to tell checkpoints apart, and fast."""
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        row = parameter.detach().flatten()[:16].float().cpu()
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode() + row.numpy().tobytes())
    return digest.hexdigest()[:16]


def _code() -> str:
    """Digest of this technique's source files: a version number does not change with every edit."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
