"""``hasten compare``: what did a configuration gain, and what did it cost?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten import commands as common
from hasten.commands import Job
from hasten.eval.commands import options
from hasten.extend import ConfigError

if TYPE_CHECKING:
    from hasten.commands import Config
    from hasten.eval.compare.document import Evaluation
    from hasten.eval.compare.run import Request
    from hasten.eval.scoring.reference import Reference

__all__ = ["register"]

_SHARED = (
    "model",
    "prompts",
    "num_prompts",
    "seed",
    "steps",
    "solver",
    "height",
    "width",
    "frames",
    "guidance_scale",
    "device",
    "dtype",
)
"""What configurations have to agree in to be compared."""
_HELP = """Compare configurations with the plain pipeline: speed, quality, intervals, verdicts and an HTML report.

Same prompts and seeds for every row, batches interleaved. First the knee of the step curve is found: the fewest plain
steps, over the solvers that suit the pipeline, that lose no more than the margin. Every configuration runs from the
baseline's steps and from the knee, and every speed-up is stated against both ([bold]--no-knee[/] leaves it out). Three
controls are always added: the baseline repeated, the baseline from other seeds, and plain sampling with as many steps
as fit into each configuration's time.
[bold]--sweep[/] also draws quality over time: plain sampling over steps and solvers, every technique over its dial.
Run again after an interruption: nothing is repeated. Under [bold]torchrun[/] or [bold]accelerate launch[/] the prompts
are split over the processes.

[bold]Gates[/] make the exit code 3 when missed. METRIC>=VALUE or METRIC<=VALUE, with METRIC.low or METRIC.high for an
end of the interval and METRIC.change (.low, .high) for the difference to the baseline; speedup, seconds and flops_ratio
count as metrics. NAME:METRIC>=VALUE concerns one configuration. NAME:beats_fewer_steps asks that it won against plain
sampling in the same time.

[bold]Examples[/]

  hasten compare mini/t2i-dit --enable bottleneck --num-prompts 128 --out out/compare
  hasten compare mini/t2i-dit -c careful.yaml -c bold.yaml --margin mini_classifier=0.05
  hasten compare mini/t2i-dit -e bottleneck --gate "speedup.low>=1.2" --gate "mini_parser.change.low>=-0.05"
  hasten compare mini/t2i-dit -e bottleneck --sweep --out out/sweep
  hasten compare ./my-flux -e bottleneck --prompts prompts.txt -m clip_score --metric-option clip_score.network=./clip
