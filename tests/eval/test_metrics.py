"""Metrics as objects, their registration, and what importing the package loads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten._errors import ConfigError
from hasten.eval import builtin
from hasten.eval.functional.frechet import frechet_distance_of_features, noise_floor
from hasten.eval.functional.mmd import cmmd, kid
from hasten.eval.functional.moments import Moments
from hasten.eval.metric import Batch, SetMetric, concatenate
from hasten.eval.metrics.fidelity import Psnr, Ssim
from hasten.eval.metrics.sets import Cmmd, Fid, Kid
from hasten.eval.networks.clip import ClipNetwork
from hasten.eval.networks.features import load_feature_network


def registered() -> dict[str, tuple[Callable[..., Any], str]]:
    found: dict[str, tuple[Callable[..., Any], str]] = {}

    def register(name: str, factory: Callable[..., Any], summary: str) -> None:
        found[name] = (factory, summary)

    builtin.hasten_register_metrics(register)
    return found


class TestRegistration:
    def test_every_name_makes_its_metric(self, conv_features: nn.Module) -> None:
        metrics = registered()
        assert {"psnr", "ssim", "lpips", "clip_score", "blip2_t", "fid", "kid", "cmmd"} <= set(metrics)
        for name in ("psnr", "ssim", "ms_ssim"):
            assert metrics[name][0]().name == name
        assert metrics["fid"][0](network=conv_features).name == "frechet_distance"
        network = load_feature_network(conv_features)
        assert metrics["mmd_clip_median"][0](network=network).name == "mmd_clip_median"
        assert all(summary for _, summary in metrics.values())

    def test_third_parties_use_the_same_hook(self) -> None:
        import pluggy

        from hasten import _hookspecs

        manager = pluggy.PluginManager("hasten")
        manager.add_hookspecs(_hookspecs)
        manager.register(builtin)
        manager.check_pending()
        names: list[str] = []
        collect = {"register": lambda name, factory, summary: names.append(name)}
        manager.hook.hasten_register_metrics.call_historic(kwargs=collect)
        assert names == list(builtin.METRICS)

    def test_importing_is_light(self) -> None:
        code = (
            "import sys, hasten.eval, hasten.eval.builtin\n"
            "print(sorted(m for m in sys.modules if m.startswith('hasten.eval')))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "['hasten.eval', 'hasten.eval.builtin']"


class TestBatch:
    def test_parts_must_belong_together(self, images: Tensor) -> None:
        with pytest.raises(ConfigError, match="2 prompts for 8 images"):
            Batch(images, ("a", "b"))
        with pytest.raises(ConfigError, match="different shapes"):
            Batch(images, baseline=images[:, :, :20])
        with pytest.raises(ConfigError, match="uint8"):
            Batch(images.float())

    def test_concatenate(self, images: Tensor) -> None:
        metric = Psnr()
        parts = [metric.embed(Batch(images[s], baseline=images.flip(0)[s])) for s in (slice(3), slice(3, 8))]
        whole = metric.embed(Batch(images, baseline=images.flip(0)))
        assert torch.equal(concatenate(parts)["score"], whole["score"])
        with pytest.raises(ConfigError):
            concatenate([])


class TestFidelity:
    def test_fingerprints_differ_by_variant(self) -> None:
        prints = [Psnr(), Psnr("y"), Ssim(), Ssim("torchmetrics"), Ssim(multi_scale=True)]
        assert len({metric.fingerprint().digest() for metric in prints}) == 5

    def test_identical_images_and_summary(self, images: Tensor) -> None:
        metric = Psnr()
        scores = metric.score(metric.embed(Batch(images, baseline=images)))
        assert bool(torch.isinf(scores).all())
        assert metric.summarize(scores) == 100

    def test_bad_options_and_missing_baseline(self, images: Tensor) -> None:
        with pytest.raises(ConfigError, match="channel"):
            Psnr("x")
        with pytest.raises(ConfigError, match="variant"):
            Ssim("same")
        with pytest.raises(ConfigError, match="needs the baseline's images"):
            Psnr().embed(Batch(images))


class TestSets:
    @pytest.fixture
    def sides(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        base = torch.cat([images, images.flip(3), images.flip(2)])
        candidate = (base.int() + 4).clamp(max=255).to(torch.uint8)
        reference = torch.cat([images.flip(2, 3), 255 - images, images])
        return base, candidate, reference

    def test_values_intervals_and_differences(
        self, conv_features: nn.Module, sides: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        network = load_feature_network(conv_features)
        metrics: list[SetMetric] = [Fid(network), Kid(network), Cmmd(network), Cmmd(network, sigma=None)]
        for metric in metrics:
            base, candidate, reference = (metric.embed(Batch(side)) for side in sides)
            figure = metric.aggregate(candidate, reference)
            value = metric.value(candidate, reference)
            assert figure.estimate.value == pytest.approx(value, rel=1e-9)
            assert figure.estimate.low < value < figure.estimate.high
            change = metric.difference(base, candidate, reference)
            assert change.value == pytest.approx(value - metric.value(base, reference), rel=1e-6, abs=1e-9)
            assert change.se < figure.estimate.se

    def test_figures_are_those_of_the_functions(
        self, conv_features: nn.Module, sides: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        network = load_feature_network(conv_features)
        x, y = network(sides[1]), network(sides[2])
        features, reference = {"features": x}, {"features": y}
        fid = Fid(network)
        assert fid.value(features, reference) == pytest.approx(frechet_distance_of_features(x, y).value)
        assert fid.value(features, Moments.of(y)) == pytest.approx(fid.value(features, reference), rel=1e-12)
        extras = fid.aggregate(features, reference).extras
        assert extras["noise_floor"] == pytest.approx(noise_floor(Moments.of(y), 24, 24))
        assert Kid(network).value(features, reference) == pytest.approx(kid(x, y))
        figure = Cmmd(network).aggregate(features, reference)
        both = cmmd(x, y)
        assert figure.estimate.value == pytest.approx(both.biased)
        assert figure.extras["unbiased"] == pytest.approx(both.unbiased)

    def test_cmmd_takes_square_crops(self, clip_model: nn.Module, images: Tensor) -> None:
        metric = Cmmd(ClipNetwork(clip_model, geometry="square"))
        assert metric.embed(Batch(images))["features"].shape == (8, 16)
        assert "square" in metric.fingerprint().preprocessing
        with pytest.raises(ConfigError, match="geometry='square'"):
            Cmmd(ClipNetwork(clip_model))

    def test_names_and_fingerprints(self, conv_features: nn.Module) -> None:
        network = load_feature_network(conv_features)
        metrics = [
            Fid(network),
            Kid(network),
            Cmmd(network),
            Cmmd(network, sigma=None),
            Cmmd(network, sigma=1.0),
        ]
        assert [m.name for m in metrics] == ["frechet_distance", "kid", "cmmd", "mmd_clip_median", "cmmd"]
        assert len({m.fingerprint().digest() for m in metrics}) == 5
