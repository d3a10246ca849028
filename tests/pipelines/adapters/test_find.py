"""Looking adapters up, and refusing what they can't do."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import diffusers
import pytest
from families import FAMILIES

import hasten
from hasten._errors import UnsupportedError
from hasten.extend import LatentLayout, ScaleSchedule
from hasten.pipelines.adapters import families, find, hasten_register_adapters

OWN = ("VARPipeline", "InfinityPipeline")
"""Pipelines of this project rather than of diffusers."""
REFUSED = [(name, reason) for adapter in families() for name, reason in (adapter.refused or {}).items()]


def named(name: str, *bases: type) -> Any:
    return type(name, bases or (object,), {})()


def test_every_named_pipeline_exists() -> None:
    names = [name for adapter in families() for name in (*adapter.pipelines, *(adapter.refused or ()))]
    assert [name for name in names if not hasattr(diffusers, name) and name not in OWN] == []
    assert len(names) == len(set(names))


def test_built_in_adapters_come_through_the_hook() -> None:
    seen: list[Any] = []
    hasten_register_adapters(seen.append)
    assert tuple(seen) == families()
    known = (LatentLayout, ScaleSchedule)
    assert all(any(adapter.capability(kind) is not None for kind in known) for adapter in seen)


def test_the_most_specific_class_counts() -> None:
    class FluxPipeline: ...

    assert find(named("MyOwnFlux", FluxPipeline)).family == "flux"
    with pytest.raises(UnsupportedError, match="several pictures in one token sequence"):
        find(named("VisualClozePipeline", FluxPipeline))


@pytest.mark.parametrize(("name", "reason"), REFUSED)
def test_refused_pipelines_say_why(name: str, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=name) as caught:
        find(named(name))
    assert reason in str(caught.value)


def test_unknown_family_is_told_what_to_write() -> None:
    with pytest.raises(
        UnsupportedError, match=r"StableAudioPipeline.*hasten_register_adapters.*docs/plugins\.md"
    ):
        find(named("StableAudioPipeline"))


def test_modular_pipelines_are_refused_in_one_sentence() -> None:
    class ModularPipeline: ...

    with pytest.raises(UnsupportedError, match="FluxModularPipeline is a modular pipeline: its blocks"):
        find(named("FluxModularPipeline", ModularPipeline))


def test_a_missing_capability_names_technique_and_reason() -> None:
    pipe = FAMILIES["sana"]()
    with pytest.raises(
        UnsupportedError,
        match="rettention refuses this SanaPipeline: it needs AttentionTokens, and its self-att",
    ):
        hasten.plan(pipe, ["rettention"])
    assert hasten.plan(pipe, {"bottleneck": {"min_pixels": 1}}, height=256, width=256).family == "sana"


def test_families_have_names_of_their_own() -> None:
    names = [adapter.family for adapter in families()]
    assert len(names) == len(set(names))
    models = [model for adapter in families() for model in adapter.models]
    assert len(models) == len(set(models))


def refusal(pipe: Any) -> str:
    return find(pipe).capability(LatentLayout).refusal(pipe) or ""  # type: ignore[type-abstract, union-attr]


def test_learned_positions_are_refused() -> None:
    pipe = FAMILIES["cogvideox-rope"]()
    pipe.transformer.register_to_config(use_learned_positional_embeddings=True)
    assert "learned for one latent size" in refusal(pipe)


def test_mean_flow_is_refused() -> None:
    pipe = FAMILIES["hunyuan-video-1.5"]()
    pipe.transformer.register_to_config(use_meanflow=True)
    assert "mean-flow" in refusal(pipe)


def test_larger_ltx_patches_are_refused() -> None:
    pipe = FAMILIES["ltx"]()
    pipe.transformer.register_to_config(patch_size=2)
    assert "patches of 1x2x2" in refusal(pipe)


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [("flux", diffusers.DDIMScheduler()), ("sdxl", diffusers.FlowMatchEulerDiscreteScheduler())],
)
def test_swapped_scheduler_is_refused(name: str, scheduler: Any) -> None:
    pipe = FAMILIES[name]()
    pipe.scheduler = scheduler
    assert type(scheduler).__name__ in refusal(pipe)


def test_looking_up_imports_no_diffusers() -> None:
    code = "import hasten.pipelines.adapters as a, sys; a.families(); sys.exit('diffusers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
