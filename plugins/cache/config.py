"""Options of the technique ``cache``: one class for each kind of cache."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from hasten.extend import TechniqueConfig

if TYPE_CHECKING:
    from torch import nn

    from hasten.extend import CacheDefaults

__all__ = [
    "THRESHOLD",
    "CacheConfig",
    "FasterConfig",
    "FirstBlockConfig",
    "MagnitudeConfig",
    "PyramidConfig",
    "Situation",
    "TaylorSeerConfig",
    "TextKVConfig",
]

Count = Annotated[int, Field(ge=1)]
Level = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Threshold = Annotated[float, Field(ge=0.0)]
THRESHOLD = 0.05
"""diffusers' own, for families that nobody has measured."""
_MILLE = 1000
"""diffusers' caches count levels in thousandths, whatever the model's own unit."""


@dataclass(frozen=True)
class Situation:
    """What diffusers' configuration has to know of the model and of the call.

    Args:
        steps: denoising steps of the call.
        doubled: the batch holds both branches of guidance.
        latents: order of the latents' axes as diffusers names them (``"BCHW"``), ``None`` for packed tokens.
        nested: some of the denoiser's arguments are in a dictionary.
        timestep: returns the present level in thousandths.
        layers: names of the attention and feed-forward layers in the denoiser.
        batched: names of the denoiser's arguments that hold one row for each sample.
    """

    steps: int
    doubled: bool
    latents: str | None
    nested: bool
    timestep: Callable[[], float]
    layers: tuple[str, ...]
    batched: tuple[str, ...] = ()


class _Kind(TechniqueConfig):
    kind: str
    engine: ClassVar[tuple[str, str]]
    """Names of the configuration class and of the function that applies it, in ``diffusers.hooks``."""
    blocks: ClassVar[bool] = False
    """Whether it works on whole transformer blocks, which diffusers has to know."""

    def for_family(self, known: CacheDefaults | None) -> Self:  # noqa: ARG002
        """These options with what is known of the family in place of ``null``."""
        return self

    def options(self, situation: Situation) -> dict[str, Any]:  # noqa: ARG002
        """Arguments of diffusers' configuration class."""
        return self.model_dump(exclude={"kind"})

    def refusal(self, situation: Situation) -> str | None:  # noqa: ARG002
        """Why this kind cannot work there, ``None`` if it can."""
        return None

    def apply(self, model: nn.Module, situation: Situation) -> None:
        """Put diffusers' hooks on ``model``."""
        from diffusers import hooks

        config, function = self.engine
        logger = logging.getLogger("diffusers.hooks")
        level = logger.level
        logger.setLevel(
            logging.ERROR
        )  # FasterCache says at every run that it is experimental, as the page does
        try:
            getattr(hooks, function)(model, getattr(hooks, config)(**self.options(situation)))
        finally:
            logger.setLevel(level)


class FirstBlockConfig(_Kind):
    """Options of ``kind="first_block"``: skip the other blocks while the first one changes little."""

    engine = ("FirstBlockCacheConfig", "apply_first_block_cache")
    blocks = True
    kind: Literal["first_block"] = Field(
        "first_block", description="Skip all blocks after the first while that one's output changes little."
    )
    threshold: Threshold | None = Field(
        None,
        description="Relative change of the first block's residual below which the others are skipped. `null` is that "
        "of the family (FLUX.1 0.08, Mochi 0.035, CogVideoX and HunyuanVideo 0.025), else the 0.05 of diffusers.",
    )

    def for_family(self, known: CacheDefaults | None) -> Self:
        """With the threshold of the family."""
        if self.threshold is not None:
            return self
        return self.model_copy(update={"threshold": THRESHOLD if known is None else known.first_block})


class TaylorSeerConfig(_Kind):
    """Options of ``kind="taylorseer"``: extrapolate the layers' outputs (arXiv 2503.06923)."""

    engine = ("TaylorSeerCacheConfig", "apply_taylorseer_cache")
    kind: Literal["taylorseer"] = Field(
        description="Extrapolate the outputs of layers from earlier steps by a Taylor series."
    )
    interval: Count = Field(3, description="Every so many steps are computed in full.")
    warmup: Annotated[int, Field(ge=0)] = Field(3, description="First steps that are computed in full.")
    order: Annotated[int, Field(ge=0, le=4)] = Field(1, description="Highest order of the series.")
    layers: tuple[str, ...] | None = Field(
        None,
        description="Regular expressions for the names of the layers to extrapolate; `null` is every attention and "
        "feed-forward layer.",
    )
    lite: bool = Field(
        False,
        description="Extrapolate the denoiser's last layer alone and skip all blocks: cheaper, rougher.",
    )

    def options(self, situation: Situation) -> dict[str, Any]:
        """Layers by name: diffusers' own patterns miss those of several models."""
        layers = self.layers or [re.escape(name) for name in situation.layers]
        return {
            "cache_interval": self.interval,
            "disable_cache_before_step": self.warmup,
            "max_order": self.order,
            "taylor_factors_dtype": None,
            "use_lite_mode": self.lite,
            "cache_identifiers": None if self.lite else list(layers),
        }


