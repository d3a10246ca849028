"""Calibration of heads: a cache that records attention statistics, and the resulting artefact."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor

from hasten import weights
from hasten.extend import CheckpointError, Pipeline
from hasten.files import as_fields, read_json
from hasten.pipelines.var.cache import DenseKVCache
from hasten.plugins.hack.math import (
    HeadStatistics,
    attention_statistics,
    evenly_spaced,
    scale_mass,
    subset_attention,
)
from hasten.schedules.scales import Schedule

__all__ = ["Artefact", "CalibratingCache", "calibrate", "calibration_call", "fingerprint", "read_artefact"]

_SCHEMA = 1
_QUERIES = 256
_WHAT = "the calibration"
_REMEDY = "it is not a file of `hasten calibrate`; create one with that command"
_Row = Annotated[tuple[float, ...], Field(min_length=1)]
_Rows = Annotated[tuple[_Row, ...], Field(min_length=1)]


class _Fields(BaseModel):
    """The JSON of an :class:`Artefact`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    schema_version: int = Field(alias="schema", ge=_SCHEMA, le=_SCHEMA)
    model: str
    schedule: Annotated[tuple[tuple[PositiveInt, PositiveInt], ...], Field(min_length=1)]
    samples: PositiveInt
    sigma: _Rows
    ratio: _Rows
    focus: _Rows
    mass: tuple[tuple[tuple[_Row, ...], ...], ...]


def fingerprint(pipe: Pipeline) -> str:
    """A digest of a pipeline's transformer: its configuration, dtype, and some of its weights."""
    model = pipe.transformer
    return weights.fingerprint(model.config, [model.blocks[i].attn.to_q.weight for i in (0, -1)])


@dataclass(frozen=True)
class Artefact:
    """Result of a calibration.

    Args:
        model: :func:`fingerprint` of the pipeline it was made with.
        schedule: token grids of the generations.
        samples: pictures watched.
        statistics: of attention at the last scale, each (layers, heads).
        mass: mean attention (layers, heads, scales, scales) that a scale pays to each scale up to itself.
    """

    model: str
    schedule: Schedule
    samples: int
    statistics: HeadStatistics
    mass: Tensor

    def check(self, pipe: Pipeline, schedule: Schedule, source: str) -> None:
        """Check that the artefact matches the pipeline and the schedule.

        Raises:
            CheckpointError: the model, its dtype, or the schedule is another.
        """
        if self.model != fingerprint(pipe):
            raise CheckpointError(
                f"{source} was calibrated on another model (or in another dtype); make one for this pipeline with "
                "`hasten calibrate`"
            )
        config = pipe.transformer.config
        heads = (config["num_layers"], config["num_heads"])
        if tuple(self.statistics.sigma.shape) != heads:
            found = tuple(self.statistics.sigma.shape)
            raise CheckpointError(f"{source} has {found} layers and heads, the model has {heads}; {_REMEDY}")
        if self.schedule != schedule:
            raise CheckpointError(
                f"{source} was calibrated on the scales {_text(self.schedule)}, this call has {_text(schedule)}; "
                "calibrate at this size"
            )

    def write(self, path: Path) -> None:
        """Save as JSON."""
        content = {
            "schema": _SCHEMA,
            "model": self.model,
            "schedule": self.schedule,
            "samples": self.samples,
            **{name: _rounded(values) for name, values in self.statistics._asdict().items()},
            "mass": _rounded(self.mass),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), "utf-8")


