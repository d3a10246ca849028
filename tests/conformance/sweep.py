"""Try every technique on every supported pipeline class that a test can build, and write down what happened.

    python tests/conformance/sweep.py CHECKOUT RESULTS.json [--shard 0/4] [--only CLASS ...]

Results are added to the file; classes that it holds already are passed over.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import traceback
import warnings
from collections.abc import Collection, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from hub import offline
from relatives import UNRUNNABLE, relatives, replaced
from stock import Stock, stock_pipelines
from trial import Trial, run

from hasten.commands import host


def supported(name: str) -> bool:
    """Whether an adapter describes the class ``name`` and refuses it for no reason of its own."""
    adapter = host().registry.adapters.get(name)
    return adapter is not None and name not in (adapter.refused or {})


def _pipelines(checkout: Path, folders: Collection[str]) -> Iterator[Stock]:
    """Those of the checkout's tests, then their untested relatives."""
    tested = {}
    for stock in stock_pipelines(checkout, folders):
        tested[stock.name] = stock
        if stock.name not in replaced:
            yield stock
    yield from relatives(tested)


def _record(results: Path, *trials: Trial) -> None:
    """Add trials to the file, without refusals: those are facts of the adapters and their plans."""
    known = json.loads(results.read_text("utf-8")) if results.exists() else {}
    for trial in trials:
        told = trial.techniques.items()
        kept = {name: verdict for name, verdict in told if not verdict.startswith("refused")}
        known[trial.pipeline] = asdict(replace(trial, techniques=kept))
    results.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", "utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--folders", nargs="*", default=[])
    given = parser.parse_args()
    index, count = map(int, given.shard.split("/"))
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_grad_enabled(False)
    _record(given.results, *(Trial(name, f"not tried: {reason}") for name, reason in UNRUNNABLE.items()))
    with offline():
        for number, stock in enumerate(_pipelines(given.checkout, given.folders)):
            known = json.loads(given.results.read_text("utf-8")) if given.results.exists() else {}
            wanted = (
                stock.name in given.only if given.only else supported(stock.name) and stock.name not in known
            )
            if number % count != index or not wanted:
                continue
            try:
                trial = run(stock)
            except Exception as error:  # the stock pipeline, or the test that builds it, does not run here
                last = traceback.extract_tb(error.__traceback__)[-1]
                told = f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
                trial = Trial(stock.name, f"not tried: {told[:300]}")
            _record(given.results, trial)
            sys.stdout.write(f"{stock.name}: {trial.oracle[:150]} {trial.techniques}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
