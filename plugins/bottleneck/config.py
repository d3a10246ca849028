"""Options of Bottleneck Sampling: one class for each mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field, field_validator, model_validator

from hasten.extend import Between, Choices, TechniqueConfig

__all__ = ["BottleneckConfig", "ContinuousConfig", "Preset", "RestartConfig", "Scale", "Stage"]

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Pixels = Annotated[int, Field(ge=2)]
Scale = Fraction | tuple[Pixels, Pixels]
"""A low resolution: a share of both sides, or (height, width) in image pixels."""

Level = Annotated[float, Field(gt=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Preset = Literal["flux", "hunyuan-video"]
MinPixels = Annotated[
    Annotated[int, Field(ge=1)] | None,
    Field(
        description=(
            "Smallest low resolution in image pixels (height x width); `null` is a quarter of the model's native area."
        )
    ),
]


class ContinuousConfig(TechniqueConfig):
    """Options of ``mode="continuous"``.

    Noise levels are flow times of the full-resolution latents in [0, 1]: 1 is pure noise. Models with another
    schedule are measured on the same axis, by equal signal-to-noise ratio.
    """

    mode: Literal["continuous"] = Field(
        "continuous",
        description='"continuous" computes some steps at low resolution and stays on the full-resolution trajectory.',
    )
    scale: Annotated[Scale | tuple[Scale, ...], Choices(0.5, (0.25, 0.5))] = Field(
        0.5,
        description=(
            "Low resolution as a share of both sides or as (height, width) in pixels; a list of them, "
            "smallest first, switches several times."
        ),
    )
    high_first: Annotated[float, Field(ge=0.0, le=1.0), Choices(0.98, 1.0)] = Field(
        1.0, description="Steps above this noise level stay at full resolution."
    )
    low_until: Literal["auto"] | Level | tuple[Level, ...] = Field(
        "auto",
        description=(
            'Steps below this noise level stay at full resolution; "auto" computes it from `delta` and the spectrum of '
            "the model's latents; a list gives one level for each entry of `scale`."
        ),
    )
    delta: Annotated[Fraction, Between(0.02, 0.4, log=True, dial=True)] = Field(
        0.2, description='Relative error tolerated at the edge of the low band, for `low_until="auto"`.'
    )
    spectrum: tuple[Positive, Annotated[float, Field(ge=0.0)]] | None = Field(
        None, description="`(A, beta)` of the latents' power `A w^-beta` instead of the known one."
    )
    learn_spectrum: bool = Field(
        True,
        description=(
            'For `low_until="auto"` and an autoencoder of unknown spectrum: measure it in the first call, store it in '
            "the user's cache folder, and use it in later calls."
        ),
    )
    taper: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Cosine coefficients per axis that fade out at the edge of the low band, against ringing.",
    )
    control: Literal["low", "full"] = Field(
        "low",
        description=(
            'Where a ControlNet runs in low-resolution steps: "low" runs it at the low resolution too, "full" at full '
            "resolution and resizes its features."
        ),
    )
    respect_expert_boundary: bool = Field(
        True,
        description="For models with two denoisers: never run a denoiser below the lowest noise level of its training.",
    )
    min_pixels: MinPixels = None

    @property
    def scales(self) -> tuple[Scale, ...]:
        """The low resolutions, smallest first, also if ``scale`` is a single one."""
        one = isinstance(self.scale, float) or isinstance(self.scale[0], int)
        return cast("tuple[Scale, ...]", (self.scale,) if one else self.scale)

    @field_validator("scale", mode="before")
    @classmethod
    def _low_resolutions(cls, value: Any) -> Any:
        if not (_is_scale(value) or _several(value, _is_scale)):
            raise ValueError(f"must be {_A_SCALE}, or a list of these, not {value!r}")
        return value

    @field_validator("low_until", mode="before")
    @classmethod
    def _levels(cls, value: Any) -> Any:
        if not (value == "auto" or _is_level(value) or _several(value, _is_level)):
            raise ValueError(f"must be 'auto', a level in (0, 1], or a list of these, not {value!r}")
        return value

    @model_validator(mode="after")
    def _one_level_for_each_scale(self) -> Self:
        levels, scales = self.low_until, len(self.scales)
        if levels == "auto":
            return self
        if not isinstance(levels, tuple):
            if scales > 1:
                raise ValueError(
                    f"low_until={levels} is one level for {scales} entries of scale: give a list, or 'auto'"
                )
        elif len(levels) != scales:
            raise ValueError(f"low_until has {len(levels)} levels for {scales} entries of scale")
        elif list(levels) != sorted(set(levels), reverse=True):
            raise ValueError(
                f"low_until={list(levels)} must fall from entry to entry: levels fall during a run"
            )
        return self


class Stage(TechniqueConfig):
    """One stage of ``mode="restart"``."""

    steps: Annotated[int, Field(ge=1, le=1000)] = Field(
        description="Number of steps of the stage before `strength` shortens it."
    )
    scale: Literal[1] | Scale = Field(1, description="Resolution, `1` for full.")
    strength: Level = Field(1.0, description="Share of the steps to run, counted from the last step.")
    shift: Positive | None = Field(
        None,
        description=(
            "Timestep shift `s`; `null` keeps the signal-to-noise ratio of the pipeline's own "
            "schedule at full resolution (its own shift divided by the amplitude ratio)."
        ),
    )

    @field_validator("scale", mode="before")
    @classmethod
    def _one_scale(cls, value: Any) -> Any:
        if _is_number(value) and value == 1:
            return 1
        if not _is_scale(value):
            raise ValueError(f"must be 1, {_A_SCALE}, not {value!r}")
        return value

    @property
    def first(self) -> int:
        """Index of the first step that runs, as diffusers' image-to-image pipelines count."""
        return int(self.steps - min(self.steps * self.strength, self.steps))


