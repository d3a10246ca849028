"""The clip that a forward computes, for the handlers of its layers."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hasten.extend import FrameMixing, Rotary
from hasten.plugins.video_infinity.config import VideoInfinityConfig
from hasten.plugins.video_infinity.exchange import Exchange, Pending
from hasten.schedules.clips import Scope

__all__ = ["ClipForward", "LayerCall", "current_clip"]


@dataclass
class LayerCall:
    """The attention layer in progress.

    Args:
        inner: the forward of the attention module.
        bound: its arguments by name.
        pending: the exchange of its input, if inputs are exchanged.
    """

    inner: Callable[..., Any]
    bound: dict[str, Any]
    pending: Pending | None


@dataclass
class ClipForward:
    """A forward of the denoiser on one clip.

    Args:
        index: index of the clip in the video.
        scope: the frames that it attends to.
        biases: ``(beta_loc, beta_glob)`` at this step.
        trained: number of frames the model was trained with, if known.
        exchange: exchanges data with the other clips.
        mixing: the layers of the model family that mix frames.
        config: options of the technique.
        messages: what attention layers exchange, ``"input"`` or ``"kv"``.
        limit: rows of the position tables, if the family has them.
        rotary: rotary embeddings of all frames, if the family has them.
        layer: the attention layer in progress.
    """

    index: int
    scope: Scope
    biases: tuple[float, float]
    trained: int | None
    exchange: Exchange
    mixing: FrameMixing
    config: VideoInfinityConfig
    messages: str
    limit: int | None = None
    rotary: Rotary | None = None
    layer: LayerCall | None = None
    table: Tensor | None = None
    """The last position table, (1, rows, C), if there are more frames than rows."""
    margin: int = 0
    """Frames of the left neighbour in front of the clip, between a norm and the convolution that follows it."""
    cache: dict[str, Any] = field(default_factory=dict)
    """Values that all layers of the forward share."""

    @property
    def length(self) -> int:
        """Frames of the clip."""
        return len(self.scope.clip)

    @property
    def alone(self) -> bool:
        """Whether this clip is the whole video."""
        return self.length == self.scope.frames

    def remember(self, key: str, make: Callable[[], Any]) -> Any:
        """The value of ``make()``, computed once per forward."""
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]


current_clip: ContextVar[ClipForward | None] = ContextVar("hasten_clip", default=None)
"""The clip that the forward in progress computes."""
