"""Masks with one row per query and with biases, as joint attention over text and picture has them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hasten._adapters.tokens import TokenGrid
from hasten._errors import UnsupportedError
from hasten.plugins.rettention.cache import ResidualCache
from hasten.plugins.rettention.config import RettentionConfig
from hasten.plugins.rettention.correction import CorrectedCall
from hasten.plugins.rettention.kernels import load_kernel
from hasten.plugins.rettention.kernels.flex import FlexKernel
from hasten.plugins.rettention.layout import SparseLayout
from hasten.plugins.rettention.masking import masking
from hasten.plugins.rettention.masks import mask_shape
from hasten.plugins.rettention.operands import Operands
from hasten.plugins.rettention.tally import Tally
from hasten.schedules.sparse_steps import Phase

GRID = TokenGrid(1, 6, 10, before=5)
SHOWN = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]).bool()
"""Text tokens of two samples."""


def of_pairs(dtype: torch.dtype) -> torch.Tensor:
    """(2, 1, N, N): whether both tokens of a pair count; as numbers, they are added to the scores (Chroma)."""
    tokens = torch.cat([SHOWN, torch.ones(2, GRID.tokens, dtype=torch.bool)], 1).to(dtype)
    return tokens[:, None, None, :] * tokens[:, None, :, None]


def call_of(mask: torch.Tensor, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, GRID.total, 8, generator=generator).to(dtype) for _ in range(3))
    call = SimpleNamespace(
        layer="layer",
        query=query,
        key=key,
        value=value,
        mask=mask,
        scale=None,
        grouped=False,
        backend=None,
        part=0,
        segment=None,
        step=SimpleNamespace(index=0, branch="both"),
    )
    vars(call).update(changes)
    return call


def dense(call: Any) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        call.query, call.key, call.value, attn_mask=call.mask
    )


MASKS = {
    "pairs": of_pairs(torch.bool),
    "pairs as a bias": of_pairs(torch.float32),
    "bias of text": torch.cat([SHOWN * 0.7 - 0.2, torch.zeros(2, GRID.tokens)], 1)[:, None, None],
    "bias of all": torch.full((2, 1, 1, GRID.total), 0.5),
    "hidden and bias": of_pairs(torch.float32).masked_fill(~of_pairs(torch.bool), -10_000.0),
}


@pytest.mark.parametrize("backend", [None, "foreign"])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("kernel", ["gather", "flex"])
def test_sparse_on_the_inputs_of_the_refresh_is_dense(name: str, kernel: str, backend: Any) -> None:
    config = RettentionConfig(ramp=0.0, warmup=0, min_tokens=4, keep_ratio=0.3)
    layout = SparseLayout(mask_shape("block", 0.3, 4, GRID), GRID)
    call = call_of(MASKS[name], backend=backend)
    found = masking(call, layout, paired=name.startswith("pairs"))
    assert found is not None
    parts = Operands.of(call, layout, found)
    chosen = FlexKernel(compiled=False) if kernel == "flex" else load_kernel("gather")
    cache = ResidualCache(torch.float32, False, None)
    corrected = CorrectedCall(call, dense, config, parts, chosen, cache, Tally())
    assert corrected.compute(Phase.REFRESH)[1] is Phase.REFRESH
    call.step.index = 1
    output, phase = corrected.compute(Phase.SPARSE)
    assert phase is Phase.SPARSE
    assert (output - dense(call)).abs().max() < 1e-5


def test_what_hides_nothing_is_no_mask() -> None:
    layout = SparseLayout(mask_shape("block", 0.3, 4, GRID), GRID)
    assert masking(call_of(torch.ones(1, 1, GRID.total, GRID.total, dtype=torch.bool)), layout) is None
    assert masking(call_of(torch.zeros(GRID.total)), layout) is None


def test_a_bias_in_a_segment_is_refused() -> None:
    layout = SparseLayout(mask_shape("block", 0.3, 4, GRID), GRID)
    with pytest.raises(UnsupportedError, match="which segments of a layer do not support"):
        masking(call_of(MASKS["bias of text"], segment=SimpleNamespace()), layout)
