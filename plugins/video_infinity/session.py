"""One divided run: which clips are here, what they attend to, and how far the run is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, PositiveInt

from hasten.extend import ConfigError, FrameMixing, Prediction, RunCall, Target, UnsupportedError
from hasten.files import read_fields
from hasten.plugins.video_infinity.checkpoint import Checkpoints, Saved
from hasten.plugins.video_infinity.config import VideoInfinityConfig
from hasten.plugins.video_infinity.exchange import Exchange, Places
from hasten.plugins.video_infinity.lockstep import Lockstep
from hasten.plugins.video_infinity.processes import Processes
from hasten.schedules.clips import Scope, assign, clips_for, global_frames, partition

__all__ = [
    "Session",
    "current_session",
    "make_scopes",
    "places_for",
    "require_positions",
    "trained_frames",
    "video_frames",
]

_DIFFUSION_BIAS = 10.0
_DIFFUSION_SWITCH = 0.836
"""Flow time of equal signal-to-noise ratio to timestep 800 of VideoCrafter2's schedule."""
_FLOW_BIAS = 3.0
"""A frame of the whole video weighs a twentieth of a neighbour."""


@dataclass
class Session:
    """State of one run on one rank.

    Args:
        target: the pipeline.
        config: the technique's options.
        mixing: the family.
        processes: the ranks.
        places: where clips are.
        scopes: what each clip of the video attends to.
        steps: denoising steps of the call.
        generator: generator that every rank holds in the same state.
    """

    target: Target
    config: VideoInfinityConfig
    mixing: FrameMixing
    processes: Processes
    places: Places
    scopes: tuple[Scope, ...]
    steps: int
    generator: Any
    trained: int | None
    exchange: Exchange = field(init=False)
    checkpoints: Checkpoints | None = None
    resume_at: int = 0
    """Steps that are not computed again."""
    saved: list[Saved] = field(default_factory=list)
    """What the clips of this rank go on from, after those steps."""
    done: int = 0
    """Steps the scheduler has made."""
    texts: list[Mapping[str, Any]] = field(default_factory=list)
    """Prompt arguments of the denoiser for each prompt of the time line."""
    pending_branch: torch.Tensor | None = None
    """An output that another rank computes, to be filled in when it is known."""

    def __post_init__(self) -> None:
        self.exchange = Exchange(self.places, self.processes.transport(), Lockstep())

    @property
    def frames(self) -> int:
        """Frames of the whole video."""
        return self.scopes[0].frames

    @property
    def held(self) -> range:
        """Frames of this rank."""
        return self.places.frames_of(self.places.rank)

    @property
    def skipping(self) -> bool:
        """Whether the step in progress is already known from a checkpoint."""
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
    """Frames of the video that a call makes, in temporal patches of the denoiser.

    Raises:
        ConfigError: they do not fill whole patches, or the autoencoder cannot make this number of frames.
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


def places_for(
    config: VideoInfinityConfig, frames: int, processes: Processes, clips: int | None = None
) -> Places:
    """The clips of ``frames`` frames and who computes them.

    Args:
        config: the technique's options.
        frames: frames of the whole video.
        processes: the ranks.
        clips: number of clips of the run that is resumed.

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
    return Places(partition(frames, clips), assign(clips, ranks), processes.clip_rank)


class _Sidecar(BaseModel):
    trained_frames: PositiveInt | None = None


def trained_frames(config: VideoInfinityConfig, mixing: FrameMixing, pipe: Any) -> tuple[int | None, bool]:
    """Frames the model was trained with, and whether that is known of this very model.

    From the option, else from ``trained_frames`` in a ``hasten.json`` beside the model, else from its family.

    Raises:
        CheckpointError: the file is damaged.
    """
    if config.trained_frames is not None:
        return config.trained_frames, True
    folder = Path(str(getattr(pipe, "config", {}).get("_name_or_path") or ""))
    path = folder / "hasten.json"
    if folder.name and path.exists():
        remedy = 'write {"trained_frames": N}, a number of latent frames, or leave it out'
        noted = read_fields(path, _Sidecar, "trained_frames", remedy).trained_frames
        if noted is not None:
            return noted, True
    return mixing.trained_frames(pipe), False


def require_positions(config: VideoInfinityConfig, limit: int | None, scope: Scope, name: str) -> None:
    """Refuse what a model with ``limit`` position embeddings cannot do with more frames.

    Raises:
        ConfigError: an option asks for it.
        UnsupportedError: the stock pipeline could not do it either.
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
    config: VideoInfinityConfig, mixing: FrameMixing, frames: int, places: Places, trained: int | None = None
) -> tuple[Scope, ...]:
    """What the frames of each clip attend to.

    Args:
        config: the technique's options.
        mixing: the family.
        frames: frames of the whole video.
        places: where clips are.
        trained: frames this very model was trained with; by default a window is then about as long, beside as many
            global frames in U-Nets, as in the paper, and half as many in transformers.

    Raises:
        ConfigError: a halo is longer than a clip, or a chosen frame does not exist.
    """
    halo, count = mixing.scope if trained is None else (trained // 2, int(mixing.global_share * trained))
    halo = halo if config.halo is None else config.halo
    count = count if config.global_frames is None else config.global_frames
    if config.mode == "full":
        return tuple(Scope(frames, clip, 0) for clip in places.clips)
    shortest = min(map(len, places.clips))
    if halo > shortest and len(places.clips) > 1:
        raise ConfigError(
            f"halo={halo} is longer than the shortest of {len(places.clips)} clips, {shortest} frames: a "
            "clip gets frames from its neighbours only. Use a shorter halo, fewer clips or processes, or "
            "more frames"
        )
    try:
        chosen = global_frames(frames, count, config.global_sampling)
    except ValueError as error:
        raise ConfigError(f"global_sampling: {error}") from error
    block = config.mode == "dual_block"
    return tuple(Scope(frames, clip, halo, chosen, block) for clip in places.clips)
