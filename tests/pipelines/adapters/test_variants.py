"""The other pipelines of each family: redrawing, inpainting, editing, image and video to video."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from controls import CONTROLLED
from families import FAMILIES, VARIANTS, variant
from observation import observe_call
from test_find import OWN
from test_layouts import low_level, same

from hasten._errors import UnsupportedError
from hasten.extend import LatentLayout
from hasten.pipelines.adapters import families, find
from hasten.schedules.dct import dct_truncate

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("kind", VARIANTS)
def test_variant(kind: str) -> None:
    pipe, given = variant(kind)
    seen = observe_call(pipe, given)
    layout, forward = seen.layout, seen.forwards[-1]
    assert layout.refusal(pipe) is None

    level, latent = layout.level(pipe, forward.kwargs), layout.decode(pipe, forward.kwargs)
    assert level.time == pytest.approx(seen.levels[forward.step].time, abs=1e-6)
    size = layout.size(pipe, forward.kwargs)
    assert layout.call_size(pipe, seen.arguments) == size
    assert same(layout.encode(pipe, forward.kwargs, latent, level), forward.kwargs)

    half = [side // 2 // layout.multiple * layout.multiple for side in (size.height, size.width)]
    kwargs = layout.encode(pipe, forward.kwargs, dct_truncate(latent, *half), low_level(level, 2.0))
    with torch.no_grad():
        sample = forward.module(**kwargs)[0]
    output = layout.decode_output(pipe, kwargs, sample)
    assert output.shape == (*latent.shape[:-2], *half)
    assert output.isfinite().all()


UNTRIED = {
    "animatediff-video",
    "animatediff-sparse",
    "animatediff-video-controlled",
    "bria-fibo",
    "cogview4-control",
    "deepfloyd-if",
    "easyanimate",
    "easyanimate-control",
    "easyanimate-inpaint",
    "hidream",
    "hunyuan-image-refiner",
    "kandinsky",
    "latent-consistency",
    "longcat-image",
    "lumina",
    "marigold",
    "pixels",
    "sana-video",
    "skyreels-forcing",
    "stable-diffusion-3-pag",
    "stable-video-diffusion",
    "wan-animate",
    "wan-edit",
    "wan-vace",
}
"""Families of which no tiny pipeline was run. ``docs/compatibility.md`` calls their pipelines accepted, not running."""


def test_every_supported_pipeline_is_tried() -> None:
    tried = {
        *VARIANTS,
        *(case.partition(",")[0] for case in CONTROLLED),
        *(type(build()).__name__ for build in FAMILIES.values()),
    }
    supported = {name for adapter in families() for name in adapter.pipelines}
    matrix = json.loads((ROOT / "docs" / "compatibility.json").read_text("utf-8"))
    ran = tried | {name for name, trial in matrix.items() if "runs" in trial["techniques"].values()}
    assert tried <= supported
    alone = {adapter.family for adapter in families() if not ran & {*adapter.pipelines, *OWN}}
    assert alone - {"next_scale"} <= UNTRIED


@pytest.mark.parametrize("kind", ["Flux2KleinPipeline", "QwenImageEditPipeline"])
def test_size_that_only_the_image_knows_is_not_guessed(kind: str) -> None:
    pipe, given = variant(kind)
    layout = find(pipe).capability(LatentLayout)
    assert layout is not None
    with pytest.raises(UnsupportedError, match="pass height and width"):
        layout.call_size(pipe, {**given, "image": object(), "height": None, "width": None})
