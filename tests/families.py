"""Tiny stock pipelines of every supported family, with random weights, built offline in well under a second.

Text encoders are left out and prompt embeddings are passed instead, so a call exercises exactly what `hasten`
changes: denoiser, scheduler and latents. Sizes are unequal in height and width on purpose, to catch swapped
axes, and half of every latent size is legal for its family.

``FAMILIES[name]()`` builds a pipeline, ``call_kwargs(name)`` the arguments of a cheap call without
randomness, ``seeded(name)`` adds a fresh generator, ``baseline(pipe, name)`` runs that call and returns the
latents.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import PIL.Image
import torch
import transformers
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from torch import Tensor, nn

LATENT = (8, 12)
"""Latent height and width of the calls."""
TEXT = 7
"""Text tokens of the prompt embeddings."""
STEPS = 3

_BUILDERS: dict[str, tuple[Callable[[], Any], Callable[[], dict[str, Any]]]] = {}


def _family(
    name: str, call: Callable[[], dict[str, Any]]
) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Register a builder under ``name``; building is seeded and leaves the global generator as it was."""

    def register(build: Callable[[], Any]) -> Callable[[], Any]:
        def seeded_build() -> Any:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                pipe = build()
            pipe.set_progress_bar_config(disable=True)
            return pipe

        _BUILDERS[name] = (seeded_build, call)
        return build

    return register


def _tiny(module: str | type[nn.Module], **config: Any) -> Any:
    """A small model in evaluation mode whose every parameter matters.

    Constant parameters (zero-initialised outputs and gates, unit norms) are disturbed, or the model would
    ignore part of its input.
    """
    kind = getattr(diffusers, module) if isinstance(module, str) else module
    return disturbed(kind(**config))


def disturbed(model: Any) -> Any:
    """``model`` in evaluation mode, its constant parameters no longer constant."""
    model.eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def _pipeline(kind: str, **components: Any) -> Any:
    """A pipeline of class ``kind``; components that are not given are ``None`` where the class allows it."""
    cls = getattr(diffusers, kind)
    wanted = (
        parameter.name
        for parameter in inspect.signature(cls.__init__).parameters.values()
        if parameter.default is parameter.empty and parameter.name != "self"
    )
    return cls(**{**dict.fromkeys(wanted), **components})


def _vae(channels: int, factor: int = 2) -> Any:
    """An image autoencoder that shrinks by ``factor``."""
    levels = factor.bit_length()
    return _tiny(
        "AutoencoderKL",
        block_out_channels=(4,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels,
        layers_per_block=1,
        norm_num_groups=2,
        sample_size=32,
        shift_factor=0.1,
    )


def _noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _prompt(
    width: int, *, seed: int = 1, mask: bool = False, pooled: int = 0, negative: bool = True
) -> dict[str, Any]:
    """Prompt embeddings of ``width`` channels, negative ones too, and what goes with them."""
    given: dict[str, Any] = {}
    for offset, prefix in enumerate(("", "negative_") if negative else ("",)):
        given[f"{prefix}prompt_embeds"] = _noise(1, TEXT, width, seed=seed + offset)
        if mask:
            given[f"{prefix}prompt_attention_mask"] = torch.ones(1, TEXT, dtype=torch.long)
        if pooled:
            given[f"{prefix}pooled_prompt_embeds"] = _noise(1, pooled, seed=seed + offset + 10)
    return given


def _sized(factor: int, **more: Any) -> dict[str, Any]:
    """Arguments every call shares; ``factor`` is image pixels per latent pixel."""
    height, width = (side * factor for side in LATENT)
    return {
        "height": height,
        "width": width,
        "num_inference_steps": STEPS,
        "output_type": "latent",
        **more,
    }


def _picture(factor: int) -> Tensor:
    """An image of the calls' size, in [0, 1]."""
    height, width = (side * factor for side in LATENT)
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(3))


# --- Flux


def _flux_transformer(**config: Any) -> Any:
    return _tiny(
        "FluxTransformer2DModel",
        **{
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 32,
            "axes_dims_rope": (4, 6, 6),
            "guidance_embeds": True,
            **config,
        },
    )


def _dynamic_flow_scheduler() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


@_family("flux", lambda: _sized(2, **_prompt(32, pooled=32, negative=False)))
def _flux() -> Any:
    return _pipeline(
        "FluxPipeline", transformer=_flux_transformer(), vae=_vae(4), scheduler=_dynamic_flow_scheduler()
    )


# --- Stable Diffusion 3


