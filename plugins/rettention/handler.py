"""What happens to one attention call: dense, refresh or sparse."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
from hasten.plugins.rettention.cache import Key, ResidualCache, Statistics, signature
from hasten.plugins.rettention.config import RettentionConfig
from hasten.plugins.rettention.kernels import Epilogue, SparseKernel, choose_kernel
from hasten.plugins.rettention.kernels.fused import attend, recorded
from hasten.plugins.rettention.layout import SparseLayout
from hasten.plugins.rettention.math import denominator_ratio, ramped, rescaled, reshape, residual
from hasten.plugins.rettention.operands import Operands, computed_type, key_padding, require_exact
from hasten.schedules.sparse_steps import Phase, SparseSteps, warmup_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hasten.extend import AttentionCall, Proceed, Run, Target

__all__ = ["SparseAttention", "planned_schedule"]

_VIDEO_WARMUP, _PICTURE_WARMUP = 0.3, 0.25
_MOST_LAYOUTS = 16
"""Grids whose masks are kept from run to run: the levels of a U-Net at a few sizes."""


def planned_schedule(config: RettentionConfig, target: Target, video: bool, steps: int) -> SparseSteps:
    """The schedule of a run of ``steps`` steps."""
    share = config.warmup
    if share is None:
        share = target.capability(AttentionTokens).warmup
    if share is None:
        share = _VIDEO_WARMUP if video else _PICTURE_WARMUP
    warmup = warmup_steps(share, steps)
    return SparseSteps(warmup, config.period, None if config.refresh is None else frozenset(config.refresh))


@dataclass
class _Forward:
    """What the attention calls of one denoiser forward have in common, and what they did."""

    arguments: Any
    size: LatentSize
    counts: dict[str, int] = field(default_factory=dict)
    pairs: float = 0.0
    kept: float = 0.0
    rho: list[float] = field(default_factory=list)
    drift: list[float] = field(default_factory=list)
    padding: tuple[Tensor | None, Tensor | None] = (None, None)
    kernel: SparseKernel | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def count(self, phase: Phase, grid: TokenGrid, density: float) -> None:
        """Note one call."""
        self.counts[phase.value] = self.counts.get(phase.value, 0) + 1
        self.pairs += grid.total**2
        self.kept += density * grid.total**2

    def facts(self) -> dict[str, Any]:
        """For the report: layers by phase, share of all score matrices that was used, mean ``rho``, largest drift."""
        facts: dict[str, Any] = {
            "layers": dict(self.counts),
            "density": round(self.kept / self.pairs, 5),
            **self.notes,
        }
        if self.rho:
            facts["rho"] = round(sum(self.rho) / len(self.rho), 4)
        if self.drift:
            facts["drift"] = round(max(self.drift), 4)
        return facts


@dataclass
class _State:
    """What is remembered over one run."""

    schedule: SparseSteps
    cache: ResidualCache | None = None
    forward: _Forward | None = None
    allowed: dict[tuple[str, LatentSize], frozenset[str]] = field(default_factory=dict)


class SparseAttention:
    """Attention handler of the technique.

    Args:
        owner: name of the technique.
        config: its options.
        target: the pipeline.
        layers: qualified names of the layers it is put on.
    """

    def __init__(self, owner: str, config: RettentionConfig, target: Target, layers: Sequence[str]) -> None:
        self.owner, self.config, self.target = owner, config, target
        self._layers = tuple(layers)
        self._tokens = target.capability(AttentionTokens)
        self._layouts: dict[tuple[TokenGrid, torch.device], SparseLayout] = {}

    def __call__(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        """Compute one attention call."""
        state = self._state(call.run)
        forward = self._enter(state, call)
        if call.key.shape[2] != call.query.shape[2]:
            # An IP-Adapter's cross-attention inside of the same layer.
            forward.notes["cross_attention"] = forward.notes.get("cross_attention", 0) + 1
            return proceed(call)
        denoiser, _, inner = call.layer.partition(".")
        root = unwrapped(self.target.denoisers[denoiser])
        grid = self._tokens.observed(root, inner, forward.size, call.arguments, call.query.shape[2])
        phase, layout = self._decide(state, forward, call, grid)
        if layout is None:
            output = proceed(call)
        else:
            output, phase = self._corrected(state, forward, call, proceed, layout, phase)
        density = layout.density if layout is not None and phase is Phase.SPARSE else 1.0
        forward.count(phase, grid, density)
        call.run.record(self.owner, **forward.facts())
        return output

    # --- bookkeeping

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
        """The forward this call belongs to. The latents may have been resized: what is computed counts."""
        if state.forward is None or state.forward.arguments is not call.arguments:
            size = self.target.layout.size(self.target.pipe, call.arguments)
            if state.cache is not None:
                state.cache.keep_only(call.layer.partition(".")[0])
                if state.forward is not None and state.forward.size != size:
                    state.cache.clear()
            state.forward = _Forward(call.arguments, size)
        return state.forward

    def _decide(
        self, state: _State, forward: _Forward, call: AttentionCall, grid: TokenGrid
    ) -> tuple[Phase, SparseLayout | None]:
        """The phase of this call, and the mask where it needs one."""
        if grid.tokens < self.config.min_tokens:
            return Phase.DENSE, None
        # Everything that can be refused is, in the first dense step already.
        if call.layer not in self._allowed(state, forward, call, grid):
            return Phase.DENSE, None
        layout = self._layout(grid, call.query.device)
        if layout.shape.covers_everything:
            return Phase.DENSE, None
        require_exact(call)
        if call.mask is not forward.padding[0]:  # layers share the mask; looking into it waits for the device
            forward.padding = (call.mask, key_padding(call, layout))
        forward.kernel, why = choose_kernel(
            self.config.kernel, call.query.device, computed_type(call), call.query.shape[-1], layout
        )
        forward.notes["kernel"] = forward.kernel.name + (f" ({why})" if self.config.kernel == "auto" else "")
        phase = state.schedule.phase(call.step.index)
        return (Phase.DENSE, None) if phase is Phase.DENSE else (phase, layout)

    def _allowed(
        self, state: _State, forward: _Forward, call: AttentionCall, grid: TokenGrid
    ) -> frozenset[str]:
        """Layers whose statistics have room, decided before the first of them is made."""
        denoiser = call.layer.partition(".")[0]
        key = (denoiser, forward.size)
        if key not in state.allowed:
            names = [name for name in self._layers if name.partition(".")[0] == denoiser]
            layers = sparse_layers(self.target, names, forward.size, grid.context, self.config.min_tokens)
            kind = residual_dtype(self.config, computed_type(call))
            samples = call.query.shape[0] * self._forwards(call)
            correction, budget = self.config.correction, self.config.budget
            state.allowed[key], total = affordable(layers, samples, kind, correction, budget)
            held = 0 if state.cache is None else state.cache.bytes
            require_room(total - held, len(state.allowed[key]), self.config, call.query.device)
            if state.cache is None:
                state.cache = ResidualCache(kind, self.config.offload, budget)
        return state.allowed[key]

    def _forwards(self, call: AttentionCall) -> int:
        """Forwards per step that keep statistics of their own."""
        return 1 if call.step.branch == "both" else branches(self.target, call.run.arguments)

    def _layout(self, grid: TokenGrid, device: torch.device) -> SparseLayout:
        key = (grid, device)
        if key not in self._layouts:
            if len(self._layouts) == _MOST_LAYOUTS:
                self._layouts.clear()
            self._layouts[key] = SparseLayout.of(self.config, grid, device)
        return self._layouts[key]

    # --- attention

    def _corrected(
        self,
        state: _State,
        forward: _Forward,
        call: AttentionCall,
        proceed: Proceed,
        layout: SparseLayout,
        phase: Phase,
    ) -> tuple[Tensor, Phase]:
        """Refresh or sparse: output, and which of the two it became."""
        parts = Operands.of(call, layout, forward.padding[1])
        kernel: SparseKernel = _required(forward.kernel)
        cache: ResidualCache = state.cache  # type: ignore[assignment]
        key: Key = (call.layer, call.step.branch)
        entry = cache.get(key, signature(parts.query, layout.grid))
        if self._due(phase, entry, call.step.index):
            return self._refresh(cache, key, forward, call, proceed, layout, parts, kernel), Phase.REFRESH
        output = self._sparse(cache, key, forward, call, layout, parts, kernel)
        if output is None:
            return self._refresh(cache, key, forward, call, proceed, layout, parts, kernel), Phase.REFRESH
        return output, Phase.SPARSE

    def _due(self, phase: Phase, entry: Statistics | None, index: int) -> bool:
        if entry is None:
            return True
        if self.config.refresh is None and not 0 <= index - entry.step < self.config.period:
            return True  # also a layer that was left out of the last refresh
        return self.config.drift is None and phase is Phase.REFRESH

    def _refresh(
        self,
        cache: ResidualCache,
        key: Key,
        forward: _Forward,
        call: AttentionCall,
        proceed: Proceed,
        layout: SparseLayout,
        parts: Operands,
        kernel: SparseKernel,
    ) -> Tensor:
        """The dense result as it is, and the statistics of what the mask would have lost."""
        found = signature(parts.query, layout.grid)
        if self.config.correction == "none":
            cache.put(key, found, call.step.index, None, None)
            return proceed(call)
        dense: Callable[[], Tensor] = lambda: proceed(call)  # noqa: E731
        with torch.no_grad():
            output, full, forward.notes["log_sum_exp"] = recorded(
                dense, parts.query, parts.key, parts.scale, parts.keep, call.backend is not None
            )
            kept = parts.empty_like_output(layout.grid.tokens)
            lse = kernel.attend(
                parts.query, parts.key, parts.value, layout, parts.scale, kept, parts.visible, need_lse=True
            )
            rho = None
            if self.config.correction == "full":
                rho = denominator_ratio(_required(lse), full[:, :, layout.span])
                forward.rho.append(float(rho.mean()))
            rest = residual(output.detach()[:, :, layout.span], kept, torch.ones(()) if rho is None else rho)
            cache.put(key, found, call.step.index, rho, rest)
        forward.notes["cache_bytes"] = cache.bytes
        return output

    def _sparse(
        self,
        cache: ResidualCache,
        key: Key,
        forward: _Forward,
        call: AttentionCall,
        layout: SparseLayout,
        parts: Operands,
        kernel: SparseKernel,
    ) -> Tensor | None:
        """The kept keys, reshaped; ``None`` if sampled queries say that it has drifted too far."""
        found = signature(parts.query, layout.grid)
        entry = _required(cache.get(key, found))
        uses = entry.use(call.step.index)
        output = parts.empty_like_output(layout.grid.total)
        if layout.grid.context:
            rows = parts.context_rows(layout)
            if self.config.ramp_text and isinstance(self.config.ramp, float):
                rows = rows * (1.0 + self.config.ramp * uses)
            output[:, :, layout.context_tokens] = rows.to(output.dtype)
        target = output[:, :, layout.span]
        rest = cache.residual(key)
        monitor = _Sample(parts, layout, self.config.samples, call.step.index) if self._samples else None
        measured = self.config.ramp == "measured" and entry.rho is not None
        ramp = self.config.ramp if isinstance(self.config.ramp, float) else 0.0
        rho = None if entry.rho is None else ramped(entry.rho, ramp, uses, self.config.clamp_rho)
        epilogue = None if measured or (rho is None and rest is None) else Epilogue(rho, rest)
        lse = kernel.attend(
            parts.query,
            parts.key,
            parts.value,
            layout,
            parts.scale,
            target,
            parts.visible,
            epilogue,
            need_lse=measured,
        )
        if measured and monitor is not None and rho is not None:
            rho = rescaled(rho, monitor.rows(rho), monitor.ratio(_required(lse)))
            target.copy_(reshape(target, rho, rest))
            forward.rho.append(float(rho.mean()))
        if self.config.drift is not None and monitor is not None:
            error = monitor.error(target)
            forward.drift.append(error)
            if error > self.config.drift:
                return None
        return output

    @property
    def _samples(self) -> bool:
        return self.config.drift is not None or (
            self.config.ramp == "measured" and self.config.correction == "full"
        )


class _Sample:
    """Some queries, computed exactly: other ones at every step."""

    def __init__(self, parts: Operands, layout: SparseLayout, count: int, step: int) -> None:
        tokens = layout.grid.tokens
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randperm(tokens, generator=generator)[: min(count, tokens)]
        self._chosen = chosen.to(parts.query.device)
        queries = parts.query.index_select(2, self._chosen + layout.grid.before)
        self._exact, self._lse = attend(queries, parts.key, parts.value, parts.scale, parts.keep)

    def rows(self, x: Tensor) -> Tensor:
        """The sampled rows of (B, H, G, d)."""
        return x.index_select(2, self._chosen)

    def ratio(self, lse_kept: Tensor) -> Tensor:
        """``rho`` of the sampled rows, (B, H, S, 1), from the kept log-sum-exp (B, H, G)."""
        return denominator_ratio(lse_kept.index_select(2, self._chosen), self._lse)

    def error(self, output: Tensor) -> float:
        """Relative error of the grid's rows ``output`` (B, H, G, d), over all samples together."""
        exact = self._exact.float()
        distance = (self.rows(output).float() - exact).norm()
        return float(distance / exact.norm().clamp(min=1e-30))


def _required(value: Any) -> Any:
    if value is None:
        raise RuntimeError("a kernel returned no log-sum-exp, or statistics vanished within a call")
    return value
