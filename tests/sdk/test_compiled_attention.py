"""Attention handlers in compiled denoisers: the graphs of stock, none added by steps or runs, the same result."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from families import FAMILIES, baseline
from torch._dynamo.testing import CompileCounter

import hasten
from hasten._fingerprint import fingerprint

SPARSE = {"keep_ratio": 0.3, "warmup": 1, "min_tokens": 4, "period": 2}
EXACT = {"keep_ratio": 1.0, "warmup": 0, "min_tokens": 4}
WHOLE = ["sd3", "flux", "wan", "sd15", "cogvideox-rope", "ltx", "hunyuan-video", "pixart-sigma"]
BLOCKS = ["flux", "wan", "sd15"]
CASES = [*((family, "whole") for family in WHOLE), *((family, "blocks") for family in BLOCKS)]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(family: str, how: str) -> tuple[Any, CompileCounter]:
    pipe, counter = FAMILIES[family](), CompileCounter()
    for name in ("transformer", "unet"):
        denoiser = getattr(pipe, name, None)
        if denoiser is not None:
            (denoiser.compile if how == "whole" else denoiser.compile_repeated_blocks)(backend=counter)
    return pipe, counter


@pytest.mark.parametrize(("family", "how"), CASES)
def test_as_many_graphs_as_stock_and_none_by_steps_or_runs(family: str, how: str) -> None:
    pipe, counter = compiled(family, how)
    stock = baseline(pipe, family, num_inference_steps=4)
    graphs = counter.frame_count
    torch._dynamo.reset()
    pipe, counter = compiled(family, how)
    with hasten.accelerate(pipe, {"rettention": SPARSE}) as accel:
        made = baseline(pipe, family, num_inference_steps=4)
        phases = [row.facts["rettention"]["layers"] for row in accel.report().steps]
        assert counter.frame_count == graphs
        for steps in (4, 6):
            baseline(pipe, family, num_inference_steps=steps)
        assert counter.frame_count == graphs
    assert any("sparse" in phase for phase in phases)
    assert not torch.equal(made, stock)
    eager = FAMILIES[family]()
    with hasten.accelerate(eager, {"rettention": SPARSE}) as accel:
        torch.testing.assert_close(made, baseline(eager, family, num_inference_steps=4))
        assert phases == [row.facts["rettention"]["layers"] for row in accel.report().steps]


@pytest.mark.parametrize(("family", "how"), [("sd3", "whole"), ("flux", "blocks")])
def test_keeping_everything_is_stock_and_nothing_stays_behind(family: str, how: str) -> None:
    (pipe, counter), (control, _) = compiled(family, how), compiled(family, how)
    stock = baseline(pipe, family)
    baseline(control, family)
    with hasten.accelerate(pipe, {"rettention": EXACT}):
        assert torch.equal(baseline(pipe, family), stock)
    assert not fingerprint(control).diff(fingerprint(pipe))
    graphs = counter.frame_count
    assert torch.equal(baseline(pipe, family), stock)
    assert counter.frame_count == graphs


def test_compiling_later_works_too() -> None:
    pipe = FAMILIES["sd3"]()
    with hasten.accelerate(pipe, {"rettention": SPARSE}):
        eager = baseline(pipe, "sd3", num_inference_steps=4)
        pipe.transformer = torch.compile(pipe.transformer, backend="eager", fullgraph=True)
        torch.testing.assert_close(baseline(pipe, "sd3", num_inference_steps=4), eager)


def test_beside_bottleneck_there_is_a_graph_for_each_resolution() -> None:
    pipe, counter = compiled("sd3", "whole")
    config = {"bottleneck": {"low_until": 0.5, "high_first": 1.0, "min_pixels": 1}, "rettention": SPARSE}
    with hasten.accelerate(pipe, config):
        for _ in range(2):
            baseline(pipe, "sd3", num_inference_steps=6)
    assert counter.frame_count <= 2


def test_two_pipelines_over_one_compiled_denoiser_in_two_threads() -> None:
    pipe, _ = compiled("sd3", "whole")
    plain = baseline(pipe, "sd3", num_inference_steps=4)
    twin = copy.copy(pipe)
    twin.scheduler = copy.deepcopy(pipe.scheduler)
    with hasten.accelerate(twin, {"rettention": SPARSE}):
        sparse = baseline(twin, "sd3", num_inference_steps=4)
        with ThreadPoolExecutor(2) as threads:
            jobs = [threads.submit(baseline, one, "sd3", num_inference_steps=4) for one in (pipe, twin)]
        made = [job.result() for job in jobs]
    assert [torch.equal(one, plain) for one in made] == [True, False]
    assert [torch.equal(one, sparse) for one in made] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_with_the_default_compiler(family: str) -> None:
    pipe = FAMILIES[family]()
    with hasten.accelerate(pipe, {"rettention": SPARSE}):
        eager = baseline(pipe, family, num_inference_steps=4)
        pipe.transformer.compile()
        for _ in range(2):
            torch.testing.assert_close(
                baseline(pipe, family, num_inference_steps=4), eager, rtol=1e-3, atol=1e-3
            )
