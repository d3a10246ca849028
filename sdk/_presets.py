"""Presets: settings by kind of model and number of tokens, kept in files with the measurement behind each.

A preset is laid below a configuration: its techniques come first, and what the configuration says of one of them wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from hasten._adapters.base import LatentLayout, ScaleSchedule
from hasten._config import PRESETS, Config
from hasten._cost import call_size
from hasten._document import read_document
from hasten._enabled import Enabled
from hasten._errors import PluginError, UnsupportedError
from hasten._pipeline import Pipeline
from hasten._strict import StrictModel
from hasten._technique import Finding

if TYPE_CHECKING:
    from hasten._target import Target

__all__ = ["Preset", "presets", "settle", "with_preset"]

_FOLDER = Path(__file__).with_name("presets")

Kind = Literal["dit", "unet", "video", "next-scale"]
Tokens = Annotated[int, Field(ge=0)]


class _Case(StrictModel):
    """What a preset is for one kind of model at some numbers of tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    tokens: tuple[Tokens, Tokens | None] = Field(description="From, and below; `null` for any number.")
    techniques: dict[str, dict[str, Any]]
    families: tuple[str, ...] = Field((), description="Those it was measured on.")
    measured: str | None = None
    command: str | None = Field(None, description="What measured it, or the page that tells.")


class _File(StrictModel):
    """A preset as it is shipped."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    summary: str
    cases: tuple[_Case, ...]


@dataclass(frozen=True)
class Preset:
    """A preset as it is for one pipeline and one size.

    Args:
        name: ``"faithful"``, ``"balanced"`` or ``"fast"``.
        summary: what it is for.
        config: its techniques; none where nothing pays.
        basis: what it was measured on, or that it was chosen by the number of tokens alone.
        measured: whether this family was measured at such a number of tokens.
        left_out: technique -> why this pipeline cannot have it.
    """

    name: str
    summary: str
    config: Config
    basis: str
    measured: bool
    left_out: Mapping[str, str]


def presets(pipe: Any, **call: Any) -> tuple[Preset, ...]:
    """Every preset as it is for this pipeline, the most careful one first.

    Args:
        pipe: a diffusers pipeline of a known family.
        **call: arguments of the calls to come, as far as they decide the size.

    Raises:
        UnsupportedError: the family is unknown.
    """
    from hasten._target import Target

    target = Target.of(pipe)
    return tuple(_preset(name, target, target.call_arguments(**call)) for name in PRESETS)


def with_preset(
    config: Config, target: Target, arguments: Mapping[str, Any]
) -> tuple[Config, tuple[Finding, ...]]:
    """A configuration laid over the preset that it names, and what to know of that preset."""
    if config.preset is None:
        return config, ()
    preset = _preset(config.preset, target, arguments)
    merged = {e.name: e.options.model_dump(exclude_unset=True) for e in preset.config.techniques}
    for entry in config.techniques:
        merged[entry.name] = {
            **merged.get(entry.name, {}),
            **entry.options.model_dump(mode="json", exclude_unset=True),
        }
    fields = config.model_dump(exclude={"techniques", "preset"}, exclude_unset=True)
    what = ", ".join(merged) or "plain: no technique helps here"
    notes = [Finding("note", f"preset {preset.name}: {what}; {preset.basis}")]
    notes += [
        Finding("note", f"preset {preset.name} omits {name}: {why}") for name, why in preset.left_out.items()
    ]
    return Config.model_validate({**fields, "techniques": merged}), tuple(notes)


def settle(config: Config, pipe: Pipeline, call: Mapping[str, Any]) -> Config:
    """A configuration with its preset written out for calls of this pipeline with these arguments."""
    if config.preset is None:
        return config
    from hasten._target import Target

    target = Target.of(pipe)
    return with_preset(config, target, target.call_arguments(**call))[0]


def _preset(name: str, target: Target, arguments: Mapping[str, Any]) -> Preset:
    file = _read(name)
    kind, tokens = _kind(target, arguments), _tokens(target, arguments)
    case = next((case for case in file.cases if case.kind == kind and _fits(case, tokens)), None)
    wanted = {} if case is None else case.techniques
    left_out = {
        technique: why for technique in wanted if (why := _refusal(technique, wanted[technique], target))
    }
    kept = {technique: options for technique, options in wanted.items() if technique not in left_out}
    measured = case is not None and case.measured is not None and target.adapter.family in case.families
    basis = _basis(case, target, tokens, measured)
    return Preset(name, file.summary, Config.of(kept), basis, measured, left_out)


def _basis(case: _Case | None, target: Target, tokens: int | None, measured: bool) -> str:
    if tokens is None or case is None:
        return "the size of the call is not known in advance; give height and width"
    if measured:
        return f"measured: {' '.join(str(case.measured).split())} ({case.command})"
    return f"family {target.adapter.family} was not measured at {tokens} tokens: chosen by token count"


def _fits(case: _Case, tokens: int | None) -> bool:
    low, high = case.tokens
    return tokens is not None and low <= tokens and (high is None or tokens < high)


def _refusal(name: str, options: Mapping[str, Any], target: Target) -> str | None:
    """Why this pipeline cannot have a technique, ``None`` if it can."""
    try:
        (entry,) = Config.of({name: options}).techniques
        technique = Enabled(entry.name, entry.options)
        for kind in technique.requires:
            target.capability(kind)
        errors = [f.message for f in technique.check(target) if f.severity == "error"]
    except (UnsupportedError, PluginError) as error:
        return str(error)
    return errors[0] if errors else None


def _kind(target: Target, arguments: Mapping[str, Any]) -> Kind:
    if target.adapter.capability(ScaleSchedule) is not None:
        return "next-scale"
    size = call_size(target, arguments)
    if size is not None and size.frames is not None:
        return "video"
    return "unet" if _is_unet(target) else "dit"


def _is_unet(target: Target) -> bool:
    return any(hasattr(module, "down_blocks") for module in target.denoisers.values())


def _tokens(target: Target, arguments: Mapping[str, Any]) -> int | None:
    """Tokens of the picture in a full forward, latent pixels for a U-Net; ``None`` where the size is not known."""
    schedule = target.adapter.capability(ScaleSchedule)
    if schedule is not None:
        rows, columns = schedule.scales(target.pipe, arguments)[-1]
        return rows * columns
    layout = target.adapter.capability(LatentLayout)
    size = None if layout is None else call_size(target, arguments)
    if layout is None or size is None:
        return None
    multiple = 1 if _is_unet(target) else layout.multiple
    return (size.frames or 1) * size.height * size.width // multiple**2


@cache
def _read(name: str) -> _File:
    document = read_document(_FOLDER / f"{name}.yaml")
    try:
        return _File.model_validate(document.content)
    except ValidationError as error:
        raise document.error(f"the preset is damaged: {error}; install hasten again") from error
