"""Reading and writing user files: pictures, prompts, text, JSON, YAML and crash-safe records."""

from hasten._lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
