"""``hasten tune``: the fastest settings that lose no more than a margin, on this model and this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from hasten import commands as common
from hasten.commands import Console, Job, Placement, Processes
from hasten.eval.commands import options

if TYPE_CHECKING:
    from hasten.eval.compare.document import Evaluation
    from hasten.eval.scoring.reference import Reference
    from hasten.eval.tune.run import Request, Tuned, Tuning

__all__ = ["register"]

_PROMPTS = 96
"""Prompts from the data set of a miniature, if the user gives neither prompts nor their number."""

_HELP = """Find the fastest settings that lose no more than a margin, on this model and this machine.

Steps, solver, and every installed technique with the options that it declares as worth trying ([bold]--enable[/]
restricts them, [bold]--set[/] fixes an option). The search begins with plain sampling with fewer steps, looks at a few
prompts first, and leaves a setting as soon as intervals say that it loses too much or is slower. The fastest settings
are confirmed on prompts that the search never saw. If plain sampling with fewer steps is best, that is the answer.

Written to [bold]--out[/]: tuned.yaml, which every command takes with --config; tune.json; quality over time as PNG and
SVG; report.html with pictures. Ctrl-C keeps the best so far. The same command continues where it stopped; with more
--minutes it searches longer. Under [bold]torchrun[/] processes search together.

[bold]Examples[/]

  hasten tune mini/t2i-dit --num-prompts 96 --margin mini_parser=0.05 --minutes 20 --out out/tune
  hasten tune ./my-flux --prompts prompts.txt --margin ssim=0.2 --minutes 60 --out out/tune
  hasten tune ./my-flux --prompts prompts.txt -e bottleneck -e rettention --margin clip_score=0.5 \\
      --metric-option clip_score.network=./clip-vit-large-patch14 --minutes 120 --out out/tune
