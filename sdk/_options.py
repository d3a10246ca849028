"""The options of a technique: one class, or several classes distinguished by a field of type ``Literal``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from hasten._technique import TechniqueConfig

__all__ = ["Options", "options_of"]


class Options:
    """The configuration classes that a technique declares.

    Args:
        declared: a subclass of :class:`TechniqueConfig`, or a union of several. Those of a union share a field of type
            ``Literal`` with one value each, such as ``mode``; all but the first class require it.

    Raises:
        TypeError: it is neither.
    """

    def __init__(self, declared: object) -> None:
        self.kinds: tuple[type[TechniqueConfig], ...] = (
            get_args(declared) if isinstance(declared, UnionType) else (declared,)
        )
        if not all(isinstance(kind, type) and issubclass(kind, TechniqueConfig) for kind in self.kinds):
            raise TypeError("a subclass of hasten.TechniqueConfig, or a union of such classes")
        self.field = _telling_field(self.kinds)
        """Name of the field that distinguishes the classes of a union; ``None`` for a single class."""

    def value(self, kind: type[TechniqueConfig]) -> str:
        """Value of the distinguishing field in a class of the union."""
        return _values(kind, self.field)[0] if self.field else ""

    def validate(self, given: Mapping[str, Any]) -> TechniqueConfig:
        """The validated options. Options of another class of the union may be present at their defaults.

        Raises:
            ValidationError: a value is wrong, an option is unknown, or belongs to another class.
        """
        kind = self._chosen(given)
        return kind.model_validate(self._own(kind, given))

    def json_schema(self, **settings: Any) -> dict[str, Any]:
        """The JSON schema, of a union as pydantic has it for discriminated ones; settings as for pydantic's."""
        if self.field is None:
            return self.kinds[0].model_json_schema(**settings)
        union: Any = Union[self.kinds]  # noqa: UP007
        return TypeAdapter(Annotated[union, Field(discriminator=self.field)]).json_schema(**settings)

    def _chosen(self, given: Mapping[str, Any]) -> type[TechniqueConfig]:
        """The class selected by the distinguishing field; the first class if the field is not given."""
        if self.field is None or self.field not in given:
            return self.kinds[0]
        value = given[self.field]
        names = [self.value(kind) for kind in self.kinds]
        if value in names:
            return self.kinds[names.index(value)]
        wanted = " or ".join(map(repr, names))
        raise _invalid(
            PydanticCustomError("literal_error", "Input should be {expected}", {"expected": wanted}),
            self.field,
            value,
        )

    def _own(self, kind: type[TechniqueConfig], given: Mapping[str, Any]) -> dict[str, Any]:
        """``given`` without what belongs to another class and has no effect, as files written in full have it."""
        own = {}
        for name, value in given.items():
            other = None if name in kind.model_fields else next(self._others(name), None)
            if other is None:
                own[name] = value
            elif value != other.model_fields[name].get_default(call_default_factory=True):
                text = "{name} has no effect with {field}={own!r}: remove it, or set {field}={other!r}"
                told = {
                    "name": name,
                    "field": self.field,
                    "own": self.value(kind),
                    "other": self.value(other),
                }
                raise _invalid(PydanticCustomError("other_kind", text.format_map(told)), name, value)
        return own

    def _others(self, name: str) -> Iterator[type[TechniqueConfig]]:
        return (kind for kind in self.kinds if name in kind.model_fields)


@cache
def options_of(declared: object) -> Options:
    """The :class:`Options` of a ``config_class``, cached."""
    return Options(declared)


def _telling_field(kinds: tuple[type[TechniqueConfig], ...]) -> str | None:
    if len(kinds) == 1:
        return None
    for name in kinds[0].model_fields:
        values = [_values(kind, name) for kind in kinds]
        if all(len(one) == 1 for one in values) and len(set(values)) == len(kinds):
            if all(kind.model_fields[name].is_required() for kind in kinds[1:]):
                return name
            raise TypeError(f"classes of which all but the first require {name!r}")
    raise TypeError(
        "a union of classes distinguished by a field of type Literal, with one value in each class"
    )


def _values(kind: type[TechniqueConfig], name: str | None) -> tuple[Any, ...]:
    field = kind.model_fields.get(name or "")
    return get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()


def _invalid(error: PydanticCustomError, name: str, value: object) -> ValidationError:
    return ValidationError.from_exception_data(
        "options", [InitErrorDetails(type=error, loc=(name,), input=value)]
    )
