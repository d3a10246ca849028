"""The transformer of ``mini/infinity``."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from hasten.pipelines.infinity.bsq_model import BSQAutoencoder
from hasten.pipelines.var.transformer import NextScaleTransformer
from hasten_miniatures.infinity_tokenizer import InfinityTokenizer, build_bitwise_tokenizer
from hasten_miniatures.next_scale import NextScaleTraining, build_transformer, initialise
from hasten_miniatures.schedule import Schedule

__all__ = ["TextToBits", "build_model", "load_tokenizer", "make_recipe"]


def build_model() -> NextScaleTransformer:
    """The untrained transformer, with rotary positions."""
    bits = build_bitwise_tokenizer().choices
    return build_transformer(token_dim=bits, num_outputs=2 * bits, rotary=True)


class TextToBits(NextScaleTraining):
    """Text to bits; see :class:`NextScaleTraining`. Half of the replaced bits are right by chance."""

    name = "infinity"
    schedule = Schedule(steps=2000, learning_rate=2e-3, warmup=100, decay_from=0.4, average=0.998)
    coarse_steps = 600
    most_replaced = 0.3

    def build(self) -> nn.Module:
        """The untrained transformer."""
        return initialise(build_model())

    def preview(self, model: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Write a sheet of samples; returns what the pixel parser finds in them."""
        from hasten_miniatures.infinity_product import CALL, assemble
        from hasten_miniatures.next_scale_product import sample_sheet

        return sample_sheet(assemble(self.vae, self.tower, model), CALL, folder / f"samples-{step:06d}.png")


def load_tokenizer(root: Path) -> BSQAutoencoder:
    """The tokenizer trained in ``root``, or else the bundled one."""
    from hasten_miniatures.runs import load_bundled, load_trained

    if not (root / InfinityTokenizer.name).is_dir():
        bundled: BSQAutoencoder = load_bundled(InfinityTokenizer.name, BSQAutoencoder)
        return bundled
    trained: BSQAutoencoder = load_trained(InfinityTokenizer.name, root, build_bitwise_tokenizer())
    return trained


def make_recipe(root: Path, *, device: str, compiled: bool) -> TextToBits:
    """The recipe over the trained parts in ``root``."""
    from hasten_miniatures.runs import load_text_tower

    vae, tower = load_tokenizer(root), load_text_tower(root).to(device)
    return TextToBits(vae, tower, cache=root / TextToBits.name, compiled=compiled)
