"""A plan without an error means that the call runs, for every family, variant, technique and scheduler."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from families import FAMILIES, VARIANTS, variant
from plan_call import TECHNIQUES, Outcome, agree, subject

import hasten
from hasten._adapters.base import LatentLayout
from hasten._plugins import host
from hasten._target import Target

SAMPLE = (
    ("sd15", "rettention, sparse early", {"num_inference_steps": 3}),
    ("flux", "bottleneck, nearly all low", {"num_inference_steps": 1}),
    ("flux-kontext", "bottleneck, restart", {}),
    ("pixart-sigma", "rettention", {"num_inference_steps": 2}),
    ("wan", "video_infinity, own scope", {}),
    ("wan22-a14b", "rettention", {"num_inference_steps": 4}),
    ("cogvideox-rope", "bottleneck, nearly all low", {"num_inference_steps": 2}),
    ("StableDiffusionXLImg2ImgPipeline", "rettention", {"denoising_start": 0.999}),
    ("FluxInpaintPipeline", "bottleneck", {"num_inference_steps": 0}),
    ("sd15", "bottleneck, restart", {"num_inference_steps": 0}),
    ("sdxl", "bottleneck, restart", {"num_inference_steps": 8, "denoising_end": 0.5}),
    ("text-to-video", "video_infinity, own scope", {"num_inference_steps": 0}),
    ("FluxKontextInpaintPipeline", "rettention", {"height": 16, "width": 16}),
    ("Flux2KleinInpaintPipeline", "bottleneck", {"height": 16, "width": 16}),
)
"""One of each kind of outcome; the whole grid is marked slow."""

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"num_inference_steps": 0},
    {"num_inference_steps": 1},
    {"num_inference_steps": 2},
    {"num_inference_steps": 7, "guidance_scale": 1.0},
    {"num_inference_steps": 5, "strength": 0.01},
    {"num_inference_steps": 5, "strength": 0.5},
    {"num_inference_steps": 8, "denoising_end": 0.5},
    {"num_inference_steps": 8, "denoising_start": 0.5},
    {"denoising_start": 0.999},
    {"height": 16, "width": 16},
)
"""Changes of the cheap call; a pipeline without one of the arguments is not called with that change."""


def test_sample() -> None:
    outcomes = {}
    for name, technique, changes in SAMPLE:
        pipe, arguments = subject(name)
        arguments = {**arguments, "output_type": "latent", **changes}
        outcomes[name, technique] = agree(pipe, arguments, TECHNIQUES[technique], Outcome.of(pipe, arguments))
    assert set(outcomes.values()) == {"ran", "told", "as stock"}


@pytest.mark.parametrize("kind", ["WanVideoToVideoPipeline", "CogVideoXVideoToVideoPipeline"])
def test_video_to_video(kind: str) -> None:
    pipe, arguments = variant(kind)
    arguments = {**arguments, "num_inference_steps": 6, "strength": 0.9, "output_type": "latent"}
    stock = Outcome.of(pipe, arguments)
    for technique in ("rettention, sparse early", "video_infinity", "bottleneck, nearly all low"):
        assert agree(pipe, arguments, TECHNIQUES[technique], stock) == "ran"


@pytest.mark.slow
@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
def test_every_setting(name: str, technique: str) -> None:
    pipe, arguments = subject(name)
    accepted = inspect.signature(type(pipe).__call__).parameters
    for changes in SETTINGS:
        if changes.keys() <= accepted.keys():
            call = {**arguments, "output_type": "latent", **changes}
            agree(pipe, call, TECHNIQUES[technique], Outcome.of(pipe, call))


# --- schedulers


def schedulers() -> list[str]:
    """Names of all scheduler classes of diffusers."""
    found = (name for name in dir(diffusers) if name.endswith("Scheduler"))
    return sorted(name for name in found if inspect.isclass(getattr(diffusers, name)))


def changes_for(name: str) -> list[dict[str, Any]]:
    """Changes of a configuration that a scheduler class knows."""
    accepted = inspect.signature(getattr(diffusers, name).__init__).parameters
    kinds = ("sample", "v_prediction") if "prediction_type" in accepted else ()
    options = ("use_karras_sigmas", "use_flow_sigmas", "rescale_betas_zero_snr")
    switched = [{option: True} for option in options if option in accepted]
    return [{}, *({"prediction_type": kind} for kind in kinds), *switched]


def compare_schedulers(family: str, chosen: Iterable[tuple[str, dict[str, Any]]], steps: int) -> list[str]:
    """What came of every scheduler, made from the configuration of the family's own, under both techniques."""
    pipe, arguments = subject(family)
    arguments["num_inference_steps"] = steps
    base, outcomes = pipe.scheduler, []
    for name, change in chosen:
        try:
            pipe.scheduler = getattr(diffusers, name).from_config(base.config, **change)
        except (TypeError, ValueError, ImportError):
            continue  # it is made for something else, or needs a package that is not here
        stock = Outcome.of(pipe, arguments)
        for technique in ("bottleneck, nearly all low", "rettention, sparse early"):
            try:
                outcomes.append(agree(pipe, arguments, TECHNIQUES[technique], stock))
            except AssertionError as error:
                raise AssertionError(f"{family} {name} {change} {technique}: {error}") from error
    return outcomes


