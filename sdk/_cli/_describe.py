"""What a JSON schema says of an option, in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["describe_default", "describe_values", "flatten"]

Schema = Mapping[str, Any]


def flatten(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Every option with its schema, those of nested models by dotted path (``stages.*.steps``).

    Of a union, the options of each of its models in turn.
    """
    for choice in schema.get("oneOf", ()):
        for model, _ in _models(choice, schema["$defs"]):
            yield from flatten({**model, "$defs": schema["$defs"]})
    for name, field in schema.get("properties", {}).items():
        yield name, field
        for model, inside in _models(field, schema.get("$defs", {})):
            for path, inner in flatten({**model, "$defs": schema["$defs"]}):
                yield f"{name}{inside}.{path}", inner


def _models(field: Schema, definitions: Schema, inside: str = "") -> Iterator[tuple[Schema, str]]:
    if "$ref" in field:
        yield definitions[field["$ref"].rpartition("/")[2]], inside
    for choice in field.get("anyOf", ()):
        yield from _models(choice, definitions, inside)
    if isinstance(field.get("items"), Mapping):
        yield from _models(field["items"], definitions, f"{inside}.*")


def describe_default(field: Schema) -> str:
    """The default as a configuration file would have it; empty for an option that has to be given."""
    default = field.get("default")
    return default if isinstance(default, str) else json.dumps(default) if "default" in field else ""


def describe_values(field: Schema) -> str:
    """Which values are taken: ``"auto, number from 0 to 1"``."""
    if "anyOf" in field:
        parts = (describe_values(choice) for choice in field["anyOf"] if choice.get("type") != "null")
        return ", ".join(dict.fromkeys(parts))
    if "enum" in field or "const" in field:
        return ", ".join(map(str, field.get("enum", [field.get("const")])))
    kind = field.get("type", "")
    if kind == "array":
        return _list(field)
    if kind == "boolean":
        return "true, false"
    if kind == "string":
        return "text"
    if kind in ("integer", "number"):
        return f"{'whole number' if kind == 'integer' else 'number'}{_range(field)}"
    return "mapping"


def _list(field: Schema) -> str:
    if "prefixItems" in field:
        return f"[{', '.join(describe_values(item) for item in field['prefixItems'])}]"
    return f"list of ({describe_values(field.get('items', {}))})"


def _range(field: Schema) -> str:
    low, high = field.get("minimum"), field.get("maximum")
    above, below = field.get("exclusiveMinimum"), field.get("exclusiveMaximum")
    lower = f" from {low:g}" if low is not None else f" above {above:g}" if above is not None else ""
    upper = f" to {high:g}" if high is not None else f" below {below:g}" if below is not None else ""
    return f"{lower} and{upper}" if lower and below is not None else lower + upper
