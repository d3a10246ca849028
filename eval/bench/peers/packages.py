"""Peers that are separate packages: cache-dit, DeepCache and ToMeSD."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from hasten.eval.bench.peers.peer import Peer, Position, denoiser_of, own_forwards

__all__ = ["CacheDit", "DeepCache", "ToMe"]

_STACKS = ("transformer_blocks", "blocks")
"""Names of a transformer's list of blocks."""


class CacheDit(Peer):
    """DBCache of cache-dit."""

    name = "cache-dit"
    package = "cache-dit"
    about = (
        "DBCache: skips the blocks after the first while its residual changes little. Recommended: F1B0, 8 warm-up "
        "steps, threshold 0.08 (its default F8 presumes more than 8 blocks). Grid: 2 warm-up steps, threshold "
        "0.12 to 0.35"
    )

    def refusal(self, pipe: Any) -> str | None:
        """It caches stacks of transformer blocks."""
        return (
            None if _stack(pipe) is not None else f"{type(denoiser_of(pipe)).__name__} has no stack of blocks"
        )

    def positions(self, pipe: Any) -> Sequence[Position]:  # noqa: ARG002
        """Over the threshold."""
        grid = [Position(f"{value:g}", {"warmup": 2, "threshold": value}) for value in (0.12, 0.2, 0.35)]
        return [Position("recommended", {"warmup": 8, "threshold": 0.08}, True, False), *grid]

    @contextmanager
    def attached(self, pipe: Any, options: Mapping[str, Any], steps: int) -> Iterator[None]:
        """By its own adapter of the family, else by one that names the stack of blocks."""
        library = import_module("cache_dit")
        for name in [name for name in logging.root.manager.loggerDict if name.startswith("cache_dit")]:
            logging.getLogger(name).setLevel(logging.ERROR)  # it reports every attachment
        config = library.DBCacheConfig(
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            max_warmup_steps=options["warmup"],
            residual_diff_threshold=options["threshold"],
            num_inference_steps=steps,
        )
        adapter = pipe
        if not library.BlockAdapterRegister.is_supported(pipe):
            model, stack = denoiser_of(pipe), _stack(pipe)
            adapter = library.BlockAdapter(
                pipe=pipe, transformer=model, blocks=stack, forward_pattern=_pattern(library, stack)
            )
        with own_forwards(denoiser_of(pipe)):
            library.enable_cache(adapter, cache_config=config)
            try:
                yield
            finally:
                library.disable_cache(pipe)


def _stack(pipe: Any) -> Any:
    """The only list of blocks of a pipeline's denoiser; ``None`` where there are none or several kinds."""
    model = denoiser_of(pipe)
    found = [getattr(model, name) for name in _STACKS if hasattr(model, name)]
    return found[0] if len(found) == 1 and not hasattr(model, "single_transformer_blocks") else None


def _pattern(library: Any, stack: Any) -> Any:
    """The first of cache-dit's forward patterns that the blocks' signature and returns fit."""
    import inspect

    parameters = inspect.signature(type(stack[0]).forward).parameters
    patterns = library.ForwardPattern
    return patterns.Pattern_1 if "encoder_hidden_states" in parameters else patterns.Pattern_3


class DeepCache(Peer):
    """DeepCache of the package of that name."""

    name = "DeepCache"
    package = "DeepCache"
    about = "reuses the deep features of a U-Net. Recommended: every 3rd step in full, branch 0. Grid: every 2nd, 5th"

    def refusal(self, pipe: Any) -> str | None:
        """It wraps the blocks of a U-Net by name."""
        return None if hasattr(pipe, "unet") else "it needs a U-Net"

    def positions(self, pipe: Any) -> Sequence[Position]:  # noqa: ARG002
        """Over the interval of full steps."""
        return [Position(f"every {n}", {"interval": n}, n == 3) for n in (2, 3, 5)]

    @contextmanager
    def attached(self, pipe: Any, options: Mapping[str, Any], steps: int) -> Iterator[None]:  # noqa: ARG002
        """By its helper."""
        helper = import_module("DeepCache").DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=options["interval"], cache_branch_id=0)
        with own_forwards(pipe.unet):
            helper.enable()
            try:
                yield
            finally:
                helper.disable()


class ToMe(Peer):
    """Token merging of tomesd."""

    name = "ToMeSD"
    package = "tomesd"
    about = (
        "merges tokens of a U-Net's self-attention. Recommended: half of the tokens at the highest resolution. Grid: "
        "25 to 75 % of the tokens, down to a quarter of the resolution"
    )

    def refusal(self, pipe: Any) -> str | None:
        """It patches the transformer blocks of a U-Net."""
        return None if hasattr(pipe, "unet") else "it needs a U-Net"

    def positions(self, pipe: Any) -> Sequence[Position]:  # noqa: ARG002
        """Over the share of tokens."""
        grid = [Position(f"{share:g}", {"ratio": share, "max_downsample": 4}) for share in (0.25, 0.5, 0.75)]
        return [Position("recommended", {"ratio": 0.5, "max_downsample": 1}, True), *grid]

    @contextmanager
    def attached(self, pipe: Any, options: Mapping[str, Any], steps: int) -> Iterator[None]:  # noqa: ARG002
        """By its patch, which draws its own random numbers."""
        library = import_module("tomesd")
        library.apply_patch(pipe, **options)
        try:
            yield
        finally:
            library.remove_patch(pipe)
            for module in pipe.unet.modules():
                vars(module).pop("_tome_info", None)