@pytest.mark.parametrize(
    ("family", "name", "change", "expected"),
    [
        ("sd15", "DDIMScheduler", {"prediction_type": "sample"}, ["refused", "ran"]),
        ("sd15", "EDMEulerScheduler", {}, ["refused", "refused"]),
        ("sd15", "DDIMInverseScheduler", {}, ["refused", "refused"]),
        ("sd15", "HeunDiscreteScheduler", {}, ["ran", "ran"]),
        ("sd15", "KDPM2AncestralDiscreteScheduler", {"use_karras_sigmas": True}, ["ran", "ran"]),
        ("sd15", "SCMScheduler", {}, ["refused", "refused"]),
        ("sd3", "FlowMatchHeunDiscreteScheduler", {}, ["ran", "ran"]),
        ("sd3", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, ["refused", "ran"]),
        ("sd3", "DPMSolverMultistepInverseScheduler", {}, ["refused", "refused"]),
        ("sd3", "LCMScheduler", {}, ["refused", "ran"]),
        ("sd3", "CMStochasticIterativeScheduler", {}, ["refused", "refused"]),
    ],
)
def test_schedulers_of_every_kind(
    family: str, name: str, change: dict[str, Any], expected: list[str]
) -> None:
    assert compare_schedulers(family, [(name, change)], 4) == expected


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 6, 13])
@pytest.mark.parametrize("family", ["sd15", "sd3", "wan"])
def test_every_scheduler(family: str, steps: int) -> None:
    everything = ((name, change) for name in schedulers() for change in changes_for(name))
    assert "ran" in compare_schedulers(family, everything, steps)


# --- pipelines without a denoiser, and other backends


@pytest.mark.parametrize(
    ("family", "denoiser"), [("flux", "transformer"), ("sd15", "unet"), ("wan", "transformer")]
)
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_pipeline_that_only_encodes_is_refused_by_name(family: str, denoiser: str, technique: str) -> None:
    pipe = FAMILIES[family]()
    setattr(pipe, denoiser, None)
    told = f"loaded without its {denoiser}|has no FrameMixing"
    for act in (hasten.plan, hasten.accelerate):
        with pytest.raises(hasten.UnsupportedError, match=told):
            act(pipe, TECHNIQUES[technique])


def test_a_pipeline_without_a_scheduler_is_refused_by_name() -> None:
    pipe = FAMILIES["flux"]()
    pipe.scheduler = None
    for technique in ("bottleneck", "rettention", "bottleneck, restart"):
        with pytest.raises(hasten.UnsupportedError, match="it has no scheduler"):
            hasten.plan(pipe, TECHNIQUES[technique])


