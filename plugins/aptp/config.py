"""Options of APTP."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hasten.extend import Between, TechniqueConfig

__all__ = ["AptpConfig"]


class AptpConfig(TechniqueConfig):
    """Options of the technique ``aptp``."""

    bundle: str | None = Field(
        None,
        description=("Folder made by `hasten aptp export`; `null` uses the bundle of the miniature."),
    )
    route: Literal["learned", "random", "static"] = Field(
        "learned",
        description=(
            '"learned" uses the router; "random" (chosen by a hash of the prompt, with the router\'s '
            'traffic shares) and "static" (always `expert`) are baselines.'
        ),
    )
    expert: Annotated[int, Field(ge=0)] | None = Field(
        None, description='For `route="static"`: number of the expert.'
    )
    policy: Literal["exact", "coalesce", "single"] = Field(
        "exact",
        description=(
            '"exact" runs every prompt on its own expert; "coalesce" moves small groups to a '
            'costlier expert that runs anyway; "single" runs the whole batch on the costliest expert '
            "that one of its prompts needs."
        ),
    )
    min_group: Annotated[int, Field(ge=1)] = Field(
        2, description='For "coalesce": groups below this many pictures may move.'
    )
    max_extra_cost: Annotated[float, Field(ge=0, le=1)] = Field(
        0.25, description='For "coalesce": at most this much more cost, as a share of the whole model\'s.'
    )
    fallback: bool = Field(
        True,
        description=(
            "Use the unpruned base for prompts unlike the calibration prompts: unfamiliar, empty or too long."
        ),
    )
    min_confidence: Annotated[float, Field(ge=0, le=1), Between(0.9, 0.0, dial=True)] = Field(
        0.0, description="Also use the base if the router's probability of its choice is lower."
    )
    residency: Literal["all", "lru", "slice_on_demand"] = Field(
        "all",
        description=(
            'Experts kept in memory: "all", the `resident` most recently used ("lru"), '
            'or none ("slice_on_demand").'
        ),
    )
    resident: Annotated[int, Field(ge=1)] = Field(2, description='For "lru": number of experts to keep.')
    base_check: Literal["weights", "config"] = Field(
        "weights",
        description=(
            '"weights" checks that the base has the weights the bundle was made for; "config" checks '
            "only the architecture, for a base with a fused LoRA."
        ),
    )
    compile: bool = Field(False, description="Compile every expert with `torch.compile`.")
    ranks: Literal["independent", "together"] = Field(
        "independent",
        description='"together" if several processes compute one call and have to use the same expert.',
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.route == "static" and self.expert is None:
            raise ValueError("route='static' needs expert=NUMBER")
        if self.route != "static" and self.expert is not None:
            raise ValueError(
                f"expert={self.expert} has no effect with route={self.route!r}; use route='static'"
            )
        return self
