"""On GPUs: clips in half precision, and NCCL where there are two. Written where there was none; not run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from clip_cases import build, call, run
from clip_launch import Ranks
from families import baseline

import hasten

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
FAMILIES = ["wan", "text-to-video", "ltx", "cogvideox-rope", "hunyuan-video"]


def latents(family: str, dtype: torch.dtype, options: dict[str, Any] | None) -> torch.Tensor:
    pipe = build(family).to("cuda", dtype)
    if options is None:
        return baseline(pipe, family, **call(family, 7)).float().cpu()
    with hasten.accelerate(pipe, {"video_infinity": options}):
        return baseline(pipe, family, **call(family, 7)).float().cpu()


@pytest.mark.parametrize("family", FAMILIES)
def test_clips_on_a_gpu_equal_the_stock_pipeline(family: str) -> None:
    expected = latents(family, torch.float32, None)
    divided = latents(family, torch.float32, {"mode": "full", "clips": 3})
    assert float((divided - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options", [{"mode": "full", "clips": 3}, {"halo": 2, "global_frames": 3, "clips": 3}]
)
def test_half_precision_is_no_worse_than_twice_the_stock_error(family: str, options: dict[str, Any]) -> None:
    alone = None if options.get("mode") == "full" else {**options, "clips": 1}
    exact = latents(family, torch.float32, alone)
    stock = (latents(family, torch.bfloat16, alone) - exact).abs().max()
    divided = (latents(family, torch.bfloat16, options) - exact).abs().max()
    assert float(divided) < 2 * float(stock)


def one_rank(out: str) -> None:
    import os

    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    found = latents("wan", torch.float32, {"halo": 2, "global_frames": 3, "timeout_s": 60.0})
    torch.save(found, f"{out}.{os.environ['RANK']}")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_equal_one_processor(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, 2, one_rank, str(tmp_path / "out"))
    try:
        assert ranks.wait() == [0, 0], ranks.output(0) + ranks.output(1)
    finally:
        ranks.kill()
    options = {"halo": 2, "global_frames": 3, "clips": 1}
    expected = run({"family": "wan", "frames": 7, "options": options})
    for rank in range(2):
        found = torch.load(f"{tmp_path / 'out'}.{rank}")
        assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())
