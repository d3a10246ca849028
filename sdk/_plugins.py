"""The plugin host: loads built-in and external plugins one by one, and keeps what they registered.

A plugin that fails to import, or that registers something invalid, is recorded and set aside with everything it
had registered; the others are unaffected. Hooks are called by pluggy, each implementation inside a guard.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import EntryPoint, distributions, entry_points, version
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import pluggy

from hasten import _hookspecs
from hasten._answers import checked_findings
from hasten._culprit import Culprit, explain
from hasten._errors import ConfigError, HastenError, PluginError, suggestion
from hasten._hookguard import Guard, guarded_plugin
from hasten._hookspecs import PROJECT
from hasten._registry import Metric, Registry

if TYPE_CHECKING:
    from hasten._plan import Plan
    from hasten._report import Report
    from hasten._technique import Finding, Technique

__all__ = ["BLOCK_VARIABLE", "BUILT_IN", "Host", "PluginRecord", "host"]

_log = logging.getLogger("hasten")

BLOCK_VARIABLE = "HASTEN_BLOCK_PLUGINS"
"""Environment variable: ``1`` blocks every external plugin, a comma list blocks those named."""

BUILT_IN = (
    "hasten.pipelines.adapters",
    "hasten.plugins.aptp.plugin",
    "hasten.plugins.bottleneck.plugin",
    "hasten.plugins.cache.plugin",
    "hasten.plugins.guidance_interval.plugin",
    "hasten.plugins.hack.plugin",
    "hasten.plugins.rettention.plugin",
    "hasten.plugins.video_infinity.plugin",
    "hasten.pipelines.mini.plugin",
    "hasten.eval.builtin",
    "hasten.eval.commands",
    "hasten.eval.bench.commands",
)
"""Modules that come with `hasten`; they enter through the same hooks as external plugins."""


_HOOK_NAMES = tuple(hook.__name__ for hook in _hookspecs.HOOKS)
_KNOWN = ", ".join(_HOOK_NAMES)


@dataclass(frozen=True)
class PluginRecord:
    """What became of one plugin.

    Args:
        name: module name of a built-in plugin, entry-point name of an external one.
        origin: ``"built-in"``, ``"external"`` (an installed distribution) or ``"local"`` (registered by hand).
        distribution: name of the distribution it came from.
        version: version of that distribution.
        provides: what it registered, as ``"technique bottleneck"`` or ``"adapter flux"``.
        error: why it could not be used, ``None`` if it could.
        blocked: whether the environment asked not to load it.
    """

    name: str
    origin: Literal["built-in", "external", "local"]
    distribution: str = ""
    version: str = ""
    provides: tuple[str, ...] = ()
    error: str | None = None
    blocked: bool = False

    def __str__(self) -> str:
        source = f"{self.distribution} {self.version}".strip()
        return f"{self.name} ({source})" if source and source != self.name else self.name


Contribution = Callable[[PluginRecord], AbstractContextManager[Any]]
"""Opened around what one plugin adds to the command line."""


class Host:
    """Plugins and what they registered. :func:`host` gives the one of this process.

    Args:
        built_in: modules to load first.
        external: whether installed distributions are asked for plugins.
    """

    def __init__(self, built_in: tuple[str, ...] = BUILT_IN, *, external: bool = True) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(_hookspecs)
        self._records: dict[str, PluginRecord] = {}
        self._admitting: PluginRecord | None = None
        self._contribution: Contribution = nullcontext
        self.registry = registry = Registry()
        for hook, add in (
            ("hasten_register_techniques", registry.add_technique),
            ("hasten_register_adapters", registry.add_adapter),
            ("hasten_register_metrics", registry.add_metric),
            ("hasten_register_models", registry.add_model),
        ):
            getattr(self._manager.hook, hook).call_historic(kwargs={"register": self._registering(add)})
        for module in built_in:
            record = PluginRecord(module, "built-in", PROJECT, version(PROJECT))
            self._load(record, partial(importlib.import_module, module))
        for point in self._entry_points() if external else ():
            self._load_external(point)

    @property
    def plugins(self) -> tuple[PluginRecord, ...]:
        """Every plugin that was found, in loading order, broken and blocked ones included."""
        return tuple(self._records.values())

    def register(self, plugin: object, name: str) -> Callable[[], None]:
        """Register a plugin object by hand and return the function that takes it out again.

        Raises:
            PluginError: the plugin is invalid.
        """
        if name in self._records:
            raise PluginError(f"a plugin named {name!r} is already registered; choose another name")
        self._admit(PluginRecord(name, "local"), plugin)

        def unregister() -> None:
            if self._manager.unregister(name=name) is not None:
                self.registry.forget(name)
                del self._records[name]

        return unregister

    def culprit(self, kind: str, name: str) -> Culprit:
        """Whom to name for a fault of a contribution: ``kind`` is ``"technique"``, ``"adapter"`` or ``"metric"``."""
        record = self._records.get(self.registry.owner(kind, name) or "")
        return Culprit((f"plugin {record}: " if record else "") + f"{kind} {name!r}")

    def technique(self, name: str) -> type[Technique[Any]]:
        """The technique class called ``name``.

        Raises:
            ConfigError: there is none; the message names the nearest one and every plugin that failed to load.
        """
        found = self.registry.techniques.get(name)
        if found is None:
            known = ", ".join(sorted(self.registry.techniques)) or "none"
            hint = suggestion(name, self.registry.techniques)
            raise ConfigError(f"unknown technique {name!r}{hint} Known: {known}.{self._casualties()}")
        return found

    def metric(self, name: str) -> Metric:
        """The quality metric called ``name``.

        Raises:
            ConfigError: there is none.
        """
        found = self.registry.metrics.get(name)
        if found is None:
            known = ", ".join(sorted(self.registry.metrics)) or "none"
            hint = suggestion(name, self.registry.metrics)
            raise ConfigError(f"unknown metric {name!r}{hint} Known: {known}.{self._casualties()}")
        return found

    def add_commands(self, app: object, contribution: Contribution = nullcontext) -> None:
        """Let every plugin extend the command line, built-in ones first; one that fails is recorded and skipped.

        Args:
            app: the ``typer.Typer``.
            contribution: opened around each plugin's part; takes that part back, and says why, if it raises.
        """
        self._contribution = contribution
        hook = "hasten_register_commands"
        plugins = {name: plugin for name, plugin in self._manager.list_name_plugin() if plugin is not None}
        built_in = {plugins[name] for name in plugins if self._records[name].origin == "built-in"}
        for others in (set(plugins.values()) - built_in, built_in):
            self._manager.subset_hook_caller(hook, others)(app=app)

    def add_benchmarks(self, group: object) -> None:
        """Let every plugin add to ``hasten bench``, a ``typer.Typer``; one that fails is recorded and skipped."""
        self._manager.hook.hasten_register_benchmarks(group=group)

    def comment(self, plan: Plan) -> list[Finding]:
        """Findings of every ``hasten_plan`` hook, each prefixed with the plugin it came from.

        Raises:
            PluginError: a hook failed with something else than a :class:`HastenError`, or returned no findings.
        """
        return [*chain.from_iterable(self._manager.hook.hasten_plan(plan=plan))]

    def run_finished(self, report: Report) -> None:
        """Show a report to every plugin. A plugin that fails costs a warning, not the user's image."""
        self._manager.hook.hasten_run_finished(report=report)

    def _entry_points(self) -> Iterator[EntryPoint]:
        """Entry points of our group. A distribution whose list cannot be read hides no other's."""
        try:
            yield from entry_points(group=PROJECT)
        except Exception as error:
            _log.warning("the entry points of a distribution cannot be read: %s", explain(error))
            for distribution in distributions():
                name = str(distribution.metadata["Name"])
                try:
                    yield from distribution.entry_points.select(group=PROJECT)
                except Exception as problem:
                    record = PluginRecord(name, "external", name, str(distribution.metadata["Version"]))
                    text = f"its entry_points.txt cannot be read: {explain(problem)}; install {name} again"
                    self._records.setdefault(name, replace(record, error=text))

    def _load_external(self, point: EntryPoint) -> None:
        distribution = point.dist.name if point.dist else ""
        version = point.dist.version if point.dist else ""
        record = PluginRecord(point.name, "external", distribution, version)
        if _blocked(point.name, distribution):
            self._records[point.name] = replace(record, blocked=True)
            return
        if point.name in self._records:
            other = self._records[point.name]
            error = f"the entry-point name {point.name!r} is already used by {other}; uninstall one of them"
            self._records[f"{point.name} ({distribution})"] = replace(record, error=error)
            return
        self._load(record, point.load)

    def _load(self, record: PluginRecord, load: Callable[[], object]) -> None:
        try:
            self._admit(record, load())
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever a foreign module does at import, the tool goes on
            self._set_aside(record, explain(error))

    def _admit(self, record: PluginRecord, plugin: object) -> None:
        """Register hooks and contributions of one plugin, all or nothing."""
        culprit = Culprit(f"plugin {record}")
        self._admitting = record
        try:
            with culprit.during("its registration"):
                _check_plugin(plugin, culprit)
                guard = partial(self._guard, culprit, record)
                stand_in = guarded_plugin(self._manager, plugin, record.name, guard)
                if not stand_in.implements:
                    raise culprit.broke(
                        f"implements no hook; write one of {_KNOWN}, marked with @hasten.hookimpl"
                    )
                self._manager.register(stand_in.module, record.name)
        except BaseException as error:
            self._expel(record.name)
            if isinstance(error.__cause__, pluggy.PluginValidationError):
                raise PluginError(f"plugin {record}: {error.__cause__}") from error.__cause__
            raise
        finally:
            self._admitting = None
        self._records[record.name] = replace(record, provides=self.registry.provided_by(record.name))

    def _registering(self, add: Callable[..., None]) -> Callable[..., None]:
        """The ``register`` that hooks get: it belongs to the plugin being registered."""

        def register(*arguments: Any) -> None:
            if self._admitting is None:
                raise PluginError(
                    "register() was called after its hook had returned; call it inside the hook"
                )
            add(self._admitting.name, *arguments)

        return register

    def _guard(self, culprit: Culprit, record: PluginRecord, hook: str) -> Guard:
        """How the implementations of ``hook`` in one plugin are called."""
        answers = _Answers(culprit, hook, record.name)
        nothing = answers.nothing

        def record_it(error: HastenError) -> None:
            cause = error.__cause__
            self._set_aside(self._records[record.name], explain(cause) if cause else str(error))

        if hook == "hasten_plan":
            return Guard(culprit, hook, answers.findings, answers.combined, _fail)
        if hook == "hasten_run_finished":
            return Guard(culprit, hook, nothing, _unchanged, _warn)
        if hook == "hasten_register_benchmarks":
            return Guard(culprit, hook, nothing, _unchanged, record_it)
        if hook == "hasten_register_commands":
            around = partial(self._contribute, record)
            return Guard(culprit, hook, nothing, _unchanged, record_it, around)
        if hook in _HOOK_NAMES:
            return Guard(culprit, hook, nothing, _unchanged, _fail)
        raise culprit.broke(
            f"implements an unknown hook {hook!r}{suggestion(hook, _HOOK_NAMES)} Known: {_KNOWN}."
        )

    def _contribute(self, record: PluginRecord) -> AbstractContextManager[Any]:
        return self._contribution(record)

    def _set_aside(self, record: PluginRecord, error: str) -> None:
        self._records[record.name] = replace(record, error=error)
        _log.warning("plugin %s is not available: %s", record, error)

    def _expel(self, name: str) -> None:
        if self._manager.has_plugin(name):
            self._manager.unregister(name=name)
        self.registry.forget(name)

    def _casualties(self) -> str:
        broken = [f"{record}: {record.error}" for record in self.plugins if record.error]
        blocked = [str(record) for record in self.plugins if record.blocked]
        text = f" Plugins that failed to load: {'; '.join(broken)}." if broken else ""
        if blocked:
            text += f" Blocked by {BLOCK_VARIABLE}: {', '.join(blocked)}."
        return text


