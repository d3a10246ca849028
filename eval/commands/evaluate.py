"""``hasten eval``: score pictures from any tool; ``hasten eval doctor``: golden numbers of this installation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from hasten import commands as common
from hasten.commands import Console, Table, hold_file, printable
from hasten.eval.commands import options
from hasten.eval.pictures.pairing import Order
from hasten.extend import ConfigError
from hasten.files import read_prompts

if TYPE_CHECKING:
    from hasten.eval.scoring.folders import FolderScores

__all__ = ["register"]

_HELP = """Score existing pictures of any tool: folders, zip archives, npz or npy files.

Prompts pair with pictures by their place (file names that are numbers: by value), or by name with a manifest.

[bold]Examples[/]

  hasten eval --generated out/fast --baseline out/baseline --metrics psnr,ssim
  hasten eval --generated out/fast --prompts prompts.txt -m clip --metric-option clip_score.network=./clip-vit-l14
  hasten eval --generated out/fast --manifest captions.json -m clip --metric-option clip_score.network=./clip-vit-l14
  hasten eval --generated out/fast --reference coco.npz -m fid --metric-option fid.weights=./inception.pth
  hasten eval --generated out/fast --reference clean_fid.npz --reference-count 30000 -m fid
  hasten eval doctor
  torchrun --nproc-per-node 4 -m hasten eval --generated out/fast --reference real --metrics fid,kid
"""
_STATISTICS_HELP = """Compute the statistics of a reference set, with a record of how they were computed.

[bold]Examples[/]

  hasten eval stats coco/ --out coco.npz --metric-option fid.weights=./inception.pth --workers 2
  hasten eval --generated out/fast --reference coco.npz -m fid --metric-option fid.weights=./inception.pth
"""
_DOCTOR_HELP = """Check metrics against results known in closed form, and list missing optional packages.

[bold]Example[/]

  hasten eval doctor
