"""The technique ``rettention``: claims, checks, attaching."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from hasten.extend import (
    Access,
    AttentionTokens,
    Claim,
    Finding,
    Forecast,
    LatentLayout,
    Technique,
    UnsupportedError,
    hookimpl,
    suggestion,
)
from hasten.plugins.rettention.config import RettentionConfig
from hasten.schedules.sparse_steps import Phase

if TYPE_CHECKING:
    import typer

    from hasten.extend import Seams, StepRecord, Target

__all__ = ["Rettention"]


class Rettention(Technique[RettentionConfig]):
    """Re-ttention, arXiv 2505.22918: windowed attention, corrected by statistics of a recent dense step."""

    name = "rettention"
    summary = "computes self-attention over few keys, corrected with statistics of earlier dense steps"
    config_class = RettentionConfig
    sameness = "close"
    requires = (LatentLayout, AttentionTokens)

    def claims(self, target: Target) -> Sequence[Claim]:
        """Self-attention of its layers; statistics are reset when the number of tokens changes."""
        layers = frozenset(self._layers(target))
        return (
            Claim("attention.self", Access.EXCLUSIVE, layers, follows_division=True),
            Claim("tokens.shape", Access.READS),
        )

    def check(self, target: Target) -> Iterable[Finding]:
        """Refuse pipelines without falling noise levels or without matching layers; report the kernel."""
        from hasten.extend import check_layers

        if reason := target.layout.clock_refusal(target.pipe):
            yield Finding("error", reason)
            return
        try:
            check_layers(target, frozenset(self._layers(target)))
        except UnsupportedError as error:
            yield Finding("error", str(error))
            return
        yield from self._kernel_findings(target)

    def check_call(self, target: Target, arguments: Mapping[str, Any]) -> Iterable[Finding]:
        """Report options that cannot work at the call's size, and calls without sparse attention."""
        from hasten.plugins.rettention.forecast import call_findings

        return call_findings(self.config, target, self._layers(target), arguments)

    def review(self, steps: Sequence[StepRecord]) -> Iterable[str]:
        """Report that no attention was sparse."""
        if not any(Phase.SPARSE.value in step.facts.get(self.name, {}).get("layers", {}) for step in steps):
            yield "no attention was sparse, so this technique had no effect"

    def forecast(self, target: Target, arguments: Mapping[str, Any], before: Forecast) -> Forecast | None:
        """Phase and FLOPs of every step, true density, memory."""
        from hasten.plugins.rettention.forecast import forecast

        return forecast(self.config, target, self._layers(target), arguments, before)

    def attach(self, target: Target, seams: Seams) -> None:
        """One handler on every layer."""
        from hasten.plugins.rettention.handler import SparseAttention

        layers = self._layers(target)
        seams.attention(SparseAttention(self.name, self.config, target, layers), layers)

    def _layers(self, target: Target) -> list[str]:
        """Qualified names of the layers to work on, in the order of the network.

        Raises:
            UnsupportedError: a pattern of ``layers`` names none, or there are none.
        """
        from hasten.extend import attention_layers

        tokens = target.capability(AttentionTokens)
        known = [name for name in attention_layers(target) if tokens.selects(name.partition(".")[2])]
        if not known:
            raise UnsupportedError(
                f"{target.name} has no self-attention layer that matches the names in its family's adapter"
            )
        if self.config.layers is None:
            return known
        for pattern in self.config.layers:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise UnsupportedError(
                    f"layers: {pattern!r} is not a self-attention layer of {target.name}{suggestion(pattern, known)} "
                    f"It has {len(known)}, the first is {known[0]!r}; patterns with * are allowed"
                )
        return [name for name in known if any(fnmatchcase(name, pattern) for pattern in self.config.layers)]

    def _kernel_findings(self, target: Target) -> Iterable[Finding]:
        """Which kernels are tried where the pipeline runs; the report names the one that was used."""
        import torch  # postponed: listings of plugins do without it

        from hasten.plugins.rettention.kernels import load_kernel, preferred

        device = torch.device(target.device)
        if self.config.kernel == "auto":
            yield Finding("note", f"kernel on {device.type}: {', else '.join(preferred(device))}")
            return
        try:
            load_kernel(self.config.kernel)
        except UnsupportedError as error:
            yield Finding("error", str(error))
            return
        yield Finding("note", f"kernel on {device.type}: {self.config.kernel}, as asked")


@hookimpl
def hasten_register_techniques(register: Callable[[type[Technique[Any]]], None]) -> None:
    """Register the technique."""
    register(Rettention)


@hookimpl
def hasten_register_benchmarks(group: typer.Typer) -> None:
    """Offer ``hasten bench attention``."""
    from hasten.plugins.rettention import bench

    bench.register(group)
