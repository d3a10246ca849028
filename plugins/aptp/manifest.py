"""``aptp.json``: what a bundle says of itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hasten.extend import CheckpointError, Grain
from hasten.files import as_fields, read_json

__all__ = [
    "REMEDY",
    "SCHEMA",
    "BaseEntry",
    "ExpertEntry",
    "ExpertWeights",
    "GrainEntry",
    "Manifest",
    "RouteEntry",
    "RouterEntry",
    "SizeEntry",
    "config_digest",
    "file_digest",
]

SCHEMA = 1
MANIFEST = "aptp.json"
REMEDY = "get the bundle again"
_WHAT = "what the bundle says of itself"


ExpertWeights = Literal["slice", "lora", "shared", "full"]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BaseEntry(_Entry):
    """The model the experts are cut from.

    Args:
        name: what the maker loaded.
        denoiser: its class.
        config: digest of its architecture.
    """

    name: str
    denoiser: str
    config: str


class RouterEntry(_Entry):
    """How prompts become experts.

    Args:
        kind: ``"prototypes"``, or ``"codes"`` for an imported router of the paper.
        encoder: ``"pipeline"`` or ``"sentence"``.
        model: text encoder component, or sentence model.
    """

    kind: Literal["prototypes", "codes"]
    encoder: Literal["pipeline", "sentence"]
    model: str


class ExpertEntry(_Entry):
    """One expert.

    Args:
        weights: ``"slice"`` of the base, ``"lora"`` on the slice, ``"shared"`` (a slice of the base with the bundle's
            shared LoRA), or ``"full"``.
        macs_share: share of the base's multiply-accumulates at the bundle's size.
        macs: multiply-accumulates of a forward of one sample.
        parameters: of the pruned denoiser.
        traffic: share of the calibration prompts routed to it.
        time_share: share of the base's time that a latency table predicts, for budgets on time.
    """

    weights: ExpertWeights
    macs_share: float = Field(gt=0, le=1.0001)
    macs: float = Field(gt=0)
    parameters: int = Field(gt=0)
    traffic: float = Field(ge=0, le=1)
    time_share: float | None = None


class RouteEntry(_Entry):
    """What the router chooses between: an expert, or one for each timestep segment.

    Args:
        experts: number of the expert in each segment, noisiest first.
        macs_share: share of the base's multiply-accumulates, over a whole run.
        traffic: share of the calibration prompts that take it.
    """

    experts: tuple[int, ...] = Field(min_length=1)
    macs_share: float = Field(gt=0, le=1.0001)
    traffic: float = Field(ge=0, le=1)


class SizeEntry(_Entry):
    """Where costs were counted: latent extent and text tokens."""

    height: int = Field(ge=1)
    width: int = Field(ge=1)
    text: int = Field(ge=0)


class GrainEntry(_Entry):
    """See :class:`~hasten._adapters.units.Grain`."""

    ffn: int = 64
    ffn_units: int | None = None
    align: int = 8

    def grain(self) -> Grain:
        """As the scanners take it."""
        return Grain(self.ffn, self.ffn_units, self.align)


class Manifest(_Entry):
    """Everything but tensors and plans.

    Args:
        schema_version: of this file (``schema`` in the JSON).
        family: of the pipeline's adapter.
        base: the model the experts are cut from.
        grain: how fine units are.
        size: where costs were counted.
        router: how prompts are routed.
        experts: in order.
        segments: flow times at which routes change their expert, falling; none in most bundles.
        routes: with segments, what the router chooses between; else it chooses an expert.
        files: relative path -> SHA-256 of every other file.
        about: how it was made: command, data, licence, figures.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    schema_version: int = Field(SCHEMA, ge=1, le=SCHEMA, alias="schema")
    family: str
    base: BaseEntry
    grain: GrainEntry
    size: SizeEntry
    router: RouterEntry
    experts: tuple[ExpertEntry, ...] = Field(min_length=1)
    segments: tuple[float, ...] = ()
    routes: tuple[RouteEntry, ...] = ()
    files: dict[str, str]
    about: dict[str, Any] = {}

    @property
    def choices(self) -> tuple[RouteEntry, ...]:
        """What the router chooses between."""
        single = enumerate(self.experts)
        return self.routes or tuple(
            RouteEntry(experts=(i,), macs_share=e.macs_share, traffic=e.traffic) for i, e in single
        )

    @model_validator(mode="after")
    def _check_routes(self) -> Self:
        if list(self.segments) != sorted(set(self.segments), reverse=True) or bool(self.segments) != bool(
            self.routes
        ):
            raise ValueError(f"segments {list(self.segments)} must decrease, and need routes")
        for route in self.routes:
            if len(route.experts) != len(self.segments) + 1 or not set(route.experts) <= set(
                range(len(self.experts))
            ):
                raise ValueError(
                    f"route {list(route.experts)} does not name one of {len(self.experts)} experts for each of "
                    f"{len(self.segments) + 1} segments"
                )
        return self

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read ``aptp.json`` of a bundle's folder.

        Raises:
            CheckpointError: it is missing, malformed, or of a newer schema.
        """
        file = folder / MANIFEST
        if not file.exists():
            raise CheckpointError(
                f"no APTP bundle in {folder}: there is no {MANIFEST}; make one with `hasten aptp export`, or "
                f"import published checkpoints with `hasten aptp import`"
            )
        fields = read_json(file, _WHAT, REMEDY)
        version = fields.get("schema")
        if isinstance(version, int) and version > SCHEMA:
            raise CheckpointError(
                f"{file} has schema {version}, this hasten reads up to {SCHEMA}; upgrade hasten"
            )
        return as_fields(fields, cls, file, _WHAT, REMEDY)

    def write(self, folder: Path) -> None:
        """Write ``aptp.json``."""
        text = json.dumps(self.model_dump(mode="json", by_alias=True), indent=2)
        (folder / MANIFEST).write_text(text + "\n", "utf-8")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def config_digest(denoiser: Any) -> str:
    """Digest of what shapes a denoiser: its class and configuration, without names and versions."""
    config = {key: value for key, value in dict(denoiser.config).items() if not str(key).startswith("_")}
    text = json.dumps([type(denoiser).__name__, config], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
