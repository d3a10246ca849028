"""``mini/t2v-unet``: a TextToVideoSDPipeline whose UNet3DConditionModel starts from ``mini/t2i-unet``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from hasten_miniatures.autoencoder import encode
from hasten_miniatures.moving_pools import MAX_TOKENS, ClipPools, caption_ids, video_tokenizer
from hasten_miniatures.on_policy import on_policy_loss
from hasten_miniatures.precision import mixed_precision
from hasten_miniatures.product import Product, usage
from hasten_miniatures.references import References
from hasten_miniatures.schedule import Schedule
from hasten_miniatures.t2i_unet import SIDE, build_scheduler
from hasten_miniatures.text import vocabulary
from hasten_miniatures.training import Recipe
from hasten_miniatures.training_attention import matmul_attention
from hasten_miniatures.unet3d import build_unet, inflate, levels_by_frame, pictures_of, still, without_dropout
from hasten_miniatures.video_evaluate import evaluate_videos, video_sheet

__all__ = [
    "CALL",
    "FRAMES",
    "PRODUCT",
    "TextToVideoUNet",
    "assemble",
    "build_text_encoder",
    "make_recipe",
]

FRAMES = 16
"""Frames of a training clip."""
CALL: dict[str, Any] = {
    "num_inference_steps": 20,
    "guidance_scale": 3.0,
    "height": SIDE,
    "width": SIDE,
    "num_frames": FRAMES,
}
"""Recommended arguments of a call."""
TEXT_LAYERS = 1
"""Layers of the text tower of the contrastive model that are kept."""


@torch.no_grad()
def build_text_encoder(tower: Any) -> Any:
    """The first layers of the text tower of the contrastive model, with the words of motions added.

    Args:
        tower: its ``CLIPTextModelWithProjection``.

    Returns:
        A ``CLIPTextModel`` for :func:`hasten_miniatures.moving_pools.video_tokenizer`; words that
        the tower does not know have random embeddings.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    words, known = video_tokenizer().get_vocab(), vocabulary()
    changes = {
        "vocab_size": len(words),
        "max_position_embeddings": MAX_TOKENS,
        "num_hidden_layers": TEXT_LAYERS,
        "eos_token_id": words["<end>"],
        "bos_token_id": words["<start>"],
    }
    model = CLIPTextModel(CLIPTextConfig(**tower.config.to_dict() | changes))
    trained = {name.removeprefix("text_model."): value for name, value in tower.state_dict().items()}
    own = {name.removeprefix("text_model."): value for name, value in model.state_dict().items()}
    for name, value in own.items():
        if name.endswith("token_embedding.weight"):
            shared = [word for word in words if word in known]
            value[[words[word] for word in shared]] = trained[name][[known[word] for word in shared]]
        elif value.is_floating_point():
            value.copy_(trained[name][: len(value)])
    return model


def encode_text(encoder: Any, ids: Tensor) -> Tensor:
    """Token states (B, 16, 96), as the pipeline reads them from its text encoder."""
    states: Tensor = encoder(ids).last_hidden_state
    return states


