"""VideoCrafter2's U-Net: the base class but for the frame rate, the conversion's names, and clips of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet3DConditionModel
from families import FAMILIES, _tiny, baseline

import hasten
from hasten.pipelines.videocrafter import FPS, VideoCrafterUNet

FOREIGN = "UNet3DVideoCrafterConditionModel"


def tiny(**more: Any) -> Any:
    config = {k: v for k, v in FAMILIES["text-to-video"]().unet.config.items() if not k.startswith("_")}
    return _tiny(VideoCrafterUNet, **config, **more)


def output(unet: Any) -> torch.Tensor:
    numbers = torch.Generator().manual_seed(1)
    sample, words = torch.randn(2, 4, 3, 8, 8, generator=numbers), torch.randn(2, 7, 24, generator=numbers)
    with torch.no_grad():
        found: torch.Tensor = unet(sample, 500, words).sample
    return found


def test_the_frame_rate_counts() -> None:
    unet = tiny()
    assert unet.fps == FPS
    at_28 = output(unet)
    unet.fps = 8
    assert float((output(unet) - at_28).abs().max()) > 1e-2


def test_without_its_embedding_it_is_the_base_class() -> None:
    unet = tiny()
    base = UNet3DConditionModel(
        **{k: v for k, v in unet.config.items() if k != "fps_cond" and k[0] != "_"}
    ).eval()
    missing, unexpected = base.load_state_dict(unet.state_dict(), strict=False)
    assert not missing
    assert {name.split(".")[0] for name in unexpected} == {"fps_embedding"}
    for parameter in unet.fps_embedding.parameters():
        torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(output(unet), output(base), atol=1e-5, rtol=1e-5)
    without = tiny(fps_cond=False)
    assert "fps_embedding" not in dict(without.named_children())
    with pytest.raises(AttributeError, match="no condition on the frame rate"):
        without.fps = 8


def test_the_conversion_loads_by_its_own_names(tmp_path: Path) -> None:
    unet = tiny()
    unet.fps = 12
    unet.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["fps_cond"] is True
    (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": FOREIGN}))
    loaded = VideoCrafterUNet.from_pretrained(tmp_path)
    assert loaded.fps == FPS
    loaded.fps = 12
    torch.testing.assert_close(output(loaded), output(unet), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("clips", [1, 3])
def test_a_divided_video_is_that_of_the_stock_pipeline(clips: int) -> None:
    pipe = FAMILIES["text-to-video"]()
    pipe.unet = tiny()
    expected = baseline(pipe, "text-to-video", num_frames=7)
    with hasten.accelerate(pipe, {"video_infinity": {"mode": "full", "clips": clips}}):
        found = baseline(pipe, "text-to-video", num_frames=7)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())
