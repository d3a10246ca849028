"""Tiny stock pipelines with control networks, by class name; ``controlled(kind)`` builds one and its call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import PIL.Image
import torch
from families import FAMILIES, LATENT, disturbed, seeded
from torch import Tensor, nn

__all__ = ["CONTROLLED", "controlled", "picture"]

Built = tuple[str, Callable[[dict[str, Any]], dict[str, Any]], Callable[[], dict[str, Any]]]
"""Family whose components are used, what replaces or joins them, and what the call takes besides."""


def picture(factor: int, seed: int = 3) -> Tensor:
    """A condition picture of the calls' size, in [0, 1]."""
    height, width = (side * factor for side in LATENT)
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def _frames(factor: int, count: int = 9) -> list[PIL.Image.Image]:
    height, width = (side * factor for side in LATENT)
    return [PIL.Image.new("RGB", (width, height), (20 * i, 90, 255 - 20 * i)) for i in range(count)]


def _unet_control(parts: dict[str, Any]) -> Any:
    return disturbed(
        diffusers.ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(4, 8, 8))
    )


def _union(parts: dict[str, Any]) -> Any:
    sizes = {"num_trans_channel": 8, "num_trans_head": 2, "num_proj_channel": 8}
    return _shared(
        diffusers.ControlNetUnionModel, parts, "unet", conditioning_embedding_out_channels=(4, 8, 8), **sizes
    )


def _adapter(kind: str, factor: int) -> Any:
    return disturbed(
        diffusers.T2IAdapter(
            in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=factor, adapter_type=kind
        )
    )


def _adapted(parts: dict[str, Any]) -> dict[str, Any]:
    """A U-Net that gives the features of a T2I-Adapter to its first block, as Stable Diffusion's does."""
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    unet = _shared(diffusers.UNet2DConditionModel, parts, "unet", down_block_types=down, up_block_types=up)
    return {"unet": unet, "adapter": _adapter("full_adapter", 4)}


def _shared(kind: Any, parts: dict[str, Any], denoiser: str = "transformer", **config: Any) -> Any:
    """A network of class ``kind`` with the configuration of the denoiser, where it takes it."""
    known = inspect.signature(kind.__init__).parameters
    taken = {key: value for key, value in parts[denoiser].config.items() if key in known}
    return disturbed(kind(**{**taken, **config}))


def _sd3_control(parts: dict[str, Any], **config: Any) -> Any:
    return _shared(
        diffusers.SD3ControlNetModel, parts, num_layers=1, force_zeros_for_pooled_projection=False, **config
    )


def _flux_control(parts: dict[str, Any]) -> Any:
    return _shared(diffusers.FluxControlNetModel, parts, num_layers=1, num_single_layers=1)


def _qwen_control(parts: dict[str, Any]) -> Any:
    return _shared(diffusers.QwenImageControlNetModel, parts, num_layers=1)


def _hunyuan_control(parts: dict[str, Any]) -> Any:
    return _shared(
        diffusers.HunyuanDiT2DControlNetModel, parts, conditioning_channels=4, transformer_num_layers=4
    )


def _z_image_control(parts: dict[str, Any], control_in_dim: int = 4) -> Any:
    network = diffusers.ZImageControlNetModel(
        control_layers_places=[0],
        control_refiner_layers_places=[0],
        control_in_dim=control_in_dim,
        dim=32,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
    )
    return disturbed(network)


def _motion_control(parts: dict[str, Any]) -> Any:
    return disturbed(
        diffusers.ControlNetModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            attention_head_dim=4,
            norm_num_groups=4,
            cross_attention_dim=24,
            conditioning_embedding_out_channels=(4, 8, 8),
        )
    )


def _sparse_control(parts: dict[str, Any]) -> Any:
    return disturbed(
        diffusers.SparseControlNetModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
            num_attention_heads=2,
            motion_num_attention_heads=2,
            norm_num_groups=4,
            cross_attention_dim=24,
            conditioning_channels=3,
            conditioning_embedding_out_channels=(4, 8, 8),
            use_simplified_condition_embedding=False,
        )
    )


