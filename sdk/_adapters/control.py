"""Control networks: ControlNets and their kin, which a pipeline runs on the latents of every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from hasten._adapters.base import LatentSize
from hasten._adapters.conditions import Channels, resize_mask
from hasten._pipeline import Pipeline
from hasten.schedules.noise import NoiseLevel

if TYPE_CHECKING:
    from torch import Tensor

    from hasten._adapters.layouts import ImageLayout

__all__ = ["ControlNetwork"]


class ControlNetwork:
    """A network that runs before the denoiser, on the same latents, and whose features the denoiser is given.

    Its latents, timestep and positions are arguments of the same names as the denoiser's, except where the class says
    otherwise. Several networks in one module (``MultiControlNetModel``) are one network whose conditions are lists.
    All methods are pure; ``kwargs`` are the arguments of one forward of the network, by name.
    """

    module: ClassVar[str] = "controlnet"
    """Pipeline attribute."""
    latents: ClassVar[str | None] = None
    """Name of the argument with the latents, ``None`` for the denoiser's."""
    conditions: ClassVar[tuple[str, ...]] = ("controlnet_cond",)
    """Names of the arguments with condition pictures, in pixels, latent pixels or tokens."""
    masks: ClassVar[tuple[str, ...]] = ()
    """Names of the arguments with masks."""

    def channels(self, pipe: Pipeline, count: int) -> Channels:  # noqa: ARG002
        """Which of the ``count`` channels of an unpacked condition are masks; none is noisy."""
        return Channels(slice(0, 0))

    def decode(self, layout: ImageLayout, pipe: Pipeline, kwargs: Mapping[str, Any]) -> Tensor:
        """The noisy latents (B, C, [F,] H, W)."""
        return layout.decode(pipe, self._as_denoiser(layout, kwargs))

    def size(self, layout: ImageLayout, pipe: Pipeline, kwargs: Mapping[str, Any]) -> LatentSize:
        """Extent of the latents."""
        return layout.size(pipe, self._as_denoiser(layout, kwargs))

    def level(self, layout: ImageLayout, pipe: Pipeline, kwargs: Mapping[str, Any]) -> NoiseLevel:
        """Noise level of the forward."""
        return layout.level(pipe, self._as_denoiser(layout, kwargs))

    def encode(
        self,
        layout: ImageLayout,
        pipe: Pipeline,
        kwargs: Mapping[str, Any],
        latent: Tensor,
        level: NoiseLevel,
    ) -> dict[str, Any]:
        """Arguments of a forward on ``latent`` at ``level``; conditions stay, see :meth:`resized_conditions`."""
        encoded = layout.encode(pipe, self._as_denoiser(layout, kwargs), latent, level)
        name = self.latents or layout.latents
        return {key: encoded[layout.latents if key == name else key] for key in kwargs}

    def resized_conditions(
        self, layout: ImageLayout, pipe: Pipeline, kwargs: Mapping[str, Any], size: LatentSize
    ) -> dict[str, Any]:
        """The conditions and masks of ``kwargs`` for latents of ``size``."""
        before = self.size(layout, pipe, kwargs)

        def condition(given: Any) -> Any:
            if isinstance(given, (list, tuple)):
                return type(given)(condition(each) for each in given)
            if not isinstance(given, torch.Tensor):
                return given
            if given.ndim >= 4:
                return self.channels(pipe, given.shape[1]).fitted(given, _scaled(given, before, size))
            maps = layout.unpack(pipe, self._as_denoiser(layout, kwargs), given)
            return layout.arrange(
                self.channels(pipe, maps.shape[1]).fitted(maps, _scaled(maps, before, size))
            )

        resized = {name: condition(kwargs[name]) for name in self.conditions if name in kwargs}
        for name in self.masks:
            if kwargs.get(name) is not None:
                resized[name] = resize_mask(kwargs[name], _scaled(kwargs[name], before, size))
        return resized

    def _as_denoiser(self, layout: ImageLayout, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {**kwargs, layout.latents: kwargs[self.latents or layout.latents]}


def _scaled(given: Tensor, before: LatentSize, after: LatentSize) -> LatentSize:
    """The extent of ``given``, which lies over latents of ``before``, over latents of ``after``."""
    height, width = given.shape[-2:]
    return LatentSize(
        max(round(height * after.height / before.height), 1),
        max(round(width * after.width / before.width), 1),
    )
