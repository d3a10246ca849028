"""``--sweep`` of ``hasten compare``: quality over time, after the comparison itself is judged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.commands import Console, Processes, showing_progress
from hasten.extend import Pipeline

if TYPE_CHECKING:
    from hasten.eval.compare.document import Evaluation
    from hasten.eval.compare.run import Request
    from hasten.eval.compare.store import RunStore

__all__ = ["perform_sweep"]


def perform_sweep(
    pipe: Pipeline,
    store: RunStore,
    request: Request,
    evaluation: Evaluation,
    processes: Processes,
    *,
    quiet: bool,
) -> tuple[dict[str, Any], list[Path]] | None:
    """Make the pictures that are missing, write ``sweep.json`` and one picture for each metric as PNG and SVG.

    Args:
        pipe: the stock pipeline.
        store: of the comparison, finished.
        request: of the comparison.
        evaluation: how it is judged.
        processes: this process among several.
        quiet: show no progress.

    Returns:
        The content of ``sweep.json`` and the files, from the first process; ``None`` from others.

    Raises:
        ConfigError: the folder holds another sweep.
        HastenError: from a configuration, the run, or the disk.
    """
    from hasten.eval.compare.run import arms_of_run
    from hasten.eval.report import save_sweep, unavailable
    from hasten.eval.sweep.run import Sweep, judge_sweep, run_sweep

    run = store.read_run()
    assert run is not None
    candidates = [arm for arm in arms_of_run(run) if arm.role == "candidate"]
    steps = None if request.ladder is None else request.ladder.steps
    sweep = Sweep(request.job, candidates, request.to_dict(), steps)
    with showing_progress(quiet=quiet or processes.rank > 0, console=Console(stderr=True)) as tell:
        swept = run_sweep(pipe, sweep, store.folder / "sweep", processes=processes, progress=tell)
    if processes.rank > 0:
        return None
    with Console(stderr=True).status("scoring the sweep"):
        document = judge_sweep(swept, evaluation)
        written = [store.folder / "sweep.json"]
        if unavailable() is None:
            written += save_sweep(document, store.folder)
    return document, written
