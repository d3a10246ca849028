"""Resizing against PIL, and the presets' normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hasten._errors import ConfigError
from hasten.eval.functional.resize import (
    clip_normalize,
    crop_to_square,
    pil_float,
    pil_uint8,
    short_side_then_crop,
    tf1_bilinear,
    torch_antialias,
    torch_noalias,
)
from hasten.eval.networks.features import PRESETS, find_preset

RESIZERS = (pil_float, pil_uint8, torch_antialias, torch_noalias, tf1_bilinear)


def textured(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 3, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("resize", RESIZERS)
def test_constant_stays_constant(resize: object) -> None:
    image = torch.full((2, 3, 40, 30), 77, dtype=torch.uint8)
    result = resize(image, (19, 23))
    assert result.shape == (2, 3, 19, 23)
    assert torch.allclose(result, torch.full_like(result, 77), atol=1e-4)


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("size", "target"), [((1024, 1024), (299, 299)), ((64, 64), (299, 299)), ((61, 97), (40, 33))]
)
def test_torch_antialias_is_pil_float(kind: str, size: tuple[int, int], target: tuple[int, int]) -> None:
    image = textured(*size)
    ours, pil = torch_antialias(image, target, kind), pil_float(image, target, kind)
    assert float((ours - pil).abs().max()) < 5e-3


def test_without_antialiasing_differs() -> None:
    image = textured(512, 512)
    assert float((torch_noalias(image, (99, 99)) - pil_float(image, (99, 99), "bilinear")).abs().mean()) > 10


def test_pil_uint8_is_pil() -> None:
    image = textured(31, 47)
    expected = Image.fromarray(image[0].permute(1, 2, 0).numpy()).resize((20, 15), Image.Resampling.BICUBIC)
    assert np.array_equal(pil_uint8(image, (15, 20))[0].permute(1, 2, 0).numpy(), np.asarray(expected))
    assert float((pil_uint8(image, (15, 20)) - pil_float(image, (15, 20))).abs().max()) <= 1.01


def test_tf1_bilinear_by_hand() -> None:
    row = torch.tensor([0, 30, 60, 90, 120, 150], dtype=torch.uint8).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    # Source coordinates i * 6 / 4 without a half-pixel offset: 0, 1.5, 3, 4.5.
    assert tf1_bilinear(row, (1, 4))[0, 0, 0].tolist() == [0, 45, 90, 135]
    # Growing: the last source coordinate 5.5 is clamped to the last pixel.
    assert tf1_bilinear(row, (1, 12))[0, 0, 0, -2:].tolist() == [150, 150]


def test_crops() -> None:
    image = textured(20, 33)
    assert torch.equal(crop_to_square(image), image[..., 6:26])
    wide = short_side_then_crop(image, 10)
    assert wide.shape == (1, 3, 10, 10)
    assert torch.equal(wide, pil_uint8(image, (10, 16))[..., 3:13])


def test_clip_geometry_is_that_of_transformers() -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image = textured(48, 80)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    expected = processor(images=Image.fromarray(image[0].permute(1, 2, 0).numpy()), return_tensors="pt")
    ours = clip_normalize(short_side_then_crop(image, 32))
    assert torch.allclose(ours, expected["pixel_values"], atol=1e-5)


def test_presets() -> None:
    white = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    for name, top in (("clean", 127 / 128), ("tf", 127 / 128), ("pytorch", 1.0), ("torchmetrics", 127 / 128)):
        result = PRESETS[name](white)
        assert result.shape == (1, 3, 299, 299)
        assert torch.allclose(result, torch.full_like(result, top), atol=1e-5)
    assert PRESETS["uint8"](white) is white
    assert find_preset("legacy_pytorch") is PRESETS["pytorch"]
    with pytest.raises(ConfigError, match="did you mean 'clean'"):
        find_preset("clena")


def test_the_four_presets_are_four_numbers() -> None:
    image = textured(64, 64)
    results = [PRESETS[name](image) for name in ("clean", "tf", "pytorch", "torchmetrics")]
    for i, a in enumerate(results):
        for b in results[i + 1 :]:
            assert float((a - b).abs().mean()) > 1e-4
