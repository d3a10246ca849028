"""Reading weights that other tools wrote: bounded, without running code, compared with the model they are for."""

from hasten._lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
