"""The command line. Exit codes: 0 done, 1 failed, 2 usage, 3 a quality gate missed, 130 interrupted."""

from __future__ import annotations

from hasten._cli._app import build_app, main

__all__ = ["build_app", "main"]
