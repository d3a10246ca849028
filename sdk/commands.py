"""What commands are made of: options shared by all, loading, generation, processes. For plugins that add commands."""

from hasten._lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
