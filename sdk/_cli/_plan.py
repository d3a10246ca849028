"""``hasten plan``: what would be patched, step by step, before anything runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten._cli import _options as options
from hasten._cli._loading import load_quietly
from hasten._console import Console

if TYPE_CHECKING:
    from hasten._config import Config, ConfigLike
    from hasten._report import Report

__all__ = ["register"]

_HELP = """Show the effect of a configuration without running it: sizes, FLOPs and seconds per step, and their limits.

Seconds come from the last runs on this machine. With [bold]--warm-up[/] plain and accelerated calls are made first.

[bold]Examples[/]

  hasten plan mini/t2i-dit --enable bottleneck
  hasten plan mini/t2i-dit --preset balanced
  hasten plan ./my-flux -e bottleneck --steps 28 --height 1024 --width 1024 --warm-up
"""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("plan", help=_HELP)(_command)


def _command(
    model: options.ModelName = None,
    steps: options.Steps = None,
    height: options.Height = None,
    width: options.Width = None,
    frames: options.Frames = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    warm_up: Annotated[
        bool, typer.Option("--warm-up", help="Run one call first and show measured times.")
    ] = False,
    preset: options.Preset = None,
    enable: options.Enable = None,
    sets: options.Set = None,
    config: options.ConfigFile = None,
    as_json: options.Json = False,
) -> None:
    import hasten

    settings = options.configuration(config, enable, sets, preset)
    model = options.choose_model(model, settings)
    call = options.call_arguments(model, settings, steps=steps, height=height, width=width, frames=frames)
    pipe = load_quietly(model, options.choose_place(settings, device, dtype), call, settings.solver)
    measured = _measure(pipe, settings, model, call) if warm_up else None
    plan = hasten.plan(pipe, settings, **call)
    if as_json:
        document = {"plan": plan.to_dict(), "measured": measured.to_dict() if measured else None}
        typer.echo(json.dumps(document, indent=2, default=str))
        return
    console = Console()
    console.print(str(plan), markup=False, highlight=False)
    if measured is not None:
        console.print(str(measured), markup=False, highlight=False)


def _measure(pipe: Any, settings: Config, model: str, call: dict[str, Any]) -> Report:
    """The report of a second accelerated call, beside a plain one; the first ones pay for allocation and caches."""
    import hasten

    prompt = options.choose_prompts(model, settings, None, None, 1, 0)[0]
    both: tuple[ConfigLike, ...] = ([], settings)
    for techniques in both:
        with hasten.accelerate(pipe, techniques, **call) as acceleration:
            for _ in range(2):
                pipe(prompt=prompt, **call)
    return acceleration.report()
