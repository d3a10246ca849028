"""``mini/t2i-outlines``: a ControlNet for ``mini/t2i-dit`` whose condition is the outlines of the scene."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten.extend import Pipeline
from hasten.pipelines.mini import load as load_miniature
from hasten.pipelines.mini import prompts
from hasten.pipelines.mini.render import render_scenes
from hasten.pipelines.mini.scenes import parse_caption, sample_scene
from hasten.weights import load_checked
from hasten_miniatures.autoencoder import encode
from hasten_miniatures.evaluate import generate
from hasten_miniatures.grids import save_grid
from hasten_miniatures.outlines import agreement, outlines, to_tensor
from hasten_miniatures.pools import stored_pool
from hasten_miniatures.precision import mixed_precision
from hasten_miniatures.schedule import Schedule
from hasten_miniatures.t2i_dit import Embed, assemble, encode_text
from hasten_miniatures.t2i_dit_1024 import CALL, TextToImage1024
from hasten_miniatures.text import build_tokenizer

__all__ = [
    "CALL",
    "LAYERS",
    "TEXT",
    "OutlinesControl",
    "build_controlnet",
    "controlled",
    "load",
    "make_recipe",
]

LAYERS = 2
"""Joint blocks of the ControlNet, begun as copies of the first ones of the denoiser."""
WEIGHTS = Path(__file__).with_name("weights") / "t2i-outlines"
TEXT = """
A stock `SD3ControlNetModel` for `mini/t2i-dit`. The condition is the outlines of the scene, white on black, at the size
of the picture: 128 or 256 px. It is not a pipeline of its own but a part for one:

```python
from hasten_miniatures.outlines import outlines
from hasten_miniatures.t2i_outlines import CALL, load

pipe = load()  # StableDiffusion3ControlNetPipeline
prompt = "a large red star in the centre on a white background"
image = pipe(prompt, control_image=outlines(picture), **CALL).images[0]
```

`picture` is (1, 3, 256, 256) in [-1, 1]. What it is for: `docs/benchmarks/bottleneck.md` in the repository.
"""


def build_controlnet(transformer: Any) -> Any:
    """An untrained SD3ControlNetModel of about 1.2 M parameters for a miniature's denoiser.

    Args:
        transformer: the ``SD3Transformer2DModel``; its first blocks and embeddings are copied.
    """
    from diffusers import SD3ControlNetModel

    config = transformer.config
    shared = (
        *("sample_size", "patch_size", "in_channels", "out_channels", "attention_head_dim", "qk_norm"),
        *("num_attention_heads", "joint_attention_dim", "caption_projection_dim", "pooled_projection_dim"),
        "pos_embed_max_size",
    )
    made: Any = SD3ControlNetModel(
        num_layers=LAYERS, force_zeros_for_pooled_projection=False, **{name: config[name] for name in shared}
    )
    for part in ("pos_embed", "time_text_embed", "context_embedder"):
        getattr(made, part).load_state_dict(getattr(transformer, part).state_dict())
    for block, source in zip(made.transformer_blocks, transformer.transformer_blocks):
        block.load_state_dict(source.state_dict())
    return made


@dataclass(frozen=True)
class OutlinesPool:
    """Training scenes of one resolution with their outlines, encoded once, in half precision.

    Args:
        latents: normalised latents (N, 4, h, w).
        conditions: normalised latents of the outlines, (N, 4, h, w).
        tokens: token states (N, 24, 96) of the captions.
        pooled: pooled embeddings (N, 96).
    """

    latents: Tensor
    conditions: Tensor
    tokens: Tensor
    pooled: Tensor

    @classmethod
    def make(cls, vae: Any, embed: Embed, count: int, pixels: int) -> OutlinesPool:
        """Render and encode ``count`` scenes of ``pixels`` squared; every size has scenes of its own."""
        device, chunk, parts = next(vae.parameters()).device, 32, []
        for first in range(0, count, chunk):
            scenes = [sample_scene(pixels + 1, i) for i in range(first, first + chunk)]
            images = render_scenes(scenes, pixels + 1, first, pixels).to(device)
            with mixed_precision(device):
                encoded = encode(vae, images), encode(vae, outlines(images))
            parts.append((*encoded, *embed([scene.caption() for scene in scenes])))
        return cls(*(torch.cat(column).to("cpu", torch.float16) for column in zip(*parts)))

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``count`` random rows, float32."""
        rows = torch.randint(len(self.latents), (count,), generator=generator)
        columns = (self.latents, self.conditions, self.tokens, self.pooled)
        latents, conditions, tokens, pooled = (column[rows].float() for column in columns)
        return latents, conditions, tokens, pooled


