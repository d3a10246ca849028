"""Reading and writing a user's files: pictures, prompts, text, JSON, YAML and records that survive a kill."""

from hasten._lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
