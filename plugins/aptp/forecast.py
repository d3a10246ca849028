"""What a run on experts will cost, before anything runs."""

from __future__ import annotations

from dataclasses import replace

from hasten.extend import Forecast
from hasten.plugins.aptp.config import AptpConfig
from hasten.plugins.aptp.manifest import Manifest, RouteEntry
from hasten.plugins.aptp.timestep_segments import segment_of

__all__ = ["forecast"]


def forecast(config: AptpConfig, manifest: Manifest, before: Forecast) -> Forecast:
    """Every step with the share of the multiply-accumulates that its expert keeps.

    Which expert a prompt takes is known when it is there: until then, the mean over the calibration prompts, unless
    ``route`` is ``"static"``.
    """
    routes = _routes(config, manifest)
    note = f"expert {config.expert}" if config.route == "static" else "an expert"
    steps = tuple(step.changed(_share(manifest, routes, step.level), note) for step in before.steps)
    facts = {
        "share_from": "the expert"
        if config.route == "static"
        else "mean over the prompts of the bundle's calibration"
    }
    return replace(before, steps=steps, facts=facts)


def _routes(config: AptpConfig, manifest: Manifest) -> tuple[tuple[float, RouteEntry], ...]:
    """The choices of the router, each with its share of the prompts."""
    if config.route == "static":
        return ((1.0, manifest.choices[config.expert or 0]),)
    total = sum(route.traffic for route in manifest.choices)
    return tuple(
        (route.traffic / total if total else 1 / len(manifest.choices), route) for route in manifest.choices
    )


def _share(manifest: Manifest, routes: tuple[tuple[float, RouteEntry], ...], level: float) -> float:
    """Mean share of the base's operations in a step at this flow time."""
    segment = segment_of(level, manifest.segments) if manifest.segments else 0
    return sum(often * manifest.experts[route.experts[segment]].macs_share for often, route in routes)
