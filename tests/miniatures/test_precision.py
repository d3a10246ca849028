"""The number format of training steps follows the processor."""

from __future__ import annotations

import pytest
import torch

from hasten_miniatures.precision import mixed_precision


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [("AVX512", torch.bfloat16), ("AVX2", torch.float32), ("DEFAULT", torch.float32)],
)
def test_bfloat16_only_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch, capability: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    layer, x = torch.nn.Linear(4, 4), torch.ones(2, 4)
    with mixed_precision(x.device):
        y = layer(x)
    assert y.dtype == dtype


def test_an_outer_context_is_overruled_on_a_slow_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16), mixed_precision(x.device):
        assert (x @ x).dtype == torch.float32
