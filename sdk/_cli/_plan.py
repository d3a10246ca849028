"""``hasten plan``: what would be patched, step by step, before anything runs."""

from __future__ import annotations

from typing import Annotated

import typer
from hasten._cli import _options as options
from rich.console import Console

__all__ = ["register"]

_HELP = """Show what a configuration would do to a pipeline: order, sizes per step, predicted FLOPs, what is untested.

With [bold]--warm-up[/] one accelerated call is made as well, and the measured milliseconds per resolution are shown.

[bold]Examples[/]

  hasten plan mini/t2i-dit --enable bottleneck
  hasten plan ./my-flux -e bottleneck --steps 28 --height 1024 --width 1024 --warm-up
"""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("plan", help=_HELP)(_command)


def _command(
    model: options.ModelName = None,
    steps: options.Steps = None,
    height: Annotated[int | None, typer.Option(min=1, help="Height in pixels.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Width in pixels.")] = None,
    warm_up: Annotated[bool, typer.Option("--warm-up", help="Run once and show measured times.")] = False,
    enable: options.Enable = None,
    sets: options.Set = None,
    config: options.ConfigFile = None,
    as_json: options.Json = False,
) -> None:
    import hasten

    settings = options.configuration(config, enable, sets)
    model = options.choose_model(model, settings)
    call = options.call_arguments(model, {"num_inference_steps": steps, "height": height, "width": width})
    pipe = hasten.load(model)
    plan = hasten.plan(pipe, settings, **call)
    if warm_up:
        prompt = options.choose_prompts(model, settings, None, None, 1, 0)[0]
        pipe.set_progress_bar_config(disable=True)
        with hasten.accelerate(pipe, settings) as acceleration:
            pipe(prompt=prompt, **call)
            measured = acceleration.report()
    if as_json:
        typer.echo(plan.to_json() if not warm_up else measured.to_json())
        return
    console = Console()
    console.print(str(plan), markup=False, highlight=False)
    if warm_up:
        console.print(str(measured), markup=False, highlight=False)
