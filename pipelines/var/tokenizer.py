"""Base class of picture tokenizers of next-scale pipelines."""

from __future__ import annotations

from abc import abstractmethod

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from hasten.schedules.scales import Grid, Schedule

__all__ = ["ScaleTokenizer"]


class ScaleTokenizer(ModelMixin):
    """Sums the tokens of all scales to a latent. Subclasses are the quantisers of VAR and Infinity."""

    patch: int = 16
    """Side of a token of the last scale, in pixels."""
    classes: int = 0
    """Number of values of one choice: the size of the codebook, or 2 for a bit."""
    choices: int = 1
    """Choices per token: 1, or the number of bits."""
    use_slicing: bool = False

    @abstractmethod
    def empty_latent(self, batch: int, schedule: Schedule) -> Tensor:
        """Zeros, float32 (B, C, h, w), of the size of the last scale."""

    @abstractmethod
    def add_scale(self, latent: Tensor, choices: Tensor, scale: int, schedule: Schedule) -> Tensor:
        """The latent with the tokens of one scale added.

        Args:
            latent: float32 (B, C, h, w).
            choices: int64 (B, n * :attr:`choices`), raster order, with the choices of a token next to each other.
            scale: index of the scale.
            schedule: token grids of the generation.
        """

    @abstractmethod
    def next_input(self, latent: Tensor, scale: int, schedule: Schedule) -> Tensor:
        """The latent at the grid of ``scale``, as input of the transformer: (B, n, token channels)."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Continuous latent, float32 (B, C, h, w), of (B, 3, H, W) in [-1, 1]."""

    @abstractmethod
    def choose(self, rest: Tensor, grid: Grid) -> Tensor:
        """Choices (B, n * :attr:`choices`) of one scale for a residual, float32 (B, C, h, w)."""

    def quantise(self, latent: Tensor, schedule: Schedule) -> tuple[Tensor, list[Tensor]]:
        """Residual quantisation of a continuous latent. Returns its approximation, and the choices of all scales."""
        total, found = torch.zeros_like(latent), []
        for scale, grid in enumerate(schedule):
            found.append(self.choose(latent - total, grid))
            total = self.add_scale(total, found[-1], scale, schedule)
        return total, found

    def tokenize(self, images: Tensor, schedule: Schedule) -> list[Tensor]:
        """Choices (B, n * :attr:`choices`) of every scale for (B, 3, H, W) in [-1, 1]."""
        return self.quantise(self.encode(images), schedule)[1]

    def forward(self, images: Tensor, schedule: Schedule) -> Tensor:
        """Encode, quantise and decode pictures (B, 3, H, W)."""
        return self.decode(self.quantise(self.encode(images), schedule)[0])

    @abstractmethod
    def decode_latent(self, latent: Tensor) -> Tensor:
        """(B, C, h, w) -> pictures (B, 3, H, W), about [-1, 1]."""

    def decode(self, latent: Tensor) -> Tensor:
        """:meth:`decode_latent` in the dtype of the weights, one picture at a time if slicing is enabled."""
        latent = latent.to(next(self.parameters()).dtype)
        parts = latent.split(1) if self.use_slicing and len(latent) > 1 else (latent,)
        return torch.cat([self.decode_latent(part) for part in parts])

    def enable_slicing(self) -> None:
        """Decode one picture at a time, which needs less memory and gives the same pictures."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Decode the whole batch at once."""
        self.use_slicing = False