@_family("sd3", lambda: _sized(2, **_prompt(32, pooled=64)))
def _sd3() -> Any:
    transformer = _tiny(
        "SD3Transformer2DModel",
        sample_size=16,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        pos_embed_max_size=16,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return _pipeline("StableDiffusion3Pipeline", transformer=transformer, vae=_vae(16), scheduler=scheduler)


# --- PixArt


def _pixart_transformer(**config: Any) -> Any:
    return _tiny(
        "PixArtTransformer2DModel",
        num_attention_heads=3,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=36,
        caption_channels=24,
        sample_size=8,
        **config,
    )


def _pixart_call() -> dict[str, Any]:
    return _sized(4, **_prompt(24, mask=True), negative_prompt=None, use_resolution_binning=False)


@_family("pixart-sigma", _pixart_call)
def _pixart_sigma() -> Any:
    return _pipeline(
        "PixArtSigmaPipeline",
        transformer=_pixart_transformer(use_additional_conditions=False),
        vae=_vae(4, 4),
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule="linear"),
    )


# --- Wan

_FRAMES = 9


def _wan_transformer(**config: Any) -> Any:
    return _tiny(
        "WanTransformer3DModel",
        **{
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 24,
            "freq_dim": 32,
            "ffn_dim": 32,
            "num_layers": 2,
            "rope_max_seq_len": 32,
            **config,
        },
    )


def _wan_vae() -> Any:
    return _tiny(
        "AutoencoderKLWan",
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 2.0, 1.0, 1.2],
    )


def _wan_scheduler() -> Any:
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


@_family("wan", lambda: _sized(8, **_prompt(24), num_frames=_FRAMES))
def _wan() -> Any:
    return _pipeline(
        "WanPipeline", transformer=_wan_transformer(), vae=_wan_vae(), scheduler=_wan_scheduler()
    )


# --- Text-to-video UNets


@_family("text-to-video", lambda: _sized(4, **_prompt(24), num_frames=_FRAMES))
def _text_to_video() -> Any:
    return _pipeline(
        "TextToVideoSDPipeline", unet=_unet3d(), vae=_vae(4, factor=4), scheduler=_vp_scheduler()
    )


def _unet3d(**config: Any) -> Any:
    return _tiny(
        "UNet3DConditionModel",
        **{
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "sample_size": 8,
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
            "attention_head_dim": 4,
            "norm_num_groups": 4,
            "cross_attention_dim": 24,
            **config,
        },
    )


@_family("animatediff", lambda: _sized(4, **_prompt(24), num_frames=_FRAMES))
def _animatediff() -> Any:
    unet = _tiny(
        "UNetMotionModel",
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        num_attention_heads=2,
        motion_num_attention_heads=2,
        motion_max_seq_length=12,
        norm_num_groups=4,
        cross_attention_dim=24,
    )
    return _pipeline("AnimateDiffPipeline", unet=unet, vae=_vae(4, factor=4), scheduler=_vp_scheduler())


# --- LTX


@_family("ltx", lambda: _sized(32, **_prompt(24, mask=True), num_frames=17))
def _ltx() -> Any:
    return _pipeline("LTXPipeline", transformer=_ltx_transformer(), scheduler=_dynamic_flow_scheduler())


def _ltx_transformer() -> Any:
    return _tiny(
        "LTXVideoTransformer3DModel",
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=24,
    )


# --- Stable Diffusion XL


def _unet(**config: Any) -> Any:
    return _tiny(
        "UNet2DConditionModel",
        **{
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 4,
            "norm_num_groups": 4,
            "cross_attention_dim": 24,
            **config,
        },
    )


def _vp_scheduler(**config: Any) -> Any:
    return diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        **config,
    )


def _sdxl_unet() -> Any:
    return _unet(
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )


@_family("sdxl", lambda: _sized(4, **_prompt(24, pooled=16)))
def _sdxl() -> Any:
    return _pipeline(
        "StableDiffusionXLPipeline", unet=_sdxl_unet(), vae=_vae(4, 4), scheduler=_vp_scheduler()
    )


@_family(
    "flux-img2img",
    lambda: _sized(2, **_prompt(32, pooled=32, negative=False), image=_picture(2), strength=0.7),
)
def _flux_img2img() -> Any:
    return _pipeline(
        "FluxImg2ImgPipeline",
        transformer=_flux_transformer(),
        vae=_vae(4),
        scheduler=_dynamic_flow_scheduler(),
    )


