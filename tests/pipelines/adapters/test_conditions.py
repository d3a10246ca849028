"""What rides along with the latents: clean frames, masks, references, audio, experts; sizes of calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, LATENT
from observation import Observation, observe
from test_layouts import HALF

from hasten._errors import UnsupportedError
from hasten.extend import Channels, LatentLayout, LatentSize, resize_clean, resize_features, resize_mask
from hasten.pipelines.adapters import find
from hasten.schedules.dct import dct_truncate
from hasten.schedules.noise import NoiseLevel


def shrunk(
    seen: Observation, level: NoiseLevel | None = None, **changes: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the first forward, with changes, and those of its low-resolution counterpart."""
    layout, pipe = seen.layout, seen.pipe
    large = {**seen.forwards[0].kwargs, **changes}
    small = dct_truncate(layout.decode(pipe, large), *HALF)
    return large, layout.encode(pipe, large, small, level or layout.level(pipe, large))


def test_clean_content_keeps_its_amplitude() -> None:
    flat = torch.full((1, 3, 8, 12), 0.7)
    for size in (LatentSize(4, 6), LatentSize(6, 8), LatentSize(16, 24)):
        resized = resize_clean(flat, size)
        torch.testing.assert_close(resized, torch.full((1, 3, size.height, size.width), 0.7))
    assert resize_clean(flat, LatentSize(8, 12)) is flat


def test_wan_conditions_are_resized_as_what_they_are() -> None:
    seen = observe("wan-i2v")
    large = seen.forwards[0].kwargs["hidden_states"].clone()
    large[:, 4:8] = (torch.arange(12) < 6).float()  # mask: left half
    large[:, 8:] = 0.7  # picture
    _, small = shrunk(seen, hidden_states=large)
    result = small["hidden_states"]
    assert result.shape == (1, 12, 3, *HALF)
    assert torch.equal(result[:, 4:8], (torch.arange(6) < 3).float().expand(1, 4, 3, *HALF))
    torch.testing.assert_close(result[:, 8:], torch.full((1, 4, 3, *HALF), 0.7))
    torch.testing.assert_close(result[:, :4], dct_truncate(large[:, :4], *HALF))


def test_hunyuan_15_mask_comes_last() -> None:
    seen = observe("hunyuan-video-1.5")
    large = seen.forwards[0].kwargs["hidden_states"].clone()
    large[:, 4:8] = 0.7
    large[:, 8] = (torch.arange(12) < 6).float()
    _, small = shrunk(seen, hidden_states=large)
    torch.testing.assert_close(small["hidden_states"][:, 4:8], torch.full((1, 4, 3, *HALF), 0.7))
    assert torch.equal(small["hidden_states"][0, 8, 0, 0], (torch.arange(6) < 3).float())


@pytest.mark.parametrize("name", ["wan22-ti2v-i2v", "ltx-i2v"])
def test_given_first_frame_stays_clean(name: str) -> None:
    seen = observe(name)
    layout, pipe = seen.layout, seen.pipe
    large, small = shrunk(seen, NoiseLevel.flow(0.4))
    frames = layout.size(pipe, large).frames or 0
    tokens = small["timestep"].unflatten(1, (frames, -1))
    assert (tokens[:, 0] == 0).all()
    torch.testing.assert_close(tokens[:, 1:], torch.full_like(tokens[:, 1:], 400.0))
    given = layout.decode(pipe, large)[:, :, 0]
    torch.testing.assert_close(
        layout.decode(pipe, small)[:, :, 0], resize_clean(given, LatentSize(*HALF)), atol=1e-6, rtol=0
    )


