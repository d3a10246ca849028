"""``hasten aptp prepare``, ``measure``, ``search``, ``tune``, ``export`` and ``cut``: from a pipeline to a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from hasten import commands as common
from hasten.commands import hold_folder, printable, with_option_groups
from hasten.plugins.aptp.commands.arguments import (
    Batch,
    BundleOut,
    FullDtype,
    ModelName,
    Rounds,
    Stage,
    TimedStage,
    Work,
    shares,
)
from hasten.plugins.aptp.make.options import (
    ExportOptions,
    OneShotOptions,
    PrepareOptions,
    SearchOptions,
    TuneOptions,
)

__all__ = ["register"]

Budgets = Annotated[str, typer.Option(help="Cost of each expert, as shares of the model's.")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    for command in (prepare, measure, search, tune, export, cut):
        app.command()(with_option_groups(command))


def prepare(
    context: typer.Context,
    model: ModelName,
    options: PrepareOptions,
    work: Work = Path("aptp"),
    device: common.Device = None,
    dtype: FullDtype = None,
) -> None:
    """Encode captioned pictures: latents, conditions and router embeddings."""
    from hasten.commands import host
    from hasten.extend import ConfigError
    from hasten.files import describe_unread, list_folder
    from hasten.plugins.aptp.make.data import prepare_pipeline

    place = common.choose_place(None, device, dtype, default_dtype="float32")
    miniature = model in host().registry.models or (Path(model) / "hasten.json").is_file()
    if options.data is None and not miniature:
        raise ConfigError("--data: name a folder of pictures with captions; only miniatures have their own")
    hold_folder(context, work, "--work")
    made, (height, width) = prepare_pipeline(common.load_quietly(model, place), model, options, work)
    typer.echo(printable(f"{len(made.captions)} pictures of {height} x {width} pixels in {work}"))
    unread = list_folder(options.data, deep=False).unread if options.data is not None else {}
    if unread:
        typer.echo(printable(f"{options.data}: not read: {describe_unread(unread)}"), err=True)


def measure(
    context: typer.Context, model: ModelName, stage: TimedStage, batch: Batch = 1, rounds: Rounds = 9
) -> None:
    """Measure the latency table for `search --on time`, at the size of the prepared data."""
    from hasten.plugins.aptp.commands.tables import show_latencies
    from hasten.plugins.aptp.latency_table import measure_table

    with stage.opened(context, model) as training:
        table = measure_table(training.denoiser, training.costs, batch=batch, rounds=rounds)
        table.save(stage.work)
    show_latencies(table)


def search(
    context: typer.Context,
    model: ModelName,
    *,
    budgets: Budgets = "0.42,0.55,0.7,0.88",
    options: SearchOptions,
    stage: Stage,
) -> None:
    """Search the units that each expert keeps. Continues an interrupted search by default."""
    from hasten.plugins.aptp.make.search import search as run

    options = replace(options, budgets=shares(budgets))
    with stage.opened(context, model, timed=options.on == "time") as training:
        found = run(training, options, stage.work / "search")
    unit = {"macs": "multiply-accumulates", "time": "time"}[options.on]
    for plan, share in zip(found.plans, found.shares) if found else ():
        blocks = f", {len(plan.dropped)} blocks dropped" if plan.dropped else ""
        typer.echo(f"{share:.1%} of the {unit}{blocks}")


def tune(context: typer.Context, model: ModelName, options: TuneOptions, stage: Stage) -> None:
    """Distil the base into the experts. Continues an interrupted run by default."""
    from hasten.plugins.aptp.make.search import Searched
    from hasten.plugins.aptp.make.tune import tune as run

    searched = Searched.load(stage.work / "search")
    with stage.opened(context, model) as training:
        searched.check(training.structure, stage.work / "search")
        run(training, searched, options, stage.work / "tune")


def export(
    context: typer.Context, model: ModelName, folder: BundleOut, options: ExportOptions, stage: Stage
) -> None:
    """Fit the router to the errors of the experts, and write the bundle."""
    from hasten.plugins.aptp.commands.tables import show_bundle
    from hasten.plugins.aptp.make.export import export as write
    from hasten.plugins.aptp.make.search import Searched
    from hasten.plugins.aptp.make.tune import Tuned

    searched = Searched.load(stage.work / "search")
    tuned = Tuned.load(stage.work / "tune", searched)
    about = {"command": f"hasten aptp export {model} {folder}"}
    hold_folder(context, folder)
    with stage.opened(context, model) as training:
        searched.check(training.structure, stage.work / "search")
        manifest = write(training, searched, tuned, options, folder, about)
    show_bundle(manifest)


def cut(
    context: typer.Context,
    model: ModelName,
    folder: BundleOut,
    *,
    budgets: Budgets = "0.8,0.9",
    options: OneShotOptions,
    stage: Stage,
) -> None:
    """Make a bundle without training: one-shot pruning with least-squares repair, for clusters of prompts."""
    from hasten.plugins.aptp.commands.tables import show_bundle
    from hasten.plugins.aptp.make.oneshot import cut_once

    options = replace(options, budgets=shares(budgets))
    about = {"command": f"hasten aptp cut {model} {folder}"}
    hold_folder(context, folder)
    with stage.opened(context, model) as training:
        show_bundle(cut_once(training, options, folder, about))
