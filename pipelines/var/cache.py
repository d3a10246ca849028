"""The default key-value cache of next-scale generation, without compression."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.extend import KVCache

__all__ = ["DenseKVCache"]


class DenseKVCache(KVCache):
    """Stores all keys and values: the baseline for compressed caches.

    Keys are stored in the working dtype, buffers for ``T_{K-1}`` tokens are allocated once, and keys and values of the
    last scale are not stored. None of this changes the result.
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
        """See :meth:`KVCache.keep_rows`; copies the rows, so that the memory of the others is freed layer by layer."""
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
    """Append ``new`` to the ``past`` tokens in the buffer of a layer. Returns a view of all ``end`` tokens."""
    if layer not in store:
        rows, heads, _, dim = new.shape
        store[layer] = new.new_empty((rows, heads, capacity, dim))
    store[layer][:, :, past:end] = new
    return store[layer][:, :, :end]
