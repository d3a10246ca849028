"""The handlers of a divided run: around the pipeline call, the denoiser and the scheduler."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.commands import prepare_folder
from hasten.extend import (
    ConfigError,
    DenoiserCall,
    FrameMixing,
    Ranks,
    Rotary,
    RunCall,
    Target,
    UnsupportedError,
    nothing_to_run,
    swapped,
)
from hasten.plugins.video_infinity.agreement import agree, begin_checkpoints, resume, run_facts
from hasten.plugins.video_infinity.branches import Branches, own_branch
from hasten.plugins.video_infinity.clip import ClipForward, current_clip
from hasten.plugins.video_infinity.config import VideoInfinityConfig
from hasten.plugins.video_infinity.decode import decode_whole
from hasten.plugins.video_infinity.exchange import Places
from hasten.plugins.video_infinity.joining import join
from hasten.plugins.video_infinity.processes import Processes
from hasten.plugins.video_infinity.prompts import encode_prompts, listening
from hasten.plugins.video_infinity.scheduler import divided_scheduler, scheduler_refusal
from hasten.plugins.video_infinity.session import (
    Session,
    current_session,
    make_scopes,
    places_for,
    require_positions,
    trained_frames,
    video_frames,
)
from hasten.schedules.clips import Scope

__all__ = ["Division", "keep_local", "partitioned", "require_divisible"]

_local: ContextVar[list[Session] | None] = ContextVar("hasten_keep_local", default=None)


@contextmanager
def keep_local() -> Iterator[list[Session]]:
    """Pipeline calls inside return this rank's latents, and leave their sessions in the list."""
    sessions: list[Session] = []
    token = _local.set(sessions)
    try:
        yield sessions
    finally:
        _local.reset(token)


@dataclass(frozen=True)
class _Skipped:
    """A denoiser output that nobody looks at."""

    sample: Any


