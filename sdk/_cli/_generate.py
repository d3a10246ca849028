"""``hasten generate``: make images with any pipeline, accelerated, plain or both."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from hasten._cli import _options as options
from hasten._cli._loading import load_quietly
from hasten._generation import Job, generate, prepare_folder, save_sample

__all__ = ["register"]

_HELP = """Generate images (or videos) for one or many prompts.

Every finished image is on disk at once, beside a line in [bold]manifest.jsonl[/]; interrupting keeps them.

[bold]Examples[/]

  hasten generate mini/t2i-dit --prompt "a large red circle on the left on a white background" --out out
  hasten generate mini/t2i-dit --num-prompts 8 --enable bottleneck --baseline --out out
  hasten generate ./my-flux --prompts prompts.txt -e bottleneck -s bottleneck.delta=0.02 --out out
"""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("generate", help=_HELP)(_command)


def _command(
    model: options.ModelName = None,
    prompt: options.Prompt = None,
    prompts: options.PromptsFile = None,
    num_prompts: options.NumPrompts = None,
    out: Annotated[Path | None, typer.Option(help="Output folder. [out]")] = None,
    seed: options.Seed = None,
    steps: options.Steps = None,
    height: Annotated[int | None, typer.Option(min=1, help="Height in pixels.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Width in pixels.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Classifier-free guidance scale.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per pipeline call.")] = 1,
    device: Annotated[
        str | None, typer.Option(help="Torch device, for example cuda. [where it loads]")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Also generate without acceleration.")] = False,
    enable: options.Enable = None,
    sets: options.Set = None,
    config: options.ConfigFile = None,
    as_json: options.Json = False,
) -> None:
    settings = options.configuration(config, enable, sets)
    model = options.choose_model(model, settings)
    seed = seed if seed is not None else settings.seed or 0
    texts = options.choose_prompts(model, settings, prompt, prompts, num_prompts, seed)
    folder = prepare_folder(out if out is not None else settings.out or "out")
    given = {"num_inference_steps": steps, "height": height, "width": width, "guidance_scale": guidance_scale}
    call = options.call_arguments(model, settings, given)
    job = Job(texts, seed, call, batch_size)
    pipe = load_quietly(model, device, dtype)
    runs: dict[str, Any] = {"baseline": None} if baseline or not settings.techniques else {}
    if settings.techniques:
        runs["accelerated"] = settings
    summary = {name: _run(pipe, job, run, folder / name, name, quiet=as_json) for name, run in runs.items()}
    if as_json:
        typer.echo(json.dumps({"model": model, "out": str(folder), "runs": summary}, indent=2))
    else:
        _print_summary(summary)


def _run(pipe: Any, job: Job, settings: Any, folder: Path, name: str, quiet: bool) -> dict[str, Any]:
    import hasten

    prepare_folder(folder)
    accelerated = hasten.accelerate(pipe, settings) if settings is not None else nullcontext()
    records: list[dict[str, Any]] = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        accelerated as acceleration,
        Progress(*columns, console=Console(stderr=True), disable=quiet) as progress,
    ):
        task = progress.add_task(name, total=len(job.prompts))
        with (folder / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
            for sample in generate(pipe, job):
                path = save_sample(sample, folder)
                record = {
                    "key": f"{sample.index:05d}",
                    "index": sample.index,
                    "prompt": sample.prompt,
                    "seed": sample.seed,
                    "file": path.name,
                    "seconds": round(sample.seconds, 6),
                }
                manifest.write(json.dumps(record) + "\n")
                manifest.flush()
                records.append(record)
                progress.advance(task)
        if acceleration is not None:
            report = acceleration.report()
            (folder / "report.json").write_text(report.to_json(), encoding="utf-8")
    return {"folder": str(folder), "samples": records}


def _print_summary(summary: dict[str, Any]) -> None:
    console = Console()
    for name, run in summary.items():
        seconds = [record["seconds"] for record in run["samples"]]
        console.print(
            f"[bold]{name}[/]: {len(seconds)} in {run['folder']}, "
            f"{sum(seconds) / len(seconds):.2f} s each (one run, not a benchmark)"
        )
