"""Which attention layers of a family see the tokens of the picture, and how these tokens are arranged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import override

from hasten._adapters.base import LatentSize
from hasten._errors import UnsupportedError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["AttentionTokens", "JointTokens", "TokenGrid", "UNetTokens", "configured_patch"]


def configured_patch(config: Mapping[str, Any]) -> tuple[int, int]:
    """Latent frames and latent pixels per side that make one token, as a denoiser's configuration names them."""
    patch = config.get("patch_size") or 1
    if isinstance(patch, (tuple, list)):
        return int(patch[0]), int(patch[1])
    return int(config.get("patch_size_t") or 1), int(patch)


@dataclass(frozen=True)
class TokenGrid:
    """Tokens of one self-attention: some others, the grid, some others again.

    Args:
        frames: latent frames after temporal patching; 1 for pictures.
        height: rows.
        width: columns; the grid's tokens run through columns, then rows, then frames.
        before: tokens in front of the grid (text).
        after: tokens behind it (text, reference pictures).
    """

    frames: int
    height: int
    width: int
    before: int = 0
    after: int = 0

    @property
    def positions(self) -> int:
        """Places within one frame."""
        return self.height * self.width

    @property
    def tokens(self) -> int:
        """Tokens of the grid."""
        return self.frames * self.positions

    @property
    def context(self) -> int:
        """Tokens that are not of the grid."""
        return self.before + self.after

    @property
    def total(self) -> int:
        """All tokens."""
        return self.tokens + self.context


