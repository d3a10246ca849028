"""The attention handler: decides whether a call is dense, a refresh or sparse."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from hasten.extend import (
    AttentionTokens,
    LatentSize,
    TokenGrid,
    UnsupportedError,
    branches,
    by_step,
    call_size,
    planned_levels,
    unwrapped,
)
from hasten.plugins.rettention.budget import affordable, require_room, residual_dtype, sparse_layers
from hasten.plugins.rettention.cache import ResidualCache
from hasten.plugins.rettention.config import RettentionConfig
from hasten.plugins.rettention.correction import CorrectedCall
from hasten.plugins.rettention.kernels import SparseKernel, choose_kernel
from hasten.plugins.rettention.layout import SparseLayout
from hasten.plugins.rettention.masking import Masking, masking
from hasten.plugins.rettention.operands import Operands, computed_type, require_exact
from hasten.plugins.rettention.tally import Tally
from hasten.schedules.sparse_steps import Phase, SparseSteps, warmup_steps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hasten.extend import AttentionCall, Proceed, Run, Target

__all__ = ["SparseAttention", "planned_schedule"]

_VIDEO_WARMUP, _PICTURE_WARMUP = 0.3, 0.25
_MOST_LAYOUTS = 64
"""Number of places whose masks are cached between runs: levels of a U-Net at a few sizes, or windows of frames."""


def planned_schedule(config: RettentionConfig, target: Target, video: bool, steps: int) -> SparseSteps:
    """The schedule of a run of ``steps`` steps."""
    share = config.warmup
    if share is None:
        share = target.capability(AttentionTokens).warmup
    if share is None:
        share = _VIDEO_WARMUP if video else _PICTURE_WARMUP
    warmup = warmup_steps(share, steps)
    return SparseSteps(warmup, config.period, None if config.refresh is None else frozenset(config.refresh))


class _Place(NamedTuple):
    """The tokens of the keys of a call, and the frames among them that its queries are of, if it is a segment."""

    grid: TokenGrid
    frames: range | None


Masked = tuple[SparseLayout, SparseKernel]
"""The mask of a grid, and the kernel that computes it."""


@dataclass
class _Forward:
    """Shared state of the attention calls of one denoiser forward."""

    arguments: Mapping[str, Any]
    step: object
    """Of the clock: parts of one forward have the same."""
    denoiser: str
    size: LatentSize
    phase: Phase
    tally: Tally = field(default_factory=Tally)
    masked: dict[tuple[_Place, int], Masked | None] = field(default_factory=dict)
    """By place and channels per head; ``None`` where the mask would keep everything."""
    masking: tuple[Tensor | None, Masking | None] = (None, None)
    """The last mask that was looked into, and what it means."""


@dataclass
class _State:
    """State of one run."""

    schedule: SparseSteps
    cache: ResidualCache | None = None
    forwards: dict[int, _Forward] = field(default_factory=dict)
    """The last forward of each part that a technique divides forwards into."""
    allowed: dict[tuple[str, LatentSize], frozenset[str]] = field(default_factory=dict)


class SparseAttention:
    """Attention handler of the technique.

    Args:
        owner: name of the technique.
        config: its options.
        target: the pipeline.
        layers: qualified names of its layers.
    """

    def __init__(self, owner: str, config: RettentionConfig, target: Target, layers: Sequence[str]) -> None:
        self.owner, self.config, self.target = owner, config, target
        self._layers = tuple(layers)
        self._tokens = target.capability(AttentionTokens)
        self._layouts: dict[tuple[_Place, torch.device], SparseLayout] = {}

    def __call__(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        """Compute one attention call."""
        state = self._state(call.run)
        forward = self._enter(state, call)
        if call.segment is None and call.key.shape[2] != call.query.shape[2]:
            # An IP-Adapter's cross-attention inside of the same layer.
            notes = forward.tally.notes
            notes["cross_attention"] = notes.get("cross_attention", 0) + 1
            return proceed(call)
        masked = self._decide(state, forward, call, self._place(forward, call))
        if masked is None or forward.phase is Phase.DENSE:
            output, phase, density = proceed(call), Phase.DENSE, 1.0
        else:
            output, phase, density = self._correct(state, forward, call, proceed, masked)
        forward.tally.count(phase, call.query.shape[2] * call.key.shape[2], density)
        return output

    # --- the run and the forward

    def _state(self, run: Run) -> _State:
        memory = run.state(self.owner)
        if "state" not in memory:
            memory["state"] = _State(self._schedule(run))
        state: _State = memory["state"]
        return state

    def _schedule(self, run: Run) -> SparseSteps:
        size = call_size(self.target, run.arguments)
        try:
            steps = len(by_step(planned_levels(self.target, run.arguments, size or run.step.size)))
        except UnsupportedError:
            steps = len(torch.as_tensor(run.pipe.scheduler.timesteps).unique_consecutive())
        return planned_schedule(self.config, self.target, run.step.size.frames is not None, steps)

    def _enter(self, state: _State, call: AttentionCall) -> _Forward:
        """The forward of this call, with the size at which it is computed."""
        before = state.forwards.get(call.part)
        if before is not None and before.arguments is call.arguments:
            return before
        denoiser = call.layer.partition(".")[0]
        size = self.target.layout.size(self.target.pipe, call.arguments)
        if state.cache is not None:
            state.cache.keep_only(denoiser)
            if before is not None and before.size != size:
                state.cache.clear(call.part)
        phase = state.schedule.phase(call.step.index)
        forward = _Forward(call.arguments, call.step, denoiser, size, phase)
        other = next((other for other in state.forwards.values() if other.step is call.step), None)
        if other is not None:  # a part of the same forward, which the report shows as one
            forward.tally = other.tally
        else:
            call.run.record_later(self.owner, forward.tally.facts)
        state.forwards[call.part] = forward
        return forward

    def _place(self, forward: _Forward, call: AttentionCall) -> _Place:
        """The tokens that a call attends over; a segment has frames of its own and may be without text."""
        segment = call.segment
        root = unwrapped(self.target.denoisers[forward.denoiser])
        inner = call.layer.partition(".")[2]
        tokens = call.query.shape[2] if segment is None else segment.tokens
        grid = self._tokens.observed(root, inner, forward.size, call.arguments, tokens)
        if segment is None:
            return _Place(grid, None)
        grid = replace(grid, frames=segment.frames)
        if call.key.shape[2] == grid.tokens:
            grid = replace(grid, before=0, after=0)
        return _Place(grid, segment.rows)

    # --- decide

    def _decide(self, state: _State, forward: _Forward, call: AttentionCall, place: _Place) -> Masked | None:
        """The mask of a call and its kernel; ``None`` for one that is dense in every step.

        All errors are raised in the first dense step.
        """
        if place.grid.tokens < self.config.min_tokens:
            return None
        if call.layer not in self._allowed(state, forward, call, place.grid):
            return None
        key = (place, call.query.shape[-1])
        if key not in forward.masked:
            forward.masked[key] = self._masked(forward, call, place)
        masked = forward.masked[key]
        if masked is None:
            return None
        require_exact(call)
        self._look_at_mask(forward, call, masked[0])
        return masked

    def _look_at_mask(self, forward: _Forward, call: AttentionCall, layout: SparseLayout) -> None:
        """Read the mask once for all layers that share it: that waits for the device."""
        paired = self._tokens.paired_mask and call.mask is not None
        seen = forward.masking[0]
        if call.mask is seen or (paired and seen is not None and seen.shape == call.mask.shape):  # type: ignore[union-attr]
            return
        forward.masking = (call.mask, masking(call, layout, paired=paired))

    def _masked(self, forward: _Forward, call: AttentionCall, place: _Place) -> Masked | None:
        layout = self._layout(place, call.query.device)
        if layout.shape.covers_everything:
            return None
        kernel, why = choose_kernel(
            self.config.kernel, call.query.device, computed_type(call), call.query.shape[-1], layout
        )
        forward.tally.notes["kernel"] = kernel.name + (f" ({why})" if self.config.kernel == "auto" else "")
        return layout, kernel

    def _allowed(
        self, state: _State, forward: _Forward, call: AttentionCall, grid: TokenGrid
    ) -> frozenset[str]:
        """Layers whose statistics fit into memory, selected before the first refresh."""
        key = (forward.denoiser, forward.size)
        if key not in state.allowed:
            names = [name for name in self._layers if name.partition(".")[0] == forward.denoiser]
            layers = sparse_layers(self.target, names, forward.size, grid.context, self.config.min_tokens)
            kind = residual_dtype(self.config, computed_type(call))
            samples = self._samples(call) * call.parts
            correction, budget = self.config.correction, self.config.budget
            if correction == "residual" and call.segment is not None:
                correction = "full"  # merging segments needs the share of the mass as well
            state.allowed[key], total = affordable(layers, samples, kind, correction, budget)
            held = 0 if state.cache is None else state.cache.bytes
            require_room(total - held, len(state.allowed[key]), self.config, call.query.device)
            if state.cache is None:
                state.cache = ResidualCache(kind, self.config.offload, budget)
        return state.allowed[key]

    def _samples(self, call: AttentionCall) -> int:
        """Rows of all forwards of a step, whose statistics are all kept."""
        arguments = call.run.arguments
        further = self.target.layout.further_forwards(self.target.pipe, arguments)
        if call.step.branch == "both":
            return call.query.shape[0] + call.query.shape[0] // 2 * further
        return call.query.shape[0] * (branches(self.target, arguments) + further)

    def _layout(self, place: _Place, device: torch.device) -> SparseLayout:
        key = (place, device)
        if key not in self._layouts:
            if len(self._layouts) == _MOST_LAYOUTS:
                self._layouts.clear()
            self._layouts[key] = SparseLayout.of(self.config, place.grid, device, place.frames)
        return self._layouts[key]

    # --- correct

    def _correct(
        self, state: _State, forward: _Forward, call: AttentionCall, proceed: Proceed, masked: Masked
    ) -> tuple[Tensor, Phase, float]:
        """Compute a refresh or sparse call: output, actual phase, and share of the score matrix."""
        layout, kernel = masked
        if state.cache is None:
            raise RuntimeError("a layer keeps statistics, but there is no cache")
        parts = Operands.of(call, layout, forward.masking[1])
        corrected = CorrectedCall(call, proceed, self.config, parts, kernel, state.cache, forward.tally)
        output, phase = corrected.compute(forward.phase)
        return output, phase, layout.density if phase is Phase.SPARSE else 1.0
