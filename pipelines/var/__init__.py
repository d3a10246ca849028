"""VAR: class- or text-conditional next-scale generation as a diffusers pipeline.

``VARPipeline.from_original`` loads the published checkpoints, ``from_pretrained`` a folder in diffusers layout.
"""

from hasten.extend import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
