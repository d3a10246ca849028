"""Tiny pipelines with a text encoder, for training and routing."""

from pathlib import Path

import diffusers
import torch
from families import _tiny, _unet, _vae

from hasten_miniatures.runs import load_text_tower
from hasten_miniatures.t2i_unet import build_scheduler, build_text_encoder
from hasten_miniatures.text import build_tokenizer

NOWHERE = Path("/nonexistent")


def tiny_unet():
    """A StableDiffusionPipeline that makes 32 px pictures."""
    torch.manual_seed(0)
    pipe = diffusers.StableDiffusionPipeline(
        vae=_vae(4, 4),
        text_encoder=build_text_encoder(load_text_tower(NOWHERE)),
        tokenizer=build_tokenizer(),
        unet=_unet(cross_attention_dim=96),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_flux():
    """A FluxPipeline that makes 32 px pictures; its second text encoder is a T5 of one layer."""
    import transformers

    torch.manual_seed(0)
    t5 = transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    transformer = _tiny(
        "FluxTransformer2DModel",
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        pooled_projection_dim=96,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    )
    pipe = diffusers.FluxPipeline(
        vae=_vae(4),
        text_encoder=build_text_encoder(load_text_tower(NOWHERE)),
        tokenizer=build_tokenizer(),
        text_encoder_2=t5.eval(),
        tokenizer_2=build_tokenizer(),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
