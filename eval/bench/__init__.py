"""``hasten bench``: timings of parts of hasten on your machine, each beside its plain alternative."""

from hasten.eval.bench.group import app, show

__all__ = ["app", "show"]
"""``hasten bench``: measurements of single parts, next to the plain way in the same run."""
