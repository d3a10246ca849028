"""What `hasten` knows of each diffusers family, one small file per family.

The families come in through the same hook as a third party's, ``hasten_register_adapters``. Looking one up
goes by class name and imports no model code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module

from hasten.commands import host
from hasten.extend import Adapter, Pipeline, hookimpl

__all__ = ["families", "find", "hasten_register_adapters"]

_FAMILIES = (
    "allegro",
    "animatediff",
    "aura_flow",
    "chroma",
    "cogvideox",
    "cogview",
    "cosmos",
    "dit",
    "easyanimate",
    "flux",
    "flux2",
    "flux_like",
    "hidream",
    "hunyuan_dit",
    "hunyuan_image",
    "hunyuan_video",
    "hunyuan_video_1_5",
    "kandinsky",
    "kandinsky5",
    "krea2",
    "latte",
    "ltx",
    "ltx2",
    "lumina",
    "lumina2",
    "marigold",
    "mochi",
    "motif_video",
    "pixart",
    "prx",
    "qwen_image",
    "sana",
    "sana_video",
    "stable_diffusion",
    "stable_diffusion_3",
    "stable_diffusion_xl",
    "stable_video_diffusion",
    "text_to_video",
    "var",
    "wan",
    "z_image",
)
"""Modules of this package that define an ``ADAPTER``, or several ``ADAPTERS``."""


@cache
def families() -> tuple[Adapter, ...]:
    """The built-in adapters, by module name."""
    found: list[Adapter] = []
    for name in _FAMILIES:
        module = import_module(f"{__name__}.{name}")
        found += getattr(module, "ADAPTERS", None) or (module.ADAPTER,)
    return tuple(found)


@hookimpl
def hasten_register_adapters(register: Callable[[Adapter], None]) -> None:
    """Offer the built-in adapters."""
    for adapter in families():
        register(adapter)


def find(pipe: Pipeline) -> Adapter:
    """The adapter of the most specific class of ``pipe`` that is known.

    Raises:
        UnsupportedError: the family is unknown, or this pipeline of it is refused.
    """
    return host().registry.adapter(pipe)
