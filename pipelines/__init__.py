"""Pipelines of `hasten` itself, adapters of those of diffusers, and the bundled miniature."""

from hasten.extend import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
