"""What `hasten` knows of each diffusers family, one small file per family.

The families come in through the same hook as a third party's, ``hasten_register_adapters``. Looking one up
goes by class name and imports no model code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from hasten._hookspecs import hookimpl
from hasten.pipelines.adapters._base import Adapter, Guidance, LatentLayout, LatentSize, Prediction
from hasten.pipelines.adapters._frames import FrameMixing

__all__ = [
    "Adapter",
    "FrameMixing",
    "Guidance",
    "LatentLayout",
    "LatentSize",
    "Prediction",
    "families",
    "find",
    "hasten_register_adapters",
]

_FAMILIES = (
    "animatediff",
    "aura_flow",
    "chroma",
    "cogvideox",
    "flux",
    "flux2",
    "hunyuan_dit",
    "hunyuan_video",
    "hunyuan_video_1_5",
    "ltx",
    "ltx2",
    "lumina2",
    "pixart",
    "qwen_image",
    "sana",
    "stable_diffusion",
    "stable_diffusion_3",
    "stable_diffusion_xl",
    "text_to_video",
    "wan",
    "z_image",
)
"""Modules of this package that define an ``ADAPTER``."""


@cache
def families() -> tuple[Adapter, ...]:
    """The built-in adapters, by module name."""
    return tuple(import_module(f"{__name__}.{name}").ADAPTER for name in _FAMILIES)


@hookimpl
def hasten_register_adapters(register: Callable[[Adapter], None]) -> None:
    """Offer the built-in adapters."""
    for adapter in families():
        register(adapter)


def find(pipe: Any) -> Adapter:
    """The built-in adapter of the most specific class of ``pipe`` that is known.

    Plugins' adapters are known to the host, see ``hasten.plan``.

    Raises:
        UnsupportedError: the family is unknown, or this pipeline of it is refused.
    """
    from hasten._registry import Registry

    registry = Registry()
    hasten_register_adapters(lambda adapter: registry.add_adapter("hasten", adapter))
    return registry.adapter(pipe)
