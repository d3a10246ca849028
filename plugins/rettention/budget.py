"""Memory of the statistics, and the choice of layers under a memory limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hasten.extend import (
    AttentionTokens,
    LatentSize,
    TokenGrid,
    UnsupportedError,
    attention_layers,
    unwrapped,
)
from hasten.plugins.rettention.config import CacheType, RettentionConfig

if TYPE_CHECKING:
    from hasten.extend import Target

__all__ = ["SparseLayer", "affordable", "require_room", "residual_dtype", "sparse_layers"]

_TYPES: dict[CacheType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8": torch.float8_e4m3fn,
}


@dataclass(frozen=True)
class SparseLayer:
    """A layer of the technique, at one size of the latents.

    Args:
        name: qualified, starting with the denoiser.
        grid: the tokens it attends over.
        heads: attention heads.
        width: channels of all heads together.
    """

    name: str
    grid: TokenGrid
    heads: int
    width: int

    @property
    def flops(self) -> float:
        """Operations of dense attention of one sample."""
        return 4.0 * self.width * self.grid.total**2

    def bytes(self, samples: int, residual: torch.dtype, correction: str) -> int:
        """Memory of its statistics: residual, its scales if quantised, and ``rho``."""
        if correction == "none":
            return 0
        size = self.width * residual.itemsize
        size += 4 * self.heads * ((residual.itemsize == 1) + (correction == "full"))
        return samples * self.grid.tokens * size


def sparse_layers(
    target: Target, names: Sequence[str], size: LatentSize, text: int, min_tokens: int
) -> tuple[SparseLayer, ...]:
    """The layers ``names`` whose grid has at least ``min_tokens`` tokens at this size.

    Args:
        target: the pipeline.
        names: qualified layer names.
        size: latent size of a forward.
        text: text tokens.
        min_tokens: smaller grids stay dense.
    """
    tokens = target.capability(AttentionTokens)
    present = attention_layers(target)
    found = []
    for name in names:
        if name not in present:
            continue  # a pruned denoiser runs in its place, which has dropped the block
        denoiser, _, inner = name.partition(".")
        grid = tokens.planned(unwrapped(target.denoisers[denoiser]), inner, size, text)
        module: Any = present[name]
        if grid.tokens >= min_tokens:
            found.append(SparseLayer(name, grid, *_width(module)))
    return tuple(found)


def _width(module: Any) -> tuple[int, int]:
    """Number of heads of an attention module, and channels of all heads together."""
    heads = next(getattr(module, name) for name in ("heads", "num_heads", "n_heads") if hasattr(module, name))
    query = getattr(module, "to_q", None) or getattr(module, "to_query", None)
    return int(heads), int(module.inner_dim if query is None else query.out_features)


def residual_dtype(config: RettentionConfig, model: torch.dtype) -> torch.dtype:
    """Data type of stored residuals."""
    return model if config.cache_dtype == "auto" else _TYPES[config.cache_dtype]


def affordable(
    layers: Sequence[SparseLayer], samples: int, residual: torch.dtype, correction: str, budget: int | None
) -> tuple[frozenset[str], int]:
    """Layers whose statistics together fit into ``budget``, and their size.

    The time saved per byte grows with the number of tokens, so layers with the most tokens come first; equal ones
    in the order of the network.

    Raises:
        UnsupportedError: none of them fits.
    """
    chosen, total = [], 0
    for layer in sorted(layers, key=lambda layer: -layer.grid.tokens):
        needs = layer.bytes(samples, residual, correction)
        if budget is None or total + needs <= budget:
            chosen.append(layer.name)
            total += needs
    if layers and not chosen:
        least = min(layer.bytes(samples, residual, correction) for layer in layers)
        raise UnsupportedError(
            f"cache_budget={budget} bytes is too small for the statistics of any layer: the smallest takes "
            f"{least} bytes; raise it, or set cache_dtype='float8'"
        )
    return frozenset(chosen), total


def require_room(total: int, count: int, config: RettentionConfig, device: torch.device) -> None:
    """Refuse statistics that do not fit into memory.

    Args:
        total: bytes.
        count: layers they belong to.
        config: of the technique.
        device: where the model runs.

    Raises:
        UnsupportedError: there is less memory left, or ``offload`` is set where the model runs in host memory.
    """
    if config.offload and device.type != "cuda":
        raise UnsupportedError(
            f"offload=true moves residuals to host memory, but the model runs on {device} and they are "
            f"already there: remove it"
        )
    place = torch.device("cpu") if config.offload else device
    free = _free_bytes(place)
    if total <= free:
        return
    remedies = [f"cache_budget='{max(1, free // 2_000_000)}MB' to keep them for some layers only"]
    if residual_dtype(config, torch.float16).itemsize > 1:
        remedies.append("cache_dtype='float8' to make them smaller")
    if device.type == "cuda" and not config.offload:
        remedies.append("offload=true to keep them in host memory")
    raise UnsupportedError(
        f"the statistics of {count} layers need {total / 1e9:.2f} GB at this size, and {place} has {free / 1e9:.2f} GB "
        f"left: set {', or '.join(remedies)}"
    )


def _free_bytes(device: torch.device) -> int:
    """Free memory of a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    import psutil  # type: ignore[import-untyped]

    return int(psutil.virtual_memory().available)
