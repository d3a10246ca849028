"""Peers that come with diffusers: its caches, as ``denoiser.enable_cache`` would put them on.

Models without ``enable_cache`` get the same hooks by the same functions, with one memory for both branches of guidance
where the pipeline computes them in one batch.
"""

from __future__ import annotations

import logging
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hasten.eval.bench.peers.peer import Peer, Position, denoiser_of, own_forwards

__all__ = ["FasterCache", "FirstBlockCache", "Pyramid", "TaylorSeer"]

_HOOKS = "_diffusers_hook"
_BATCHED = ("hidden_states", "encoder_hidden_states", "timestep", "pooled_projections")
_ALL = (-1, 1001)
"""Every timestep, which diffusers compares strictly."""


class _DiffusersCache(Peer):
    package = "diffusers"

    @abstractmethod
    def _apply(self, model: Any, options: Mapping[str, Any], timestep: Any) -> None:
        """Put the hooks on ``model``; ``timestep()`` is the present one."""

    def refusal(self, pipe: Any) -> str | None:  # noqa: ARG002
        """It hooks modules by name, which its application finds or not."""
        return None

    @contextmanager
    def attached(self, pipe: Any, options: Mapping[str, Any], steps: int) -> Iterator[None]:  # noqa: ARG002
        """Hooks, and nothing left of them afterwards."""
        model = denoiser_of(pipe)
        seen = [0.0]

        def watch(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            time = kwargs["timestep"] if "timestep" in kwargs else args[1]
            seen[0] = float(time.reshape(-1)[0])

        before = {module: frozenset(_names(module)) for module in model.modules()}
        handle = model.register_forward_pre_hook(watch, with_kwargs=True)
        with own_forwards(model):
            try:
                with _quiet():
                    self._apply(model, options, lambda: seen[0])
                _forget_children(model)
                if not hasattr(model, "cache_context"):
                    _one_memory(model)
                yield
            finally:
                handle.remove()
                _remove(model, before)


class FirstBlockCache(_DiffusersCache):
    """FirstBlockCache of diffusers."""

    name = "first-block"
    about = (
        "diffusers' FirstBlockCache. Recommended: threshold 0.05, its default. Grid: 0.12 and 0.2 (the documentation's "
        "example)"
    )

    def refusal(self, pipe: Any) -> str | None:
        """It needs a stack of transformer blocks."""
        return "it needs a transformer" if hasattr(pipe, "unet") else None

    def positions(self, pipe: Any) -> Sequence[Position]:  # noqa: ARG002
        """Over the threshold."""
        return [
            Position(f"{value:g}", {"threshold": value}, value == 0.05, value != 0.05)
            for value in (0.05, 0.12, 0.2)
        ]

    def _apply(self, model: Any, options: Mapping[str, Any], timestep: Any) -> None:  # noqa: ARG002
        from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

        _keep_text(model)
        apply_first_block_cache(model, FirstBlockCacheConfig(**options))


class Pyramid(_DiffusersCache):
    """Pyramid Attention Broadcast of diffusers."""

    name = "pyramid"
    about = (
        "diffusers' Pyramid Attention Broadcast. Recommended: self-attention every 2nd step between timesteps 100 and "
        "800. Grid: every 3rd step"
    )

    def positions(self, pipe: Any) -> Sequence[Position]:  # noqa: ARG002
        """Over the interval."""
        return [Position(f"every {n}", {"interval": n}, n == 2) for n in (2, 3)]

    def _apply(self, model: Any, options: Mapping[str, Any], timestep: Any) -> None:
        from diffusers.hooks import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast

        config = PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=options["interval"],
            spatial_attention_timestep_skip_range=(100, 800),
            current_timestep_callback=timestep,
        )
        apply_pyramid_attention_broadcast(model, config)


