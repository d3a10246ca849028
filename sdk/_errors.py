"""Errors of `hasten`. Each message names the value, the place, the reason and the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from hasten._shown import printable, shortened

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ConflictError",
    "HastenError",
    "NumericalError",
    "PluginError",
    "RankError",
    "UnsupportedError",
    "suggestion",
]


_LONGEST = 4000


class HastenError(Exception):
    """Base of all errors raised by `hasten`.

    In its text, control characters are written out (``\\x1b``) and what makes it longer than 4,000 characters is cut
    from its middle: much of it comes from files and names that may hold anything.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(_shown(part) if isinstance(part, str) else part for part in arguments))


class ConfigError(HastenError):
    """A configuration value, option name, technique name or file that cannot be used.

    Args:
        message: the fault and the remedy.
        path: dotted path of the offending value (``"techniques.0.delta"``), empty for the whole document.
        source: file the value came from, if any.
        line: line of ``source``, counted from 1, where it is known.
    """

    def __init__(
        self, message: str, *, path: str = "", source: str | None = None, line: int | None = None
    ) -> None:
        place = [f"at {path}"] if path else []
        if source is not None:
            place.append(f"in {source}" + (f", line {line}" if line is not None else ""))
        super().__init__(f"{' '.join(place)}: {message}" if place else message)
        self.message, self.path, self.source, self.line = message, path, source, line


class ConflictError(HastenError):
    """Conflict between techniques, accelerations, calls or caches of a pipeline, or runs with one output."""


class UnsupportedError(HastenError):
    """A pipeline that cannot be accelerated: unknown family, missing capability, bypassed seam."""


class PluginError(HastenError):
    """A plugin that breaks the rules of the plugin interface."""


class CheckpointError(HastenError):
    """Files that are damaged or do not match their format."""


class RankError(HastenError):
    """Another process of this run failed, hung, could not be reached, or disagrees about what to compute."""


class NumericalError(HastenError):
    """A denoiser output with NaN or infinity in it. The run is stopped and the pipeline is left clean."""


def _shown(text: str) -> str:
    return shortened(printable(text), _LONGEST)


def suggestion(word: str, choices: Iterable[str]) -> str:
    """The end of a sentence: ``"; did you mean 'delta'?"`` when a choice resembles ``word``, else a full stop.

    >>> suggestion("detla", ["delta", "scale"])
    "; did you mean 'delta'?"
    """
    match = get_close_matches(word[:100], list(choices), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else "."
