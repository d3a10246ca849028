"""The cache of keys and values that generation scale by scale reads, as the pipelines and techniques share it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from hasten.schedules.scales import Schedule, token_ends

__all__ = ["KVCache"]


class KVCache(ABC):
    """Keys and values of earlier scales, and the attention over them. One object serves one pipeline call at a time.

    A pipeline calls :meth:`begin`, then, scale by scale and layer by layer, :meth:`attend`, and at the end, also after
    an error, :meth:`reset`.
    """

    schedule: Schedule = ()
    ends: tuple[int, ...] = ()
    """Tokens up to and including each scale."""
    layers: int = 0
    scale: int = -1
    """The scale in progress."""

    def begin(self, schedule: Schedule, layers: int) -> None:
        """Forget everything and prepare for a generation over ``schedule`` with ``layers`` self-attention layers."""
        self.reset()
        self.schedule, self.ends, self.layers = schedule, token_ends(schedule), layers

    @abstractmethod
    def attend(self, layer: int, scale: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from the tokens of one scale to themselves and to all earlier scales, and remember them.

        Args:
            layer: index of the self-attention layer.
            scale: index of the scale.
            query: (N, heads, n, dim), the model's logit scale multiplied in; the softmax scale is 1.
            key: (N, heads, n, dim), normalised and rotated.
            value: (N, heads, n, dim).

        Returns:
            (N, heads, n, dim) in the dtype of ``value``.
        """

    @abstractmethod
    def keep_rows(self, rows: int) -> None:
        """Forget all but the first ``rows`` rows of the batch (guidance has ended)."""

    @abstractmethod
    def reset(self) -> None:
        """Free all memory."""

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor held between calls of :meth:`attend`."""

    def is_last(self, scale: int) -> bool:
        """Whether ``scale`` is the last one, whose keys and values nobody will read again."""
        return scale == len(self.schedule) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of the distinct storages held now."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self.tensors()}
        return sum(storages.values())
