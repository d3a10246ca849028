"""Calling the code of a plugin, so that whatever it raises or returns wrongly has a name.

What is no fault of the plugin passes as it is: `hasten`'s own errors, an interrupt by the user, exhausted memory, the
end of the program that a signal handler asks for, and errors of the pipeline that the plugin was only waiting for.
"""

from __future__ import annotations

import inspect
import os
import reprlib
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any

from hasten._errors import HastenError, PluginError

__all__ = ["Culprit", "Faults", "InRun", "explain"]

_HOST = str(Path(__file__).parent) + os.sep


@dataclass(frozen=True)
class Culprit:
    """Whose code is called, in words: ``"plugin y (its-distribution 1.2): technique 'x'"``."""

    title: str

    @contextmanager
    def during(self, place: str, passed: Sequence[BaseException] = ()) -> Iterator[None]:
        """Turn what the code in the block raises into a :class:`PluginError` chained from it.

        Args:
            place: what is called (``"attach"``, ``"the denoiser handler"``).
            passed: errors that came from elsewhere through this code; it may grow while the block runs.

        Raises:
            PluginError: names the culprit, the place, the error and the line that raised it.
        """
        try:
            yield
        except BaseException as error:
            if _is_no_fault(error) or _among(error, passed):
                raise
            raise self.failed(place, error) from error

    def failed(self, place: str, error: BaseException) -> PluginError:
        """The error for what the code called in ``place`` raised."""
        return PluginError(f"{self.title} failed in {place}: {explain(error)}{_origin(error.__traceback__)}")

    def returned(self, value: object, place: str, wanted: str) -> PluginError:
        """The error for a wrong result: ``wanted`` says what to return instead."""
        return PluginError(f"{self.title} returned {_describe(value)} from {place}; return {wanted}")

    def broke(self, rule: str) -> PluginError:
        """The error for a broken rule of the plugin interface: ``rule`` says what was done, and what to do instead."""
        return PluginError(f"{self.title} {rule}")


class Faults:
    """What handlers raised during one call of the pipeline.

    Such an error passes through the run as it is, because a technique may end a run from inside and catch that in its
    run handler; it gets its name where it leaves the call.
    """

    def __init__(self) -> None:
        self._noted: list[tuple[BaseException, Culprit, str]] = []

    def note(self, error: BaseException, culprit: Culprit, place: str) -> None:
        """Remember who raised ``error``, unless that is known."""
        if not _among(error, [noted for noted, *_ in self._noted]):
            self._noted.append((error, culprit, place))

    @contextmanager
    def named(self) -> Iterator[None]:
        """Around the whole call.

        Raises:
            PluginError: in the place of an error that was noted.
        """
        try:
            yield
        except BaseException as error:
            for noted, culprit, place in self._noted:
                if noted is error:
                    raise culprit.failed(place, error) from error
            raise
        finally:
            self._noted.clear()


@dataclass(frozen=True)
class InRun(Culprit):
    """A culprit whose errors are noted, to be named at the end of the call."""

    faults: Faults

    @contextmanager
    def during(self, place: str, passed: Sequence[BaseException] = ()) -> Iterator[None]:
        """Note what the code in the block raises, and let it pass."""
        try:
            yield
        except BaseException as error:
            if not _is_no_fault(error) and not _among(error, passed):
                self.faults.note(error, self, place)
            raise


def explain(error: BaseException) -> str:
    """An error in one line: its kind and its message."""
    return f"{type(error).__name__}: {error}"


def _among(error: BaseException, others: Sequence[BaseException]) -> bool:
    return any(error is other for other in others)


def _is_no_fault(error: BaseException) -> bool:
    if isinstance(error, (HastenError, KeyboardInterrupt, MemoryError)):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return not isinstance(error, Exception) and _raised_by_signal_handler(error.__traceback__)


def _raised_by_signal_handler(traceback: TracebackType | None) -> bool:
    """Whether a handler that the program installed (a graceful end on SIGTERM) raised in the middle of the code."""
    handlers = (signal.getsignal(number) for number in signal.valid_signals())
    codes: set[CodeType | None] = {getattr(handler, "__code__", None) for handler in handlers}
    return any(frame.f_code in codes for frame, _ in _frames(traceback))


def _origin(traceback: TracebackType | None) -> str:
    """The line to look at: the innermost one in the file that the plugin was entered by."""
    lines = ((frame.f_code.co_filename, line) for frame, line in _frames(traceback))
    foreign = [(file, line) for file, line in lines if not file.startswith(_HOST)]
    inside = [line for file, line in foreign if file == foreign[0][0]]
    return f" ({Path(foreign[0][0]).name}:{inside[-1]})" if inside else ""


def _frames(traceback: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


def _describe(value: Any) -> str:
    if value is None:
        return "None"
    if inspect.iscoroutine(value):
        value.close()  # nobody will await it
        return "a coroutine that was not run (the function is an 'async def')"
    if inspect.isgenerator(value):
        return "a generator that was not run (the function has a 'yield')"
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None:
        return f"a {type(value).__name__} of shape {tuple(shape)} and {dtype}"
    return f"{reprlib.repr(value)} ({type(value).__name__})"
