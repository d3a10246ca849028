"""``hasten bench peers``: what would a user pick instead, and does it gain more?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten import commands as common
from hasten.commands import Console, Job, Placement
from hasten.eval.commands import options

if TYPE_CHECKING:
    from hasten.commands import Config
    from hasten.eval.bench.peers.run import Request
    from hasten.eval.compare.document import Evaluation

__all__ = ["register"]

_HELP = """Compare with what else there is: plain steps, the caches of diffusers, cache-dit, DeepCache and ToMeSD.

One run, same prompts and seeds, batch by batch in turn. Plain sampling runs over its steps; every package at the
settings that its documentation recommends and over a small grid of its dial, from the reference's steps and from
half of them; hasten at its presets and at every [bold]--config[/]. Packages that are not installed
([bold]pip install 'hasten\\[peers]'[/]), and what does not run on the model, are named and left out.

Writes [bold]peers.json[/], [bold]peers.md[/] and a picture of quality over time for each metric. [bold]--minutes[/]
ends after a whole batch; run the same command again to go on.

[bold]Examples[/]

  hasten bench peers mini/t2i-dit --num-prompts 16 --minutes 12 --out out/peers
  hasten bench peers mini/t2i-unet --peers DeepCache,ToMeSD --batch-size 8
  hasten bench peers mini/t2i-dit --config out/tune/tuned.yaml
"""


def register(group: typer.Typer) -> None:
    """Add the command to ``group``."""
    group.command("peers", help=_HELP)(_command)


def _command(
    model: common.ModelName = None,
    config: options.Configs = None,
    peers: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Packages and caches to run. (default: all)")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Time of this call. (default: until all prompts are done)")
    ] = None,
    prompt: common.Prompt = None,
    prompts: common.PromptsFile = None,
    num_prompts: common.NumPrompts = None,
    out: Annotated[Path, typer.Option(help="Output folder of the run.")] = Path("out/peers"),
    seed: common.Seed = None,
    steps: common.Steps = None,
    height: common.Height = None,
    width: common.Width = None,
    frames: common.Frames = None,
    guidance_scale: common.Guidance = None,
    batch_size: options.BatchSize = 1,
    metrics: options.Metrics = None,
    metric_option: options.MetricOption = None,
    margin: options.Margins = None,
    level: options.Level = 0.95,
    device: common.Device = None,
    dtype: common.Dtype = None,
    as_json: common.Json = False,
) -> None:
    from hasten.eval.bench.peers.peer import choose_peers
    from hasten.eval.bench.peers.run import Request
    from hasten.eval.compare.analysis import Settings
    from hasten.eval.compare.document import Evaluation

    tuned = {file.stem: common.configuration(file, None, None) for file in config or ()}
    names = None if peers is None else [name.strip() for name in peers.split(",") if name.strip()]
    chosen = choose_peers(names)
    first = next(iter(tuned.values()), common.configuration(None, None, None))
    model = common.choose_model(model, first)
    seed, place = common.choose_seed(first, seed), common.choose_place(first, device, dtype)
    texts = common.choose_prompts(model, first, prompt, prompts, num_prompts, seed)
    # The steps in a configuration apply to its row. The reference takes the model's, or the command line's.
    call = common.call_arguments(
        model,
        first.model_copy(update={"steps": None}),
        steps=steps,
        height=height,
        width=width,
        frames=frames,
        guidance_scale=guidance_scale,
    )
    request = Request(model, Job(texts, seed, call, batch_size), chosen, tuned, minutes, place.dtype)
    named = options.metric_names(metrics, options.default_metrics(texts))
    made = options.build_metrics(named, metric_option or (), place.device)
    options.require_references(made)
    known = {metric.name: metric.tolerance for metric in made if metric.tolerance is not None}
    margins = options.parse_margins(margin or ()) or known
    _perform(request, Evaluation(made, settings=Settings(level, seed, margins)), out, place, as_json)


def _perform(request: Request, evaluation: Evaluation, out: Path, place: Placement, as_json: bool) -> None:
    from dataclasses import replace

    from hasten.commands import Processes, load_quietly, owned, prepare_folder, settle, showing_progress
    from hasten.eval.bench.peers.document import judge_peers
    from hasten.eval.bench.peers.peer import missing
    from hasten.eval.bench.peers.run import run_peers
    from hasten.eval.commands.perform import about_run

    console = Console(stderr=True, quiet=as_json, soft_wrap=True)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    lacking = missing(request.peers)
    if lacking is not None:
        say(f"note: {lacking}")
    with owned(prepare_folder(out)):
        pipe = load_quietly(request.model, place, request.job.call)
        settled: Mapping[str, Config] = {
            name: settle(config, pipe, request.job.call) for name, config in request.tuned.items()
        }
        request = replace(request, tuned=settled)
        about = about_run(pipe, Processes())
        with showing_progress(quiet=console.quiet, console=console) as tell:
            made = run_peers(pipe, request, out, about, tell, say)
        with console.status("scoring the pictures"):
            document = judge_peers(made, request, evaluation, lacking)
        written = _write(document, out)
    _show(document, written, as_json)


def _write(document: Mapping[str, Any], folder: Path) -> list[Path]:
    from hasten.eval.bench.peers.page import page
    from hasten.eval.report import save_sweep, unavailable
    from hasten.files import write_atomically

    text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_atomically(folder / "peers.json", text.encode())
    write_atomically(folder / "peers.md", page([document]).encode())
    pictures = save_sweep(document, folder) if unavailable() is None else []
    return [folder / "peers.json", folder / "peers.md", *pictures]


def _show(document: Mapping[str, Any], written: Sequence[Path], as_json: bool) -> None:
    from rich.markdown import Markdown

    from hasten.eval.bench.peers.page import section

    if as_json:
        typer.echo(json.dumps(document, indent=1, sort_keys=True))
        return
    console = Console()
    console.print(Markdown(section(document)))
    if document["prompts"] < document["asked"]:
        console.print(
            f"- {document['prompts']} of {document['asked']} prompts are done; run the same command again to go on",
            markup=False,
        )
    for path in written:
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)
