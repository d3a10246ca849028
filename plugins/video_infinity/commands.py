"""The command ``hasten video``."""

from typing import Any


def add_commands(app: Any) -> None:
    """Placeholder."""
