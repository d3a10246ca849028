"""``hasten demo``: a comparison on the bundled miniature that anybody can run at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hasten import commands as common
from hasten.commands import Job
from hasten.eval.commands import options

__all__ = ["register"]

_MODEL = "mini/t2i-dit"
_METRICS = "mini_classifier,mini_parser,mini_text_image,psnr"
_MARGIN = 0.05
"""Share of the attributes that may be lost."""
_STEPS, _PROMPTS, _BATCH = 14, 24, 2
"""Few, because a demonstration is to take minutes: steps that the model still does well with, and batches that leave
enough of them to time.
"""
_LADDER, _LADDER_PROMPTS = (10, 8), 12
_HELP = """Generate with a bundled trained miniature, plain and accelerated, and compare speed and quality.

First a short ladder of steps over some of the prompts finds the knee: the fewest plain steps within the margin. Then
same prompts, same seeds, batches of all rows interleaved, accelerated from the usual steps and from the knee. The
last rows are plain sampling with as many steps as fit into the accelerated runs' time: the alternative that every
acceleration has to beat. Unless you choose techniques, the preset [bold]balanced[/] does. Quality figures on a
miniature say nothing about published FID or CLIP scores. The same as [bold]hasten compare[/] with the settings
chosen, fewer metrics, a short ladder, and only that one kind of control.

[bold]Examples[/]

  hasten demo
  hasten demo --num-prompts 128 --out out/demo-128
  hasten demo --set bottleneck.delta=0.1 --out out/careful --json
"""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("demo", help=_HELP)(_command)


def _command(
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("out/demo"),
    num_prompts: Annotated[int, typer.Option(min=2, help="Number of prompts.")] = _PROMPTS,
    seed: common.Seed = None,
    steps: common.Steps = None,
    batch_size: options.BatchSize = _BATCH,
    preset: common.Preset = None,
    enable: common.Enable = None,
    sets: common.Set = None,
    config: common.ConfigFile = None,
    fewer_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the equal-time control. (default: from a measurement)")
    ] = None,
    device: common.Device = None,
    dtype: common.Dtype = None,
    knee: options.Knee = None,
    ladder: options.LadderSteps = None,
    as_json: common.Json = False,
) -> None:
    from hasten.eval.commands.perform import perform
    from hasten.eval.compare.analysis import Settings
    from hasten.eval.compare.document import Evaluation
    from hasten.eval.compare.engine import FEWER_STEPS
    from hasten.eval.compare.run import Request
    from hasten.pipelines import mini

    if config is None and not enable and preset is None:
        preset = "balanced"
    settings = common.configuration(config, enable, sets, preset)
    seed, place = common.choose_seed(settings, seed), common.choose_place(settings, device, dtype)
    call = common.call_arguments(_MODEL, settings, steps=steps or settings.steps or _STEPS)
    job = Job(tuple(mini.prompts(num_prompts, seed=seed)), seed, call, batch_size)
    fewer = {} if fewer_steps is None else {"accelerated": fewer_steps}
    metrics = options.build_metrics(options.metric_names(_METRICS, ()), (), place.device)
    margins = dict.fromkeys(("mini_classifier", "mini_parser"), _MARGIN)
    evaluation = Evaluation(metrics, None, Settings(seed=seed, margins=margins))
    reference, count = int(call["num_inference_steps"]), min(num_prompts, _LADDER_PROMPTS)
    found = options.ladder_of(knee, ladder, evaluation, reference=reference, prompts=count, default=_LADDER)
    request = Request(
        _MODEL, job, {"accelerated": settings}, fewer, (FEWER_STEPS,), place.dtype, found, settings.solver
    )
    perform(request, evaluation, out, place.device, as_json=as_json)
