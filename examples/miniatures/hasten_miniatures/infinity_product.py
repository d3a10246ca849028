"""The shipped pipeline ``mini/infinity``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from hasten.pipelines.infinity.pipeline import InfinityPipeline
from hasten.pipelines.var.scheduler import NextScaleScheduler
from hasten_miniatures.infinity import TextToBits, build_model, load_tokenizer
from hasten_miniatures.infinity_tokenizer import InfinityTokenizer
from hasten_miniatures.next_scale_product import measure
from hasten_miniatures.product import Product, usage
from hasten_miniatures.scale_tokens import SCHEDULE
from hasten_miniatures.text import build_tokenizer

__all__ = ["CALL", "PRODUCT", "assemble"]

CALL = {"num_inference_steps": len(SCHEDULE), "guidance_scale": 2.0, "top_p": 0.97, "temperature": 0.7}
"""Recommended arguments of a call."""


def assemble(vae: Any, tower: Any, transformer: Any) -> InfinityPipeline:
    """The pipeline around the trained parts."""
    scheduler = NextScaleScheduler(
        guidance="constant",
        guidance_scale=CALL["guidance_scale"],
        top_k=0,
        top_p=CALL["top_p"],
        temperature=CALL["temperature"],
    )
    return InfinityPipeline(transformer, vae, scheduler, tower, build_tokenizer(), resolution=None)


def _assemble_trained(root: Path) -> InfinityPipeline:
    from hasten_miniatures.runs import load_text_tower, load_trained

    transformer = load_trained(TextToBits.name, root, build_model())
    return assemble(load_tokenizer(root), load_text_tower(root), transformer)


_TEXT = f"""
A text-conditional `InfinityPipeline` for captioned scenes of one to three simple objects at 64 px, generated in eight
scales of 1 to 64 tokens of 32 bits. The text tower is the one of the bundled contrastive model.

{usage("infinity")}

Figures of miniatures show trends and are not comparable with published ones.
"""

PRODUCT = Product(
    text=_TEXT,
    runs=("text-image", InfinityTokenizer.name, TextToBits.name),
    call=CALL,
    assemble=_assemble_trained,
    settings=lambda root: {},  # noqa: ARG005
    measure=partial(measure, bar=0.8),
    samples=2,
)
