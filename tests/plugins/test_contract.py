"""The built-in techniques and adapters keep the contracts that third parties are given."""

from __future__ import annotations

from typing import Any, ClassVar

import families
import pytest
import torch
from torch import Tensor

import hasten
from hasten.extend import Adapter
from hasten.pipelines.adapters import find
from hasten.pipelines.var.pipeline import VARPipeline
from hasten.pipelines.var.scheduler import NextScaleScheduler
from hasten.pipelines.var.transformer import NextScaleTransformer
from hasten.pipelines.var.vq_model import MultiScaleVQModel
from hasten.plugins.aptp.plugin import Aptp
from hasten.plugins.bottleneck.plugin import Bottleneck
from hasten.plugins.cache.plugin import Cache
from hasten.plugins.guidance_interval.plugin import GuidanceInterval
from hasten.plugins.hack.plugin import Hack
from hasten.plugins.rettention.plugin import Rettention
from hasten.plugins.video_infinity.plugin import VideoInfinity
from hasten.schedules.scales import square_schedule
from hasten.testing import AdapterContract, TechniqueContract


class TestBottleneck(TechniqueContract):
    technique = Bottleneck
    active: ClassVar = {"spectrum": [0.01, 2.0], "min_pixels": 1}
    exact: ClassVar = {"low_until": 1.0, "high_first": 0.5, "min_pixels": 1}
    arguments: ClassVar = families.call_kwargs("sd3")
    resized: ClassVar = {"height": 32, "width": 16}

    def pipeline(self) -> Any:
        return families.FAMILIES["sd3"]()


class TestRettention(TechniqueContract):
    technique = Rettention
    active: ClassVar = {"keep_ratio": 0.3, "warmup": 1, "min_tokens": 4}
    exact: ClassVar = {"keep_ratio": 1.0, "warmup": 0, "min_tokens": 4}
    arguments: ClassVar = families.call_kwargs("flux")
    resized: ClassVar = {"height": 32, "width": 16}

    def pipeline(self) -> Any:
        return families.FAMILIES["flux"]()


class TestCache(TechniqueContract):
    technique = Cache
    active: ClassVar = {"threshold": 10.0}
    exact: ClassVar = {"threshold": 0.0}
    arguments: ClassVar = families.call_kwargs("sd3")
    resized: ClassVar = {"height": 32, "width": 16}

    def pipeline(self) -> Any:
        return families.FAMILIES["sd3"]()


class TestGuidanceInterval(TechniqueContract):
    technique = GuidanceInterval
    active: ClassVar = {"stop": 0.9}
    exact: ClassVar = {"stop": 0.0}
    arguments: ClassVar = families.call_kwargs("sd3")
    resized: ClassVar = {"height": 32, "width": 16}

    def pipeline(self) -> Any:
        return families.FAMILIES["sd3"]()


class TestVideoInfinity(TechniqueContract):
    technique = VideoInfinity
    active: ClassVar = {"clips": 2, "mode": "dual", "halo": 1, "global_frames": 1}
    exact: ClassVar = {"clips": 1, "mode": "full"}
    arguments: ClassVar = families.call_kwargs("wan")

    def pipeline(self) -> Any:
        return families.FAMILIES["wan"]()


class TestAptp(TechniqueContract):
    technique = Aptp
    active: ClassVar = {"route": "static", "expert": 0}
    arguments: ClassVar = {
        "prompt": "a large red circle on the left on a white background",
        "num_inference_steps": 2,
        "height": 64,
        "width": 64,
    }

    def pipeline(self) -> Any:
        pipe = hasten.load("mini/t2i-unet")
        pipe.set_progress_bar_config(disable=True)
        return pipe


class TestHack(TechniqueContract):
    technique = Hack
    active: ClassVar = {"ratio": 0.7}
    exact: ClassVar = {"ratio": 0.0}

    def pipeline(self) -> Any:
        torch.manual_seed(0)
        transformer = NextScaleTransformer(
            num_layers=3,
            hidden_size=64,
            num_heads=4,
            token_dim=8,
            num_outputs=32,
            schedule=square_schedule((1, 2, 3, 4, 6)),
            num_levels=5,
            num_classes=10,
        )
        for name, parameter in transformer.named_parameters():
            torch.nn.init.normal_(parameter, std=1.0 if name.endswith("logit_scale") else 0.15)
        vae = MultiScaleVQModel((16, 16), 1, 8, 32, norm_groups=8, attention=False)
        pipe = VARPipeline(transformer.eval(), vae.eval(), NextScaleScheduler(top_k=0, top_p=0.9))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def call(self, pipe: Any, **changes: Any) -> Tensor:
        made = pipe(class_labels=[3], generator=torch.Generator().manual_seed(0), output_type="pt", **changes)
        return made.images


QUICK = ("sd3", "flux", "wan", "z-image", "sdxl")
"""One of each kind of layout; the other families are slow."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in families.FAMILIES],
)
class TestAdapters(AdapterContract):
    adapter: ClassVar[Adapter]

    @pytest.fixture(autouse=True)
    def _family(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        pipe = families.FAMILIES[name]()
        for attribute, value in (
            ("adapter", find(pipe)),
            ("arguments", families.call_kwargs(name)),
            ("pipeline", lambda _: families.FAMILIES[name]()),
        ):
            monkeypatch.setattr(type(self), attribute, value, raising=False)

    def pipeline(self) -> Any:
        raise NotImplementedError