def read_artefact(path: str | Path) -> Artefact:
    """The artefact of a file.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = Path(path)
    content = read_json(path, _WHAT, _REMEDY)
    version = content.get("schema")
    if type(version) is int and version > _SCHEMA:
        raise CheckpointError(f"{path} has schema {version}, this version reads {_SCHEMA}")
    fields = as_fields(content, _Fields, path, _WHAT, _REMEDY)
    scales = len(fields.schedule)
    heads = (len(fields.sigma), len(fields.sigma[0]))
    tables = {name: _table(path, name, getattr(fields, name), heads) for name in HeadStatistics._fields}
    mass = _table(path, "mass", fields.mass, (*heads, scales, scales))
    return Artefact(fields.model, fields.schedule, fields.samples, HeadStatistics(**tables), mass)


def _table(path: Path, name: str, rows: Sequence[Any], shape: tuple[int, ...]) -> Tensor:
    try:
        table = torch.tensor(rows)
    except ValueError as error:  # rows of different length
        raise CheckpointError(f"{path}: {name} is not a table: {error}; {_REMEDY}") from error
    if tuple(table.shape) != shape:
        raise CheckpointError(
            f"{path}: {name} has shape {tuple(table.shape)} where {shape} is expected; {_REMEDY}"
        )
    return table


class CalibratingCache(DenseKVCache):
    """The dense cache, watching the attention of the conditional rows.

    Args:
        pictures: rows that are conditional; they come first.
    """

    def __init__(self, pictures: int) -> None:
        super().__init__()
        self._pictures = pictures
        self._mass: dict[tuple[int, int], Tensor] = {}
        self._statistics: dict[int, HeadStatistics] = {}

    def attend(self, layer: int, scale: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See :meth:`KVCache.attend`."""
        past = self.ends[scale - 1] if scale else 0
        before = self._keys[layer][: self._pictures, :, :past] if past else key[: self._pictures, :, :0]
        keys = torch.cat([before, key[: self._pictures]], dim=2)
        rows = evenly_spaced(query.shape[2], _QUERIES, query.device)
        attention = subset_attention(query[: self._pictures], keys, rows)
        self._mass[layer, scale] = scale_mass(attention, self.ends[: scale + 1]).cpu()
        if self.is_last(scale):
            found = attention_statistics(attention)
            self._statistics[layer] = HeadStatistics(*(values.cpu() for values in found))
        return super().attend(layer, scale, query, key, value)

    def artefact(self, pipe: Pipeline) -> Artefact:
        """Statistics of the last generation."""
        layers, scales = len(self._statistics), len(self.schedule)
        heads = len(self._statistics[0].sigma)
        mass = torch.zeros(layers, heads, scales, scales)
        for (layer, scale), row in self._mass.items():
            mass[layer, :, scale, : scale + 1] = row
        rows = zip(*(self._statistics[layer] for layer in range(layers)))
        statistics = HeadStatistics(*(torch.stack(row) for row in rows))
        return Artefact(fingerprint(pipe), self.schedule, self._pictures, statistics, mass)


def _rounded(values: Tensor) -> Any:
    return [_rounded(row) for row in values] if values.ndim else float(f"{float(values):.7g}")


def _text(schedule: Schedule) -> str:
    return " ".join(f"{rows}x{columns}" for rows, columns in schedule)


def calibration_call(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Changes to a call's arguments that make it one picture, from a generator of its own, not decoded."""
    changes: dict[str, Any] = {
        "num_images_per_prompt": 1,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "latent",
        "callback_on_scale_end": None,
    }
    for name in ("prompt", "negative_prompt", "class_labels", "prompt_embeds", "prompt_mask"):
        value = arguments.get(name)
        if value is not None and not isinstance(value, (str, int)) and getattr(value, "ndim", True):
            changes[name] = value[:1]
    return changes


def calibrate(pipe: Any, call: Mapping[str, Any], seed: int = 0) -> Artefact:
    """Record one generation of all prompts or labels of ``call``.

    Raises:
        UnsupportedError: the pipeline does not generate scale by scale.
    """
    from hasten.extend import ScaleSchedule, Target

    Target.of(pipe).capability(ScaleSchedule)
    given = call.get("prompt") if call.get("prompt") is not None else call.get("class_labels")
    count = 1 if isinstance(given, (str, int)) else len(given)  # type: ignore[arg-type]
    cache = CalibratingCache(count)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(count)]
    pipe(**{**call, "generator": generators, "output_type": "latent", "kv_cache": cache})
    return cache.artefact(pipe)
