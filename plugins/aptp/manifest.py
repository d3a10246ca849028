"""``aptp.json``, the manifest of a bundle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hasten.extend import CheckpointError, Grain, LatentSize
from hasten.files import as_fields, read_json

if TYPE_CHECKING:
    from torch import nn

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
_WHAT = "the manifest of the bundle"


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

    @classmethod
    def of(cls, denoiser: nn.Module, name: str) -> Self:
        """The entry of a denoiser."""
        return cls(name=name, denoiser=type(denoiser).__name__, config=config_digest(denoiser))


class RouterEntry(_Entry):
    """How prompts are routed to experts.

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
        macs_share: share of the base's multiply-accumulates at the bundle's size, in (0, 1].
        macs: multiply-accumulates of a forward of one sample.
        parameters: number of parameters of the pruned denoiser.
        traffic: share of the calibration prompts routed to it, in [0, 1].
        time_share: share of the base's time by the latency table, if budgets were shares of time.
    """

    weights: ExpertWeights
    macs_share: float = Field(gt=0, le=1.0001)
    macs: float = Field(gt=0)
    parameters: int = Field(gt=0)
    traffic: float = Field(ge=0, le=1)
    time_share: float | None = None


class RouteEntry(_Entry):
    """One choice of the router: an expert, or one for each timestep segment.

    Args:
        experts: number of the expert in each segment, noisiest first.
        macs_share: share of the base's multiply-accumulates over a whole run, in (0, 1].
        traffic: share of the calibration prompts routed to it, in [0, 1].
    """

    experts: tuple[int, ...] = Field(min_length=1)
    macs_share: float = Field(gt=0, le=1.0001)
    traffic: float = Field(ge=0, le=1)


class SizeEntry(_Entry):
    """Where costs were counted: latent extent and text tokens."""

    height: int = Field(ge=1)
    width: int = Field(ge=1)
    text: int = Field(ge=0)

    @classmethod
    def of(cls, size: LatentSize, text: int) -> Self:
        """The entry of a size."""
        return cls(height=size.height, width=size.width, text=text)

    @property
    def latents(self) -> LatentSize:
        """The latent extent."""
        return LatentSize(self.height, self.width)


class GrainEntry(_Entry):
    """Size of the units; see :class:`hasten.extend.Grain`."""

    ffn: int = 64
    ffn_units: int | None = None
    align: int = 8

    def grain(self) -> Grain:
        """The host's object."""
        return Grain(self.ffn, self.ffn_units, self.align)


class Manifest(_Entry):
    """Everything in a bundle except tensors and plans.

    Args:
        schema_version: version of this format (``schema`` in the JSON).
        family: family of the pipeline's adapter.
        base: the model the experts are cut from.
        grain: size of the units.
        size: latent extent and text tokens at which costs were counted.
        router: how prompts are routed.
        experts: in the order of their numbers.
        segments: descending flow times at which the expert changes; empty in most bundles.
        routes: what the router chooses between, if there are segments.
        files: relative path -> SHA-256 of every other file.
        about: how the bundle was made: command, data, licence, figures.
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
        """What the router chooses between: the routes, or the experts if there are none."""
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
    """SHA-256 of a denoiser's class and configuration, without names and versions, as hexadecimal digits."""
    config = {key: value for key, value in dict(denoiser.config).items() if not str(key).startswith("_")}
    text = json.dumps([type(denoiser).__name__, config], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
