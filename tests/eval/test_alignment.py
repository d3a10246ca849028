"""Cosines, scales, the BLIP heads' formulas, latents and video figures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hasten._errors import ConfigError
from hasten.eval.functional.alignment import (
    cosine,
    directional_similarity,
    match_probability,
    max_query_cosine,
    mean_score,
    scale_cosines,
)
from hasten.eval.functional.latents import (
    latent_cosine,
    relative_l2,
    token_agreement,
    trajectory_divergence,
)
from hasten.eval.functional.pixel import psnr
from hasten.eval.functional.ssim import ssim
from hasten.eval.functional.video import consistency_curve, frame_curve, temporal_consistency, video_score


class TestScales:
    def test_golden(self) -> None:
        value = cosine(torch.tensor([[1.0, 0]]), torch.tensor([[0.6, 0.8]]))
        assert float(value) == pytest.approx(0.6)
        assert mean_score(value, "percent") == pytest.approx(60)
        assert mean_score(value, "original") == pytest.approx(1.5)

    def test_clamping_each_or_the_mean(self) -> None:
        cosines = torch.tensor([0.6, -0.2], dtype=torch.float64)
        assert mean_score(cosines, "clamped") == pytest.approx(30)
        assert mean_score(cosines, "torchmetrics") == pytest.approx(20)
        assert mean_score(-cosines, "torchmetrics") == 0
        assert mean_score(-cosines, "percent") == pytest.approx(-20)
        assert scale_cosines(cosines, "torchmetrics").tolist() == pytest.approx([60, -20])

    def test_unknown_scale(self) -> None:
        with pytest.raises(ConfigError, match="percent"):
            scale_cosines(torch.zeros(1), "logits")

    def test_rows_must_match_and_have_a_direction(self) -> None:
        with pytest.raises(ConfigError, match="row by row"):
            cosine(torch.ones(2, 3), torch.ones(3, 3))
        with pytest.raises(ConfigError, match="zero"):
            cosine(torch.zeros(1, 3), torch.ones(1, 3))

    def test_direction(self) -> None:
        a, b = torch.tensor([[1.0, 0]]), torch.tensor([[0.0, 1]])
        assert float(directional_similarity(a, b, a, b)) == pytest.approx(1)
        assert float(directional_similarity(a, b, b, a)) == pytest.approx(-1)


class TestRetrievalFormulas:
    def test_best_query(self) -> None:
        queries = torch.tensor([[[1.0, 0], [0, 1]]])
        assert float(max_query_cosine(queries, torch.tensor([[0.6, 0.8]]))) == pytest.approx(0.8)
        with pytest.raises(ConfigError, match="don't match"):
            max_query_cosine(queries, torch.ones(2, 2))

    def test_one_softmax(self) -> None:
        assert float(match_probability(torch.tensor([[0.0, math.log(3)]]))) == pytest.approx(0.75)


class TestLatents:
    def test_relative_error_and_cosine(self) -> None:
        base = torch.tensor([[[3.0, 4]], [[0, 0]], [[0, 0]]])
        other = torch.tensor([[[3.0, 9]], [[0, 0]], [[1, 0]]])
        assert relative_l2(base, other).tolist() == [1.0, 0.0, math.inf]
        assert float(latent_cosine(base, 2 * base)[0]) == pytest.approx(1)
        with pytest.raises(ConfigError, match="equal shape"):
            relative_l2(base, other[:2])

    def test_trajectory(self) -> None:
        steps = [torch.ones(2, 4) * (i + 1) for i in range(3)]
        other = [steps[0], steps[1] * 1.5, steps[2] * 2]
        divergence = trajectory_divergence(steps, other)
        assert divergence.shape == (3, 2)
        assert divergence[:, 0].tolist() == pytest.approx([0, 0.5, 1])
        with pytest.raises(ConfigError, match="3 and 2 steps"):
            trajectory_divergence(steps, other[:2])

    def test_tokens(self) -> None:
        base = [torch.tensor([[1], [1]]), torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4]])]
        other = [torch.tensor([[1], [9]]), torch.tensor([[1, 2, 3, 0], [1, 2, 3, 4]])]
        agreement = token_agreement(base, other)
        assert agreement.per_scale.tolist() == [[1, 0], [0.75, 1]]
        assert agreement.first_divergent.tolist() == [1, 0]
        assert token_agreement(base, base).first_divergent.tolist() == [2, 2]


class TestVideo:
    def frames(self, images: Tensor, values: list[int]) -> Tensor:
        base = torch.zeros(len(values), 3, 16, 16, dtype=torch.uint8)
        return base + torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1)

    def test_curve_and_means(self, images: Tensor) -> None:
        base, other = self.frames(images, [0, 0, 0]), self.frames(images, [1, 16, 0])
        curve = frame_curve(base, other)
        assert torch.equal(curve, psnr(base, other))
        score = video_score([curve, curve[:1]])
        assert score.tolist() == pytest.approx([float(curve.clamp(max=100).mean()), float(curve[0])])
        assert frame_curve(base, other, ssim).shape == (3,)

    def test_different_lengths_are_refused(self, images: Tensor) -> None:
        with pytest.raises(ConfigError, match="3 and 2 frames"):
            frame_curve(self.frames(images, [0, 0, 0]), self.frames(images, [0, 0]))

    def test_seams(self, images: Tensor) -> None:
        base = self.frames(images, [0, 10, 20, 30, 40])
        jump = self.frames(images, [0, 10, 50, 60, 70])
        result = temporal_consistency(base, jump, seams=[2])
        assert result.base.tolist() == consistency_curve(base).tolist()
        assert result.seams == pytest.approx(20 * math.log10(10 / 40))
        assert result.seam_excess == pytest.approx(result.seams)
        assert result.difference == pytest.approx(result.seams / 4)
        assert temporal_consistency(base, jump).seams is None
        with pytest.raises(ConfigError, match="between frame 1 and 4"):
            temporal_consistency(base, jump, seams=[5])
