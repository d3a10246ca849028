"""``hasten demo``: the bundled miniature, plain and accelerated, with what it cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from hasten._cli import _options as options
from hasten._cli._loading import load_quietly
from hasten._generation import Job, prepare_folder
from hasten.eval.compare.engine import ACCELERATED, BASELINE, ArmResult, run_arms

__all__ = ["register"]

_MODEL = "mini/t2i-dit"
_GRID_ROWS = 6
_DEFAULTS = ("bottleneck.high_first=1.0", "bottleneck.delta=0.1")
"""What is shown unless the user chooses: low resolution from the first step on, back to full as early as pays."""
_HELP = """Generate with a bundled trained miniature, plain and accelerated, and show what was gained and lost.

Same prompts, same seeds, batches of all rows interleaved. The last row is plain sampling with as many steps as fit
into the accelerated run's time: the alternative every acceleration has to beat. Quality figures on a miniature say
nothing about published FID or CLIP scores.

[bold]Examples[/]

  hasten demo
  hasten demo --num-prompts 128 --out out/demo
  hasten demo --set bottleneck.delta=0.2 --json
"""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("demo", help=_HELP)(_command)


def _command(
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("out/demo"),
    num_prompts: Annotated[int, typer.Option(min=2, help="How many prompts.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the first prompt; prompt i uses seed + i.")] = 0,
    steps: options.Steps = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per pipeline call.")] = 8,
    enable: options.Enable = None,
    sets: options.Set = None,
    config: options.ConfigFile = None,
    as_json: options.Json = False,
) -> None:
    from hasten.pipelines import mini

    folder = prepare_folder(out)
    if config is None and not enable:
        enable, sets = ["bottleneck"], [*_DEFAULTS, *(sets or [])]
    settings = options.configuration(config, enable, sets)
    call = options.call_arguments(_MODEL, settings, {"num_inference_steps": steps})
    job = Job(tuple(mini.prompts(num_prompts, seed=seed)), seed, call, batch_size)
    pipe = load_quietly(_MODEL)
    console = Console(stderr=True)
    total = 3 * -(-num_prompts // batch_size)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=as_json) as progress:
        task = progress.add_task("generating", total=total)
        arms = run_arms(pipe, settings, job, lambda: progress.advance(task))
    rows = _score(arms, job)
    _write(folder, arms, job, rows, settings)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        _print(Console(), rows, arms, folder)


def _score(arms: dict[str, ArmResult], job: Job) -> list[dict[str, Any]]:
    from hasten.eval.efficiency import Timings
    from hasten.eval.functional.pixel import psnr, summarize_psnr
    from hasten.eval.images import to_uint8
    from hasten.pipelines.mini.scoring import AttributeScorer, PixelParser

    timings = Timings({name: tuple(arm.seconds) for name, arm in arms.items()})
    base = arms[BASELINE]
    rows: list[dict[str, Any]] = []
    for name, arm in arms.items():
        row: dict[str, Any] = {
            "name": name,
            "steps": arm.steps,
            "seconds_per_image": timings.median(name) / min(job.batch_size, len(job.prompts)),
            "speedup": timings.ratio(BASELINE, name).as_dict(),
            "flops_per_image": arm.flops,
            "flops_ratio": base.flops / arm.flops,
        }
        if name != BASELINE:
            row["psnr_to_baseline_db"] = summarize_psnr(
                psnr(to_uint8(arm.images), to_uint8(base.images))
            ).mean
        rows.append(row)
    for judge, scorer in (("classifier", AttributeScorer()), ("parser", PixelParser())):
        for row, figures in zip(rows, _attributes(scorer, arms, list(job.prompts)), strict=True):
            row[judge] = figures
    return rows


def _attributes(scorer: Any, arms: dict[str, ArmResult], prompts: list[str]) -> list[dict[str, Any]]:
    """Per arm: the share of attributes that are right, and its difference to the baseline with an interval."""
    from hasten.eval.statistics import paired_ratio_difference, ratio_of_sums

    scores = {name: scorer.score(arm.images, prompts) for name, arm in arms.items()}
    base = scores[BASELINE]
    return [
        {
            "right": ratio_of_sums(score.right, score.asked).as_dict(),
            "change": paired_ratio_difference(base.right, score.right, score.asked).as_dict(),
        }
        for score in scores.values()
    ]


def _write(
    folder: Path, arms: dict[str, ArmResult], job: Job, rows: list[dict[str, Any]], settings: Any
) -> None:
    from hasten import __version__
    from hasten._grid import comparison_grid
    from hasten._machine import describe_machine

    report = arms[ACCELERATED].report
    shown = min(_GRID_ROWS, len(job.prompts))
    titles = {f"{name} ({arm.steps} steps)": arm.images[:shown] for name, arm in arms.items()}
    comparison_grid(titles, job.prompts[:shown]).save(folder / "grid.png")
    document = {
        "hasten": __version__,
        "machine": describe_machine(),
        "model": _MODEL,
        "config": settings.to_dict(),
        "call": dict(job.call),
        "seed": job.seed,
        "prompts": list(job.prompts),
        "rows": rows,
        "seconds": {name: arm.seconds for name, arm in arms.items()},
        "report": report.to_dict() if report is not None else None,
    }
    (folder / "demo.json").write_text(json.dumps(document, indent=2, default=str), encoding="utf-8")


def _print(console: Console, rows: list[dict[str, Any]], arms: dict[str, ArmResult], folder: Path) -> None:
    table = Table(title=f"{_MODEL}, {len(arms[BASELINE].images)} prompts, same seeds (miniature figures)")
    for heading in (
        "",
        "steps",
        "s / image",
        "wall-clock",
        "FLOPs",
        "attributes: classifier",
        "parser",
        "PSNR",
    ):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table)
    report = arms[ACCELERATED].report
    if report is not None:
        ran = ", ".join(
            f"{total.count} at {'x'.join(map(str, total.resolution or ()))} ({total.median_milliseconds:.0f} ms each)"
            for total in report.totals
        )
        console.print(f"denoiser forwards of the accelerated row's last batch, by latent size: {ran}")
    console.print(f"pictures: {folder / 'grid.png'}   figures: {folder / 'demo.json'}", highlight=False)


def _cells(row: dict[str, Any]) -> list[str]:
    plain = row["name"] == BASELINE
    speed = row["speedup"]
    return [
        row["name"],
        str(row["steps"]),
        f"{row['seconds_per_image']:.3f}",
        "1" if plain else f"{speed['value']:.2f}x [{speed['low']:.2f}, {speed['high']:.2f}]",
        f"{row['flops_per_image'] / 1e9:.1f} G" if plain else f"{row['flops_ratio']:.2f}x less",
        *(_attribute_cell(row[judge], plain) for judge in ("classifier", "parser")),
        "" if plain else f"{row['psnr_to_baseline_db']:.1f} dB",
    ]


def _attribute_cell(figures: dict[str, Any], plain: bool) -> str:
    change, share = figures["change"], f"{100 * figures['right']['value']:.1f} %"
    if plain:
        return share
    return f"{share} ({100 * change['value']:+.1f} [{100 * change['low']:+.1f}, {100 * change['high']:+.1f}])"
