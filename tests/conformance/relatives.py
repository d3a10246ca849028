"""Pipeline classes that diffusers does not test: parts of a relative, or what ``tests/families.py`` builds."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import PIL.Image
import torch
from stock import Stock

sys.path.insert(0, str(Path(__file__).parents[1]))

from families import FAMILIES, seeded, variant

__all__ = ["UNRUNNABLE", "relatives", "replaced"]

_SIDE = 64


def relatives(tested: Mapping[str, Stock]) -> Iterator[Stock]:
    """Pipelines of the classes below.

    Args:
        tested: those of the checkout, by class.
    """
    for name, relative in _RELATIVES.items():
        if relative.parent in tested:
            yield tested[relative.parent].like(name, relative.components, relative.inputs)
    for name, family in _FAMILIES.items():
        if name not in tested:
            yield _own(name, family)


def _own(name: str, family: str | None) -> Stock:
    if family is None:
        return Stock(
            getattr(diffusers, name), lambda: dict(variant(name)[0].components), lambda: variant(name)[1]
        )
    build = FAMILIES[family]
    return Stock(getattr(diffusers, name), lambda: dict(build().components), lambda: seeded(family))


_FAMILIES = {
    "ChromaInpaintPipeline": None,
    "HunyuanVideo15ImageToVideoPipeline": None,
    "TextToVideoSDPipeline": "text-to-video",
}
"""Classes that ``tests/families.py`` builds: the name of a family, ``None`` for a variant of another one."""

_Parts = dict[str, Any]
_Change = Callable[[_Parts], _Parts]


class _Relative(NamedTuple):
    """How a class differs from the one that diffusers tests."""

    parent: str
    components: _Change
    inputs: _Change


def _rebuilt(part: str, **config: Any) -> _Change:
    """Components with a model of the same class and another configuration."""

    def change(parts: _Parts) -> _Parts:
        model = parts[part]
        return {**parts, part: type(model).from_config({**_told(model), **config})}

    return change


def _told(model: Any) -> _Parts:
    """Its configuration without notes on which values are defaults, which would win over changed ones."""
    return {key: value for key, value in model.config.items() if not key.startswith("_")}


def _with(**more: Any) -> _Change:
    """Arguments with further ones; callables are called for a new value."""
    return lambda inputs: {
        **inputs,
        **{name: value() if callable(value) else value for name, value in more.items()},
    }


def _picture() -> PIL.Image.Image:
    values = torch.rand(_SIDE, _SIDE, 3, generator=torch.Generator().manual_seed(3))
    return PIL.Image.fromarray((values * 255).byte().numpy())


def _video() -> torch.Tensor:
    return torch.rand(1, 3, 5, _SIDE, _SIDE, generator=torch.Generator().manual_seed(3))


def _video_mask() -> torch.Tensor:
    """All of it: for another mask, stock asks for an entry that its autoencoder's configuration does not have."""
    return torch.full((1, 1, 5, _SIDE, _SIDE), 255.0)


def _pixels(**sizes: Any) -> _Change:
    """Arguments of a call of the size of the pictures above."""
    return _with(height=_SIDE, width=_SIDE, **sizes)


def _union(parts: _Parts) -> _Parts:
    """The ControlNet for several kinds of pictures."""
    size = {"num_trans_channel": 32, "num_trans_head": 2, "num_proj_channel": 32}
    net = diffusers.ControlNetUnionModel.from_config({**_told(parts["controlnet"]), **size})
    return {**parts, "controlnet": net}


def _z_image_control(channels: int) -> _Change:
    def change(parts: _Parts) -> _Parts:
        config = parts["transformer"].config
        shared = ("all_patch_size", "all_f_patch_size", "dim", "n_refiner_layers", "n_heads", "n_kv_heads")
        net = diffusers.ZImageControlNetModel(
            control_layers_places=[0],
            control_refiner_layers_places=[0],
            control_in_dim=channels,
            add_control_noise_refiner="control_noise_refiner",
            **{name: config[name] for name in shared},
        )
        return {
            **parts,
            "controlnet": diffusers.ZImageControlNetModel.from_transformer(net, parts["transformer"]),
        }

    return change


def _refiner(parts: _Parts) -> _Parts:
    vae = diffusers.AutoencoderKLHunyuanImageRefiner(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, spatial_compression_ratio=8
    )
    transformer = _rebuilt(
        "transformer",
        in_channels=16,
        out_channels=8,
        patch_size=(1, 1, 1),
        rope_axes_dim=(4, 2, 2),
        text_embed_2_dim=None,
    )(parts)["transformer"]
    return {
        **{name: parts[name] for name in ("scheduler", "text_encoder", "tokenizer")},
        "vae": vae,
        "transformer": transformer,
    }


def _longcat(parts: _Parts) -> _Parts:
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=16,
        norm_num_groups=2,
    )
    transformer = diffusers.LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 4, 8],
    )
    kept = {name: parts[name] for name in ("scheduler", "text_encoder", "tokenizer")}
    return {**kept, "text_processor": parts["processor"], "vae": vae, "transformer": transformer}


def _unillustrated(inputs: _Parts) -> _Parts:
    kept = ("prompt", "generator", "height", "width", "output_type")
    return {**{name: inputs[name] for name in kept}, "enable_prompt_rewrite": False}


def _upscaler(parts: _Parts) -> _Parts:
    kept = ("vae", "text_encoder", "tokenizer", "scheduler")
    unet = _rebuilt("unet", in_channels=7, num_class_embeds=100)(parts)["unet"]
    low = diffusers.DDPMScheduler()
    return {
        **{name: parts[name] for name in kept},
        "unet": unet,
        "low_res_scheduler": low,
        "max_noise_level": 50,
    }


