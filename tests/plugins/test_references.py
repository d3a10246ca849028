"""Reference pictures and regions reach the accelerated forward: IP-Adapter, masks of its pictures, Kontext, Edit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from controls import picture
from families import FAMILIES, seeded, variant
from torch import Tensor

import hasten

EXACT: dict[str, dict[str, Any]] = {
    "bottleneck": {"low_until": 1.0, "high_first": 0.5, "min_pixels": 1},
    "rettention": {"keep_ratio": 1.0, "warmup": 0, "min_tokens": 4},
    "guidance_interval": {"stop": 0.0},
}
ACTIVE: dict[str, dict[str, Any]] = {
    "bottleneck": {"low_until": 0.05, "high_first": 1.0, "min_pixels": 1},
    "rettention": {"keep_ratio": 0.5, "warmup": 0, "min_tokens": 1},
    "guidance_interval": {"start": 0.6, "stop": 0.6},
}
WIDTH = 24
"""Channels of the tiny U-Net's text, and of the embeddings of pictures."""


def image_embeds(seed: int) -> Tensor:
    """Embeddings of one picture, the unconditional one first: (2, 1, WIDTH)."""
    return torch.randn(2, 1, WIDTH, generator=torch.Generator().manual_seed(seed))


def ip_adapter_weights(unet: Any) -> dict[str, dict[str, Tensor]]:
    """Random weights of an IP-Adapter with four tokens for a picture."""
    generator = torch.Generator().manual_seed(5)
    layers: dict[str, Tensor] = {}
    crossed = [
        layer for name, layer in unet.named_modules() if name.endswith("attn2") and hasattr(layer, "to_k")
    ]
    for index, layer in enumerate(crossed):
        for kind in ("to_k_ip", "to_v_ip"):
            layers[f"{2 * index + 1}.{kind}.weight"] = torch.randn(
                layer.to_k.weight.shape, generator=generator
            )
    projection = {
        "proj.weight": torch.randn(4 * WIDTH, WIDTH, generator=generator),
        "proj.bias": torch.zeros(4 * WIDTH),
        "norm.weight": torch.ones(WIDTH),
        "norm.bias": torch.zeros(WIDTH),
    }
    return {"image_proj": projection, "ip_adapter": layers}


def with_ip_adapter() -> Any:
    pipe = FAMILIES["sd15"]()
    pipe.unet._load_ip_adapter_weights([ip_adapter_weights(pipe.unet)])
    return pipe


def half(right: bool) -> dict[str, Any]:
    """A region for the picture: one half of the image."""
    mask = torch.zeros(1, 1, 32, 48)
    mask[..., 24:] = 1
    return {"ip_adapter_masks": [mask if right else 1 - mask]}


Case = tuple[Callable[[], Any], dict[str, Any], dict[str, Any], tuple[str, ...]]
ALL = ("bottleneck", "rettention", "guidance_interval")


def ip_adapter() -> Case:
    def given(seed: int) -> dict[str, Any]:
        return {**seeded("sd15"), "ip_adapter_image_embeds": [image_embeds(seed)]}

    return with_ip_adapter, given(1), given(2), ALL


def regions() -> Case:
    def given(right: bool) -> dict[str, Any]:
        embeds = {"ip_adapter_image_embeds": [image_embeds(1)]}
        return {**seeded("sd15"), **embeds, "cross_attention_kwargs": half(right)}

    return with_ip_adapter, given(True), given(False), ALL


def kontext() -> Case:
    given = seeded("flux-kontext")
    return FAMILIES["flux-kontext"], given, {**given, "image": picture(2, seed=9)}, ALL[:2]


def edit() -> Case:
    pipe, given = variant("QwenImageEditPipeline")
    other = given["image"].point(lambda value: 255 - value)
    return lambda: pipe, given, {**given, "image": other}, ALL


CASES: dict[str, Callable[[], Case]] = {
    "IP-Adapter": ip_adapter,
    "regions": regions,
    "Kontext": kontext,
    "Edit": edit,
}


def call(pipe: Any, given: dict[str, Any]) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        made: Tensor = pipe(**{**given, "generator": generator, "return_dict": False})[0]
    return made


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name == "Edit")) for name in CASES]
)
def case(request: pytest.FixtureRequest) -> Any:
    build, given, other, techniques = CASES[request.param]()
    pipe = build()
    plain, changed = call(pipe, given), call(pipe, other)
    assert not torch.equal(plain, changed)
    return pipe, given, other, techniques, plain


@pytest.mark.parametrize("technique", ALL)
def test_another_reference_changes_the_accelerated_picture(case: Any, technique: str) -> None:
    pipe, given, other, techniques, plain = case
    if technique not in techniques:
        pytest.skip("the model is guidance-distilled")
    with hasten.accelerate(pipe, {technique: EXACT[technique]}):
        assert torch.equal(call(pipe, given), plain)
    with hasten.accelerate(pipe, {technique: ACTIVE[technique]}):
        made, changed = call(pipe, given), call(pipe, other)
    assert made.isfinite().all()
    assert not torch.equal(made, plain)
    assert not torch.equal(made, changed)
    assert torch.equal(call(pipe, given), plain)
