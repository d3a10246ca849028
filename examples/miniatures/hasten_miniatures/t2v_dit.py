"""``mini/t2v-dit``: a WanPipeline trained on moving scenes, from single frames to nine latent frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten_miniatures.moving_pools import MAX_TOKENS, ClipPools, caption_ids, video_tokenizer
from hasten_miniatures.precision import mixed_precision
from hasten_miniatures.product import Product, usage
from hasten_miniatures.schedule import Schedule
from hasten_miniatures.training import Recipe
from hasten_miniatures.training_attention import matmul_attention
from hasten_miniatures.video_autoencoder import LATENT_CHANNELS, SIDE, encode
from hasten_miniatures.video_evaluate import evaluate_videos, video_sheet

__all__ = [
    "CALL",
    "PRODUCT",
    "TextToVideo",
    "assemble",
    "build_model",
    "make_recipe",
]

CALL: dict[str, Any] = {
    "num_inference_steps": 20,
    "guidance_scale": 7.0,
    "max_sequence_length": 16,
    "height": SIDE,
    "width": SIDE,
    "num_frames": 17,
}
"""Recommended arguments of a call."""
TEXT_WIDTH = 96
SHIFT = 3.0
"""Static timestep shift of the scheduler for nine latent frames."""


def build_model() -> nn.ModuleDict:
    """An untrained WanTransformer3DModel (6 blocks of width 128) and a UMT5EncoderModel of two layers."""
    from diffusers import WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = video_tokenizer()
    transformer: Any = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=384,
        num_layers=6,
    )
    config = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_WIDTH,
        d_kv=24,
        d_ff=192,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return nn.ModuleDict({"transformer": transformer, "text_encoder": UMT5EncoderModel(config)})


class TextToVideo(Recipe):
    """Rectified flow on video latents: single frames first, then short clips, then whole clips, some of double length.

    Single frames teach the appearance of objects, since a step contains the largest number of them. Motion follows.

    In every second step, frames have different noise levels, as in Diffusion Forcing (arXiv 2407.01392): alternately
    all frames do, or the first frame is clean and the others share a level. The place of the object in a noisy frame
    then follows from the clean frame and the direction in the caption. With one level for all frames, the direction
    reduces the error so little that 18,000 steps did not teach it.

    The text encoder is trained together with the denoiser, since that of the still pictures has never seen motions.

    Args:
        vae: the trained video autoencoder, with mean and deviation set.
        cache: folder that stores the encoded pools for a resumed run.
        videos: number of videos in each pool, by number of frames.
        compiled: use ``torch.compile`` for the denoiser (a seventh faster on a CPU, needs a C++ compiler).
    """

    name = "t2v-dit"
    schedule = Schedule(steps=14_000, learning_rate=1.5e-3, warmup=100, decay_from=0.7, average=0.995)
    batches: Mapping[int, int] = MappingProxyType({1: 36, 3: 12, 5: 7, 9: 4, 17: 2})
    """Number of latent frames -> videos per batch; about 2,300 tokens in total."""
    singles, short = 0.25, 0.5
    """Shares of the run at which the phases with one and with three latent frames end."""
    padded_from = 0.8
    """From this share of the run on, every eighth step appends the zero tokens of a default pipeline call."""

    def __init__(
        self,
        vae: Any,
        *,
        cache: Path | None = None,
        videos: dict[int, int] | None = None,
        compiled: bool = False,
    ) -> None:
        self.vae, self.compiled = vae, compiled
        counts = videos or {1: 12_000, 5: 4000, 9: 2000, 17: 2000, 33: 160}
        self.pools = ClipPools(self._encode, counts, cache)
        self.empty = caption_ids(video_tokenizer(), [""])
        self._forward: Callable[..., Any] | None = None

    def refine(self) -> None:
        """Skip the phases with single frames and short clips."""
        super().refine()
        self.singles = self.short = 0.0

    def inherit(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Load all weights; a shipped text encoder stores its embedding once, under the first of its two names."""
        embedding = {"text_encoder.encoder.embed_tokens.weight": weights["text_encoder.shared.weight"]}
        super().inherit(model, embedding | dict(weights))

    def build(self) -> nn.Module:
        """The untrained parts, with the residual branches of the denoiser at zero as in Peebles & Xie (2023)."""
        model = build_model()
        start_at_identity(model["transformer"])
        return model

    def loss(
        self, model: nn.Module, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Mean squared velocity error of one step."""
        device = next(model.parameters()).device
        frames = self._length(step, generator)
        clean, ids = self._batch(frames, generator)
        time = self._times(len(clean), frames, step, generator)
        noise = torch.randn(clean.shape, generator=generator)
        mixed = torch.lerp(clean, noise, time[:, None, :, None, None])
        patches = clean[0, 0, 0].numel() // 4
        told = time.repeat_interleave(patches, 1) if _levels_differ(step, frames) else time[:, 0]
        with mixed_precision(device), matmul_attention():
            states = encode_text(model["text_encoder"], ids.to(device))  # type: ignore[index]
            padding = self._padding(step, generator)
            transformer: Any = model["transformer"]  # type: ignore[index]
            forward = transformer if padding else self._compiled(transformer)
            states = F.pad(states, (0, 0, 0, padding))
            velocity = forward(mixed.to(device), (told * 1000).to(device), states, return_dict=False)[0]
        loss = (velocity.float() - (noise - clean).to(device)).square().mean()
        return loss, {"latent_frames": float(frames)}

    @torch.no_grad()
    def preview(self, model: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Write a sheet of samples; returns what the parser finds in them."""
        pipe = assemble(self.vae, model["text_encoder"], model["transformer"])  # type: ignore[index]
        return video_sheet(pipe, CALL, folder / f"samples-{step:06d}.png")

    def _times(self, count: int, frames: int, step: int, generator: torch.Generator) -> Tensor:
        """Noise levels (B, T); one for all frames of a video in odd steps and for single frames."""
        own = _levels_differ(step, frames)
        if own and step % 4 == 0:
            return torch.rand((count, frames), generator=generator)
        time = torch.sigmoid(torch.randn((count, 1), generator=generator))
        shift = frames**0.5
        times: Tensor = (shift * time / (1 + (shift - 1) * time)).repeat(1, frames)
        if own:
            times[:, 0] = 0.05 * torch.rand(count, generator=generator)
        return times

    def _length(self, step: int, generator: torch.Generator) -> int:
        draw = int(torch.randint(8, (1,), generator=generator))
        if step < self.singles * self.schedule.steps:
            return 1
        if step < self.short * self.schedule.steps:
            return 3
        return (3, 5, 5, 5, 9, 9, 9, 17)[draw]

    def _padding(self, step: int, generator: torch.Generator) -> int:
        draw = int(torch.randint(8, (1,), generator=generator))
        return 512 - MAX_TOKENS if step >= self.padded_from * self.schedule.steps and draw == 0 else 0

    def _compiled(self, transformer: nn.Module) -> Callable[..., Any]:
        if self._forward is None:
            self._forward = torch.compile(transformer, dynamic=False) if self.compiled else transformer
        return self._forward

    def _batch(self, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random latents, float32, and their token ids; one caption in ten becomes the empty one, for guidance."""
        pool = self.pools[2 * frames - 1]
        rows = torch.randint(len(pool.latents), (self.batches[frames],), generator=generator)
        dropped = torch.rand((len(rows), 1), generator=generator) < 0.1
        return pool.latents[rows].float(), torch.where(dropped, self.empty, pool.ids[rows])

    def _encode(self, videos: Tensor) -> Tensor:
        device = next(self.vae.parameters()).device
        with mixed_precision(device):
            latents: Tensor = encode(self.vae, videos.to(device))
        return latents


def make_recipe(root: Path, *, device: str, compiled: bool) -> TextToVideo:
    """The recipe over the trained parts in ``root``."""
    from hasten_miniatures.runs import load_video_autoencoder

    vae = load_video_autoencoder(root).to(device)
    return TextToVideo(vae, cache=root / TextToVideo.name, compiled=compiled)


def _levels_differ(step: int, frames: int) -> bool:
    return step % 2 == 0 and frames > 1


def encode_text(encoder: Any, ids: Tensor) -> Tensor:
    """Token states (B, 16, 96), zero after the end of each text, as the pipeline passes them to the denoiser."""
    mask = ids.ne(0)
    states: Tensor = encoder(ids, mask.long()).last_hidden_state
    return states * mask[..., None]


def start_at_identity(model: Any) -> None:
    """Initialise ``model`` with Xavier weights, and every modulation and the output layer with zeros."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for layer in (model.condition_embedder.time_proj, model.proj_out):
        nn.init.zeros_(layer.weight)
    for owner in (model, *model.blocks):
        nn.init.zeros_(owner.scale_shift_table)


def assemble(vae: Any, text_encoder: Any, transformer: Any) -> Any:
    """The stock WanPipeline around the trained parts."""
    from diffusers import UniPCMultistepScheduler, WanPipeline

    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
    )
    return WanPipeline(
        tokenizer=video_tokenizer(),
        text_encoder=text_encoder,
        transformer=transformer,
        vae=vae,
        scheduler=scheduler,
    )


def _assemble_trained(root: Path) -> Any:
    from hasten_miniatures.runs import load_trained, load_video_autoencoder

    model = load_trained(TextToVideo.name, root, build_model())
    return assemble(load_video_autoencoder(root), model["text_encoder"], model["transformer"])


def _settings(root: Path) -> dict[str, Any]:  # noqa: ARG001
    return {"absent": ["transformer_2"], "trained_frames": 9}


_TEXT = f"""
A stock `WanPipeline` for captioned scenes of one simple object that moves left, right, up or down, or stands, trained
by `hasten` on single frames first and then on up to nine latent ones (17 frames of 64 px), with some clips of 17 latent
frames. What leaves the picture at one border comes back at the opposite one, so that the motion is defined at any
length.

{usage("t2v-dit", video=True)}

With diffusers alone: `WanPipeline.from_pretrained(folder, transformer_2=None)`. Figures of miniatures show trends and
are not comparable with published ones.
"""

PRODUCT = Product(
    text=_TEXT,
    runs=("video-autoencoder", TextToVideo.name),
    call=CALL,
    assemble=_assemble_trained,
    settings=_settings,
    measure=evaluate_videos,
    samples=2,
    trained=("transformer", "text_encoder"),
)
