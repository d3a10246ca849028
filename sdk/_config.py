"""Configuration of a run: techniques in order, each with its validated options, and settings of the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from hasten._document import SUFFIXES, Document, parse_yaml, read_document
from hasten._errors import ConfigError, suggestion
from hasten._options import options_of
from hasten._plugins import host
from hasten._shown import shortened
from hasten._strict import StrictModel
from hasten._technique import TechniqueConfig

__all__ = ["PRESETS", "Config", "ConfigLike", "Precision", "TechniqueEntry", "apply_overrides", "load_config"]

PRESETS = ("faithful", "balanced", "fast")
"""Names of the presets, the most conservative first."""
Precision = Literal["float32", "bfloat16", "float16"]
"""Number formats a pipeline can be loaded in."""


class TechniqueEntry(BaseModel):
    """One enabled technique: its name and its validated options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    options: SerializeAsAny[TechniqueConfig]


class Config(StrictModel):
    """A complete, immutable configuration. Writing it to JSON and reading it back gives an equal one.

    Accepts for ``techniques`` a list of names, a list of ``{"name": ..., option: ...}``, or a mapping from names to
    options. Every failure is a :class:`ConfigError` that names the dotted path, and the line in a YAML file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    schema_version: Annotated[Literal[1], Field(alias="schema")] = Field(
        1, description="Version of this format."
    )
    preset: str | None = Field(
        None,
        description="`faithful`, `balanced` or `fast`: a preset for the model; `techniques` override it.",
    )
    techniques: tuple[TechniqueEntry, ...] = Field((), description="Techniques to enable, outermost first.")
    model: str | None = Field(
        None, description="A bundled miniature (`mini/...`), a local folder or a hub id."
    )
    prompts: str | tuple[str, ...] | None = Field(
        None, description="Prompts, or the path of a file with prompts."
    )
    num_prompts: PositiveInt | None = Field(None, description="Maximum number of prompts.")
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = Field(
        None, description="Seed of the first prompt; prompt i uses seed + i."
    )
    steps: PositiveInt | None = Field(None, description="Denoising steps.")
    solver: str | None = Field(
        None, description="Solver instead of the pipeline's own: Euler, UniPC or DPM++ 2M, where it suits."
    )
    height: PositiveInt | None = Field(None, description="Height in pixels.")
    width: PositiveInt | None = Field(None, description="Width in pixels.")
    frames: PositiveInt | None = Field(None, description="Number of video frames.")
    guidance_scale: float | None = Field(None, description="Classifier-free guidance scale.")
    device: str | None = Field(
        None, description="Torch device of the command line; by default a GPU if there is one."
    )
    dtype: Precision | None = Field(
        None,
        description="Number format of the weights; by default half precision on a GPU, else float32.",
    )
    out: str | None = Field(None, description="Output folder.")

    @classmethod
    def of(cls, value: ConfigLike) -> Config:
        """The configuration that ``value`` describes.

        Args:
            value: a :class:`Config`, the name of a preset, a list of technique names or entries, a mapping from
                technique names to options, a mapping with the keys of a configuration file, or the path of such a file.

        Raises:
            ConfigError: the value does not describe a configuration.
        """
        if isinstance(value, Config):
            return value
        if isinstance(value, (str, Path)):
            if value in PRESETS:
                return cls._read(Document({"preset": value}))
            if isinstance(value, str) and not value.lower().endswith(SUFFIXES):
                text = f"a single string must name a {'/'.join(SUFFIXES)} file, not {value!r}"
                hint = suggestion(value, PRESETS) or f" Presets: {', '.join(PRESETS)}."
                raise ConfigError(f"{text}, or a preset; to enable one technique write [{value!r}].{hint}")
            return cls._read(read_document(value))
        if isinstance(value, Mapping) and not {"techniques", "schema", "preset"} & value.keys():
            return cls._read(Document({"techniques": value}))
        if isinstance(value, Mapping):
            return cls._read(Document(value))
        if isinstance(value, Sequence):
            return cls._read(Document({"techniques": value}))
        text = "a configuration is a list of names, a mapping, a Config or a path"
        raise ConfigError(f"{text}, not {type(value).__name__}")

    @classmethod
    def _read(cls, document: Document) -> Config:
        content = {} if document.content is None else document.content
        if not isinstance(content, Mapping):
            text = "a configuration file holds a mapping with 'techniques:' at its top level"
            raise document.error(f"{text}, not a {type(content).__name__}")
        return cls.model_validate(dict(content), context=document)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values, in the form that configuration files use."""
        plain = self.model_dump(mode="json", exclude_none=True, exclude={"techniques", "schema_version"})
        entries = [{"name": e.name, **e.options.model_dump(mode="json")} for e in self.techniques]
        return {"schema": self.schema_version, "techniques": entries, **plain}

    def to_json(self) -> str:
        """:meth:`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2)

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, data: Any, handler: ModelWrapValidatorHandler[Config], info: ValidationInfo) -> Config:
        try:
            return handler(data)
        except ValidationError as error:
            document = info.context if isinstance(info.context, Document) else Document(data)
            raise _translate(error, (cls,), (), document, data) from None

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, value: str | None) -> str | None:
        if value is not None and value not in PRESETS:
            raise ValueError(
                f"there is no preset {value!r}{suggestion(value, PRESETS)} Presets: {', '.join(PRESETS)}"
            )
        return value

    @field_validator("techniques", mode="before")
    @classmethod
    def _parse_techniques(cls, value: object, info: ValidationInfo) -> tuple[TechniqueEntry, ...]:
        document = info.context if isinstance(info.context, Document) else Document(value)
        entries = tuple(_entry(*item, document) for item in _items(value, document))
        names = [entry.name for entry in entries]
        if twice := next((name for name in names if names.count(name) > 1), None):
            text = f"technique {twice!r} is listed twice; a technique can be enabled once per pipeline"
            raise document.error(text, ("techniques",))
        return entries


ConfigLike = Config | str | Path | Sequence[Any] | Mapping[str, Any]
"""Values that :meth:`Config.of` accepts."""


def load_config(value: ConfigLike) -> Config:
    """:meth:`Config.of` as a function.

    Raises:
        ConfigError: the value does not describe a configuration.
    """
    return Config.of(value)


def apply_overrides(
    config: ConfigLike | None,
    enable: Iterable[str] = (),
    sets: Iterable[str] = (),
    preset: str | None = None,
) -> Config:
    """``config`` with the command line's ``--preset``, ``--enable`` and ``--set NAME.OPTION=VALUE`` applied on top.

    Args:
        config: initial configuration; ``None`` is the empty one.
        enable: technique names to add at the end; an enabled one keeps its position.
        preset: name of a preset that replaces the one in ``config``.
        sets: assignments ``"name.option=value"`` (or ``"name.option.part=value"``); values are YAML.

    Raises:
        ConfigError: an unknown technique or option, or an assignment to a technique that is not enabled.
    """
    base = Config.of(config) if config is not None else Config()
    options = {e.name: e.options.model_dump(mode="json", exclude_unset=True) for e in base.techniques}
    for name in enable:
        options.setdefault(host().technique(name).name, {})
    preset = preset if preset is not None else base.preset
    for text in sets:
        path, value = _assignment(text)
        if preset is not None and path[0] in host().registry.techniques:
            options.setdefault(path[0], {})
        if path[0] not in options:
            raise ConfigError(
                f"--set {text}: technique {path[0]!r} is not enabled{suggestion(path[0], options)} "
                f"Add --enable {path[0]} or list it in the configuration file."
            )
        place = options[path[0]]
        for part in path[1:-1]:
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {text}: {part!r} is {inner!r}, which has no options")
            place = inner
        place[path[-1]] = value
    fields = base.model_dump(exclude={"techniques"}, exclude_unset=True)
    if preset is not None:
        fields["preset"] = preset
    return Config.model_validate({**fields, "techniques": options}, context=Document(None))


def _assignment(text: str) -> tuple[list[str], Any]:
    left, equals, right = text.partition("=")
    path = [part.strip() for part in left.split(".")]
    if not equals or len(path) < 2 or not all(path):
        raise ConfigError(f"--set {text}: write NAME.OPTION=VALUE, for example bottleneck.delta=0.05")
    try:
        return path, parse_yaml(right)
    except ConfigError as error:
        raise ConfigError(f"--set {text}: {right!r} is not a YAML value: {error}") from error


def _items(value: object, document: Document) -> list[tuple[Any, Any, tuple[Any, ...]]]:
    """(name, options, path) of every technique, from any of the accepted spellings."""
    here = ("techniques",)
    if value is None:
        return []
    if isinstance(value, Mapping):
        return [(name, options, (*here, name)) for name, options in value.items()]
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        text = "techniques is a list of names, a list of {name: ..., option: ...}, or a mapping from name to options"
        raise document.error(f"{text}, not {value!r}", here)
    items: list[tuple[Any, Any, tuple[Any, ...]]] = []
    for index, item in enumerate(value):
        path = (*here, index)
        if isinstance(item, Mapping):
            if "name" not in item:
                raise document.error(
                    f"an entry needs a 'name', for example {{name: bottleneck}}; got {item!r}", path
                )
            options = {key: option for key, option in item.items() if key != "name"}
            items.append((item["name"], options, path))
        elif isinstance(item, TechniqueEntry):
            items.append((item.name, item.options, path))
        else:
            items.append((item, {}, path))
    return items


def _entry(name: object, options: object, path: tuple[Any, ...], document: Document) -> TechniqueEntry:
    if not isinstance(name, str):
        raise document.error(f"a technique's name is a string, not {name!r}", path)
    try:
        kinds = options_of(host().technique(name).config_class)
    except ConfigError as error:
        raise document.error(str(error), path) from None
    if isinstance(options, TechniqueConfig):
        options = options.model_dump(exclude_unset=True)
    if not isinstance(options, Mapping | None):
        raise document.error(f"options of {name!r} are a mapping from option to value, not {options!r}", path)
    culprit = host().culprit("technique", name)
    with culprit.during("its options"):
        try:
            parsed = kinds.validate(options or {})
        except ValidationError as error:
            raise _translate(
                error, kinds.kinds, path, document, options, owner=f"technique {name!r}"
            ) from None
        if type(parsed).model_validate_json(parsed.model_dump_json()) != parsed:
            raise culprit.broke(f"has options that change when written to JSON: {parsed!r}")
    return TechniqueEntry(name=name, options=parsed)


def _translate(
    error: ValidationError,
    models: Sequence[type[BaseModel]],
    path: tuple[Any, ...],
    document: Document,
    given: object,
    owner: str = "a configuration",
) -> ConfigError:
    """The first problem that pydantic found in ``given``, in our words."""
    problems = error.errors(include_url=False, include_context=False)
    problem = problems[0]
    if problem["type"] == "extra_forbidden":
        location = tuple(problem["loc"])
        names = dict.fromkeys(name for model in models for name in _option_names(model, location[:-1]))
        hint = suggestion(str(location[-1]), names)
        text = f"unknown option {str(location[-1])!r} of {owner}{hint}"
        return document.error(f"{text} Options: {', '.join(names) or 'none'}.", (*path, *location))
    place = _place(problem["loc"], given)
    # Each branch of a union has its say about one value.
    wishes = dict.fromkeys(_wish(other) for other in problems if _place(other["loc"], given) == place)
    first, *others = wishes
    others = [text.removeprefix("input should be ") for text in others]
    shown = f"; got {shortened(repr(problem['input']), 200)}" if place else ""
    return document.error(" or ".join([first, *others]) + shown, (*path, *place))


def _wish(problem: ErrorDetails) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    return f"{message[:1].lower()}{message[1:]}"


def _place(location: tuple[int | str, ...], given: object) -> tuple[int | str, ...]:
    """``location`` without the names of a union's branches, which are no part of what was given."""
    place: list[int | str] = []
    for part in location:
        if isinstance(given, Mapping):
            given = given.get(part)
        elif isinstance(part, int) and isinstance(given, (list, tuple)) and part < len(given):
            given = given[part]
        else:
            continue
        place.append(part)
    return tuple(place)


def _option_names(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Option names of the (nested) model that ``location`` leads to."""
    for part in location:
        info = model.model_fields.get(str(part))
        nested = _models_in(info.annotation) if info else []
        # A union's branch is named in the location, a list's index is a number: both stay on the same model.
        model = nested[0] if nested else model
    return [info.alias or name for name, info in model.model_fields.items()]


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _models_in(part)]
