"""Make an existing diffusion or visual-autoregressive pipeline faster, and measure what it cost.

>>> import hasten
>>> with hasten.accelerate(pipe, {"bottleneck": {"delta": 0.05}}) as accel:  # doctest: +SKIP
...     image = pipe("a red fox").images[0]
...     print(accel.report())

Importing this package imports neither torch nor diffusers; its names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasten._acceleration import Acceleration, accelerate, acceleration_of, plan, restore
    from hasten._claims import Access, Claim
    from hasten._config import Config, apply_overrides
    from hasten._errors import (
        CheckpointError,
        ConfigError,
        ConflictError,
        HastenError,
        NumericalError,
        PluginError,
        RankError,
        UnsupportedError,
    )
    from hasten._hookspecs import hookimpl
    from hasten._load import load
    from hasten._lock import owned
    from hasten._models import Captions, Model
    from hasten._plan import Plan
    from hasten._report import Report
    from hasten._technique import Finding, Forecast, StepForecast, Technique, TechniqueConfig

    __version__: str

__all__ = [
    "Acceleration",
    "Access",
    "Captions",
    "CheckpointError",
    "Claim",
    "Config",
    "ConfigError",
    "ConflictError",
    "Finding",
    "Forecast",
    "HastenError",
    "Model",
    "NumericalError",
    "Plan",
    "PluginError",
    "RankError",
    "Report",
    "StepForecast",
    "Technique",
    "TechniqueConfig",
    "UnsupportedError",
    "__version__",
    "accelerate",
    "acceleration_of",
    "apply_overrides",
    "hookimpl",
    "load",
    "owned",
    "plan",
    "restore",
]

_HOMES = {
    "_acceleration": ("Acceleration", "accelerate", "acceleration_of", "plan", "restore"),
    "_claims": ("Access", "Claim"),
    "_config": ("Config", "apply_overrides"),
    "_errors": (
        "CheckpointError",
        "ConfigError",
        "ConflictError",
        "HastenError",
        "NumericalError",
        "PluginError",
        "RankError",
        "UnsupportedError",
    ),
    "_hookspecs": ("hookimpl",),
    "_load": ("load",),
    "_lock": ("owned",),
    "_models": ("Captions", "Model"),
    "_plan": ("Plan",),
    "_report": ("Report",),
    "_technique": ("Finding", "Forecast", "StepForecast", "Technique", "TechniqueConfig"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("hasten")
    elif name in _HOME_OF:
        value = getattr(importlib.import_module(f"hasten.{_HOME_OF[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
