"""The undo journal: four kinds of structural edit that can be undone in any order.

The journal stores the original value of each attribute and its edits, oldest first. Undoing one edit applies the
later ones again to the value below it, so removing one technique keeps the edits of the others. Only
instances are edited: a class, a module object or anything else that others share is refused.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from torch import nn

from hasten._compat import MODULE_STORES
from hasten._culprit import Culprit
from hasten._errors import ConflictError, PluginError

__all__ = ["Journal", "OwnedJournal"]

_log = logging.getLogger("hasten")
_ABSENT = object()


_edited: weakref.WeakValueDictionary[tuple[int, str], Journal] = weakref.WeakValueDictionary()
"""Every place that is edited now, with the journal that can take it back: pipelines may share modules."""


@dataclass
class _Edit:
    owner: str
    make: Callable[[Any], Any]
    """New value from the value below it."""


@dataclass
class _Place:
    """One attribute of one instance."""

    target: Any
    name: str
    store: dict[str, Any]
    """The dictionary that held the attribute, or the instance's ``__dict__`` where there was none."""
    original: Any
    order: tuple[str, ...]
    """Keys of ``store`` before the first edit: restoring keeps their order, which a state dict shows."""
    edits: list[_Edit] = field(default_factory=list)
    current: Any = _ABSENT