def test_every_token_of_text_to_video_is_told_the_new_time() -> None:
    seen = observe("wan22-ti2v")
    _, small = shrunk(seen, NoiseLevel.flow(0.4))
    assert small["timestep"].shape == (1, 3 * HALF[0] // 2 * HALF[1] // 2)
    torch.testing.assert_close(small["timestep"], torch.full_like(small["timestep"], 400.0))


def test_kontext_reference_stays() -> None:
    seen = observe("flux-kontext")
    large, small = shrunk(seen)
    count, fewer = LATENT[0] * LATENT[1] // 4, HALF[0] * HALF[1] // 4
    assert large["hidden_states"].shape[1] == 2 * count
    assert torch.equal(small["hidden_states"][:, fewer:], large["hidden_states"][:, count:])
    assert torch.equal(small["img_ids"][fewer:], large["img_ids"][count:])


def test_grid_survives_half_precision_ids() -> None:
    seen = observe("flux")
    size = LatentSize(2, 2 * 600)
    ids = seen.layout.positions(seen.pipe, seen.forwards[0].kwargs, size)["img_ids"]  # type: ignore[attr-defined]
    for dtype in (torch.float32, torch.bfloat16):
        assert seen.layout.size(seen.pipe, {"img_ids": ids.to(dtype)}) == size


@pytest.mark.parametrize("name", ["flux", "chroma", "qwen-image"])
def test_tokens_unpack_as_the_pipeline_does(name: str) -> None:
    seen = observe(name)
    tokens = seen.forwards[0].kwargs["hidden_states"]
    height, width = seen.arguments["height"], seen.arguments["width"]
    expected = seen.pipe._unpack_latents(tokens, height, width, seen.pipe.vae_scale_factor)
    decoded = seen.layout.decode(seen.pipe, seen.forwards[0].kwargs)
    assert torch.equal(decoded, expected.view_as(decoded))


def test_flux2_tokens_unpack_as_the_pipeline_does() -> None:
    seen = observe("flux2")
    kwargs = seen.forwards[0].kwargs
    latents = seen.pipe._unpack_latents_with_ids(kwargs["hidden_states"], kwargs["img_ids"])
    expected = seen.pipe._unpatchify_latents(latents)
    assert torch.equal(seen.layout.decode(seen.pipe, kwargs), expected)


def test_ltx_tokens_unpack_as_the_pipeline_does() -> None:
    seen = observe("ltx")
    kwargs = seen.forwards[0].kwargs
    expected = seen.pipe._unpack_latents(kwargs["hidden_states"], 3, *LATENT)
    assert torch.equal(seen.layout.decode(seen.pipe, kwargs), expected)


def test_ltx2_audio_keeps_its_level() -> None:
    seen = observe("ltx2")
    large, small = shrunk(seen, NoiseLevel.flow(0.4))
    assert (small["timestep"] == 400).all()
    assert (small["sigma"] == 400).all()
    assert small["audio_timestep"] is large["timestep"]
    assert small["audio_sigma"] is large["sigma"]


def test_boundary_of_the_experts() -> None:
    seen = observe("wan22-a14b")
    boundary = seen.layout.expert_boundary(seen.pipe)
    assert boundary == 0.8
    for forward in seen.forwards:
        high = seen.layout.level(seen.pipe, forward.kwargs).time >= boundary
        assert forward.module is (seen.pipe.transformer if high else seen.pipe.transformer_2)
    assert {forward.module for forward in seen.forwards} == set(seen.denoisers)
    alone = FAMILIES["wan"]()
    assert seen.layout.expert_boundary(alone) is None


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("flux", {}, LatentSize(128, 128)),
        ("flux", {"height": 1000, "width": 777}, LatentSize(500, 388)),
        ("sd15", {}, LatentSize(8, 8)),
        ("sd15", {"height": 64, "latents": torch.zeros(1, 4, 5, 7)}, LatentSize(5, 7)),
        ("pixart-sigma", {"height": 32, "width": 32, "use_resolution_binning": False}, LatentSize(8, 8)),
        ("z-image", {}, LatentSize(512, 512)),
        ("wan", {"height": 100, "width": 64, "num_frames": 80}, LatentSize(12, 8, 21)),
        ("wan", {"height": 64, "width": 64, "num_frames": 81}, LatentSize(8, 8, 21)),
        ("cogvideox-rope", {}, LatentSize(8, 12, 3)),
        ("cogvideox-rope", {"latents": torch.zeros(1, 5, 4, 8, 6)}, LatentSize(8, 6, 5)),
        ("ltx2", {"height": 64, "width": 96}, LatentSize(2, 3, 16)),
        ("hunyuan-dit", {"height": 1024, "width": 1024}, LatentSize(128, 128)),
        ("flux2", {"latents": torch.zeros(1, 16, 4, 6)}, LatentSize(8, 12)),
    ],
)
def test_size_of_a_call(name: str, arguments: dict[str, Any], expected: LatentSize) -> None:
    pipe = FAMILIES[name]()
    layout = find(pipe).capability(LatentLayout)
    assert layout is not None
    assert layout.call_size(pipe, {"height": None, "width": None, **arguments}) == expected


