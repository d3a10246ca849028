"""Reading weights that other tools wrote: bounded, without running code, compared with the model they are for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasten._lazy import lazy_names

if TYPE_CHECKING:
    from hasten._pretrained import load_checked
    from hasten._weights import REMEDY, built, check_fit, put, read_noted, read_tensors, read_weights, require

__all__ = [
    "REMEDY",
    "built",
    "check_fit",
    "load_checked",
    "put",
    "read_noted",
    "read_tensors",
    "read_weights",
    "require",
]

_HOMES: dict[str, tuple[str, ...]] = {
    "hasten._pretrained": ("load_checked",),
    "hasten._weights": (
        "REMEDY",
        "built",
        "check_fit",
        "put",
        "read_noted",
        "read_tensors",
        "read_weights",
        "require",
    ),
}

if not TYPE_CHECKING:  # a type checker would take any name for one of these
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
