"""The handlers around the pipeline call, the denoiser and the scheduler of a divided run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hasten.commands import prepare_folder
from hasten.extend import (
    ConfigError,
    DenoiserCall,
    FrameDecoder,
    FrameMixing,
    Ranks,
    Rotary,
    RunCall,
    Scheduler,
    Target,
    UnsupportedError,
    nothing_to_run,
)
from hasten.plugins.video_infinity.agreement import agree, begin_checkpoints, resume, run_facts
from hasten.plugins.video_infinity.branches import GuidanceBranches, own_branch
from hasten.plugins.video_infinity.clip import ClipForward, current_clip
from hasten.plugins.video_infinity.config import VideoInfinityConfig
from hasten.plugins.video_infinity.decode import decode_whole
from hasten.plugins.video_infinity.division import divided, gather_latents
from hasten.plugins.video_infinity.exchange import ClipAssignment
from hasten.plugins.video_infinity.joining import join
from hasten.plugins.video_infinity.process_mesh import ProcessMesh
from hasten.plugins.video_infinity.prompt_timeline import capture_prompt, encode_prompts
from hasten.plugins.video_infinity.scheduler import divided_scheduler, scheduler_refusal
from hasten.plugins.video_infinity.session import (
    Session,
    assign_clips,
    current_session,
    make_scopes,
    require_positions,
    trained_frames,
    video_frames,
)
from hasten.schedules.clips import Scope

__all__ = ["RunHandlers", "keep_local_latents", "partitioned", "require_divisible"]

_local: ContextVar[list[Session] | None] = ContextVar("hasten_keep_local", default=None)


@contextmanager
def keep_local_latents() -> Iterator[list[Session]]:
    """Within this context, pipeline calls return the latents of this rank and append their session to the list."""
    sessions: list[Session] = []
    token = _local.set(sessions)
    try:
        yield sessions
    finally:
        _local.reset(token)


@dataclass(frozen=True)
class _Skipped:
    """The output of a denoiser in a step that a checkpoint replaces."""

    sample: Any


class RunHandlers:
    """The handlers of one acceleration.

    Args:
        name: name of the technique, for reports.
        config: options of the technique.
        target: the pipeline.
    """

    def __init__(self, name: str, config: VideoInfinityConfig, target: Target) -> None:
        self._name = name
        self._config = config
        self._target = target

    def run(self, call: RunCall, proceed: Callable[[RunCall], Any]) -> Any:
        """Divide one pipeline call and assemble the video. A call without steps is not divided."""
        if nothing_to_run(self._target, call.arguments):
            return proceed(call)
        processes = join(self._config, torch.device(call.pipe._execution_device))
        processes.where = "at the start"
        # Locking the folder is a collective, in which all processes must take part.
        processes.agree({"checkpoint is set": self._config.checkpoint is not None})
        if self._config.checkpoint is None:
            return self._run(call, proceed, processes)
        with processes.hold(prepare_folder(self._config.checkpoint, "--checkpoint")):
            return self._run(call, proceed, processes)

    def _run(self, call: RunCall, proceed: Callable[[RunCall], Any], processes: ProcessMesh) -> Any:
        session, call = self._session(call, processes)
        assignment = session.assignment
        ranks = Ranks(
            processes.rank,
            processes.world,
            processes.clip_group,
            session.held,
            tuple(assignment.clips[clip] for clip in assignment.here),
        )
        wanted, sessions = call.arguments.get("output_type"), _local.get()
        call = call.on_ranks(ranks)
        session.whole_at_end = sessions is None and self._target.adapter.capability(FrameDecoder) is None
        if not session.whole_at_end:
            call = call.replace_arguments({"output_type": "latent"})
        token = current_session.set(session)
        try:
            with divided(call.pipe, session):
                if self._config.prompts is not None:
                    session.texts = encode_prompts(call, self._config.prompts, proceed)
                result = proceed(call)
        finally:
            current_session.reset(token)
        if sessions is not None:
            sessions.append(session)
        if sessions is not None or session.whole_at_end:
            return result
        return self._whole(call, session, result, wanted)

    def scheduler(self, scheduler: Scheduler, call: RunCall) -> Any:  # noqa: ARG002
        """A scheduler that steps the frames of this rank, in a divided run."""
        session = current_session.get()
        return scheduler if session is None else divided_scheduler(scheduler, session)

    def denoise(self, call: DenoiserCall, proceed: Callable[[DenoiserCall], Any]) -> Any:
        """One forward on the frames of this rank, one clip after the other."""
        session = current_session.get()
        if session is None:
            return proceed(call)
        capture_prompt(call)
        if session.skipping:
            return self._blank(call, session)
        session.processes.where = f"in step {session.done + 1} of {session.steps}"
        return GuidanceBranches(session).compute(call, lambda part: self._forward(part, session, proceed))

    # --- one forward

    def _forward(self, call: DenoiserCall, session: Session, proceed: Callable[[DenoiserCall], Any]) -> Any:
        exchange, assignment = session.exchange, session.assignment
        exchange.begin()
        before = {kind: (t.sent, t.received) for kind, t in exchange.traffic.items()}
        rotary = session.mixing.given_rotary(call.run.pipe, call.kwargs, session.frames)
        clips = [self._clip(call, session, index, rotary) for index in assignment.here]

        def compute(place: int, clip: ClipForward) -> Any:
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
                return proceed(call.replace_kwargs(kwargs).as_part(place, len(clips)))
            finally:
                current_clip.reset(token)

        outputs = exchange.lockstep.run([partial(compute, place, clip) for place, clip in enumerate(clips)])
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
        """Prompt arguments of a clip, if there are several prompts; empty in a forward of the negative prompt."""
        if not session.texts or call.step.branch == "uncond":
            return {}
        text = session.texts[index * len(session.texts) // len(session.assignment.clips)]
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

    def _session(self, call: RunCall, processes: ProcessMesh) -> tuple[Session, RunCall]:
        config, mixing = self._config, self._target.capability(FrameMixing)
        folder = None if config.checkpoint is None else Path(config.checkpoint)
        # A single process has nothing to compare, and digests of code and weights take time.
        compared = processes.world > 1 or folder is not None
        facts = run_facts(self._target, self._name, config, call) if compared else {}
        agree(facts, config, processes)
        require_divisible(self._target, call.arguments)
        frames = video_frames(self._target, mixing, call)
        before = resume(folder, facts, processes)
        call, seed = _with_generator(call, processes, before.seed)
        assignment, scopes = partitioned(config, self._target, frames, processes, before.clips)
        trained, _ = trained_frames(config, mixing, call.pipe)
        steps = int(call.arguments["num_inference_steps"])
        generator = call.arguments["generator"]
        generator = generator[0] if isinstance(generator, (list, tuple)) else generator
        session = Session(
            self._target, config, mixing, processes, assignment, scopes, steps, generator, trained
        )
        if folder is not None:
            begin_checkpoints(session, folder, facts, seed)
        return session, call

    def _whole(self, call: RunCall, session: Session, result: Any, wanted: Any) -> Any:
        """The output of the pipeline for the whole video, on every rank."""
        local = result[0] if isinstance(result, tuple) else result.frames
        latents = gather_latents(session, local)
        video = latents if wanted == "latent" else decode_whole(call, session, latents, wanted)
        return (video, *result[1:]) if isinstance(result, tuple) else type(result)(frames=video)


def require_divisible(target: Target, arguments: Mapping[str, Any]) -> None:
    """Check that a call can be divided by frames.

    Raises:
        UnsupportedError: it cannot; the message says why.
    """
    mixing = target.capability(FrameMixing)
    reason = scheduler_refusal(target.pipe.scheduler) or mixing.refusal(target.pipe, arguments)
    if reason is not None:
        raise UnsupportedError(f"video_infinity cannot divide this call of {target.name}: {reason}")


def partitioned(
    config: VideoInfinityConfig, target: Target, frames: int, processes: ProcessMesh, clips: int | None = None
) -> tuple[ClipAssignment, tuple[Scope, ...]]:
    """The clips of a video, and the frames that each of them attends to.

    Args:
        config: options of the technique.
        target: the pipeline.
        frames: number of frames of the whole video.
        processes: the processes.
        clips: number of clips of the run that is resumed, if any.

    Raises:
        ConfigError: the options do not fit the video.
        UnsupportedError: the model has no positions for so many frames.
    """
    mixing = target.capability(FrameMixing)
    assignment = assign_clips(config, frames, processes, clips)
    _require_prompts(config, assignment)
    trained, own = trained_frames(config, mixing, target.pipe)
    scopes = make_scopes(config, mixing, frames, assignment, trained if own else None)
    require_positions(config, mixing.limit(target.pipe), scopes[0], target.name)
    return assignment, scopes


def _with_generator(call: RunCall, processes: ProcessMesh, seed: int | None) -> tuple[RunCall, int | None]:
    """The call with a generator in the same state on all ranks, and the seed if one was drawn for it.

    Args:
        call: the call.
        processes: the processes.
        seed: the seed of the run that is resumed, if any.
    """
    if call.arguments.get("generator") is not None:
        return call, None
    if seed is None:
        seed = processes.gather(int(torch.randint(2**62, ()).item()))[0]
    return call.replace_arguments({"generator": torch.Generator().manual_seed(seed)}), seed


def _require_prompts(config: VideoInfinityConfig, assignment: ClipAssignment) -> None:
    """Refuse more prompts than clips, of which some would have no effect."""
    if config.prompts is not None and len(config.prompts) > len(assignment.clips):
        raise ConfigError(
            f"{len(config.prompts)} prompts share {len(assignment.clips)} clips, so that some would not be seen; set "
            f"clips={len(config.prompts)} or more"
        )
