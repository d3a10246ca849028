"""The torchmetrics classes: same figures as the functional core, and the life cycle of a torchmetrics
metric.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from hasten._errors import ConfigError
from hasten.eval.functional.frechet import frechet_distance_of_features
from hasten.eval.functional.mmd import cmmd, kid
from hasten.eval.functional.pixel import capped, psnr
from hasten.eval.metrics.fidelity import Psnr, Ssim
from hasten.eval.metrics.sets import Cmmd, Fid, Kid
from hasten.eval.modules import FrechetDistance, SampleScore, SetScore
from hasten.eval.networks.features import FeatureNetwork, load_feature_network


@pytest.fixture
def network(conv_features: nn.Module) -> FeatureNetwork:
    return load_feature_network(conv_features)


@pytest.fixture
def sides(images: Tensor, network: FeatureNetwork) -> dict[str, Tensor]:
    fake = torch.cat([images, images.flip(3)])
    real = torch.cat([images.flip(2), 255 - images, images.flip(3)])
    return {"fake": fake, "real": real}


def fed(module: FrechetDistance | SetScore, sides: dict[str, Tensor]) -> FrechetDistance | SetScore:
    for part in sides["fake"].split(5):
        module.update(part, real=False)
    for part in sides["real"].split(7):
        module.update(part, real=True)
    return module


def test_frechet(network: FeatureNetwork, sides: dict[str, Tensor]) -> None:
    expected = frechet_distance_of_features(network(sides["fake"]), network(sides["real"])).value
    assert float(fed(FrechetDistance(network), sides).compute()) == pytest.approx(expected, rel=1e-9)
    assert float(fed(SetScore(Fid(network)), sides).compute()) == pytest.approx(expected, rel=1e-9)


def test_agrees_with_torchmetrics(conv_features: nn.Module, sides: dict[str, Tensor]) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    oracle = fed(FrechetInceptionDistance(feature=copy.deepcopy(conv_features)), sides)
    ours = fed(FrechetDistance(conv_features), sides)
    assert float(ours.compute()) == pytest.approx(float(oracle.compute()), rel=1e-4)


def test_kid_and_cmmd(network: FeatureNetwork, sides: dict[str, Tensor]) -> None:
    x, y = network(sides["fake"]), network(sides["real"])
    assert float(fed(SetScore(Kid(network)), sides).compute()) == pytest.approx(kid(x, y), rel=1e-9)
    figure = fed(SetScore(Cmmd(network)), sides).compute()
    assert float(figure) == pytest.approx(cmmd(x, y).biased, rel=1e-9)


def test_samples(images: Tensor) -> None:
    module = SampleScore(Psnr())
    other = images.roll(1, 0)
    other[0] = images[0]
    for part in (slice(0, 3), slice(3, 8)):
        module.update(images[part], baseline=other[part])
    assert float(module.compute()) == pytest.approx(float(capped(psnr(images, other)).mean()))


def test_reset_and_reference_kept(network: FeatureNetwork, sides: dict[str, Tensor]) -> None:
    module = FrechetDistance(network, reset_real_features=False)
    first = float(fed(module, sides).compute())
    module.reset()
    module.update(sides["fake"], real=False)
    assert float(module.compute()) == pytest.approx(first, rel=1e-9)
    forgetful = fed(FrechetDistance(network), sides)
    forgetful.reset()
    with pytest.raises(ConfigError, match="at least two samples"):
        forgetful.compute()
    rows = fed(SetScore(Kid(network)), sides)
    rows.reset()
    assert float(fed(rows, sides).compute()) == pytest.approx(
        kid(network(sides["fake"]), network(sides["real"]))
    )


def test_forward_returns_the_batch_and_accumulates(images: Tensor) -> None:
    module = SampleScore(Ssim())
    other = images.roll(1, 0)
    batch = [float(module(images[part], baseline=other[part])) for part in (slice(0, 4), slice(4, 8))]
    assert float(module.compute()) == pytest.approx(sum(batch) / 2)


def test_copies_and_state(network: FeatureNetwork, sides: dict[str, Tensor]) -> None:
    module = fed(FrechetDistance(network), sides)
    value = module.compute()
    assert torch.equal(copy.deepcopy(module).compute(), value)
    module.persistent(True)
    other = FrechetDistance(network)
    other.persistent(True)
    other.load_state_dict(module.state_dict())
    other.update(sides["fake"][:1], real=False)
    assert not torch.equal(other.compute(), value)


def test_nothing_seen() -> None:
    with pytest.raises(ConfigError, match="no sample"):
        SampleScore(Psnr()).compute()
