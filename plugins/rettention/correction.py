"""One attention call that is not dense: a refresh of the statistics, or a sparse call corrected with them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from hasten.plugins.rettention.cache import Key, ResidualCache, Statistics, signature
from hasten.plugins.rettention.config import RettentionConfig
from hasten.plugins.rettention.kernels import Epilogue, SparseKernel
from hasten.plugins.rettention.kernels.biased import attend_kept
from hasten.plugins.rettention.kernels.fused import attend, recorded
from hasten.plugins.rettention.math import denominator_ratio, ramped, rescaled, reshape, residual, whole_sum
from hasten.plugins.rettention.operands import Operands
from hasten.plugins.rettention.tally import Tally
from hasten.schedules.sparse_steps import Phase

if TYPE_CHECKING:
    from hasten.extend import AttentionCall, Proceed, Sums

__all__ = ["CorrectedCall"]

T = TypeVar("T")


@dataclass(frozen=True)
class CorrectedCall:
    """One call with all its inputs.

    Args:
        call: the attention call of the model.
        proceed: dense attention.
        config: options of the technique.
        parts: the operands and their mask.
        kernel: computes the kept keys.
        cache: statistics of the run.
        tally: of the forward, for the report.
    """

    call: AttentionCall
    proceed: Proceed
    config: RettentionConfig
    parts: Operands
    kernel: SparseKernel
    cache: ResidualCache
    tally: Tally

    def compute(self, planned: Phase) -> tuple[Tensor, Phase]:
        """The output, and whether the call was a refresh or sparse; statistics may override the planned phase."""
        entry = self.cache.get(self._key, self._signature)
        if entry is not None and not self._is_due(planned, entry):
            output = self._sparse(entry)
            if output is not None:
                return output, Phase.SPARSE
        return self._refresh(), Phase.REFRESH

    @cached_property
    def _key(self) -> Key:
        segment = "" if self.call.segment is None else self.call.segment.name
        return self.call.layer, self.call.step.branch, self.call.part, segment

    @cached_property
    def _signature(self) -> tuple[Any, ...]:
        return signature(self.parts.query, (self.parts.layout.grid, self.parts.layout.frames))

    def _is_due(self, planned: Phase, entry: Statistics) -> bool:
        if self.config.refresh is None and not 0 <= self.call.step.index - entry.step < self.config.period:
            return True  # also a layer that was left out of the last refresh
        return self.config.drift is None and planned is Phase.REFRESH

    # --- refresh

    def _refresh(self) -> Tensor:
        """The dense result, and the statistics of the part outside the mask."""
        if self.config.correction == "none":
            self.cache.put(self._key, self._signature, self.call.step.index, None, None)
            return self.proceed(self.call)
        parts, layout = self.parts, self.parts.layout
        with torch.no_grad():
            output, full = self._dense()
            kept = parts.empty_like_output(layout.queries.tokens)
            lse = attend_kept(self.kernel, parts, kept, need_lse=True)
            share = denominator_ratio(_required(lse), full[:, :, layout.span])
            rho = share if self.config.correction == "full" else None
            if rho is not None:
                self.tally.saw_rho(rho)
            rest = residual(output.detach()[:, :, layout.span], kept, torch.ones(()) if rho is None else rho)
            held = None if self._sums is None else share
            self.cache.put(self._key, self._signature, self.call.step.index, rho, rest, held)
        self.tally.notes["cache_bytes"] = self.cache.bytes
        return output

    @property
    def _sums(self) -> Sums | None:
        """Where the log-sum-exp goes, if the call is a segment that is merged with others."""
        return None if self.call.segment is None else self.call.segment.sums

    def _dense(self) -> tuple[Tensor, Tensor]:
        """Dense attention and its log-sum-exp."""
        parts, sums = self.parts, self._sums
        if sums is not None:
            output = self.proceed(self.call)
            self.tally.notes["log_sum_exp"] = "of the segment"
            return output, _required(sums.value)
        output, full, self.tally.notes["log_sum_exp"] = recorded(
            lambda: self.proceed(self.call),
            parts.query,
            parts.key,
            parts.scale,
            parts.row,
            self.call.backend is not None,
            None if parts.mask is None else parts.mask.shift,
        )
        return output, full

    # --- sparse

    def _sparse(self, entry: Statistics) -> Tensor | None:
        """The corrected sparse output; ``None`` if sampled queries show too much drift."""
        uses = entry.use(self.call.step.index)
        output = self.parts.empty_like_output(self.parts.layout.queries.total)
        self._write_context(output, uses)
        target = output[:, :, self.parts.layout.span]
        sample = self._sample()
        self._write_grid(target, entry, uses, sample)
        if self.config.drift is not None and sample is not None:
            error = sample.error(target)
            self.tally.saw_drift(error)
            if error > self.config.drift:
                return None
        return output

    def _write_context(self, output: Tensor, uses: int) -> None:
        """The rows of other tokens, which are exact."""
        if not self.parts.layout.grid.context:
            return
        rows = self.parts.context_rows()
        if self.config.ramp_text and isinstance(self.config.ramp, float):
            rows = rows * (1.0 + self.config.ramp * uses)
        output[:, :, self.parts.layout.context_rows] = rows.to(output.dtype)

    def _write_grid(self, target: Tensor, entry: Statistics, uses: int, sample: _Sample | None) -> None:
        """The rows of the grid: ``rho O_S + R``."""
        config, rest = self.config, self.cache.residual(self._key)
        measured = config.ramp == "measured" and entry.rho is not None
        merged = self._sums
        ramp = config.ramp if isinstance(config.ramp, float) else 0.0
        rho = None if entry.rho is None else ramped(entry.rho, ramp, uses, config.clamp_rho)
        late = measured or merged is not None
        epilogue = None if late or (rho is None and rest is None) else Epilogue(rho, rest)
        lse = attend_kept(self.kernel, self.parts, target, epilogue, need_lse=late)
        if measured and sample is not None and rho is not None:
            rho = rescaled(rho, sample.rows(rho), sample.ratio(_required(lse)))
            self.tally.saw_rho(rho)
        if late:
            target.copy_(reshape(target, rho, rest))
        if merged is not None:
            # The ramp is a gain of the output and says nothing of how much the dropped keys weigh.
            share = rho if measured else entry.share
            merged.value = whole_sum(_required(lse), share)

    def _sample(self) -> _Sample | None:
        config = self.config
        if config.drift is None and (config.ramp != "measured" or config.correction != "full"):
            return None
        return _Sample(self.parts, config.samples, self.call.step.index)


class _Sample:
    """Sampled queries, computed exactly; different ones in every step."""

    def __init__(self, parts: Operands, count: int, step: int) -> None:
        grid = parts.layout.queries
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randperm(grid.tokens, generator=generator)[: min(count, grid.tokens)]
        self._chosen = chosen.to(parts.query.device)
        queries = parts.query.index_select(2, self._chosen + grid.before)
        self._exact, self._lse = attend(queries, parts.key, parts.value, parts.scale, parts.row)

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


def _required(value: T | None) -> T:
    if value is None:
        raise RuntimeError("a kernel did not return the requested log-sum-exp")
    return value