def _ddpm(parts: _Parts) -> _Parts:
    return {**parts, "scheduler": diffusers.DDPMScheduler()}


def _flow(parts: _Parts) -> _Parts:
    solver = type(parts["scheduler"])
    if "use_flow_sigmas" not in inspect.signature(solver.__init__).parameters:
        solver = diffusers.UniPCMultistepScheduler
    scheduler = solver(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return {**parts, "scheduler": scheduler}


def _ddim(parts: _Parts) -> _Parts:
    return {**parts, "scheduler": diffusers.DDIMScheduler.from_config(parts["scheduler"].config)}


def _union_inputs(inputs: _Parts) -> _Parts:
    """The parent's picture as control of the first kind."""
    picture = inputs.pop("image")
    return {**inputs, "control_image": inputs.get("control_image", picture), "control_mode": [0]}


def _union_redraw(inputs: _Parts) -> _Parts:
    return {**inputs, "control_mode": [0]}


_ROTARY = _rebuilt(
    "transformer",
    use_rotary_positional_embeddings=True,
    use_learned_positional_embeddings=False,
    sample_height=_SIDE // 8,
    sample_width=_SIDE // 8,
)
"""CogVideoX as its later checkpoints are; the tests build the first one, with positions for one size."""

_FLOW = ("Cosmos2_5_PredictBasePipeline", "Cosmos2_5_TransferPipeline", "SanaVideoPipeline")
_FLOW += ("SkyReelsV2DiffusionForcingImageToVideoPipeline", "SkyReelsV2DiffusionForcingPipeline")
_FLOW += (
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
    "SkyReelsV2ImageToVideoPipeline",
    "SkyReelsV2Pipeline",
)
_FLOW += ("WanVideoToVideoPipeline",)
"""Flow matching in the checkpoints; the tests' solvers are told of another prediction, or of no flow."""
_BEGUN = (
    "StableDiffusionDepth2ImgPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionPAGInpaintPipeline",
)
"""Tests with a solver that counts its steps (PNDM), which stock cannot begin in the middle of the schedule."""

_RELATIVES = {
    **{name: _Relative(name, _flow, dict) for name in _FLOW},
    **{name: _Relative(name, _ddim, dict) for name in _BEGUN},
    **{
        name: _Relative(name, _ROTARY, _pixels())
        for name in (
            "CogVideoXFunControlPipeline",
            "CogVideoXImageToVideoPipeline",
            "CogVideoXPipeline",
            "CogVideoXVideoToVideoPipeline",
        )
    },
    "CogView4ControlPipeline": _Relative(
        "CogView4Pipeline", _rebuilt("transformer", in_channels=8), _with(control_image=_picture)
    ),
    "DDPMPipeline": _Relative("DDIMPipeline", _ddpm, dict),
    "EasyAnimateInpaintPipeline": _Relative(
        "EasyAnimatePipeline",
        _rebuilt("transformer", in_channels=9),
        _pixels(video=_video, mask_video=_video_mask, strength=1.0),
    ),
    "HunyuanImageRefinerPipeline": _Relative("HunyuanImagePipeline", _refiner, _pixels(image=_picture)),
    "LongCatImagePipeline": _Relative("QwenImageEditPipeline", _longcat, _unillustrated),
    "LucyEditPipeline": _Relative(
        "WanVideoToVideoPipeline",
        lambda parts: _flow(_rebuilt("transformer", in_channels=32)(parts)),
        _with(num_frames=17),
    ),
    "QwenImageControlNetInpaintPipeline": _Relative(
        "QwenImageControlNetPipeline",
        _rebuilt("controlnet", extra_condition_channels=4),
        _with(control_mask=lambda: PIL.Image.new("L", (_SIDE, _SIDE), 255)),
    ),
    "QwenImageEditInpaintPipeline": _Relative(
        "QwenImageEditPipeline",
        dict,
        _with(mask_image=lambda: PIL.Image.new("L", (_SIDE, _SIDE), 255), strength=0.8),
    ),
    "StableDiffusionUpscalePipeline": _Relative(
        "StableDiffusionPipeline", _upscaler, _with(image=_picture, noise_level=20)
    ),
    "StableDiffusionXLControlNetUnionPipeline": _Relative(
        "StableDiffusionXLControlNetPipeline", _union, _union_inputs
    ),
    "StableDiffusionXLControlNetUnionImg2ImgPipeline": _Relative(
        "StableDiffusionXLControlNetImg2ImgPipeline", _union, _union_redraw
    ),
    "StableDiffusionXLControlNetUnionInpaintPipeline": _Relative(
        "StableDiffusionXLControlNetInpaintPipeline", _union, _union_redraw
    ),
    "ZImageControlNetPipeline": _Relative(
        "ZImagePipeline", _z_image_control(16), _pixels(control_image=_picture)
    ),
    "ZImageControlNetInpaintPipeline": _Relative(
        "ZImagePipeline",
        _z_image_control(33),
        _pixels(
            control_image=_picture,
            image=_picture,
            mask_image=lambda: PIL.Image.new("L", (_SIDE, _SIDE), 255),
        ),
    ),
}

UNRUNNABLE = {
    **dict.fromkeys(
        ("BriaFiboEditPipeline", "BriaFiboPipeline"), "the tests of diffusers that build it do not load here"
    ),
    "EasyAnimateControlPipeline": "in diffusers 0.42.1 its call fails: it passes `text_encoder_index` to its own "
    "`encode_prompt`, which takes no such argument",
    "LongCatImageEditPipeline": "its text encoder looks at the picture through a processor of the checkpoint, for "
    "which the tests have no stand-in",
}
"""Classes that cannot be tried here, and why."""

replaced = frozenset(name for name, relative in _RELATIVES.items() if name == relative.parent)
"""Classes that are built another way than their test does."""
