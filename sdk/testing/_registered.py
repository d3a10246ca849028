"""Techniques and adapters that the host knows for the length of a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hasten._adapters.base import Adapter
from hasten._hookspecs import hookimpl
from hasten._plugins import host
from hasten._technique import Technique

__all__ = ["known_adapter", "known_technique"]


@contextmanager
def known_technique(technique: type[Technique[Any]]) -> Iterator[None]:
    """The technique is one that the host knows, installed or not, for the length of a ``with`` block."""
    if technique.name in host().registry.techniques:
        yield
        return

    class Plugin:
        @hookimpl
        def hasten_register_techniques(self, register: Any) -> None:
            register(technique)

    unregister = host().register(Plugin(), f"contract of {technique.name}")
    try:
        yield
    finally:
        unregister()


@contextmanager
def known_adapter(adapter: Adapter) -> Iterator[None]:
    """The adapter is one that the host knows, installed or not, for the length of a ``with`` block."""
    if adapter in host().registry.adapters.values():
        yield
        return

    class Plugin:
        @hookimpl
        def hasten_register_adapters(self, register: Any) -> None:
            register(adapter)

    unregister = host().register(Plugin(), f"contract of {adapter.family}")
    try:
        yield
    finally:
        unregister()