class MagnitudeConfig(_Kind):
    """Options of ``kind="magnitude"`` (MagCache, arXiv 2506.09045): skip all blocks for a few steps."""

    engine = ("MagCacheConfig", "apply_mag_cache")
    blocks = True
    kind: Literal["magnitude"] = Field(
        description="Skip all blocks while the accumulated change of magnitude, known for the model, is small."
    )
    ratios: tuple[Positive, ...] | Literal["flux"] | None = Field(
        None,
        description="Ratio of magnitudes from step to step, measured for the model. `flux` are those of FLUX.1, and "
        "`null` those of the family, if diffusers has them.",
    )
    threshold: Threshold = Field(0.06, description="Accumulated error up to which steps are skipped.")
    longest: Annotated[int, Field(ge=0)] = Field(3, description="Most steps skipped in a row.")
    warmup: Level = Field(
        0.2, description="Share of the steps, from the first on, that are computed in full."
    )

    def for_family(self, known: CacheDefaults | None) -> Self:
        """With the ratios of the family."""
        if self.ratios is not None or known is None:
            return self
        return self.model_copy(update={"ratios": known.ratios})

    def refusal(self, situation: Situation) -> str | None:  # noqa: ARG002
        """Ratios of another model say nothing."""
        if self.ratios is None:
            return "nobody has measured the ratios of magnitudes of this family: set ratios to those of the model"
        return None

    def options(self, situation: Situation) -> dict[str, Any]:
        """With the ratios stretched over the steps of the call, which diffusers does."""
        from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

        return {
            "threshold": self.threshold,
            "max_skip_steps": self.longest,
            "retention_ratio": self.warmup,
            "num_inference_steps": situation.steps,
            "mag_ratios": FLUX_MAG_RATIOS if self.ratios == "flux" else list(self.ratios or ()),
        }


class _Levels(_Kind):
    """Kinds that reuse attention between two levels."""

    start: Level = Field(0.8, description="Highest level at which attention is reused (1 is pure noise).")
    stop: Level = Field(0.1, description="Lowest level at which attention is reused.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.start < self.stop:
            raise ValueError(f"start ({self.start}) must not be below stop ({self.stop})")
        return self

    def _range(self) -> tuple[float, float]:
        # diffusers asks for levels strictly inside.
        return self.stop * _MILLE - 0.5, self.start * _MILLE + 0.5


class PyramidConfig(_Levels):
    """Options of ``kind="pyramid"`` (Pyramid Attention Broadcast, arXiv 2408.12588)."""

    engine = ("PyramidAttentionBroadcastConfig", "apply_pyramid_attention_broadcast")
    kind: Literal["pyramid"] = Field(description="Reuse the outputs of attention layers for several steps.")
    spatial: Count = Field(2, description="Self-attention is computed every so many steps.")
    temporal: Count | None = Field(
        None, description="The same for attention over frames; `null` computes it always."
    )
    cross: Count | None = Field(
        None, description="The same for attention to the text; `null` computes it always."
    )

    def options(self, situation: Situation) -> dict[str, Any]:
        """The same range of levels for all three kinds of attention."""
        kinds = ("spatial", "temporal", "cross")
        ranges = {f"{kind}_attention_timestep_skip_range": self._range() for kind in kinds}
        counts = {f"{kind}_attention_block_skip_range": getattr(self, kind) for kind in kinds}
        return {**ranges, **counts, "current_timestep_callback": situation.timestep}


class FasterConfig(_Levels):
    """Options of ``kind="faster"`` (FasterCache, arXiv 2410.19355)."""

    engine = ("FasterCacheConfig", "apply_faster_cache")
    kind: Literal["faster"] = Field(
        description="Extrapolate attention, and the unconditional branch from the conditional one."
    )
    start: Level = Field(0.68, description="Highest level at which anything is reused (1 is pure noise).")
    stop: Level = Field(0.0, description="Lowest level at which anything is reused.")
    spatial: Count = Field(2, description="Self-attention is computed every so many steps.")
    unconditional: Count = Field(5, description="The unconditional branch is computed every so many steps.")
    weight: Threshold = Field(0.5, description="Weight of the extrapolated change of attention.")

    def options(self, situation: Situation) -> dict[str, Any]:
        """Attention is reused only in forwards without the unconditional branch, as diffusers has it."""
        return {
            "spatial_attention_block_skip_range": self.spatial,
            "spatial_attention_timestep_skip_range": self._range(),
            "unconditional_batch_skip_range": self.unconditional,
            "unconditional_batch_timestep_skip_range": self._range(),
            "attention_weight_callback": lambda _: self.weight,
            "tensor_format": situation.latents,
            "_unconditional_conditional_input_kwargs_identifiers": list(situation.batched),
            "current_timestep_callback": situation.timestep,
        }

    def refusal(self, situation: Situation) -> str | None:
        """It takes the two branches of guidance apart in one doubled batch of plain latents."""
        if situation.latents is None:
            return "it needs plain latents, and this family packs them into tokens"
        if situation.nested:
            return "it cannot divide the batch of arguments that are in a dictionary (added_cond_kwargs)"
        return None if situation.doubled else "it needs guidance with both branches in one batch"


class TextKVConfig(_Kind):
    """Options of ``kind="text_kv"``: keys and values of the text are computed once."""

    engine = ("TextKVCacheConfig", "apply_text_kv_cache")
    kind: Literal["text_kv"] = Field(
        description="Compute keys and values of the text once (NucleusMoE-Image)."
    )


CacheConfig = (
    FirstBlockConfig | TaylorSeerConfig | MagnitudeConfig | PyramidConfig | FasterConfig | TextKVConfig
)
"""Options of the technique ``cache``, which ``kind`` tells apart."""