@pytest.fixture
def wan() -> Iterator[tuple[Any, dict[str, Any]]]:
    pipe, arguments = subject("wan")
    yield pipe, arguments
    pipe.transformer.set_attention_backend("native")  # diffusers keeps the last one for every model, too


def test_rettention_beside_flex_attention(wan: tuple[Any, dict[str, Any]]) -> None:
    pipe, arguments = wan
    config = TECHNIQUES["rettention, sparse early"]
    with hasten.accelerate(pipe, config):
        native = Outcome.of(pipe, arguments)
    pipe.transformer.set_attention_backend("flex")
    stock = Outcome.of(pipe, arguments)
    assert agree(pipe, arguments, config, stock) == "ran"
    with hasten.accelerate(pipe, config) as acceleration:
        flexible = Outcome.of(pipe, arguments)
        sums = {step.facts["rettention"].get("log_sum_exp") for step in acceleration.report().steps}
    assert "second pass" in sums
    torch.testing.assert_close(flexible.value, native.value, rtol=1e-4, atol=1e-4)


# --- nothing to run


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("sd15-img2img", {"strength": 0.01, "num_inference_steps": 20}),
        ("StableDiffusionXLImg2ImgPipeline", {"denoising_start": 0.999}),
        ("sd15", {"num_inference_steps": 0}),
        ("flux", {"num_inference_steps": 0}),
    ],
)
@pytest.mark.parametrize("output", ["latent", "pil"])
def test_without_a_step_a_call_ends_as_stock(kind: str, changes: dict[str, Any], output: str) -> None:
    pipe, arguments = subject(kind)
    arguments = {**arguments, **changes, "output_type": output}
    stock = Outcome.of(pipe, arguments)
    for technique in ("bottleneck", "rettention"):
        plan = hasten.plan(pipe, TECHNIQUES[technique], **arguments)
        assert any("no steps are left to run at " in finding.message for finding in plan.findings)
        assert "no steps are left" in " ".join(str(plan).split())
        with hasten.accelerate(pipe, TECHNIQUES[technique]) as acceleration:
            found = Outcome.of(pipe, arguments)
            report = acceleration.report()
        assert repr(found.error) == repr(stock.error)
        if isinstance(stock.value, torch.Tensor):
            assert torch.equal(found.value, stock.value)
        assert any("no steps are left" in note for note in report.notes)
        assert "no steps are left" in " ".join(str(report).split())


POSITIONED = ("sd3", "aura-flow")
"""Families whose models have a table of positions."""


@pytest.mark.parametrize("name", POSITIONED)
def test_a_size_beyond_the_positions_is_told_and_refused(name: str) -> None:
    pipe, arguments = subject(name)
    target = Target.of(pipe)
    largest = target.layout.largest(pipe)
    assert largest is not None
    side = target.layout.pixels(pipe, largest)[1]
    step = side - target.layout.pixels(pipe, replace(largest, width=largest.width - 2))[1]
    fits = {**arguments, "output_type": "latent", "height": 4 * step, "width": side}
    beyond = {**fits, "width": side + step}
    config = TECHNIQUES["bottleneck"]
    assert not [f for f in hasten.plan(pipe, config, **fits).findings if f.severity == "error"]
    assert agree(pipe, beyond, config, Outcome.of(pipe, beyond)) == "told"
    (finding,) = [f for f in hasten.plan(pipe, config, **beyond).findings if f.severity == "error"]
    assert f"positions for {side}x{side} pixels" in finding.message
    none = {**beyond, "num_inference_steps": 0}
    assert agree(pipe, none, config, Outcome.of(pipe, none)) == "ran"  # stock returns the noise


def test_every_family_with_a_table_is_tested() -> None:
    layouts = [type(adapter.capability(LatentLayout)) for adapter in host().registry.adapters.values()]
    limited = {kind for kind in layouts if getattr(kind, "largest", None) not in (None, LatentLayout.largest)}
    assert {type(Target.of(FAMILIES[name]()).layout) for name in POSITIONED} == limited
