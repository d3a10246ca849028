"""``hasten aptp prepare``, ``measure``, ``search``, ``tune``, ``export`` and ``cut``: from a pipeline to a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hasten import commands as common
from hasten.commands import Placement, hold_folder, printable
from hasten.plugins.aptp.commands.arguments import BundleOut, FullDtype, Grain, ModelName, Seed, Work, shares

if TYPE_CHECKING:
    from hasten.plugins.aptp.make.study import Study

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    for command in (prepare, measure, search, tune, export, cut):
        app.command()(command)


def prepare(
    context: typer.Context,
    model: ModelName,
    work: Work = Path("aptp"),
    data: Annotated[
        Path | None, typer.Option(help="Folder of pictures with captions. (default: scenes, for a miniature)")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of scenes to draw, without --data.")] = 2000,
    height: Annotated[int | None, typer.Option(min=8, help="Pixels. (default: the model's own)")] = None,
    width: Annotated[int | None, typer.Option(min=8, help="Pixels. (default: the model's own)")] = None,
    encoder: Annotated[
        str, typer.Option(help="Text encoder component, or a sentence model.")
    ] = "text_encoder",
    device: common.Device = None,
    dtype: FullDtype = None,
) -> None:
    """Encode captioned pictures: latents, conditions and router embeddings."""
    from hasten.commands import host
    from hasten.extend import ConfigError, Target
    from hasten.files import describe_unread, list_folder
    from hasten.plugins.aptp.encoder import make_encoder
    from hasten.plugins.aptp.make.capture import Conditioner
    from hasten.plugins.aptp.make.data import captioned_pictures, scene_pictures
    from hasten.plugins.aptp.make.data import prepare as write

    place = common.choose_place(None, device, dtype, default_dtype="float32")
    miniature = model in host().registry.models or (Path(model) / "hasten.json").is_file()
    if data is None and not miniature:
        raise ConfigError("--data: name a folder of pictures with captions; only miniatures have their own")
    hold_folder(context, work, "--work")
    pipe = common.load_quietly(model, place)
    target = Target.of(pipe)
    size = target.layout.call_size(pipe, target.call_arguments(height=height, width=width))
    pixels = target.layout.pixels(pipe, size)
    kind = "pipeline" if encoder.startswith("text_encoder") else "sentence"
    pictures = scene_pictures(count, pixels[0]) if data is None else captioned_pictures(data, *pixels)
    about = {"model": model, "router_encoder": kind, "router_model": encoder}
    made = write(Conditioner.of(target, size), make_encoder(kind, encoder, pipe), pictures, work, about)
    typer.echo(printable(f"{len(made.captions)} pictures of {pixels[0]} x {pixels[1]} pixels in {work}"))
    unread = list_folder(data, deep=False).unread if data is not None else {}
    if unread:
        typer.echo(printable(f"{data}: not read: {describe_unread(unread)}"), err=True)


def measure(
    context: typer.Context,
    model: ModelName,
    work: Work = Path("aptp"),
    batch: Annotated[int, typer.Option(min=1, help="Samples in a forward.")] = 1,
    rounds: Annotated[int, typer.Option(min=3, help="Turns.")] = 9,
    ffn: Grain = 64,
    device: common.Device = None,
    dtype: common.Dtype = None,
) -> None:
    """Measure the latency table for `search --on time`, at the size of the prepared data."""
    from hasten.extend import PrunableUnits
    from hasten.plugins.aptp.commands.tables import show_latencies
    from hasten.plugins.aptp.timetable import measure_table

    place = common.choose_place(None, device, dtype)
    with _study(context, _Setting(model, work, ffn, place)) as study:
        units, text = study.conditioner.target.capability(PrunableUnits), study.costs.text
        size = study.data.size
        table = measure_table(study.denoiser, units, study.structure, size, text, batch=batch, rounds=rounds)
        table.save(work)
    show_latencies(table)


def search(
    context: typer.Context,
    model: ModelName,
    work: Work = Path("aptp"),
    preset: Annotated[Literal["improved", "paper"], typer.Option(help="Recipe.")] = "improved",
    budgets: Annotated[
        str, typer.Option(help="Cost of each expert, as shares of the model's.")
    ] = "0.42,0.55,0.7,0.88",
    steps: Annotated[int, typer.Option(min=0, help="Search steps; 0 keeps the initial plans.")] = 300,
    batch: Annotated[int, typer.Option(min=1, help="Prompts in a step.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Peak.")] = 0.02,
    on: Annotated[
        Literal["macs", "time"], typer.Option(help="Unit of the budgets; time needs `measure` first.")
    ] = "macs",
    nested: Annotated[
        bool, typer.Option("--nested", help="Cheaper experts keep a subset of the units of costlier ones.")
    ] = False,
    ffn: Grain = 64,
    seed: Seed = 0,
    device: common.Device = None,
    dtype: FullDtype = None,
) -> None:
    """Search the units that each expert keeps. Continues an interrupted search by default."""
    from hasten.plugins.aptp.make.search import SearchOptions
    from hasten.plugins.aptp.make.search import search as run

    place = common.choose_place(None, device, dtype, default_dtype="float32")
    options = SearchOptions(preset, shares(budgets), steps, batch, learning_rate, seed, on, nested)
    with _study(context, _Setting(model, work, ffn, place), timed=on == "time") as study:
        found = run(study, options, work / "search")
    unit = {"macs": "multiply-accumulates", "time": "time"}[on]
    for plan, share in zip(found.plans, found.shares) if found else ():
        blocks = f", {len(plan.dropped)} blocks dropped" if plan.dropped else ""
        typer.echo(f"{share:.1%} of the {unit}{blocks}")


def tune(
    context: typer.Context,
    model: ModelName,
    work: Work = Path("aptp"),
    weights: Annotated[
        Literal["lora", "shared", "full"],
        typer.Option(
            help="Trained weights: a low-rank update per expert, one shared by all, or all weights."
        ),
    ] = "lora",
    rank: Annotated[int, typer.Option(min=1, help="Rank of the low-rank updates.")] = 4,
    steps: Annotated[int, typer.Option(min=0, help="Steps per expert.")] = 400,
    batch: Annotated[int, typer.Option(min=1, help="Prompts in a step.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Peak.")] = 2e-3,
    ffn: Grain = 64,
    seed: Seed = 0,
    device: common.Device = None,
    dtype: FullDtype = None,
) -> None:
    """Distil the base into the experts. Continues an interrupted run by default."""
    from hasten.plugins.aptp.make.search import Searched
    from hasten.plugins.aptp.make.tune import TuneOptions
    from hasten.plugins.aptp.make.tune import tune as run

    place = common.choose_place(None, device, dtype, default_dtype="float32")
    options = TuneOptions(weights, rank, steps, batch, learning_rate, seed=seed)
    searched = Searched.load(work / "search")
    with _study(context, _Setting(model, work, ffn, place)) as study:
        searched.check(study.structure, work / "search")
        run(study, searched, options, work / "tune")


def export(
    context: typer.Context,
    model: ModelName,
    folder: BundleOut,
    work: Work = Path("aptp"),
    mean_cost: Annotated[
        float | None, typer.Option(help="Mean share of the cost. (default: middle of the experts')")
    ] = None,
    prompts: Annotated[int, typer.Option(min=8, help="Calibration prompts.")] = 512,
    draws: Annotated[int, typer.Option(min=1, help="Noise draws per prompt, at four levels.")] = 2,
    segments: Annotated[
        int, typer.Option(min=1, max=8, help="Timestep segments of a route, each with its own expert.")
    ] = 1,
    ffn: Grain = 64,
    seed: Seed = 0,
    device: common.Device = None,
    dtype: FullDtype = None,
) -> None:
    """Fit the router to the errors of the experts, and write the bundle."""
    from hasten.plugins.aptp.commands.tables import show_bundle
    from hasten.plugins.aptp.make.export import ExportOptions
    from hasten.plugins.aptp.make.export import export as write
    from hasten.plugins.aptp.make.search import Searched
    from hasten.plugins.aptp.make.tune import Tuned

    place = common.choose_place(None, device, dtype, default_dtype="float32")
    searched = Searched.load(work / "search")
    tuned = Tuned.load(work / "tune", searched)
    options = ExportOptions(mean_cost, prompts, draws, segments, seed)
    about = {"command": f"hasten aptp export {model} {folder}"}
    hold_folder(context, folder)
    with _study(context, _Setting(model, work, ffn, place)) as study:
        searched.check(study.structure, work / "search")
        manifest = write(study, searched, tuned, options, folder, about)
    show_bundle(manifest)


def cut(
    context: typer.Context,
    model: ModelName,
    folder: BundleOut,
    work: Work = Path("aptp"),
    budgets: Annotated[str, typer.Option(help="Cost of each expert, as shares of the model's.")] = "0.8,0.9",
    prompts: Annotated[int, typer.Option(min=8, help="Calibration prompts.")] = 128,
    clusters: Annotated[int, typer.Option(min=1, help="Prompt clusters, each with its own experts.")] = 1,
    ffn: Grain = 64,
    seed: Seed = 0,
    device: common.Device = None,
    dtype: FullDtype = None,
) -> None:
    """Make a bundle without training: one-shot pruning with least-squares repair, for clusters of prompts."""
    from hasten.plugins.aptp.commands.tables import show_bundle
    from hasten.plugins.aptp.make.oneshot import OneShotOptions, cut_once

    place = common.choose_place(None, device, dtype, default_dtype="float32")
    options = OneShotOptions(shares(budgets), prompts, clusters, seed=seed)
    about = {"command": f"hasten aptp cut {model} {folder}"}
    hold_folder(context, folder)
    with _study(context, _Setting(model, work, ffn, place)) as study:
        show_bundle(cut_once(study, options, folder, about))


@dataclass(frozen=True)
class _Setting:
    """What every stage after ``prepare`` begins with."""

    model: str
    work: Path
    ffn: int
    place: Placement


@contextmanager
def _study(context: typer.Context, setting: _Setting, *, timed: bool = False) -> Iterator[Study]:
    """The model and its prepared data, in the process group that a launcher asks for."""
    from accelerate import PartialState  # type: ignore[import-untyped]

    from hasten.plugins.aptp.make.data import Prepared
    from hasten.plugins.aptp.make.study import Study
    from hasten.plugins.aptp.manifest import GrainEntry

    data = Prepared.load(setting.work)
    hold_folder(context, setting.work, "--work")
    state = PartialState(cpu=setting.place.device == "cpu")
    try:
        pipe = common.load_quietly(setting.model, setting.place)
        yield Study.of(pipe, data, GrainEntry(ffn=setting.ffn), setting.work if timed else None)
    finally:
        state.destroy_process_group()
