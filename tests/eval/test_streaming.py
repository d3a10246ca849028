"""A folder of any size is scored in bounded memory: few pictures are alive at once, and features lie on disk."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hasten.eval.functional.frechet import frechet_distance_of_features
from hasten.eval.functional.mmd import kid
from hasten.eval.metrics.fidelity import Psnr
from hasten.eval.metrics.sets import Fid, Kid
from hasten.eval.networks.features import load_feature_network
from hasten.eval.pictures.loading import Reading
from hasten.eval.pictures.sources import ImageSource
from hasten.eval.scoring.folders import Pictures, score_pictures
from hasten.eval.scoring.kept import Rows
from hasten.eval.scoring.reference import Reference

COUNT, BATCH = 3000, 32


class Watched(ImageSource):
    """Small pictures made when they are asked for, which knows how many of them were alive together."""

    def __init__(self, name: str, seed: int) -> None:
        super().__init__(name, [f"{i:05d}" for i in range(COUNT)], frozenset({".png"}))
        self._seed, self.alive, self.most = seed, 0, 0

    def picture(self, index: int) -> Tensor:
        pixels = np.random.default_rng((self._seed, index)).integers(0, 256, (3, 8, 8), np.uint8)
        return torch.from_numpy(pixels)

    def load(self, index: int) -> Tensor:
        picture = self.picture(index)
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(picture, self._gone)
        return picture

    def _gone(self) -> None:
        self.alive -= 1


class Coarse(nn.Module):
    num_features = 12

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x.float() / 255, 2).flatten(1)


def test_few_pictures_are_alive_at_once(tmp_path: Path) -> None:
    generated, baseline = Watched("generated", 0), Watched("baseline", 1)
    real = np.random.default_rng(2).integers(0, 256, (64, 8, 8, 3), np.uint8)
    np.save(tmp_path / "real.npy", real)
    network = load_feature_network(Coarse())
    metrics = [Psnr(), Fid(network), Kid(network)]
    pictures = Pictures(generated, baseline, reading=Reading(BATCH))
    found = score_pictures(pictures, metrics, Reference(tmp_path / "real.npy"))
    assert found is not None
    assert found.count == COUNT
    assert max(generated.most, baseline.most) <= BATCH + 1
    x = network(torch.stack([generated.picture(i) for i in range(COUNT)]))
    y = network(torch.from_numpy(real).permute(0, 3, 1, 2))
    assert found.figures["kid"].value == pytest.approx(kid(x, y), rel=1e-9)
    expected = frechet_distance_of_features(x, y).raw
    assert found.figures["frechet_distance"].value == pytest.approx(expected, rel=1e-9)


def test_rows_lie_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    mapped: list[tuple[int, ...]] = []
    memmap = np.memmap

    class Seen(np.memmap):  # type: ignore[type-arg]
        def __new__(cls, *arguments: Any, **options: Any) -> Any:
            mapped.append(options["shape"])
            return memmap.__new__(cls, *arguments, **options)

    monkeypatch.setattr(np, "memmap", Seen)
    rows, parts = Rows(), [torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) for n in (3, 1, 4)]
    whole = torch.cat(parts)
    for part in parts:
        rows.append(part)
    assert len(rows) == 8
    assert torch.equal(rows.tensor(), whole)
    rows.append(parts[1])  # also after it was read
    assert torch.equal(rows.tensor(), torch.cat([whole, parts[1]]))
    assert mapped == [(8, 5), (9, 5)]
    assert len(Rows().tensor()) == 0
