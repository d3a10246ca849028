"""``hasten mini``: train, export and evaluate the miniatures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(help="Train, export and evaluate the bundled miniature models.", no_args_is_help=True)

RunsOption = Annotated[Path, typer.Option("--runs", help="Folder that holds one run per model.")]


@app.callback()
def _main() -> None:
    """Train, export and evaluate the bundled miniature models."""


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="autoencoder, text-image, judge or t2i-dit")],
    runs: RunsOption = Path("runs"),
    steps: Annotated[int | None, typer.Option(help="Length of the run; default: the recipe's.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of initialisation and data.")] = 0,
    device: Annotated[str, typer.Option(help="torch device.")] = "cpu",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Use torch.compile (needs a C++ compiler).")
    ] = False,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 250,
    preview_every: Annotated[int, typer.Option(help="Steps between sheets of samples.")] = 500,
) -> None:
    """Train a model, and first what it builds on. Going on after an interruption is the default."""
    from hasten.pipelines.mini.runs import run

    run(
        name,
        runs,
        steps=steps,
        compiled=compiled,
        seed=seed,
        device=device,
        save_every=save_every,
        preview_every=preview_every,
    )