class RestartConfig(TechniqueConfig):
    """Options of ``mode="restart"``."""

    mode: Literal["restart"] = Field(description='"restart" is the paper\'s chain of high, low, high stages.')
    stages: tuple[Stage, ...] | None = Field(
        None, description="Stages of the restart, first and last at full resolution."
    )
    preset: Preset | None = Field(
        None,
        description="The paper's stages, instead of `stages`; `null` selects those of the pipeline's model.",
    )
    resize: Literal["nearest", "bilinear", "bicubic", "lanczos"] = Field(
        "lanczos", description="How clean latents are resized between stages."
    )
    mix: Literal["sigma", "strength"] = Field(
        "sigma",
        description=(
            "Weight of the re-introduced noise: the level the stage starts at, or its raw `strength` "
            "(for comparison only; the state then has less noise than the model is told)."
        ),
    )
    switch: Literal["clean", "x0"] = Field(
        "clean",
        description=(
            'A stage runs to its end ("clean"), or stops at the start level of the next stage and passes on '
            'its estimate of the clean latents ("x0").'
        ),
    )
    noise: Literal["shared", "fresh"] = Field(
        "fresh",
        description="Re-introduce independent noise at each switch, or one field shared by all of them.",
    )
    seed: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Seed of the re-introduced noise; `null` draws from the pipeline call's generator."
    )
    min_pixels: MinPixels = None

    @model_validator(mode="after")
    def _possible_stages(self) -> Self:
        if self.stages is None:
            return self
        if self.preset is not None:
            raise ValueError("stages and preset exclude each other: remove one")
        if len(self.stages) < 2:
            raise ValueError(f"stages has {len(self.stages)} entry, a restart needs at least 2")
        for place, stage in ((0, self.stages[0]), (len(self.stages) - 1, self.stages[-1])):
            if stage.scale != 1:
                raise ValueError(
                    f"stages.{place}.scale={stage.scale}: the first and the last stage run at full resolution (1)"
                )
        return self


BottleneckConfig = ContinuousConfig | RestartConfig
"""Options of the technique ``bottleneck``, selected by ``mode``."""

_A_SCALE = "a share of both sides between 0 and 1, or [height, width] in pixels"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_scale(value: Any) -> bool:
    if _is_number(value):
        return bool(0.0 < value < 1.0)
    pair = isinstance(value, (list, tuple)) and len(value) == 2
    return pair and all(isinstance(side, int) and not isinstance(side, bool) and side >= 2 for side in value)


def _is_level(value: Any) -> bool:
    return _is_number(value) and bool(0.0 < value <= 1.0)


def _several(value: Any, is_one: Callable[[Any], bool]) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(map(is_one, value))
