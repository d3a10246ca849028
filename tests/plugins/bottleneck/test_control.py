"""Control networks under ``bottleneck``: they run at the size of the denoiser, on conditions of that size."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from controls import CONTROLLED, controlled
from families import LATENT
from torch import Tensor

import hasten
from hasten._errors import UnsupportedError

LOW = (LATENT[0] // 2, LATENT[1] // 2)
ACTIVE = {"low_until": 0.3, "high_first": 1.0, "min_pixels": 1}
EXACT = {"low_until": 1.0, "high_first": 0.5, "min_pixels": 1}
QUICK = (
    "StableDiffusionControlNetPipeline, two",
    "StableDiffusionControlNetPipeline, guess",
    "StableDiffusionControlNetPipeline, middle",
    "StableDiffusionXLControlNetUnionPipeline",
    "StableDiffusion3ControlNetInpaintingPipeline",
    "FluxControlNetPipeline",
    "QwenImageControlNetPipeline",
    "ZImageControlNetPipeline",
    "StableDiffusionAdapterPipeline",
)
"""One for each way of packing latents, conditions and features."""
SLOW = tuple(case for case in CONTROLLED if case not in QUICK)


@dataclass(frozen=True)
class Stock:
    """A pipeline, its call, what it makes without hasten, and what its control network saw."""

    pipe: Any
    given: dict[str, Any]
    expected: Tensor
    seen: list[dict[str, tuple[int, ...]]]


def call(pipe: Any, given: dict[str, Any], **changes: Any) -> Tensor:
    """The latents of a call; some pipelines draw from the global generator too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        made = pipe(**{**given, "generator": generator, "return_dict": False, **changes})[0]
    return torch.as_tensor(made)


@contextmanager
def watched(pipe: Any):
    """What the control network (each of several) was given: per forward, the extents of its tensor arguments."""
    seen: list[dict[str, tuple[int, ...]]] = []
    networks = list(getattr(pipe.controlnet, "nets", [pipe.controlnet]))

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = {**dict(zip(inspect.signature(module.forward).parameters, args)), **kwargs}
        given["first"] = next(iter([*args, *kwargs.values()]))
        seen.append({name: shape(value) for name, value in given.items() if shape(value)})

    hooks = [network.register_forward_pre_hook(note, with_kwargs=True) for network in networks]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def shape(value: Any) -> tuple[int, ...]:
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
        value = value[0]
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def state(pipe: Any) -> Any:
    modules = [
        module
        for part in pipe.components.values()
        if isinstance(part, torch.nn.Module)
        for module in part.modules()
    ]
    return type(pipe), sorted(vars(pipe)), [sorted(vars(module)) for module in modules]


@pytest.fixture(
    scope="module", params=[*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)]
)
def stock(request: pytest.FixtureRequest) -> Stock:
    pipe, given = controlled(request.param)
    if getattr(pipe, "controlnet", None) is None:
        return Stock(pipe, given, call(pipe, given), [])
    with watched(pipe) as seen:
        return Stock(pipe, given, call(pipe, given), seen)


def test_exact_setting_active_and_restored(stock: Stock) -> None:
    pipe, given, expected = stock.pipe, stock.given, stock.expected
    before = state(pipe)
    with hasten.accelerate(pipe, {"bottleneck": EXACT}):
        assert torch.equal(call(pipe, given), expected)
    with hasten.accelerate(pipe, {"bottleneck": ACTIVE}) as acceleration:
        made = call(pipe, given)
        sizes = {step.resolution[-2:] for step in acceleration.report().steps}
        name = next(n for n in ("conditioning_frames", "control_image", "image") if n in given)
        other = call(pipe, given, **{name: _inverted(given[name])})
    assert sizes == {LATENT, LOW}
    assert made.isfinite().all()
    assert not torch.equal(made, expected)
    assert not torch.equal(made, other)
    assert state(pipe) == before
    assert torch.equal(call(pipe, given), expected)


def test_control_network_runs_at_the_size_of_the_denoiser(stock: Stock) -> None:
    if not stock.seen:
        pytest.skip("a T2I-Adapter runs once, before the loop; its features are resized")
    pipe, given = stock.pipe, stock.given
    with watched(pipe) as seen, hasten.accelerate(pipe, {"bottleneck": ACTIVE}) as acceleration:
        call(pipe, given)
        steps = [step for step in acceleration.report().steps if step.branch in ("both", "only", "cond")]
    assert len(seen) == len(stock.seen)
    networks = len(seen) // len(steps)
    small = [step.resolution[-2:] == LOW for step in steps for _ in range(networks)]
    assert 0 < sum(small) < len(small)
    spatial = {name for name, extent in stock.seen[0].items() if name in ("first", *_CONDITIONS) and extent}
    assert len(spatial) >= 2
    for low, full, accelerated in zip(small, stock.seen, seen):
        for name in spatial:
            assert _pixels(full[name]) / _pixels(accelerated[name]) == (4 if low else 1), name
    low_facts = [step.facts["bottleneck"] for step in steps if step.resolution[-2:] == LOW]
    assert {facts.get("control") for facts in low_facts} == {"low"}


