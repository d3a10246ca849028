"""``hasten aptp``: make a bundle, import published ones, compare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hasten import commands as common
from hasten.commands import hold_folder, printable

if TYPE_CHECKING:
    from hasten.plugins.aptp.make.study import Study

__all__ = ["app"]

app = typer.Typer(help="Make and compare bundles of prompt-routed pruned experts.", no_args_is_help=True)

MPNET = "sentence-transformers/all-mpnet-base-v2"
ModelArgument = Annotated[
    str, typer.Argument(help="A local diffusers folder, a hub id, or a bundled miniature.")
]
WorkOption = Annotated[Path, typer.Option("--work", help="Folder that keeps what the stages make.")]
SeedOption = Annotated[int, typer.Option(help="Of everything random.")]


@app.callback()
def _main() -> None:
    """Make and compare bundles of prompt-routed pruned experts."""


@app.command()
def prepare(
    context: typer.Context,
    model: ModelArgument,
    work: WorkOption = Path("aptp"),
    data: Annotated[
        Path | None, typer.Option(help="Folder of pictures with captions. (default: scenes, for a miniature)")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Scenes to draw, without --data.")] = 2000,
    height: Annotated[int | None, typer.Option(min=8, help="Pixels. (default: the model's own)")] = None,
    width: Annotated[int | None, typer.Option(min=8, help="Pixels. (default: the model's own)")] = None,
    encoder: Annotated[
        str, typer.Option(help="Text encoder component, or a sentence model.")
    ] = "text_encoder",
) -> None:
    """Encode captioned pictures once: latents, conditions, router embeddings."""
    from accelerate import PartialState  # type: ignore[import-untyped]

    from hasten.commands import host, load
    from hasten.extend import ConfigError, Target
    from hasten.files import describe_unread, list_folder
    from hasten.plugins.aptp.encoder import make_encoder
    from hasten.plugins.aptp.make.capture import Conditioner
    from hasten.plugins.aptp.make.data import captioned_pictures, scene_pictures
    from hasten.plugins.aptp.make.data import prepare as write

    miniature = model in host().registry.models or (Path(model) / "hasten.json").is_file()
    if data is None and not miniature:
        raise ConfigError("--data: name a folder of pictures with captions; only miniatures bring their own")
    hold_folder(context, work, "--work")
    pipe = load(model).to(PartialState().device)
    pipe.set_progress_bar_config(disable=True)
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


@app.command("measure")
def measure_latency(
    context: typer.Context,
    model: ModelArgument,
    work: WorkOption = Path("aptp"),
    batch: Annotated[int, typer.Option(min=1, help="Samples in a forward.")] = 1,
    rounds: Annotated[int, typer.Option(min=3, help="Turns.")] = 9,
    ffn: Annotated[int, typer.Option(min=1, help="Channels of a feed-forward unit.")] = 64,
) -> None:
    """Measure the latency table that `search --on time` sets its budgets on, at the size of the prepared data."""
    from hasten.extend import PrunableUnits
    from hasten.plugins.aptp.timetable import measure_table

    with _study(context, model, work, ffn) as study:
        denoiser, text = study.denoiser, study.costs.text
        units = study.conditioner.target.capability(PrunableUnits)
        size = study.data.size
        table = measure_table(denoiser, units, study.structure, size, text, batch=batch, rounds=rounds)
        table.save(work)
    _show_table(table)


@app.command()
def search(
    context: typer.Context,
    model: ModelArgument,
    work: WorkOption = Path("aptp"),
    preset: Annotated[Literal["improved", "paper"], typer.Option(help="Recipe.")] = "improved",
    budgets: Annotated[
        str, typer.Option(help="Cost of each expert, as shares of the model's.")
    ] = "0.42,0.55,0.7,0.88",
    steps: Annotated[int, typer.Option(min=0, help="Of the search; 0 keeps the starting point.")] = 300,
    batch: Annotated[int, typer.Option(min=1, help="Prompts in a step.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Peak.")] = 0.02,
    on: Annotated[
        Literal["macs", "time"], typer.Option(help="What budgets are set on; time needs `measure` first.")
    ] = "macs",
    nested: Annotated[
        bool, typer.Option("--nested", help="Cheaper experts keep a part of what costlier ones keep.")
    ] = False,
    ffn: Annotated[int, typer.Option(min=1, help="Channels of a feed-forward unit.")] = 64,
    seed: SeedOption = 0,
) -> None:
    """Find what each expert keeps. Going on after an interruption is the default."""
    from hasten.plugins.aptp.make.search import SearchOptions
    from hasten.plugins.aptp.make.search import search as run

    options = SearchOptions(preset, _shares(budgets), steps, batch, learning_rate, seed, on, nested)
    with _study(context, model, work, ffn, timed=on == "time") as study:
        found = run(study, options, work / "search")
    unit = {"macs": "multiply-accumulates", "time": "time"}[on]
    for plan, share in zip(found.plans, found.shares) if found else ():
        blocks = f", {len(plan.dropped)} blocks dropped" if plan.dropped else ""
        typer.echo(f"{share:.1%} of the {unit}{blocks}")


@app.command()
def tune(
    context: typer.Context,
    model: ModelArgument,
    work: WorkOption = Path("aptp"),
    weights: Annotated[
        Literal["lora", "shared", "full"],
        typer.Option(help="What is trained: an update of each expert, one that all share, or everything."),
    ] = "lora",
    rank: Annotated[int, typer.Option(min=1, help="Of the low-rank updates.")] = 4,
    steps: Annotated[int, typer.Option(min=0, help="For each expert.")] = 400,
    batch: Annotated[int, typer.Option(min=1, help="Prompts in a step.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Peak.")] = 2e-3,
    ffn: Annotated[int, typer.Option(min=1, help="As in the search.")] = 64,
    seed: SeedOption = 0,
) -> None:
    """Train the experts towards the base. Going on after an interruption is the default."""
    from hasten.plugins.aptp.make.search import Searched
    from hasten.plugins.aptp.make.tune import TuneOptions
    from hasten.plugins.aptp.make.tune import tune as run

    options = TuneOptions(weights, rank, steps, batch, learning_rate, seed=seed)
    searched = Searched.load(work / "search")
    with _study(context, model, work, ffn) as study:
        run(study, searched, options, work / "tune")


@app.command()
def export(
    context: typer.Context,
    model: ModelArgument,
    folder: Annotated[Path, typer.Argument(help="Where to write the bundle.")],
    work: WorkOption = Path("aptp"),
    mean_cost: Annotated[
        float | None, typer.Option(help="Mean share of the cost. (default: middle of the experts')")
    ] = None,
    prompts: Annotated[int, typer.Option(min=8, help="Calibration prompts.")] = 512,
    draws: Annotated[int, typer.Option(min=1, help="Noise draws for each, at four levels.")] = 2,
    segments: Annotated[
        int, typer.Option(min=1, max=8, help="Timestep segments that a route changes its expert at.")
    ] = 1,
    ffn: Annotated[int, typer.Option(min=1, help="As in the search.")] = 64,
    seed: SeedOption = 0,
) -> None:
    """Fit the router to what the experts get wrong, and write the bundle."""
    from hasten.plugins.aptp.make.export import ExportOptions
    from hasten.plugins.aptp.make.export import export as write
    from hasten.plugins.aptp.make.search import Searched
    from hasten.plugins.aptp.make.tune import Tuned

    searched, tuned = Searched.load(work / "search"), Tuned.load(work / "tune")
    options = ExportOptions(mean_cost, prompts, draws, segments, seed)
    hold_folder(context, folder)
    with _study(context, model, work, ffn) as study:
        manifest = write(
            study, searched, tuned, options, folder, {"command": f"hasten aptp export {model} {folder}"}
        )
    _show(manifest)


@app.command("cut")
def cut(
    context: typer.Context,
    model: ModelArgument,
    folder: Annotated[Path, typer.Argument(help="Where to write the bundle.")],
    work: WorkOption = Path("aptp"),
    budgets: Annotated[str, typer.Option(help="Cost of each expert, as shares of the model's.")] = "0.8,0.9",
    prompts: Annotated[int, typer.Option(min=8, help="Calibration prompts.")] = 128,
    clusters: Annotated[int, typer.Option(min=1, help="Prompt clusters, each with experts of its own.")] = 1,
    ffn: Annotated[int, typer.Option(min=1, help="Channels of a feed-forward unit.")] = 64,
    seed: SeedOption = 0,
) -> None:
    """Without training: one-shot cut with least-squares repair, for a clustering of the prompts."""
    from hasten.plugins.aptp.make.oneshot import OneShotOptions, cut_once

    options = OneShotOptions(_shares(budgets), prompts, clusters, seed=seed)
    hold_folder(context, folder)
    with _study(context, model, work, ffn) as study:
        _show(cut_once(study, options, folder, {"command": f"hasten aptp cut {model} {folder}"}))


@app.command("import")
def import_published(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="Folder with arch0, arch1, ..., hypernet and quantizer.")],
    base: Annotated[str, typer.Argument(help="The base: a folder or hub id of Stable Diffusion 2.1.")],
    folder: Annotated[Path, typer.Argument(help="Where to write the bundle.")],
    encoder: Annotated[str, typer.Option(help="Sentence model of the router.")] = MPNET,
) -> None:
    """Turn the published checkpoints into a bundle; shapes are read from the tensors, no pickle is loaded."""
    from hasten.commands import load
    from hasten.plugins.aptp.importer import import_checkpoints

    hold_folder(context, folder)
    _show(import_checkpoints(source, load(base), base, folder, encoder))


@app.command("show")
def show(folder: Annotated[Path, typer.Argument(help="A bundle.")]) -> None:
    """Verify a bundle and print what is in it."""
    from hasten.plugins.aptp.bundle import Bundle

    _show(Bundle.load(folder).manifest)


@app.command("bench")
def bench(
    model: ModelArgument,
    bundle: Annotated[Path, typer.Argument(help="A bundle.")],
    batch: Annotated[int, typer.Option(min=1, help="Samples in a forward.")] = 1,
    rounds: Annotated[int, typer.Option(min=3, help="Interleaved repetitions.")] = 9,
    device: common.Device = None,
    dtype: common.Dtype = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile base and experts.")] = False,
) -> None:
    """Measure a forward of every expert beside the base, at the size the bundle was made for."""
    from hasten.commands import load
    from hasten.plugins.aptp.latency import measure

    place = common.choose_place(None, device, dtype)
    pipe = load(model, dtype=place.torch_dtype).to(place.device)
    rows = measure(pipe, bundle, batch=batch, rounds=rounds, compiled=compiled)
    _show_times(rows)


@app.command("speed")
def speed(
    shape: Annotated[Literal["sd21", "sdxl"], typer.Argument(help="A published U-Net, with random weights.")],
    side: Annotated[int, typer.Option(min=8, help="Latent pixels of a side.")] = 32,
    batches: Annotated[
        list[int] | None, typer.Option("--batch", help="Samples, repeatable. (default: 1 and 4)")
    ] = None,
    share: Annotated[float, typer.Option(min=0.05, max=1, help="Of the multiply-accumulates.")] = 0.7,
    rounds: Annotated[int, typer.Option(min=3, help="Interleaved repetitions.")] = 9,
    device: common.Device = None,
    dtype: common.Dtype = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile both.")] = False,
) -> None:
    """Measure what a plan at a share of the operations gains in time: all groups cut alike, no block gone."""
    from hasten.plugins.aptp.speed import SHAPES, even_plan_time

    place = common.choose_place(None, device, dtype)
    model = SHAPES[shape]().to(place.device, place.torch_dtype)
    for batch in batches or [1, 4]:
        row = even_plan_time(model, side, batch, share=share, rounds=rounds, compiled=compiled)
        typer.echo(
            f"{shape}, {side} x {side} latents, batch {batch}: {row.macs_share:.1%} of the operations take "
            f"{row.time.value:.1%} of the time ({row.time.low:.1%} to {row.time.high:.1%}), {row.seconds:.3f} s"
        )


@app.command("eval")
def evaluate(
    context: typer.Context,
    model: ModelArgument,
    bundle: Annotated[Path, typer.Argument(help="A bundle.")],
    out: Annotated[Path, typer.Option(help="Folder of the comparison.")] = Path("out/aptp"),
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="Text with one on each line, JSON Lines, JSON, CSV or TSV. (default: a miniature's own)",
        ),
    ] = None,
    num_prompts: Annotated[int, typer.Option("--num-prompts", min=2, help="Pictures of each row.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per pipeline call.")] = 1,
    fewer_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the equal-time control. (default: measured first)")
    ] = None,
    seed: SeedOption = 0,
    device: common.Device = None,
    dtype: common.Dtype = None,
) -> None:
    """Compare base, routed experts, one static expert of equal mean cost, random routing, fewer steps at equal time."""
    from hasten.plugins.aptp.make.evaluate import compare

    place = common.choose_place(None, device, dtype)
    hold_folder(context, out)
    rows = compare(model, bundle, out, prompts, num_prompts, batch_size, fewer_steps, seed, place)
    _show_traffic(rows)


@contextmanager
def _study(
    context: typer.Context, model: str, work: Path, ffn: int, *, timed: bool = False
) -> Iterator[Study]:
    """The model and its prepared data, on the device accelerate chooses, in the process group a launcher asks for."""
    from accelerate import PartialState

    from hasten.commands import load
    from hasten.plugins.aptp.make.data import Prepared
    from hasten.plugins.aptp.make.study import Study
    from hasten.plugins.aptp.manifest import GrainEntry

    data = Prepared.load(work)
    hold_folder(context, work, "--work")
    state = PartialState()
    try:
        pipe: Any = load(model).to(state.device)
        pipe.set_progress_bar_config(disable=True)
        yield Study.of(pipe, data, GrainEntry(ffn=ffn), work if timed else None)
    finally:
        state.destroy_process_group()


def _show_traffic(rows: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    from hasten.commands import Console

    table = Table(title="Where prompts go: share of each expert")
    table.add_column("kind of prompt")
    for column in ("prompts", *map(str, range(len(rows[0].shares) - 1)), "base", "mean MACs"):
        table.add_column(column, justify="right")
    for row in rows:
        shares = (f"{share:.0%}" for share in row.shares)
        table.add_row(escape(row.kind), str(row.prompts), *shares, f"{row.macs_share:.1%}")
    Console().print(table)


def _show_times(rows: Any) -> None:
    from rich.table import Table

    from hasten.commands import Console

    table = Table(title="Time of a forward beside the base, median of interleaved rounds")
    for column in ("expert", "share of MACs", "share of time", "95 % interval", "milliseconds"):
        table.add_column(column, justify="right")
    for row in rows:
        time = f"{row.time.low:.3f} to {row.time.high:.3f}"
        table.add_row(
            row.name, f"{row.macs_share:.3f}", f"{row.time.value:.3f}", time, f"{1e3 * row.seconds:.1f}"
        )
    Console().print(table)


def _show_table(table: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    from hasten.commands import Console

    shown = Table(title=f"Milliseconds by share of the units kept, {escape(str(table.about['device']))}")
    for column in ("module", "kept", "milliseconds"):
        shown.add_column(column)
    for name, row in table.groups.items():
        times = " ".join(f"{1e3 * seconds:.2f}" for seconds in row.seconds)
        shown.add_row(escape(name), " ".join(map(str, row.kept)), times)
    for name, seconds in {**table.blocks, "rest": table.rest}.items():
        shown.add_row(escape(name), "", f"{1e3 * seconds:.2f}")
    Console().print(shown)


def _shares(text: str) -> tuple[float, ...]:
    from hasten.extend import ConfigError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--budgets: expected shares like 0.5,0.8, got {text!r}") from error


def _show(manifest: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    from hasten.commands import Console

    table = Table(title=f"{len(manifest.experts)} experts of {escape(manifest.base.name)}")
    for column in ("expert", "multiply-accumulates", "share", "parameters", "traffic"):
        table.add_column(column, justify="right")
    for number, expert in enumerate(manifest.experts):
        cells = (f"{expert.macs / 1e9:.4g} G", f"{expert.macs_share:.1%}", f"{expert.parameters / 1e6:.2f} M")
        table.add_row(str(number), *cells, f"{expert.traffic:.1%}")
    Console().print(table)
    if manifest.segments:
        routes = Table(
            title=f"Routes; the expert changes at flow times {', '.join(f'{t:.2f}' for t in manifest.segments)}"
        )
        for column in ("route", "experts", "share", "traffic"):
            routes.add_column(column, justify="right")
        for number, route in enumerate(manifest.routes):
            names = ", ".join(map(str, route.experts))
            routes.add_row(str(number), names, f"{route.macs_share:.1%}", f"{route.traffic:.1%}")
        Console().print(routes)
