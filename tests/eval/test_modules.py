"""Metrics as ``torchmetrics.Metric``: figures of the functional core, and the life cycle of such a metric."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from hasten._errors import ConfigError
from hasten.eval.fingerprint import Fingerprint
from hasten.eval.functional.frechet import frechet_distance_of_features
from hasten.eval.functional.mmd import cmmd, kid
from hasten.eval.functional.pixel import capped, psnr
from hasten.eval.metric import Batch
from hasten.eval.metrics.fidelity import Psnr, Ssim
from hasten.eval.metrics.miniature import AttributeMetric
from hasten.eval.metrics.sets import Cmmd, Fid, Kid
from hasten.eval.networks.features import FeatureNetwork, load_feature_network


@pytest.fixture
def network(conv_features: nn.Module) -> FeatureNetwork:
    return load_feature_network(conv_features)


@pytest.fixture
def sides(images: Tensor, network: FeatureNetwork) -> dict[str, Tensor]:
    fake = torch.cat([images, images.flip(3)])
    real = torch.cat([images.flip(2), 255 - images, images.flip(3)])
    return {"fake": fake, "real": real}


def fed(module: Any, sides: dict[str, Tensor]) -> Any:
    for part in sides["fake"].split(5):
        module.update(part, real=False)
    for part in sides["real"].split(7):
        module.update(part, real=True)
    return module


def test_frechet(network: FeatureNetwork, sides: dict[str, Tensor]) -> None:
    expected = frechet_distance_of_features(network(sides["fake"]), network(sides["real"])).value
    assert float(fed(Fid(network), sides).compute()) == pytest.approx(expected, rel=1e-9)


def test_agrees_with_torchmetrics(conv_features: nn.Module, sides: dict[str, Tensor]) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    oracle = fed(FrechetInceptionDistance(feature=copy.deepcopy(conv_features)), sides)
    ours = fed(Fid(conv_features), sides)
    assert float(ours.compute()) == pytest.approx(float(oracle.compute()), rel=1e-4)


def test_kid_and_cmmd(network: FeatureNetwork, sides: dict[str, Tensor]) -> None:
    x, y = network(sides["fake"]), network(sides["real"])
    assert float(fed(Kid(network), sides).compute()) == pytest.approx(kid(x, y), rel=1e-9)
    figure = fed(Cmmd(network), sides).compute()
    assert float(figure) == pytest.approx(cmmd(x, y).biased, rel=1e-9)


def test_samples(images: Tensor) -> None:
    module = Psnr()
    other = images.roll(1, 0)
    other[0] = images[0]
    for part in (slice(0, 3), slice(3, 8)):
        module.update(images[part], baseline=other[part])
    assert float(module.compute()) == pytest.approx(float(capped(psnr(images, other)).mean()))


def test_reset_and_reference_kept(network: FeatureNetwork, sides: dict[str, Tensor]) -> None:
    module = Fid(network, reset_real_features=False)
    first = float(fed(module, sides).compute())
    module.reset()
    module.update(sides["fake"], real=False)
    assert float(module.compute()) == pytest.approx(first, rel=1e-9)
    forgetful = fed(Fid(network), sides)
    forgetful.reset()
    with pytest.raises(ConfigError, match="at least two samples"):
        forgetful.compute()
    rows = fed(Kid(network), sides)
    rows.reset()
    assert float(fed(rows, sides).compute()) == pytest.approx(
        kid(network(sides["fake"]), network(sides["real"]))
    )


def test_forward_returns_the_batch_and_accumulates(images: Tensor) -> None:
    module = Ssim()
    other = images.roll(1, 0)
    batch = [float(module(images[part], baseline=other[part])) for part in (slice(0, 4), slice(4, 8))]
    assert float(module.compute()) == pytest.approx(sum(batch) / 2)


def test_copies_and_state(network: FeatureNetwork, sides: dict[str, Tensor]) -> None:
    module = fed(Fid(network), sides)
    value = module.compute()
    assert torch.equal(copy.deepcopy(module).compute(), value)
    module.persistent(True)
    other = Fid(network)
    other.persistent(True)
    other.load_state_dict(module.state_dict())
    other.update(sides["fake"][:1], real=False)
    assert not torch.equal(other.compute(), value)


def test_nothing_seen() -> None:
    with pytest.raises(ConfigError, match="no sample"):
        Psnr().compute()


def test_metrics_of_one_collection_keep_apart_what_looks_alike(images: Tensor) -> None:
    """Identical pictures give SSIM and MS-SSIM equal states; torchmetrics shares those of one group from then on."""
    together = MetricCollection([Psnr(), Ssim()])
    together.add_metrics({"reflected": Ssim("torchmetrics")})
    together.update(images=images, baseline=images, prompts=("any",) * len(images))
    assert {name: float(value) for name, value in together.compute().items()} == pytest.approx(
        {"Psnr": 100, "Ssim": 1, "reflected": 1}
    )
    together.update(images=images, baseline=images.flip(0))
    apart = [Psnr(), Ssim(), Ssim("torchmetrics")]
    for metric in apart:
        metric.update(images, baseline=images)
        metric.update(images, baseline=images.flip(0))
    assert list(together.compute().values()) == [metric.compute() for metric in apart]
    together.reset()
    with pytest.raises(ConfigError, match="no sample"):
        together.compute()


def test_set_metrics_of_one_network_share_their_features(
    network: FeatureNetwork, sides: dict[str, Tensor]
) -> None:
    together = MetricCollection([Kid(network), Cmmd(network), Fid(network)])
    found = fed(together, sides).compute()
    expected = {
        type(m).__name__: fed(m, sides).compute() for m in (Kid(network), Cmmd(network), Fid(network))
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {name: float(value) for name, value in expected.items()}
    )
    assert ["Cmmd", "Kid"] in [sorted(group) for group in together.compute_groups.values()]


def test_networks_and_states_move_together(conv_features: nn.Module, images: Tensor) -> None:
    network = load_feature_network(copy.deepcopy(conv_features))
    metric = Kid(network)
    metric.update(images, real=True)
    metric.to("meta")
    assert network.device.type == metric.device.type == metric.real[0].device.type == "meta"
    assert {p.device.type for p in network.model.parameters()} == {"meta"}


def test_the_ratio_of_sums_of_an_attribute_metric(images: Tensor) -> None:
    class Asked(AttributeMetric):
        name = "asked"

        def embed(self, batch: Batch) -> dict[str, Tensor]:
            return {
                "right": batch.images[:, 0, 0, 0] * 0 + 1.0,
                "asked": torch.arange(1.0, 1 + len(batch.images)),
            }

        def fingerprint(self) -> Fingerprint:
            return Fingerprint(self.name)

    metric = Asked()
    metric.update(images)
    assert float(metric.compute()) == pytest.approx(8 / 36)
