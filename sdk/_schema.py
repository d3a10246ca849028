"""The JSON schema of a configuration file, with the options of every technique that is installed."""

from __future__ import annotations

from typing import Any

from hasten._config import Config
from hasten._options import options_of
from hasten._plugins import host

__all__ = ["config_schema"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_DEFINITIONS = "#/$defs/"


def config_schema() -> dict[str, Any]:
    """A JSON schema that accepts what :meth:`hasten.Config.of` accepts in a file, as far as a schema can tell.

    Editors check and complete with it. Rules between options (``clips`` excludes ``clip_frames``) are beyond it.
    """
    definitions: dict[str, Any] = {}
    names = sorted(host().registry.techniques)
    for name in names:
        definitions |= _definitions(name)
    schema = Config.model_json_schema()
    techniques = schema["properties"]["techniques"]
    entries = [{"$ref": f"{_DEFINITIONS}{name}.entry"} for name in names]
    options = {name: {"anyOf": [{"$ref": _DEFINITIONS + name}, {"type": "null"}]} for name in names}
    schema["properties"]["techniques"] = {
        "description": techniques["description"],
        "anyOf": [
            {"type": "array", "items": {"anyOf": [{"enum": names}, *entries]}},
            {"type": "object", "properties": options, "additionalProperties": False},
            {"type": "null"},
        ],
    }
    about = {
        "$schema": _DIALECT,
        "title": "hasten configuration",
        "description": "A configuration of hasten.",
    }
    return {**schema, **about, "$defs": definitions}


def _definitions(name: str) -> dict[str, Any]:
    """Options of one technique as a mapping, the same beside ``name:`` in a list, and the models they consist of."""
    technique = host().technique(name)
    options = options_of(technique.config_class)
    schema = options.json_schema(ref_template=f"{_DEFINITIONS}{name}.{{model}}")
    nested = {f"{name}.{model}": part for model, part in schema.pop("$defs", {}).items()}
    schema |= {"title": name, "description": technique.summary}
    called = {"name": {"const": name, "description": technique.summary}}
    if options.field is None:
        entry = _with(called, schema)
    else:
        entry = {"oneOf": [_with(called, nested[f"{name}.{kind.__name__}"]) for kind in options.kinds]}
    return {name: schema, f"{name}.entry": entry, **nested}


def _with(called: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of an entry that has the technique's name among its options."""
    return {
        **schema,
        "properties": {**called, **schema["properties"]},
        "required": ["name", *schema.get("required", ())],
    }
