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
from hasten.extend import LatentLayout, UNetTokens
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
    "BriaFiboEditPipeline": "the tests of diffusers that build it do not load here",
    "BriaFiboPipeline": "the tests of diffusers that build it do not load here",
    "EasyAnimateControlPipeline": "stock fails: it passes its own encode_prompt an argument that this does not take",
    "LongCatImageEditPipeline": "its text encoder needs a picture processor of the checkpoint",
}
"""Supported classes of which no pipeline was run, and why. ``docs/compatibility.md`` calls them accepted."""


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
    refused = {name for adapter in families() for name in adapter.refused or {}}
    assert supported - refused - ran - {*OWN} == set(UNTRIED)


def test_layers_over_frames_are_not_taken_for_layers_of_a_picture() -> None:
    tokens = UNetTokens()
    assert tokens.selects("down_blocks.0.attentions.0.transformer_blocks.0.attn1")
    assert tokens.selects("mid_block.attentions.0.transformer_blocks.0.attn1")
    assert not tokens.selects("down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn1")


@pytest.mark.parametrize("kind", ["Flux2KleinPipeline", "QwenImageEditPipeline"])
def test_size_that_only_the_image_knows_is_not_guessed(kind: str) -> None:
    pipe, given = variant(kind)
    layout = find(pipe).capability(LatentLayout)
    assert layout is not None
    with pytest.raises(UnsupportedError, match="pass height and width"):
        layout.call_size(pipe, {**given, "image": object(), "height": None, "width": None})
