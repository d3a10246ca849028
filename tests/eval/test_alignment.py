"""Cosines, scales, the BLIP heads' formulas, latents and video figures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hasten._errors import ConfigError
from hasten.eval.functional.alignment import (
    ClipScale,
    cosine,
    match_probability,
    max_query_cosine,
    mean_score,
    scale_cosines,
)


def figure(cosines: Tensor, scale: ClipScale) -> float:
    return mean_score(scale_cosines(cosines, scale), scale)


class TestScales:
    def test_golden(self) -> None:
        value = cosine(torch.tensor([[1.0, 0]]), torch.tensor([[0.6, 0.8]]))
        assert float(value) == pytest.approx(0.6)
        assert figure(value, "percent") == pytest.approx(60)
        assert figure(value, "original") == pytest.approx(1.5)

    def test_clamping_each_or_the_mean(self) -> None:
        cosines = torch.tensor([0.6, -0.2], dtype=torch.float64)
        assert figure(cosines, "clamped") == pytest.approx(30)
        assert figure(cosines, "torchmetrics") == pytest.approx(20)
        assert figure(-cosines, "torchmetrics") == 0
        assert figure(-cosines, "percent") == pytest.approx(-20)
        assert scale_cosines(cosines, "torchmetrics").tolist() == pytest.approx([60, -20])

    def test_unknown_scale(self) -> None:
        with pytest.raises(ConfigError, match="percent"):
            scale_cosines(torch.zeros(1), "logits")

    def test_rows_must_match_and_have_a_direction(self) -> None:
        with pytest.raises(ConfigError, match="row by row"):
            cosine(torch.ones(2, 3), torch.ones(3, 3))
        with pytest.raises(ConfigError, match="zero"):
            cosine(torch.zeros(1, 3), torch.ones(1, 3))


class TestRetrievalFormulas:
    def test_best_query(self) -> None:
        queries = torch.tensor([[[1.0, 0], [0, 1]]])
        assert float(max_query_cosine(queries, torch.tensor([[0.6, 0.8]]))) == pytest.approx(0.8)
        with pytest.raises(ConfigError, match="don't match"):
            max_query_cosine(queries, torch.ones(2, 2))

    def test_one_softmax(self) -> None:
        assert float(match_probability(torch.tensor([[0.0, math.log(3)]]))) == pytest.approx(0.75)
