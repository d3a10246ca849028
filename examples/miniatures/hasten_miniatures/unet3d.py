"""The video U-Net of the miniatures: two levels, with the spatial layers of the picture U-Net and temporal layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from hasten_miniatures.contrastive import WIDTH
from hasten_miniatures.t2i_unet import SIDE

__all__ = ["build_unet", "inflate", "levels_by_frame", "pictures_of", "still", "without_dropout"]

_SHARED = (
    "sample_size",
    "block_out_channels",
    "layers_per_block",
    "down_block_types",
    "up_block_types",
    "attention_head_dim",
    "norm_num_groups",
    "cross_attention_dim",
)
"""Settings that the video model shares with its picture model."""
_RENAMED = {"up_blocks.1.": "up_blocks.0.", "up_blocks.2.": "up_blocks.1."}
"""Up blocks of the three-level picture model -> those of the two-level video model."""


def build_unet() -> Any:
    """An untrained UNet3DConditionModel of about 1.6 M parameters: two levels, attention after the inner one."""
    from diffusers import UNet3DConditionModel

    return UNet3DConditionModel(
        sample_size=SIDE // 4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock3D", "DownBlock3D"),
        up_block_types=("CrossAttnUpBlock3D", "UpBlock3D"),
        attention_head_dim=8,
        norm_num_groups=8,
        cross_attention_dim=WIDTH,
    )


def still(unet: Any) -> Any:
    """Disable every temporal branch of ``unet``, so that each frame is a separate picture."""
    from diffusers.models.resnet import TemporalConvLayer
    from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel

    for module in unet.modules():
        last: Any = None
        if isinstance(module, TemporalConvLayer):
            last = module.conv4[-1]
        elif isinstance(module, TransformerTemporalModel):
            last = module.proj_out
        if last is not None:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    return unet


def pictures_of(unet: Any) -> Any:
    """A UNet2DConditionModel that shares the spatial weights of ``unet``.

    It computes single frames of a :func:`still` model in a third of the time.
    """
    from diffusers import UNet2DConditionModel

    config = {name: getattr(unet.config, name) for name in _SHARED}
    types = {
        name: [kind.replace("3D", "2D") for kind in config[name]]
        for name in _SHARED
        if name.endswith("types")
    }
    pictures: Any = UNet2DConditionModel(**config | types, use_linear_projection=True)
    own = dict(unet.named_parameters())
    for name in [name for name, _ in pictures.named_parameters()]:
        layer, _, kind = name.rpartition(".")
        setattr(pictures.get_submodule(layer), kind, own[name])
    return pictures


def inflate(unet: nn.Module, pictures: Mapping[str, Tensor]) -> list[str]:
    """Copy the weights of a picture U-Net of three levels into ``unet``, except for its innermost level.

    Args:
        unet: of :func:`build_unet`.
        pictures: state dict of ``hasten_miniatures.t2i_unet.build_unet``.

    Returns:
        Names of the weights of ``unet`` that were set.
    """
    own = unet.state_dict()
    dropped = ("down_blocks.1.downsamplers.", "down_blocks.1.attentions.", "down_blocks.2.", "up_blocks.0.")
    found = {}
    for name, value in pictures.items():
        if name.startswith(dropped):
            continue
        head = next((old for old in _RENAMED if name.startswith(old)), "")
        found[_RENAMED.get(head, "") + name.removeprefix(head)] = value
    unet.load_state_dict(own | found)
    return list(found)


def without_dropout(unet: Any) -> Any:
    """Disable the dropout of the temporal convolutions, which a model of this size does not need."""
    for module in unet.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return unet


@contextmanager
def levels_by_frame(unet: Any, times: Tensor) -> Iterator[None]:
    """Within this context, ``unet`` uses timesteps (B, F), one per frame, instead of one for all frames of a sample."""
    from diffusers.models.resnet import ResnetBlock2D

    embedded = unet.time_embedding(unet.time_proj(times.flatten()))
    blocks = [module for module in unet.modules() if isinstance(module, ResnetBlock2D)]
    hooks = [
        block.register_forward_pre_hook(lambda _, args: (args[0], embedded, *args[2:])) for block in blocks
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