"""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    group = typer.Typer(help=_HELP, rich_markup_mode="rich")
    group.callback(invoke_without_command=True, help=_HELP)(_command)
    group.command("stats", help=_STATISTICS_HELP)(_statistics)
    group.command("doctor", help=_DOCTOR_HELP)(_doctor)
    app.add_typer(group, name="eval")


def _command(
    context: typer.Context,
    generated: Annotated[Path | None, typer.Option(help="Pictures to score.")] = None,
    reference: options.Reference = None,
    reference_count: options.ReferenceCount = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Unaccelerated pictures with the same names, for PSNR and SSIM.")
    ] = None,
    prompts: common.PromptsFile = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File with the prompt of each picture name: JSON {name: prompt}, JSON Lines or CSV.",
        ),
    ] = None,
    order: Annotated[
        Order | None,
        typer.Option(
            help="Order of the file names that matches --prompts, if natural and lexicographic order differ."
        ),
    ] = None,
    metrics: options.Metrics = None,
    metric_option: options.MetricOption = None,
    level: options.Level = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 32,
    workers: options.Workers = 0,
    skip_bad: options.SkipBad = False,
    device: options.MetricDevice = None,
    as_json: common.Json = False,
) -> None:
    if context.invoked_subcommand is not None:
        return
    if generated is None or metrics is None:
        raise ConfigError("give --generated FOLDER and --metrics NAME,NAME (or: hasten eval doctor)")
    from hasten.eval.distributed import launched
    from hasten.eval.pictures.loading import Reading
    from hasten.eval.pictures.sources import open_source
    from hasten.eval.scoring.folders import Pictures, score_pictures
    from hasten.eval.scoring.reference import Reference

    names, place = options.metric_names(metrics, ()), common.choose_place(None, device, None)
    if manifest is not None and prompts is not None:
        raise ConfigError("--manifest and --prompts both give the prompts of the pictures: use one of them")
    reading = Reading(batch_size, workers, skip_bad)
    pictures = Pictures(
        open_source(generated, manifest=manifest, order=order),
        open_source(baseline) if baseline is not None else None,
        read_prompts(prompts) if prompts is not None else None,
        reading,
    )
    real = None
    if reference is not None:
        real = Reference(reference, reference_count, reading)
    made = options.build_metrics(names, metric_option or (), place.device)
    with launched():
        scores = score_pictures(pictures, made, real, level=level, seed=seed)
    if scores is not None:
        _show(scores, {metric.name: metric.fingerprint().as_dict() for metric in made}, as_json)


def _statistics(
    context: typer.Context,
    images: Annotated[Path, typer.Argument(help="Folder, zip, npz or npy of the reference pictures.")],
    out: Annotated[Path, typer.Option(help="File to write (npz).")],
    metric: Annotated[str, typer.Option("--metric", "-m", help="Frechet distance they are for.")] = "fid",
    metric_option: options.MetricOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 32,
    workers: options.Workers = 0,
    skip_bad: options.SkipBad = False,
    device: options.MetricDevice = None,
) -> None:
    from hasten.eval.distributed import launched
    from hasten.eval.functional.moments import Moments
    from hasten.eval.metrics.sets import Fid
    from hasten.eval.pictures.loading import Reading
    from hasten.eval.pictures.sources import open_source
    from hasten.eval.scoring.moments_file import Statistics, save_statistics
    from hasten.eval.scoring.reference import embed_source

    place = common.choose_place(None, device, None)
    (made,) = options.build_metrics([metric], metric_option or (), place.device)
    if not isinstance(made, Fid):
        raise ConfigError(f"{metric} does not use a statistics file; only Frechet distances such as fid do")
    source = open_source(images)
    hold_file(context, out)
    with launched() as processes:
        kept, bad = embed_source(source, [made], Reading(batch_size, workers, skip_bad))
    moments = kept[made.name]
    assert isinstance(moments, Moments)
    if processes.rank == 0:
        save_statistics(out, Statistics(moments, made.fingerprint(), source.name))
        left = f", {len(bad)} left out" if bad else ""
        typer.echo(f"{printable(str(out))}: mean and covariance of {moments.n} pictures{left}")
        if source.left_out:
            typer.echo(printable(source.left_out))


def _show(scores: FolderScores, fingerprints: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(_document(scores, fingerprints), indent=2))
    else:
        _print(scores, fingerprints)


def _document(scores: FolderScores, fingerprints: dict[str, Any]) -> dict[str, Any]:
    return {
        "pictures": scores.count,
        "bad": dict(scores.bad),
        "unread": {source: dict(files) for source, files in scores.unread.items()},
        "warnings": list(scores.warnings),
        "metrics": {
            name: {
                **estimate.as_dict(),
                "extras": dict(scores.extras.get(name, {})),
                "fingerprint": fingerprints[name],
            }
            for name, estimate in scores.figures.items()
        },
    }


def _print(scores: FolderScores, fingerprints: dict[str, Any]) -> None:
    console = Console()
    table = Table(title=f"{scores.count} pictures")
    for heading in ("metric", "figure", "beside it", "made with"):
        table.add_column(heading, overflow="fold")
    for name, estimate in scores.figures.items():
        made = fingerprints[name]
        beside = ", ".join(f"{key} {value:.4g}" for key, value in scores.extras.get(name, {}).items())
        network = " ".join(str(made[key]) for key in ("network", "weights", "variant") if made[key])
        table.add_row(*map(escape, (name, str(estimate), beside, network)))
    console.print(table)
    for warning in scores.warnings:
        console.print(f"- {warning}", markup=False, highlight=False)
    for picture, reason in scores.bad.items():
        console.print(f"left out: {picture} ({reason})", markup=False, highlight=False)


def _doctor(as_json: common.Json = False) -> None:
    from hasten.eval.scoring.doctor import examine, missing

    outcomes, absent = examine(), missing()
    if as_json:
        checks = [
            {"check": o.name, "expected": o.expected, "found": str(o.found), "held": o.held, "error": o.error}
            for o in outcomes
        ]
        typer.echo(json.dumps({"checks": checks, "missing": absent}, indent=2))
    else:
        console, table = Console(), Table(title="golden numbers")
        for heading in ("check", "expected", "found", ""):
            table.add_column(heading)
        for o in outcomes:
            mark = "[green]ok[/]" if o.held else f"[bold red]wrong[/] {escape(o.error)}"
            table.add_row(escape(o.name), f"{o.expected:.10g}", f"{o.found:.10g}", mark)
        console.print(table)
        for name, (purpose, install) in absent.items():
            console.print(f"not installed: {name}, for {purpose} ({install})", markup=False, highlight=False)
    if not all(outcome.held for outcome in outcomes):
        raise typer.Exit(1)
