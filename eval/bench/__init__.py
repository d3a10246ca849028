"""``hasten bench``: timings of parts of hasten on your machine, each beside its plain alternative."""

from hasten.eval.bench.group import app, show

__all__ = ["app", "show"]