@dataclass(frozen=True)
class _Answers:
    """What the implementations of one hook in one plugin may return."""

    culprit: Culprit
    hook: str
    plugin: str

    def nothing(self, answer: object) -> None:
        """Nobody reads the answer."""
        if answer is not None:
            raise self.culprit.returned(answer, self.hook, "nothing")

    def findings(self, answer: object) -> list[Finding] | None:
        """A list of findings, each marked with the plugin's name."""
        if answer is None:
            return None
        found = checked_findings(answer, self.culprit, self.hook)
        return [replace(finding, message=f"{self.plugin}: {finding.message}") for finding in found]

    def combined(self, before: Sequence[Any], after: Any) -> list[list[Finding]]:
        """What a wrapper makes of the findings of others."""
        if not isinstance(after, list):
            place = f"its wrapper of {self.hook}"
            raise self.culprit.returned(after, place, "the list of results that its yield returned")
        theirs = {id(answer) for answer in before}
        return [answer if id(answer) in theirs else self.findings(answer) or [] for answer in after]


def _fail(error: HastenError) -> None:
    raise error


def _warn(error: HastenError) -> None:
    warnings.warn(str(error), RuntimeWarning, stacklevel=2)


def _unchanged(before: object, after: object) -> Any:  # noqa: ARG001
    """Nobody reads the answers of most hooks: what a wrapper makes of them is dropped."""
    return before