@pytest.mark.parametrize(
    ("name", "expected"), [("pixart-sigma", (208, 304)), ("sana", (832, 1216)), ("hunyuan-dit", (864, 1152))]
)
def test_binning_is_the_pipelines_own(name: str, expected: tuple[int, int]) -> None:
    pipe = FAMILIES[name]()
    pipe.transformer.register_to_config(sample_size=32)
    layout = find(pipe).capability(LatentLayout)
    assert layout is not None
    size = layout.call_size(pipe, {"height": 820, "width": 1200, "use_resolution_binning": True})
    assert layout.pixels(pipe, size) == expected


def test_masks_are_resized_by_area() -> None:
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 0, 0] = 1
    small = resize_mask(mask, LatentSize(2, 2))
    torch.testing.assert_close(small, torch.tensor([[[[0.25, 0.0], [0.0, 0.0]]]]))


def test_masks_in_blocks_of_pixels_are_resized_as_pixels() -> None:
    pixels = (torch.arange(32) < 16).float().expand(1, 1, 32, 32)
    blocks = torch.nn.functional.pixel_unshuffle(pixels, 8)
    channels = Channels(slice(0, 0), slice(0, 64), 8)
    small = torch.nn.functional.pixel_shuffle(channels.fitted(blocks, LatentSize(2, 2)), 8)
    torch.testing.assert_close(small, (torch.arange(16) < 8).float().expand(1, 1, 16, 16))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 3, 8, 12), (2, 3, 4, 6)),
        ((2, 3, 2, 3), (2, 3, 1, 2)),
        ((2, 24, 5), (2, 6, 5)),
        ((2, 96, 5), (2, 24, 5)),
    ],
)
def test_control_features_follow_the_grid(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    features = torch.full(shape, 0.7)
    small = resize_features({"a": (features,)}, LatentSize(8, 12), LatentSize(4, 6))["a"][0]
    torch.testing.assert_close(small, torch.full(expected, 0.7))


def test_control_features_of_no_grid_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"\(2, 25, 5\) do not match a latent grid"):
        resize_features(torch.zeros(2, 25, 5), LatentSize(8, 12), LatentSize(4, 6))


def test_inpainting_unet_keeps_its_conditions_what_they_are() -> None:
    pipe = FAMILIES["sd15"]()
    layout = find(pipe).capability(LatentLayout)
    assert layout is not None
    whole = torch.randn(2, 9, 8, 12)
    whole[:, 4] = (torch.arange(12) < 6).float()
    whole[:, 5:] = 0.7
    kwargs = {"sample": whole, "timestep": torch.tensor(500)}
    latent = layout.decode(pipe, kwargs)
    assert torch.equal(latent, whole[:, :4])
    small = layout.encode(pipe, kwargs, dct_truncate(latent, *HALF), layout.level(pipe, kwargs))["sample"]
    torch.testing.assert_close(small[:, :4], dct_truncate(latent, *HALF))
    assert torch.equal(small[:, 4], (torch.arange(6) < 3).float().expand(2, *HALF))
    torch.testing.assert_close(small[:, 5:], torch.full((2, 4, *HALF), 0.7))


def test_control_residuals_reach_the_small_forward() -> None:
    pipe = FAMILIES["sd15"]()
    layout = find(pipe).capability(LatentLayout)
    assert layout is not None
    kwargs = {
        "sample": torch.randn(2, 4, 8, 12),
        "timestep": torch.tensor(500),
        "down_block_additional_residuals": (torch.full((2, 8, 8, 12), 0.3), torch.full((2, 8, 4, 6), 0.3)),
        "mid_block_additional_residual": torch.full((2, 16, 4, 6), 0.3),
    }
    small = layout.encode(pipe, kwargs, torch.randn(2, 4, *HALF), layout.level(pipe, kwargs))
    shapes = [tuple(part.shape) for part in small["down_block_additional_residuals"]]
    assert shapes == [(2, 8, 4, 6), (2, 8, 2, 3)]
    torch.testing.assert_close(small["mid_block_additional_residual"], torch.full((2, 16, 2, 3), 0.3))
