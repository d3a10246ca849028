"""``hasten mini``: train, export and evaluate the miniatures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasten import commands as common

if TYPE_CHECKING:
    from hasten_miniatures.evaluate import Row

__all__ = ["app"]

app = typer.Typer(help="Train, export and evaluate the bundled miniature models.", no_args_is_help=True)

_RUNS = (
    "autoencoder, text-image, judge, t2i-dit, t2i-dit-1024, t2i-dit-4096, t2i-unet, t2i-outlines, "
    "video-autoencoder, t2v-dit, t2v-unet, var-tokenizer, var, infinity-tokenizer, infinity"
)
_EXPORTS = "t2i-dit, t2i-dit-4096, t2i-unet, t2v-dit, t2v-unet, var, infinity, t2i-outlines or scorers"

RunsOption = Annotated[Path, typer.Option("--runs", help="Folder that holds one run per model.")]


@app.callback()
def _main() -> None:
    """Train, export and evaluate the bundled miniature models."""


@app.command()
def train(
    name: Annotated[str, typer.Argument(help=f"A model, or a part of one: {_RUNS}.")],
    runs: RunsOption = Path("runs"),
    steps: Annotated[int | None, typer.Option(help="Number of steps (default: those of the recipe).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of initialisation and data.")] = 0,
    device: common.Device = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Use torch.compile (needs a C++ compiler).")
    ] = False,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 250,
    preview_every: Annotated[int, typer.Option(help="Steps between preview pictures.")] = 1000,
    begin_with: Annotated[
        str | None,
        typer.Option(help="Initial weights: the folder of a finished run, or a bundled mini/... model."),
    ] = None,
) -> None:
    """Train a model, after the models it builds on. An interrupted run is resumed."""
    from hasten_miniatures.runs import RunOptions, run
    from hasten_miniatures.training import Cadence

    place = common.choose_place(None, device, None)
    options = RunOptions(steps, seed, place.device, compiled, begin_with)
    run(name, runs, options, Cadence(save_every, preview_every))


@app.command()
def export(
    name: Annotated[str, typer.Argument(help=f"{_EXPORTS}.")],
    folder: Annotated[Path, typer.Argument(help="Output folder.")],
    runs: RunsOption = Path("runs"),
    prompts: Annotated[
        int, typer.Option(help="Prompts per split and size for the evaluation; 0 for none.")
    ] = 200,
    device: common.Device = None,
    dtype: common.Dtype = None,
) -> None:
    """Write a trained model in half precision, with a README about its training and its evaluation."""
    from hasten import owned
    from hasten_miniatures.export import PRODUCTS, product
    from hasten_miniatures.export import export as write

    place = common.choose_place(None, device, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    with owned(folder), _pictures(product(name).samples * prompts if name in PRODUCTS else 0) as advance:
        rows = write(name, runs, folder, prompts=prompts, place=place, progress=advance)
    _print_rows(rows)


@app.command("eval")
def evaluate_model(
    name: Annotated[str, typer.Argument(help="A bundled miniature, or a folder.")] = "mini/t2i-dit",
    prompts: Annotated[int, typer.Option(help="Prompts per split (and size).")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of prompts and noise.")] = 0,
    device: common.Device = None,
    dtype: common.Dtype = None,
    as_json: common.Json = False,
) -> None:
    """Measure which share of the requested attributes the pictures or videos have. Exit code 3 if a bar is missed."""
    from dataclasses import asdict

    from hasten.pipelines.mini import path, product_name, recommended_call
    from hasten_miniatures.export import product

    place = common.choose_place(None, device, dtype)
    folder = Path(name) if Path(name).is_dir() else path(name)
    pipe = common.load_quietly(str(folder), place)
    made = product(product_name(name))
    with _pictures(made.samples * prompts) as advance:
        rows = made.measure(pipe, recommended_call(name), prompts, seed, advance)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        _print_rows(rows)
    if any(row.missed for row in rows):
        raise typer.Exit(3)


@contextmanager
def _pictures(total: int) -> Iterator[Callable[[int], None]]:
    from hasten.commands import showing_progress

    count = 0
    with showing_progress(quiet=not total) as tell:

        def advance(done: int) -> None:
            nonlocal count
            count += done
            tell("pictures", count, total)

        yield advance


def _print_rows(rows: Sequence[Row]) -> None:
    from hasten.commands import Console, Table

    if not rows:
        return
    table = Table(
        title=f"Share of the requested attributes, {rows[0].prompts} prompts per row (miniature figures)"
    )
    for column in ("prompts", "pixels", "judge", "right", "95 % interval", "bar"):
        figure = column in ("pixels", "right", "95 % interval", "bar")
        table.add_column(column, justify="right" if figure else "left")
    for row in rows:
        bar = "" if row.bar is None else f"{row.bar:.2f}" + (" missed" if row.missed else "")
        interval = f"{row.low:.3f} to {row.high:.3f}"
        table.add_row(row.split, str(row.pixels), row.judge, f"{row.right:.3f}", interval, bar)
    Console().print(table)
