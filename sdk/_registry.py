"""What plugins contributed, by name, with the plugin that each thing came from. Invalid contributions are refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from hasten._errors import PluginError, UnsupportedError
from hasten._models import Model
from hasten._options import options_of
from hasten._technique import Sameness, Technique

if TYPE_CHECKING:
    from hasten._adapters.base import Adapter

__all__ = ["RESERVED", "Metric", "Registry"]

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
_MODEL_NAME = re.compile(r"[a-z0-9-]+/[a-z0-9-]+\Z")
RESERVED = frozenset({"name", "techniques", "schema"})
"""Words a configuration file uses itself, so that no technique and no option may be called that."""


@dataclass(frozen=True)
class Metric:
    """A quality metric: ``factory(**options)`` makes it, ``summary`` is one line for listings."""

    name: str
    factory: Callable[..., Any]
    summary: str


class Registry:
    """Techniques, adapters, metrics and named models, and which plugin owns each."""

    def __init__(self) -> None:
        self.techniques: dict[str, type[Technique[Any]]] = {}
        self.adapters: dict[str, Adapter] = {}
        """By pipeline class name; refused classes included."""
        self.metrics: dict[str, Metric] = {}
        self.models: dict[str, Model] = {}
        self._owner: dict[tuple[str, str], str] = {}

    def add_technique(self, plugin: str, technique: type[Technique[Any]]) -> None:
        """Add a technique class.

        Raises:
            PluginError: it is no technique, its configuration is not strict, or the name is taken.
        """
        _check_technique(technique)
        self._claim(plugin, "technique", technique.name)
        self.techniques[technique.name] = technique

    def add_adapter(self, plugin: str, adapter: Adapter) -> None:
        """Add what is known of a pipeline family.

        Raises:
            PluginError: the family or one of its pipeline classes is described by another plugin already.
        """
        _check_adapter(adapter)
        covered = (*adapter.pipelines, *(adapter.refused or ()))
        if not covered:
            raise PluginError(f"the adapter of family {adapter.family!r} covers no pipeline class")
        for name in covered:
            if name in self.adapters and self.adapters[name] is not adapter:
                other = self.adapters[name].family
                raise PluginError(
                    f"the adapters of {adapter.family!r} and {other!r} both cover {name}; keep one of them"
                )
        self._claim(plugin, "adapter", adapter.family)
        self.adapters.update(dict.fromkeys(covered, adapter))

    def add_metric(self, plugin: str, name: str, factory: Callable[..., Any], summary: str) -> None:
        """Add a quality metric.

        Raises:
            PluginError: the name is malformed or taken, or ``factory`` cannot be called.
        """
        _check_name("metric", name)
        if not callable(factory):
            raise PluginError(f"metric {name!r}: the factory {factory!r} is not callable")
        if not isinstance(summary, str):
            raise PluginError(f"metric {name!r}: the summary is one line of text, not {summary!r}")
        self._claim(plugin, "metric", name)
        self.metrics[name] = Metric(name, factory, summary)

    def add_model(self, plugin: str, model: Model) -> None:
        """Add a pipeline that :func:`hasten.load` knows by name.

        Raises:
            PluginError: it is no :class:`Model`, or its name is malformed or taken.
        """
        if not isinstance(model, Model):
            raise PluginError(f"{model!r} is not a hasten.Model")
        if not _MODEL_NAME.match(model.name):
            raise PluginError(
                f"model name {model.name!r} must be two words of lower-case letters, digits and hyphens with a slash "
                "between them, as in mini/t2i-dit"
            )
        self._claim(plugin, "model", model.name)
        self.models[model.name] = model

    def adapter(self, pipe: object, *, allow_unverified: bool = False) -> Adapter:
        """The adapter of the most specific class of ``pipe`` that is known.

        Args:
            pipe: the pipeline.
            allow_unverified: take the adapter of its denoiser's class where the pipeline's is unknown.

        Raises:
            UnsupportedError: the family is unknown, or this pipeline of it is refused.
        """
        for cls in type(pipe).__mro__:
            adapter = self.adapters.get(cls.__name__)
            if adapter is None:
                continue
            reason = (adapter.refused or {}).get(cls.__name__)
            if reason is not None:
                raise UnsupportedError(f"{type(pipe).__name__} cannot be accelerated: {reason}")
            return adapter
        if any(cls.__name__ == "ModularPipeline" for cls in type(pipe).__mro__):
            raise UnsupportedError(
                f"{type(pipe).__name__} is a modular pipeline: its blocks call the denoiser without a pipeline call "
                f"that hasten could wrap; use the pipeline class of the same model"
            )
        known = self._by_denoiser(pipe)
        if known is not None and allow_unverified:
            return known
        offer = (
            ""
            if known is None
            else f" Its denoiser is one of family {known.family!r}: pass allow_unverified=True to use that adapter, "
            "which is checked against stock in the first forward."
        )
        families = ", ".join(sorted({adapter.family for adapter in self.adapters.values()})) or "none"
        raise UnsupportedError(
            f"no adapter describes {type(pipe).__name__} or a class it derives from. Known families: {families}. "
            "Write a hasten.extend.Adapter for it and register it with hasten_register_adapters "
            f"(docs/plugins.md shows how).{offer}"
        )

    def knows(self, pipe: object) -> bool:
        """Whether an adapter names the class of ``pipe`` or one it derives from."""
        return any(cls.__name__ in self.adapters for cls in type(pipe).__mro__)

    def _by_denoiser(self, pipe: object) -> Adapter | None:
        """The adapter whose denoisers are of a class that it describes."""
        for adapter in {id(a): a for a in self.adapters.values()}.values():
            modules = [getattr(pipe, name, None) for name in adapter.denoisers]
            found = [type(getattr(m, "_orig_mod", m)).__name__ for m in modules if m is not None]
            if found and all(name in adapter.models for name in found):
                return adapter
        return None

    def owner(self, kind: str, name: str) -> str | None:
        """The plugin that a ``"technique"``, ``"adapter"`` or ``"metric"`` came from."""
        return self._owner.get((kind, name))

    def provided_by(self, plugin: str) -> tuple[str, ...]:
        """What ``plugin`` registered, as ``"technique bottleneck"``."""
        return tuple(f"{kind} {name}" for (kind, name), owner in self._owner.items() if owner == plugin)

    def forget(self, plugin: str) -> None:
        """Drop everything ``plugin`` registered."""
        for (kind, name), owner in list(self._owner.items()):
            if owner != plugin:
                continue
            del self._owner[kind, name]
            if kind == "technique":
                del self.techniques[name]
            elif kind == "metric":
                del self.metrics[name]
            elif kind == "model":
                del self.models[name]
            else:
                self.adapters = {key: a for key, a in self.adapters.items() if a.family != name}

    def _claim(self, plugin: str, kind: str, name: str) -> None:
        other = self._owner.get((kind, name))
        if other is not None:
            raise PluginError(
                f"{kind} {name!r} is registered by the plugins {plugin!r} and {other!r}; rename one, or "
                f"uninstall or block one of the plugins"
            )
        self._owner[kind, name] = plugin


def _check_name(kind: str, name: object) -> None:
    if not isinstance(name, str) or not _NAME.match(name) or name in RESERVED:
        raise PluginError(
            f"{kind} name {name!r} must be lower-case letters, digits and underscores, and none of {sorted(RESERVED)}"
        )


def _check_technique(technique: type[Technique[Any]]) -> None:
    if not (isinstance(technique, type) and issubclass(technique, Technique)):
        raise PluginError(f"{technique!r} is not a subclass of hasten.Technique")
    place = technique.__qualname__
    missing = [key for key in ("name", "summary", "config_class") if not hasattr(technique, key)]
    missing += sorted(technique.__abstractmethods__)
    if missing:
        raise PluginError(f"technique class {place} lacks {', '.join(missing)}")
    _check_name("technique", technique.name)
    _check_options(technique.config_class, place)
    for attribute, right, wanted in (
        ("summary", isinstance(technique.summary, str), "one line of text"),
        ("requires", _are_types(technique.requires), "a tuple of capability classes"),
        ("sameness", technique.sameness in get_args(Sameness), f"one of {', '.join(get_args(Sameness))}"),
        ("varies_by_prompt", isinstance(technique.varies_by_prompt, bool), "True or False"),
    ):
        if not right:
            raise PluginError(f"{place}.{attribute} must be {wanted}, not {getattr(technique, attribute)!r}")


def _check_options(declared: object, place: str) -> None:
    try:
        kinds = options_of(declared).kinds
    except TypeError as error:
        raise PluginError(f"{place}.config_class must be {error}, not {declared!r}") from None
    for kind in kinds:
        if not kind.model_config.get("frozen") or kind.model_config.get("extra") != "forbid":
            raise PluginError(f"{kind.__qualname__} must stay frozen and keep extra='forbid'")
        if clash := sorted(RESERVED & set(kind.model_fields)):
            raise PluginError(f"{kind.__qualname__} uses reserved option names: {', '.join(clash)}")


def _are_types(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(item, type) for item in value)


def _check_adapter(adapter: Adapter) -> None:
    from hasten._adapters.base import Adapter

    if not isinstance(adapter, Adapter):
        raise PluginError(f"{adapter!r} is not a hasten.extend.Adapter")
    if not isinstance(adapter.family, str) or not adapter.family:
        raise PluginError(f"the family of an adapter is a name, not {adapter.family!r}")
    for attribute in ("pipelines", "denoisers"):
        names = getattr(adapter, attribute)
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            raise PluginError(f"{attribute} of adapter {adapter.family!r} is a tuple of names, not {names!r}")
    if not isinstance(adapter.capabilities, tuple) or any(isinstance(c, type) for c in adapter.capabilities):
        raise PluginError(
            f"capabilities of adapter {adapter.family!r} are a tuple of instances, not {adapter.capabilities!r}"
        )
