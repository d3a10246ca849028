"""PSNR, SSIM and MS-SSIM against golden numbers, direct computation and torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hasten._errors import ConfigError
from hasten.eval.functional.pixel import psnr
from hasten.eval.functional.ssim import ms_ssim, ssim
from hasten.eval.metrics.fidelity import Psnr
from hasten.eval.pictures.images import from_float


def flat(value: float, size: int = 16, n: int = 1) -> Tensor:
    return torch.full((n, 3, size, size), int(value), dtype=torch.uint8)


def noisy(images: Tensor, sigma: float = 12.0) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(images.shape, generator=generator) * sigma
    return (images + noise).round().clamp(0, 255).to(torch.uint8)


class TestPsnr:
    def test_golden(self) -> None:
        assert float(psnr(flat(7), flat(8))) == pytest.approx(48.1308036086791, rel=1e-9)
        assert float(psnr(flat(0), flat(16))) == pytest.approx(24.0484, abs=1e-4)
        assert float(psnr(flat(0), flat(255))) == 0
        assert float(psnr(flat(10), flat(26))) == float(psnr(flat(26), flat(10)))

    def test_pairs_are_averaged_and_not_pooled(self) -> None:
        base = torch.zeros(2, 3, 10, 10, dtype=torch.uint8)
        other = base.clone()
        # 20 dB is a mean squared error of 650.25, 40 dB of 6.5025.
        values = torch.tensor([20.0, 40.0], dtype=torch.float64)
        assert Psnr().summarize(values) == 30
        other[0] += 26
        other[1] += 3
        each = psnr(base, other)
        pooled = 10 * math.log10(255**2 / float((base.double() - other.double()).square().mean()))
        assert Psnr().summarize(each) == pytest.approx(float(each.mean()))
        assert Psnr().summarize(each) > pooled + 5

    def test_identical_images(self) -> None:
        values = psnr(flat(9, n=2), torch.cat([flat(9), flat(12)]))
        assert torch.isinf(values[0])
        assert Psnr().summarize(values) == pytest.approx((100 + float(values[1])) / 2)

    def test_rounding_beats_truncation(self) -> None:
        x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

        def decibels(stored: Tensor) -> float:
            return -10 * math.log10(float((stored / 255.0 - x).square().mean()))

        assert decibels(from_float(x)) == pytest.approx(58.9, abs=0.2)
        assert decibels((x * 255).byte()) == pytest.approx(52.9, abs=0.2)

    def test_torchmetrics(self, images: Tensor) -> None:
        from torchmetrics.functional.image import peak_signal_noise_ratio

        other = noisy(images)
        oracle = peak_signal_noise_ratio(
            images.double(), other.double(), data_range=255.0, reduction="none", dim=(1, 2, 3)
        )
        assert torch.allclose(psnr(images, other), oracle)

    def test_luma(self) -> None:
        grey = flat(100)
        red = grey.clone()
        red[:, 0] += 10
        assert float(psnr(grey, red, channel="y")) == pytest.approx(20 * math.log10(255 / 2.99))


def direct_ssim(a: Tensor, b: Tensor) -> float:
    """One channel, one window at a time, as in the paper."""
    axis = np.arange(11) - 5
    line = np.exp(-(axis**2) / (2 * 1.5**2))
    window = np.outer(line, line)
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for x, y in zip(a.double().numpy(), b.double().numpy()):
        for i in range(x.shape[0] - 10):
            for j in range(x.shape[1] - 10):
                u, v = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
                mu, mv = (window * u).sum(), (window * v).sum()
                uu, vv = (window * (u - mu) ** 2).sum(), (window * (v - mv) ** 2).sum()
                uv = (window * (u - mu) * (v - mv)).sum()
                values.append((2 * mu * mv + c1) * (2 * uv + c2) / ((mu**2 + mv**2 + c1) * (uu + vv + c2)))
    return float(np.mean(values))


class TestSsim:
    def test_constants(self) -> None:
        def expected(u: float, v: float) -> float:
            return (2 * u * v + 1e-4) / (u * u + v * v + 1e-4)

        assert expected(0.5, 0.6) == pytest.approx(0.98360924436, rel=1e-9)
        assert float(ssim(flat(0), flat(255))) == pytest.approx(9.999000099990002e-05, rel=1e-9)
        assert float(ssim(flat(102), flat(153))) == pytest.approx(expected(0.4, 0.6), rel=1e-9)
        assert float(ssim(flat(80), flat(80))) == pytest.approx(1, rel=1e-12)

    def test_valid_is_the_direct_computation(self, images: Tensor) -> None:
        a, b = images[:1, :, :18, :20], noisy(images)[:1, :, :18, :20]
        assert float(ssim(a, b)) == pytest.approx(direct_ssim(a[0], b[0]), rel=1e-9)

    def test_torchmetrics_variant(self, images: Tensor) -> None:
        from torchmetrics.functional.image import structural_similarity_index_measure

        a, b = images, noisy(images)
        oracle = structural_similarity_index_measure(
            a.double(), b.double(), data_range=255.0, reduction="none"
        )
        assert torch.allclose(ssim(a, b, variant="torchmetrics"), oracle, rtol=1e-9)
        assert not torch.allclose(ssim(a, b), oracle, rtol=1e-4)

    def test_multi_scale(self, images: Tensor) -> None:
        from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

        large = torch.nn.functional.interpolate(images[:2].float(), (176, 200), mode="bilinear")
        a = large.round().to(torch.uint8)
        b = noisy(a, 30.0)
        oracle = multiscale_structural_similarity_index_measure(
            a.double(), b.double(), data_range=255.0, reduction="none"
        )
        assert torch.allclose(ms_ssim(a, b, variant="torchmetrics"), oracle, rtol=1e-6)
        assert torch.allclose(ms_ssim(a, a), torch.ones(2, dtype=torch.float64))

    def test_sizes(self, images: Tensor) -> None:
        with pytest.raises(ConfigError, match="at least 11 pixels"):
            ssim(images[..., :10, :], images[..., :10, :])
        with pytest.raises(ConfigError, match="over 160"):
            ms_ssim(images, images)


class TestBadInput:
    def test_floats_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="uint8"):
            psnr(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8))

    def test_shapes(self) -> None:
        with pytest.raises(ConfigError, match="different shapes"):
            psnr(flat(0, 8), flat(0, 9))
        with pytest.raises(ConfigError, match=r"\[N, 3, H, W\]"):
            psnr(flat(0)[0], flat(0)[0])
