"""What stands in for a block that is pruned."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["SkipJoint", "SkipResnet", "SkipTensor", "SkipTransformer2D"]


class SkipResnet(nn.Module):
    """Stands in for a resnet: the first ``channels`` of its input, which are the hidden ones of an up-block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        """(B, C, H, W) to (B, channels, H, W)."""
        return hidden[:, : self.channels]


class SkipTransformer2D(nn.Module):
    """Stands in for a ``Transformer2DModel`` called with ``return_dict=False``."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
        """The input in a tuple."""
        return (hidden_states,)


class SkipTensor(nn.Module):
    """Stands in for a block with one stream."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """The input."""
        return hidden_states


class SkipJoint(nn.Module):
    """Stands in for a block with a text and an image stream."""

    context_pre_only = False

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Text stream, image stream."""
        return encoder_hidden_states, hidden_states
