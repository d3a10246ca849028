"""Reading weights of other tools safely: with a size limit, without running code, checked against the model."""

from hasten._lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
