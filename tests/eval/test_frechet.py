"""Golden numbers, invariances and oracles of the Frechet distance."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten._errors import ConfigError
from hasten.eval.functional.frechet import (
    covariance_factor,
    frechet_distance,
    frechet_distance_of_features,
    frechet_distance_to,
    noise_floor,
)
from hasten.eval.functional.moments import Moments, merge_all


def moments(mean: list[float], covariance: object, n: int = 10**6) -> Moments:
    sigma = torch.as_tensor(covariance, dtype=torch.float64)
    return Moments(n, torch.tensor(mean, dtype=torch.float64), sigma * (n - 1))


def draw(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.2, 2, d, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * spread * scale + shift


def diagonal(*values: float) -> Tensor:
    return torch.diag(torch.tensor(values, dtype=torch.float64))


def slow(x: Tensor, y: Tensor) -> float:
    """The definition with numpy's covariance and a general eigensolver."""
    a, b = np.cov(x.T.numpy()), np.cov(y.T.numpy())
    root = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum()) + np.trace(a) + np.trace(b) - 2 * root


class TestGolden:
    def test_diagonal_covariances(self) -> None:
        figure = frechet_distance(
            moments([0, 0, 0], diagonal(1, 4, 9)), moments([1, 2, 2], diagonal(4, 4, 1))
        )
        assert figure.raw == pytest.approx(14, rel=1e-9)
        assert figure.mean_term == pytest.approx(9, rel=1e-12)

    def test_product_of_covariances_is_not_taken_for_symmetric(self) -> None:
        x, y = moments([0, 0], [[2, 1], [1, 2]]), moments([0, 0], [[1, 0], [0, 3]])
        assert frechet_distance(x, y).raw == pytest.approx(0.516685226452117, rel=1e-9)

    def test_unbiased_covariance_is_used(self) -> None:
        x, y = (torch.tensor(v, dtype=torch.float64)[:, None] for v in ([0, 2], [1, 5]))
        assert frechet_distance_of_features(x, y).raw == pytest.approx(6, rel=1e-9)
        assert frechet_distance(Moments.of(x), Moments.of(y)).raw == pytest.approx(6, rel=1e-9)

    def test_swapped_spreads(self) -> None:
        figure = frechet_distance(moments([0, 0], diagonal(9, 1)), moments([0, 0], diagonal(1, 9)))
        assert figure.raw == pytest.approx(8, rel=1e-9)

    def test_shift(self) -> None:
        x = draw(100, 8, 0)
        assert frechet_distance_of_features(x, x + 0.5).raw == pytest.approx(2.0, rel=1e-9)

    def test_doubling(self) -> None:
        x = draw(100, 8, 0, shift=0.3)
        expected = float(x.mean(0).square().sum() + Moments.of(x).covariance.trace())
        assert frechet_distance_of_features(x, 2 * x).raw == pytest.approx(expected, rel=1e-9)

    def test_identical_sets(self) -> None:
        many, few = draw(200, 16, 1), draw(10, 16, 1)
        assert abs(frechet_distance_of_features(many, many).raw) < 1e-9 * float(many.var(0).sum())
        assert abs(frechet_distance_of_features(few, few).raw) < 1e-10
        assert abs(frechet_distance(Moments.of(few), Moments.of(few)).raw) < 1e-4
        assert frechet_distance_of_features(many, many).value >= 0

    def test_null_bias_formula(self) -> None:
        floor = noise_floor(moments([0] * 16, torch.eye(16)), 1000, 1000)
        assert floor == pytest.approx(2 / 1000 * 16 + 16 * 17 / 4 * 2 / 999, rel=1e-12)
        generator = torch.Generator().manual_seed(0)
        figures = []
        for _ in range(200):
            x, y = torch.randn(2, 1000, 16, generator=generator, dtype=torch.float64)
            figures.append(frechet_distance_of_features(x, y).raw)
        assert np.mean(figures) == pytest.approx(floor, rel=0.05)


class TestInvariance:
    def test_rotation_symmetry_and_scaling(self) -> None:
        x, y = draw(60, 6, 0), draw(50, 6, 1, 1.3, 0.2)
        q = torch.linalg.qr(draw(6, 6, 2)).Q
        value = frechet_distance_of_features(x, y).raw
        assert frechet_distance_of_features(x @ q, y @ q).raw == pytest.approx(value, rel=1e-9)
        assert frechet_distance_of_features(y, x).raw == pytest.approx(value, rel=1e-9)
        assert frechet_distance_of_features(3 * x, 3 * y).raw == pytest.approx(9 * value, rel=1e-9)

    def test_block_diagonal_additivity(self) -> None:
        a, b = [[2.0, 1], [1, 2]], [[1.0, 0], [0, 3]]
        pair = frechet_distance(moments([0, 0], a), moments([0, 0], b)).raw
        block = [torch.block_diag(torch.tensor(s), torch.tensor(s)) for s in (a, b)]
        double = frechet_distance(moments([0] * 4, block[0]), moments([0] * 4, block[1])).raw
        assert double == pytest.approx(2 * pair, rel=1e-9)

    @settings(max_examples=25, deadline=None)
    @given(st.integers(2, 12), st.integers(2, 30), st.integers(2, 30), st.integers(0, 10**6))
    def test_every_path_agrees_at_any_rank(self, d: int, n: int, m: int, seed: int) -> None:
        x, y = draw(n, d, seed), draw(m, d, seed + 1, 0.7, 0.4)
        expected, size = slow(x, y), float(x.var(0).sum() + y.var(0).sum())
        reference = Moments.of(y)
        tolerance = 1e-6 * size + 1e-9
        assert abs(frechet_distance_of_features(x, y).raw - expected) < tolerance
        assert abs(frechet_distance(Moments.of(x), reference).raw - expected) < tolerance
        to = frechet_distance_to(x, reference, covariance_factor(reference)).raw
        assert abs(to - expected) < tolerance


