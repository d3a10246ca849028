"""The U-Net of VideoCrafter2 (arXiv 2401.09047): ``UNet3DConditionModel`` of diffusers with a frame rate.

    unet = VideoCrafterUNet.from_pretrained("adamdad/videocrafterv2_diffusers", torch_dtype=torch.float16)
    pipe = TextToVideoSDPipeline.from_pretrained("cerspense/zeroscope_v2_576w", unet=unet, torch_dtype=torch.float16)

Parameters have the names of that conversion. Autoencoder, text encoder and scheduler come from any text-to-video
pipeline based on Stable Diffusion 2.1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from diffusers import UNet3DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

from hasten.weights import REMEDY, load_checked

__all__ = ["FPS", "VideoCrafterUNet"]

FPS = 28.0
"""Frame rate in the example of the authors."""
_DOWN = ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",)
_UP = ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3


class _AddRate(nn.Module):
    """Adds the embedding of the frame rate to that of the timestep.

    Args:
        proj: sine and cosine embedding of the rate.
        embedding: two linear layers. The U-Net registers both modules under their own names.
    """

    def __init__(self, proj: nn.Module, embedding: nn.Module) -> None:
        super().__init__()
        self.fps = FPS
        self._parts = (proj, embedding)

    def forward(self, time: Tensor) -> Tensor:
        """``time`` (B, D) plus the embedding of the rate, which is the same for all samples."""
        proj, embedding = self._parts
        rate = torch.full((1,), self.fps, device=time.device)
        added: Tensor = time + embedding(proj(rate).to(time.dtype))
        return added


class VideoCrafterUNet(UNet3DConditionModel):
    """``UNet3DConditionModel`` with a condition on the frame rate, :attr:`fps`.

    All other arguments are those of the base class.

    Args:
        fps_cond: whether the model has this condition.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        down_block_types: tuple[str, ...] = _DOWN,
        up_block_types: tuple[str, ...] = _UP,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        act_fn: str = "silu",
        norm_num_groups: int | None = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 1024,
        attention_head_dim: int | tuple[int, ...] = 64,
        num_attention_heads: int | tuple[int, ...] | None = None,
        time_cond_proj_dim: int | None = None,
        fps_cond: bool = True,
    ) -> None:
        given: dict[str, Any] = {
            k: v for k, v in locals().items() if k not in ("self", "__class__", "fps_cond")
        }
        super().__init__(**given)
        own: Any = self
        own.register_to_config(fps_cond=fps_cond)  # the base class registers only its own arguments
        if fps_cond:
            width = block_out_channels[0]
            self.fps_proj = Timesteps(width, True, 0)
            self.fps_embedding = TimestepEmbedding(width, 4 * width, act_fn=act_fn)
            own.time_embedding.post_act = _AddRate(self.fps_proj, self.fps_embedding)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> Self:
        """Load a folder or a hub repository, with the options of the base class.

        Raises:
            CheckpointError: a file of a local folder is damaged, or the weights do not match the model.
        """
        load = super().from_pretrained
        folder = Path(pretrained_model_name_or_path) / (options.get("subfolder") or "")
        if not folder.is_dir():
            unet: Self = load(pretrained_model_name_or_path, **options)
            return unet
        checked: Self = load_checked(lambda: load(pretrained_model_name_or_path, **options), folder, REMEDY)
        return checked

    @property
    def fps(self) -> float:
        """Frames per second of the generated video; training rates are up to about 28.

        Raises:
            AttributeError: the model has no such condition (``fps_cond=False``).
        """
        return self._rate().fps

    @fps.setter
    def fps(self, value: float) -> None:
        self._rate().fps = float(value)

    def _rate(self) -> _AddRate:
        own: Any = self
        if not isinstance(own.time_embedding.post_act, _AddRate):
            raise AttributeError("this VideoCrafterUNet has no condition on the frame rate (fps_cond=False)")
        return own.time_embedding.post_act
