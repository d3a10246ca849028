"""Compiled denoisers: the chain stays outside of the compiled callable, so that steps share their graphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from families import FAMILIES
from torch._dynamo.utils import counters

import hasten


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compile_denoiser(pipe: Any, how: str) -> None:
    options = {"backend": "eager", "fullgraph": True}
    if how == "wrapped":
        pipe.transformer = torch.compile(pipe.transformer, **options)
    elif how == "in place":
        pipe.transformer.compile(**options)
    else:
        pipe.transformer.compile_repeated_blocks(**options)


HOW = ["wrapped", "in place", "regional"]


@pytest.mark.parametrize("how", HOW)
def test_steps_and_runs_add_no_graph(flux: Any, run: Any, how: str) -> None:
    compile_denoiser(flux, how)
    stock = run(flux, "flux")
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == (2 if how == "regional" else 1)
    with hasten.accelerate(flux, {"scale": {"factor": 1.0}, "count": {}}) as accel:
        accel.remove("count")
        for steps in (2, 3):
            run(flux, "flux", num_inference_steps=steps)
        assert torch.equal(run(flux, "flux"), stock)
    assert torch.equal(run(flux, "flux"), stock)
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


@pytest.mark.parametrize("how", HOW)
def test_compiling_after_accelerating(flux: Any, run: Any, how: str) -> None:
    with hasten.accelerate(FAMILIES["flux"](), ["scale"]) as eager:
        expected = run(eager._pipe, "flux")
    with hasten.accelerate(flux, ["scale"]):
        compile_denoiser(flux, how)
        torch.testing.assert_close(run(flux, "flux"), expected)
        assert counters["stats"]["unique_graphs"] > 0


def test_two_resolutions_make_two_graphs(flux: Any, run: Any) -> None:
    compile_denoiser(flux, "wrapped")
    torch._dynamo.config.automatic_dynamic_shapes, before = (
        False,
        torch._dynamo.config.automatic_dynamic_shapes,
    )
    try:
        with hasten.accelerate(flux, ["scale"]):
            for _ in range(2):
                run(flux, "flux", num_inference_steps=3)
                run(flux, "flux", num_inference_steps=3, height=32, width=32)
    finally:
        torch._dynamo.config.automatic_dynamic_shapes = before
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("how", HOW)
def test_modules_in_a_compiled_denoiser_are_refused(flux: Any, run: Any, register: Any, how: str) -> None:
    class Inside(hasten.Technique[Any]):
        name = "inside"
        summary = "around one block"
        config_class = hasten.TechniqueConfig

        def claims(self, target: Any) -> list[Any]:
            return []

        def attach(self, target: Any, seams: Any) -> None:
            seams.module(
                "transformer.transformer_blocks.0", lambda inner, args, kwargs: inner(*args, **kwargs)
            )

    register(Inside)
    with hasten.accelerate(flux, ["inside"]):
        compile_denoiser(flux, how)
        with pytest.raises(hasten.UnsupportedError, match=r"compiled with torch\.compile"):
            run(flux, "flux")
    with pytest.raises(hasten.UnsupportedError, match=r"compiled with torch\.compile"):
        hasten.accelerate(flux, ["inside"])
    run(flux, "flux")


def test_long_videos_are_refused_in_the_plan() -> None:
    pipe = FAMILIES["wan"]()
    pipe.transformer.compile(backend="eager")
    with pytest.raises(hasten.UnsupportedError, match=r"compiled with torch\.compile"):
        hasten.plan(pipe, {"video_infinity": {"clips": 2}})


def test_bottleneck_compiles_one_graph_per_resolution(sd3: Any, run: Any) -> None:
    stock = run(sd3, "sd3", num_inference_steps=6)
    compile_denoiser(sd3, "wrapped")
    options = {"min_pixels": 1, "low_until": 0.5}
    with hasten.accelerate(sd3, {"bottleneck": options}) as accel:
        for _ in range(2):
            assert not torch.equal(run(sd3, "sd3", num_inference_steps=6), stock)
        resolutions = {step.resolution for step in accel.report().steps}
    assert len(resolutions) == 2
    assert counters["stats"]["unique_graphs"] <= len(resolutions)
    torch.testing.assert_close(run(sd3, "sd3", num_inference_steps=6), stock)
