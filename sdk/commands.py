"""Building blocks for plugins that add commands: shared options, loading, generation, processes."""

from hasten._lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
