"""Public interface for authors of techniques and adapters, also used by the built-in techniques.

    from hasten.extend import Access, Claim, Technique, TechniqueConfig, hookimpl

``docs/plugins.md`` shows how to write a plugin; :mod:`hasten.testing` checks one.
"""

from hasten._lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
