"""The transformer of ``mini/var``."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from hasten.pipelines.var.transformer import NextScaleTransformer
from hasten.pipelines.var.vq_model import MultiScaleVQModel
from hasten_miniatures.next_scale import NextScaleTraining, build_transformer, initialise
from hasten_miniatures.schedule import Schedule
from hasten_miniatures.var_tokenizer import CODES, TokenizerTraining, VarTokenizer

__all__ = ["TextToScales", "build_model", "load_tokenizer", "make_recipe"]


def build_model() -> NextScaleTransformer:
    """The untrained transformer."""
    return build_transformer(token_dim=16, num_outputs=CODES)


class TextToScales(NextScaleTraining):
    """Text to codes; see :class:`NextScaleTraining`."""

    name = "var"
    schedule = Schedule(steps=3600, learning_rate=2e-3, warmup=150, decay_from=0.5, average=0.998)

    def build(self) -> nn.Module:
        """The untrained transformer."""
        return initialise(build_model())

    def preview(self, model: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Write a sheet of samples; returns what the pixel parser finds in them."""
        from hasten_miniatures.next_scale_product import sample_sheet
        from hasten_miniatures.var_product import CALL, assemble

        return sample_sheet(assemble(self.vae, self.tower, model), CALL, folder / f"samples-{step:06d}.png")


def load_tokenizer(root: Path) -> MultiScaleVQModel:
    """The tokenizer trained in ``root``, or else the bundled one."""
    from hasten_miniatures.runs import load_bundled, load_trained

    if not (root / VarTokenizer.name).is_dir():
        bundled: MultiScaleVQModel = load_bundled(VarTokenizer.name, MultiScaleVQModel)
        return bundled
    trained: TokenizerTraining = load_trained(VarTokenizer.name, root, TokenizerTraining())
    return trained.vae


def make_recipe(root: Path, *, device: str, compiled: bool) -> TextToScales:
    """The recipe over the trained parts in ``root``."""
    from hasten_miniatures.runs import load_text_tower

    vae, tower = load_tokenizer(root), load_text_tower(root).to(device)
    return TextToScales(vae, tower, cache=root / TextToScales.name, compiled=compiled)
