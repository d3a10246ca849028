"""What the layers of a forward need to know of the clip they compute."""

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

__all__ = ["ClipForward", "Layer", "current_clip"]


@dataclass
class Layer:
    """The attention layer in progress.

    Args:
        inner: computes the attention module itself.
        bound: its arguments, by name.
        pending: the exchange of its input, where inputs are exchanged.
    """

    inner: Callable[..., Any]
    bound: dict[str, Any]
    pending: Pending | None


@dataclass
class ClipForward:
    """One clip's part of a denoiser forward.

    Args:
        index: which clip of the video.
        scope: what its frames attend to.
        biases: ``(beta_loc, beta_glob)`` at this step.
        trained: frames the model was trained with, if known.
        exchange: the way to the other clips.
        mixing: the family.
        config: the technique's options.
        messages: ``"input"`` or ``"kv"``: what attention layers exchange.
        limit: rows of the family's position tables, if it has one.
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
    layer: Layer | None = None
    table: Tensor | None = None
    """Rows of the last position table that was met, (1, rows, C), where there are more frames than rows."""
    margin: int = 0
    """Frames of the left neighbour in front of the clip's own, between a norm and the convolution behind it."""
    cache: dict[str, Any] = field(default_factory=dict)
    """Tables that are the same for every layer of the forward."""

    @property
    def length(self) -> int:
        """Frames of the clip."""
        return len(self.scope.clip)

    @property
    def alone(self) -> bool:
        """Whether this clip is the whole video."""
        return self.length == self.scope.frames

    def remember(self, key: str, make: Callable[[], Any]) -> Any:
        """A value that is computed once per forward."""
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]


current_clip: ContextVar[ClipForward | None] = ContextVar("hasten_clip", default=None)
"""The clip that the forward in progress computes."""
