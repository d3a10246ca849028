"""The caches that diffusers brings itself, as a technique: what a comparison has to show beside any other.

``model.enable_cache(...)`` leaves hooks on the modules and their memory from one call to the next. Here a cache is
applied when a call of the pipeline begins and is gone, with every attribute it set, when the call ends. The branch of
guidance is told to the hooks at every forward, also in pipelines that don't do so themselves (Stable Diffusion 3).
"""

# ruff: noqa: ARG002 (the host passes arguments that a technique may not need)
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from diffusers import hooks
from diffusers.models.cache_utils import CacheMixin
from pydantic import Field
from torch import nn

from hasten.extend import (
    Access,
    Claim,
    ConfigError,
    DenoiserCall,
    Finding,
    RunCall,
    Seams,
    Target,
    Technique,
    TechniqueConfig,
    UnsupportedError,
    hookimpl,
    kept,
)

CACHES = {
    "first_block": (hooks.FirstBlockCacheConfig, hooks.apply_first_block_cache),
    "pyramid": (hooks.PyramidAttentionBroadcastConfig, hooks.apply_pyramid_attention_broadcast),
    "taylorseer": (hooks.TaylorSeerCacheConfig, hooks.apply_taylorseer_cache),
}
HOOKED = ("forward", "_diffusers_hook")
"""Attributes of a module that diffusers' hooks set."""


def hooked(module: nn.Module) -> bool:
    """Whether a module has hooks of diffusers. A registry without any does nothing."""
    registry = vars(module).get(HOOKED[1])
    return registry is not None and bool(registry.hooks)


class DiffusersCacheConfig(TechniqueConfig):
    """Which cache, and the arguments of its configuration class in diffusers."""

    kind: Literal["first_block", "pyramid", "taylorseer"]
    options: dict[str, int | float | tuple[int, int] | tuple[str, ...]] = Field(default_factory=dict)

    def build(self, timestep: Callable[[], int]) -> object:
        """The configuration as diffusers has it.

        Args:
            timestep: returns the timestep of the forward that is under way.

        Raises:
            ConfigError: if diffusers' class has no such option.
        """
        options: dict[str, Any] = dict(self.options)
        if self.kind == "pyramid":
            options["current_timestep_callback"] = timestep
        try:
            return CACHES[self.kind][0](**options)
        except TypeError as error:
            raise ConfigError(f"diffusers_cache.options for kind={self.kind!r}: {error}") from error


class DiffusersCache(Technique[DiffusersCacheConfig]):
    """Reuses or extrapolates what layers computed at earlier steps."""

    name = "diffusers_cache"
    summary = "a cache of diffusers itself, for comparison"
    config_class = DiffusersCacheConfig
    sameness = "close"

    def claims(self, target: Target) -> list[Claim]:
        """Layers that are skipped compute no attention, and what is reused must have as many tokens as now."""
        return [
            Claim("attention.self", Access.EXCLUSIVE),
            Claim("tokens.shape", Access.READS, follows_writes=False),
        ]

    def check(self, target: Target) -> list[Finding]:
        """The options have to exist, and no hooks of diffusers may be there already."""
        self.config.build(lambda: 0)
        return [
            Finding("error", f"{denoiser}.{name}: {reason}")
            for denoiser, model in target.denoisers.items()
            for name, module in model.named_modules()
            if (reason := self._obstacle(module))
        ][:1]

    def _obstacle(self, module: nn.Module) -> str | None:
        if hooked(module):
            return "has hooks of diffusers already (a cache, offloading); remove them first"
        if self.config.kind == "first_block" and getattr(module, "context_pre_only", False):
            return "returns no text states, which the first-block cache needs; take pyramid or taylorseer"
        return None

    def attach(self, target: Target, seams: Seams) -> None:
        """Apply the cache around every call, and name the branch at every forward."""
        self._timestep = 0

        def run(call: RunCall, proceed: Callable[[RunCall], object]) -> object:
            with ExitStack() as stack:
                for model in target.denoisers.values():
                    stack.enter_context(self._enabled(model))
                return proceed(call)

        seams.run(run)
        seams.denoiser(self._forward)

    def _forward(self, call: DenoiserCall, proceed: Callable[[DenoiserCall], object]) -> object:
        self._timestep = round(1000 * call.step.noise.time)  # models disagree on the unit of their argument
        with CacheMixin.cache_context(call.module, call.step.branch):  # also of models that do not inherit it
            return proceed(call)

    @contextmanager
    def _enabled(self, model: nn.Module) -> Iterator[None]:
        """``model`` with a fresh cache, and afterwards without a trace of it.

        Raises:
            UnsupportedError: the cache would have been off in silence.
        """
        apply = CACHES[self.config.kind][1]
        modules = list(model.modules())
        with ExitStack() as stack:
            for module in modules:
                stack.enter_context(kept(module, *HOOKED))
                vars(module).pop(
                    HOOKED[1], None
                )  # an empty registry, which pipelines leave that name their branches
            apply(model, self.config.build(lambda: self._timestep))
            if not any(hooked(module) for module in modules):
                raise UnsupportedError(
                    f"diffusers' {self.config.kind} cache finds no layer it knows in {type(model).__name__}; "
                    "name them in diffusers_cache.options (identifiers), or take another kind"
                )
            yield


@hookimpl
def hasten_register_techniques(register: Callable[[type[DiffusersCache]], None]) -> None:
    """Offer the technique to `hasten`."""
    register(DiffusersCache)
