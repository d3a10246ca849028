"""The plugin host: loads built-in and external plugins one by one, and keeps what they registered.

A plugin that fails to import, or that registers something invalid, is recorded and set aside with everything it
had registered; the others are unaffected.
"""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Literal

import pluggy

from hasten import _hookspecs
from hasten._errors import ConfigError, HastenError, PluginError, suggestion
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
    "hasten.plugins.hack.plugin",
    "hasten.plugins.rettention.plugin",
    "hasten.plugins.video_infinity.plugin",
    "hasten.pipelines.mini.plugin",
    "hasten.eval.builtin",
    "hasten.eval.commands",
    "hasten.eval.bench.commands",
)
"""Modules that come with `hasten`; they enter through the same hooks as external plugins."""


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
        self.registry = Registry()
        for module in built_in:
            self._load(PluginRecord(module, "built-in", PROJECT), partial(importlib.import_module, module))
        for point in entry_points(group=PROJECT) if external else ():
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
            raise PluginError(f"a plugin named {name!r} is registered already; choose another name")
        self._admit(PluginRecord(name, "local"), plugin)

        def unregister() -> None:
            if self._manager.unregister(name=name) is not None:
                self.registry.forget(name)
                del self._records[name]

        return unregister

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

    def add_commands(self, app: object) -> None:
        """Let every plugin extend the command line; one that fails is recorded and skipped."""
        for name, call in self._each("hasten_register_commands"):
            try:
                call(app=app)
            except Exception as error:
                self._records[name] = replace(self._records[name], error=_explain(error))
                _log.warning("plugin %s could not add its commands: %s", self._records[name], error)

    def comment(self, plan: Plan) -> list[Finding]:
        """Findings of every ``hasten_plan`` hook, each prefixed with the plugin it came from.

        Raises:
            PluginError: a hook failed with something else than a :class:`HastenError`.
        """
        findings: list[Finding] = []
        for name, call in self._each("hasten_plan"):
            try:
                answers = [finding for answer in call(plan=plan) for finding in answer]
            except HastenError:
                raise
            except Exception as error:
                raise PluginError(
                    f"plugin {self._records[name]} failed in hasten_plan: {_explain(error)}"
                ) from error
            findings.extend(replace(f, message=f"{name}: {f.message}") for f in answers)
        return findings

    def run_finished(self, report: Report) -> None:
        """Show a report to every plugin. A plugin that fails costs a warning, not the user's image."""
        for name, call in self._each("hasten_run_finished"):
            try:
                call(report=report)
            except Exception as error:
                text = f"plugin {self._records[name]} failed in hasten_run_finished: {_explain(error)}"
                warnings.warn(text, RuntimeWarning, stacklevel=2)

    def _each(self, hook: str) -> Iterator[tuple[str, Callable[..., list[Any]]]]:
        """The callers of one hook, one per plugin, so that a failure has a name."""
        everyone = {impl.plugin for impl in getattr(self._manager.hook, hook).get_hookimpls()}
        for name, plugin in self._manager.list_name_plugin():
            if plugin in everyone:
                yield name, self._manager.subset_hook_caller(hook, everyone - {plugin})

    def _load_external(self, point: EntryPoint) -> None:
        distribution = point.dist.name if point.dist else ""
        version = point.dist.version if point.dist else ""
        record = PluginRecord(point.name, "external", distribution, version)
        if _blocked(point.name, distribution):
            self._records[point.name] = replace(record, blocked=True)
            return
        if point.name in self._records:
            other = self._records[point.name]
            error = f"the entry-point name {point.name!r} is taken by {other}; uninstall one of them"
            self._records[f"{point.name} ({distribution})"] = replace(record, error=error)
            return
        self._load(record, point.load)

    def _load(self, record: PluginRecord, load: Callable[[], object]) -> None:
        try:
            self._admit(record, load())
        except (Exception, SystemExit) as error:  # whatever a foreign module does at import, the tool goes on
            self._records[record.name] = replace(record, error=_explain(error))
            _log.warning("plugin %s is not available: %s", record, error)

    def _admit(self, record: PluginRecord, plugin: object) -> None:
        """Register hooks and contributions of one plugin, all or nothing."""
        try:
            self._manager.register(plugin, record.name)
            self._check_hook_names(record.name)
            self._contribute(record.name, plugin)
        except (pluggy.PluginValidationError, ValueError) as error:
            self._expel(record.name)
            raise PluginError(f"plugin {record}: {error}") from error
        except BaseException:
            self._expel(record.name)
            raise
        self._records[record.name] = replace(record, provides=self.registry.provided_by(record.name))

    def _contribute(self, name: str, plugin: object) -> None:
        registry = self.registry
        for hook, register in (
            ("hasten_register_techniques", registry.add_technique),
            ("hasten_register_adapters", registry.add_adapter),
            ("hasten_register_metrics", registry.add_metric),
            ("hasten_register_models", registry.add_model),
        ):
            for impl in getattr(self._manager.hook, hook).get_hookimpls():
                if impl.plugin is plugin:
                    impl.function(*([_owned(register, name)] if impl.argnames else []))

    def _check_hook_names(self, name: str) -> None:
        known = [hook.__name__ for hook in _hookspecs.HOOKS]
        for caller in self._manager.get_hookcallers(self._manager.get_plugin(name)) or ():
            if not caller.has_spec():
                hint = suggestion(caller.name, known)
                raise PluginError(
                    f"implements an unknown hook {caller.name!r}{hint} Known: {', '.join(known)}."
                )

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


def _owned(register: Callable[..., None], plugin: str) -> Callable[..., None]:
    def bound(*arguments: Any) -> None:
        register(plugin, *arguments)

    return bound


def _explain(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _blocked(*names: str) -> bool:
    value = os.environ.get(BLOCK_VARIABLE, "").strip()
    if value.lower() in ("", "0", "false", "no"):
        return False
    if value.lower() in ("1", "true", "yes", "all"):
        return True
    return any(name in {part.strip() for part in value.split(",")} for name in names)


@cache
def host() -> Host:
    """The host of this process, with every plugin loaded on the first call."""
    return Host()
