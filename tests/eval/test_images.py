"""Conversion to the canonical format, and the refusal of everything ambiguous."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hasten._errors import ConfigError
from hasten.eval.pictures.images import blank, check_images, from_float, to_rgb, to_uint8


def picture(mode: str = "RGB", size: tuple[int, int] = (5, 4)) -> Image.Image:
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def test_rgb_is_unchanged() -> None:
    image = picture()
    tensor = to_uint8([image, image])
    assert tensor.shape == (2, 3, 4, 5)
    assert np.array_equal(tensor[0].permute(1, 2, 0).numpy(), np.asarray(image))


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA"])
def test_opaque_modes(mode: str) -> None:
    tensor = to_uint8([picture(mode)])
    assert tensor.shape == (1, 3, 4, 5)
    if mode in ("L", "1", "LA"):
        assert torch.equal(tensor[:, 0], tensor[:, 1])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_refused(mode: str) -> None:
    image = picture(mode)
    image.putalpha(200)
    with pytest.raises(ConfigError, match=r"cat\.png has transparent pixels"):
        to_rgb(image, name="cat.png")


@pytest.mark.parametrize("mode", ["I", "F"])
def test_unknown_depths_are_refused(mode: str) -> None:
    with pytest.raises(ConfigError):
        to_rgb(Image.new(mode, (4, 4)))


def test_sizes_and_emptiness() -> None:
    with pytest.raises(ConfigError, match=r"5x4.*6x4|6x4.*5x4"):
        to_uint8([picture(), picture(size=(6, 4))])
    with pytest.raises(ConfigError, match="no images"):
        to_uint8([])


def test_blank_images() -> None:
    black, noise = torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)
    noise[1, 2, 2] = 1
    red = torch.tensor([255.0, 0, 0]).view(3, 1, 1).expand(3, 4, 4)
    assert blank(torch.stack([black, noise, red]).to(torch.uint8)).tolist() == [True, False, True]


def test_from_float() -> None:
    x = torch.tensor([0.0, 0.4999 / 255, 0.5001 / 255, 1.0])
    assert from_float(x).tolist() == [0, 0, 1, 255]
    for bad in (torch.tensor([0.0, 1.1]), torch.tensor([-1.0, 1.0]), torch.tensor([0.0, float("nan")])):
        with pytest.raises(ConfigError, match="must lie in"):
            from_float(bad)
    with pytest.raises(ConfigError, match="uint8"):
        from_float(torch.zeros(3, dtype=torch.uint8))


@pytest.mark.parametrize(
    "value", [torch.zeros(3, 4, 4), torch.zeros(0, 3, 4, 4), torch.zeros(1, 1, 4, 4), "picture"]
)
def test_canonical_only(value: object) -> None:
    if isinstance(value, torch.Tensor):
        value = value.to(torch.uint8)
    with pytest.raises(ConfigError):
        check_images(value)