def _check_plugin(plugin: object, culprit: Culprit) -> None:
    """Refuse mistakes that pluggy would pass over in silence."""
    if isinstance(plugin, type):
        raise culprit.broke(
            f"is the class {plugin.__qualname__}; let the entry point name a module or an instance"
        )
    for name in _HOOK_NAMES:
        found = getattr(plugin, name, None)
        if callable(found) and not hasattr(found, f"{PROJECT}_impl"):
            raise culprit.broke(f"has a function {name} without a decorator; put @hasten.hookimpl above it")


def _blocked(*names: str) -> bool:
    value = os.environ.get(BLOCK_VARIABLE, "").strip()
    if value.lower() in ("", "0", "false", "no"):
        return False
    if value.lower() in ("1", "true", "yes", "all"):
        return True
    return any(name in {part.strip() for part in value.split(",")} for name in names)


_lock = threading.RLock()
_host: Host | None = None
_being_made = False


def host() -> Host:
    """The host of this process, with every plugin loaded on the first call.

    Raises:
        PluginError: a plugin asks for it while it is being imported or registered.
    """
    global _host, _being_made
    with _lock:
        if _host is None:
            if _being_made:
                raise PluginError(
                    "plugins are still being loaded; call hasten.accelerate, hasten.plan and similar "
                    "functions inside functions, not while a plugin is imported or registered"
                )
            _being_made = True
            try:
                _host = Host()
            finally:
                _being_made = False
        return _host
