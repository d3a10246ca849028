"""Make an existing diffusion or visual-autoregressive pipeline faster, and measure the effect on quality.

>>> import hasten
>>> [entry.name for entry in hasten.Config.of(["bottleneck"]).techniques]
['bottleneck']
>>> with hasten.accelerate(pipe, ["bottleneck"]) as accel:  # doctest: +SKIP
...     image = pipe("a red fox").images[0]
...     print(accel.report())

Importing this package imports neither torch nor diffusers; its names are loaded on first use.
"""

import logging

from hasten._lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)

logging.getLogger(__name__).addHandler(logging.NullHandler())