def _one(build: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda parts: {"controlnet": build(parts)}


def _two(
    build: Callable[[dict[str, Any]], Any], wrap: Callable[[list[Any]], Any] = lambda networks: networks
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda parts: {"controlnet": wrap([build(parts), build(parts)])}


def _both(factor: int, name: str = "control_image") -> Callable[[], dict[str, Any]]:
    return lambda: {
        name: [picture(factor), picture(factor, seed=4)],
        "controlnet_conditioning_scale": [1.0, 0.5],
        "control_guidance_start": [0.0, 0.0],
        "control_guidance_end": [1.0, 1.0],
    }


def _single(factor: int, name: str = "control_image", **more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {name: picture(factor), "controlnet_conditioning_scale": 1.0, **more}


def _masked(factor: int, mask: str) -> Callable[[], dict[str, Any]]:
    def given() -> dict[str, Any]:
        hole = torch.zeros_like(picture(factor)[:, :1])
        hole[..., hole.shape[-1] // 2 :] = 1
        return {"control_image": picture(factor), mask: hole, "image": picture(factor, seed=5)}

    return given


CONTROLLED: dict[str, Built] = {
    "StableDiffusionControlNetPipeline": ("sd15", _one(_unet_control), _single(4, "image")),
    "StableDiffusionControlNetPipeline, two": ("sd15", _two(_unet_control), _both(4, "image")),
    "StableDiffusionControlNetPipeline, guess": (
        "sd15",
        _one(_unet_control),
        _single(4, "image", guess_mode=True),
    ),
    "StableDiffusionControlNetPipeline, middle": (
        "sd15",
        _one(_unet_control),
        _single(4, "image", control_guidance_start=0.3, control_guidance_end=0.7),
    ),
    "StableDiffusionControlNetPAGPipeline": ("sd15", _one(_unet_control), _single(4, "image")),
    "StableDiffusionXLControlNetPipeline": ("sdxl", _one(_unet_control), _single(4, "image")),
    "StableDiffusionXLControlNetUnionPipeline": (
        "sdxl",
        _one(_union),
        lambda: {"control_image": [picture(4)], "control_mode": [1]},
    ),
    "StableDiffusion3ControlNetPipeline": ("sd3", _one(_sd3_control), _single(2)),
    "StableDiffusion3ControlNetPipeline, two": (
        "sd3",
        _two(_sd3_control, diffusers.SD3MultiControlNetModel),
        _both(2),
    ),
    "StableDiffusion3ControlNetInpaintingPipeline": (
        "sd3",
        _one(lambda parts: _sd3_control(parts, extra_conditioning_channels=1)),
        _masked(2, "control_mask"),
    ),
    "FluxControlNetPipeline": ("flux", _one(_flux_control), _single(2)),
    "FluxControlNetPipeline, two": (
        "flux",
        _two(_flux_control, diffusers.FluxMultiControlNetModel),
        _both(2),
    ),
    "QwenImageControlNetPipeline": ("qwen-image", _one(_qwen_control), _single(8)),
    "HunyuanDiTControlNetPipeline": ("hunyuan-dit", _one(_hunyuan_control), _single(8)),
    "SanaControlNetPipeline": (
        "sana",
        _one(lambda parts: _shared(diffusers.SanaControlNetModel, parts, num_layers=1)),
        _single(16),
    ),
    "ZImageControlNetPipeline": ("z-image", _one(_z_image_control), _single(2)),
    "ZImageControlNetInpaintPipeline": (
        "z-image",
        _one(lambda parts: _z_image_control(parts, control_in_dim=9)),
        _masked(2, "mask_image"),
    ),
    "AnimateDiffControlNetPipeline": (
        "animatediff",
        _one(_motion_control),
        lambda: {"conditioning_frames": _frames(4)},
    ),
    "AnimateDiffSparseControlNetPipeline": (
        "animatediff",
        _one(_sparse_control),
        lambda: {"conditioning_frames": _frames(4, 2), "controlnet_frame_indices": [0, 5]},
    ),
    "StableDiffusionAdapterPipeline": (
        "sd15",
        _adapted,
        lambda: {"image": picture(4)},
    ),
    "StableDiffusionXLAdapterPipeline": (
        "sdxl",
        lambda _: {"adapter": _adapter("full_adapter_xl", 8)},
        lambda: {"image": picture(4)},
    ),
}
"""Pipelines with a condition, by class name and, after a comma, what is special."""


def controlled(case: str) -> tuple[Any, dict[str, Any]]:
    """The pipeline of ``case`` and the arguments of a cheap call."""
    family, build, more = CONTROLLED[case]
    kind = getattr(diffusers, case.partition(",")[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = FAMILIES[family]().components
        parts = {**parts, **build(parts)}
        wanted = inspect.signature(kind.__init__).parameters
        missing = {
            name: None
            for name, parameter in wanted.items()
            if name not in ("self", *parts) and parameter.default is parameter.empty
        }
        pipe = kind(**{name: part for name, part in {**missing, **parts}.items() if name in wanted})
    if kind.__name__.startswith("ZImage"):
        _share(pipe.controlnet, pipe.transformer)
    pipe.set_progress_bar_config(disable=True)
    accepted = inspect.signature(kind.__call__).parameters
    given = {**seeded(family), **more()}
    return pipe, {name: value for name, value in given.items() if name in accepted}


def _share(network: nn.Module, transformer: nn.Module) -> None:
    """What Z-Image's control network uses of the denoiser."""
    diffusers.ZImageControlNetModel.from_transformer(network, transformer)
