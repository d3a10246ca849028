"""The untrained pipeline of the comparison's tests."""

from __future__ import annotations

from ..compare.conftest import _plugins, folder, pipe

__all__ = ["_plugins", "folder", "pipe"]