def _kontext_call() -> dict[str, Any]:
    # Kontext fits every size into max_area, and the reference into one of its own sizes unless told not to.
    call = _sized(2, **_prompt(32, pooled=32, negative=False), image=_picture(2), _auto_resize=False)
    return {**call, "max_area": call["height"] * call["width"]}


@_family("flux-kontext", _kontext_call)
def _flux_kontext() -> Any:
    return _pipeline(
        "FluxKontextPipeline",
        transformer=_flux_transformer(),
        vae=_vae(4),
        scheduler=_dynamic_flow_scheduler(),
    )


def _chroma_call() -> dict[str, Any]:
    call = _sized(2, **_prompt(32, mask=True))
    return {name: value.bool() if name.endswith("mask") else value for name, value in call.items()}


@_family("chroma", _chroma_call)
def _chroma() -> Any:
    transformer = _tiny(
        "ChromaTransformer2DModel",
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return _pipeline("ChromaPipeline", transformer=transformer, vae=_vae(4), scheduler=scheduler)


@_family("flux2", lambda: _sized(2, prompt_embeds=_noise(1, TEXT, 24)))
def _flux2() -> Any:
    transformer = _tiny(
        "Flux2Transformer2DModel",
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )
    vae = _tiny(
        "AutoencoderKLFlux2",
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        sample_size=32,
    )
    return _pipeline("Flux2Pipeline", transformer=transformer, vae=vae, scheduler=_dynamic_flow_scheduler())


@_family("pixart-alpha", _pixart_call)
def _pixart_alpha() -> Any:
    pipe = _pipeline(
        "PixArtAlphaPipeline",
        transformer=_pixart_transformer(use_additional_conditions=True),
        vae=_vae(4, 4),
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule="linear"),
    )
    # The pipeline passes the resolution only if sample_size is 128; the tiny model has no such grid.
    pipe.transformer.register_to_config(sample_size=128)
    return pipe


@_family(
    "sana", lambda: _sized(16, **_prompt(24, mask=True), negative_prompt=None, use_resolution_binning=False)
)
def _sana() -> Any:
    transformer = _tiny(
        "SanaTransformer2DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=24,
        sample_size=8,
        timestep_scale=0.5,
    )
    vae = _tiny(
        "AutoencoderDC",
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock",) * 5,
        decoder_block_types=("ResBlock",) * 5,
        encoder_block_out_channels=(8,) * 5,
        decoder_block_out_channels=(8,) * 5,
        encoder_qkv_multiscales=((),) * 5,
        decoder_qkv_multiscales=((),) * 5,
        encoder_layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return _pipeline("SanaPipeline", transformer=transformer, vae=vae, scheduler=scheduler)


@_family("wan-i2v", lambda: _sized(8, **_prompt(24), num_frames=_FRAMES, image=_picture(8)))
def _wan_i2v() -> Any:
    return _pipeline(
        "WanImageToVideoPipeline",
        transformer=_wan_transformer(in_channels=4 + 4 + 4),
        vae=_wan_vae(),
        scheduler=_wan_scheduler(),
    )


@_family("wan22-a14b", lambda: _sized(8, **_prompt(24), num_frames=_FRAMES))
def _wan22_a14b() -> Any:
    return _pipeline(
        "WanPipeline",
        transformer=_wan_transformer(),
        transformer_2=_wan_transformer(),
        vae=_wan_vae(),
        scheduler=_wan_scheduler(),
        boundary_ratio=0.8,
    )


@_family("wan22-ti2v", lambda: _sized(8, **_prompt(24), num_frames=_FRAMES))
def _wan22_ti2v() -> Any:
    return _pipeline(
        "WanPipeline",
        transformer=_wan_transformer(),
        vae=_wan_vae(),
        scheduler=_wan_scheduler(),
        expand_timesteps=True,
    )


@_family("wan22-ti2v-i2v", lambda: _sized(8, **_prompt(24), num_frames=_FRAMES, image=_picture(8)))
def _wan22_ti2v_i2v() -> Any:
    return _pipeline(
        "WanImageToVideoPipeline",
        transformer=_wan_transformer(),
        vae=_wan_vae(),
        scheduler=_wan_scheduler(),
        expand_timesteps=True,
    )


@_family("ltx-i2v", lambda: _sized(32, **_prompt(24, mask=True), num_frames=17, image=_picture(32)))
def _ltx_i2v() -> Any:
    vae = _tiny(
        "AutoencoderKLLTXVideo",
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )
    return _pipeline(
        "LTXImageToVideoPipeline",
        transformer=_ltx_transformer(),
        vae=vae,
        scheduler=_dynamic_flow_scheduler(),
    )


@_family(
    "hunyuan-video", lambda: _sized(8, **_hunyuan_video_prompt(), num_frames=_FRAMES, true_cfg_scale=2.0)
)
def _hunyuan_video() -> Any:
    transformer = _tiny(
        "HunyuanVideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=24,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    return _pipeline("HunyuanVideoPipeline", transformer=transformer, scheduler=scheduler)


def _hunyuan_video_prompt() -> dict[str, Any]:
    return _prompt(24, mask=True, pooled=8)


def _hunyuan_video_15_call() -> dict[str, Any]:
    call = _sized(16, num_frames=_FRAMES)
    for offset, prefix in enumerate(("", "negative_")):
        call[f"{prefix}prompt_embeds"] = _noise(1, TEXT, 24, seed=offset)
        call[f"{prefix}prompt_embeds_mask"] = torch.ones(1, TEXT)
        call[f"{prefix}prompt_embeds_2"] = _noise(1, TEXT, 16, seed=offset + 2)
        call[f"{prefix}prompt_embeds_mask_2"] = torch.ones(1, TEXT)
    return call


@_family("hunyuan-video-1.5", _hunyuan_video_15_call)
def _hunyuan_video_15() -> Any:
    transformer = _tiny(
        "HunyuanVideo15Transformer3DModel",
        in_channels=4 + 4 + 1,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=24,
        text_embed_2_dim=16,
        image_embed_dim=8,
        target_size=128,
        rope_axes_dim=(4, 6, 6),
    )
    vae = _tiny(
        "AutoencoderKLHunyuanVideo15",
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8, 8),
        layers_per_block=1,
    )
    return _pipeline(
        "HunyuanVideo15Pipeline",
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=3.0),
    )


