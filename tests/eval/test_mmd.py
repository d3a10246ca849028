"""Golden numbers, oracles and identities of KID and CMMD."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten._errors import ConfigError
from hasten.eval.functional.mmd import (
    cmmd,
    discrepancy,
    gaussian_kernel,
    kernel_sums,
    kid,
    median_bandwidth,
    normalized,
    polynomial_kernel,
)

E = torch.eye(2, dtype=torch.float64)


def unit(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalized(torch.randn(n, d, generator=generator, dtype=torch.float64) + shift)


def slow(x: Tensor, y: Tensor, sigma: float, unbiased: bool) -> float:
    """Double loop over the definition."""

    def k(a: Tensor, b: Tensor) -> float:
        return math.exp(-float((a - b).square().sum()) / (2 * sigma**2))

    def within(s: Tensor) -> float:
        pairs = [(i, j) for i in range(len(s)) for j in range(len(s)) if not (unbiased and i == j)]
        return sum(k(s[i], s[j]) for i, j in pairs) / len(pairs)

    between = sum(k(a, b) for a in x for b in y) / (len(x) * len(y))
    return within(x) + within(y) - 2 * between


class TestGolden:
    def test_orthogonal_and_antipodal(self) -> None:
        assert cmmd(E[:1], E[1:]).biased == pytest.approx(19.900332501663787, rel=1e-9)
        assert cmmd(E[:1], -E[:1]).biased == pytest.approx(39.60265338648949, rel=1e-9)
        assert cmmd(E[:1], E[1:]).unbiased is None

    def test_two_against_their_opposites(self) -> None:
        figure = cmmd(E, -E)
        assert figure.biased == pytest.approx(19.801326693244747, rel=1e-9)
        assert figure.unbiased == pytest.approx(1000 * (math.exp(-0.01) - math.exp(-0.02)), rel=1e-9)
        assert figure.unbiased == pytest.approx(9.851160442412, rel=1e-12)

    def test_a_set_against_itself(self) -> None:
        figure = cmmd(E, E)
        assert figure.biased == pytest.approx(0, abs=1e-12)
        assert figure.unbiased == pytest.approx(-9.950166250831893, rel=1e-9)

    def test_kid(self) -> None:
        twos = torch.tensor([[2.0, 0], [2, 0]])
        assert kid(twos, torch.zeros(2, 2)) == pytest.approx(26, rel=1e-12)
        assert kid(torch.eye(2), torch.zeros(2, 2)) == pytest.approx(0, abs=1e-12)


class TestNumerics:
    @settings(max_examples=15, deadline=None)
    @given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 10**6))
    def test_definition(self, n: int, m: int, seed: int) -> None:
        x, y = unit(n, 5, seed), unit(m, 5, seed + 1, 0.3)
        figure = cmmd(x, y, sigma=0.8)
        assert figure.biased == pytest.approx(1000 * slow(x, y, 0.8, False), rel=1e-9)
        assert figure.unbiased == pytest.approx(1000 * slow(x, y, 0.8, True), rel=1e-7, abs=1e-9)

    def test_biased_minus_unbiased(self) -> None:
        x, y = unit(40, 8, 0), unit(30, 8, 1, 0.5)
        figure = cmmd(x, y)
        assert figure.unbiased is not None
        expected = 0.0
        for s in (x, y):
            kernel = torch.exp(-torch.cdist(s, s).square() / 200)
            n = len(s)
            off = float((kernel.sum() - kernel.trace()) / (n * (n - 1)))
            expected += 1000 / n * (1 - off)
        assert figure.biased - figure.unbiased == pytest.approx(expected, abs=1e-9)

    def test_blocks_equal_dense(self) -> None:
        x, y, kernel = unit(23, 6, 0), unit(17, 6, 1), gaussian_kernel(10.0)
        dense = kernel_sums(x, y, kernel, block=10**6).sums
        assert torch.allclose(kernel_sums(x, y, kernel, block=4).sums, dense, rtol=1e-12)
        within = kernel_sums(x, None, polynomial_kernel, block=5)
        assert torch.allclose(within.diagonal, polynomial_kernel(x, x).trace()[None], rtol=1e-12)

    def test_groups_add_up(self) -> None:
        x, y, kernel = unit(20, 6, 0), unit(15, 6, 1), gaussian_kernel(1.0)
        groups = torch.arange(20) % 4
        sums = kernel_sums(x, None, kernel, groups_x=groups)
        dense = kernel(x, x)
        for g in range(4):
            for h in range(4):
                block = dense[groups == g][:, groups == h].sum()
                assert float(sums.sums[g, h]) == pytest.approx(float(block), rel=1e-9)
        keep = torch.tensor([1.0, 0, 1, 1], dtype=torch.float64)
        rest = x[groups != 1]
        figure = discrepancy(
            sums,
            kernel_sums(y, None, kernel),
            kernel_sums(x, y, kernel, groups_x=groups),
            unbiased=True,
            keep=keep,
        )
        assert 1000 * figure == pytest.approx(cmmd(rest, y, sigma=1.0).unbiased, rel=1e-9)

    def test_float32_features_are_computed_in_float64(self) -> None:
        x, y = unit(50, 8, 0).float(), unit(50, 8, 1).float()
        assert cmmd(x, y).biased == pytest.approx(cmmd(x.double(), y.double()).biased, rel=1e-12)

    def test_first_order_is_the_distance_of_means(self) -> None:
        x, y = unit(300, 16, 0), unit(300, 16, 1, 0.4)
        squared = float((x.mean(0) - y.mean(0)).square().sum())
        assert cmmd(x, y).biased / (10 * squared) == pytest.approx(1, abs=0.02)

    def test_zero_embedding_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="embedding 1 is zero"):
            cmmd(torch.tensor([[1.0, 0], [0, 0]]), E)

    def test_median_bandwidth(self) -> None:
        x = unit(30, 4, 0)
        assert median_bandwidth(x) == pytest.approx(float(torch.pdist(x).median()))
        with pytest.raises(ConfigError, match="equal"):
            median_bandwidth(torch.ones(5, 3))


class TestKidConventions:
    def test_torchmetrics(self) -> None:
        from torchmetrics.image.kid import KernelInceptionDistance

        class Rows(torch.nn.Module):
            num_features = 8

            def forward(self, x: Tensor) -> Tensor:
                return x.flatten(1)[:, :8].double() / 64

        generator = torch.Generator().manual_seed(0)
        x, y = torch.randint(0, 256, (2, 40, 3, 4, 4), generator=generator, dtype=torch.uint8)
        # A subset as large as the sets is the full statistic.
        oracle = KernelInceptionDistance(feature=Rows(), subsets=1, subset_size=40)
        oracle.update(x, real=True)
        oracle.update(y, real=False)
        rows = [v.flatten(1)[:, :8] / 64 for v in (x, y)]
        assert kid(*rows) == pytest.approx(float(oracle.compute()[0]), rel=1e-5)
