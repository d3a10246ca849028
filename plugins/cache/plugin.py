"""The technique ``cache``: claims, checks, attaching."""

# ruff: noqa: ARG002 (the host passes arguments that a technique may not need)
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hasten.extend import (
    Access,
    Claim,
    Finding,
    LatentLayout,
    Technique,
    UnsupportedError,
    hookimpl,
)
from hasten.plugins.cache.config import CacheConfig, FirstBlockConfig

if TYPE_CHECKING:
    from hasten.extend import Seams, StepRecord, Target
    from hasten.plugins.cache.handler import CachedForwards

__all__ = ["Cache"]

_FEWEST_STEPS = 6


class Cache(Technique[CacheConfig]):
    """Reuses or extrapolates what layers computed at earlier steps, by the caches that come with diffusers."""

    name = "cache"
    summary = "reuses what layers computed at earlier steps, by the caches of diffusers"
    config_class = CacheConfig
    requires = (LatentLayout,)
    sameness = "close"

    def claims(self, target: Target) -> list[Claim]:
        """Layers that are skipped compute no attention. Memory is dropped when the number of tokens changes.

        FasterCache decides over the batch before the layers tell their size, so it cannot follow.
        """
        claims = [
            Claim("attention.self", Access.EXCLUSIVE),
            Claim("tokens.shape", Access.READS, follows_writes=self.config.kind != "faster"),
            Claim("weights.structure", Access.READS),
        ]
        if self.config.kind == "faster":
            claims.append(Claim("batch.branches", Access.EXCLUSIVE))
        return claims

    def check(self, target: Target) -> Iterable[Finding]:
        """Refuse compiled denoisers, and models without layers that diffusers' cache knows."""
        from hasten.extend import refuse_compiled

        try:
            refuse_compiled(target)
        except UnsupportedError as error:
            return [Finding("error", str(error))]
        reason = self._forwards(target).obstacle()
        return self._told(target) if reason is None else [Finding("error", reason)]

    def _told(self, target: Target) -> list[Finding]:
        """Where the threshold of the family is from."""
        from hasten.extend import CacheDefaults

        config = self.config
        if not isinstance(config, FirstBlockConfig) or config.threshold is not None:
            return []
        known = target.adapter.capability(CacheDefaults)
        source = "diffusers' own, not measured for this family" if known is None else known.source
        return [Finding("note", f"threshold {config.for_family(known).threshold:g}: {source}")]

    def check_call(self, target: Target, arguments: Mapping[str, Any]) -> Iterable[Finding]:
        """Refuse calls that the kind cannot work in; say that a call has too few steps to reuse anything."""
        from hasten.plugins.cache.handler import call_steps

        reason, steps = self._forwards(target).refusal_of_call(arguments), call_steps(target, arguments)
        if reason is not None:
            yield Finding("error", reason)
        if steps < _FEWEST_STEPS:
            yield Finding("warning", f"{steps} steps are too far apart for a cache to reuse much of them")

    def attach(self, target: Target, seams: Seams) -> None:
        """Put the handlers on the seams."""
        self._forwards(target).attach(seams)

    def review(self, steps: Sequence[StepRecord]) -> Iterable[str]:
        """Say that nothing was reused."""
        facts = [step.facts[self.name] for step in steps if self.name in step.facts]
        if all(fact["computed"] == fact["layers"] for fact in facts):
            yield "no layer's output was reused"

    def _forwards(self, target: Target) -> CachedForwards:
        from hasten.plugins.cache.handler import CachedForwards

        return CachedForwards(self.name, self.config, target)


@hookimpl
def hasten_register_techniques(register: Callable[[type[Technique[Any]]], None]) -> None:
    """Offer the technique to the host."""
    register(Cache)