@_family(
    "ltx2", lambda: _sized(32, **_prompt(24, mask=True), num_frames=17, spatio_temporal_guidance_blocks=[0])
)
def _ltx2() -> Any:
    transformer = _tiny(
        "LTX2VideoTransformer3DModel",
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        audio_in_channels=16,
        audio_out_channels=16,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=2,
        caption_channels=24,
    )
    vae = _tiny(
        "AutoencoderKLLTX2Video",
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
    # Eight latent channels of two mel bins make the 16 channels of an audio token.
    audio_vae = _tiny(
        "AutoencoderKLLTX2Audio",
        base_channels=16,
        ch_mult=(1, 1, 1),
        num_res_blocks=1,
        mel_bins=8,
        resolution=16,
    )
    return _pipeline(
        "LTX2Pipeline",
        transformer=transformer,
        connectors=_ltx2_connectors(),
        vae=vae,
        audio_vae=audio_vae,
        scheduler=_dynamic_flow_scheduler(),
    )


def _ltx2_connectors() -> Any:
    return _tiny(
        LTX2TextConnectors,
        caption_channels=24,
        text_proj_in_factor=1,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=12,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=12,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
    )


def _cogvideox(scheduler: Any, **config: Any) -> Any:
    transformer = _tiny(
        "CogVideoXTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=24,
        num_layers=2,
        sample_width=12,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=TEXT,
        **config,
    )
    vae = _tiny(
        "AutoencoderKLCogVideoX",
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    return _pipeline("CogVideoXPipeline", transformer=transformer, vae=vae, scheduler=scheduler)


def _cogvideox_call() -> dict[str, Any]:
    return _sized(8, **_prompt(24), num_frames=9, max_sequence_length=TEXT)


_COGVIDEOX_NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


@_family("cogvideox-sincos", _cogvideox_call)
def _cogvideox_sincos() -> Any:
    return _cogvideox(diffusers.CogVideoXDDIMScheduler(**_COGVIDEOX_NOISE, snr_shift_scale=3.0))


@_family("cogvideox-rope", _cogvideox_call)
def _cogvideox_rope() -> Any:
    return _cogvideox(
        diffusers.CogVideoXDPMScheduler(**_COGVIDEOX_NOISE, snr_shift_scale=1.0),
        use_rotary_positional_embeddings=True,
    )


@_family("cogvideox-1.5", _cogvideox_call)
def _cogvideox_15() -> Any:
    return _cogvideox(
        diffusers.CogVideoXDPMScheduler(**_COGVIDEOX_NOISE, snr_shift_scale=1.0),
        use_rotary_positional_embeddings=True,
        patch_size_t=2,
        patch_bias=False,
    )


def _qwen_image_call() -> dict[str, Any]:
    call = _sized(8, **_prompt(24), true_cfg_scale=2.0)
    for prefix in ("", "negative_"):
        call[f"{prefix}prompt_embeds_mask"] = torch.ones(1, TEXT, dtype=torch.long)
    return call


@_family("qwen-image", _qwen_image_call)
def _qwen_image() -> Any:
    transformer = _tiny(
        "QwenImageTransformer2DModel",
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
    )
    vae = _tiny(
        "AutoencoderKLQwenImage",
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 2.0, 1.0, 1.2],
    )
    return _pipeline(
        "QwenImagePipeline", transformer=transformer, vae=vae, scheduler=_dynamic_flow_scheduler()
    )


def _z_image_call() -> dict[str, Any]:
    embeds = {"prompt_embeds": [_noise(TEXT, 24)], "negative_prompt_embeds": [_noise(TEXT, 24, seed=2)]}
    return _sized(2, **embeds)


@_family("z-image", _z_image_call)
def _z_image() -> Any:
    transformer = _tiny(
        "ZImageTransformer2DModel",
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=24,
        axes_dims=[4, 6, 6],
        axes_lens=[256, 32, 32],
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return _pipeline("ZImagePipeline", transformer=transformer, vae=_vae(4), scheduler=scheduler)


@_family("lumina2", lambda: _sized(8, **_prompt(24, mask=True)))
def _lumina2() -> Any:
    transformer = _tiny(
        "Lumina2Transformer2DModel",
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(64, 32, 32),
        cap_feat_dim=24,
    )
    return _pipeline(
        "Lumina2Pipeline", transformer=transformer, vae=_vae(4, 8), scheduler=_dynamic_flow_scheduler()
    )


@_family("aura-flow", lambda: _sized(2, **_prompt(24, mask=True)))
def _aura_flow() -> Any:
    transformer = _tiny(
        "AuraFlowTransformer2DModel",
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pos_embed_max_size=64,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73)
    return _pipeline("AuraFlowPipeline", transformer=transformer, vae=_vae(4), scheduler=scheduler)


def _hunyuan_dit_call() -> dict[str, Any]:
    call = _sized(8, use_resolution_binning=False)
    for offset, prefix in enumerate(("", "negative_")):
        for tower, (tokens, width) in {"": (77, 24), "_2": (256, 16)}.items():
            call[f"{prefix}prompt_embeds{tower}"] = _noise(1, tokens, width, seed=offset)
            call[f"{prefix}prompt_attention_mask{tower}"] = torch.ones(1, tokens, dtype=torch.long)
    return call


@_family("hunyuan-dit", _hunyuan_dit_call)
def _hunyuan_dit() -> Any:
    transformer = _tiny(
        "HunyuanDiT2DModel",
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        hidden_size=32,
        cross_attention_dim=24,
        cross_attention_dim_t5=16,
        pooled_projection_dim=8,
        text_len=77,
        text_len_t5=256,
    )
    scheduler = diffusers.DDPMScheduler(beta_schedule="linear", prediction_type="v_prediction")
    return _pipeline(
        "HunyuanDiTPipeline",
        transformer=transformer,
        vae=_vae(4, 8),
        scheduler=scheduler,
        requires_safety_checker=False,
    )


@_family("sd15", lambda: _sized(4, **_prompt(24)))
def _sd15() -> Any:
    return _pipeline(
        "StableDiffusionPipeline",
        unet=_unet(),
        vae=_vae(4, 4),
        scheduler=_vp_scheduler(),
        requires_safety_checker=False,
    )


def _sd15_img2img_call() -> dict[str, Any]:
    call = {**_sized(2, **_prompt(24)), "image": _picture(2), "strength": 0.7}
    return {name: value for name, value in call.items() if name not in ("height", "width")}


@_family("sd15-img2img", _sd15_img2img_call)
def _sd15_img2img() -> Any:
    return _pipeline(
        "StableDiffusionImg2ImgPipeline",
        unet=_unet(),
        vae=_vae(4),
        scheduler=_vp_scheduler(prediction_type="v_prediction"),
        requires_safety_checker=False,
    )


FAMILIES: dict[str, Callable[[], Any]] = {name: build for name, (build, _) in _BUILDERS.items()}
"""Builders of the pipelines, by name."""


def _mask(factor: int) -> Tensor:
    """An inpainting mask of the calls' size: the right half."""
    mask = torch.zeros_like(_picture(factor)[:, :1])
    mask[..., mask.shape[-1] // 2 :] = 1
    return mask


def _redraw(factor: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"image": _picture(factor), "strength": 0.7}


def _inpaint(factor: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"image": _picture(factor), "mask_image": _mask(factor), "strength": 0.7}


def _negative(width: int) -> dict[str, Any]:
    return {"negative_prompt_embeds": _noise(1, TEXT, width, seed=2)}


def _frame(index: int = 0) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (LATENT[1] * 8, LATENT[0] * 8), (20 * index, 90, 200))


def _video() -> dict[str, Any]:
    return {"video": [_frame(index) for index in range(_FRAMES)]}


def _siglip() -> dict[str, Any]:
    """The image encoder of HunyuanVideo 1.5."""
    config = transformers.SiglipVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    return {
        "image_encoder": transformers.SiglipVisionModel(config).eval(),
        "feature_extractor": transformers.SiglipImageProcessor(size={"height": 28, "width": 28}),
    }


_VARIANTS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "StableDiffusionInpaintPipeline": ("sd15", _inpaint(4)),
    "StableDiffusionXLImg2ImgPipeline": ("sdxl", _redraw(4)),
    "StableDiffusionXLInpaintPipeline": ("sdxl", _inpaint(4)),
    "StableDiffusion3Img2ImgPipeline": ("sd3", _redraw(2)),
    "StableDiffusion3InpaintPipeline": ("sd3", _inpaint(2)),
    "FluxInpaintPipeline": ("flux", _inpaint(2)),
    "FluxKontextInpaintPipeline": ("flux-kontext", _inpaint(2)),
    "ChromaImg2ImgPipeline": ("chroma", _redraw(2)),
    "ChromaInpaintPipeline": ("chroma", _inpaint(2)),
    "Flux2KleinPipeline": ("flux2", lambda: _negative(24)),
    "Flux2KleinInpaintPipeline": ("flux2", lambda: {**_inpaint(2)(), **_negative(24)}),
    "WanVideoToVideoPipeline": ("wan", _video),
    "CogVideoXVideoToVideoPipeline": ("cogvideox-rope", _video),
    "VideoToVideoSDPipeline": ("text-to-video", _video),
    "HunyuanVideo15ImageToVideoPipeline": ("hunyuan-video-1.5", lambda: {"image": _frame()}),
    "QwenImageImg2ImgPipeline": ("qwen-image", _redraw(8)),
    "QwenImageInpaintPipeline": ("qwen-image", _inpaint(8)),
    "QwenImageEditPipeline": ("qwen-image", lambda: {"image": _frame()}),
    "QwenImageEditPlusPipeline": ("qwen-image", lambda: {"image": [_frame(), _frame(1)]}),
    "ZImageImg2ImgPipeline": ("z-image", _redraw(2)),
    "ZImageInpaintPipeline": ("z-image", _inpaint(2)),
}
"""Other pipelines over the same components: the family they share, and what their call takes besides."""


def variant(kind: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline of class ``kind`` and the arguments of a cheap call."""
    family, more = _VARIANTS[kind]
    known = inspect.signature(getattr(diffusers, kind).__init__).parameters
    components = FAMILIES[family]().components
    if kind == "ChromaInpaintPipeline":
        # Its loop asks for this FLUX option, which Chroma's configuration does not have.
        components["transformer"].register_to_config(guidance_embeds=False)
    if kind == "HunyuanVideo15ImageToVideoPipeline":
        components = {**components, **_siglip()}
    pipe = _pipeline(kind, **{name: part for name, part in components.items() if name in known})
    pipe.set_progress_bar_config(disable=True)
    accepted = inspect.signature(type(pipe).__call__).parameters
    given = {**seeded(family), **more()}
    return pipe, {name: value for name, value in given.items() if name in accepted}


VARIANTS = tuple(_VARIANTS)
"""Class names for :func:`variant`."""


def call_kwargs(name: str) -> dict[str, Any]:
    """Arguments of a cheap call of family ``name``, without a generator."""
    return _BUILDERS[name][1]()


def seeded(name: str, seed: int = 0) -> dict[str, Any]:
    """:func:`call_kwargs` with a fresh generator, so that two calls draw the same noise."""
    return {**call_kwargs(name), "generator": torch.Generator().manual_seed(seed)}


def baseline(pipe: Any, name: str, seed: int = 0, **changes: Any) -> Any:
    """What ``pipe`` makes of the cheap call of family ``name``: the first entry of its tuple output."""
    return pipe(**{**seeded(name, seed), "return_dict": False, **changes})[0]