class OutlinesControl(TextToImage1024):
    """The loss of the denoiser, which stays as it is; its ControlNet learns.

    Args:
        vae: the trained autoencoder.
        tower: the trained text tower.
        transformer: the trained denoiser.
        images: scenes in the pool of 128 px; a quarter as many at 256 px.
        cache: folder that keeps the encoded pools for a resumed run.
    """

    name = "t2i-outlines"
    schedule = Schedule(steps=400, learning_rate=1e-3, warmup=20, decay_from=0.5, average=0.97)
    full_every = 4
    low_batch, full_batch = 12, 3
    dropped = 0.3

    def __init__(
        self, vae: Any, tower: Any, transformer: Any, *, images: int = 640, cache: Path | None = None
    ) -> None:
        super().__init__(vae, tower, images=images, cache=cache)
        self.transformer = transformer.requires_grad_(False)
        self._conditioned: dict[int, OutlinesPool] = {}

    def build(self) -> nn.Module:
        """The ControlNet, whose outputs are zero before training."""
        model: nn.Module = build_controlnet(self.transformer)
        return model

    def inherit(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Go on with the weights of a ControlNet."""
        model.load_state_dict(weights)

    def loss(
        self, model: nn.Module, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Mean squared velocity error of one step."""
        full = step % self.full_every == 0
        count = self.full_batch if full else self.low_batch
        pixels = self.call["height"] // (1 if full else 2)
        clean, condition, tokens, pooled = self._outlined(pixels).batch(count, generator)
        tokens, pooled = self._without_some(tokens, pooled, generator)
        time = self.shifted_times(count, pixels, generator)
        noise = torch.randn(clean.shape, generator=generator)
        device = next(model.parameters()).device
        given = {
            "hidden_states": torch.lerp(clean, noise, time.view(-1, 1, 1, 1)).to(device),
            "encoder_hidden_states": tokens.to(device),
            "pooled_projections": pooled.to(device),
            "timestep": (time * 1000).to(device),
            "return_dict": False,
        }
        with mixed_precision(device):
            residuals = model(controlnet_cond=condition.to(device), **given)[0]
            velocity = self.transformer(block_controlnet_hidden_states=residuals, **given)[0]
        loss = (velocity.float() - (noise - clean).to(device)).square().mean()
        return loss, {"image_tokens": float(clean[0, 0].numel() // 4)}

    def preview(self, model: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Conditions above pictures at 128 px; returns how well the pictures follow."""
        side = self.call["height"] // 2
        captions = prompts(8, 7)
        conditions = outlines(render_scenes([parse_caption(text) for text in captions], 7, 0, side))
        pipe = controlled(assemble(self.vae, self.tower, self.transformer, side), model)
        sized = {**self.call, "height": side, "width": side, "control_image": conditions}
        images = to_tensor(generate(pipe, captions, sized))
        save_grid(torch.cat([conditions, images]), folder / f"samples-{step:06d}.png", columns=8)
        return {"outlines_128": float(agreement(images, conditions).mean())}

    def _outlined(self, pixels: int) -> OutlinesPool:
        if pixels not in self._conditioned:
            embed = partial(encode_text, self.tower, build_tokenizer())
            count = self.images if pixels < self.call["height"] else self.images // 4
            path = None if self.cache is None else self.cache / f"pool-{pixels}-{count}.pt"
            make = partial(OutlinesPool.make, self.vae, embed, count, pixels)
            self._conditioned[pixels] = stored_pool(OutlinesPool, path, make)
        return self._conditioned[pixels]


def make_recipe(root: Path, *, device: str, compiled: bool) -> OutlinesControl:  # noqa: ARG001
    """The recipe over the trained parts in ``root``."""
    from hasten_miniatures.runs import load_autoencoder, load_denoiser, load_text_tower

    vae, tower = load_autoencoder(root).to(device), load_text_tower(root).to(device)
    denoiser = load_denoiser(root).to(device)
    return OutlinesControl(vae, tower, denoiser, cache=root / OutlinesControl.name)


def controlled(pipe: Pipeline, controlnet: Any) -> Any:
    """The stock StableDiffusion3ControlNetPipeline around the parts of ``pipe``, a StableDiffusion3Pipeline."""
    from diffusers import StableDiffusion3ControlNetPipeline

    return StableDiffusion3ControlNetPipeline(**pipe.components, controlnet=controlnet)


def load() -> Any:
    """``mini/t2i-dit`` with the shipped ControlNet: a stock StableDiffusion3ControlNetPipeline in single precision.

    Its ``control_image`` is what :func:`hasten_miniatures.outlines.outlines` returns, at the size of the picture.

    Raises:
        CheckpointError: the weights are damaged or not installed.
    """
    from diffusers import SD3ControlNetModel

    controlnet = load_checked(
        lambda: SD3ControlNetModel.from_pretrained(WEIGHTS, local_files_only=True),
        WEIGHTS,
        "reinstall hasten-miniatures",
    )
    return controlled(load_miniature("mini/t2i-dit"), controlnet.float().eval().requires_grad_(False))