class AttentionTokens:
    """Token layout of a family's self-attention; alone, that of a transformer whose text attends elsewhere.

    Args:
        layers: regular expression for the names, within the denoiser, of the layers in which the tokens of the
            picture attend to each other. Cross-attention and text refiners must not match.
        warmup: published share of a run's first steps in which attention changes too much to be reused, in [0, 1];
            ``None`` where nobody has measured it.
    """

    paired_mask = False
    """Whether the layers get a mask over pairs, ``m[query] and m[key]`` of one mask ``m`` over the tokens."""

    def __init__(self, layers: str, *, warmup: float | None = None) -> None:
        self._layers = re.compile(layers)
        self.warmup = warmup

    def selects(self, name: str) -> bool:
        """Whether the attention layer ``name`` (within its denoiser) is one of them."""
        return self._layers.fullmatch(name) is not None

    def patch(self, denoiser: nn.Module) -> tuple[int, int]:
        """Latent frames and latent pixels per side that make one token."""
        config: Any = denoiser.config
        return configured_patch(config)

    def grid(self, denoiser: nn.Module, size: LatentSize) -> TokenGrid:
        """The grid of latents of ``size``, without other tokens."""
        temporal, spatial = self.patch(denoiser)
        frames = 1 if size.frames is None else -(-size.frames // temporal)
        return TokenGrid(frames, size.height // spatial, size.width // spatial)

    def folded(self, denoiser: nn.Module, size: LatentSize) -> int:
        """How many grids lie side by side in the batch of a forward of one latent: frames that attend alone."""
        frames = 1 if size.frames is None else -(-size.frames // self.patch(denoiser)[0])
        return max(1, frames // self.grid(denoiser, size).frames)

    def planned(self, denoiser: nn.Module, layer: str, size: LatentSize, text: int) -> TokenGrid:  # noqa: ARG002
        """What ``layer`` will see in a forward of latents of ``size`` with ``text`` text tokens."""
        return self.grid(denoiser, size)

    def observed(
        self, denoiser: nn.Module, layer: str, size: LatentSize, kwargs: Mapping[str, Any], tokens: int
    ) -> TokenGrid:
        """Arrangement of the ``tokens`` tokens that ``layer`` attends over in the forward with ``kwargs``.

        Raises:
            UnsupportedError: they are not the family's tokens for this size.
        """
        grid = self._arrange(self.grid(denoiser, size), kwargs, tokens)
        if grid is None or grid.total != tokens:
            raise UnsupportedError(
                f"{layer} attends over {tokens} tokens, which does not match the "
                f"{self.grid(denoiser, size)} of latents of {size} in this family; the adapter's "
                f"{type(self).__name__} has to be corrected for this model"
            )
        return grid

    def _arrange(self, grid: TokenGrid, kwargs: Mapping[str, Any], tokens: int) -> TokenGrid | None:  # noqa: ARG002
        return grid


class JointTokens(AttentionTokens):
    """Text and picture in one sequence.

    Args:
        layers: as for :class:`AttentionTokens`.
        text: whether text comes before or after the picture. Tokens of reference pictures come last.
        alone: expression for layers that leave the text out.
        warmup: as for :class:`AttentionTokens`.
    """

    def __init__(
        self,
        layers: str,
        text: Literal["before", "after"],
        alone: str | None = None,
        *,
        warmup: float | None = None,
    ) -> None:
        super().__init__(layers if alone is None else f"{layers}|{alone}", warmup=warmup)
        self._text = text
        self._alone = None if alone is None else re.compile(alone)

    def text_length(self, kwargs: Mapping[str, Any]) -> int:
        """Text tokens in front of the picture, in the forward with ``kwargs``."""
        return int(kwargs["encoder_hidden_states"].shape[1])

    @override
    def planned(self, denoiser: nn.Module, layer: str, size: LatentSize, text: int) -> TokenGrid:
        """The grid with the text on its side."""
        grid = self.grid(denoiser, size)
        if self._alone is not None and self._alone.fullmatch(layer):
            return grid
        before, after = (text, 0) if self._text == "before" else (0, text)
        return TokenGrid(grid.frames, grid.height, grid.width, before, after)

    @override
    def _arrange(self, grid: TokenGrid, kwargs: Mapping[str, Any], tokens: int) -> TokenGrid | None:
        others = tokens - grid.tokens
        if others < 0:
            return None
        before = min(self.text_length(kwargs), others) if self._text == "before" else 0
        return TokenGrid(grid.frames, grid.height, grid.width, before, others - before)


class UNetTokens(AttentionTokens):
    """Self-attention within pictures of a U-Net: every level halves rows and columns, rounding up.

    U-Nets for video have their frames in the batch there; their layers over frames (``temporal_...``) are not meant.
    """

    def __init__(self) -> None:
        super().__init__(r"(down_blocks|mid_block|up_blocks)\.(\d+\.)?attentions\.(?!.*temporal_).*\.attn1")

    @override
    def patch(self, denoiser: nn.Module) -> tuple[int, int]:
        """One token per latent pixel."""
        return 1, 1

    @override
    def grid(self, denoiser: nn.Module, size: LatentSize) -> TokenGrid:
        """That of one frame."""
        return TokenGrid(1, size.height, size.width)

    @override
    def planned(self, denoiser: nn.Module, layer: str, size: LatentSize, text: int) -> TokenGrid:
        """The grid of the level that the block's name says."""
        config: Any = denoiser.config
        levels = len(config["block_out_channels"])
        kind, index = re.findall(r"(down_blocks|up_blocks|mid_block)(?:\.(\d+))?", layer)[0]
        depth = {"down_blocks": int(index or 0), "mid_block": levels - 1}.get(
            kind, levels - 1 - int(index or 0)
        )
        return self._levels(self.grid(denoiser, size), depth)[-1]

    @override
    def _arrange(self, grid: TokenGrid, kwargs: Mapping[str, Any], tokens: int) -> TokenGrid | None:
        return next((level for level in self._levels(grid, 8) if level.tokens == tokens), None)

    @staticmethod
    def _levels(grid: TokenGrid, depth: int) -> list[TokenGrid]:
        levels = [grid]
        for _ in range(depth):
            last = levels[-1]
            levels.append(TokenGrid(1, -(-last.height // 2), -(-last.width // 2)))
        return levels
