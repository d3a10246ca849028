"""``hasten demo``: the bundled miniature, plain and accelerated, with what it cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from hasten._cli import _options as options
from hasten._demo import ACCELERATED, BASELINE, Arm, run_arms
from hasten._generation import Job, prepare_folder
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

__all__ = ["register"]

_MODEL = "mini/t2i-dit"
_GRID_ROWS = 6
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
    import hasten
    from hasten.pipelines import mini

    folder = prepare_folder(out)
    if config is None and not enable:
        enable = ["bottleneck"]
    settings = options.configuration(config, enable, sets)
    call = options.call_arguments(_MODEL, {"num_inference_steps": steps})
    job = Job(tuple(mini.prompts(num_prompts, seed=seed)), seed, call, batch_size)
    pipe = hasten.load(_MODEL)
    pipe.set_progress_bar_config(disable=True)
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


def _score(arms: dict[str, Arm], job: Job) -> list[dict[str, Any]]:
    from hasten.eval.efficiency import Timings
    from hasten.eval.functional.pixel import mean_psnr, psnr
    from hasten.eval.images import to_uint8
    from hasten.eval.statistics import share, share_difference
    from hasten.pipelines.mini.scoring import AttributeScorer, PixelParser

    timings = Timings({name: tuple(arm.seconds) for name, arm in arms.items()})
    reference = to_uint8(arms[BASELINE].images)
    judges = {"classifier": AttributeScorer(), "parser": PixelParser()}
    base = {judge: scorer.score(arms[BASELINE].images, list(job.prompts)) for judge, scorer in judges.items()}
    rows = []
    for name, arm in arms.items():
        row: dict[str, Any] = {
            "name": name,
            "steps": arm.steps,
            "seconds_per_image": timings.median(name) / min(job.batch_size, len(job.prompts)),
            "speedup": timings.ratio(BASELINE, name).to_dict(),
            "flops_per_image": arm.flops,
            "flops_ratio": arms[BASELINE].flops / arm.flops,
            "psnr_to_baseline_db": None
            if name == BASELINE
            else mean_psnr(psnr(to_uint8(arm.images), reference)),
        }
        for judge, scorer in judges.items():
            score = scorer.score(arm.images, list(job.prompts))
            row[f"attributes_{judge}"] = share(score.right, score.asked).to_dict()
            row[f"attributes_{judge}_change"] = share_difference(
                base[judge].right, score.right, score.asked
            ).to_dict()
        rows.append(row)
    return rows


def _write(folder: Path, arms: dict[str, Arm], job: Job, rows: list[dict[str, Any]], settings: Any) -> None:
    from hasten import __version__
    from hasten._grid import comparison_grid

    shown = min(_GRID_ROWS, len(job.prompts))
    titles = {f"{name} ({arm.steps} steps)": arm.images[:shown] for name, arm in arms.items()}
    comparison_grid(titles, job.prompts[:shown]).save(folder / "grid.png")
    document = {
        "hasten": __version__,
        "model": _MODEL,
        "config": settings.model_dump(mode="json"),
        "call": dict(job.call),
        "seed": job.seed,
        "prompts": list(job.prompts),
        "rows": rows,
        "seconds": {name: arm.seconds for name, arm in arms.items()},
        "report": json.loads(arms[ACCELERATED].report.to_json()) if arms[ACCELERATED].report else None,
    }
    (folder / "demo.json").write_text(json.dumps(document, indent=2), encoding="utf-8")


def _print(console: Console, rows: list[dict[str, Any]], arms: dict[str, Arm], folder: Path) -> None:
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
        console.print(report.resolutions(), markup=False, highlight=False)
    console.print(f"pictures: {folder / 'grid.png'}   figures: {folder / 'demo.json'}", highlight=False)


def _cells(row: dict[str, Any]) -> list[str]:
    psnr = row["psnr_to_baseline_db"]
    return [
        row["name"],
        str(row["steps"]),
        f"{row['seconds_per_image']:.3f}",
        f"{row['speedup']['value']:.2f}x [{row['speedup']['low']:.2f}, {row['speedup']['high']:.2f}]",
        f"{row['flops_ratio']:.2f}x less"
        if row["name"] != BASELINE
        else f"{row['flops_per_image'] / 1e9:.1f} G",
        *(_attribute_cell(row, judge) for judge in ("classifier", "parser")),
        "" if psnr is None else f"{psnr:.1f} dB",
    ]


def _attribute_cell(row: dict[str, Any], judge: str) -> str:
    change, value = row[f"attributes_{judge}_change"], row[f"attributes_{judge}"]["value"]
    if row["name"] == BASELINE:
        return f"{100 * value:.1f} %"
    return f"{100 * value:.1f} % ({100 * change['value']:+.1f} [{100 * change['low']:+.1f}, {100 * change['high']:+.1f}])"
