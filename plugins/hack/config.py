"""Options of HACK."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hasten.extend import Between, TechniqueConfig
from hasten.schedules.kv_budget import MINIMUM

__all__ = ["HackConfig", "Policy"]

Policy = Literal["hack", "hack_plus", "scale_static", "local_scales", "streaming", "snapkv", "h2o"]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1)]


class HackConfig(TechniqueConfig):
    """Options of the technique ``hack``."""

    ratio: Annotated[Share, Between(0.3, 0.9, dial=True)] = Field(
        0.7,
        description=(
            "Share `rho` of all `T_K` tokens (including the last scale) that is removed, on average over "
            "heads; 0 gives stock output."
        ),
    )
    budget_tokens: Annotated[int, Field(ge=MINIMUM)] | None = Field(
        None, description="Mean number of tokens that a head keeps, instead of `ratio`."
    )
    policy: Policy = Field(
        "hack",
        description=(
            "Tokens to keep: `hack`, `hack_plus` (separate budgets for attention and cache), `scale_static` "
            "(whole scales per head, chosen by the calibration; the budget is that of the cache), "
            "`local_scales` (the first scales and as many recent ones as fit), or a baseline: "
            "`streaming`, `snapkv`, `h2o`."
        ),
    )
    budgets: Literal["asymmetric", "uniform"] = Field(
        "asymmetric",
        description="`asymmetric` gives structural heads more tokens than contextual ones, `uniform` the same number.",
    )
    alpha: Literal["auto"] | Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        "auto",
        description=(
            'Share of the heads that are contextual; "auto": those whose queries attend to the same few keys.'
        ),
    )
    contextual_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.10, description="Upper bound of a contextual budget, as a share of `T_K`."
    )
    initial_scales: Count = Field(2, description="First scales that structural heads always keep.")
    queries: Count = Field(32, description="Number of evenly spaced queries per scale that score the keys.")
    merge: Literal["off", "last"] = Field(
        "off",
        description='"last": at the last scale, contextual heads merge dropped tokens into kept ones.',
    )
    cache_ratio: Share | None = Field(
        None,
        description=(
            "For `hack_plus`: share of `T_K` that is not kept for later scales; `ratio` then applies to the "
            "attention only."
        ),
    )
    local_window: Count | None = Field(
        None, description="For `local_scales`: maximum number of recent scales to keep."
    )
    calibration: str | None = Field(
        None,
        description=(
            "File written by `hasten calibrate`; without one, a calibration call runs before the first call."
        ),
    )
    grouping: Literal["index", "permute"] = Field(
        "index",
        description="`index` selects heads at run time, `permute` reorders the weights of the attention once.",
    )
    kv_bits: Literal[8, 16] = Field(16, description="8 keeps keys and values in one byte each.")
    unguided_last_scales: Annotated[int, Field(ge=0)] = Field(
        0, description="Number of last scales that run without guidance and without the unconditional half."
    )
    deterministic: bool = Field(
        False, description="Break ties between equal scores by position on every device."
    )

    @property
    def compresses(self) -> bool:
        """Whether the cache differs from the pipeline's own."""
        return self.ratio > 0 or self.budget_tokens is not None or self.kv_bits == 8

    @property
    def needs_calibration(self) -> bool:
        """Whether head types are needed."""
        return self.compresses and self.policy in ("hack", "hack_plus", "scale_static")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.cache_ratio is not None and self.policy != "hack_plus":
            raise ValueError(
                f"cache_ratio has no effect with policy={self.policy!r}: remove it, or use hack_plus"
            )
        if self.cache_ratio is not None and self.cache_ratio < self.ratio:
            raise ValueError(
                f"cache_ratio={self.cache_ratio} keeps more than the attention reads (ratio={self.ratio})"
            )
        if self.merge == "last" and self.policy != "hack":
            raise ValueError("merge works with policy='hack' only")
        return self
