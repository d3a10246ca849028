"""Attributes of an object replaced for a while: the one way in which `hasten` and its techniques do that.

Values go into the instance's ``__dict__``, past ``__setattr__``: a pipeline's would edit its configuration as well, and
that of a ``torch.compile`` wrapper would write to the module it wraps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Swap", "kept", "swapped"]

_ABSENT = object()


class Swap:
    """One attribute of one instance, replaced from now until :meth:`undo`.

    Args:
        target: the instance; never a class, which others share.
        name: the attribute.
        value: what it is meanwhile.
    """

    def __init__(self, target: object, name: str, value: object) -> None:
        self._attributes, self._name, self._value = vars(target), name, value
        self._before = self._attributes.get(name, _ABSENT)
        self._attributes[name] = value

    @property
    def before(self) -> object | None:
        """The instance's own value that was replaced, or ``None`` where it had none."""
        return None if self._before is _ABSENT else self._before

    def undo(self) -> None:
        """Put back what was there, or its absence. A value that somebody else has set since stays."""
        if self._attributes.get(self._name, _ABSENT) is self._value:
            _put(self._attributes, self._name, self._before)


@contextmanager
def swapped(target: object, name: str, value: object) -> Iterator[None]:
    """``target.name`` is ``value`` for the length of a ``with`` block.

    >>> from types import SimpleNamespace
    >>> pipe = SimpleNamespace(scheduler="stock")
    >>> with swapped(pipe, "scheduler", "ours"):
    ...     print(pipe.scheduler)
    ours
    >>> pipe.scheduler
    'stock'

    Afterwards it is what it was, also after an error: the instance's own value, or none where the class has it. A value
    that somebody else has set during the block stays.

    Args:
        target: the instance; never a class, which others share.
        name: the attribute.
        value: what it is meanwhile.
    """
    swap = Swap(target, name, value)
    try:
        yield
    finally:
        swap.undo()


@contextmanager
def kept(target: object, *names: str) -> Iterator[None]:
    """The named attributes of an instance are, after a ``with`` block, what they were before it, whoever set them.

    Args:
        target: the instance; never a class, which others share.
        names: attributes that code inside the block sets or deletes.
    """
    attributes = vars(target)
    before = {name: attributes.get(name, _ABSENT) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            _put(attributes, name, value)


def _put(attributes: dict[str, object], name: str, value: object) -> None:
    if value is _ABSENT:
        attributes.pop(name, None)
    else:
        attributes[name] = value
