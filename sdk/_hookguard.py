"""Implementations of hooks, wrapped one by one when a plugin is registered, so that pluggy itself can call them.

Ordering, wrappers and monitoring are pluggy's; a failure in one implementation has the plugin's name, and does to the
others only what the hook is meant to let it do.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pluggy

from hasten._culprit import Culprit
from hasten._errors import HastenError

__all__ = ["Guard", "StandIn", "guarded_plugin"]


@dataclass(frozen=True)
class Guard:
    """How the implementations of one hook in one plugin are called.

    Args:
        culprit: the plugin.
        hook: name of the hook.
        answer: checks what an implementation returned, and what the hook gets for it.
        combined: checks what a wrapper made of the answers: ``(before, after) -> what the hook gets``.
        failed: told of a failure; where it returns, the hook goes on without this implementation.
        around: opened around every call of an implementation that is no wrapper.
    """

    culprit: Culprit
    hook: str
    answer: Callable[[Any], Any]
    combined: Callable[[Any, Any], Any]
    failed: Callable[[HastenError], None]
    around: Callable[[], AbstractContextManager[Any]] = nullcontext

    def plain(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, an ordinary implementation, guarded."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                with self.culprit.during(self.hook), self.around():
                    return self.answer(function(*args, **kwargs))
            except HastenError as error:
                self.failed(error)
                return None

        return call

    def wrapper(self, function: Callable[..., Any], *, old_style: bool) -> Callable[..., Any]:
        """``function``, which yields once around the other implementations, guarded.

        Args:
            function: a generator function.
            old_style: whether it is sent a ``pluggy.Result`` and changes that, instead of the answers themselves.
        """

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Generator[None, Any, Any]:
            around = self._begin(function, args, kwargs)
            try:
                outcome = yield
            except BaseException as error:  # of another implementation, for this wrapper to see
                if around is None:
                    raise
                return self._end(around, error, [])
            if around is None:
                return outcome
            if not old_style:
                return self._end(around, None, outcome)
            before = [] if outcome.exception is not None else list(outcome.get_result())
            self._end(around, None, outcome)
            if outcome.exception is None:
                outcome.force_result(self._combine(before, outcome.get_result()))
            return outcome

        return call

    def _begin(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Generator[None, Any, Any] | None:
        """Run a wrapper up to its ``yield``; ``None`` where it failed and the hook goes on without it."""
        try:
            with self.culprit.during(self.hook):
                around: Generator[None, Any, Any] = function(*args, **kwargs)
                if next(around, self) is self:
                    raise self.culprit.broke(
                        f"has a wrapper of {self.hook} that does not yield; it has to yield once"
                    )
                return around
        except HastenError as error:
            self.failed(error)
            return None

    def _end(self, around: Generator[None, Any, Any], error: BaseException | None, outcome: Any) -> Any:
        """Run a wrapper from its ``yield`` to its end."""
        try:
            with self.culprit.during(self.hook, [] if error is None else [error]):
                try:
                    around.send(outcome) if error is None else around.throw(error)
                except StopIteration as end:
                    if isinstance(outcome, pluggy.Result):
                        return outcome
                    return self.combined(outcome, end.value)
                around.close()
                raise self.culprit.broke(
                    f"has a wrapper of {self.hook} that yields twice; it has to yield once"
                )
        except HastenError as problem:
            if problem is error:
                raise
            self.failed(problem)
            return outcome

    def _combine(self, before: Any, after: Any) -> Any:
        try:
            return self.combined(before, after)
        except HastenError as error:
            self.failed(error)
            return before


@dataclass(frozen=True)
class StandIn:
    """A module with the guarded implementations of a plugin, and the names of the hooks it implements."""

    module: ModuleType
    implements: tuple[str, ...]


def guarded_plugin(
    manager: pluggy.PluginManager, plugin: object, name: str, guard: Callable[[str], Guard]
) -> StandIn:
    """A stand-in for ``plugin`` to register with ``manager``.

    Args:
        manager: knows which attributes of ``plugin`` are implementations.
        plugin: a module or an instance.
        name: of the plugin.
        guard: the guard of a hook, by the hook's name; raises for one that does not exist.
    """
    module, implements = ModuleType(name), []
    for attribute in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, attribute)
        if options is None:
            continue
        hook = options.get("specname") or attribute
        if options.get("optionalhook") and not hasattr(manager.hook, hook):
            continue  # meant for another version of hasten
        implements.append(hook)
        setattr(module, attribute, _guarded(getattr(plugin, attribute), guard(hook), options))
    return StandIn(module, tuple(implements))


def _guarded(function: Callable[..., Any], guard: Guard, options: Mapping[str, Any]) -> Callable[..., Any]:
    if not (options.get("wrapper") or options.get("hookwrapper")):
        return guard.plain(function)
    if not inspect.isgeneratorfunction(function):
        return function  # pluggy refuses it
    return guard.wrapper(function, old_style=bool(options.get("hookwrapper")))
