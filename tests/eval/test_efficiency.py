"""Timing order and intervals, peak memory, and the operations torch's counter misses."""

from __future__ import annotations

import itertools
import logging
import mmap
import time
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch.nn.attention import SDPBackend, sdpa_kernel

from hasten._errors import ConfigError
from hasten.eval.efficiency import (
    count_flops,
    interleave,
    measure_flops,
    peak_memory,
    register_formula,
    stage_clock,
)
from hasten.eval.efficiency import memory as memory_module
from hasten.eval.efficiency.timing import _median_interval


class FakeClock:
    """Seconds that pass only when a task says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def task(self, name: str, seconds: list[float]) -> Callable[[], None]:
        durations = itertools.cycle(seconds)

        def run() -> None:
            self.order.append(name)
            self.now += next(durations)

        return run


class TestTiming:
    def test_order_and_warm_up(self) -> None:
        clock = FakeClock()
        tasks = {"a": clock.task("a", [9, 2, 4]), "b": clock.task("b", [5, 1, 1])}
        timings = interleave(tasks, 2, warmup=1, clock=clock)
        assert "".join(clock.order) == "ababab"
        assert timings.seconds == {"a": (2, 4), "b": (1, 1)}
        assert timings.warmup == {"a": (9,), "b": (5,)}
        assert timings.median("a") == 3
        assert timings.quartiles("a") == (2.5, 3.5)
        assert timings.as_dict()["b"]["median_s"] == 1

    def test_ratio_is_taken_round_by_round(self) -> None:
        clock = FakeClock()
        drift = [1.0, 2, 3, 4, 5, 6, 7, 8]  # the machine slows down eightfold
        tasks = {"a": clock.task("a", [2 * d for d in drift]), "b": clock.task("b", drift)}
        ratio = interleave(tasks, 8, warmup=0, clock=clock).ratio("a", "b")
        assert (ratio.value, ratio.low, ratio.high) == (2, 2, 2)
        assert ratio.level == 0.95

    def test_median_interval_has_the_stated_coverage(self) -> None:
        rng = np.random.default_rng(0)
        for n in (6, 9, 20):
            low, high, _ = _median_interval(np.arange(float(n)), 0.95)
            ordered = np.sort(rng.normal(size=(4000, n)), axis=1)
            assert np.mean((ordered[:, int(low)] <= 0) & (ordered[:, int(high)] >= 0)) > 0.94
        # Too few rounds for 95 %: the whole range, and its real coverage.
        assert _median_interval(np.arange(3.0), 0.95) == (0, 2, pytest.approx(0.75))
        assert _median_interval(np.arange(1.0), 0.95) == (0, 0, 0)

    def test_narrowest_order_statistics(self) -> None:
        for n in range(6, 60):
            low, high, _ = _median_interval(np.arange(float(n)), 0.95)
            k = int(low)
            assert high == n - 1 - k
            assert 1 - 2 * stats.binom.cdf(k, n, 0.5) >= 0.95
            assert 1 - 2 * stats.binom.cdf(k + 1, n, 0.5) < 0.95

    def test_stages(self) -> None:
        clock = FakeClock()
        stages = stage_clock(clock=clock)
        decode = stages.wrap("decode", clock.task("d", [3]))
        with stages.stage("denoise"):
            clock.now += 5
        decode()
        decode()
        assert stages.seconds == {"denoise": 5, "decode": 6}
        assert stages.calls == {"denoise": 1, "decode": 2}

    def test_bad_input(self) -> None:
        with pytest.raises(ConfigError, match="at least one task"):
            interleave({}, 3)
        with pytest.raises(ConfigError, match="only a"):
            interleave({"a": lambda: None}, 1).median("b")


class TestMemory:
    @pytest.mark.parametrize("sampled", [False, True])
    def test_a_passing_peak_is_seen(self, sampled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        if sampled:
            monkeypatch.setattr(memory_module, "_reset_high_water_mark", lambda: False)
        with peak_memory() as peak:
            block = mmap.mmap(-1, 40_000_000)  # not from an allocator, which may hold freed memory
            np.frombuffer(block, np.uint8).fill(1)
            time.sleep(0.1)
            block.close()
        assert 39e6 <= peak.above_start < 1e9
        assert ("sampled" in peak.source) == sampled
        assert peak.reserved is None

    def test_filled_in_when_the_block_raises(self) -> None:
        with pytest.raises(RuntimeError), peak_memory() as peak:
            raise RuntimeError
        assert peak.bytes > 0

    @pytest.mark.gpu
    def test_cuda_allocator(self) -> None:
        with peak_memory("cuda") as peak:
            torch.empty(2**20, device="cuda")
        assert peak.source == "CUDA allocator"
        assert peak.above_start >= 4 * 2**20


class TestFlops:
    @pytest.mark.parametrize("backend", [None, SDPBackend.MATH])
    def test_attention_on_the_cpu(self, backend: SDPBackend | None) -> None:
        q = torch.randn(1, 2, 64, 16)
        with sdpa_kernel(backend) if backend else nullcontext():
            assert count_flops(lambda: F.scaled_dot_product_attention(q, q, q)) == 524_288

    def test_cross_attention_with_a_mask_counts_as_dense(self) -> None:
        q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
        mask = torch.ones(5, 7, dtype=torch.bool)
        assert (
            count_flops(lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)) == 2 * 6 * 5 * 7 * 16
        )

    def test_linear_and_vectors(self) -> None:
        assert count_flops(lambda: F.linear(torch.randn(8, 32), torch.randn(16, 32))) == 8192
        assert count_flops(lambda: torch.mv(torch.randn(4, 6), torch.randn(6))) == 48
        assert count_flops(lambda: torch.dot(torch.randn(6), torch.randn(6))) == 12
        assert count_flops(lambda: torch.addmv(torch.randn(4), torch.randn(4, 6), torch.randn(6))) == 48
        batch = torch.randn(3, 4, 5), torch.randn(3, 5, 6)
        assert count_flops(lambda: torch.addbmm(torch.randn(4, 6), *batch)) == 2 * 3 * 4 * 5 * 6

    def test_a_custom_operator_is_named_until_it_has_a_formula(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        @torch.library.custom_op("hasten_test::gram", mutates_args=())
        def gram(x: torch.Tensor) -> torch.Tensor:
            return x @ x.T

        x = torch.randn(3, 4)
        before = measure_flops(lambda: gram(x))
        assert (before.total, before.uncounted) == (0, {"hasten_test.gram": 1})
        with caplog.at_level(logging.WARNING, "hasten"):
            count_flops(lambda: gram(x))
        assert "hasten_test.gram" in caplog.text
        register_formula(torch.ops.hasten_test.gram, lambda shape, **_: 2 * shape[0] * shape[0] * shape[1])
        after = measure_flops(lambda: gram(x))
        assert (after.total, after.by_operator, after.uncounted) == (72, {"hasten_test.gram": 72}, {})

    def test_fused_layers_are_named(self) -> None:
        layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
        with torch.no_grad():
            count = measure_flops(lambda: layer(torch.randn(1, 4, 16)))
        assert "aten._transformer_encoder_layer_fwd" in count.uncounted
