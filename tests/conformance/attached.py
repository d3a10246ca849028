"""A pytest plugin: every call of a diffusers pipeline runs with exact settings of hasten attached.

It attaches when a test calls a pipeline and restores when the call ends, so what a test does between calls (saving,
casting, offloading, comparing components) meets a stock pipeline. What a plan refuses runs stock.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import pytest
from hub import offline
from stock import absent_packages
from trial import TECHNIQUES

import hasten
from hasten._subclass import accelerated_by

OUTCOMES: dict[str, str] = {}
CALLS: Counter[str] = Counter()
"""Calls under each list of techniques; ``""`` for those that ran stock."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """What to attach, and where to write what came of each test."""
    parser.addoption("--attach", default="", help="techniques, by commas; none: stock")
    parser.addoption("--outcomes", type=Path, help="a JSON file to write outcomes to")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """The hub is replaced before test files are imported, because some load from it as they are."""
    absent_packages()
    away = offline()
    away.__enter__()
    config.add_cleanup(lambda: away.__exit__(None, None, None))


@pytest.fixture(autouse=True, scope="session")
def _attached(request: pytest.FixtureRequest) -> Iterator[None]:
    names = [name for name in request.config.getoption("--attach").split(",") if name]
    kinds = [kind for name in dir(diffusers) if _is_pipeline(kind := getattr(diffusers, name))]
    patches = [
        mock.patch.object(kind, "__call__", _attaching(kind.__call__, names))
        for kind in kinds
        if "__call__" in vars(kind)
    ]
    for patch in patches if names else ():
        patch.start()
    yield
    for patch in patches if names else ():
        patch.stop()


def _is_pipeline(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)


def _attaching(stock: Any, names: list[str]) -> Any:
    """``stock``, a pipeline's call, with every technique of ``names`` that the pipeline takes."""

    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if accelerated_by(self) is not None:
            return stock(self, *args, **kwargs)
        given = dict(signature.bind(self, *args, **kwargs).arguments)
        del given["self"]
        config = {name: dict(TECHNIQUES[name].exact) for name in names if _takes(self, name, given)}
        CALLS[",".join(config)] += 1
        if not config:
            return stock(self, *args, **kwargs)
        with hasten.accelerate(self, config):
            return self(*args, **kwargs)

    return call


def _takes(pipe: Any, name: str, arguments: dict[str, Any]) -> bool:
    """Whether the plan of this call is without an error. Some tests use latents that cannot be made smaller."""
    try:
        plan = hasten.plan(pipe, {name: dict(TECHNIQUES[name].exact)}, **arguments)
    except hasten.HastenError:
        return False
    return all(finding.severity != "error" for finding in plan.findings)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """The worst of set-up, call and tear-down."""
    if report.outcome == "failed" or (report.when == "call" and report.nodeid not in OUTCOMES):
        OUTCOMES[report.nodeid] = report.outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what came of it."""
    path = session.config.getoption("--outcomes")
    if path is not None:
        path.write_text(json.dumps({"tests": OUTCOMES, "calls": CALLS}, indent=1, sort_keys=True), "utf-8")
    sys.stdout.write(f"\ncalls: {dict(CALLS)}\n")