class Journal:
    """Edits of all techniques of one acceleration."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, str], _Place] = {}

    def owned(self, owner: str, culprit: Culprit | None = None) -> OwnedJournal:
        """The journal of the technique ``owner``; ``culprit`` names it in errors of its wrappers."""
        return OwnedJournal(self, owner, culprit or Culprit(f"technique {owner!r}"))

    def describe(self) -> tuple[str, ...]:
        """One line per edited attribute."""
        return tuple(
            f"{type(place.target).__name__}.{place.name}: {' > '.join(edit.owner for edit in place.edits)}"
            for place in self._places.values()
        )

    def edit(self, owner: str, target: object, name: str, make: Callable[[Any], Any]) -> None:
        """Set ``target.name`` to ``make(current value)``, and record the edit.

        Raises:
            ConflictError: another acceleration, of a pipeline that shares the target, has edited the same place.
        """
        _check_instance(target, name)
        key = (id(target), name)
        if _edited.get(key, self) is not self:
            raise ConflictError(
                f"{owner!r} edits {type(target).__name__}.{name}, which another accelerated pipeline with "
                f"the same module has already edited; restore that pipeline first, or load a separate "
                f"module for this one"
            )
        place = self._places.get(key) or _place(target, name)
        below = place.current if place.edits else getattr(target, name, None)
        value = make(below)
        place.edits.append(_Edit(owner, make))
        self._places[key] = place  # noted before the write, so that a failing write is unwound too
        _edited[key] = self
        _write(place, value)

    def undo(self, owner: str) -> None:
        """Undo every edit of ``owner``, last first. Later edits of other techniques are applied again.

        Raises:
            PluginError: a wrapper of another technique failed when it was called again; that place is as it was.
        """
        problems: list[PluginError] = []
        for place in reversed(list(self._places.values())):
            if any(edit.owner == owner for edit in place.edits):
                try:
                    self._keep(place, [edit for edit in place.edits if edit.owner != owner])
                except PluginError as error:
                    problems.append(error)
        if problems:
            raise problems[0]

    def undo_all(self) -> None:
        """Undo every edit without running code of techniques."""
        for place in reversed(list(self._places.values())):
            self._keep(place, [])

    def _keep(self, place: _Place, edits: list[_Edit]) -> None:
        """Leave ``edits`` alone on a place, unless someone else has changed it."""
        place.edits = edits
        try:
            if not _ours(place):
                place.edits = []
                where = f"{type(place.target).__name__}.{place.name}"
                _log.warning("%s was changed by other code and is not restored", where)
            elif edits:
                _reapply(place)
            else:
                _restore(place)
        except PluginError:
            place.edits = []
            _restore(place)
            raise
        finally:
            if not place.edits:
                key = (id(place.target), place.name)
                del self._places[key]
                _edited.pop(key, None)


@dataclass(frozen=True)
class OwnedJournal:
    """The four primitives of structural editing, for one technique."""

    journal: Journal
    owner: str
    culprit: Culprit

    def set_attribute(self, target: object, name: str, value: object) -> None:
        """Set ``target.name = value`` on the instance (parameters, buffers and plain attributes alike).

        Raises:
            PluginError: ``target`` is a class or a module, or the attribute is computed by its class.
        """
        self.journal.edit(self.owner, target, name, lambda _: value)

    def set_processor(self, module: nn.Module, processor: object) -> None:
        """Give an attention module another processor.

        Raises:
            PluginError: the module has no processor.
        """
        if getattr(module, "processor", None) is None:
            raise PluginError(f"{self.owner}: {type(module).__name__} has no attention processor to replace")
        self.journal.edit(self.owner, module, "processor", lambda _: processor)

    def wrap_callable(self, target: object, name: str, wrapper: Callable[[Callable[..., Any]], Any]) -> None:
        """Set ``target.name = wrapper(target.name)``. ``wrapper`` is called again when an edit below is removed.

        Raises:
            PluginError: there is nothing to call, or it is a special method, which Python looks up on the class.
        """
        if name.startswith("__") or not callable(getattr(target, name, None)):
            raise PluginError(
                f"{self.owner}: cannot wrap {type(target).__name__}.{name}: it is not an ordinary method"
            )
        place = f"its wrapper of {type(target).__name__}.{name}"

        def wrapped(below: Callable[..., Any]) -> Any:
            with self.culprit.during(place):
                made = wrapper(below)
            if not callable(made):
                raise self.culprit.returned(made, place, "a callable that replaces the one it received")
            return made

        self.journal.edit(self.owner, target, name, wrapped)

    def replace_module(self, root: nn.Module, path: str, module: nn.Module) -> None:
        """Replace ``root.get_submodule(path)`` by ``module``.

        Raises:
            PluginError: there is no such submodule.
        """
        parent_path, _, name = path.rpartition(".")
        try:
            parent = root.get_submodule(parent_path)
            parent.get_submodule(name)
        except AttributeError as error:
            raise PluginError(f"{self.owner}: {type(root).__name__} has no submodule {path!r}") from error
        self.journal.edit(self.owner, parent, name, lambda _: module)


def _check_instance(target: object, name: str) -> None:
    if isinstance(target, (type, ModuleType)):
        raise PluginError(f"cannot edit {target!r}: only instances are edited, never a class or a module")
    if not hasattr(target, "__dict__"):
        raise PluginError(
            f"cannot edit {type(target).__name__}.{name}: the object has no instance attributes"
        )
    for cls in type(target).__mro__:
        if name in vars(cls):
            if hasattr(vars(cls)[name], "__set__"):
                raise PluginError(f"cannot edit {type(target).__name__}.{name}: {cls.__name__} computes it")
            return


def _place(target: object, name: str) -> _Place:
    store = vars(target)
    if isinstance(target, nn.Module):
        inner = (vars(target).get(kind) or {} for kind in MODULE_STORES)
        store = next((held for held in inner if name in held), store)
    return _Place(target, name, store, store.get(name, _ABSENT), tuple(store))


def _store_for(place: _Place, value: object) -> dict[str, Any]:
    """Where ``value`` belongs: a module keeps parameters, buffers and children apart from plain attributes."""
    own: dict[str, Any] = vars(place.target)
    if not isinstance(place.target, nn.Module):
        return own
    parameters: dict[str, Any]
    buffers: dict[str, Any]
    modules: dict[str, Any]
    parameters, buffers, modules = (own[name] for name in MODULE_STORES)
    for cls, store in ((nn.Parameter, parameters), (nn.Module, modules)):
        if isinstance(value, cls):
            return store
    keeps = value is None or hasattr(value, "shape")
    if keeps and (place.store is parameters or place.store is buffers):
        return place.store
    return own


def _write(place: _Place, value: object) -> None:
    store = _store_for(place, value)
    for other in _stores(place):
        if other is not store:
            other.pop(place.name, None)
    store[place.name] = value
    place.current = value


def _stores(place: _Place) -> list[dict[str, Any]]:
    target = vars(place.target)
    return (
        [target, *(target[kind] for kind in MODULE_STORES)]
        if isinstance(place.target, nn.Module)
        else [target]
    )


def _held(place: _Place) -> Any:
    return next((store[place.name] for store in _stores(place) if place.name in store), _ABSENT)


def _ours(place: _Place) -> bool:
    return place.current is _ABSENT or _held(place) is place.current


def _reapply(place: _Place) -> None:
    """Run the remaining edits again, from the original upwards."""
    _restore(place)
    value = getattr(place.target, place.name, None)
    for edit in place.edits:
        value = edit.make(value)
    _write(place, value)


def _restore(place: _Place) -> None:
    for store in _stores(place):
        store.pop(place.name, None)
    place.current = _ABSENT
    if place.original is _ABSENT:
        return
    place.store[place.name] = place.original
    late = list(place.order[place.order.index(place.name) + 1 :])
    for name in [*late, *(key for key in place.store if key not in place.order)]:
        if name in place.store:
            place.store[name] = place.store.pop(name)
