"""Caches of diffusers (``enable_cache``) that a user put on a denoiser, found before every call.

Such a cache keeps what layers computed from one step to the next, and skips layers. Whoever changes the number of
tokens, the batch, the frames, the weights or the noise levels under it gets an error from inside diffusers at best, and
a picture made of two sizes at worst; whoever needs to see every attention layer sees only some. So a cache counts as
one more party with claims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hasten._claims import SLOTS, Access, Claim
from hasten._compat import cache_config, hooks_on, keeps_state, unwrapped
from hasten._conflicts import first_collision
from hasten._errors import ConflictError

if TYPE_CHECKING:
    from torch import nn

    from hasten._target import Target

__all__ = ["StepCache", "refuse_step_caches", "step_caches"]

_CLAIMS = tuple(
    Claim(slot, Access.EXCLUSIVE)
    if slot == "attention.self"
    else Claim(slot, Access.READS, follows_writes=False)
    for slot in SLOTS
)


@dataclass(frozen=True)
class StepCache:
    """A cache that is enabled.

    Args:
        denoiser: attribute name of the denoiser it is on.
        name: what diffusers calls it (``"FirstBlockCache"``).
        remedy: the call that takes it off.
    """

    denoiser: str
    name: str
    remedy: str


def step_caches(target: Target) -> list[StepCache]:
    """The caches on the denoisers right now, one for each denoiser that has any."""
    found = ((name, _cache_on(name, unwrapped(module))) for name, module in target.denoisers.items())
    return [StepCache(name, *cache) for name, cache in found if cache is not None]


def refuse_step_caches(target: Target, claims: Mapping[str, Sequence[Claim]]) -> None:
    """Refuse techniques that cannot work beside a cache the user enabled.

    Args:
        target: the pipeline.
        claims: of every technique that is, or would be, attached.

    Raises:
        ConflictError: naming the cache, the technique, the slot and the call that takes the cache off.
    """
    for cache in step_caches(target):
        for technique, claimed in claims.items():
            slot = first_collision(claimed, _CLAIMS)
            if slot is not None:
                raise ConflictError(
                    f"{technique!r} cannot be combined with the cache {cache.name} that is enabled on "
                    f"{target.name}.{cache.denoiser}: the cache skips layers and reuses their outputs of "
                    f"earlier steps, and {technique!r} changes or needs {SLOTS[slot]} (slot {slot!r}). "
                    f"Disable the cache with {cache.remedy}, or disable {technique!r}."
                )


def _cache_on(denoiser: str, module: nn.Module) -> tuple[str, str] | None:
    """Name and remedy of the cache on a denoiser."""
    config = cache_config(module)
    if config is not None:
        return type(config).__name__.removesuffix("Config"), f"pipe.{denoiser}.disable_cache()"
    # Put there by an apply_* function: disable_cache() would not know of it.
    hooks = {
        name: hook for part in module.modules() for name, hook in hooks_on(part).items() if keeps_state(hook)
    }
    if not hooks:
        return None
    kinds = ", ".join(dict.fromkeys(type(hook).__name__ for hook in hooks.values()))
    removals = ", ".join(f"remove_hook({name!r})" for name in hooks)
    return kinds, f"diffusers.hooks.HookRegistry.check_if_exists_or_initialize(pipe.{denoiser}): {removals}"
