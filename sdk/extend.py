"""The public door for authors of techniques and adapters. Everything `hasten`'s own techniques use is here.

    from hasten.extend import Access, Claim, Technique, TechniqueConfig, hookimpl

``docs/plugins.md`` shows how to write a plugin; :mod:`hasten.testing` checks one.
"""

from hasten._lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