class Division:
    """The handlers, for one acceleration.

    Args:
        name: the technique's name, for reports.
        config: its options.
        target: the pipeline.
    """

    def __init__(self, name: str, config: VideoInfinityConfig, target: Target) -> None:
        self._name = name
        self._config = config
        self._target = target
        self.last: Session | None = None
        """The session of the last call."""

    def run(self, call: RunCall, proceed: Callable[[RunCall], Any]) -> Any:
        """Divide one pipeline call, and put the video together again. One without a step is not divided."""
        if nothing_to_run(self._target, call.arguments):
            return proceed(call)
        processes = join(self._config, torch.device(call.pipe._execution_device))
        processes.where = "at the start"
        # Holding the folder is an exchange of its own, in which all have to take part or none.
        processes.agree({"checkpoint is set": self._config.checkpoint is not None})
        if self._config.checkpoint is None:
            return self._run(call, proceed, processes)
        with processes.hold(prepare_folder(self._config.checkpoint, "--checkpoint")):
            return self._run(call, proceed, processes)

    def _run(self, call: RunCall, proceed: Callable[[RunCall], Any], processes: Processes) -> Any:
        session, call = self._session(call, processes)
        self.last = session
        places = session.places
        ranks = Ranks(
            processes.rank,
            processes.world,
            processes.clip_group,
            session.held,
            tuple(places.clips[clip] for clip in places.here),
        )
        wanted = call.arguments.get("output_type")
        call = call.on_ranks(ranks).replace_arguments({"output_type": "latent"})
        token = current_session.set(session)
        try:
            with _divided_noise(call.pipe, session):
                if self._config.prompts is not None:
                    session.texts = encode_prompts(call, self._config.prompts, proceed)
                result = proceed(call)
        finally:
            current_session.reset(token)
        sessions = _local.get()
        if sessions is not None:
            sessions.append(session)
            return result
        return self._whole(call, session, result, wanted)

    def scheduler(self, scheduler: Any, call: RunCall) -> Any:  # noqa: ARG002
        """The scheduler of the run."""
        session = current_session.get()
        return scheduler if session is None else divided_scheduler(scheduler, session)

    def denoise(self, call: DenoiserCall, proceed: Callable[[DenoiserCall], Any]) -> Any:
        """One forward on this rank's frames, clip by clip in lockstep."""
        session = current_session.get()
        if session is None:
            return proceed(call)
        listening(call)
        if session.skipping:
            return self._blank(call, session)
        session.processes.where = f"in step {session.done + 1} of {session.steps}"
        return Branches(session).compute(call, lambda part: self._forward(part, session, proceed))

    # --- one forward

    def _forward(self, call: DenoiserCall, session: Session, proceed: Callable[[DenoiserCall], Any]) -> Any:
        exchange, places = session.exchange, session.places
        exchange.begin()
        before = {kind: (t.sent, t.received) for kind, t in exchange.traffic.items()}
        rotary = session.mixing.given_rotary(call.run.pipe, call.kwargs, session.frames)
        clips = [self._clip(call, session, index, rotary) for index in places.here]

        def compute(clip: ClipForward) -> Any:
            token = current_clip.set(clip)
            try:
                kwargs = session.mixing.clip_arguments(
                    call.run.pipe,
                    {**call.kwargs, **self._text(call, session, clip.index)},
                    clip.scope.clip,
                    session.held,
                    session.frames,
                )
                if clip.rotary is not None and session.mixing.rotary_argument is not None:
                    own = session.mixing.as_argument(clip.rotary.at(clip.scope.clip))
                    kwargs[session.mixing.rotary_argument] = own
                return proceed(call.replace_kwargs(kwargs))
            finally:
                current_clip.reset(token)

        outputs = exchange.lockstep.run([partial(compute, clip) for clip in clips])
        sent = {
            kind: [t.sent - before.get(kind, (0, 0))[0], t.received - before.get(kind, (0, 0))[1]]
            for kind, t in exchange.traffic.items()
        }
        call.run.record(self._name, clips=len(clips), frames=len(session.held), bytes=sent)
        if len(outputs) == 1:
            return outputs[0]
        joined = session.mixing.latents.join(
            [call.sample(o) for o in outputs], [clip.length for clip in clips]
        )
        return call.with_sample(outputs[0], joined)

    def _clip(self, call: DenoiserCall, session: Session, index: int, rotary: Rotary | None) -> ClipForward:
        mixing, pipe = session.mixing, call.run.pipe
        return ClipForward(
            index=index,
            scope=session.scopes[index],
            biases=session.biases(call.step.noise.time),
            trained=session.trained,
            exchange=session.exchange,
            mixing=mixing,
            config=self._config,
            messages=self._config.messages(call.kwargs[mixing.latents_argument(call.kwargs)].device.type),
            limit=mixing.limit(pipe),
            rotary=rotary,
        )

    def _text(self, call: DenoiserCall, session: Session, index: int) -> Mapping[str, Any]:
        """Prompt arguments of a clip, where there are several prompts; none in a forward of the negative one."""
        if not session.texts or call.step.branch == "uncond":
            return {}
        text = session.texts[index * len(session.texts) // len(session.places.clips)]
        processes = session.processes
        if processes.cfg_ranks == 1 or call.step.branch != "both":
            return text
        batch = len(call.kwargs[session.mixing.latents_argument(call.kwargs)])
        return own_branch(text, processes.cfg_ranks * batch, processes)

    def _blank(self, call: DenoiserCall, session: Session) -> Any:
        pipe, layout = call.run.pipe, self._target.layout
        kwargs = session.mixing.clip_arguments(pipe, call.kwargs, session.held, session.held, session.frames)
        blank = layout.encode_output(pipe, kwargs, torch.zeros_like(layout.decode(pipe, kwargs)))
        return (blank,) if call.kwargs.get("return_dict") is False else _Skipped(blank)

    # --- the call

    def _session(self, call: RunCall, processes: Processes) -> tuple[Session, RunCall]:
        config, mixing = self._config, self._target.capability(FrameMixing)
        folder = None if config.checkpoint is None else Path(config.checkpoint)
        # A process alone has nobody to compare with, and digests of code and weights take their time.
        compared = processes.world > 1 or folder is not None
        facts = run_facts(self._target, self._name, config, call) if compared else {}
        agree(facts, config, processes)
        require_divisible(self._target, call.arguments)
        frames = video_frames(self._target, mixing, call)
        before = resume(folder, facts, processes)
        call, seed = _with_generator(call, processes, before.seed)
        places, scopes = partitioned(config, self._target, frames, processes, before.clips)
        trained, _ = trained_frames(config, mixing, call.pipe)
        steps = int(call.arguments["num_inference_steps"])
        generator = call.arguments["generator"]
        generator = generator[0] if isinstance(generator, (list, tuple)) else generator
        session = Session(self._target, config, mixing, processes, places, scopes, steps, generator, trained)
        if folder is not None:
            begin_checkpoints(session, folder, facts, seed)
        return session, call

    def _whole(self, call: RunCall, session: Session, result: Any, wanted: Any) -> Any:
        """The pipeline's output for the whole video, on every rank."""
        local = result[0] if isinstance(result, tuple) else result.frames
        latents = gather_latents(session, local)
        video = latents if wanted == "latent" else decode_whole(call, session, latents, wanted)
        return (video, *result[1:]) if isinstance(result, tuple) else type(result)(frames=video)


def require_divisible(target: Target, arguments: Mapping[str, Any]) -> None:
    """Refuse calls that cannot be divided by frames.

    Raises:
        UnsupportedError: this one cannot.
    """
    mixing = target.capability(FrameMixing)
    reason = scheduler_refusal(target.pipe.scheduler) or mixing.refusal(target.pipe, arguments)
    if reason is not None:
        raise UnsupportedError(f"video_infinity cannot divide this call of {target.name}: {reason}")


def partitioned(
    config: VideoInfinityConfig, target: Target, frames: int, processes: Processes, clips: int | None = None
) -> tuple[Places, tuple[Scope, ...]]:
    """The clips of a video, and what each of them attends to.

    Args:
        config: the technique's options.
        target: the pipeline.
        frames: frames of the whole video.
        processes: the ranks.
        clips: number of clips of the run that is resumed.

    Raises:
        ConfigError: the options do not fit the video.
        UnsupportedError: the model has no positions for so many frames.
    """
    mixing = target.capability(FrameMixing)
    places = places_for(config, frames, processes, clips)
    _require_prompts(config, places)
    trained, own = trained_frames(config, mixing, target.pipe)
    scopes = make_scopes(config, mixing, frames, places, trained if own else None)
    require_positions(config, mixing.limit(target.pipe), scopes[0], target.name)
    return places, scopes


def gather_latents(session: Session, local: Tensor) -> Tensor:
    """Latents of all ranks, on every rank."""
    if session.processes.clip_ranks == 1:
        return local
    parts = session.processes.gather((session.places.rank, local.cpu()))
    by_rank = dict(parts)
    tensors = [by_rank[rank] for rank in sorted(by_rank)]
    lengths = [len(session.places.frames_of(rank)) for rank in sorted(by_rank)]
    return session.mixing.latents.join(tensors, lengths).to(local.device)


def _with_generator(call: RunCall, processes: Processes, seed: int | None) -> tuple[RunCall, int | None]:
    """A call whose generator is in the same state on all ranks, and the seed where the call has none.

    Args:
        call: the call.
        processes: the ranks.
        seed: of the run that is resumed.
    """
    if call.arguments.get("generator") is not None:
        return call, None
    if seed is None:
        seed = processes.gather(int(torch.randint(2**62, ()).item()))[0]
    return call.replace_arguments({"generator": torch.Generator().manual_seed(seed)}), seed


def _require_prompts(config: VideoInfinityConfig, places: Places) -> None:
    """Refuse prompts that no clip would get."""
    if config.prompts is not None and len(config.prompts) > len(places.clips):
        raise ConfigError(
            f"{len(config.prompts)} prompts share {len(places.clips)} clips, so that some would not be seen; set "
            f"clips={len(config.prompts)} or more"
        )


@contextmanager
def _divided_noise(pipe: Any, session: Session) -> Iterator[None]:
    """The pipeline draws latents for the whole video, and goes on with this rank's part."""
    original = pipe.prepare_latents
    axis = session.mixing.latents

    def part(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim > 2 and axis.holds(value, session.frames):
            return axis.take(value, session.frames, session.held).contiguous()
        return value

    def prepare(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        return tuple(map(part, result)) if isinstance(result, tuple) else part(result)

    prepare.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    with swapped(pipe, "prepare_latents", prepare):
        yield
