"""The key-value cache of next-scale generation: the object a pipeline call attends through, and its dense default."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.schedules.scales import Schedule, token_ends

__all__ = ["DenseKVCache", "KVCache"]


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


class DenseKVCache(KVCache):
    """Every key and value, without loss: the baseline that compression is measured against.

    Three savings that change no bit of the result: keys are kept in the working dtype, buffers for ``T_{K-1}``
    tokens are allocated once, and keys and values of the last scale are not kept.
    """

    def __init__(self) -> None:
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def attend(self, layer: int, scale: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See :meth:`KVCache.attend`."""
        self.scale = scale
        past = self.ends[scale - 1] if scale else 0
        if self.is_last(scale):
            if past:
                key = torch.cat([self._keys[layer][:, :, :past], key], dim=2)
                value = torch.cat([self._values[layer][:, :, :past], value], dim=2)
        else:
            end = self.ends[scale]
            key = _append(self._keys, layer, key, past, end, self.ends[-2])
            value = _append(self._values, layer, value, past, end, self.ends[-2])
        return F.scaled_dot_product_attention(query, key, value, scale=1.0)

    def keep_rows(self, rows: int) -> None:
        """See :meth:`KVCache.keep_rows`; copies, so that the memory of the others is freed layer by layer."""
        for store in (self._keys, self._values):
            for layer, buffer in store.items():
                store[layer] = buffer[:rows].clone()

    def reset(self) -> None:
        """See :meth:`KVCache.reset`."""
        self._keys, self._values = {}, {}
        self.scale = -1

    def tensors(self) -> tuple[Tensor, ...]:
        """See :meth:`KVCache.tensors`."""
        return (*self._keys.values(), *self._values.values())


def _append(store: dict[int, Tensor], layer: int, new: Tensor, past: int, end: int, capacity: int) -> Tensor:
    """Write ``new`` behind the ``past`` tokens of a layer's buffer; returns a view of all ``end`` tokens."""
    if layer not in store:
        rows, heads, _, dim = new.shape
        store[layer] = new.new_empty((rows, heads, capacity, dim))
    store[layer][:, :, past:end] = new
    return store[layer][:, :, :end]