class TextToVideoUNet(Recipe):
    """Mean squared error of the velocity: single frames first, then pairs of frames, then longer windows.

    **Single frames** teach what captions mean for a picture, without temporal layers, in a third of the time per step.
    The run starts from ``mini/t2i-unet``: spatial layers are copied by name, temporal branches start at zero. The text
    encoder starts as the tower of the still pictures and is trained too, since the words of motions are new to it.

    **Pairs** teach directions: the first frame is clean and not part of the loss, and the second shows the same object
    one small step further in the direction that the caption names.

    **Longer windows** follow, since the caption explains little of many steps. Some training steps have a clean first
    frame, some a separate noise level for each frame, and the others one level for all, as in a pipeline call. Whole
    clips get high levels, and in every other step of the last phase very high ones. At these levels the model decides
    that all frames show the same object on one trajectory; levels drawn as usual would reach them in one step of
    thirteen. In a refinement, these steps are on-policy (:mod:`hasten_miniatures.on_policy`).

    Args:
        vae: the trained autoencoder.
        tower: the text tower of the contrastive model.
        cache: folder that stores the encoded pools for a resumed run.
        clips: number of clips in each pool, by number of frames: single frames and whole clips.
    """

    name = "t2v-unet"
    schedule = Schedule(steps=15_000, learning_rate=1e-3, warmup=100, decay_from=0.6, average=0.995)
    batches: Mapping[int, int] = MappingProxyType({1: 32, 2: 16, 4: 8, 8: 4, 16: 2})
    """Number of frames -> clips per batch; 32 frames in total."""
    phases: tuple[tuple[float, tuple[int, ...]], ...] = (
        (0.4, (1,)),
        (0.4693, (2,)),
        (0.6, (2, 4)),
        (0.7, (2, 4, 8)),
        (5 / 6, (4, 8, 16, 16)),
        (1.0, (4, 16, 16, 16)),
    )
    """End of each phase as a share of the run, and the window lengths in frames, drawn uniformly."""
    decisive = 5 / 6
    """From this share of the run on, whole clips have the noise levels at which the trajectory is decided."""

    def __init__(
        self, vae: Any, tower: Any, *, cache: Path | None = None, clips: dict[int, int] | None = None
    ) -> None:
        self.vae, self.tower = vae, tower
        self.pools = ClipPools(self._encode, clips or {1: 16_000, FRAMES: 3200}, cache)
        self.empty = caption_ids(video_tokenizer(), [""])
        self.scheduler = build_scheduler()
        self.on_policy = False
        self._references: References | None = None
        self._pictures: Any = None

    def build(self) -> nn.Module:
        """The denoiser without motion and the text encoder."""
        return nn.ModuleDict(
            {"unet": without_dropout(still(build_unet())), "text_encoder": build_text_encoder(self.tower)}
        )

    def inherit(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Load the weights of the picture model, or those of an earlier run."""
        if any(name.startswith("unet.") for name in weights):
            super().inherit(model, weights)
        else:
            inflate(model["unet"], weights)  # type: ignore[index]

    def refine(self) -> None:
        """Keep only the windows of the last phase, and make every other step on-policy."""
        super().refine()
        self.phases, self.decisive, self.on_policy = self.phases[-1:], 0.0, True

    def loss(
        self, model: nn.Module, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch."""
        if self.on_policy and step % 2:
            return self._on_policy_loss(model, generator), {"frames": float(FRAMES)}
        frames = self._length(step, generator)
        clean, ids = self._batch(frames, generator)
        times, known = self._times(len(clean), frames, step, generator)
        noise = torch.randn(clean.shape, generator=generator)
        mixed, target = (
            _by_frame(function, clean, noise, times)
            for function in (self.scheduler.add_noise, self.scheduler.get_velocity)
        )
        mixed[:, :, :known] = clean[:, :, :known]
        error = self._velocity(model, mixed, times, ids) - target
        return error[:, :, known:].square().mean(), {"frames": float(frames)}

    def _on_policy_loss(self, model: nn.Module, generator: torch.Generator) -> Tensor:
        """Loss along two trajectories from noise, with the guidance of the recommended call."""
        if self._references is None:
            self._references = References.stored(self._encode, FRAMES, 16, self.pools.cache)
        return on_policy_loss(
            partial(self._velocity, model),
            self._references,
            self.scheduler,
            self.empty,
            count=2,
            guidance=CALL["guidance_scale"],
            generator=generator,
        )

    @torch.no_grad()
    def preview(self, model: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Write a sheet of samples; returns what the parser finds in them."""
        pipe = assemble(self.vae, model["text_encoder"], model["unet"])  # type: ignore[index]
        return video_sheet(pipe, CALL, folder / f"samples-{step:06d}.png")

    def _velocity(self, model: Any, mixed: Tensor, times: Tensor, ids: Tensor) -> Tensor:
        """Velocity (B, C, F, H, W) at timesteps (B, F), float32 on the CPU."""
        device = next(model.parameters()).device
        with mixed_precision(device), matmul_attention():
            states = encode_text(model["text_encoder"], ids.to(device))
            velocity = self._predicted(model["unet"], mixed.to(device), times.to(device), states)
        return velocity.float().cpu()

    def _predicted(self, unet: Any, mixed: Tensor, times: Tensor, states: Tensor) -> Tensor:
        if mixed.shape[2] > 1:
            with levels_by_frame(unet, times):
                velocity: Tensor = unet(mixed, times[:, -1], states, return_dict=False)[0]
                return velocity
        if self._pictures is None:
            self._pictures = pictures_of(unet)
        picture: Tensor = self._pictures(mixed[:, :, 0], times[:, 0], states, return_dict=False)[0]
        return picture.unsqueeze(2)

    def _times(self, count: int, frames: int, step: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """Timesteps (B, F), and the number of clean leading frames."""
        end = self.scheduler.config.num_train_timesteps
        if frames == FRAMES and step >= self.decisive * self.schedule.steps:
            least = int((0.4, 0.7)[step % 2] * end)
            return torch.randint(least, end, (count, 1), generator=generator).repeat(1, frames), 0
        if frames > 2 and step % 4 == 0:
            return torch.randint(end, (count, frames), generator=generator), 0
        known = int(frames == 2 or (frames > 1 and step % 4 == 2))
        least = end // 2 if known or frames == FRAMES else 0
        times = torch.randint(least, end, (count, 1), generator=generator).repeat(1, frames)
        times[:, :known] = 0
        return times, known

    def _length(self, step: int, generator: torch.Generator) -> int:
        progress = step / self.schedule.steps
        lengths = next(lengths for end, lengths in self.phases if progress < end)
        return lengths[int(torch.randint(len(lengths), (1,), generator=generator))]

    def _batch(self, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random windows, float32, and their token ids; one caption in ten becomes the empty one, for guidance."""
        pool = self.pools[1 if frames == 1 else FRAMES]
        count, length = self.batches[frames], pool.latents.shape[2]
        rows = torch.randint(len(pool.latents), (count, 1), generator=generator)
        first = torch.randint(length - frames + 1, (count, 1), generator=generator)
        window = pool.latents[rows, :, first + torch.arange(frames)].transpose(1, 2).float()
        dropped = torch.rand((count, 1), generator=generator) < 0.1
        return window, torch.where(dropped, self.empty, pool.ids[rows[:, 0]])

    def _encode(self, videos: Tensor) -> Tensor:
        """Latents (B, 4, F, 16, 16), frame by frame.

        TextToVideoSDPipeline has a scale of latents but no shift, so the shift of the encoder is undone.
        """
        pictures = videos.transpose(1, 2).flatten(0, 1).to(self.vae.device)
        with mixed_precision(self.vae.device):
            latents = encode(self.vae, pictures).float()
        shift: float = self.vae.config.shift_factor * self.vae.config.scaling_factor
        by_video: Tensor = (latents + shift).unflatten(0, (len(videos), -1)).transpose(1, 2)
        return by_video


def _by_frame(function: Callable[..., Tensor], clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """Apply a function of the scheduler frame by frame: (B, C, F, H, W) with timesteps (B, F)."""
    flat = (x.transpose(1, 2).flatten(0, 1) for x in (clean, noise))
    found: Tensor = function(*flat, times.flatten()).unflatten(0, times.shape)
    return found.transpose(1, 2).contiguous()


def make_recipe(root: Path, *, device: str, compiled: bool) -> TextToVideoUNet:  # noqa: ARG001
    """The recipe over the trained parts in ``root``."""
    from hasten_miniatures.runs import load_autoencoder, load_text_tower

    return TextToVideoUNet(
        load_autoencoder(root).to(device), load_text_tower(root), cache=root / TextToVideoUNet.name
    )


def assemble(vae: Any, text_encoder: Any, unet: Any) -> Any:
    """The stock TextToVideoSDPipeline around the trained parts."""
    from diffusers import TextToVideoSDPipeline

    return TextToVideoSDPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=video_tokenizer(),
        unet=unet,
        scheduler=build_scheduler(),
    )


def _assemble_trained(root: Path) -> Any:
    from hasten_miniatures.runs import load_autoencoder, load_text_tower, load_trained

    parts = nn.ModuleDict({"unet": build_unet(), "text_encoder": build_text_encoder(load_text_tower(root))})
    model = load_trained(TextToVideoUNet.name, root, parts)
    return assemble(load_autoencoder(root), model["text_encoder"], model["unet"])


_TEXT = f"""
A stock `TextToVideoSDPipeline` (`UNet3DConditionModel`, v-prediction, zero terminal SNR) for captioned scenes of one
simple object that moves left, right, up or down, or stands: 16 frames of 64 px, every frame a picture of its own to the
autoencoder. Its spatial layers began as those of `mini/t2i-unet`. What leaves the picture at one border comes back at
the opposite one, so that the motion is defined at any length.

{usage("t2v-unet", video=True)}

Figures of miniatures show trends and are not comparable with published ones.
"""

PRODUCT = Product(
    text=_TEXT,
    runs=("autoencoder", "text-image", TextToVideoUNet.name),
    call=CALL,
    assemble=_assemble_trained,
    settings=lambda _: {"trained_frames": FRAMES},
    measure=evaluate_videos,
    samples=2,
    trained=("unet", "text_encoder"),
)
