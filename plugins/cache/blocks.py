"""Which blocks of a denoiser diffusers' caches can skip."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from hasten.extend import BlockOutputs

__all__ = ["feed_forward_layers", "known_blocks", "refusal"]


def refusal(model: nn.Module, outputs: BlockOutputs | None) -> str | None:
    """Why the blocks of ``model`` cannot be skipped together, ``None`` if they can.

    The caches add what all blocks changed, taken at an earlier step, to the output of the first. So every block has to
    be known, and the first and the last one have to return the same streams of tokens.
    """
    found = _blocks(model)
    if len(found) < 2:
        return f"{type(model).__name__} has no list of at least two transformer blocks that diffusers' caches look for"
    with known_blocks(found, outputs) as known:
        unknown = sorted({type(block).__name__ for block in found if type(block) not in known})
        if unknown:
            return f"diffusers' caches do not know the outputs of {', '.join(unknown)}"
        unnamed = sorted(
            {type(block).__name__ for block in found if not _names_its_streams(known[type(block)])}
        )
        if unnamed:
            return f"diffusers' caches look for arguments that {', '.join(unnamed)} calls otherwise"
        first, last = (known[type(block)] for block in (found[0], found[-1]))
        indices = ("return_hidden_states_index", "return_encoder_hidden_states_index")
        if any(getattr(first, index) != getattr(last, index) for index in indices):
            return (
                f"the first block ({type(found[0]).__name__}) and the last one ({type(found[-1]).__name__}) return "
                f"different streams of tokens"
            )
    return None


@contextmanager
def known_blocks(
    blocks: nn.Module | list[nn.Module], outputs: BlockOutputs | None
) -> Iterator[dict[type, Any]]:
    """diffusers' registry of block classes, with those that an adapter describes added for the time being."""
    from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

    described = outputs.of if outputs is not None else {}
    modules = blocks.modules() if isinstance(blocks, nn.Module) else blocks
    TransformerBlockRegistry._register()
    registry: dict[type, Any] = TransformerBlockRegistry._registry
    added = {type(block) for block in modules if type(block).__name__ in described} - set(registry)
    for kind in added:
        text: Any  # diffusers declares it as a number, and uses None
        hidden, text = described[kind.__name__]
        TransformerBlockRegistry.register(
            kind,
            TransformerBlockMetadata(
                return_hidden_states_index=hidden, return_encoder_hidden_states_index=text
            ),
        )
    try:
        yield registry
    finally:
        for kind in added:
            del registry[kind]


def feed_forward_layers(model: nn.Module) -> tuple[str, ...]:
    """Names of the feed-forward layers of ``model``."""
    from diffusers.models.attention import FeedForward, LuminaFeedForward

    kinds = (FeedForward, LuminaFeedForward)
    return tuple(name for name, module in model.named_modules() if isinstance(module, kinds))


def _names_its_streams(metadata: Any) -> bool:
    parameters = inspect.signature(metadata._cls.forward).parameters
    text = metadata.return_encoder_hidden_states_index is not None
    return "hidden_states" in parameters and (not text or "encoder_hidden_states" in parameters)


def _blocks(model: nn.Module) -> list[nn.Module]:
    from diffusers.hooks._common import _ALL_TRANSFORMER_BLOCK_IDENTIFIERS as names

    lists = (child for name, child in model.named_children() if name in names)
    return [block for child in lists if isinstance(child, nn.ModuleList) for block in child]
