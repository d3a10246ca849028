"""Options of Re-ttention."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from hasten.extend import Between, Choices, TechniqueConfig
from hasten.plugins.rettention.kernels import KernelName
from hasten.plugins.rettention.masks import MaskMode

__all__ = ["CacheType", "RettentionConfig"]

Count = Annotated[int, Field(ge=1)]
CacheType = Literal["auto", "float32", "bfloat16", "float16", "float8"]
_RHO = ("ramp", "clamp_rho", "ramp_text")
_CACHE = ("cache_dtype", "cache_budget", "offload", "drift")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


class RettentionConfig(TechniqueConfig):
    """Options of the technique ``rettention``."""

    keep_ratio: Annotated[float, Field(gt=0.0, le=1.0), Between(0.25, 0.03125, log=True, dial=True)] = Field(
        0.0625,
        description=(
            "Nominal share of the picture's keys that a query keeps in a sparse step. The plan and the "
            "report show the exact share of the score matrix, including text."
        ),
    )
    mask: MaskMode = Field(
        "block",
        description=(
            '"block": the queries of a tile share one window that contains the paper\'s band; '
            '"block_exact_budget" the same with a window of exactly `keep_ratio`; "reference" the '
            'paper\'s band, token by token; "tile2d" and "tile3d" square tiles with square windows in '
            "space, or in space and time."
        ),
    )
    tile: Literal["auto"] | Count | tuple[Count, Count] | tuple[Count, Count, Count] = Field(
        "auto",
        description=(
            'Queries that share a window: positions for bands, sides for tiles; "auto" is the largest that '
            "keeps at most 1.5 times the nominal share of the pairs of picture tokens."
        ),
    )
    warmup: Annotated[
        Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0.0, le=1.0)] | None, Choices(0.3, 0.2, 0.1)
    ] = Field(
        None,
        description=(
            "Leading dense steps, or their share of the run; `null` is the published share of the "
            "family (PixArt 0.25, Hunyuan-DiT 0.2, CogVideoX 0.3), 0.3 for other videos and 0.25 for "
            "other pictures."
        ),
    )
    period: Annotated[Count, Choices(3, 5, 8)] = Field(
        5, description="Interval of the dense steps that refresh the statistics."
    )
    refresh: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="Steps that refresh the statistics, instead of `period`."
    )
    ramp: Annotated[float, Field(ge=0.0, le=1.0)] | Literal["measured"] = Field(
        0.04,
        description=(
            "Added to `rho` after every sparse step since the last refresh; 0.04 in the paper. "
            '"measured" rescales `rho` to the value measured on sampled queries.'
        ),
    )
    clamp_rho: bool = Field(False, description="Keep the ramped `rho` at or below 1.")
    correction: Literal["full", "residual", "none"] = Field(
        "full",
        description=(
            '"full" is Re-ttention; "residual" leaves `rho` at 1 (as DiTFastAttn does), "none" is '
            "windowed attention alone. Both are for comparison."
        ),
    )
    ramp_text: bool = Field(
        False, description="Also ramp the text rows, as in the released code, although they are exact."
    )
    layers: tuple[str, ...] | None = Field(
        None,
        description=(
            "Names of layers, or patterns with `*`, that become sparse; `null` is every self-attention."
        ),
    )
    min_tokens: Annotated[int, Field(ge=1)] = Field(
        256, description="Self-attention with fewer picture tokens stays dense."
    )
    drift: Annotated[float, Field(gt=0.0)] | None = Field(
        None,
        description=(
            "Refresh a layer when the relative error of sampled queries exceeds this. `period` then "
            "is the longest time without a refresh."
        ),
    )
    samples: Count = Field(
        32,
        description=(
            'Queries per head that `drift` and `ramp="measured"` compute exactly; refused without them.'
        ),
    )
    cache_dtype: CacheType = Field(
        "auto", description='Type of the cached residuals; "auto" is that of the model.'
    )
    cache_budget: int | str | None = Field(
        None,
        description=(
            'Memory limit for the statistics, in bytes or as "4GB"; layers that don\'t fit stay '
            "dense. `null` requires memory for all layers. An error is raised if more branches than "
            "expected from the guidance exceed the limit."
        ),
    )
    offload: bool = Field(
        False, description="Keep residuals in pinned host memory and fetch each one layer ahead."
    )
    kernel: KernelName | Literal["auto"] = Field(
        "auto",
        description='Implementation of sparse steps; the plan and the report show the choice of "auto".',
    )

    @field_validator("cache_budget")
    @classmethod
    def _bytes(cls, value: Any) -> Any:
        if value is not None and _parse_bytes(value) is None:
            raise ValueError(f"must be a number of bytes above 0, or one with KB, MB or GB, not {value!r}")
        return value

    @property
    def budget(self) -> int | None:
        """``cache_budget`` in bytes."""
        return None if self.cache_budget is None else _parse_bytes(self.cache_budget)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.refresh is not None and self.period != type(self).model_fields["period"].default:
            raise ValueError("refresh and period exclude each other: remove one")
        if self.refresh is not None and self.drift is not None:
            raise ValueError("refresh lists fixed steps and drift chooses them: remove one")
        if self.layers is not None and not self.layers:
            raise ValueError("layers is empty: name one, or remove it")
        without = {"full": (), "residual": _RHO, "none": (*_RHO, *_CACHE)}[self.correction]
        for name in without:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with correction={self.correction!r}: remove it")
        if self.ramp == "measured" and (self.clamp_rho or self.ramp_text):
            name = "clamp_rho" if self.clamp_rho else "ramp_text"
            raise ValueError(f"{name} has no effect with ramp='measured', which uses no ramp: remove it")
        sampled = self.drift is not None or self.ramp == "measured"
        if not sampled and self.samples != type(self).model_fields["samples"].default:
            raise ValueError("samples has no effect without drift or ramp='measured': remove it")
        return self


def _parse_bytes(value: int | str) -> int | None:
    if isinstance(value, int):
        return value if value > 0 else None
    text = value.strip().upper()
    unit = next((unit for unit in _UNITS if text.endswith(unit)), None)
    if unit is None:
        return None
    try:
        number = float(text.removesuffix(unit))
    except ValueError:
        return None
    return int(number * _UNITS[unit]) if 0 < number < float("inf") else None
