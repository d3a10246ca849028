"""Small techniques and pipelines for the host's own tests."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import hasten
from hasten._attention import attention_layers
from hasten._plugins import host
from hasten._target import Target
from hasten._technique import Technique, TechniqueConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

from families import FAMILIES, baseline


class ScaleConfig(TechniqueConfig):
    factor: float = 0.5
    explode_at: int | None = None
    poison_at: int | None = None


class Nested(TechniqueConfig):
    depth: int = 1


class CountConfig(TechniqueConfig):
    fail_to_attach: bool = False
    nested: Nested = Nested()
    slot: str | None = None
    access: hasten.Access = hasten.Access.READS
    modules: tuple[str, ...] | None = None
    follows_writes: bool = True


def each(sample: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """``change`` applied to a prediction; a few families return a list of them."""
    return change(sample) if isinstance(sample, torch.Tensor) else [change(item) for item in sample]


class Scale(Technique[ScaleConfig]):
    """Multiplies every prediction, so that its presence shows in the output."""

    name = "scale"
    summary = "multiplies predictions"
    config_class = ScaleConfig

    def claims(self, target: Any) -> list[hasten.Claim]:
        return [hasten.Claim("tokens.shape", hasten.Access.READS)]

    def attach(self, target: Any, seams: Any) -> None:
        def handle(call: Any, proceed: Any) -> Any:
            if call.step.index == self.config.explode_at:
                raise KeyboardInterrupt
            output = proceed(call)
            factor = float("nan") if call.step.index == self.config.poison_at else self.config.factor
            call.run.record("scale", factor=factor)
            return call.with_sample(output, each(call.sample(output), lambda sample: sample * factor))

        seams.denoiser(handle)


class Count(Technique[CountConfig]):
    """Counts forwards in the run's state and adds one to every prediction; edits structure through the journal."""

    name = "count"
    summary = "counts forwards"
    config_class = CountConfig

    def claims(self, target: Any) -> list[hasten.Claim]:
        config = self.config
        if config.slot is None:
            return []
        modules = None if config.modules is None else frozenset(config.modules)
        return [hasten.Claim(config.slot, config.access, modules, config.follows_writes)]

    def attach(self, target: Any, seams: Any) -> None:
        denoiser = next(iter(target.denoisers.values()))
        seams.journal.set_attribute(denoiser, "counted", True)

        def handle(call: Any, proceed: Any) -> Any:
            state = call.run.state("count")
            state["forwards"] = state.get("forwards", 0) + 1
            call.run.record("count", forwards=state["forwards"])
            output = proceed(call)
            return call.with_sample(output, each(call.sample(output), lambda sample: sample + 1))

        seams.denoiser(handle)
        if self.config.fail_to_attach:
            raise RuntimeError("attaching failed half-way")


class Seen(Technique[TechniqueConfig]):
    """Intercepts every softmax attention layer and leaves it as it is."""

    name = "seen"
    summary = "sees attention"
    config_class = TechniqueConfig

    def claims(self, target: Any) -> list[hasten.Claim]:
        return [hasten.Claim("attention.self", hasten.Access.READS)]

    def attach(self, target: Any, seams: Any) -> None:
        layers = softmax_layers(target)

        def handle(call: Any, proceed: Any) -> Any:
            seen = call.run.state("seen").setdefault((call.step.index, call.step.branch), [])
            seen.append(call.layer)
            call.run.record("seen", layers=list(seen))
            return proceed(call)

        seams.attention(handle, layers)


def softmax_layers(target: Target) -> list[str]:
    """Attention layers without those that use linear attention, which torch's attention function does not compute."""
    layers = attention_layers(target).items()
    return [name for name, module in layers if "Linear" not in type(module.processor).__name__]


class TestPlugin:
    __test__ = False

    @hasten.hookimpl
    def hasten_register_techniques(self, register: Any) -> None:
        register(Scale)
        register(Count)
        register(Seen)


@pytest.fixture(autouse=True)
def test_techniques() -> Iterator[None]:
    unregister = host().register(TestPlugin(), "test-techniques")
    yield
    unregister()


@pytest.fixture
def register() -> Iterator[Any]:
    """Registers plugin objects, or single technique classes, for one test."""
    undo = []

    def add(plugin: Any, name: str = "extra") -> None:
        if isinstance(plugin, type) and issubclass(plugin, Technique):
            technique = plugin

            class One:
                @hasten.hookimpl
                def hasten_register_techniques(self, register: Any) -> None:
                    register(technique)

            plugin = One()
        undo.append(host().register(plugin, name))

    yield add
    for unregister in reversed(undo):
        unregister()


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pipe(family: str) -> Any:
    return FAMILIES[family]()


@pytest.fixture
def flux() -> Any:
    return FAMILIES["flux"]()


@pytest.fixture
def sd3() -> Any:
    return FAMILIES["sd3"]()


def call(pipe: Any, family: str, seed: int = 0, **changes: Any) -> torch.Tensor:
    """One cheap seeded call; the latents it ends with."""
    return baseline(pipe, family, seed, **{"num_inference_steps": 2, **changes})


@pytest.fixture
def run() -> Any:
    """:func:`call`."""
    return call


@functools.cache
def stock_output(family: str) -> torch.Tensor:
    return call(FAMILIES[family](), family)


@pytest.fixture
def stock(family: str) -> torch.Tensor:
    """What :func:`call` gives on the stock pipeline of the family."""
    return stock_output(family)
