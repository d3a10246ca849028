"""The state of a divided run: its clips, what they attend to, and its progress."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, PositiveInt

from hasten.extend import ConfigError, FrameMixing, Pipeline, Prediction, RunCall, Target, UnsupportedError
from hasten.files import read_fields
from hasten.plugins.video_infinity.checkpoint import Checkpoints, ClipState
from hasten.plugins.video_infinity.config import VideoInfinityConfig
from hasten.plugins.video_infinity.exchange import ClipAssignment, Exchange
from hasten.plugins.video_infinity.lockstep import Lockstep
from hasten.plugins.video_infinity.process_mesh import ProcessMesh
from hasten.schedules.clips import Scope, assign, clips_for, global_frames, partition

__all__ = [
    "Session",
    "assign_clips",
    "current_session",
    "make_scopes",
    "require_positions",
    "trained_frames",
    "video_frames",
]

_DIFFUSION_BIAS = 10.0
_DIFFUSION_SWITCH = 0.836
"""Flow time with the signal-to-noise ratio of timestep 800 in the schedule of VideoCrafter2."""
_FLOW_BIAS = 3.0
"""Gives a global frame a twentieth of the weight of a neighbour."""


@dataclass
class Session:
    """The state of one run on one rank.

    Args:
        target: the pipeline.
        config: options of the technique.
        mixing: the layers of the model family that mix frames.
        processes: the processes.
        assignment: which rank computes which clips.
        scopes: the frames that each clip of the video attends to.
        steps: denoising steps of the call.
        generator: a generator in the same state on all ranks.
        trained: number of frames the model was trained with, if known.
    """

    target: Target
    config: VideoInfinityConfig
    mixing: FrameMixing
    processes: ProcessMesh
    assignment: ClipAssignment
    scopes: tuple[Scope, ...]
    steps: int
    generator: Any
    trained: int | None
    exchange: Exchange = field(init=False)
    checkpoints: Checkpoints | None = None
    resume_at: int = 0
    """Number of steps that a checkpoint replaces."""
    saved: list[ClipState] = field(default_factory=list)
    """States of the clips of this rank after those steps."""
    done: int = 0
    """Number of steps done, including those that a checkpoint replaces."""
    texts: list[Mapping[str, Any]] = field(default_factory=list)
    """Prompt arguments of the denoiser, for each prompt of the time line."""
    whole_at_end: bool = False
    """Whether the pipeline decodes: after the last step it gets the latents of the whole video."""
    pending_branch: torch.Tensor | None = None
    """The output of the first guidance branch; filled in later on ranks that do not compute it."""

    def __post_init__(self) -> None:
        self.exchange = Exchange(self.assignment, self.processes.transport(), Lockstep())

    @property
    def frames(self) -> int:
        """Frames of the whole video."""
        return self.scopes[0].frames

    @property
    def held(self) -> range:
        """Frames of this rank."""
        return self.assignment.frames_of(self.assignment.rank)

    @property
    def skipping(self) -> bool:
        """Whether a checkpoint replaces the step in progress."""
        return self.done < self.resume_at

    def biases(self, level: float) -> tuple[float, float]:
        """``(beta_loc, beta_glob)`` of a step at flow time ``level``."""
        predicted = self.target.layout.prediction(self.target.pipe)
        flow = predicted not in (Prediction.EPSILON, Prediction.VP_VELOCITY)
        bias, switch = self.config.bias, self.config.switch
        if bias is None:
            bias = _FLOW_BIAS if flow else _DIFFUSION_BIAS
        if switch == "auto":
            switch = math.inf if flow else _DIFFUSION_SWITCH
        return (0.0, bias) if level >= switch else (bias, 0.0)


current_session: ContextVar[Session | None] = ContextVar("hasten_session", default=None)


def video_frames(target: Target, mixing: FrameMixing, call: RunCall) -> int:
    """Length of the video of a call, in temporal patches of the denoiser.

    Raises:
        ConfigError: the frames do not fill whole patches, or the autoencoder cannot produce this number of frames.
    """
    size = target.layout.call_size(call.pipe, call.arguments)
    latent = size.frames or 1
    asked = call.arguments.get("num_frames")
    factor = getattr(call.pipe, getattr(target.layout, "frame_factor", ""), None)
    if isinstance(factor, int) and factor > 1 and asked is not None and (asked - 1) % factor:
        lower = (asked - 1) // factor * factor + 1
        raise ConfigError(
            f"num_frames={asked} cannot be made: the autoencoder of {target.name} makes 1 frame and then "
            f"{factor} at a time; use {lower} or {lower + factor}"
        )
    patch = mixing.patch(call.pipe)
    if latent % patch:
        raise ConfigError(
            f"num_frames={asked} is {latent} latent frames, which do not fill temporal patches of {patch}"
        )
    return latent // patch


def assign_clips(
    config: VideoInfinityConfig, frames: int, processes: ProcessMesh, clips: int | None = None
) -> ClipAssignment:
    """Divide a video of ``frames`` frames into clips and assign them to ranks.

    Args:
        config: options of the technique.
        frames: number of frames of the whole video.
        processes: the processes.
        clips: number of clips of the run that is resumed, if any.

    Raises:
        ConfigError: there are more ranks than clips or frames.
    """
    ranks = processes.clip_ranks
    if frames < ranks:
        raise ConfigError(
            f"{frames} latent frames cannot occupy {ranks} processes; start fewer, or ask for more frames"
        )
    if clips is None:
        clips = config.clips or (clips_for(frames, config.clip_frames) if config.clip_frames else ranks)
    if clips > frames:
        raise ConfigError(
            f"clips={clips} is more than the video's {frames} latent frames; use at most {frames} clips, or ask for "
            "more frames"
        )
    if clips < ranks:
        raise ConfigError(
            f"{clips} clips cannot occupy {ranks} processes; start at most {clips * processes.cfg_ranks}, or "
            "set smaller clips"
        )
    return ClipAssignment(partition(frames, clips), assign(clips, ranks), processes.clip_rank)


class _TrainedFrames(BaseModel):
    trained_frames: PositiveInt | None = None


def trained_frames(
    config: VideoInfinityConfig, mixing: FrameMixing, pipe: Pipeline
) -> tuple[int | None, bool]:
    """Number of frames the model was trained with, and whether it is known for this model and not only its family.

    Taken from the option, else from ``trained_frames`` in the ``hasten.json`` of the model, else from its family.

    Raises:
        CheckpointError: the file is damaged.
    """
    if config.trained_frames is not None:
        return config.trained_frames, True
    folder = Path(str(getattr(pipe, "config", {}).get("_name_or_path") or ""))
    path = folder / "hasten.json"
    if folder.name and path.exists():
        remedy = 'write {"trained_frames": N}, a number of latent frames, or leave it out'
        noted = read_fields(path, _TrainedFrames, "trained_frames", remedy).trained_frames
        if noted is not None:
            return noted, True
    return mixing.trained_frames(pipe), False


def require_positions(config: VideoInfinityConfig, limit: int | None, scope: Scope, name: str) -> None:
    """Refuse options that a model with ``limit`` position embeddings cannot apply to more frames.

    Raises:
        ConfigError: an option is not possible.
        UnsupportedError: mode ``full``, in which the stock pipeline fails as well.
    """
    if limit is None or scope.frames <= limit:
        return
    if config.mode == "full":
        raise UnsupportedError(
            f"{scope.frames} latent frames are more than the {limit} positions of this {name}, so the stock pipeline "
            "could not make them either; use mode='dual'"
        )
    if config.token_scale:
        raise ConfigError(
            f"token_scale has no effect on more frames ({scope.frames}) than this {name} has positions ({limit}): "
            "remove it"
        )
    if scope.halo > limit // 2 - 1:
        raise ConfigError(
            f"halo={scope.halo} reaches beyond the {limit} positions of this {name}, of which half lie on either side "
            f"of a frame; use {limit // 2 - 1} or less"
        )


def make_scopes(
    config: VideoInfinityConfig,
    mixing: FrameMixing,
    frames: int,
    assignment: ClipAssignment,
    trained: int | None = None,
) -> tuple[Scope, ...]:
    """The frames that each clip attends to.

    Args:
        config: options of the technique.
        mixing: the layers of the model family that mix frames.
        frames: number of frames of the whole video.
        assignment: which rank computes which clips.
        trained: number of frames this model was trained with, if known for the model and not only its family. It
            sets the default lengths: a window of about this many frames, and as many global frames in U-Nets, as in
            the paper, or half as many in transformers.

    Raises:
        ConfigError: a halo is longer than a clip, or a global frame does not exist.
    """
    halo, count = mixing.scope if trained is None else (trained // 2, int(mixing.global_share * trained))
    halo = halo if config.halo is None else config.halo
    count = count if config.global_frames is None else config.global_frames
    if config.mode == "full":
        return tuple(Scope(frames, clip, 0) for clip in assignment.clips)
    shortest = min(map(len, assignment.clips))
    if halo > shortest and len(assignment.clips) > 1:
        raise ConfigError(
            f"halo={halo} is longer than the shortest of {len(assignment.clips)} clips, {shortest} frames: a "
            "clip gets frames from its neighbours only. Use a shorter halo, fewer clips or processes, or "
            "more frames"
        )
    try:
        chosen = global_frames(frames, count, config.global_sampling)
    except ValueError as error:
        raise ConfigError(f"global_sampling: {error}") from error
    block = config.mode == "dual_block"
    return tuple(Scope(frames, clip, halo, chosen, block) for clip in assignment.clips)