class TestOracles:
    @pytest.mark.parametrize("n", [200, 12])
    def test_scipy_square_root(self, n: int) -> None:
        x, y = draw(n, 20, 0), draw(n + 3, 20, 1, 1.2, 0.1)
        a, b = Moments.of(x), Moments.of(y)
        root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy())
        expected = float((a.mean - b.mean).square().sum()) + float(
            a.covariance.trace() + b.covariance.trace()
        )
        expected -= 2 * float(np.trace(root).real)
        assert frechet_distance_of_features(x, y).raw == pytest.approx(expected, rel=1e-6)

    def test_torchmetrics(self) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        class Rows(torch.nn.Module):
            num_features = 8

            def forward(self, x: Tensor) -> Tensor:
                return x.flatten(1)[:, :8].double()

        oracle = FrechetInceptionDistance(feature=Rows()).set_dtype(torch.float64)
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randint(0, 256, (2, 64, 3, 4, 4), generator=generator, dtype=torch.uint8)
        oracle.update(x, real=True)
        oracle.update(y, real=False)
        ours = frechet_distance_of_features(*(v.flatten(1)[:, :8] for v in (x, y))).value
        assert ours == pytest.approx(float(oracle.compute()), rel=1e-6)


class TestMoments:
    @pytest.mark.parametrize("shards", range(1, 8))
    @pytest.mark.parametrize("offset", [0.0, 1e6])
    def test_streaming_equals_one_shot(self, shards: int, offset: float) -> None:
        x, y = draw(70, 8, 0, shift=offset), draw(90, 8, 1, 1.5, shift=offset)
        parts = [Moments.of(part) for part in x.tensor_split(shards)]
        order = np.random.default_rng(shards).permutation(shards)
        merged = merge_all(parts[i] for i in order)
        expected = frechet_distance_of_features(x - offset, y - offset).raw
        assert frechet_distance(merged, Moments.of(y)).raw == pytest.approx(expected, rel=1e-8)

    def test_agrees_with_numpy(self) -> None:
        x = draw(5000, 3, 0)  # more than one internal block
        assert np.allclose(Moments.of(x).covariance, np.cov(x.T.numpy()), rtol=1e-12)

    @settings(max_examples=20, deadline=None)
    @given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 10**6))
    def test_without_inverts_merge(self, n: int, m: int, seed: int) -> None:
        a, b = Moments.of(draw(n, 4, seed, shift=5)), Moments.of(draw(m, 4, seed + 1))
        back = a.merge(b).without(b)
        assert back.n == n
        assert torch.allclose(back.mean, a.mean, rtol=1e-9)
        assert torch.allclose(back.scatter, a.scatter, rtol=1e-8, atol=1e-8)

    def test_pack_and_empty(self) -> None:
        a = Moments.of(draw(9, 4, 0))
        again = Moments.unpack(a.pack())
        assert again.n == 9
        assert torch.equal(again.scatter, a.scatter)
        assert torch.equal(Moments.empty(4).merge(a).mean, a.mean)
        assert Moments.empty(4).merge(Moments.empty(4)).n == 0

    def test_half_precision_features_are_not_computed_in_half(self) -> None:
        x = (draw(50, 4, 0) * 300).half()
        assert Moments.of(x).covariance.max() > 65504


class TestBadInput:
    def test_nan_is_counted_and_located(self) -> None:
        x = draw(10, 3, 0)
        x[4, 1] = math.nan
        x[7] = math.inf
        with pytest.raises(ConfigError, match=r"2 of 10 rows, the first is row 4"):
            Moments.of(x)

    def test_one_sample_is_an_error_not_nan(self) -> None:
        with pytest.raises(ConfigError, match="at least two samples"):
            frechet_distance_of_features(draw(1, 3, 0), draw(9, 3, 0))

    def test_dimensions_must_agree(self) -> None:
        with pytest.raises(ConfigError, match="3 and 4 dimensions"):
            frechet_distance(Moments.of(draw(9, 3, 0)), Moments.of(draw(9, 4, 0)))
        with pytest.raises(ConfigError, match="different networks"):
            Moments.of(draw(9, 3, 0)).merge(Moments.of(draw(9, 4, 0)))

    def test_fewer_samples_than_dimensions_warn_and_are_exact(self, caplog: pytest.LogCaptureFixture) -> None:
        x, y = draw(5, 12, 0), draw(6, 12, 1)
        with caplog.at_level(logging.WARNING, "hasten"):
            figure = frechet_distance_of_features(x, y)
        assert "5 samples for 12 feature dimensions" in caplog.text
        assert figure.raw == pytest.approx(slow(x, y), rel=1e-6)

    def test_constant_feature_dimension(self) -> None:
        x, y = draw(50, 4, 0), draw(50, 4, 1)
        x[:, 2] = y[:, 2] = 1.0
        assert frechet_distance_of_features(x, y).raw == pytest.approx(slow(x, y), rel=1e-6)