"""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("tune", help=_HELP)(_command)


def _command(
    model: common.ModelName = None,
    prompts: common.PromptsFile = None,
    margin: options.Margins = None,
    minutes: Annotated[float, typer.Option(help="How long it may take, the confirmation included.")] = 20.0,
    out: Annotated[Path, typer.Option(help="Folder of the tuning.")] = Path("out/tune"),
    enable: common.Enable = None,
    sets: common.Set = None,
    config: common.ConfigFile = None,
    prompt: common.Prompt = None,
    num_prompts: common.NumPrompts = None,
    seed: common.Seed = None,
    steps: common.Steps = None,
    height: common.Height = None,
    width: common.Width = None,
    frames: common.Frames = None,
    guidance_scale: common.Guidance = None,
    batch_size: options.BatchSize = 1,
    metrics: options.Metrics = None,
    metric_option: options.MetricOption = None,
    reference: options.Reference = None,
    reference_count: options.ReferenceCount = None,
    level: options.Level = 0.95,
    device: common.Device = None,
    dtype: common.Dtype = None,
    as_json: common.Json = False,
) -> None:
    from hasten.eval.scoring.reference import Reference
    from hasten.eval.tune.run import Request, check_evaluation

    settings = common.configuration(config, enable, sets)
    model = common.choose_model(model, settings)
    seed, place = common.choose_seed(settings, seed), common.choose_place(settings, device, dtype)
    own = not (prompt or prompts or settings.prompts)  # a miniature's data set has as many as one likes
    limit = num_prompts or settings.num_prompts or (_PROMPTS if own else None)
    texts = common.choose_prompts(model, settings, prompt, prompts, limit, seed)
    call = common.call_arguments(
        model,
        settings,
        steps=steps,
        height=height,
        width=width,
        frames=frames,
        guidance_scale=guidance_scale,
    )
    chosen = settings if settings.techniques or settings.preset else None
    request = Request(
        model, Job(texts, seed, call, batch_size), minutes, chosen, place.dtype, settings.solver
    )
    real = None if reference is None else Reference(reference, reference_count)
    evaluation = _evaluation(
        texts, metrics, metric_option or (), real, margin or (), level, seed, place.device
    )
    check_evaluation(evaluation)
    _perform(request, evaluation, out, place, as_json)


def _evaluation(
    prompts: Sequence[str],
    metrics: str | None,
    metric_options: Sequence[str],
    reference: Reference | None,
    margins: Sequence[str],
    level: float,
    seed: int,
    device: str,
) -> Evaluation:
    """How settings are judged; a metric with a margin is measured without being named again."""
    from hasten.eval.compare.analysis import Settings
    from hasten.eval.compare.document import Evaluation

    tolerated = options.parse_margins(margins)
    named = options.metric_names(metrics, options.default_metrics(prompts))
    wanted = options.metric_names(",".join(tolerated) or None, ())
    names = tuple(dict.fromkeys([*named, *wanted]))
    made = options.build_metrics(names, metric_options, device)
    if reference is None:
        options.require_references(made)
    if not tolerated:
        tolerated = {metric.name: metric.tolerance for metric in made if metric.tolerance is not None}
    return Evaluation(made, reference, Settings(level, seed, tolerated))


def _perform(request: Request, evaluation: Evaluation, out: Path, place: Placement, as_json: bool) -> None:
    from hasten.commands import load_quietly, owned, prepare_folder, settle, showing_progress
    from hasten.eval.commands.perform import about_run
    from hasten.eval.tune.run import Tuning
    from hasten.eval.tune.search import require_library

    require_library()
    processes = Processes.from_environment()
    console = Console(stderr=True, quiet=as_json or processes.rank > 0)
    with owned(prepare_folder(out)):
        pipe = load_quietly(request.model, place, request.job.call, request.solver)
        if request.chosen is not None:
            request = replace(request, chosen=settle(request.chosen, pipe, request.job.call))
        about = about_run(pipe, processes)
        with showing_progress(quiet=console.quiet, console=console) as tell:

            def say(text: str) -> None:
                console.print(text, markup=False, highlight=False)

            tuning = Tuning(pipe, request, evaluation, out, about, processes, tell, say)
            try:
                tuned = tuning.run()
            except KeyboardInterrupt:
                _keep(tuning)
                raise
        if tuned is not None:
            _finish(tuning, tuned, as_json)


def _keep(tuning: Tuning) -> None:
    """Leave the best so far as a configuration file that says that nothing is confirmed."""
    best = tuning.partial()
    if best is None or tuning.processes.rank > 0:
        return
    written = _write(tuning, best)[1]
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"{best.answer.sentence}: {written[0]}", markup=False, highlight=False)


def _write(tuning: Tuning, tuned: Tuned) -> tuple[dict[str, Any], list[Path]]:
    """The configuration file, ``tune.json`` and the curve; the content of the second, and the files."""
    from hasten.commands import own_solver
    from hasten.eval.report import save_sweep, unavailable
    from hasten.eval.tune.output import document_of, write_configuration, write_json

    request, folder = tuning.request, tuning.folder
    document = document_of(tuning, tuned, own_solver(tuning.pipe))
    written = [
        write_configuration(folder, tuned.answer, request, [*document["evidence"], *tuned.warnings]),
        write_json(folder, document),
    ]
    if document["sweep"]["curves"] and unavailable() is None:
        written += save_sweep(document["sweep"], folder)
    return document, written


def _finish(tuning: Tuning, tuned: Tuned, as_json: bool) -> None:
    from hasten.eval.report import unavailable

    document, written = _write(tuning, tuned)
    missing = unavailable()
    if tuned.confirmation is not None and missing is None:
        written.append(_report(tuning, tuned, document))
    if as_json:
        typer.echo(json.dumps(document, indent=1, sort_keys=True))
        return
    console = Console()
    console.print(f"[bold]{escape(tuned.answer.sentence)}[/]", highlight=False)
    console.print(_table(document))
    for warning in (*tuned.warnings, *([missing] if missing else [])):
        console.print(f"- {warning}", markup=False, highlight=False)
    for path in written:
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)


def _report(tuning: Tuning, tuned: Tuned, document: Mapping[str, Any]) -> Path:
    """The report of the confirmation, with the answer and the search's curve in it."""
    from hasten.eval.compare.document import evaluate_run
    from hasten.eval.report import write_report
    from hasten.eval.tune.confirm import joint_level

    assert tuned.confirmation is not None
    level = joint_level(tuning.evaluation.settings.level, len(tuned.standings))
    joint = replace(tuning.evaluation, settings=replace(tuning.evaluation.settings, level=level))
    report = evaluate_run(tuned.confirmation, joint)
    answer = {key: document[key] for key in ("answer", "techniques", "warnings", "evidence")}
    return write_report(
        tuned.confirmation, {**report, "sweep": document["sweep"], "tune": answer}, tuning.folder
    )


def _table(document: Mapping[str, Any]) -> Table:
    """Why each technique is in or out."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("technique", no_wrap=True)
    table.add_column("why it is in or out")
    for name, why in document["techniques"].items():
        table.add_row(escape(name), escape(why))
    return table
