"""Experts in memory: built when they are first needed, kept as long as the residency allows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from hasten.plugins.aptp.base_model import Base
from hasten.plugins.aptp.bundle import Bundle
from hasten.plugins.aptp.router import BASE
from hasten.plugins.aptp.timestep_segments import segmented

__all__ = ["Experts"]


class Experts:
    """The experts of a bundle over a live base.

    Args:
        bundle: their plans and tensors.
        base: what they are cut from.
        residency: how many are kept.
        resident: for ``"lru"``.
        time: flow time of a forward from its arguments, for bundles with timestep segments.
        compiled: wrap each in ``torch.compile``.
    """

    def __init__(
        self,
        bundle: Bundle,
        base: Base,
        residency: Literal["all", "lru", "slice_on_demand"],
        resident: int,
        time: Callable[[Mapping[str, Any]], float],
        *,
        compiled: bool = False,
    ) -> None:
        self._bundle, self._base, self._compiled, self._time = bundle, base, compiled, time
        self._capacity = {"all": len(bundle.experts), "lru": resident, "slice_on_demand": 1}[residency]
        self._release = residency == "slice_on_demand"
        self._made: OrderedDict[int, Any] = OrderedDict()
        self._sources: dict[str, Any] = {}
        self.built = 0
        """How many were built so far."""

    @property
    def resident(self) -> tuple[int, ...]:
        """Numbers of the choices whose experts are all in memory."""
        choices = enumerate(self._bundle.manifest.choices)
        return tuple(number for number, route in choices if self._made.keys() >= set(route.experts))

    def follow(self, denoiser: nn.Module) -> None:
        """Forget every expert if the base was changed since they were cut.

        Raises:
            UnsupportedError: experts cannot follow the change.
        """
        if self._base.follow(denoiser):
            self._made.clear()
            self._sources.clear()

    def get(self, choice: int, denoiser: nn.Module) -> Any:
        """The denoiser for a decision, cut from the base as last followed; ``denoiser`` itself for :data:`BASE`."""
        if choice == BASE:
            return denoiser
        manifest = self._bundle.manifest
        experts = [self._expert(number) for number in manifest.choices[choice].experts]
        return experts[0] if len(experts) == 1 else segmented(experts, manifest.segments, self._time)

    def _expert(self, number: int) -> Any:
        if number not in self._made:
            while len(self._made) >= self._capacity:
                self._made.popitem(last=False)
            self._made[number] = self._build(number)
        self._made.move_to_end(number)
        return self._made[number]

    def release(self) -> None:
        """Called after a run: forget what the residency does not keep."""
        if self._release:
            self._made.clear()
            self._sources.clear()

    def _build(self, number: int) -> Any:
        self.built += 1
        plain, structure = self._base.plain, self._base.structure
        kind = self._bundle.manifest.experts[number].weights
        if kind not in self._sources:
            self._sources[kind] = self._bundle.source(plain, structure, number)
        model = self._bundle.build(self._sources[kind], structure, number).train(plain.training)
        return torch.compile(model) if self._compiled else model
