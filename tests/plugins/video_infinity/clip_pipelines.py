"""Tiny pipelines of the video families beyond those of ``families.py``, for runs in clips only.

``PIPELINES[name]()`` builds one; it is called through ``families.baseline``. ``pixels(name, frames)`` are the arguments
that set the length of its video.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import families
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from families import _noise, _pipeline, _prompt, _sized, _tiny
from PIL import Image

PIPELINES: dict[str, Callable[[], Any]] = {}
_FACTOR: dict[str, int] = {}
_VIDEO: dict[str, str] = {}


def _case(name: str, call: Callable[[], dict[str, Any]], factor: int = 4, video: str = "num_frames") -> Any:
    """Register a builder; ``factor`` is frames per latent frame, ``video`` the argument that sets the length."""

    def register(build: Callable[[], Any]) -> Callable[[], Any]:
        families._family(name, call)(build)
        PIPELINES[name] = families._BUILDERS[name][0]
        _FACTOR[name], _VIDEO[name] = factor, video
        return build

    return register


def picture(index: int = 0, factor: int = 8) -> Image.Image:
    """A picture of the calls' size, with an edge that moves."""
    height, width = (side * factor for side in families.LATENT)
    image = Image.new("RGB", (width, height), (20 * index % 250, 90, 200))
    image.paste((250, 40, 10), (0, 0, width // 2, 1 + (3 * index) % height))
    return image


def pixels(name: str, frames: int) -> dict[str, Any]:
    """Arguments that make a video of ``frames`` temporal patches."""
    factor = _FACTOR[name]
    count = frames * factor if name == "allegro" else (frames - 1) * factor + 1
    if _VIDEO[name] == "num_frames":
        return {"num_frames": count}
    size = 4 if name.startswith("animatediff") or name == "video-to-video" else 8
    video = [picture(index, size) for index in range(count)]
    given: dict[str, Any] = {"num_frames": count} if name in _COUNTED else {}
    return given | dict.fromkeys(_VIDEO[name].split(), video)


_COUNTED = ("animatediff-controlnet", "wan-vace", "lucy-edit")


def _options(model: Any) -> dict[str, Any]:
    return {name: value for name, value in model.config.items() if not name.startswith("_")}


def _changed(model: Any, **config: Any) -> Any:
    """A new model with some other options."""
    return _tiny(type(model), **{**_options(model), **config})


def _flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)


class Harmless(ModelMixin, ConfigMixin):
    """Stands in for the guard of Cosmos, without which its pipelines raise."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


# --- Cosmos


def _cosmos(channels: int = 4, **config: Any) -> Any:
    options = {"in_channels": channels, "out_channels": 4, "num_layers": 1, "num_attention_heads": 2}
    return _tiny(
        "CosmosTransformer3DModel",
        **options,
        attention_head_dim=16,
        mlp_ratio=2,
        text_embed_dim=24,
        adaln_lora_dim=4,
        max_size=(8, 16, 16),
        concat_padding_mask=False,  # needs torchvision
        **config,
    )


def _edm() -> Any:
    return diffusers.EDMEulerScheduler(
        sigma_min=0.002,
        sigma_max=80,
        sigma_data=0.5,
        sigma_schedule="karras",
        prediction_type="epsilon",
        final_sigmas_type="sigma_min",
    )


def _cosmos_vae() -> Any:
    return _tiny(
        "AutoencoderKLCosmos",
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
    )


@_case("cosmos-1", lambda: _sized(8, **_prompt(24)))
def _cosmos_1() -> Any:
    parts = {"transformer": _cosmos(), "vae": _cosmos_vae(), "scheduler": _edm()}
    return _pipeline("CosmosTextToWorldPipeline", **parts, safety_checker=Harmless())


@_case("cosmos-1-v2w", lambda: _sized(8, **_prompt(24), image=picture()))
def _cosmos_1_video() -> Any:
    parts = {"transformer": _cosmos(5), "vae": _cosmos_vae(), "scheduler": _edm()}
    return _pipeline("CosmosVideoToWorldPipeline", **parts, safety_checker=Harmless())


@_case("cosmos-2-v2w", lambda: _sized(8, **_prompt(24), image=picture()))
def _cosmos_2_video() -> Any:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    parts = {"transformer": _cosmos(5), "vae": families._wan_vae(), "scheduler": scheduler}
    return _pipeline("Cosmos2VideoToWorldPipeline", **parts, safety_checker=Harmless())


# --- HunyuanVideo


@_case("hunyuan-video-1.5", families._hunyuan_video_15_call)
def _hunyuan_15() -> Any:
    return families._hunyuan_video_15()


@_case("hunyuan-video-1.5-i2v", lambda: families.variant("HunyuanVideo15ImageToVideoPipeline")[1])
def _hunyuan_15_image() -> Any:
    return families.variant("HunyuanVideo15ImageToVideoPipeline")[0]


def _hunyuan(kind: str, channels: int, **config: Any) -> Any:
    pipe = families._hunyuan_video()
    transformer = _changed(pipe.transformer, in_channels=channels, **config)
    vae = _tiny(
        "AutoencoderKLHunyuanVideo",
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    return _pipeline(kind, transformer=transformer, vae=vae, scheduler=_flow())


def _hunyuan_call() -> dict[str, Any]:
    return _sized(8, **families._hunyuan_video_prompt(), image=picture(), true_cfg_scale=1.0)


@_case("skyreels-i2v", _hunyuan_call)
def _skyreels() -> Any:
    return _hunyuan("HunyuanSkyreelsImageToVideoPipeline", 8)


@_case("hunyuan-i2v", _hunyuan_call)
def _hunyuan_i2v() -> Any:
    return _hunyuan("HunyuanVideoImageToVideoPipeline", 9, image_condition_type="latent_concat")


# --- CogVideoX


def _control_call() -> dict[str, Any]:
    return {name: value for name, value in families._cogvideox_call().items() if name != "num_frames"}


def _cogvideox(kind: str) -> Any:
    pipe = families._cogvideox_rope()
    transformer = _changed(pipe.transformer, in_channels=8)
    parts = {"vae": pipe.vae, "scheduler": diffusers.CogVideoXDDIMScheduler()}
    return _pipeline(kind, transformer=transformer, **parts)


@_case("cogvideox-i2v", lambda: {**families._cogvideox_call(), "image": picture()})
def _cogvideox_i2v() -> Any:
    return _cogvideox("CogVideoXImageToVideoPipeline")


@_case("cogvideox-control", _control_call, video="control_video")
def _cogvideox_control() -> Any:
    return _cogvideox("CogVideoXFunControlPipeline")


# --- others with tokens of all frames


def _easyanimate(kind: str, channels: int) -> Any:
    transformer = _tiny(
        "EasyAnimateTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=channels,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=24,
        num_layers=1,
        mmdit_layers=1,
        patch_size=2,
    )
    return _pipeline(kind, transformer=transformer, vae=_magvit(), scheduler=_flow())


def _magvit() -> Any:
    return _tiny(
        "AutoencoderKLMagvit",
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        spatial_group_norm=False,
        down_block_types=("SpatialDownBlock3D", *("SpatialTemporalDownBlock3D",) * 3),
        up_block_types=("SpatialUpBlock3D", *("SpatialTemporalUpBlock3D",) * 3),
    )


@_case("easyanimate", lambda: _sized(8, **_prompt(24, mask=True)))
def _easyanimate_text() -> Any:
    return _easyanimate("EasyAnimatePipeline", 4)


@_case("kandinsky5", lambda: {**_sized(8), **_kandinsky_prompt()})
def _kandinsky5() -> Any:
    transformer = _tiny(
        "Kandinsky5Transformer3DModel",
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=24,
        in_text_dim2=16,
        time_dim=16,
        model_dim=32,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 6, 6),
        visual_cond=False,
        attention_type="regular",
    )
    vae = _hunyuan("HunyuanSkyreelsImageToVideoPipeline", 8).vae
    return _pipeline("Kandinsky5T2VPipeline", transformer=transformer, vae=vae, scheduler=_flow())


def _kandinsky_prompt() -> dict[str, Any]:
    given: dict[str, Any] = {"guidance_scale": 3.0}
    for seed, prefix in enumerate(("", "negative_")):
        given[f"{prefix}prompt_embeds_qwen"] = _noise(1, families.TEXT, 24, seed=seed)
        given[f"{prefix}prompt_embeds_clip"] = _noise(1, 16, seed=seed + 2)
        given[f"{prefix}prompt_cu_seqlens"] = torch.tensor([0, families.TEXT])
    return given


@_case("allegro", lambda: _sized(8, **_prompt(24, mask=True), negative_prompt=None, clean_caption=False))
def _allegro() -> Any:
    transformer = _tiny(
        "AllegroTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        cross_attention_dim=24,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        caption_channels=24,
    )
    vae = _tiny(
        "AutoencoderKLAllegro",
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    return _pipeline("AllegroPipeline", transformer=transformer, vae=vae, scheduler=families._vp_scheduler())


@_case("wan-vace", lambda: _sized(8, **_prompt(24)), video="video")
def _vace() -> Any:
    base = _options(families._wan_transformer())
    transformer = _tiny(
        "WanVACETransformer3DModel", **{**base, "vace_layers": [0], "vace_in_channels": 2 * 4 + 64}
    )
    parts = {"vae": families._wan_vae(), "scheduler": families._wan_scheduler()}
    return _pipeline("WanVACEPipeline", transformer=transformer, **parts)


@_case("lucy-edit", lambda: _sized(8, **_prompt(24)), video="video")
def _lucy() -> Any:
    parts = {"vae": families._wan_vae(), "scheduler": families._wan_scheduler()}
    return _pipeline("LucyEditPipeline", transformer=families._wan_transformer(in_channels=8), **parts)


# --- U-Nets


def _controlnet() -> Any:
    return _tiny(
        "ControlNetModel",
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        cross_attention_dim=24,
        conditioning_embedding_out_channels=(4, 8, 16),
        norm_num_groups=4,
        attention_head_dim=2,
    )


def _animatediff(kind: str, **more: Any) -> Any:
    pipe = families._animatediff()
    return _pipeline(kind, unet=pipe.unet, vae=pipe.vae, scheduler=pipe.scheduler, **more)


@_case("animatediff-controlnet", lambda: _sized(4, **_prompt(24)), 1, "conditioning_frames")
def _animatediff_controlnet() -> Any:
    return _animatediff("AnimateDiffControlNetPipeline", controlnet=_controlnet())


def _redraw() -> dict[str, Any]:
    return _sized(4, **_prompt(24), strength=0.7)


@_case("animatediff-v2v", _redraw, 1, "video")
def _animatediff_v2v() -> Any:
    return _animatediff("AnimateDiffVideoToVideoPipeline")


@_case("animatediff-v2v-controlnet", _redraw, 1, "video conditioning_frames")
def _animatediff_v2v_controlnet() -> Any:
    return _animatediff("AnimateDiffVideoToVideoControlNetPipeline", controlnet=_controlnet())


@_case(
    "video-to-video", lambda: {k: v for k, v in _redraw().items() if k not in ("height", "width")}, 1, "video"
)
def _video_to_video() -> Any:
    pipe = families._text_to_video()
    return _pipeline("VideoToVideoSDPipeline", unet=pipe.unet, vae=pipe.vae, scheduler=pipe.scheduler)
