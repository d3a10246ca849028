"""Arguments and options that the commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["BundleFolder", "BundleOut", "FullDtype", "Grain", "ModelName", "Seed", "Work", "shares"]

ModelName = Annotated[str, typer.Argument(help="A local diffusers folder, a hub id, or a bundled miniature.")]
BundleFolder = Annotated[Path, typer.Argument(help="A bundle.")]
BundleOut = Annotated[Path, typer.Argument(help="Where to write the bundle.")]
Work = Annotated[Path, typer.Option("--work", help="Work folder with the results of all stages.")]
Seed = Annotated[int, typer.Option(help="Random seed.")]
Grain = Annotated[
    int, typer.Option("--ffn", min=1, help="Channels per feed-forward unit; must be the same in every stage.")
]
FullDtype = Annotated[
    str | None, typer.Option("--dtype", help="float32, bfloat16 or float16. (default: float32)")
]
"""Of commands that compute gradients, or what is stored for good."""


def shares(text: str) -> tuple[float, ...]:
    """The numbers of ``--budgets``.

    Raises:
        ConfigError: one of them is none.
    """
    from hasten.extend import ConfigError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--budgets: expected shares like 0.5,0.8, got {text!r}") from error
