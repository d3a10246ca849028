"""Values of an option to search, declared with the option and used by ``hasten tune`` and ``--sweep``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import TYPE_CHECKING, Any

from pydantic import GetJsonSchemaHandler
from pydantic_core import CoreSchema

from hasten._errors import ConfigError
from hasten._options import options_of

if TYPE_CHECKING:
    from hasten._technique import TechniqueConfig

__all__ = ["Between", "Choices", "Tunable", "dial_of", "tunable_options"]


@dataclass(frozen=True)
class Tunable:
    """Base of :class:`Choices` and :class:`Between`, which are used in the annotation of an option::

        strength: Annotated[float, Between(0.05, 0.4, log=True, dial=True)] = Field(0.1, ge=0, le=1, ...)

    Args:
        dial: whether ``hasten compare --sweep`` varies this option; at most one option of a technique.
    """

    dial: bool = field(default=False, kw_only=True)

    def values(self, count: int) -> tuple[Any, ...]:
        """At most ``count`` values, from the most conservative to the most aggressive."""
        raise NotImplementedError

    def _told(self) -> dict[str, Any]:
        raise NotImplementedError

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "tunable": {**self._told(), "dial": self.dial}}


@dataclass(frozen=True, init=False)
class Choices(Tunable):
    """Discrete values of an option.

    Args:
        options: from the most conservative (closest to the stock output) to the most aggressive (fastest).
        dial: as of :class:`Tunable`.

    Raises:
        ConfigError: fewer than two, or one twice.
    """

    options: tuple[Any, ...]

    def __init__(self, *options: Any, dial: bool = False) -> None:
        object.__setattr__(self, "options", options)
        object.__setattr__(self, "dial", dial)
        if len(options) < 2 or any(value in options[:i] for i, value in enumerate(options)):
            raise ConfigError(f"Choices{options}: name at least two different values")

    def values(self, count: int) -> tuple[Any, ...]:
        """All of them, or ``count`` evenly spaced ones with both ends."""
        return _spread(self.options, count)

    def _told(self) -> dict[str, Any]:
        return {"choices": list(self.options)}


@dataclass(frozen=True)
class Between(Tunable):
    """A range of numbers; integers if both ends are of type ``int``.

    Args:
        careful: end that is closest to the stock output, included.
        bold: the fastest end, included; larger or smaller than ``careful``.
        log: spaced by factors rather than by differences; both ends are positive then.
        dial: as of :class:`Tunable`.

    Raises:
        ConfigError: both ends are equal, or ``log`` with an end that is not positive.
    """

    careful: float
    bold: float
    log: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.careful == self.bold:
            raise ConfigError(f"Between({self.careful}, {self.bold}): the ends must differ")
        if self.log and min(self.careful, self.bold) <= 0:
            raise ConfigError(f"Between({self.careful}, {self.bold}, log=True): both ends must be positive")

    @property
    def whole(self) -> bool:
        """Whether the range has only integers."""
        return isinstance(self.careful, int) and isinstance(self.bold, int)

    def values(self, count: int) -> tuple[Any, ...]:
        """``count`` of them, evenly spaced, with both ends; inner ones rounded to three digits."""
        if count < 2:
            return (self.careful,)
        parts = [i / (count - 1) for i in range(count)]
        if self.log:
            found = [self.careful * (self.bold / self.careful) ** part for part in parts]
        else:
            found = [self.careful + (self.bold - self.careful) * part for part in parts]
        if self.whole:
            return tuple(dict.fromkeys(round(value) for value in found))
        inner = [float(f"{value:.3g}") for value in found[1:-1]]
        return (float(self.careful), *inner, float(self.bold))

    def _told(self) -> dict[str, Any]:
        return {"between": [self.careful, self.bold], "log": self.log}


def tunable_options(declared: type[TechniqueConfig] | UnionType) -> dict[str, Tunable]:
    """Option -> values to search, for the options that declare them, in the order of the class.

    Args:
        declared: ``config_class`` of a technique. For a union, the first class (the default) is used.

    Raises:
        ConfigError: an option declares it twice, or two options are the dial.
    """
    config = options_of(declared).kinds[0]
    found: dict[str, Tunable] = {}
    for name, info in config.model_fields.items():
        here = [part for part in info.metadata if isinstance(part, Tunable)]
        if len(here) > 1:
            raise ConfigError(
                f"{config.__qualname__}.{name} has two declarations of its values for tuning; keep one"
            )
        if here:
            found[name] = here[0]
    dials = [name for name, tunable in found.items() if tunable.dial]
    if len(dials) > 1:
        raise ConfigError(f"{config.__qualname__} has {len(dials)} dials ({', '.join(dials)}); keep one")
    return found


def dial_of(options: Mapping[str, Tunable]) -> str | None:
    """Name of the option that is the dial, ``None`` without one."""
    return next((name for name, tunable in options.items() if tunable.dial), None)


def _spread(values: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    if len(values) <= count or count < 2:
        return values[: max(1, count)]
    last = len(values) - 1
    return tuple(values[round(i * last / (count - 1))] for i in range(count))
