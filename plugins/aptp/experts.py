"""Experts in memory: built when they are first needed, and kept as the option ``residency`` says."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn

from hasten.plugins.aptp.base_model import Base
from hasten.plugins.aptp.bundle import Bundle
from hasten.plugins.aptp.config import AptpConfig
from hasten.plugins.aptp.router import BASE
from hasten.plugins.aptp.timestep_segments import segmented

__all__ = ["Experts"]


class Experts:
    """The experts of a bundle.

    Args:
        bundle: their plans and tensors.
        base: the model they are cut from.
        config: how many are kept, and whether they are compiled.
        time: flow time of a forward from its arguments by name, for bundles with timestep segments.
    """

    def __init__(
        self, bundle: Bundle, base: Base, config: AptpConfig, time: Callable[[Mapping[str, Any]], float]
    ) -> None:
        self._bundle, self._base, self._compiled, self._time = bundle, base, config.compile, time
        capacities = {"all": len(bundle.experts), "lru": config.resident, "slice_on_demand": 1}
        self._capacity = capacities[config.residency]
        self._release = config.residency == "slice_on_demand"
        self._made: OrderedDict[int, nn.Module] = OrderedDict()
        self._sources: dict[str, nn.Module] = {}
        self.built = 0
        """Number of experts built so far."""

    @property
    def resident(self) -> tuple[int, ...]:
        """Numbers of the router's choices whose experts are all in memory."""
        choices = enumerate(self._bundle.manifest.choices)
        return tuple(number for number, route in choices if self._made.keys() >= set(route.experts))

    def follow(self, denoiser: nn.Module) -> None:
        """Drop every expert if the base was changed since they were cut.

        Raises:
            UnsupportedError: experts cannot be cut from the changed base.
        """
        if self._base.follow(denoiser):
            self._made.clear()
            self._sources.clear()

    def get(self, choice: int, denoiser: nn.Module) -> nn.Module:
        """The denoiser for a choice of the router; ``denoiser`` itself for :data:`BASE`."""
        if choice == BASE:
            return denoiser
        manifest = self._bundle.manifest
        experts = [self._expert(number) for number in manifest.choices[choice].experts]
        return experts[0] if len(experts) == 1 else segmented(experts, manifest.segments, self._time)

    def _expert(self, number: int) -> nn.Module:
        if number not in self._made:
            while len(self._made) >= self._capacity:
                self._made.popitem(last=False)
            self._made[number] = self._build(number)
        self._made.move_to_end(number)
        return self._made[number]

    def release(self) -> None:
        """Drop what is not kept between runs."""
        if self._release:
            self._made.clear()
            self._sources.clear()

    def _build(self, number: int) -> nn.Module:
        self.built += 1
        plain, structure = self._base.plain, self._base.structure
        kind = self._bundle.manifest.experts[number].weights
        if kind not in self._sources:
            self._sources[kind] = self._bundle.source(plain, structure, number)
        model = self._bundle.build(self._sources[kind], structure, number).train(plain.training)
        return cast("nn.Module", torch.compile(model)) if self._compiled else model
