"""``mini/t2i-dit-4096``: the denoiser of ``mini/t2i-dit`` trained further at 512 px, which is 4,096 image tokens."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from hasten.pipelines.mini.scenes import Split
from hasten_miniatures import t2i_dit_1024
from hasten_miniatures.product import Product
from hasten_miniatures.schedule import Schedule
from hasten_miniatures.t2i_dit import assemble, measure_images, settings
from hasten_miniatures.t2i_dit_1024 import TextToImage1024, build_transformer

__all__ = ["CALL", "PRODUCT", "TextToImage4096", "make_recipe"]

CALL: dict[str, Any] = {**t2i_dit_1024.CALL, "height": 512, "width": 512}
"""The call the miniature is meant for."""
BARS: dict[tuple[Split, bool], float] = {
    ("train", True): 0.9,
    ("held_out", True): 0.8,
    ("train", False): 0.85,
}


class TextToImage4096(TextToImage1024):
    """Rectified flow at 4,096 tokens with some steps at 1,024, begun with the weights of ``mini/t2i-dit``."""

    name = "t2i-dit-4096"
    schedule = Schedule(steps=1000, learning_rate=3e-4, warmup=30, decay_from=0.4, average=0.99)
    call = CALL
    low_every = 3
    low_batch, full_batch = 8, 2

    def refine(self) -> None:
        """As for every recipe, with a long average."""
        super().refine()
        self.schedule = replace(self.schedule, average=0.995)

    def build(self) -> nn.Module:
        """The denoiser with its table of positions; its weights are those it begins with."""
        model: nn.Module = build_transformer(CALL["height"])
        return model


def make_recipe(root: Path, *, device: str, compiled: bool) -> TextToImage4096:
    """The recipe over the trained parts in ``root``."""
    from hasten_miniatures.runs import load_autoencoder, load_text_tower

    vae, tower = load_autoencoder(root).to(device), load_text_tower(root).to(device)
    return TextToImage4096(vae, tower, images=1_600, compiled=compiled, cache=root / TextToImage4096.name)


def _assemble_trained(root: Path) -> Any:
    from hasten_miniatures.runs import load_autoencoder, load_text_tower, load_trained

    denoiser = load_trained(TextToImage4096.name, root, build_transformer(CALL["height"]))
    return assemble(load_autoencoder(root), load_text_tower(root), denoiser, CALL["height"])


_TEXT = """
`mini/t2i-dit` trained further on pictures of 512 px, which are 4,096 image tokens, as many as FLUX.1 has at 1,024 px.
It is meant for benchmarks of techniques that pay at many tokens; a picture takes half a minute on two CPU cores.
It also makes pictures of 256 px (1,024 tokens). Everything else is as in `mini/t2i-dit`.

```python
pipe = hasten.load("mini/t2i-dit-4096")
image = pipe(
    "a large red circle on the left and a small blue star on the right on a white background",
    **hasten.pipelines.mini.recommended_call("mini/t2i-dit-4096"),
).images[0]
```
"""

PRODUCT = Product(
    text=_TEXT,
    runs=("autoencoder", "text-image", TextToImage4096.name),
    call=CALL,
    assemble=_assemble_trained,
    settings=partial(settings, side=CALL["height"]),
    measure=partial(measure_images, bars=BARS),
    samples=4,
)