class TaylorSeer(_DiffusersCache):
    """TaylorSeerCache of diffusers."""

    name = "taylorseer"
    about = (
        "diffusers' TaylorSeerCache, first order. Recommended: every 5th step in full after 10. Grid: every 3rd "
        "after 3"
    )

    def positions(self, pipe: Any) -> Sequence[Position]:  # noqa: ARG002
        """Over the interval; ten steps of warm-up leave nothing of a halved run."""
        return [
            Position("every 3", {"interval": 3, "warmup": 3}),
            Position("every 5", {"interval": 5, "warmup": 10}, True, False),
        ]

    def _apply(self, model: Any, options: Mapping[str, Any], timestep: Any) -> None:  # noqa: ARG002
        from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

        config = TaylorSeerCacheConfig(
            cache_interval=options["interval"],
            disable_cache_before_step=options["warmup"],
            max_order=1,
            taylor_factors_dtype=None,
            # Its own patterns find nothing in these models.
            cache_identifiers=[
                re.escape(name)
                for name, _ in model.named_modules()
                if name.rpartition(".")[2] in ("attn", "attn1", "attn2", "ff", "ffn", "ff_context")
            ],
        )
        apply_taylorseer_cache(model, config)


class FasterCache(_DiffusersCache):
    """FasterCache of diffusers."""

    name = "faster"
    about = (
        "diffusers' FasterCache. Recommended: attention every 2nd step, the unconditional branch every 5th, below "
        "timestep 681. Grid: at all timesteps"
    )

    def refusal(self, pipe: Any) -> str | None:
        """It takes one doubled batch apart."""
        if hasattr(denoiser_of(pipe), "cache_context"):
            return "it needs both branches of guidance in one batch"
        return "it needs a transformer" if hasattr(pipe, "unet") else None

    def positions(self, pipe: Any) -> Sequence[Position]:  # noqa: ARG002
        """Over the timesteps."""
        return [
            Position("recommended", {"below": 681}, True, False),
            Position("all timesteps", {"below": _ALL[1]}, False, False),
        ]

    def _apply(self, model: Any, options: Mapping[str, Any], timestep: Any) -> None:
        from diffusers.hooks import FasterCacheConfig, apply_faster_cache

        span = (_ALL[0], options["below"])
        config = FasterCacheConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=span,
            unconditional_batch_skip_range=5,
            unconditional_batch_timestep_skip_range=span,
            attention_weight_callback=lambda _: 0.5,
            tensor_format="BCHW",
            # What is divided between the branches; its own list lacks StableDiffusion3's pooled text.
            _unconditional_conditional_input_kwargs_identifiers=list(_BATCHED),
            current_timestep_callback=timestep,
        )
        apply_faster_cache(model, config)


def _keep_text(model: Any) -> None:
    """Let the last block of StableDiffusion3 return the text's tokens, which it drops and the hooks subtract.

    Nobody reads them after that block.
    """
    block = list(getattr(model, "transformer_blocks", ()))[-1:]
    if not block or not getattr(block[0], "context_pre_only", False):
        return
    inner = block[0].forward

    def forward(hidden_states: Any, encoder_hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        text, picture = inner(hidden_states, encoder_hidden_states, *args, **kwargs)
        return encoder_hidden_states if text is None else text, picture

    block[0].forward = forward


def _names(module: Any) -> list[str]:
    registry = getattr(module, _HOOKS, None)
    return [] if registry is None else list(registry.hooks)


def _one_memory(model: Any) -> None:
    """Open the memory that a pipeline with ``cache_context`` would open at every forward."""
    from diffusers.hooks import HookRegistry
    from diffusers.hooks.hooks import CacheContext, StateManager

    for module in model.modules():
        for name in _names(module):
            hook = HookRegistry.check_if_exists_or_initialize(module).get_hook(name)
            for value in vars(hook).values():
                if isinstance(value, StateManager):
                    value.set_context(CacheContext("both"))


def _remove(model: Any, before: Mapping[Any, frozenset[str]]) -> None:
    """Remove the hooks that were not there before."""
    for module in model.modules():
        for name in _names(module):
            if name not in before[module]:
                getattr(module, _HOOKS).remove_hook(name, recurse=False)
    _forget_children(model)


def _forget_children(model: Any) -> None:
    """Let the model find the modules with hooks anew: it remembers those of an earlier call."""
    from diffusers.hooks import HookRegistry

    HookRegistry.check_if_exists_or_initialize(model).invalidate_child_registries_cache()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that a cache is experimental, at every attachment."""
    logger = logging.getLogger("diffusers.hooks")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
