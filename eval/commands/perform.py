"""Runs a comparison, judges it and shows it: what ``hasten compare`` and ``hasten demo`` have in common."""

from __future__ import annotations

import datetime
import io
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hasten.commands import (
    Console,
    Placement,
    Processes,
    load_quietly,
    owned,
    prepare_folder,
    settle,
    showing_progress,
)
from hasten.eval.commands.sweep import perform_sweep
from hasten.eval.compare.engine import BASELINE
from hasten.eval.compare.wording import measured_text
from hasten.extend import Pipeline

if TYPE_CHECKING:
    from hasten.eval.compare.document import Evaluation
    from hasten.eval.compare.run import Request
    from hasten.eval.compare.store import RunStore

__all__ = ["about_run", "perform"]

_GRID_ROWS = 6


def perform(
    request: Request,
    evaluation: Evaluation,
    out: Path,
    device: str,
    *,
    html: bool = True,
    as_json: bool = False,
    sweep: bool = False,
) -> None:
    """Make the pictures that are missing, write ``report.json``, ``report.html`` and ``grid.png``, print the tables.

    Args:
        request: what to compare.
        evaluation: how to judge it.
        out: folder of the run.
        device: torch device of the pipeline.
        html: write ``report.html``; where what it is made with is missing, that is said, and the rest is done.
        as_json: print the content of ``report.json`` instead of tables.
        sweep: draw quality over time too.

    Raises:
        typer.Exit: with 3 when a gate is missed.
        HastenError: from the request, a configuration, the run, or the disk.
    """
    from hasten.eval.report import unavailable

    processes = Processes.from_environment()
    missing = unavailable() if html else None
    if missing is not None and processes.rank == 0:
        _say(missing)
    with owned(prepare_folder(out)):
        pipe, store = _run(request, evaluation, out, processes, device, quiet=as_json)
        documents = _judge(store, evaluation, html and missing is None) if processes.rank == 0 else None
        swept = perform_sweep(pipe, store, request, evaluation, processes, quiet=as_json) if sweep else None
        if documents is not None:
            _finish(store, *documents, swept, missing, as_json)


def _run(
    request: Request,
    evaluation: Evaluation,
    folder: Path,
    processes: Processes,
    device: str,
    *,
    quiet: bool,
) -> tuple[Any, RunStore]:
    from hasten.eval.compare.document import rung_judge
    from hasten.eval.compare.run import GENERATING, run_comparison

    pipe = load_quietly(request.model, Placement(device, request.dtype), request.job.call, request.solver)
    settled = {name: settle(config, pipe, request.job.call) for name, config in request.candidates.items()}
    request = replace(request, candidates=settled)
    about = about_run(pipe, processes)
    console, worked = Console(stderr=True, quiet=quiet or processes.rank > 0), False
    with showing_progress(quiet=console.quiet, console=console) as tell:

        def advance(stage: str, done: int, total: int) -> None:
            nonlocal worked
            if stage == GENERATING and done == total and not worked:
                console.print(
                    f"nothing left to generate: {folder} has the pictures and times of an earlier run; "
                    f"remove it or choose another --out to measure again",
                    markup=False,
                    highlight=False,
                )
            worked = True
            tell(stage, done, total)

        judge = rung_judge(evaluation, request.ladder) if request.ladder is not None else None
        return pipe, run_comparison(
            pipe, request, folder, processes=processes, about=about, progress=advance, judge=judge
        )


def about_run(pipe: Pipeline, processes: Processes) -> dict[str, Any]:
    """Versions, machine, command and time, which are kept with what is measured."""
    from importlib.metadata import version

    from hasten import __version__
    from hasten.commands import describe_machine

    libraries = ("torch", "diffusers", "transformers", "numpy", "scipy", "pillow")
    return {
        "hasten": __version__,
        "machine": describe_machine(),
        "versions": {name: version(name) for name in libraries},
        "pipeline": type(pipe).__name__,
        "dtype": str(getattr(pipe, "dtype", "")),
        "processes": processes.world,
        "command": shlex.join(["hasten", *sys.argv[1:]]),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _judge(store: RunStore, evaluation: Evaluation, html: bool) -> tuple[dict[str, Any], list[Path]]:
    """The report as a document, and the files it was written to."""
    from hasten.eval.compare.document import evaluate_run

    with Console(stderr=True).status("scoring the pictures"):
        document = evaluate_run(store, evaluation)
        written = [store.folder / "report.json", _save_grid(store, document)]
        if html:
            from hasten.eval.report import write_report

            written.append(write_report(store, document))
    return document, written


def _finish(
    store: RunStore,
    document: dict[str, Any],
    written: list[Path],
    swept: tuple[dict[str, Any], list[Path]] | None,
    missing: str | None,
    as_json: bool,
) -> None:
    from hasten.eval.compare.document import missed_gates
    from hasten.eval.compare.table import print_report

    if swept is not None:
        document["sweep"] = swept[0]
        written += swept[1]
        if store.folder / "report.html" in written:
            from hasten.eval.report import write_report

            write_report(store, document)
    missed = missed_gates(document)
    if as_json:
        typer.echo(json.dumps(document, indent=1, sort_keys=True))
    else:
        print_report(document, Console(), written)
    if missing is not None:
        _say(missing)  # again, where it is seen
    if missed:
        _complain(missed)
        raise typer.Exit(3)


def _save_grid(store: RunStore, document: Mapping[str, Any]) -> Path:
    """The first prompts as one picture: every row that shows another picture than the baseline's."""
    from hasten.commands import comparison_grid
    from hasten.files import write_atomically

    prompts = document["prompts"][:_GRID_ROWS]
    same = document["pictures"][BASELINE]
    columns = {
        f"{arm['name']} ({arm['steps']} steps)": [
            store.open_image(arm["name"], i) for i in range(len(prompts))
        ]
        for arm in document["arms"]
        if arm["name"] == BASELINE or document["pictures"][arm["name"]] != same
    }
    target, buffer = store.folder / "grid.png", io.BytesIO()
    comparison_grid(columns, prompts).save(buffer, format="PNG", optimize=True)
    write_atomically(target, buffer.getvalue())
    return target


def _say(text: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"note: {text}", markup=False)


def _complain(missed: Sequence[Mapping[str, Any]]) -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for outcome in missed:
        measured = "nothing" if outcome["measured"] is None else measured_text(outcome)
        console.print(f"gate missed: {outcome['gate']} ({outcome['arm']}: measured {measured})", markup=False)
