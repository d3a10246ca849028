"""``mini/t2i-dit``: the denoiser of the run ``t2i-dit`` taught on to 256 px, which is 1,024 image tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten.pipelines.mini.scenes import Split
from hasten_miniatures import t2i_dit
from hasten_miniatures.product import Product
from hasten_miniatures.schedule import Schedule
from hasten_miniatures.t2i_dit import TextToImage, assemble, measure_images, settings

__all__ = ["CALL", "PRODUCT", "TextToImage1024", "build_transformer", "make_recipe"]

CALL: dict[str, Any] = {**t2i_dit.CALL, "num_inference_steps": 20, "height": 256, "width": 256}
"""The call the miniature is meant for."""
BARS: dict[tuple[Split, bool], float] = {
    ("train", True): 0.9,
    ("held_out", True): 0.8,
    ("train", False): 0.85,
}
TABLE = "pos_embed.pos_embed"
"""The buffer with the positions, in the state of the transformer."""


def build_transformer(side: int = CALL["height"]) -> Any:
    """The transformer of the run ``t2i-dit`` with a finer table of positions.

    The middle 16 x 16 positions of the smaller model, which all its 128 px pictures used, are resampled: a place in the
    picture keeps its embedding, so that the larger picture inherits what the smaller one knew of places.

    Args:
        side: pixels of a side of the pictures, at least 256.
    """
    from diffusers.models.embeddings import get_2d_sincos_pos_embed_from_grid

    tokens = side // 8
    model = t2i_dit.build_transformer(side, positions=tokens)
    axis = 4 + 8 * torch.arange(tokens) / tokens
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    grid = torch.stack([x, y]).view(2, 1, tokens, tokens)
    table = get_2d_sincos_pos_embed_from_grid(model.inner_dim, grid, output_type="pt")
    model.get_buffer(TABLE).copy_(table[None])
    return model


class TextToImage1024(TextToImage):
    """Rectified flow at 1,024 tokens with some steps at 256, begun with the weights of the run ``t2i-dit``."""

    name = "t2i-dit-1024"
    schedule = Schedule(steps=300, learning_rate=5e-4, warmup=30, decay_from=0.25, average=0.98)
    call = CALL
    low_steps = 0
    low_every = 6
    low_batch, full_batch = 32, 8

    def refine(self) -> None:
        """As for every recipe, with a long plateau: most of what is learned at this size is learned here."""
        super().refine()
        self.schedule = replace(self.schedule, decay_from=0.5, average=0.998)

    def times(self, count: int, generator: torch.Generator) -> Tensor:
        """Half uniform, half logit-normal.

        The colour of a plain background is settled where nearly everything is noise: after the shift of 256 px one
        logit-normal time in 160 lies above 0.98, one uniform time in 13.
        """
        uniform = torch.rand(count, generator=generator)
        return torch.where(torch.arange(count) % 2 == 0, uniform, super().times(count, generator))

    def build(self) -> nn.Module:
        """The denoiser with its table of positions; its weights are those it begins with."""
        model: nn.Module = build_transformer()
        return model

    def inherit(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Take everything but the table of positions, which is the model's own."""
        model.load_state_dict({**weights, TABLE: model.get_buffer(TABLE)})


def make_recipe(root: Path, *, device: str, compiled: bool) -> TextToImage1024:
    """The recipe over the trained parts in ``root``."""
    from hasten_miniatures.runs import load_autoencoder, load_text_tower

    vae, tower = load_autoencoder(root).to(device), load_text_tower(root).to(device)
    return TextToImage1024(vae, tower, images=8_000, compiled=compiled, cache=root / TextToImage1024.name)


def _assemble_trained(root: Path) -> Any:
    from hasten_miniatures.runs import load_autoencoder, load_text_tower, load_trained

    denoiser = load_trained(TextToImage1024.name, root, build_transformer())
    return assemble(load_autoencoder(root), load_text_tower(root), denoiser, CALL["height"])


_TEXT = """
A stock `StableDiffusion3Pipeline` for captioned scenes of one to three simple objects: 256 px, which are 1,024 image
tokens, and 128 px (256 tokens) as well. It was trained by `hasten mini train` from 64 tokens upwards. Both CLIP slots
hold the same text tower, the one of the bundled contrastive model; there is no T5.

```python
pipe = hasten.load("mini/t2i-dit")
image = pipe(
    "a large red circle on the left and a small blue star on the right on a white background",
    **hasten.pipelines.mini.recommended_call("mini/t2i-dit"),
).images[0]
```

With diffusers alone: `StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)`.
`max_sequence_length=0` drops the zero tokens that stand for the missing T5; the pipeline's default works too, but is
slower. The parser reads the pictures at their own size, the classifier reduces them to 64 px. Figures of miniatures
show trends and are not comparable with published ones.
"""

PRODUCT = Product(
    text=_TEXT,
    runs=("autoencoder", "text-image", TextToImage1024.name),
    call=CALL,
    assemble=_assemble_trained,
    settings=partial(settings, side=CALL["height"]),
    measure=partial(measure_images, bars=BARS),
    samples=4,
)
