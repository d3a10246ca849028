"""One benchmark of attention: alternating timings, and the error against double precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hasten.eval.efficiency.timing import interleave
from hasten.eval.statistics import Estimate
from hasten.extend import ConfigError, TokenGrid
from hasten.plugins.rettention.config import RettentionConfig
from hasten.plugins.rettention.kernels import SparseKernel, choose_kernel
from hasten.plugins.rettention.layout import SparseLayout
from hasten.plugins.rettention.masks import mask_shape
from hasten.plugins.rettention.operands import Operands

__all__ = ["Measured", "Problem", "measure"]

_CHECKED = 512
"""Queries that are compared with double precision."""


@dataclass(frozen=True)
class Problem:
    """One attention call of a layer to measure."""

    name: str
    grid: TokenGrid
    batch: int
    heads: int
    dim: int
    config: RettentionConfig
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Measured:
    """What was found.

    Args:
        problem: what was measured.
        kernel: name of the kernel.
        why: reason for the choice.
        dense: the fastest dense backend, used for comparison.
        density: share of the score matrix that is kept.
        computed: share that is computed.
        dense_ms: median of dense attention.
        sparse_ms: median of a sparse call.
        ratio: dense over sparse, paired by round.
        error: largest difference to attention under the same mask in double precision, over a sample of queries.
        lse_error: the same of the log-sum-exp.
    """

    problem: Problem
    kernel: str
    why: str
    dense: str
    density: float
    computed: float
    dense_ms: float
    sparse_ms: float
    ratio: Estimate
    error: float
    lse_error: float

    def describe(self) -> str:
        """The shape in numbers, and the choice of the kernel."""
        p = self.problem
        kind = str(p.dtype).removeprefix("torch.")
        return (
            f"{p.name}: batch {p.batch}, {p.heads} heads, {p.grid.total} tokens ({p.grid.context} of text), "
            f"{p.dim} channels, {kind} on {p.device}; kernel {self.kernel}: {self.why}; dense: {self.dense}"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        p, grid = self.problem, self.problem.grid
        return {
            "shape": p.name,
            "batch": p.batch,
            "heads": p.heads,
            "dim": p.dim,
            "tokens": grid.total,
            "text": grid.context,
            "dtype": str(p.dtype).removeprefix("torch."),
            "mask": p.config.mask,
            "keep_ratio": p.config.keep_ratio,
            "kernel": self.kernel,
            "kernel_chosen_because": self.why,
            "dense": self.dense,
            "density": self.density,
            "computed": self.computed,
            "dense_ms": self.dense_ms,
            "sparse_ms": self.sparse_ms,
            "ratio": self.ratio.value,
            "ratio_low": self.ratio.low,
            "ratio_high": self.ratio.high,
            "error": self.error,
            "lse_error": self.lse_error,
        }


def measure(problem: Problem, rounds: int) -> Measured:
    """Measure one problem.

    Raises:
        ConfigError: the mask does not fit the shape, or keeps everything.
        UnsupportedError: the kernel that was asked for cannot serve it.
    """
    parts = _parts(problem)
    layout, device = parts.layout, problem.device
    kernel, why = choose_kernel(problem.config.kernel, device, problem.dtype, problem.dim, layout)

    def sparse() -> Tensor:
        out = parts.empty_like_output(layout.grid.total)
        kernel.attend(parts, out[:, :, layout.span])
        if layout.grid.context:
            out[:, :, layout.context_tokens] = parts.context_rows()
        return out

    with torch.no_grad():
        dense = _dense_backends(parts.query, parts.key, parts.value)
        times = interleave({**dense, "sparse": sparse}, rounds, warmup=2, device=device)
        error, lse_error = _errors(kernel, parts)
    fastest = min(dense, key=times.median)
    return Measured(
        problem,
        kernel.name,
        why,
        fastest,
        layout.density,
        layout.shape.computed(layout.grid),
        1e3 * times.median(fastest),
        1e3 * times.median("sparse"),
        times.ratio(fastest, "sparse"),
        error,
        lse_error,
    )


def _parts(problem: Problem) -> Operands:
    """Random operands under the problem's mask."""
    grid, config, device = problem.grid, problem.config, problem.device
    shape = mask_shape(config.mask, config.keep_ratio, config.tile, grid)
    if shape.covers_everything:
        raise ConfigError(
            f"keep_ratio={config.keep_ratio} keeps all keys: there is no sparse attention to measure"
        )
    generator = torch.Generator(device).manual_seed(0)
    size = (problem.batch, grid.total, problem.heads, problem.dim)
    q, k, v = (
        torch.randn(size, generator=generator, device=device, dtype=problem.dtype).transpose(1, 2)
        for _ in range(3)
    )
    return Operands(q, k, v, SparseLayout(shape, grid, device), problem.dim**-0.5)


def _dense_backends(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Torch's fused attention by name: its own choice and, on CUDA, every backend that serves the call."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def forced(backend: SDPBackend) -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v)

    tasks: dict[str, Callable[[], Tensor]] = {"torch's choice": lambda: scaled_dot_product_attention(q, k, v)}
    if q.is_cuda:
        for backend in (
            SDPBackend.FLASH_ATTENTION,
            SDPBackend.CUDNN_ATTENTION,
            SDPBackend.EFFICIENT_ATTENTION,
        ):
            try:
                forced(backend)
            except RuntimeError:  # what torch raises where a backend doesn't serve a call
                continue
            tasks[backend.name.lower()] = partial(forced, backend)
    return tasks


def _errors(kernel: SparseKernel, parts: Operands) -> tuple[float, float]:
    """Largest errors of output and log-sum-exp of the first sample, over evenly spaced queries."""
    q, k, v = (x[:1] for x in (parts.query, parts.key, parts.value))
    layout, grid, scale = parts.layout, parts.layout.grid, parts.scale
    out = torch.empty_like(q[:, :, : grid.tokens])
    lse = kernel.attend(Operands(q, k, v, layout, scale), out, need_lse=True)
    if lse is None:
        raise RuntimeError(f"kernel {kernel.name!r} returned no log-sum-exp")
    worst = [0.0, 0.0]
    order = layout.tokens
    for group in layout.groups:
        near = layout.exact(group)
        for tile in range(0, group.tiles, max(1, group.tiles * group.size // _CHECKED)):
            row = tile % group.size
            token = int(order[group.first + tile * group.size + row])
            kept = group.keys[tile] if near is None else group.keys[tile][near[tile, row]]
            keys = torch.cat([kept + grid.before, layout.context_tokens])
            scores = (q[0, :, token + grid.before, None].double() * k[0, :, keys].double()).sum(-1) * scale
            expected = (torch.softmax(scores, -1)[..., None] * v[0, :, keys].double()).sum(1)
            worst[0] = max(worst[0], float((out[0, :, token].double() - expected).abs().max()))
            worst[1] = max(worst[1], float((lse[0, :, token].double() - scores.logsumexp(-1)).abs().max()))
    return worst[0], worst[1]
