"""Infinity: text to image by next-scale prediction of bits, as a diffusers pipeline.

``InfinityPipeline.from_original`` loads the published checkpoints, ``from_pretrained`` a folder in diffusers layout.
"""

from hasten.extend import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
