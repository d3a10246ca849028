"""Numbers are numbers: a model that takes no text and no truth value for one, whatever its fields are declared as."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

__all__ = ["StrictModel"]

_NUMBERS = ("int", "float", "bool", "complex", "decimal")
_PARTS = ("schema", "fields", "choices", "items_schema", "values_schema", "definitions")
"""Where a schema keeps the schemas of what is in it. Keys of a mapping stay lax: in JSON all of them are text."""


def _strict(schema: Any) -> Any:
    if isinstance(schema, (list, tuple)):
        return type(schema)(_strict(part) for part in schema)
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    if kind in _NUMBERS:
        return {**schema, "strict": True}
    if kind == "literal" and not all(isinstance(value, str) for value in schema["expected"]):
        check = _only_same_type(schema["expected"])
        return core_schema.no_info_before_validator_function(check, cast(CoreSchema, schema))
    if not isinstance(kind, str):  # field name -> schema
        return {name: _strict(part) for name, part in schema.items()}
    return {name: _strict(part) if name in _PARTS else part for name, part in schema.items()}


def _only_same_type(expected: list[Any]) -> Callable[[Any], Any]:
    """A check that a literal is none that only equals one of ``expected``: ``True`` and ``1.0`` equal 1."""
    types = {type(value) for value in expected}
    names = " or ".join(filter(None, (", ".join(map(repr, expected[:-1])), repr(expected[-1]))))

    def check(value: object) -> Any:
        if isinstance(value, (bool, float)) and type(value) not in types:
            raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": names})
        return value

    return check


class StrictModel(BaseModel):
    """Base of everything that is read from a configuration.

    pydantic's ``strict=True`` would refuse a list for a tuple as well, which is all that YAML and JSON have. Here only
    numbers and booleans are strict, wherever they stand in a field's type: ``"3"``, ``True`` and ``3.0`` are no
    ``int``, ``"0.5"`` and ``True`` no ``float``, ``1`` and ``"yes"`` no ``bool``. An ``int`` is a ``float``.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The schema that pydantic makes, with strict numbers."""
        schema: CoreSchema = _strict(handler(source))
        return schema
