"""The technique ``video_infinity``: claims, checks, attaching."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hasten.extend import (
    Access,
    Claim,
    Finding,
    FrameLayer,
    FrameMixing,
    HastenError,
    LatentLayout,
    LayerKind,
    Technique,
    UnsupportedError,
    frame_layers,
    hookimpl,
)
from hasten.plugins.video_infinity.config import VideoInfinityConfig

if TYPE_CHECKING:
    import typer

    from hasten.extend import Seams, Target

__all__ = ["VideoInfinity"]

_ATTENTION = (LayerKind.TEMPORAL, LayerKind.ATTENTION)


class VideoInfinity(Technique[VideoInfinityConfig]):
    """Video-Infinity, arXiv 2406.16260: long video over many processes."""

    name = "video_infinity"
    summary = (
        "divides a long video over processes, frames attending to a window and to a few frames of the whole"
    )
    config_class = VideoInfinityConfig
    requires = (LatentLayout, FrameMixing)

    def claims(self, target: Target) -> Sequence[Claim]:
        """Frames and the attention between them. Other techniques may change token counts and steps."""
        layers = frozenset(name for name, layer in _layers(target).items() if layer.kind in _ATTENTION)
        return (
            Claim("ranks.frames", Access.EXCLUSIVE),
            Claim("attention.self", Access.DIVIDES, layers),
            Claim("tokens.shape", Access.WRITES),
            Claim("steps.schedule", Access.READS, follows_writes=False),
        )

    def check(self, target: Target) -> Iterable[Finding]:
        """Refuse denoisers with unknown modules that may mix frames."""
        from hasten.extend import refuse_compiled
        from hasten.plugins.video_infinity.scheduler import scheduler_refusal
        from hasten.plugins.video_infinity.unknown_modules import unknown_modules

        try:
            refuse_compiled(target)
        except UnsupportedError as error:
            yield Finding("error", str(error))
            return
        mixing = target.capability(FrameMixing)
        if reason := scheduler_refusal(target.pipe.scheduler) or mixing.refusal(target.pipe, {}):
            yield Finding("error", reason)
        if self.config.checkpoint is not None and not mixing.resumable:
            yield Finding(
                "error",
                f"{target.name} calls its scheduler several times a step, which resuming cannot tell apart; remove "
                "checkpoint",
            )
        for name in unknown_modules(target):
            yield Finding(
                "error",
                f"{name} may mix frames, and the adapter of family {target.adapter.family!r} does not know "
                "it: each clip "
                f"would be computed as if it were alone. Add it to the adapter's FrameMixing",
            )
        if self.config.mode != "full":
            yield Finding("note", f"mode={self.config.mode!r} changes what frames see; mode='full' does not")
        for option in ("norm_sync", "conv_sync"):
            if not getattr(self.config, option):
                yield Finding(
                    "warning", f"{option}=False computes clips as if they were alone; for ablations only"
                )

    def check_call(self, target: Target, arguments: Mapping[str, Any]) -> Iterable[Finding]:
        """Refuse calls that cannot be divided, or not with these options."""
        from hasten.extend import RunCall, call_size
        from hasten.plugins.video_infinity.joining import expected
        from hasten.plugins.video_infinity.run_handlers import partitioned, require_divisible
        from hasten.plugins.video_infinity.session import video_frames

        mixing = target.capability(FrameMixing)
        try:
            processes = expected(self.config)
            require_divisible(target, arguments)
            if call_size(target, arguments) is None:
                return
            frames = video_frames(target, mixing, RunCall(target.pipe, target, arguments))
            partitioned(self.config, target, frames, processes)
        except HastenError as error:
            yield Finding("error", f"this call will fail: {error}")

    def ranks_per_call(self, world: int) -> int:
        """All but those that make other videos at the same time."""
        return max(1, world // self.config.data_ranks)

    def attach(self, target: Target, seams: Seams) -> None:
        """Register the handlers of layers and of the run."""
        import torch

        from hasten.extend import submodule
        from hasten.plugins.video_infinity import layer_handlers as handlers
        from hasten.plugins.video_infinity.attention_handlers import attention_inside, attention_layer
        from hasten.plugins.video_infinity.joining import join
        from hasten.plugins.video_infinity.run_handlers import RunHandlers

        if self.config.data_ranks > 1:
            # A group of processes without a video of its own must not keep the others waiting.
            join(self.config, torch.device(target.device))
        run = RunHandlers(self.name, self.config, target)
        layers = _layers(target)
        makers: dict[LayerKind, Any] = {
            LayerKind.CONV: handlers.convolve,
            LayerKind.POSITIONS: handlers.positions,
            LayerKind.ROTARY: handlers.rotary,
        }
        for name, layer in layers.items():
            module = submodule(target, name)
            if layer.kind in _ATTENTION:
                handler = attention_layer(module, layer.kind)
            elif layer.kind is LayerKind.NORM:
                reader = None if layer.reader is None else submodule(target, layer.reader)
                handler = handlers.norm(module, reader)
            else:
                handler = makers[layer.kind](module)
            seams.module(name, handler)
        seams.run(run.run)
        seams.scheduler(run.scheduler)
        seams.denoiser(run.denoise)
        attention = {name: layer.kind for name, layer in layers.items() if layer.kind in _ATTENTION}
        if not attention:
            raise UnsupportedError(f"{target.name} has no layer that mixes frames")
        seams.attention(attention_inside(attention), list(attention), divides=True)


def _layers(target: Target) -> dict[str, FrameLayer]:
    from hasten.extend import unwrapped

    mixing = target.capability(FrameMixing)
    found: dict[str, FrameLayer] = {}
    for denoiser, root in target.denoisers.items():
        found.update(frame_layers(mixing, denoiser, unwrapped(root)))
    return found


@hookimpl
def hasten_register_techniques(register: Callable[[type[VideoInfinity]], None]) -> None:
    """Offer the technique to the host."""
    register(VideoInfinity)


@hookimpl
def hasten_register_commands(app: typer.Typer) -> None:
    """Offer ``hasten video``."""
    from hasten.plugins.video_infinity.commands import add_commands

    add_commands(app)