"""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("compare", help=_HELP)(_command)


def _command(
    model: common.ModelName = None,
    config: options.Configs = None,
    preset: common.Preset = None,
    enable: common.Enable = None,
    sets: common.Set = None,
    prompt: common.Prompt = None,
    prompts: common.PromptsFile = None,
    num_prompts: common.NumPrompts = None,
    out: Annotated[Path, typer.Option(help="Output folder of the run.")] = Path("out/compare"),
    seed: common.Seed = None,
    steps: common.Steps = None,
    height: common.Height = None,
    width: common.Width = None,
    frames: common.Frames = None,
    guidance_scale: common.Guidance = None,
    batch_size: options.BatchSize = 8,
    fewer_steps: options.FewerSteps = None,
    metrics: options.Metrics = None,
    metric_option: options.MetricOption = None,
    reference: options.Reference = None,
    reference_count: options.ReferenceCount = None,
    workers: options.Workers = 0,
    skip_bad: options.SkipBad = False,
    margin: options.Margins = None,
    knee: options.Knee = None,
    ladder: options.LadderSteps = None,
    sweep: options.Sweep = False,
    gate: options.Gates = None,
    level: options.Level = 0.95,
    device: common.Device = None,
    dtype: common.Dtype = None,
    report: Annotated[bool, typer.Option(help="Write report.html.")] = True,
    as_json: common.Json = False,
) -> None:
    from hasten.eval.commands.perform import perform
    from hasten.eval.compare.engine import AT_KNEE
    from hasten.eval.compare.run import Request

    configurations = _configurations(config, enable, sets, preset)
    first = next(iter(configurations.values()))
    model = common.choose_model(model, first)
    seed, place = common.choose_seed(first, seed), common.choose_place(first, device, dtype)
    texts = common.choose_prompts(model, first, prompt, prompts, num_prompts, seed)
    call = common.call_arguments(
        model,
        first,
        steps=steps,
        height=height,
        width=width,
        frames=frames,
        guidance_scale=guidance_scale,
    )
    job = Job(texts, seed, call, batch_size)
    request = Request(model, job, configurations, dtype=place.dtype, solver=first.solver)
    real = _reference(reference, reference_count, workers, skip_bad)
    judged = [*configurations, *(name + AT_KNEE for name in configurations if knee is not False)]
    evaluation = _evaluation(
        request, metrics, metric_option or (), real, margin or (), gate or (), judged, level, place.device
    )
    found = options.ladder_of(knee, ladder, evaluation, reference=request.steps, prompts=len(texts))
    given_steps = _fewer_steps(fewer_steps or (), configurations)
    request = replace(request, fewer_steps=given_steps, ladder=found)
    perform(request, evaluation, out, place.device, html=report, as_json=as_json, sweep=sweep)


def _reference(path: Path | None, count: int | None, workers: int, skip_bad: bool) -> Reference | None:
    from hasten.eval.pictures.loading import Reading
    from hasten.eval.scoring.reference import Reference

    reading = Reading(workers=workers, skip_bad=skip_bad)
    return None if path is None else Reference(path, count, reading)


def _evaluation(
    request: Request,
    metrics: str | None,
    metric_options: Sequence[str],
    reference: Reference | None,
    margins: Sequence[str],
    gates: Sequence[str],
    judged: Sequence[str],
    level: float,
    device: str,
) -> Evaluation:
    """How the run will be judged; everything that could be wrong about it is found now."""
    from hasten.eval.compare.analysis import Settings
    from hasten.eval.compare.document import Evaluation
    from hasten.eval.compare.gates import parse_gates

    names = options.metric_names(metrics, options.default_metrics(request.job.prompts))
    conditions = parse_gates(gates, names, judged)
    settings = Settings(level, request.job.seed, options.parse_margins(margins))
    made = options.build_metrics(names, metric_options, device)
    if reference is None:
        options.require_references(made)
    return Evaluation(made, reference, settings, conditions)


def _configurations(
    files: Sequence[Path] | None, enable: list[str] | None, sets: list[str] | None, preset: str | None
) -> dict[str, Config]:
    """Name -> configuration: a file's stem, ``accelerated`` for the command line alone."""
    if not files:
        if not (enable or preset):
            raise ConfigError(
                "nothing to compare with the baseline: give --preset NAME, --enable NAME or --config FILE"
            )
        return {"accelerated": common.configuration(None, enable, sets, preset)}
    found: dict[str, Config] = {}
    for file in files:
        if file.stem in found:
            raise ConfigError(
                f"two configuration files are called {file.stem!r}; rows are named after the files, so rename one"
            )
        found[file.stem] = common.configuration(file, enable, sets, preset)
    first = next(iter(found.values()))
    for name, other in found.items():
        for key in _SHARED:
            if getattr(other, key) != getattr(first, key):
                raise ConfigError(
                    f"{name} and {next(iter(found))} differ in {key!r}; a comparison needs the same in all"
                )
    return found


def _fewer_steps(texts: Sequence[str], names: Mapping[str, Any]) -> dict[str, int]:
    """``N`` for every configuration, ``NAME=N`` for one."""
    found: dict[str, int] = {}
    for text in texts:
        name, _, count = text.rpartition("=")
        if not count.isdecimal() or int(count) < 1:
            raise ConfigError(f"--fewer-steps {text}: write a number of steps, or NAME=STEPS")
        found |= dict.fromkeys([name] if name else names, int(count))
    return found
