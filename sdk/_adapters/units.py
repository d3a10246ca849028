"""Units of a denoiser that can be removed: heads, feed-forward channels, norm groups of resnets, whole blocks.

One rule for all of them: a unit is defined by input columns of the layer that consumes it. Zeroing those columns and
deleting them, with the rows that produce them, are the same function, whatever norm, activation or bias lies between.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hasten._adapters.base import LatentSize

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "BlockUnit",
    "Cut",
    "Grain",
    "PrunableUnits",
    "Structure",
    "UnitGroup",
]

Kind = Literal["heads", "ffn", "resnet"]


@dataclass(frozen=True)
class Cut:
    """Channels of one layer that belong to the units of a group.

    Unit ``u`` owns channels ``offset + u * size`` to ``offset + (u + 1) * size``.

    Args:
        module: path of the layer (linear, convolution or group norm) from the denoiser.
        axis: ``"out"`` for rows of its weight (it produces the units), ``"in"`` for columns (it consumes them).
        size: channels of a unit.
        offset: channel of the first unit.
        parameter: what is cut: the layer's weight (and bias), or a bare vector of the module by its name.
    """

    module: str
    axis: Literal["out", "in"]
    size: int
    offset: int = 0
    parameter: str = "weight"


@dataclass(frozen=True)
class UnitGroup:
    """Equal units that are kept or removed one by one.

    Args:
        id: module path and kind (``"mid_block.resnets.0:resnet"``).
        kind: heads, ffn or resnet.
        units: how many.
        cuts: every layer they touch.
        step: the number kept must be a multiple of it, so that widths suit the kernels.
        attributes: (module path, attribute, value for each kept unit) that follow the number kept.
        refusal: why nothing may be removed here, ``None`` if it may.
    """

    id: str
    kind: Kind
    units: int
    cuts: tuple[Cut, ...]
    step: int = 1
    attributes: tuple[tuple[str, str, int], ...] = ()
    refusal: str | None = None

    @property
    def owner(self) -> str:
        """Path of the module that holds the units."""
        return self.id.rpartition(":")[0]

    @property
    def consumers(self) -> tuple[Cut, ...]:
        """Where the units are read."""
        return tuple(cut for cut in self.cuts if cut.axis == "in")


@dataclass(frozen=True)
class BlockUnit:
    """A whole module that can be replaced by a placeholder.

    Args:
        id: path of the module.
        placeholder: makes the stand-in from the module.
        refusal: why it cannot be dropped, ``None`` if it can.
    """

    id: str
    placeholder: Callable[[nn.Module], nn.Module]
    refusal: str | None = None


@dataclass(frozen=True)
class Grain:
    """How fine units are.

    Args:
        ffn: channels of a feed-forward unit at most (the largest divisor of the width is taken).
        ffn_units: units of every feed-forward layer instead, as in the published checkpoints (32).
        align: the kept width of a resnet is a multiple of so many channels.
    """

    ffn: int = 64
    ffn_units: int | None = None
    align: int = 8

    def ffn_size(self, inner: int) -> int:
        """Channels of a unit of a feed-forward layer ``inner`` wide."""
        if self.ffn_units is not None and inner % self.ffn_units == 0:
            return inner // self.ffn_units
        return max(size for size in range(1, min(self.ffn, inner) + 1) if inner % size == 0)

    def resnet_step(self, units: int, size: int) -> int:
        """Norm groups of ``size`` channels that are removed together."""
        fitting = (
            step for step in range(1, units + 1) if units % step == 0 and step * size % self.align == 0
        )
        return next(fitting, units)


@dataclass(frozen=True)
class Structure:
    """Everything that can be removed from one denoiser, in the order of its modules."""

    groups: Mapping[str, UnitGroup]
    blocks: Mapping[str, BlockUnit]
    grain: Grain

    def inside(self, block: str) -> tuple[UnitGroup, ...]:
        """The groups that vanish with a block."""
        return tuple(g for g in self.groups.values() if g.owner == block or g.owner.startswith(f"{block}."))


class PrunableUnits(ABC):
    """What can be removed from the denoisers of one family."""

    @abstractmethod
    def structure(self, denoiser: nn.Module, grain: Grain) -> Structure:
        """The units of a live denoiser.

        Raises:
            UnsupportedError: its layers are quantised, fused, or wrapped by an adapter.
        """

    @abstractmethod
    def inputs(self, denoiser: Any, size: LatentSize, text: int, batch: int = 1) -> dict[str, Any]:
        """Arguments of :meth:`forward` on latents of ``size`` with ``text`` text tokens, on the denoiser's device."""

    def forward(self, denoiser: Any, inputs: Mapping[str, Any]) -> Tensor:
        """What the denoiser predicts: one forward, or all those that make one picture where they differ in size."""
        prediction: Tensor = denoiser(**inputs, return_dict=False)[0]
        return prediction
