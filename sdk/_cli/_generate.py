"""``hasten generate``: make images with any pipeline, accelerated, plain or both."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from hasten._cli import _options as options
from hasten._cli._loading import load_quietly
from hasten._cli._outputs import hold_folder
from hasten._cli._progress import showing_progress
from hasten._config import Config
from hasten._console import Console
from hasten._enabled import Enabled
from hasten._generation import Job, generate, prepare_folder
from hasten._output import OutputFolder, missing_batches
from hasten._pipeline import Pipeline
from hasten._processes import Processes, wait_for

__all__ = ["register"]

_HELP = """Generate images (or videos) for one or many prompts.

Every finished image is on disk at once, beside a line in [bold]manifest.jsonl[/]; interrupting keeps them, and the same
command goes on. Under torchrun or accelerate launch the prompts are split over the processes.

[bold]Examples[/]

  hasten generate mini/t2i-dit --prompt "a large red circle on the left on a white background" --out out
  hasten generate mini/t2i-dit --num-prompts 8 --enable bottleneck --baseline --out out
  hasten generate ./my-flux --prompts prompts.txt -e bottleneck -s bottleneck.delta=0.02 --out out
  torchrun --nproc-per-node 4 -m hasten generate ./my-flux --prompts prompts.txt --out out
"""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("generate", help=_HELP)(_command)


def _command(
    context: typer.Context,
    model: options.ModelName = None,
    prompt: options.Prompt = None,
    prompts: options.PromptsFile = None,
    num_prompts: options.NumPrompts = None,
    out: Annotated[Path | None, typer.Option(help="Output folder. (default: out)")] = None,
    seed: options.Seed = None,
    steps: options.Steps = None,
    height: options.Height = None,
    width: options.Width = None,
    frames: options.Frames = None,
    guidance_scale: options.Guidance = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per pipeline call.")] = 1,
    device: options.Device = None,
    dtype: options.Dtype = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Also generate without acceleration.")] = False,
    preset: options.Preset = None,
    enable: options.Enable = None,
    sets: options.Set = None,
    config: options.ConfigFile = None,
    as_json: options.Json = False,
) -> None:
    settings = options.configuration(config, enable, sets, preset)
    model = options.choose_model(model, settings)
    seed, place = options.choose_seed(settings, seed), options.choose_place(settings, device, dtype)
    texts = options.choose_prompts(model, settings, prompt, prompts, num_prompts, seed)
    folder = hold_folder(context, out if out is not None else settings.out or "out")
    call = options.call_arguments(
        model,
        settings,
        steps=steps,
        height=height,
        width=width,
        frames=frames,
        guidance_scale=guidance_scale,
    )
    job = Job(texts, seed, call, batch_size)
    runs: dict[str, Config | None] = {"baseline": None} if baseline or not settings.techniques else {}
    if settings.techniques:
        runs["accelerated"] = settings
    processes = Processes.from_environment()
    outputs = {
        name: OutputFolder(
            prepare_folder(folder / name), _request(model, job, place.dtype, settings.solver, run), processes
        )
        for name, run in runs.items()
    }
    pipe = load_quietly(model, place, call, settings.solver)
    summary = {
        name: _run(pipe, job, run, outputs[name], processes, name, quiet=as_json)
        for name, run in runs.items()
    }
    if processes.rank > 0:
        return
    if as_json:
        typer.echo(json.dumps({"model": model, "out": str(folder), "runs": summary}, indent=2))
    else:
        _print_summary(summary)


def _request(model: str, job: Job, dtype: str, solver: str | None, run: Config | None) -> dict[str, Any]:
    return {
        "model": model,
        **job.to_dict(),
        "dtype": dtype,
        **({} if solver is None else {"solver": solver}),
        "techniques": None if run is None else run.to_dict()["techniques"],
    }


def _run(
    pipe: Pipeline,
    job: Job,
    settings: Config | None,
    output: OutputFolder,
    processes: Processes,
    name: str,
    quiet: bool,
) -> dict[str, Any]:
    import hasten

    if settings is not None:
        enabled = (Enabled(technique.name, technique.options) for technique in settings.techniques)
        ranks = (technique.ranks_per_call(processes.world) for technique in enabled)
        processes = replace(processes, together=max(ranks, default=1))
    done = set(output.records())
    accelerated = nullcontext() if settings is None else hasten.accelerate(pipe, settings, **job.call)
    with accelerated as acceleration, showing_progress(quiet=quiet or processes.rank > 0) as tell:
        own = [i for i in range(len(job.prompts)) if processes.owns(i // job.batch_size)]
        tell(name, len(done.intersection(own)), len(own))
        for start, batch in missing_batches(job, done, processes):
            for sample in generate(pipe, batch):
                if start + sample.index not in done:
                    if processes.leads:
                        output.add(replace(sample, index=start + sample.index))
                    done.add(start + sample.index)
                    tell(name, len(done.intersection(own)), len(own))
        if acceleration is not None and acceleration.report().steps and processes.rank == 0:
            (output.folder / "report.json").write_text(acceleration.report().to_json(), encoding="utf-8")
    if processes.rank == 0:
        wait_for(lambda: len(output.records(verify=False)), len(job.prompts), "pictures")
    return {"folder": str(output.folder), "samples": list(output.merge()) if processes.rank == 0 else []}


def _print_summary(summary: dict[str, Any]) -> None:
    console = Console()
    for name, run in summary.items():
        seconds = [record["seconds"] for record in run["samples"]]
        console.print(
            f"[bold]{name}[/]: {len(seconds)} in {escape(run['folder'])}, "
            f"{sum(seconds) / len(seconds):.2f} s each (one run, not a benchmark)"
        )