_CONDITIONS = ("controlnet_cond", "control_context", "conditioning_mask")


def _pixels(extent: tuple[int, ...]) -> int:
    """Pixels or tokens of latents or conditions (..., H, W) or (B, L, C)."""
    return extent[-2] * extent[-1] if len(extent) >= 4 else extent[1]


@pytest.mark.parametrize(
    "case",
    ["StableDiffusionControlNetPipeline", "FluxControlNetPipeline", "StableDiffusion3ControlNetPipeline"],
)
def test_control_network_at_full_size_hands_over_resized_features(case: str) -> None:
    pipe, given = controlled(case)
    with watched(pipe) as stock:
        expected = call(pipe, given)
    options = {**ACTIVE, "control": "full"}
    with watched(pipe) as seen, hasten.accelerate(pipe, {"bottleneck": options}) as acceleration:
        full = call(pipe, given)
        assert any(step.resolution == LOW for step in acceleration.report().steps)
    with hasten.accelerate(pipe, {"bottleneck": ACTIVE}):
        low = call(pipe, given)
    assert seen == stock
    assert not torch.equal(full, low)
    assert not torch.equal(full, expected)


def test_features_that_cannot_be_resized_are_refused_in_the_plan() -> None:
    pipe, _ = controlled("ZImageControlNetPipeline")
    with pytest.raises(UnsupportedError, match=r"control='full' does not work on ZImageControlNetPipeline"):
        hasten.accelerate(pipe, {"bottleneck": {**ACTIVE, "control": "full"}})


def _inverted(condition: Any) -> Any:
    if isinstance(condition, list):
        return [_inverted(each) for each in condition][::-1]
    return 1 - condition if isinstance(condition, Tensor) else condition


def test_conditions_are_resized_once_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from hasten.extend import ControlNetwork

    pipe, given = controlled("StableDiffusionControlNetPipeline, two")
    calls = []
    resize = ControlNetwork.resized_conditions
    monkeypatch.setattr(ControlNetwork, "resized_conditions", lambda *a: calls.append(a) or resize(*a))
    with hasten.accelerate(pipe, {"bottleneck": ACTIVE}) as acceleration:
        call(pipe, given, num_inference_steps=8)
        low = [step for step in acceleration.report().steps if step.resolution == LOW]
    assert len(low) > 2
    assert len(calls) == 1


def test_masks_of_a_condition_go_by_area() -> None:
    from hasten._target import Target

    pipe, _ = controlled("StableDiffusion3ControlNetInpaintingPipeline")
    target = Target.of(pipe)
    network, _ = target.control_network or (None, None)
    assert network is not None
    condition = torch.full((1, 17, *LATENT), 0.7)
    condition[:, 16] = (torch.arange(LATENT[1]) < LATENT[1] // 2).float()
    kwargs = {"hidden_states": torch.zeros(1, 16, *LATENT), "controlnet_cond": condition}
    size = type(target.layout.size(pipe, kwargs))(*LOW)
    small = network.resized_conditions(target.layout, pipe, kwargs, size)["controlnet_cond"]  # type: ignore[arg-type]
    torch.testing.assert_close(small[:, :16], torch.full((1, 16, *LOW), 0.7))
    assert torch.equal(small[0, 16], (torch.arange(LOW[1]) < LOW[1] // 2).float().expand(LOW))


@pytest.mark.parametrize("fault", ["raises", "returns"])
def test_a_faulty_control_handler_is_named(fault: str) -> None:
    from hasten._errors import PluginError

    class Broken(hasten.Technique[hasten.TechniqueConfig]):
        name = "broken"
        summary = "for one test"
        config_class = hasten.TechniqueConfig

        def claims(self, target: Any) -> list[Any]:
            return []

        def attach(self, target: Any, seams: Any) -> None:
            seams.control(self._control)

        def _control(self, call: Any, proceed: Any) -> Any:
            if fault == "raises":
                raise ValueError("on purpose")
            proceed(call)

    from hasten._plugins import host

    pipe, given = controlled("StableDiffusionControlNetPipeline, guess")
    expected = call(pipe, given)
    host().registry.techniques["broken"] = Broken  # type: ignore[index]
    verb = "failed in" if fault == "raises" else "returned None from"
    try:
        with (
            hasten.accelerate(pipe, ["broken"]),
            pytest.raises(PluginError, match=f"{verb} its control handler"),
        ):
            call(pipe, given)
    finally:
        del host().registry.techniques["broken"]  # type: ignore[attr-defined]
    assert torch.equal(call(pipe, given), expected)


def test_a_family_without_control_networks_has_no_such_seam() -> None:
    from families import FAMILIES

    from hasten._target import Target
    from hasten.extend import ControlNetwork

    with pytest.raises(UnsupportedError, match="has no ControlNetwork"):
        Target.of(FAMILIES["wan"]()).capability(ControlNetwork)
